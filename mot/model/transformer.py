"""The Mixture-of-Transformers: towers by three maps (attention projections, FFN, norms) around one joint attention.

Dense, MoT and everything between are the same functions with other maps. Streams that share every map travel merged, in
document order, so dense is an ordinary transformer and pays nothing for the generality. A stream whose noise level
enters by the norms travels apart from one that has none: its tokens alone are modulated. Maps may differ by depth; then
layers that are alike are a stack of their own, and a tower serves several groups where these share it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from mot import batches, sharding
from mot.batches import Batch, Tokens
from mot.config import COMPONENTS, Config
from mot.config.depth import Segment, segments
from mot.model import caches, crossing, dropout, embed, joint, layers, ops
from mot.model import params as parameters
from mot.model.caches import Cache
from mot.model.context import Context, Group
from mot.model.params import by_norm
from mot.model.router import Report


class Output(NamedTuple):
    hidden: list[tuple[jax.Array, Tokens]]  # of ids: normed last states h_RD (R = B * C, in `model.dtype`), by group
    latents: dict[str, jax.Array]  # of streams of vectors, float32: what is predicted, [B, C, P]; where their states
    # are to be predicted, these, normed, [B, C, D]
    routing: dict[str, Report]  # by `component/tower` with experts, as `params.report` calls it; each field with a
    # leading axis of the layers of its stack
    cache: Cache | None  # with these tokens in it, not yet kept
    states: dict[str, jax.Array]  # normed last states [B, C, D] of streams that are contrasted or asked for


def alike(config: Config, present: Sequence[str] | None = None) -> list[tuple[str, ...]]:
    """Of the streams present (by default all) those that every layer treats alike, in the order of their first stream.

    These share every tower, and their noise level enters by the norms of all of them or of none.
    """
    result: dict[tuple, tuple[str, ...]] = {}
    for s in config.streams if present is None else [s for s in config.streams if s in present]:
        every = [config.towers_in(stack) for stack in dict.fromkeys(config.stacks)]
        towers = tuple(maps[component][s] for maps in every for component in COMPONENTS)
        key = (*towers, by_norm(config.streams[s]))
        result[key] = (*result.get(key, ()), s)
    return list(result.values())


def merge(batch: Batch, streams: Sequence[str], config: Config, T: int | None) -> Group:
    """Streams that are alike, merged; T as in `batches.document_order`."""
    merged = batches.merge(batch, streams, config, T)
    # As a list: JAX would sort a dict's keys, and `order` is of the streams in their own order.
    per_token = (merged.tokens, merged.modality, [batch[s] for s in streams])
    tokens, modality, by_stream = sharding.split_context(per_token, config.mesh.rules)
    by_stream = dict(zip(streams, by_stream, strict=True))
    return Group(tuple(streams), tokens, modality, by_stream, merged.order, merged.back)


def forward(
    params: dict,
    batch: Batch,
    config: Config,
    jitter_key: jax.Array | None = None,
    causal: bool = False,
    cache: Cache | None = None,
    dropout_key: jax.Array | None = None,
    asked: Collection[str] = (),
) -> Output:
    """The model's last hidden states, what it predicts of vectors, and what its routers did.

    Without `jitter_key` routers have no jitter, without `dropout_key` nothing is dropped; with another one the same
    documents lose other parts, as SimCSE wants (2104.08821). `causal` is as in `router.route`. With a cache the batch
    may lack streams, and its tokens see those of the cache too. Of the streams `asked` for the last states are told.
    """
    xs, context = enter(params, batch, config, jitter_key, causal, cache, dropout_key)
    block = partial(layers.block, context=context)
    xs, routing, kv = stack(block, params["blocks"], xs, config, cache is not None)
    hidden, latents, states = [], {}, {}
    asked = {*config.objective.contrastive.pools, *asked}
    for x_RD, group in zip(xs, context.groups, strict=True):
        scale_D = params["final_norm"][config.last_norms[group.streams[0]]]["scale"]
        h_RD = ops.rms_norm(x_RD, scale_D, config.model.norm_eps, config.model.norm_offset)
        of_ids, of_vectors = embed.unembed(params, h_RD, group, config)
        hidden += of_ids
        latents |= of_vectors
        states |= embed.states(h_RD, group, asked, config)
    return Output(hidden, latents, routing, None if context.cache is None else context.cache.replace(kv=kv), states)


def enter(
    params: dict,
    batch: Batch,
    config: Config,
    jitter_key: jax.Array | None,
    causal: bool,
    cache: Cache | None,
    dropout_key: jax.Array | None = None,
) -> tuple[list[jax.Array], Context]:
    """What enters the first layer: the groups' residuals, and what every layer sees; arguments as in `forward`."""
    apart = crossing.apart(batch, config)
    T = batches.length(apart.joint) if cache is None else None  # what follows a cache has positions of a longer row
    groups = [merge(apart.joint, streams, config, T) for streams in alike(config, apart.joint)]
    crossed, kept = crossing.see(params, batch, apart, groups, config, cache)
    xs, conditions = zip(*embed.embed(params, groups, config), strict=True)
    row = joint.join(groups, config.mesh.rules, T)
    if cache is None:
        row = joint.prepared(row, groups, config)
    else:
        cache = cache.replace(info=caches.place_info(cache, row.q), crossed=kept)
    keys = None
    if dropout_key is not None and config.model.dropout:
        keys = dropout.keys(apart.joint, groups, dropout_key, config.mesh.rules)
    multipliers = parameters.multipliers(config)
    context = Context(config, groups, list(conditions), row, jitter_key, causal, cache, multipliers)
    return list(xs), context._replace(crossed=crossed, dropout=keys)


def head(params: dict, config: Config) -> jax.Array:
    """`[D, V]`, the matrix that makes logits."""
    if not config.model.tied:
        return params["head"]["out"]
    multiplier = parameters.table(config)["embed/tokens"].multiplier
    head_DV = params["embed"]["tokens"].T
    return head_DV if multiplier == 1 else head_DV * multiplier


def logits(h_RD, head_DV, config: Config) -> jax.Array:
    """float32 `[R, V]` of last hidden states, as `forward` gives them, and `head`."""
    logits_RV = jnp.matmul(h_RD, head_DV.astype(h_RD.dtype), preferred_element_type=jnp.float32)
    return ops.capped(logits_RV, config.model.logits_cap)


# --- the stack of layers -------------------------------------------------------------------------------------------

# (xs, weights, number) -> (xs, reports by `component/tower`, keys and values); `stack` takes one that is also told the
# layer's stack
Layer = Callable[..., tuple[list[jax.Array], layers.Reports, layers.KV | None]]
Stacked = tuple[list[jax.Array], layers.Reports, tuple[layers.KV | None, ...]]  # of all layers


def stack(layer: Layer, blocks: dict, xs: list[jax.Array], config: Config, cached: bool) -> Stacked:
    """All layers; their reports with a leading axis of layers, and with a cache each layer's keys and values.

    `blocks[stack]` has the weights of a stack's layers, each with a leading axis. With a cache layers are unrolled: a
    scan would copy all of it in every layer.
    """
    by_stack = {name: partial(layer, stack=name) for name in blocks}
    if config.model.remat != "none" and not cached:
        by_stack = {name: rematerialised(of_stack, config.model.remat) for name, of_stack in by_stack.items()}
    if config.model.scan and not cached:
        return _scanned(by_stack, blocks, xs, config)
    return _unrolled(by_stack, blocks, xs, config)


def _unrolled(by_stack: dict[str, Layer], blocks: dict, xs: list[jax.Array], config: Config) -> Stacked:
    """Layer after layer."""
    weights = {name: _each_layer(w) for name, w in blocks.items()}
    reports: dict[str, list[Report]] = {}
    kvs = []
    for number, name in enumerate(config.stacks):
        xs, of_layer, kv = by_stack[name](xs, next(weights[name]), number)
        for tower, report in of_layer.items():
            reports.setdefault(parameters.report(tower, name), []).append(report)
        kvs.append(kv)
    return xs, {tower: jax.tree.map(lambda *x: jnp.stack(x), *found) for tower, found in reports.items()}, tuple(kvs)


def _scanned(by_stack: dict[str, Layer], blocks: dict, xs: list[jax.Array], config: Config) -> Stacked:
    """A scan over each segment: its layers repeat a period, whose last layer alone may be sparse."""
    m = config.model
    found = segments(config.stacks, m.dense_layers, m.sparse_every)
    reports: dict[str, list[Report]] = {}
    for segment, of_segment in zip(found, _by_segment(blocks, found), strict=True):

        def one_period(xs, weights_and_numbers, period=segment.period):
            by_name, numbers = weights_and_numbers
            weights = {name: _each_layer(w) for name, w in by_name.items()}
            for i, name in enumerate(period):
                xs, report, _ = by_stack[name](xs, next(weights[name]), numbers[i])
            return xs, {parameters.report(tower, name): of_tower for tower, of_tower in report.items()}

        n = len(segment.period)
        weights = {name: _fold(w, segment.period.count(name)) for name, w in of_segment.items()}
        numbers = _fold(jnp.arange(segment.first, segment.first + n * segment.times), n)
        xs, of_layers = lax.scan(one_period, xs, (weights, numbers))
        for tower, report in of_layers.items():
            reports.setdefault(tower, []).append(report)
    return xs, {tower: _end_to_end(found) for tower, found in reports.items()}, ()


def _by_segment(blocks: dict, found: list[Segment]) -> Iterator[dict]:
    """Each segment's weights, by stack."""
    sizes = {name: [s.times * s.period.count(name) for s in found if name in s.period] for name in blocks}
    parts = {name: _split(w, sizes[name]) for name, w in blocks.items()}
    for segment in found:
        yield {name: next(parts[name]) for name in dict.fromkeys(segment.period)}


def _split(weights: dict, sizes: list[int]) -> Iterator[dict]:
    """The weights of as many layers, then of the next ones. Not `x[a:b]`, whose transpose pads each gradient to all
    layers and adds them up. Of arrays on the host, which nothing compiles, they are views."""
    leaves, tree = jax.tree.flatten(weights)
    ends = np.cumsum(sizes)[:-1]
    each = (np.split(x, ends) if isinstance(x, np.ndarray) else lax.split(x, sizes) for x in leaves)
    for parts in zip(*each, strict=True):
        yield tree.unflatten(parts)


def _end_to_end(reports: list[Report]) -> Report:
    """The reports of several segments, with all of their layers."""
    return reports[0] if len(reports) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *reports)


def rematerialised(layer: Layer, remat: str) -> Layer:
    """The layer with only some of its activations kept for the backward pass, which makes the others again.

    dots: what projections made; block: what entered; offload: that, in the host's memory. (What projections made is ten
    times as much: its way there and back would take longer than making it again.)
    """
    if remat == "dots":
        return jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    if remat == "block":
        return jax.checkpoint(layer)
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["residual"],
        offload_src="device",
        offload_dst="pinned_host",
    )

    def named(xs, *rest):
        return layer([checkpoint_name(x_RD, "residual") for x_RD in xs], *rest)

    return jax.checkpoint(named, policy=policy)


def _each_layer(weights: dict) -> Iterator[dict]:
    """Each layer's weights."""
    count = len(jax.tree.leaves(weights)[0])
    for layer in _split(weights, [1] * count):
        yield jax.tree.map(lambda w: w.reshape(w.shape[1:]), layer)


def _fold(weights, n: int) -> dict | jax.Array:
    """Every leading axis `[m * n, ...]` as `[m, n, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, n, *leaf.shape[1:]), weights)
