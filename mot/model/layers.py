"""One layer: norms, joint attention and FFNs, each with the parameters of the tower that serves a group of streams.

A layer works on lists: one residual `x_RD` a group (R = B * C, its tokens laid flat).
"""

from collections.abc import Sequence

import jax

from mot import sharding
from mot.batches import Tokens
from mot.config import Config, Model
from mot.model import crossing, dropout, experts, joint, ops
from mot.model.attention import KERNELS
from mot.model.context import Context, towers

Reports = dict[str, experts.Report]  # by `component/tower`
KV = tuple[jax.Array, jax.Array]  # a layer's keys and values, as the cache has them


def block(
    xs: list[jax.Array], w: dict, number: jax.Array | int, context: Context, stack: str
) -> tuple[list[jax.Array], Reports, KV | None]:
    """Layer `number`, one of `stack`, over all groups' residuals, `[R, D]` each; its weights are
    `w[component][tower][weight]`.

    Returns the residuals, the reports of its routers by `component/tower`, and with a cache its keys and values.
    """
    xs = crossing.cross(xs, number, context)
    context = _inside(context, number, stack)
    ys, attention_reports, kv = attention(_pre_norm(xs, w, "attn", context), w["attn"], context)
    xs = _add(xs, _post_norm(ys, w, "attn", context), "attn", context)
    ys, ffn_reports = feed_forward(_pre_norm(xs, w, "ffn", context), w["ffn"], context)
    xs = _add(xs, _post_norm(ys, w, "ffn", context), "ffn", context)
    return xs, attention_reports | ffn_reports, kv


def _inside(context: Context, number: jax.Array | int, stack: str) -> Context:
    """The context of layer `number`: its stack's towers, keys of its own, and its keys and values of the cache."""
    jitter_key = None if context.jitter_key is None else jax.random.fold_in(context.jitter_key, number)
    keys = None if context.dropout is None else [dropout.fold(keys_R, number) for keys_R in context.dropout]
    kv = None if context.cache is None else context.cache.kv[number]
    return context._replace(towers=context.config.towers_in(stack), jitter_key=jitter_key, kv=kv, dropout=keys)


def _pre_norm(xs: list[jax.Array], w: dict, name: str, context: Context) -> list[jax.Array]:
    """x + f(norm(x)): what f reads."""
    return xs if context.config.model.norm == "post" else _norm(xs, w["norm"], name, context)


def _post_norm(ys: list[jax.Array], w: dict, name: str, context: Context) -> list[jax.Array]:
    """x + norm(f(x)): what is added."""
    if context.config.model.norm == "both":  # noise levels enter by the first
        return _norm(ys, w["norm"], f"{name}_post", context._replace(conditions=[None] * len(ys)))
    return _norm(ys, w["norm"], name, context) if context.config.model.norm == "post" else ys


def _norm(xs: list[jax.Array], w: dict, name: str, context: Context) -> list[jax.Array]:
    """Each group's rows by its tower's norm, modulated where its noise level enters by the norms."""
    normed = []
    m = context.config.model
    for x_RD, group, condition_RY in zip(xs, context.groups, context.conditions, strict=True):
        tower = w[context.tower("norm", group)]
        y_RD = ops.rms_norm(x_RD, tower[name], m.norm_eps, m.norm_offset)
        normed.append(y_RD if condition_RY is None else ops.modulate(y_RD, condition_RY, tower[f"{name}_ada"]))
    return normed


LAST = {"attn": "wo", "ffn": "w2"}  # the matrix that ends a branch


def _add(xs: list[jax.Array], ys: list[jax.Array], name: str, context: Context) -> list[jax.Array]:
    """The residuals with what a branch gives them, of which training may drop a share."""
    if context.dropout is not None:
        branch, rate = [*LAST].index(name), context.config.model.dropout
        keys = [dropout.fold(keys_R, branch) for keys_R in context.dropout]
        ys = [dropout.drop(y_RD, keys_R, rate) for y_RD, keys_R in zip(ys, keys, strict=True)]
    sums = [
        x_RD + context.scaled(y_RD, f"{name}/{context.tower(name, group)}/{LAST[name]}")
        for x_RD, y_RD, group in zip(xs, ys, context.groups, strict=True)
    ]
    return [sharding.constrain(x_RD, (sharding.ROWS, None), context.config.mesh.rules) for x_RD in sums]


def _is_routed(tower: dict) -> bool:
    """Has the tower experts in this layer? In the stack of dense layers it has none (`model.dense_layers`)."""
    return tower["wq"].ndim == 4 if "wq" in tower else tower["w1"].ndim == 3


# --- attention -----------------------------------------------------------------------------------------------------


def attention(xs: list[jax.Array], w: dict, context: Context) -> tuple[list[jax.Array], Reports, KV | None]:
    """Each tower's projections around one attention over all tokens of the row, in document order, and of its cache.

    Returns each group's `[R, D]`, the routers' reports, and the layer's keys and values where there is a cache.
    """
    qkv, routings, reports = _projected(xs, w, context)
    outputs, kv = _attend(qkv, context)
    ys = {}
    for tower in towers("attn", context):
        own = [outputs[i].reshape(-1, *outputs[i].shape[2:]) for i in tower.groups]
        if tower.name in routings:
            flat = [o_RNH.reshape(len(o_RNH), -1) for o_RNH in own]
            own = experts.project_out(w[tower.name], flat, tower, routings[tower.name], context)
        else:
            own = [_project_out(w[tower.name], o_RNH, context.config.model) for o_RNH in own]
        ys |= dict(zip(tower.groups, own, strict=True))
    return [ys[i] for i in range(len(xs))], reports, kv


def projected(xs: list[jax.Array], w: dict, number: jax.Array | int, context: Context, stack: str) -> list[joint.QKV]:
    """Each group's q, k and v as the attention of layer `number` takes them, for who looks at them; as in `block`."""
    xs = crossing.cross(xs, number, context)
    context = _inside(context, number, stack)
    return _projected(_pre_norm(xs, w, "attn", context), w["attn"], context)[0]


def _projected(
    xs: list[jax.Array], w: dict, context: Context
) -> tuple[list[joint.QKV], dict[str, experts.Routing], Reports]:
    """Each group's q, k and v; and of towers with experts what their routers chose, by tower, and their reports."""
    qkv, routings, reports = {}, {}, {}
    for tower in towers("attn", context):
        if _is_routed(w[tower.name]):
            routing = routings[tower.name] = experts.route(xs, w[tower.name], tower, "attn", context)
            each, reports[f"attn/{tower.name}"] = experts.project_in(w[tower.name], tower, routing, context)
        else:
            each = [_project_in(w[tower.name], xs[i], context.config) for i in tower.groups]
        for i, parts in zip(tower.groups, each, strict=True):
            q, k, v = _heads(w[tower.name], parts, context.groups[i].tokens, context.config.model)
            qkv[i] = (context.scaled(q, f"attn/{tower.name}/wq"), k, v)
    return [qkv[i] for i in range(len(xs))], routings, reports


def _attend(qkv: list[joint.QKV], context: Context) -> tuple[list[jax.Array], KV | None]:
    """Each group's part `[B, C, N, H]` of the joint attention; and keys and values, with a cache."""
    config = context.config
    if context.cache is not None:
        return joint.attend_with_cache(qkv, context.kv, context.row, context.cache, config)
    if config.towers.stop_gradients:
        return joint.attend_with_stopped_gradients(
            qkv, context.groups, context.row, context.towers["attn"], config
        ), None
    return joint.attend(qkv, context.row, config), None


def _is_by_head(m: Model) -> bool:
    """Are heads an axis of attention's products? XLA then lays them first, as kernels of TPUs take them, by itself.

    Of a flat product it must copy them. But CPUs are faster at it.
    """
    return m.attention in KERNELS


def _project_in(tower: dict, x_RD, config: Config) -> list[jax.Array]:
    """q, k and v, `[R, heads, H]` each, or with their heads laid flat, `[R, A]`."""
    matrices = [tower[name] for name in ("wq", "wk", "wv")]
    if not _is_by_head(config.model):
        matrices = [experts.flat_in(w) for w in matrices]
    projected = ops.linears(x_RD, matrices, "heads", config)
    return [sharding.constrain(y, (sharding.ROWS, "heads"), config.mesh.rules) for y in projected]


def _project_out(tower: dict, o_RNH, m: Model) -> jax.Array:
    """`[R, D]` of what attention gave."""
    if _is_by_head(m):
        return ops.linear(o_RNH, tower["wo"])
    return ops.linear(o_RNH.reshape(len(o_RNH), -1), experts.flat_out(tower["wo"]))


def _heads(tower: dict, parts: Sequence[jax.Array], tokens: Tokens, m: Model) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q, k and v, flat or not, as heads `[B, C, heads, H]`, with their biases: q and k normed and rotated."""
    B, C = tokens.token.shape
    heads = [part.reshape(B * C, -1, m.head_size) for part in parts]
    if m.qkv_bias:
        biases = [tower[f"{name}_bias"][None].astype(m.dtype) for name in "qkv"]
        heads = [x_RNH + bias_1NH for x_RNH, bias_1NH in zip(heads, biases, strict=True)]
    q, k = (_qk_norm(x_RNH, tower, name, m) for x_RNH, name in zip(heads[:2], ("q", "k"), strict=True))
    q, k, v = (x_RNH.reshape(B, C, -1, m.head_size) for x_RNH in (q, k, heads[2]))
    axes = ops.axes_of_pairs(m.rope_sections, m.rope_interleaved, m.rope_time_last)
    how = (m.rope_theta, axes, m.rope_pairs, m.rope_scaling)
    # Angles of its own: else XLA takes the layout of the keys, which are permuted, for that of the queries.
    q = ops.rope(q, jax.lax.optimization_barrier(tokens.rope_position), *how)
    k = ops.rope(k, tokens.rope_position, *how)
    if m.query_size:  # who attends divides by the root of the head's size
        q = q * (m.head_size / m.query_size) ** 0.5
    return q, k, v


def _qk_norm(x_RNH, tower: dict, name: str, m: Model) -> jax.Array:
    if m.qk_norm == "rms":
        return ops.rms_norm(x_RNH, tower[f"{name}_norm"], m.norm_eps, m.norm_offset)
    if m.qk_norm == "rms_flat":
        flat_RA = x_RNH.reshape(x_RNH.shape[0], -1)
        scale_A = tower[f"{name}_norm"].reshape(-1)
        return ops.rms_norm(flat_RA, scale_A, m.norm_eps, m.norm_offset).reshape(x_RNH.shape)
    if m.qk_norm == "layer":
        return ops.layer_norm(x_RNH, tower[f"{name}_norm"], tower[f"{name}_norm_bias"], m.norm_eps)
    return x_RNH


# --- FFNs ----------------------------------------------------------------------------------------------------------


def feed_forward(xs: list[jax.Array], w: dict, context: Context) -> tuple[list[jax.Array], Reports]:
    """Each tower's FFN on the rows of the groups that it serves; and the routers' reports."""
    ys, reports = {}, {}
    for tower in towers("ffn", context):
        if _is_routed(w[tower.name]):
            own, reports[f"ffn/{tower.name}"] = experts.feed_forward(xs, w[tower.name], tower, context)
        else:
            own = [experts.gated_ffn(w[tower.name], xs[i], context.config) for i in tower.groups]
        ys |= dict(zip(tower.groups, own, strict=True))
    return [ys[i] for i in range(len(xs))], reports
