"""Continuous tokens: noise them, say what the network predicts of them, and solve from noise back to data.

t is the noise level: 0 is data x, 1 is noise e ~ N(0, 1), and x_t = alpha x + sigma e. Float32; t broadcasts against x.
What a network predicts is a row of `mot.config.objectives.OBJECTIVES` and a file beside this one, with four functions:
`mix(t)`, `target(x, e, t)`, `weight(t)` and `clean_and_noise(prediction, x_t, t)`, which are documented here.
"""

import importlib
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from mot.config.objectives import OBJECTIVES
from mot.config.options import SOLVERS

PREDICTS = tuple(name for name, kind in OBJECTIVES.items() if kind.denoises)


def implementation(predicts: str) -> ModuleType:
    """The file of an objective of vectors."""
    if predicts not in PREDICTS:
        raise _unknown("predicts", predicts, PREDICTS)
    return importlib.import_module(f"mot.objectives.{predicts}")


def straight(t) -> tuple[jax.Array, jax.Array]:
    """(alpha, sigma) of the straight way from data to noise: 1 - t, t (2209.03003; 2403.03206)."""
    return 1 - t, t


def mix(t, predicts: str) -> tuple[jax.Array, jax.Array]:
    """(alpha, sigma) of x_t = alpha x + sigma e."""
    return implementation(predicts).mix(jnp.asarray(t, jnp.float32))


def noised(x, e, t, predicts: str) -> jax.Array:
    """x_t, of the shape of x."""
    alpha, sigma = mix(t, predicts)
    return alpha * x + sigma * e


def target(x, e, t, predicts: str) -> jax.Array:
    """What the network should answer to x_t."""
    return implementation(predicts).target(x, e, t)


def weight(t, predicts: str) -> jax.Array:
    """The factor of the squared error, of the shape of t."""
    return implementation(predicts).weight(jnp.asarray(t, jnp.float32))


def clean_and_noise(prediction, x_t, t, predicts: str) -> tuple[jax.Array, jax.Array]:
    """(x_hat, e_hat) with alpha x_hat + sigma e_hat = x_t."""
    return implementation(predicts).clean_and_noise(prediction, x_t, jnp.asarray(t, jnp.float32))


def _uniform(u) -> jax.Array:
    return u


def _logit_normal(u) -> jax.Array:
    """The sigmoid of a standard normal (2403.03206 eq. 19)."""
    return jax.nn.sigmoid(ndtri(u))


def _beta(u) -> jax.Array:
    """Mostly noise: pi0's time is tau = 1 - t, with (s - tau) / s ~ Beta(1.5, 1) and s = 0.999 (2410.24164)."""
    return 1 - 0.999 + 0.999 * u ** (2 / 3)


TIME_DISTRIBUTIONS = {"uniform": _uniform, "logit_normal": _logit_normal, "beta": _beta}  # inverse CDFs


def noise_levels(u, time_distribution: str, shift=1.0, max_noise=1.0) -> jax.Array:
    """Noise levels in [0, max_noise], from u uniform in (0, 1) and of its shape.

    The inverse CDF comes first, then the shift, then the scaling by `max_noise`. shift: sqrt(m / n) for m values, tuned
    at n (2403.03206 eq. 23). max_noise: below 1 for a unit before its text (2408.11039: 0.5).
    """
    if time_distribution not in TIME_DISTRIBUTIONS:
        raise _unknown("time_distribution", time_distribution, tuple(TIME_DISTRIBUTIONS))
    t = TIME_DISTRIBUTIONS[time_distribution](jnp.asarray(u, jnp.float32))
    return max_noise * _shifted(t, shift)


def grid(steps: int, shift=1.0) -> np.ndarray:
    """The noise levels of a sampler, `[steps + 1]` from 1 down to 0, shifted as in training."""
    return _shifted(np.linspace(1, 0, steps + 1), shift).astype(np.float32)


def guided(conditional, unconditional, scale) -> jax.Array:
    """Classifier-free guidance (2207.12598, its w = scale - 1): 1 is the conditional alone, 0 the unconditional."""
    return unconditional + scale * (conditional - unconditional)


def step(predict: Callable, x_t, t, s, predicts: str, solver: str, noise) -> jax.Array:
    """x_s from x_t, for scalars 1 >= t > s >= 0; `predict(x_t, t)` is the network's answer, never asked at t = 0.

    ddim: eta 0 (2010.02502 eq. 12). ddpm: a draw from q(x_s | x_t, x_hat) (2006.11239 eq. 6-7 for any s < t) by `noise`
    ~ N(0, 1) of x's shape; the others leave it. euler, heun: dx = x_hat dalpha + e_hat dsigma, which for flow and x is
    dx = v dt, and for ddpm the same flow without its dsigma/dt, infinite at t = 0. So one step of euler equals ddim.
    heun (2206.00364 alg. 1) corrects it by a second answer, at s, but in the step to 0.
    """
    if solver not in SOLVERS:
        raise _unknown("solver", solver, SOLVERS)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = mix(t, predicts), mix(s, predicts)
    x_hat, e_hat = clean_and_noise(predict(x_t, t), x_t, t, predicts)
    if solver == "ddim":
        return alpha_s * x_hat + sigma_s * e_hat
    if solver == "ddpm":
        ratio = alpha_t / alpha_s
        beta = jnp.maximum(sigma_t**2 - (ratio * sigma_s) ** 2, 0)  # the variance of q(x_t | x_s)
        mean = (ratio * sigma_s**2 * x_t + alpha_s * beta * x_hat) / sigma_t**2
        return mean + jnp.sqrt(beta) * sigma_s / sigma_t * noise

    def move(x_hat, e_hat):
        return x_t + (alpha_s - alpha_t) * x_hat + (sigma_s - sigma_t) * e_hat

    x_s = move(x_hat, e_hat)
    if solver == "euler":
        return x_s

    def corrected():
        x_next, e_next = clean_and_noise(predict(x_s, s), x_s, s, predicts)
        return move((x_hat + x_next) / 2, (e_hat + e_next) / 2)

    return jax.lax.cond(s > 0, corrected, lambda: x_s)


def _shifted(t, shift):
    return shift * t / (1 + (shift - 1) * t)


def _unknown(name: str, value, allowed: tuple[str, ...]) -> ValueError:
    return ValueError(f"{name}: {value!r} is unknown; allowed: {', '.join(allowed)}")
