"""The Mixture-of-Transformers: towers by three maps (attention projections, FFN, norms) around one joint attention.

Dense, MoT and everything between are the same functions with other maps. Streams that share every map travel merged, in
document order, so dense is an ordinary transformer and pays nothing for the generality.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mot import batch as batches
from mot import ops
from mot.attention import Info, attend
from mot.batch import Batch, Tokens
from mot.config import Config
from mot.sharding import rows_apart

Group = tuple[str, ...]  # streams that travel merged


class Row(NamedTuple):
    """The tokens of all groups where they meet: in document order, where causality leaves the fewest tiles to visit."""

    info: Info
    order: jax.Array | None = None  # [B, T], from the groups end to end to document order; None: they are in it
    back: jax.Array | None = None


def groups(config: Config) -> list[Group]:
    """The streams that share every tower, in the order of their first stream."""
    by_towers: dict[tuple, Group] = {}
    for s in config.streams:
        towers = tuple(getattr(config.towers, component)[s] for component in ("attn", "ffn", "norm"))
        by_towers[towers] = (*by_towers.get(towers, ()), s)
    return list(by_towers.values())


def forward(params: dict, batch: Batch, config: Config) -> list[tuple[jax.Array, Tokens]]:
    """The normed last hidden states `h_RD` (R = B * C, in `model.dtype`) of each group, with the group's tokens."""
    merged = [batches.merge(batch, group) for group in groups(config)]
    xs = [_embed(params["embed"]["tokens"], tokens, config.model.dtype) for tokens in merged]
    layer = partial(_block, merged=merged, row=_row(merged), config=config)
    xs = _stack(layer, params["blocks"]["main"], xs, config.model)
    final = [params["final_norm"][config.towers.norm[group[0]]]["scale"] for group in groups(config)]
    eps = config.model.norm_eps
    return [(ops.rms_norm(x_RD, scale, eps), tokens) for x_RD, scale, tokens in zip(xs, final, merged, strict=True)]


def head(params: dict, config: Config) -> jax.Array:
    """`[D, V]`, the matrix that makes logits."""
    return params["embed"]["tokens"].T if config.model.tied else params["head"]["out"]


def _embed(table_VD, tokens, dtype):
    x_RD = jnp.take(table_VD, tokens.token.reshape(-1), axis=0)
    # Padding enters as 0 whatever it holds: a NaN there would reach every weight's gradient as 0 * NaN.
    return jnp.where(tokens.segment.reshape(-1, 1) != 0, x_RD, 0).astype(dtype)


def _row(merged: list[Tokens]) -> Row:
    tokens = batches.concatenate(merged)
    if len(merged) == 1:
        return Row(tokens.info)
    order_BT = batches.document_order(tokens)
    return Row(batches.in_order(tokens.info, order_BT), order_BT, tokens.rank)


def _stack(layer, blocks, xs, m):
    if m.remat != "none":
        # dots: keep what projections made, make the rest (and attention) again; block: keep the residual alone.
        policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "block": None}
        layer = jax.checkpoint(layer, policy=policies[m.remat])
    if m.scan:
        return lax.scan(lambda xs, weights: (layer(xs, weights), None), xs, blocks)[0]
    # Not blocks[i]: its transpose pads every layer's gradient to all layers and adds them up, L times the traffic.
    leaves, tree = jax.tree.flatten(blocks)
    for weights in zip(*(lax.split(leaf, (1,) * m.layers) for leaf in leaves), strict=True):
        xs = layer(xs, tree.unflatten([w.reshape(w.shape[1:]) for w in weights]))
    return xs


def _block(xs: list[jax.Array], w: dict, merged: list[Tokens], row: Row, config: Config) -> list[jax.Array]:
    """One layer: `w[component][tower][weight]`, one residual `x_RD` a group."""
    towers = config.towers
    first = [group[0] for group in groups(config)]
    norms = [w["norm"][towers.norm[s]] for s in first]

    def branch(f, name, xs):
        """x + f(norm(x)), or x + norm(f(x)); f maps all groups' rows at once."""
        norm = lambda xs: [ops.rms_norm(x, n[name], config.model.norm_eps) for x, n in zip(xs, norms, strict=True)]
        ys = f(norm(xs)) if config.model.norm == "pre" else norm(f(xs))
        return [x + y for x, y in zip(xs, ys, strict=True)]

    attn = [w["attn"][towers.attn[s]] for s in first]
    ffn = [w["ffn"][towers.ffn[s]] for s in first]
    xs = branch(lambda xs: _attention(attn, xs, merged, row, config.model), "attn", xs)
    return branch(lambda xs: [_ffn(t, x) for t, x in zip(ffn, xs, strict=True)], "ffn", xs)


def _attention(towers, xs, merged, row, m):
    """Each group's own projections; one attention over all tokens of the row, in document order."""
    parts = [_qkv(t, x, tokens, m) for t, x, tokens in zip(towers, xs, merged, strict=True)]
    q_BTNH, k_BTKH, v_BTKH = (jnp.concatenate(x, axis=1) if len(x) > 1 else x[0] for x in zip(*parts, strict=True))
    o_BTNH = rows_apart(partial(_mix, how=m.attention))(q_BTNH, k_BTKH, v_BTKH, row)
    sizes = [tokens.token.shape[1] for tokens in merged]
    outputs = lax.split(o_BTNH, sizes, axis=1) if len(sizes) > 1 else [o_BTNH]
    rows = lambda o_BCNH: o_BCNH.reshape(o_BCNH.shape[0] * o_BCNH.shape[1], -1)
    flat = lambda w_NHD: w_NHD.reshape(-1, w_NHD.shape[-1])
    return [ops.linear(rows(o), flat(t["wo"])) for o, t in zip(outputs, towers, strict=True)]


def _mix(q_BTNH, k_BTKH, v_BTKH, row, how):
    if row.order is None:
        return attend(q_BTNH, k_BTKH, v_BTKH, row.info, row.info, how)
    q_BTNH, k_BTKH, v_BTKH = (ops.permute(x, row.order, row.back) for x in (q_BTNH, k_BTKH, v_BTKH))
    return ops.permute(attend(q_BTNH, k_BTKH, v_BTKH, row.info, row.info, how), row.back, row.order)


def _qkv(tower, x_RD, tokens, m):
    B, C = tokens.token.shape

    def heads(name):
        w_DNH = tower[f"w{name}"]
        x_RNH = ops.linear(x_RD, w_DNH.reshape(w_DNH.shape[0], -1)).reshape(B * C, *w_DNH.shape[1:])
        if name != "v" and m.qk_norm == "rms":
            x_RNH = ops.rms_norm(x_RNH, tower[f"{name}_norm"], m.norm_eps)
        if name != "v" and m.qk_norm == "layer":
            x_RNH = ops.layer_norm(x_RNH, tower[f"{name}_norm"], tower[f"{name}_norm_bias"], m.norm_eps)
        return x_RNH.reshape(B, C, *w_DNH.shape[1:])

    turn = lambda x_BCNH: ops.rope(x_BCNH, tokens.position, m.rope_theta)
    return turn(heads("q")), turn(heads("k")), heads("v")


def _ffn(tower, x_RD):
    return ops.linear(ops.swiglu(ops.linear(x_RD, tower["w1"]), ops.linear(x_RD, tower["w3"])), tower["w2"])
