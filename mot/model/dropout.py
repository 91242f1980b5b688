"""Dropout of what branches add to the residual, keyed by tokens: neither packing nor meshes nor microbatches change it.

Chameleon 7B drops 0.1 after attention and after the FFN (2405.09818, 2.3).
"""

from functools import partial

import jax
import jax.numpy as jnp

from mot import sharding
from mot.batches import Batch, length
from mot.model.context import Group


def keys(batch: Batch, groups: list[Group], key: jax.Array, rules: dict[str, str]) -> list[jax.Array]:
    """By group: a key for each token `[R]`, of its document, its unit and its place in the document alone.

    A document that is cut counts places from where its piece begins.
    """
    first_BS = _firsts(batch)
    parts = sharding.shard_count(("length",), rules)
    first_BS = jnp.tile(first_BS, (parts, 1))  # parts of rows come first in a group

    def of_group(group: Group) -> jax.Array:
        t = group.tokens
        place_BC = t.position - jnp.take_along_axis(first_BS, t.segment, axis=1)
        keys_R = jnp.broadcast_to(key, (place_BC.size,))
        for x_BC in (t.source, t.doc_id, t.unit_seed, place_BC):
            keys_R = fold(keys_R, x_BC.reshape(-1))
        return keys_R

    return [of_group(group) for group in groups]


def _firsts(batch: Batch) -> jax.Array:
    """`[B, S]`: the least position of each segment of a row. Documents and units alone are segments."""
    T = length(batch)
    segment_BT = jnp.concatenate([t.segment for t in batch.values()], axis=1)
    position_BT = jnp.concatenate([t.position for t in batch.values()], axis=1)
    B = segment_BT.shape[0]
    return jnp.full((B, 2 * T + 1), T).at[jnp.arange(B)[:, None], segment_BT].min(position_BT)


def fold(keys_R, number) -> jax.Array:
    """Every key folded with a number, or with its own of `[R]`."""
    return jax.vmap(jax.random.fold_in, (0, 0 if jnp.ndim(number) else None))(keys_R, number)


def drop(y_RD, keys_R, rate: float) -> jax.Array:
    """y with a share of it 0 and the rest as much larger, so that its expected value stays."""
    kept_RD = jax.vmap(partial(jax.random.bernoulli, p=1 - rate, shape=y_RD.shape[1:]))(keys_R)
    return jnp.where(kept_RD, y_RD / (1 - rate), 0).astype(y_RD.dtype)
