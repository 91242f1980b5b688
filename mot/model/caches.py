"""The cache of generation: keys, values and visibility, in the order in which tokens came. It knows no towers."""

import jax
import jax.numpy as jnp
from flax import struct

from mot.batches import Info
from mot.config import Config


@struct.dataclass
class Crossed:
    """What is kept of a stream that is seen by cross-attention alone (`crossing.py`)."""

    k: jax.Array  # [L, B, C, K, H], of all its cross-attentions
    v: jax.Array
    unit: jax.Array  # [B, C]
    last: jax.Array  # [B], the unit that later tokens see; 0 = none
    segment: jax.Array  # [B], of that unit


@struct.dataclass
class Cache:
    """Slots of each row. The next tokens overwrite what lies past `used`."""

    kv: tuple[tuple[jax.Array, jax.Array], ...]  # by layer, k and v `[B, K, S, H]`
    info: Info  # each `[B, S]`; segment 0 = nothing there
    used: jax.Array  # [B]
    crossed: dict[str, Crossed] = struct.field(default_factory=dict)  # by stream


def empty(config: Config, rows: int, slots: int) -> Cache:
    """`slots` must hold all tokens of a row and those of one more step."""
    m = config.model

    def zeros():
        return jnp.zeros((rows, m.kv_heads, slots, m.head_size), m.dtype)

    def none(dtype=jnp.int32):
        return jnp.zeros((rows, slots), dtype)

    info = Info(none(), none(), none(), none(bool))
    return Cache(tuple((zeros(), zeros()) for _ in range(m.layers)), info, jnp.zeros(rows, jnp.int32))


def place(x_BKSH, new_BTKH, first_B) -> jax.Array:
    """The slots with keys or values of T tokens, from each row's `first` on."""
    new_BKTH = new_BTKH.swapaxes(1, 2).astype(x_BKSH.dtype)
    put = jax.vmap(lambda x, new, first: jax.lax.dynamic_update_slice(x, new, (0, first, 0)))
    return put(x_BKSH, new_BKTH, first_B)


def place_info(cache: Cache, info: Info) -> Info:
    """The cache's visibility, with new tokens after the slots in use."""
    put = jax.vmap(lambda x_S, new_T, first: jax.lax.dynamic_update_slice(x_S, new_T, (first,)))
    return Info(*(put(x, new, cache.used) for x, new in zip(cache.info, info, strict=True)))


def keep(cache: Cache) -> Cache:
    """The tokens placed last become part of each row. Padding, which comes last, does not."""
    return cache.replace(used=(cache.info.segment != 0).sum(1, dtype=jnp.int32))
