"""Where towers meet: all tokens of a row in document order, whatever device, wall or cache lies between them.

Attention itself (`attention.py`) knows none of these. With `context` each device has a part of a row: its queries stay,
keys and values of the whole row come to it, in one exchange for all heads.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mot import batches, sharding
from mot.config import Config
from mot.model import attention, caches, kernels, ops
from mot.model.attention import BACKENDS, FEW, attend_few
from mot.model.caches import Cache
from mot.model.context import Group, JointRow, Queries

QKV = Sequence[jax.Array]  # q, k and v of one group, [B, C, heads, H]


def join(groups: list[Group], rules: dict[str, str], T: int | None) -> JointRow:
    """The row of some groups; T as in `batches.document_order`."""
    info = jax.tree.map(lambda *x: end_to_end(x), *(group.tokens.info for group in groups))
    order = back = None
    if len(groups) > 1:
        order = batches.document_order(info.position, T)
        # Of a whole row, position itself is the way back.
        back = info.position if sharding.shard_count(("length",), rules) == 1 else batches.inverse(order)
    q = info if order is None else batches.in_order(info, order)
    if sharding.shard_count(("length",), rules) == 1:
        return JointRow(q, q, order, back, order, back, [Queries(q, None)])

    def gather(info):
        info = _gather_rows(info, rules)
        if len(groups) == 1:
            return info, None, None
        order_BT = batches.document_order(info.position, T)
        return batches.in_order(info, order_BT), order_BT, info.position

    parts = sharding.spec((sharding.ROWS,), rules)
    rows = sharding.spec(("batch",), rules)
    k, *orders = sharding.shard_map(gather, (parts,), rows)(info)
    return JointRow(q, k, order, back, *orders, [Queries(q, None)])


def prepared(row: JointRow, groups: list[Group], config: Config) -> JointRow:
    """The row with what `splash` is told of each group's queries, if it attends: the same in every layer.

    Only keys must be in document order for it; queries in another cost blocks at most, and their order a pass.
    """
    m = config.model
    if m.attention != "splash":
        return row
    rules = config.mesh.rules
    parts, whole = (sharding.spec((axis,), rules) for axis in (sharding.ROWS, "batch"))
    private, _, has_parts = _known(config)
    bytes = m.head_size * jnp.dtype(m.dtype).itemsize
    tell = partial(kernels.splash_calls, private=private, parts=has_parts, bytes=bytes)
    on_each_device = sharding.shard_map(tell, (parts, whole), parts)
    infos = [group.tokens.info for group in groups]
    queries = [Queries(info, on_each_device(info, row.k)) for info in infos]
    return row._replace(order=None, back=None, queries=queries)


def _known(config: Config) -> tuple[int, bool, bool]:
    """Of every row: how many private tokens it has at most, and are there units `alone` and segments of `parts`?"""
    private = sum(s.budget // s.copies for s in config.streams.values() if s.copies > 1)
    # What is hidden of a unit is padding amid its document.
    alone = any(s.predicts or s.drop_rate > 0 for s in config.streams.values())
    return private, alone, len(config.objective.contrastive.pools) > 1  # of several units each


def attend(parts: list[QKV], row: JointRow, config: Config) -> list[jax.Array]:
    """Each group's part of the joint attention, `[B, C, N, H]`."""
    qs, ks, vs = zip(*parts, strict=True)
    keys = end_to_end(ks), end_to_end(vs)
    if len(row.queries) == len(parts):
        return _attend(qs, *keys, row, config)
    (o_BTNH,) = _attend([end_to_end(qs)], *keys, row, config)
    return split(o_BTNH, [q_BCNH.shape[1] for q_BCNH in qs])


def attend_with_stopped_gradients(
    parts: list[QKV], groups: list[Group], row: JointRow, tower_of: Mapping[str, str], config: Config
) -> list[jax.Array]:
    """A call for the queries of each group; keys and values of towers behind a wall of its own have no gradient.

    `tower_of` is the layer's map from streams to towers.
    """
    towers = [tower_of[group.streams[0]] for group in groups]
    outputs = []
    for i, (group, tower, (q_BCNH, *_)) in enumerate(zip(groups, towers, parts, strict=True)):
        stopped = _stopped_for(tower, tower_of, config)
        k_BTKH = end_to_end([_stop_if(t in stopped, k_BCKH) for t, (_, k_BCKH, _) in zip(towers, parts, strict=True)])
        v_BTKH = end_to_end([_stop_if(t in stopped, v_BCKH) for t, (*_, v_BCKH) in zip(towers, parts, strict=True)])
        own = row.queries[i] if len(row.queries) == len(parts) else Queries(group.tokens.info, None)
        own_row = row._replace(order=None, back=None, queries=[own])
        outputs += _attend([q_BCNH], k_BTKH, v_BTKH, own_row, config)
    return outputs


def _stopped_for(tower: str, tower_of: Mapping[str, str], config: Config) -> set[str]:
    """The towers whose keys and values get no gradient from the queries of this one."""
    return {tower_of[pair.keys] for pair in config.towers.stop_gradients if tower_of[pair.queries] == tower}


def _stop_if(stopped: bool, x_BCKH) -> jax.Array:
    return lax.stop_gradient(x_BCKH) if stopped else x_BCKH


def attend_with_cache(
    parts: list[QKV], kv: tuple[jax.Array, jax.Array], row: JointRow, cache: Cache, config: Config
) -> tuple[list[jax.Array], tuple[jax.Array, jax.Array]]:
    """Attention over all that the cache holds, these tokens included; and the layer's k and v with them."""
    q_BTNH, k_BTKH, v_BTKH = (_permuted(x, row.order, row.back) for x in map(end_to_end, zip(*parts, strict=True)))
    kv = tuple(caches.place(x, new, cache.used) for x, new in zip(kv, (k_BTKH, v_BTKH), strict=True))
    if q_BTNH.shape[1] <= FEW:
        o_BTNH = attend_few(q_BTNH, *kv, row.q, cache.info, config.model.attention_cap)
    else:  # kernels want whole rows
        backend = config.model.attention if config.model.attention in BACKENDS else "chunked"
        cap = config.model.attention_cap
        o_BTNH = attention.attend(q_BTNH, *(x.swapaxes(1, 2) for x in kv), row.q, cache.info, backend, cap=cap)
    return split(_permuted(o_BTNH, row.back, row.order), [q_BCNH.shape[1] for q_BCNH, *_ in parts]), kv


def end_to_end(xs: Sequence[jax.Array]) -> jax.Array:
    """Arrays `[B, C, ...]` of several groups, joined along C."""
    return jnp.concatenate(xs, axis=1) if len(xs) > 1 else xs[0]


def split(x_BTNH, sizes: Sequence[int]) -> list[jax.Array]:
    """Each group's part of tokens that lie end to end."""
    return lax.split(x_BTNH, sizes, axis=1) if len(sizes) > 1 else [x_BTNH]


def _attend(qs: Sequence[jax.Array], k_BTKH, v_BTKH, row: JointRow, config: Config) -> list[jax.Array]:
    """Attention of tokens as they come, for each of the row's `queries`.

    Each device permutes its own to document order, and the results back.
    """
    rules = config.mesh.rules
    parts = sharding.spec((sharding.ROWS,), rules)
    rows = sharding.spec(("batch",), rules)
    heads = sharding.spec((sharding.ROWS, None, "heads"), rules)
    how = (config.model.attention, *_known(config), config.model.attention_cap)

    def on_each_device(qs, k_BTKH, v_BTKH, row):
        k_BSKH, v_BSKH = (_permuted(_gather_rows(x, rules), row.k_order, row.k_back) for x in (k_BTKH, v_BTKH))

        def attend(q_BTNH, queries):
            q_BTNH = _permuted(q_BTNH, row.order, row.back)
            o_BTNH = attention.attend(q_BTNH, k_BSKH, v_BSKH, queries.info, row.k, *how, queries.calls)
            return _permuted(o_BTNH, row.back, row.order)

        return [attend(q_BTNH, queries) for q_BTNH, queries in zip(qs, row.queries, strict=True)]

    inputs = (heads, heads, heads, JointRow(parts, rows, parts, parts, rows, rows, parts))
    return sharding.shard_map(on_each_device, inputs, heads)(qs, k_BTKH, v_BTKH, row)


def _gather_rows(tree, rules: dict[str, str]):
    """Whole rows, of the parts that the devices along `context` have."""
    names = sharding.axes_of("length", rules)
    if sharding.shard_count(("length",), rules) == 1:
        return tree
    return jax.tree.map(partial(lax.all_gather, axis_name=names, axis=1, tiled=True), tree)


def _permuted(x_BTNH, order_BT, back_BT) -> jax.Array:
    return x_BTNH if order_BT is None else ops.permute(x_BTNH, order_BT, back_BT)
