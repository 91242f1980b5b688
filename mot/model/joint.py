"""Where towers meet: all tokens of a row in document order, whatever device, wall or cache lies between them.

Attention itself (`attention.py`) knows none of these. With `context` each device has a part of a row: its queries stay,
keys and values of the whole row come to it, in one exchange for all heads.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mot import batches, sharding
from mot.batches import Info, Tokens
from mot.config import Config
from mot.model import attention, caches, ops
from mot.model.attention import BACKENDS, FEW, attend_few
from mot.model.caches import Cache

QKV = Sequence[jax.Array]  # q, k and v of one group, [B, C, heads, H]


class JointRow(NamedTuple):
    """The tokens of all groups where they meet.

    Where rows are in parts (`sharding.split_context`), B counts parts and T is a part's tokens.
    """

    q: Info  # [B, T], in document order, where causality leaves the fewest tiles to visit
    k: Info  # of whole rows; without `context` the same
    order: jax.Array | None  # [B, T], from the groups end to end to document order; None: they are in it
    back: jax.Array | None
    k_order: jax.Array | None  # the same of whole rows, as they come from their devices
    k_back: jax.Array | None


def join(merged: list[Tokens], rules: dict[str, str], T: int | None) -> JointRow:
    """The row of some groups, whose tokens are `apart`."""
    info = jax.tree.map(lambda *x: end_to_end(x), *(tokens.info for tokens in merged))
    order = back = None
    if len(merged) > 1:
        order = batches.document_order(info.position, T)
        # Of a whole row, position itself is the way back.
        back = info.position if sharding.shard_count(("length",), rules) == 1 else batches.inverse(order)
    q = info if order is None else batches.in_order(info, order)
    if sharding.shard_count(("length",), rules) == 1:
        return JointRow(q, q, order, back, order, back)

    def gather(info):
        info = _gather_rows(info, rules)
        if len(merged) == 1:
            return info, None, None
        order_BT = batches.document_order(info.position, T)
        return batches.in_order(info, order_BT), order_BT, info.position

    here, there = (sharding.spec((axis,), rules) for axis in (sharding.ROWS, "batch"))
    k, *orders = sharding.shard_map(gather, (here,), there)(info)
    return JointRow(q, k, order, back, *orders)


def attend(parts: list[QKV], row: JointRow, config: Config) -> list[jax.Array]:
    """Each group's part of the joint attention, `[B, C, N, H]`."""
    o_BTNH = _attend(*map(end_to_end, zip(*parts, strict=True)), row, config)
    return split(o_BTNH, [q_BCNH.shape[1] for q_BCNH, *_ in parts])


def attend_with_stopped_gradients(
    parts: list[QKV], groups, merged: list[Tokens], row: JointRow, config: Config
) -> list[jax.Array]:
    """A call for the queries of each group; keys and values of towers behind a wall of its own have no gradient."""
    outputs = []
    attn = config.towers.attn
    ks, vs = ([part[n] for part in parts] for n in (1, 2))
    for group, (q_BCNH, *_), tokens in zip(groups, parts, merged, strict=True):
        walled = {attn[wall.keys] for wall in config.towers.stop_gradients if attn[wall.queries] == attn[group[0]]}

        def stop(xs, walled=walled):
            return [lax.stop_gradient(x) if attn[g[0]] in walled else x for x, g in zip(xs, groups, strict=True)]

        mine = row._replace(q=tokens.info, order=None, back=None)
        outputs.append(_attend(q_BCNH, end_to_end(stop(ks)), end_to_end(stop(vs)), mine, config))
    return outputs


def attend_with_cache(parts: list[QKV], kv, row: JointRow, cache: Cache, config: Config):
    """Attention over all that the cache holds, these tokens included; and the layer's k and v with them."""
    q_BTNH, k_BTKH, v_BTKH = (_permuted(x, row.order, row.back) for x in map(end_to_end, zip(*parts, strict=True)))
    kv = tuple(caches.place(x, new, cache.used) for x, new in zip(kv, (k_BTKH, v_BTKH), strict=True))
    if q_BTNH.shape[1] <= FEW:
        o_BTNH = attend_few(q_BTNH, *kv, row.q, cache.info)
    else:  # kernels want whole rows
        how = config.model.attention if config.model.attention in BACKENDS else "chunked"
        o_BTNH = attention.attend(q_BTNH, *(x.swapaxes(1, 2) for x in kv), row.q, cache.info, how)
    return split(_permuted(o_BTNH, row.back, row.order), [q_BCNH.shape[1] for q_BCNH, *_ in parts]), kv


def end_to_end(xs):
    return jnp.concatenate(xs, axis=1) if len(xs) > 1 else xs[0]


def split(x_BTNH, sizes: Sequence[int]) -> list[jax.Array]:
    """Each group's part of tokens that lie end to end."""
    return lax.split(x_BTNH, sizes, axis=1) if len(sizes) > 1 else [x_BTNH]


def _attend(q_BTNH, k_BTKH, v_BTKH, row, config):
    rules = config.mesh.rules
    here, there = (sharding.spec((axis,), rules) for axis in (sharding.ROWS, "batch"))
    heads = sharding.spec((sharding.ROWS, None, "heads"), rules)
    private = any(s.copies > 1 for s in config.streams.values())
    alone = any(s.diffuses and s.diffusion.drop_rate > 0 for s in config.streams.values())

    def share(q_BTNH, k_BTKH, v_BTKH, row):
        q_BTNH = _permuted(q_BTNH, row.order, row.back)
        k_BSKH, v_BSKH = (_permuted(_gather_rows(x, rules), row.k_order, row.k_back) for x in (k_BTKH, v_BTKH))
        o_BTNH = attention.attend(q_BTNH, k_BSKH, v_BSKH, row.q, row.k, config.model.attention, private, alone)
        return _permuted(o_BTNH, row.back, row.order)

    inputs = (heads, heads, heads, JointRow(here, there, here, here, there, there))
    return sharding.shard_map(share, inputs, heads)(q_BTNH, k_BTKH, v_BTKH, row)


def _gather_rows(tree, rules):
    """Whole rows, of the parts that the devices along `context` have."""
    names = sharding.axes_of("length", rules)
    if sharding.shard_count(("length",), rules) == 1:
        return tree
    return jax.tree.map(partial(lax.all_gather, axis_name=names, axis=1, tiled=True), tree)


def _permuted(x_BTNH, order_BT, back_BT):
    return x_BTNH if order_BT is None else ops.permute(x_BTNH, order_BT, back_BT)
