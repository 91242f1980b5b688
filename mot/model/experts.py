"""Towers with experts: a router sends each token to some of them, and their results come back as one row.

A tower whose attention projections are experts routes once a layer, for the way in and the way out.
"""

import zlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mot import batches, sharding
from mot.config import Config
from mot.model import dispatch, ops, router
from mot.model.context import Context, Tower
from mot.model.dispatch import Places
from mot.model.joint import end_to_end
from mot.model.router import Choice, Report, Traffic


class Routing(NamedTuple):
    """What a tower's router chose for the tokens of the groups that it serves, laid end to end."""

    x_RD: jax.Array  # their rows; padding's are finite
    real_R1: jax.Array  # bool: no padding
    choice: Choice
    report: Report
    rows: int  # B
    limit: int  # choices of a row at most


def route(xs: list[jax.Array], w: dict, tower: Tower, component: str, context: Context) -> Routing:
    """The choices of one tower's router for the tokens of the groups that it serves."""
    config = context.config
    spec = tower.experts
    groups = [context.groups[i] for i in tower.groups]
    tokens = batches.concatenate([group.tokens for group in groups])
    B, C = tokens.token.shape
    real_BC = tokens.segment != 0
    x_BCD = _join([xs[i] for i in tower.groups], B)
    x_BCD = _clean(x_BCD, real_BC[..., None], config)
    whole = (tokens.token, real_BC, tokens.position, end_to_end([group.modality for group in groups]))
    noise_BCD = _jitter(x_BCD, f"{component}/{tower.name}", spec.jitter, context.jitter_key)
    traffic = Traffic(x_BCD, noise_BCD, *sharding.join_context(whole, config.mesh.rules), config.mesh.rules)
    choice, report = router.route(traffic, w, spec, len(config.modalities), context.causal)
    row = C * sharding.shard_count(("length",), config.mesh.rules)  # of which a part may have all choices
    limit = min(router.most_choices(spec, row, context.causal), C * choice.expert_RX.shape[1])
    return Routing(x_BCD.reshape(B * C, -1), real_BC.reshape(-1, 1), choice, report, B, limit)


def _clean(x, real, config: Config) -> jax.Array:
    """x, where whatever padding holds stops. For kernels it is finite, as in `attention.attend`: no pass of its own."""
    return x if config.model.dispatch in dispatch.KERNELS else jnp.where(real, x, 0)


def _jitter(x_BCD, name: str, size: float, key: jax.Array | None) -> jax.Array | None:
    """The factors of a router's input: uniform around 1 (2101.03961); None without jitter."""
    if key is None or not size:
        return None
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return jax.random.uniform(key, (x_BCD.size,), minval=1 - size, maxval=1 + size).reshape(x_BCD.shape)


def feed_forward(xs: list[jax.Array], w: dict, tower: Tower, context: Context) -> tuple[list[jax.Array], Report]:
    """The weighted sum of each token's experts, and the shared experts, which every token passes."""
    routing = route(xs, w, tower, "ffn", context)
    matrices = {name: w[name] for name in ("w1", "w2", "w3")}
    of_experts = partial(ffn_of_experts, activation=context.config.model.activation)
    y_RD, lost_R = _apply(of_experts, routing.x_RD, matrices, routing.choice, routing, context)
    if tower.experts.shared:
        shared = {name: w[f"shared_{name}"] for name in matrices}
        shared_RD = gated_ffn(shared, routing.x_RD, context.config)
        if tower.experts.shared_gate:
            gate_R1 = jax.nn.sigmoid(ops.linear(routing.x_RD, w["shared_gate"]).astype(jnp.float32))
            shared_RD *= gate_R1.astype(shared_RD.dtype)
        y_RD += shared_RD
    return _by_group(y_RD, tower, context), _with_lost(routing.report, lost_R, context)


def project_in(w: dict, tower: Tower, routing: Routing, context: Context) -> tuple[list, Report]:
    """Each group's q, k and v, laid flat `[R, A]`, and the report.

    On the way in a token's weights add up to 1, so that one expert alone gives the q, k and v that a tower would. On
    the way out the weights are the router's, which learns by them.
    """
    choice = routing.choice
    total_R1 = choice.weight_RX.sum(-1, keepdims=True)
    even = choice._replace(weight_RX=choice.weight_RX / jnp.where(total_R1 > 0, total_R1, 1))
    matrices = {name: flat_in(w[name]) for name in ("wq", "wk", "wv")}
    qkv_RA, lost_R = _apply(_qkv_of_experts, routing.x_RD, matrices, even, routing, context)
    sizes = [matrix.shape[-1] for matrix in matrices.values()]
    parts = [lax.split(part, sizes, axis=1) for part in _by_group(qkv_RA, tower, context)]
    return parts, _with_lost(routing.report, lost_R, context)


def project_out(w: dict, os: list[jax.Array], tower: Tower, routing: Routing, context: Context) -> list[jax.Array]:
    """Each group's `[R, D]` from its attention's `[R, A]`, by the choice made on the way in."""
    o_BCA = _join(os, routing.rows)
    o_RA = _clean(o_BCA.reshape(-1, o_BCA.shape[-1]), routing.real_R1, context.config)
    y_RD, _ = _apply(_out_of_experts, o_RA, {"wo": flat_out(w["wo"])}, routing.choice, routing, context)
    return _by_group(y_RD, tower, context)


def _apply(
    compute: dispatch.Compute, x_RD, matrices: dict, choice: Choice, routing: Routing, context: Context
) -> tuple[jax.Array, jax.Array]:
    config = context.config
    return dispatch.apply_experts(
        compute, x_RD, matrices, choice, routing.rows, routing.limit, config.model.dispatch, config.mesh
    )


# --- what one expert computes (`dispatch.Compute`) -------------------------------------------------------------------


def ffn_of_experts(places: Places, w: dict, activation: str) -> jax.Array:
    """The FFN by experts; weights where rows are narrowest."""
    gate_ZF, up_ZF = dispatch.permuted(places.x_RD, [w["w1"], w["w3"]], places.layout, places.kernel)
    hidden_ZF = _weighted(ops.gated(gate_ZF, up_ZF, activation), places.weight_Z1)
    return dispatch.grouped(hidden_ZF, w["w2"], places.layout, places.kernel)


def _qkv_of_experts(places: Places, w: dict) -> jax.Array:
    qkv = dispatch.permuted(places.x_RD, [w["wq"], w["wk"], w["wv"]], places.layout, places.kernel)
    return _weighted(jnp.concatenate(qkv, axis=-1), places.weight_Z1)


def _out_of_experts(places: Places, w: dict) -> jax.Array:
    (out_ZD,) = dispatch.permuted(places.x_RD, [w["wo"]], places.layout, places.kernel)
    return _weighted(out_ZD, places.weight_Z1)


def _weighted(x_ZF, weight_Z1) -> jax.Array:
    return (x_ZF.astype(jnp.float32) * weight_Z1).astype(x_ZF.dtype)


def gated_ffn(tower: dict, x_RD, config: Config) -> jax.Array:
    """An FFN whose hidden units are gated (2002.05202)."""
    rules = config.mesh.rules
    gate_up = ops.linears(x_RD, [tower["w1"], tower["w3"]], "mlp", config)
    gate_RF, up_RF = (sharding.constrain(y_RF, (sharding.ROWS, "mlp"), rules) for y_RF in gate_up)
    return ops.linear(ops.gated(gate_RF, up_RF, config.model.activation), tower["w2"])


# --- shapes --------------------------------------------------------------------------------------------------------


def flat_in(w) -> jax.Array:
    """`[..., D, N, H]` as `[..., D, N * H]`."""
    return w.reshape(*w.shape[:-2], -1)


def flat_out(w) -> jax.Array:
    """`[..., N, H, D]` as `[..., N * H, D]`."""
    return w.reshape(*w.shape[:-3], -1, w.shape[-1])


def _join(xs: list[jax.Array], B: int) -> jax.Array:
    """`[B, C, D]` of several groups' rows, end to end."""
    return jnp.concatenate([x_RD.reshape(B, -1, x_RD.shape[-1]) for x_RD in xs], axis=1)


def _by_group(y_RD, tower: Tower, context: Context) -> list[jax.Array]:
    """The rows of each group that the tower serves."""
    shapes = [context.groups[i].tokens.token.shape for i in tower.groups]
    B = shapes[0][0]
    sizes = [C for _, C in shapes]
    D = y_RD.shape[-1]
    parts = lax.split(y_RD.reshape(B, sum(sizes), D), sizes, axis=1)
    return [part.reshape(-1, D) for part in parts]


def _with_lost(report: Report, lost_R, context: Context) -> Report:
    """The report with the choices that overflowed a buffer between devices."""
    parts = context.row.q.position.shape[0]
    lost_BC = sharding.join_context(lost_R.reshape(parts, -1), context.config.mesh.rules)
    return report._replace(lost_B=lost_BC.sum(1))
