"""Continuous tokens: noise them, say what the network predicts of them, and solve from noise back to data.

t is the noise level: 0 is data x, 1 is noise e ~ N(0, 1), and x_t = alpha x + sigma e. Float32; t broadcasts against x.
A network predicts one of PREDICTS: "flow" the velocity e - x, "x" the data, "ddpm" the noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from mot.config.options import SOLVERS

PREDICTS = ("flow", "x", "ddpm")
TIME_DISTRIBUTIONS = ("uniform", "logit_normal", "beta")
LEAST_T = 0.05  # of the x-prediction's weight (2511.13720, its clip of the denominator)
LEAST_SIGMA = 1e-4  # below it float32 no longer tells e from x_t and x


def mix(t, predicts: str) -> tuple[jax.Array, jax.Array]:
    """(alpha, sigma) of x_t = alpha x + sigma e.

    flow, x: 1 - t, t (2209.03003; 2403.03206). ddpm: sqrt(alphabar), sqrt(1 - alphabar) of the cosine schedule
    (2102.09672 eq. 17, s = 0.008). Its authors clip the beta of a step at 0.999. Here steps have any length, so the
    longest, 0 to t, is clipped: 1 - alphabar <= 0.999. So alpha >= 0.0316, reached at t = 0.98.
    """
    t = jnp.asarray(t, jnp.float32)
    match predicts:
        case "flow" | "x":
            return 1 - t, t
        case "ddpm":
            start, turn = np.float32(np.pi / 2 * np.array([0.008, 1]) / 1.008)
            # 1 - cos(start + turn t)^2 / cos(start)^2, without the cancellation near t = 0
            variance = jnp.sin(turn * t) * jnp.sin(2 * start + turn * t) / np.cos(start) ** 2
            variance = jnp.clip(variance, 0, 0.999)
            inside = variance > 0  # sqrt has no finite slope at 0
            return jnp.sqrt(1 - variance), jnp.where(inside, jnp.sqrt(jnp.where(inside, variance, 1)), 0)
    raise _unknown("predicts", predicts, PREDICTS)


def noised(x, e, t, predicts: str) -> jax.Array:
    """x_t, of the shape of x."""
    alpha, sigma = mix(t, predicts)
    return alpha * x + sigma * e


def target(x, e, t, predicts: str) -> jax.Array:
    """What the network should answer to x_t: dx_t/dt (2209.03003 eq. 1), the data, or the noise (2006.11239 eq. 14)."""
    match predicts:
        case "flow":
            return e - x
        case "x":
            return jnp.asarray(x)
        case "ddpm":
            return jnp.asarray(e)
    raise _unknown("predicts", predicts, PREDICTS)


def weight(t, predicts: str) -> jax.Array:
    """The factor of the squared error, of the shape of t. For x it makes it that of v = (x_t - x) / t (2511.13720)."""
    t = jnp.asarray(t, jnp.float32)
    match predicts:
        case "flow" | "ddpm":
            return jnp.ones_like(t)
        case "x":
            return 1 / jnp.maximum(t, LEAST_T) ** 2
    raise _unknown("predicts", predicts, PREDICTS)


def clean_and_noise(prediction, x_t, t, predicts: str) -> tuple[jax.Array, jax.Array]:
    """(x_hat, e_hat) with alpha x_hat + sigma e_hat = x_t (for x only from LEAST_SIGMA up; finite below)."""
    alpha, sigma = mix(t, predicts)
    match predicts:
        case "flow":
            return x_t - sigma * prediction, x_t + alpha * prediction
        case "x":
            return prediction, (x_t - alpha * prediction) / jnp.maximum(sigma, LEAST_SIGMA)
        case "ddpm":
            return (x_t - sigma * prediction) / alpha, prediction
    raise _unknown("predicts", predicts, PREDICTS)


def noise_levels(u, how: str, shift=1.0, max_noise=1.0) -> jax.Array:
    """Noise levels in [0, max_noise], from u uniform in (0, 1) and of its shape.

    The inverse CDF comes first, then the shift, then the scaling by `max_noise`.

    logit_normal: the sigmoid of a standard normal (2403.03206 eq. 19). beta: mostly noise; pi0's time tau = 1 - t, with
    (s - tau) / s ~ Beta(1.5, 1) and s = 0.999 (2410.24164). shift: sqrt(m / n) for m values, tuned at n (2403.03206
    eq. 23). cap: below 1 for a unit before its text (2408.11039: 0.5).
    """
    u = jnp.asarray(u, jnp.float32)
    match how:
        case "uniform":
            t = u
        case "logit_normal":
            t = jax.nn.sigmoid(ndtri(u))
        case "beta":
            t = 1 - 0.999 + 0.999 * u ** (2 / 3)
        case _:
            raise _unknown("times", how, TIME_DISTRIBUTIONS)
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
    move = lambda x_hat, e_hat: x_t + (alpha_s - alpha_t) * x_hat + (sigma_s - sigma_t) * e_hat
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
