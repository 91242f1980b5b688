"""Predicts the velocity e - x of the straight way from data to noise (2209.03003 eq. 1; 2403.03206)."""

import jax
import jax.numpy as jnp

from mot.objectives.diffusion import straight as mix

__all__ = ["clean_and_noise", "mix", "target", "weight"]


def target(x, e, t) -> jax.Array:
    return e - x


def weight(t) -> jax.Array:
    return jnp.ones_like(t)


def clean_and_noise(prediction, x_t, t) -> tuple[jax.Array, jax.Array]:
    alpha, sigma = mix(t)
    return x_t - sigma * prediction, x_t + alpha * prediction
