"""The parametric law L(N, D) = E + A N^-alpha + B D^-beta (2203.15556, equation 2), fitted as that paper fits it.

Minimised is the Huber loss of log L, sum of huber(log L(N, D) - log measured), with delta 1e-3 (its section D.3). For
given exponents the law is linear in E, A and B, none of them negative, so starts are made by variable projection
(2603.22339): each pair of exponents of a grid has its best E, A and B in closed form, by relative squared error, and
the best of these pairs are refined in all five numbers at once.

The refinement is ours where scipy has `least_squares`, because it refines all starts, or all resamples of a bootstrap,
in one array: 400 resamples take less than a second. It is Levenberg and Marquardt's, within bounds; each residual
beyond delta is weighted by delta over its size, so that a step minimises a parabola which lies above the Huber loss and
touches it, and no step is taken that does not descend. `tests/scaling/test_laws.py` compares it with scipy's.

The same machinery fits laws of size alone, and what two modalities do to each other (`Form`).
"""

from itertools import product
from typing import NamedTuple

import numpy as np

DELTA = 1e-3  # of log loss; beyond it an error counts by its size, not by its square (2203.15556, section D.3)
LEAST, MOST = 0.01, 2.0  # exponents
GRID = np.geomspace(2 * LEAST, 0.9 * MOST, 16)  # exponents that are tried with each other
KEPT = 12  # of these pairs, those that are refined
STEPS = 200  # of a refinement, at most
ENOUGH = 1e-7  # a refinement ends where no step lowers its objective by more than this share
NAMES = ("E", "A", "B", "alpha", "beta")


class Points(NamedTuple):
    """What is fitted, an entry a run; each `[P]`."""

    n: np.ndarray  # parameters
    d: np.ndarray  # tokens
    loss: np.ndarray
    base: np.ndarray | float = 0.0  # what the loss would be without the law's three terms; 0 but for an interaction


class Law(NamedTuple):
    """E + A n^-alpha + B d^-beta. Each is a number, or of resamples `[R, 1]`, so that `loss` of `[P]` is `[R, P]`."""

    E: float | np.ndarray
    A: float | np.ndarray
    B: float | np.ndarray
    alpha: float | np.ndarray
    beta: float | np.ndarray

    def loss(self, n, d):
        """Of n parameters after d tokens."""
        return self.E + self.A * np.power(n, -self.alpha) + self.B * np.power(d, -self.beta)

    @property
    def a(self):
        """The best size grows as FLOPs^a, where FLOPs are a constant times n d (2203.15556, equation 4)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self):
        """The best number of tokens grows as FLOPs^b."""
        return self.alpha / (self.alpha + self.beta)


class Problem(NamedTuple):
    """Points in the units of their geometric means, where the five numbers are hardly correlated."""

    x_P: np.ndarray  # log n / n0
    z_P: np.ndarray  # log d / d0
    loss_P: np.ndarray
    base_P: np.ndarray | float
    low_5: np.ndarray  # the least that E, A, B, alpha and beta may be
    high_5: np.ndarray  # and the most
    delta: float


class Form(NamedTuple):
    """Which laws are looked for."""

    numbers: int  # that are free
    least: float = 0.0  # the least that E may be
    most: float = np.inf  # the most that B may be


BOTH = Form(5)
SIZE = Form(3, most=0.0)  # E + A N^-alpha, where tokens follow from the size
# What is added to `base`: E of either sign (2301.03728, its bimodal law). There E is -C, the most that two modalities
# can gain from each other, and the other terms are their competition for parameters and for tokens.
INTERACTION = Form(5, least=-np.inf)


def fit(points: Points, form: Form = BOTH, delta: float = DELTA) -> Law:
    """The law with the least Huber loss. Raises nothing: who calls says beforehand whether the points can tell one."""
    problem, n0, d0 = _problem(points, form, delta)
    start_R5 = starts(problem)
    theta_R5, objective_R = refined(problem, start_R5, np.ones((len(start_R5), len(points.loss))))
    return _law(theta_R5[np.argmin(objective_R)].tolist(), n0, d0)


def refit(points: Points, law: Law, weight_RP: np.ndarray, form: Form = BOTH, delta: float = DELTA) -> Law:
    """The law of each row of weights, refined from `law`; each of its numbers `[R, 1]`. `base` may be `[R, P]`."""
    problem, n0, d0 = _problem(points, form, delta)
    start_5 = np.array([law.E, law.A * n0**-law.alpha, law.B * d0**-law.beta, law.alpha, law.beta])
    theta_R5, _ = refined(problem, np.tile(start_5, (len(weight_RP), 1)), weight_RP)
    return _law(theta_R5[:, :, None].transpose(1, 0, 2), n0, d0)


def huber(error, delta: float):
    size = np.abs(error)
    return np.where(size <= delta, error**2 / 2, delta * (size - delta / 2))


def _problem(points: Points, form: Form, delta: float) -> tuple[Problem, float, float]:
    n0, d0 = (float(np.exp(np.log(x).mean())) for x in (points.n, points.d))
    low_5 = np.array([form.least, 0.0, 0.0, LEAST, LEAST])
    high_5 = np.array([np.inf, np.inf, form.most, MOST, MOST])
    x_P, z_P = np.log(points.n / n0), np.log(points.d / d0)
    return Problem(x_P, z_P, points.loss, points.base, low_5, high_5, delta), n0, d0


def _law(theta, n0: float, d0: float) -> Law:
    E, A, B, alpha, beta = theta
    return Law(E, A * n0**alpha, B * d0**beta, alpha, beta)


def starts(problem: Problem) -> np.ndarray:
    """`[KEPT, 5]`: of a grid of exponents those that come nearest, each with its best E, A and B."""
    pair_G2 = np.array(list(product(GRID, GRID)))
    small_GP = np.exp(-pair_G2[:, :1] * problem.x_P)
    short_GP = np.exp(-pair_G2[:, 1:] * problem.z_P)
    column_GP3 = np.stack([np.ones_like(small_GP), small_GP, short_GP], -1) / problem.loss_P[:, None]
    target_P = 1 - problem.base_P / problem.loss_P
    best_G3, least_G = np.zeros((len(pair_G2), 3)), np.full(len(pair_G2), np.inf)
    # The best of three numbers, some of which may not be negative, has some of them 0 and is free in the others.
    for free in product([False, True], repeat=3):
        free_3 = np.array(free)
        found_G3 = (np.linalg.pinv(column_GP3 * free_3) @ target_P) * free_3
        error_G = huber((column_GP3 @ found_G3[:, :, None])[:, :, 0] - target_P, problem.delta).sum(1)
        allowed_G3 = (found_G3 >= problem.low_5[:3]) & (found_G3 <= problem.high_5[:3])
        better_G = allowed_G3.all(1) & (error_G < least_G)
        best_G3[better_G], least_G[better_G] = found_G3[better_G], error_G[better_G]
    nearest = np.argsort(least_G)[:KEPT]
    return np.concatenate([best_G3, pair_G2], 1)[nearest]


def refined(problem: Problem, theta_R5: np.ndarray, weight_RP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row of `theta_R5` (E, A, B, alpha, beta), refined under its row of weights; and its objective `[R]`."""
    damping_R = np.full(len(theta_R5), 1e-3)
    error_RP, slope_RP5 = _errors(problem, theta_R5)
    objective_R = (weight_RP * huber(error_RP, problem.delta)).sum(1)
    for _ in range(STEPS):
        pull_RP = weight_RP * np.minimum(1, problem.delta / np.maximum(np.abs(error_RP), 1e-300))
        step_R5 = _step(problem, theta_R5, error_RP, slope_RP5, pull_RP, damping_R)
        tried_R5 = np.clip(theta_R5 + step_R5, problem.low_5, problem.high_5)
        tried_RP, tried_RP5 = _errors(problem, tried_R5)
        reached_R = (weight_RP * huber(tried_RP, problem.delta)).sum(1)
        gain_R = objective_R - reached_R
        better_R = gain_R > 0
        done_R = np.abs(gain_R) <= ENOUGH * objective_R
        theta_R5 = np.where(better_R[:, None], tried_R5, theta_R5)
        error_RP = np.where(better_R[:, None], tried_RP, error_RP)
        slope_RP5 = np.where(better_R[:, None, None], tried_RP5, slope_RP5)
        objective_R = np.where(better_R, reached_R, objective_R)
        damping_R = np.clip(np.where(better_R, damping_R / 5, damping_R * 4), 1e-9, 1e12)
        if (done_R | (damping_R > 1e9)).all():
            break
    return theta_R5, objective_R


def _errors(problem: Problem, theta_R5: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of the law less log of the loss, `[R, P]`, and its slope in each of the five numbers, `[R, P, 5]`."""
    E_R1, A_R1, B_R1, alpha_R1, beta_R1 = theta_R5.T[:, :, None]
    small_RP, short_RP = np.exp(-alpha_R1 * problem.x_P), np.exp(-beta_R1 * problem.z_P)
    told_RP = problem.base_P + E_R1 + A_R1 * small_RP + B_R1 * short_RP
    told_RP = np.maximum(told_RP, 1e-9)  # a negative constant may outweigh the rest: far from any loss, so not taken
    slopes = (1.0, small_RP, short_RP, -A_R1 * small_RP * problem.x_P, -B_R1 * short_RP * problem.z_P)
    slope_RP5 = np.stack([slope / told_RP for slope in slopes], -1)
    return np.log(told_RP) - np.log(problem.loss_P), slope_RP5


def _step(problem, theta_R5, error_RP, slope_RP5, pull_RP, damping_R) -> np.ndarray:
    """The damped step to the foot of the parabola; 0 in numbers that stand at a bound and are pulled beyond it."""
    pulled_R5P = (slope_RP5 * pull_RP[:, :, None]).transpose(0, 2, 1)
    descent_R5 = -(pulled_R5P @ error_RP[:, :, None])[:, :, 0]
    curve_R55 = pulled_R5P @ slope_RP5
    held_R5 = ((theta_R5 <= problem.low_5) & (descent_R5 < 0)) | ((theta_R5 >= problem.high_5) & (descent_R5 > 0))
    descent_R5 = np.where(held_R5, 0, descent_R5)
    curve_R55 = np.where(held_R5[:, :, None] | held_R5[:, None, :], 0, curve_R55)
    diagonal_R5 = np.einsum("rii->ri", curve_R55)
    damped_R5 = damping_R[:, None] * diagonal_R5 + np.where(diagonal_R5 > 0, 1e-12 * diagonal_R5, 1)
    return np.linalg.solve(curve_R55 + damped_R5[:, :, None] * np.eye(5), descent_R5[:, :, None])[:, :, 0]
