"""Predicts the data on the straight way to noise, with a loss that is the velocity's (2511.13720)."""

import jax
import jax.numpy as jnp

from mot.objectives.diffusion import straight as mix

__all__ = ["clean_and_noise", "mix", "target", "weight"]

LEAST_T = 0.05  # of the weight (2511.13720, its clip of the denominator)
LEAST_SIGMA = 1e-4  # below it float32 no longer tells e from x_t and x


def target(x, e, t) -> jax.Array:
    return jnp.asarray(x)


def weight(t) -> jax.Array:
    """It makes the squared error that of v = (x_t - x) / t."""
    return 1 / jnp.maximum(t, LEAST_T) ** 2


def clean_and_noise(prediction, x_t, t) -> tuple[jax.Array, jax.Array]:
    """alpha x_hat + sigma e_hat = x_t holds from LEAST_SIGMA up; below it the result is finite."""
    alpha, sigma = mix(t)
    return prediction, (x_t - alpha * prediction) / jnp.maximum(sigma, LEAST_SIGMA)
