"""The Mixture-of-Transformers: towers by three maps (attention projections, FFN, norms) around one joint attention.

Dense, MoT and everything between are the same functions with other maps. Streams that share every map travel merged, in
document order, so dense is an ordinary transformer and pays nothing for the generality. A stream whose noise level
enters by the norms travels apart from one that has none: its tokens alone are modulated.
"""

import zlib
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from mot import batches, sharding
from mot.batches import Batch, Tokens
from mot.config import Config
from mot.model import caches, dispatch, embed, joint, ops, router
from mot.model.caches import Cache
from mot.model.joint import JointRow, end_to_end
from mot.model.params import by_norm
from mot.model.router import Report

Group = tuple[str, ...]  # streams that travel merged


def groups(config: Config, present: Sequence[str] | None = None) -> list[Group]:
    """Of the streams present (by default all) those that every layer treats alike, in the order of their first stream.

    These share every tower, and their noise level enters by the norms of all of them or of none.
    """
    alike: dict[tuple, Group] = {}
    for s in config.streams if present is None else [s for s in config.streams if s in present]:
        towers = tuple(getattr(config.towers, component)[s] for component in ("attn", "ffn", "norm"))
        key = (*towers, by_norm(config.streams[s]))
        alike[key] = (*alike.get(key, ()), s)
    return list(alike.values())


class Output(NamedTuple):
    hidden: list[tuple[jax.Array, Tokens]]  # of ids: normed last states h_RD (R = B * C, in `model.dtype`), by group
    latents: dict[str, jax.Array]  # of streams of vectors: what is predicted, [B, C, P] float32
    routing: dict[str, Report]  # by `component/tower` with experts; each field with a leading axis of layers
    cache: Cache | None  # with these tokens in it, not yet kept


class Context(NamedTuple):
    """What every layer sees alike."""

    config: Config
    groups: list[Group]
    merged: list[Tokens]  # by group
    kinds: list[jax.Array]  # by group: the modality of each token, [B, C]
    conditions: list[jax.Array | None]  # by group: c_RX that its norms are modulated by
    row: JointRow
    key: jax.Array | None  # of the routers' jitter; None: no jitter
    causal: bool  # experts that choose are imitated by routers that see no later token
    cache: Cache | None  # whose info has these tokens


def forward(
    params: dict,
    batch: Batch,
    config: Config,
    key: jax.Array | None = None,
    causal: bool = False,
    cache: Cache | None = None,
) -> Output:
    """The model's last hidden states, what it predicts of vectors, and what its routers did.

    With a cache the batch may lack streams, and its tokens see those of the cache too.
    """
    present, rules = groups(config, batch), config.mesh.rules
    T = batches.length(batch) if cache is None else None  # what follows a cache has positions of a longer row
    merged = sharding.split_context([batches.merge(batch, group, T) for group in present], rules)
    groups_ = list(zip(present, merged, strict=True))
    entered = [embed.embed(params, batch, group, tokens, config, T) for group, tokens in groups_]
    xs, conditions = map(list, zip(*entered, strict=True))
    row = joint.join(merged, rules, T)
    if cache is not None:
        cache = cache.replace(info=caches.place_info(cache, row.q))
    kinds = sharding.split_context([batches.modalities(batch, group, config, T) for group in present], rules)
    context = Context(config, present, merged, kinds, conditions, row, key, causal, cache)
    xs, routing, kv = _stack(partial(_block, context=context), params["blocks"], xs, config, cache)
    hidden, latents = [], {}
    for x_RD, (group, tokens) in zip(xs, groups_, strict=True):
        scale = params["final_norm"][config.towers.norm[group[0]]]["scale"]
        h_RD = ops.rms_norm(x_RD, scale, config.model.norm_eps)
        of_ids, of_vectors = embed.unembed(params, h_RD, batch, group, tokens, config, T)
        hidden, latents = hidden + of_ids, latents | of_vectors
    return Output(hidden, latents, routing, None if cache is None else cache.replace(kv=kv))


def head(params: dict, config: Config) -> jax.Array:
    """`[D, V]`, the matrix that makes logits."""
    return params["embed"]["tokens"].T if config.model.tied else params["head"]["out"]


def _stack(layer, blocks, xs, config, cache):
    """All layers: some dense ones, then groups of dense ones that end with a sparse one (or of a single dense one).

    With a cache they are unrolled: a scan would copy all of it in every layer.
    """
    m, first = config.model, config.model.dense_layers
    pattern = config.stacks[first : first + m.sparse_every]
    if m.remat != "none" and cache is None:
        layer = _kept_little(layer, m.remat)
    if not m.scan or cache is not None:
        weights, reports, kvs = {stack: iter(_layers(w)) for stack, w in blocks.items()}, [], []
        for i, stack in enumerate(config.stacks):
            xs, report, kv = layer(xs, next(weights[stack]), i)
            reports += [report] if report else []
            kvs.append(kv)
        return xs, jax.tree.map(lambda *x: jnp.stack(x), *reports) if reports else {}, tuple(kvs)

    def several(xs, group):
        """One group: its weights by stack, each `[n, ...]`, and its layers' numbers."""
        weights, numbers = {stack: iter(_layers(w)) for stack, w in group[0].items()}, group[1]
        for i, stack in enumerate(pattern):
            xs, report, _ = layer(xs, next(weights[stack]), numbers[i])
        return xs, report  # of the last, which alone may be sparse

    cut = lambda x, part: jax.tree.map(lambda leaf: leaf[part], x)
    if first:
        dense = cut(blocks["main"], slice(first))
        xs = lax.scan(lambda xs, w: (layer(xs, *w)[0], None), xs, (dense, jnp.arange(first)))[0]
    rest = {stack: cut(blocks[stack], slice(first if stack == "main" else 0, None)) for stack in pattern}
    fold = lambda x, n: jax.tree.map(lambda leaf: leaf.reshape(-1, n, *leaf.shape[1:]), x)
    rest = {stack: fold(w, pattern.count(stack)) for stack, w in rest.items()}
    return *lax.scan(several, xs, (rest, fold(jnp.arange(first, m.layers), len(pattern)))), ()


def _kept_little(layer, how):
    """The layer, of whose results backward has only some.

    dots: what projections made; block: what entered; offload: that, in the host's memory. (What projections made is ten
    times as much: its way there and back would take longer than making it again.)
    """
    if how == "dots":
        return jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    if how == "block":
        return jax.checkpoint(layer)
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["residual"],
        offload_src="device",
        offload_dst="pinned_host",
    )
    named = lambda xs, *rest: layer([checkpoint_name(x_RD, "residual") for x_RD in xs], *rest)
    return jax.checkpoint(named, policy=policy)


def _layers(weights):
    """Each layer's weights. Not `x[i]`, whose transpose pads each gradient to all layers and adds them up."""
    leaves, tree = jax.tree.flatten(weights)
    for parts in zip(*(lax.split(leaf, (1,) * leaf.shape[0]) for leaf in leaves), strict=True):
        yield tree.unflatten([w.reshape(w.shape[1:]) for w in parts])


def _block(xs: list[jax.Array], w: dict, number, context: Context):
    """Layer `number`: `w[component][tower][weight]`, one residual `x_RD` a group; its routers' reports, its k and v."""
    config, reports = context.config, {}
    norms = [w["norm"][config.towers.norm[group[0]]] for group in context.groups]

    def norm(name, xs):
        ys = [ops.rms_norm(x, n[name], config.model.norm_eps) for x, n in zip(xs, norms, strict=True)]
        each = zip(ys, context.conditions, norms, strict=True)
        return [y if c is None else ops.modulate(y, c, n[f"{name}_ada"]) for y, c, n in each]

    def branch(f, name, xs):
        """x + f(norm(x)), or x + norm(f(x)); f maps all groups' rows at once."""
        pre = config.model.norm == "pre"
        ys, report, *kv = f(norm(name, xs) if pre else xs)
        reports.update({f"{name}/{tower}": x for tower, x in report.items()})
        xs = [x + y for x, y in zip(xs, ys if pre else norm(name, ys), strict=True)]
        return [sharding.constrain(x_RD, (sharding.ROWS, None), config.mesh.rules) for x_RD in xs], *kv

    context = context._replace(key=None if context.key is None else jax.random.fold_in(context.key, number))
    mine = None if context.cache is None else context.cache.kv[number]
    xs, kv = branch(partial(_attention, w["attn"], context=context, kv=mine), "attn", xs)
    return *branch(partial(_ffns, w["ffn"], context=context), "ffn", xs), reports, kv


def _towers(component: str, context: Context):
    """Each tower's name, its sets, and the numbers of the groups that it serves."""
    mapping = getattr(context.config.towers, component)
    names = [mapping[group[0]] for group in context.groups]
    for tower in dict.fromkeys(names):
        yield tower, getattr(context.config, component)[tower], [i for i, name in enumerate(names) if name == tower]


def _attention(w, xs, context, kv):
    """Each group's own projections; one attention over all tokens of the row, in document order, and of its cache."""
    qkv, project, reports = {}, {}, {}
    for tower, sets, mine in _towers("attn", context):
        if "router" in w[tower]:
            parts, project[tower], reports[tower] = _routed_attention(w[tower], sets, xs, mine, tower, context)
        else:
            parts = [_linears(w[tower], xs[i], context.config.mesh.rules) for i in mine]
            project[tower] = lambda os, wo=w[tower]["wo"]: [ops.linear(o_RE, _flat_out(wo)) for o_RE in os]
        finish = partial(_finish, w[tower], m=context.config.model)
        qkv |= {i: finish(part, context.merged[i]) for i, part in zip(mine, parts, strict=True)}
    parts, config = [qkv[i] for i in range(len(xs))], context.config
    if context.cache is not None:
        outputs, kv = joint.attend_with_cache(parts, kv, context.row, context.cache, config)
    elif config.towers.stop_gradients:
        outputs = joint.attend_with_stopped_gradients(parts, context.groups, context.merged, context.row, config)
    else:
        outputs = joint.attend(parts, context.row, config)
    rows = [o_BCNH.reshape(o_BCNH.shape[0] * o_BCNH.shape[1], -1) for o_BCNH in outputs]
    ys = {}
    for tower, _, mine in _towers("attn", context):
        ys |= dict(zip(mine, project[tower]([rows[i] for i in mine]), strict=True))
    return [ys[i] for i in range(len(xs))], reports, kv


def _flat_in(w):
    """`[..., D, N, H]` as `[..., D, N * H]`."""
    return w.reshape(*w.shape[:-2], -1)


def _flat_out(w):
    """`[..., N, H, D]` as `[..., N * H, D]`."""
    return w.reshape(*w.shape[:-3], -1, w.shape[-1])


def _linears(tower, x_RD, rules):
    apart = lambda y_RE: sharding.constrain(y_RE, (sharding.ROWS, "heads"), rules)
    return [apart(ops.linear(x_RD, _flat_in(tower[name]))) for name in ("wq", "wk", "wv")]


def _finish(tower, parts, tokens, m):
    """Heads, norms and rotation of projected q, k and v `[R, N * H]`."""
    B, C = tokens.token.shape

    def heads(name, x_RE):
        x_RNH = x_RE.reshape(B * C, -1, m.head_size)
        if name != "v" and m.qk_norm == "rms":
            x_RNH = ops.rms_norm(x_RNH, tower[f"{name}_norm"], m.norm_eps)
        if name != "v" and m.qk_norm == "layer":
            x_RNH = ops.layer_norm(x_RNH, tower[f"{name}_norm"], tower[f"{name}_norm_bias"], m.norm_eps)
        return x_RNH.reshape(B, C, -1, m.head_size)

    turn = lambda x_BCNH: ops.rope(x_BCNH, tokens.rope_position, m.rope_theta)
    return turn(heads("q", parts[0])), turn(heads("k", parts[1])), heads("v", parts[2])


def _ffns(w, xs, context):
    """Each tower's FFN on the rows of the groups that it serves."""
    ys, reports = {}, {}
    for tower, sets, mine in _towers("ffn", context):
        if "router" in w[tower]:
            parts, reports[tower] = _routed_ffn(w[tower], sets, xs, mine, tower, context)
        else:
            parts = [_ffn(w[tower], xs[i], context.config.mesh.rules) for i in mine]
        ys |= dict(zip(mine, parts, strict=True))
    return [ys[i] for i in range(len(xs))], reports


def _ffn(tower, x_RD, rules):
    gate_RF, up_RF = (
        sharding.constrain(ops.linear(x_RD, tower[name]), (sharding.ROWS, "mlp"), rules) for name in ("w1", "w3")
    )
    return ops.linear(ops.swiglu(gate_RF, up_RF), tower["w2"])


def _expert_ffn(enter, linear, weight_S1, w):
    """_ffn by experts; gate and up in one go, as experts are narrow, and weights where rows are narrowest."""
    gate_up_SF = enter(jnp.concatenate([w["w1"], w["w3"]], axis=-1))
    return linear(_weighted(ops.swiglu(*jnp.split(gate_up_SF, 2, axis=-1)), weight_S1), w["w2"])


def _weighted(x_SF, weight_S1):
    return (x_SF.astype(jnp.float32) * weight_S1).astype(x_SF.dtype)


# --- routed towers -------------------------------------------------------------------------------------------------


def _route(w, sets, xs, mine, tower, context):
    """The rows `x_RD` of the groups that a tower serves, their experts, and how to go on.

    Returns the rows, the choice, the report, and a function (compute, rows, weights, choice) -> (rows, lost choices).
    """
    config, tokens = context.config, batches.concatenate([context.merged[i] for i in mine])
    B, C = tokens.token.shape
    real_BC = tokens.segment != 0
    x_BCD = _join(xs, mine, B)
    x_BCD = jnp.where(real_BC[..., None], x_BCD, 0)  # whatever padding holds stops here
    noise_BCD = None
    if context.key is not None and sets.jitter:
        key = jax.random.fold_in(context.key, zlib.crc32(tower.encode()))
        flat = jax.random.uniform(key, (x_BCD.size,), minval=1 - sets.jitter, maxval=1 + sets.jitter)
        noise_BCD = flat.reshape(x_BCD.shape)
    kinds_BC = end_to_end([context.kinds[i] for i in mine])
    arguments = (sets, real_BC, tokens.position, kinds_BC, len(config.modalities), noise_BCD, context.causal)
    choice, report = router.route(x_BCD, w, *arguments, rules=config.mesh.rules)
    row = C * sharding.shard_count(("length",), config.mesh.rules)  # of which a part may have all choices
    most = min(router.most_choices(sets, row, context.causal), C * choice.expert_RX.shape[1])
    through = partial(dispatch.apply_experts, rows=B, most=most, how=config.model.dispatch, mesh=config.mesh)
    return x_BCD.reshape(B * C, -1), choice, report, through


def _join(xs, mine, B):
    """`[B, C, D]` of several groups' rows, end to end."""
    return jnp.concatenate([xs[i].reshape(B, -1, xs[i].shape[-1]) for i in mine], axis=1)


def _part(y_RD, mine, context):
    """The rows of each group again."""
    sizes = [context.merged[i].token.shape[1] for i in mine]
    B, D = context.merged[mine[0]].token.shape[0], y_RD.shape[-1]
    parts = lax.split(y_RD.reshape(B, sum(sizes), D), sizes, axis=1)
    return [part.reshape(-1, D) for part in parts]


def _counted(report, lost_R, context):
    lost_BC = sharding.join_context(lost_R.reshape(context.row.q.position.shape[0], -1), context.config.mesh.rules)
    return report._replace(lost_B=lost_BC.sum(1))


def _routed_ffn(w, sets, xs, mine, tower, context):
    """The sum of each token's experts with their weights, and what every token passes through."""
    x_RD, choice, report, through = _route(w, sets, xs, mine, f"ffn/{tower}", context)
    experts = {name: w[name] for name in ("w1", "w2", "w3")}
    y_RD, lost_R = through(_expert_ffn, x_RD, experts, choice)
    if sets.shared:
        shared_RD = _ffn({name: w[f"shared_{name}"] for name in experts}, x_RD, context.config.mesh.rules)
        if sets.shared_gate:
            shared_RD *= jax.nn.sigmoid(ops.linear(x_RD, w["shared_gate"]).astype(jnp.float32)).astype(shared_RD.dtype)
        y_RD += shared_RD
    return _part(y_RD, mine, context), _counted(report, lost_R, context)


def _routed_attention(w, sets, xs, mine, tower, context):
    """Each group's q, k and v, a function for the way out, and the report.

    One choice serves both. Going in, a token's weights add up to 1: a single expert's q, k and v are its own, as a
    tower's are. Coming out they are the router's, which so learns.
    """
    x_RD, choice, report, through = _route(w, sets, xs, mine, f"attn/{tower}", context)
    total_R1 = choice.weight_RX.sum(-1, keepdims=True)
    even = choice._replace(weight_RX=choice.weight_RX / jnp.where(total_R1 > 0, total_R1, 1))
    going_in = {name: _flat_in(w[name]) for name in ("wq", "wk", "wv")}
    sizes = [weights.shape[-1] for weights in going_in.values()]
    joined = lambda w: jnp.concatenate([w[name] for name in going_in], axis=-1)
    qkv_RE, lost_R = through(
        lambda enter, _, weight_S1, w: _weighted(enter(joined(w)), weight_S1), x_RD, going_in, even
    )
    parts = [lax.split(part, sizes, axis=1) for part in _part(qkv_RE, mine, context)]
    real_R1 = jnp.concatenate([context.merged[i].segment for i in mine], axis=1).reshape(-1, 1) != 0

    def out(os):
        o_BCE = _join(dict(zip(mine, os, strict=True)), mine, context.merged[mine[0]].token.shape[0])
        o_RE = jnp.where(real_R1, o_BCE.reshape(-1, o_BCE.shape[-1]), 0)
        leave = lambda enter, _, weight_S1, w: _weighted(enter(w["wo"]), weight_S1)
        y_RD, _ = through(leave, o_RE, {"wo": _flat_out(w["wo"])}, choice)
        return _part(y_RD, mine, context)

    return parts, out, _counted(report, lost_R, context)
