"""Predicts ids that are hidden among others: discrete diffusion by masks (LLaDA, 2502.09992; MaskGIT, 2202.04200).

Each id of a unit or document is hidden with probability t, its ratio, and the model sees the mask's id in its place.
Where ratios spread evenly over (0, 1] and a hidden id's cross-entropy is divided by t, the sum is an upper bound of
-log p of all of them in expectation (2502.09992 eq. 3), and equal to it where the model knows every conditional.
"""

import math

import jax
import jax.numpy as jnp

from mot import batches
from mot.batches import Tokens
from mot.config import Config, Masking, Stream

MEAN = {"uniform": 1 / 2, "cosine": 2 / math.pi}  # of `left`, by distribution


def left(u, distribution: str) -> jax.Array:
    """What part of all is hidden after a part u of the way from masks to ids; in training u is uniform in (0, 1)."""
    return {"uniform": 1 - u, "cosine": jnp.cos(math.pi / 2 * u)}[distribution]


def ratios(u, masking: Masking) -> jax.Array:
    """Ratios t from least to most, from u uniform in (0, 1) and of its shape."""
    return masking.least + (masking.most - masking.least) * left(u, masking.distribution)


def hidden(tokens: Tokens, stream: Stream, mask_id: int, key: jax.Array) -> Tokens:
    """A stream's tokens with some of its ids hidden, wherever they are packed.

    t follows from the key and the unit's seed, or the document; which ids it hides also from their place in it. `noise`
    becomes what the loss of each token is divided by: that of a hidden id's own, or, shifted, of the token before it; 0
    where it learns of none.
    """
    masking = stream.masking
    if masking.by == "unit":
        keys_R = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(tokens.unit_seed.reshape(-1))
    else:
        keys_R = jax.vmap(lambda source, number: jax.random.fold_in(jax.random.fold_in(key, source), number))(
            tokens.source.reshape(-1), tokens.doc_id.reshape(-1)
        )
    t_R = ratios(jax.vmap(lambda k: jax.random.uniform(k, minval=1e-6, maxval=1 - 1e-6))(keys_R), masking)
    each_R = jax.vmap(jax.random.fold_in)(keys_R, tokens.unit_seed.reshape(-1))
    each_R = jax.vmap(jax.random.fold_in)(each_R, batches.place_in_unit(tokens).reshape(-1))
    t_BC = tokens.noise * t_R.reshape(tokens.noise.shape)
    hides_BC = jax.vmap(jax.random.uniform)(each_R).reshape(t_BC.shape) < t_BC
    mean = masking.least + (masking.most - masking.least) * MEAN[masking.distribution]
    divisor_BC = t_BC if masking.weighting == "elbo" else tokens.noise * mean
    divisor_BC = jnp.where(hides_BC, divisor_BC, 0)
    if masking.shift:  # a token that learns of the next has it in its own stream (`roles.py`)
        divisor_BC = jnp.pad(divisor_BC[:, 1:], ((0, 0), (0, 1)))
    return tokens.replace(token=jnp.where(hides_BC, mask_id, tokens.token), noise=divisor_BC)


def weights(tokens: Tokens, config: Config) -> jax.Array:
    """`[B, T]`: w of each token of ids, times what its loss counts for.

    That is 1 / t of a hidden target, 0 of one that is seen, and 1 of a target of a stream that is not masked.
    """
    weight_BT = tokens.weight
    for stream in config.streams.values():
        if stream.masks:
            inside_BT = (tokens.target >= stream.first_id) & (tokens.target < stream.first_id + stream.ids)
            learns_BT = tokens.noise > 0
            share_BT = jnp.where(learns_BT, 1 / jnp.where(learns_BT, tokens.noise, 1), 0)
            weight_BT = jnp.where(inside_BT, tokens.weight * share_BT, weight_BT)
    return weight_BT
