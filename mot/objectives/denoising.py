"""Predicts what a noised vector was made of: the squared error of an objective of `diffusion.py`."""

from functools import partial

import jax
import jax.numpy as jnp

from mot import batches
from mot.batches import Tokens
from mot.config import Config, Stream
from mot.objectives import diffusion
from mot.objectives.sums import Sums, modality, scales, summed


def noised(tokens: Tokens, stream: Stream, key: jax.Array) -> tuple[Tokens, jax.Array]:
    """A stream's tokens with noised vectors, and what the model should predict for them, `[B, C, P]`.

    Levels and noise come from the key and the unit's seed alone, wherever it is packed: one level a unit.
    """
    keys_R = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(tokens.unit_seed.reshape(-1))
    u_R = jax.vmap(lambda k: jax.random.uniform(k, minval=1e-6, maxval=1 - 1e-6))(keys_R)
    each_R = jax.vmap(jax.random.fold_in)(keys_R, batches.place_in_unit(tokens).reshape(-1))
    e_RP = jax.vmap(partial(jax.random.normal, shape=(stream.latent,)))(each_R)
    e_BCP = e_RP.reshape(tokens.value.shape)
    u_BC = u_R.reshape(tokens.noise.shape)
    x_BCP = tokens.value
    d = stream.diffusion
    t_BC = diffusion.noise_levels(u_BC, d.time_distribution, d.shift, tokens.noise)
    t_BC1 = t_BC[..., None]
    value_BCP = diffusion.noised(x_BCP, e_BCP, t_BC1, stream.objective)
    # What is clean stays so to the bit.
    value_BCP = jnp.where(tokens.noise[..., None] > 0, value_BCP, x_BCP)
    target_BCP = diffusion.target(x_BCP, e_BCP, t_BC1, stream.objective)
    return tokens.replace(value=value_BCP, noise=t_BC), target_BCP


def loss(
    stream: str, prediction_BCP, tokens: Tokens, target_BCP, Z_M, config: Config, sources: int
) -> tuple[jax.Array, Sums]:
    """The part of `losses.loss` that is of a stream of vectors, and its sums.

    l is the mean squared error over features (2006.11239, 2209.03003), of the stream's noised tokens.
    """
    s = config.streams[stream]
    l_BC = of_tokens(stream, prediction_BCP, tokens, target_BCP, config)
    scale = scales(Z_M, config)[config.modalities.index(s.modality)]
    return scale * l_BC.sum(), summed(l_BC, tokens, modality(tokens, stream, config), config, sources)


def of_tokens(stream: str, prediction_BCP, tokens: Tokens, target_BCP, config: Config) -> jax.Array:
    """w * l of each token `[B, C]`."""
    # Before the square: in the backward pass 0 * NaN, of what does not count, is NaN.
    error_BCP = jnp.where((tokens.weight > 0)[..., None], prediction_BCP - target_BCP, 0)
    square_BC = jnp.square(error_BCP).mean(-1) * diffusion.weight(tokens.noise, config.streams[stream].objective)
    return tokens.weight * square_BC
