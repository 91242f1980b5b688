"""Parameters and FLOPs, counted from the table of parameters; a multiply and an add are two.

Model FLOPs: what the mathematics needs. Attention is counted for pairs that see each other, recomputation not at all,
experts as a token meets `active` of them, routers that imitate not at all.
"""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from mot.config import Check, Config, reads, resolve
from mot.model import params

if TYPE_CHECKING:  # they take seconds to import, and a budget of FLOPs is judged without
    import numpy as np

    from mot.batches import Batch

FORWARD_AND_BACKWARD = 3  # each matmul of the forward pass has two of its size in the backward pass


def matmul_weights(config: Config) -> dict[str, int]:
    """For each stream, the weights that multiply one of its tokens: its towers' and the head's."""
    specs = params.table(config)
    # `embed` is read, not multiplied; tied, it is the head too.
    head = math.prod(specs["embed/tokens"].shape)
    matrices = {p: s for p, s in specs.items() if _multiplies(p, s)}

    def of_ids(stream):
        return 0 if config.streams[stream].latent else head

    return {s: of_ids(s) + _met(matrices, s, config) + _of_resampler(matrices, s, config) for s in config.streams}


def _multiplies(path: str, spec: params.Spec) -> bool:
    if path.startswith("predictor/"):
        return params.is_hidden(spec)
    return path.startswith(("latent/", "cross/", "blocks/")) and _is_matrix(path, spec)


def _of_resampler(matrices: params.Table, stream: str, config: Config) -> int:
    """What a token of a resampler meets more: the vectors that it carries each pass the way in and a key's matrices.

    Its query attends to all vectors and queries of its unit, which counts here as weights that it multiplies.
    """
    s, m = config.streams[stream], config.model
    if s.entry.kind != "resampler":
        return 0
    sizes = {name: math.prod(matrices[f"latent/{stream}/{name}"].shape) for name in ("in", "wk", "wv")}
    R = s.entry.fold
    seen = s.entry.queries * (R + 1)  # tokens of a key
    of_pairs = 2 * s.entry.layers * m.heads * m.head_size * seen
    return (R - 1) * sizes["in"] + R * (sizes["wk"] + sizes["wv"]) + of_pairs


def _is_matrix(path: str, spec: params.Spec) -> bool:
    """Does a parameter multiply, as all do but norms' scales, biases, gates, learned queries and tables of places?"""
    _, component, _, weight = params.parse(path)
    is_read = {"query", "place"} & {*spec.axes} or params.is_added(path) or params.is_gate(path)
    if component == "norm" or "norm" in weight or is_read:
        return params.is_modulation(path)
    return True


def last_weights(config: Config) -> dict[str, int]:
    """For each stream, the weights of its FFNs' second matmuls: the last of a block, part of `matmul_weights`."""
    last = {path: spec for path, spec in params.table(config).items() if _in_block(path) and path.endswith("/w2")}
    return {stream: _met(last, stream, config) for stream in config.streams}


def active_parameters(config: Config) -> dict[str, int]:
    """For each stream, the parameters that one of its tokens meets: shared ones, its own towers', its experts'."""
    return {stream: _met(params.table(config), stream, config) for stream in config.streams}


def total_parameters(config: Config) -> int:
    """All parameters but those that only serve training or causal evaluation: routers' biases and imitators."""
    return params.count({p: s for p, s in params.table(config).items() if not _aside(p)})


def _aside(path: str) -> bool:
    return params.is_bias(path) or params.is_causal(path)


def _met(specs: params.Table, stream: str, config: Config) -> int:
    """Of these parameters, how many one of the stream's tokens meets: of E experts, the active ones."""
    total = 0
    for path, spec in specs.items():
        if _serves(path, stream, config) and not _aside(path):
            share = 1
            if "expert" in spec.axes:
                _, component, tower, _ = params.parse(path)
                experts = config.component(component).experts[tower]
                share = experts.active / experts.experts
            total += round(math.prod(spec.shape) * share)
    return total


def _in_block(path: str) -> bool:
    return path.startswith("blocks/")


def _serves(path: str, stream: str, config: Config) -> bool:
    """Does a token of the stream meet this parameter?"""
    if params.is_modulation(path) and not params.by_norm(config.streams[stream]):
        return False  # a norm may serve streams that have a noise level, and others
    _, component, tower, weight = params.parse(path)
    if component == "cross":  # keys and values are of what is seen, the rest of all who see it
        return stream == tower if weight in ("wk", "wv", "seen_norm") else stream not in config.crossed
    return stream in params.users(path, config)


def attention_per_pair(config: Config) -> int:
    """Forward FLOPs of one query that sees one key, in all layers: a score and a weighted value."""
    m = config.model
    return 4 * m.layers * m.heads * m.head_size


NONE: Mapping[str, float] = MappingProxyType({})


def train_step(
    config: Config,
    tokens: Mapping[str, float],
    pairs: float,
    within: Mapping[str, float] = NONE,
    contrasted: float = 0,
) -> float:
    """Model FLOPs of a step over `tokens` of each stream with `pairs` visible (query, key) pairs.

    Where a stream predicts states, a pass more sees whole units, forward alone where these are an average's, and
    `within` has the pairs of tokens of one unit, which its predictor sees. What is hidden of units counts as if it were
    there. Where parts of one stream are contrasted, all is passed twice; `contrasted` pairs of parts are projected, and
    each is compared with all.
    """
    times = 2 if len(config.objective.contrastive.pools) == 1 else 1
    matmuls = sum(2 * tokens[stream] * weights for stream, weights in matmul_weights(config).items())
    of_pairs = pairs * attention_per_pair(config)
    beside = FORWARD_AND_BACKWARD * _of_contrast(config, contrasted)
    predicting = {name: s.prediction.targets for name, s in config.streams.items() if s.predicts}
    if not predicting:
        return times * FORWARD_AND_BACKWARD * (matmuls + of_pairs) + beside
    predictors = sum(2 * tokens[name] * _of_predictor(name, config) for name in predicting)
    trunk = matmuls - predictors + of_pairs
    passes = times * FORWARD_AND_BACKWARD
    passes += sum(FORWARD_AND_BACKWARD if whose == "own" else 1 for whose in set(predicting.values()))
    predictors += sum(n * attention_per_pair(params.predictor(config, name)) for name, n in within.items())
    return passes * trunk + FORWARD_AND_BACKWARD * predictors + beside


def _of_predictor(stream: str, config: Config) -> int:
    specs = {p: s for p, s in params.table(config).items() if p.startswith(f"predictor/{stream}/")}
    return sum(math.prod(spec.shape) for path, spec in specs.items() if _multiplies(path, spec))


def _of_contrast(config: Config, contrasted: float) -> float:
    """Forward FLOPs of so many pairs: both parts are projected, and every first part meets every last one."""
    term = config.objective.contrastive
    if not contrasted:
        return 0
    sides = [*term.pools] * (3 - len(term.pools))  # one stream is both
    widths = [config.streams[name].width for name in sides if name in config.streams]  # it may not be checked yet
    projected = sum(2 * contrasted * D * term.width for D in widths)
    return projected + 2 * contrasted**2 * (term.width or max(widths, default=0))


def full_step(config: Config) -> float:
    """Model FLOPs of a step whose rows are full, each with one document: attention takes at most that.

    Each token sees those before it and itself; a vector also the rest of its document's, as far as `max_tokens` tells,
    and so does an id that is masked by unit; one that is masked by document all of it. Streams without a budget share a
    row alike.
    """
    T = config.length if all(s.budget for s in config.streams.values()) else config.data.length
    tokens = {name: s.budget or T / len(config.streams) for name, s in config.streams.items()}
    apart = sum(tokens[name] for name in config.crossed)
    joint = {name: s for name, s in config.streams.items() if name not in config.crossed}
    later = {name: max(s.max_tokens - 1, 0) / 2 for name, s in joint.items() if s.latent or s.masks == "unit"}
    later |= {name: (T - apart - 1) / 2 for name, s in joint.items() if s.masks == "document"}
    pairs = (T - apart) * (T - apart + 1) / 2 + sum(tokens[name] * mean for name, mean in later.items())
    of_unit = {name: config.streams[name].max_tokens or tokens[name] for name in config.crossed}
    pairs += sum((T - apart) * n * layers_share(name, config) for name, n in of_unit.items())
    B = config.data.batch
    within = {name: B * n for name, n in most_within(config, tokens).items()}
    tokens = {name: B * n for name, n in tokens.items()}
    return train_step(config, tokens, B * pairs, within, B * config.contrasted_pairs)


def most_within(config: Config, tokens: Mapping[str, float]) -> dict[str, float]:
    """By stream that predicts states: the pairs within units of so many tokens, whose units are the longest."""
    predicting = {name: s for name, s in config.streams.items() if s.predicts}
    return {name: tokens[name] * (s.max_tokens or tokens[name]) / s.copies for name, s in predicting.items()}


MOST_STEPS = 1e9


def resolve_with_steps(tree: ConfigDict, *more: Check) -> Config:
    """`resolve`, with the steps that `run.flops` pays for where it is a budget and `run.steps` is 0; it is 0 then.

    The warm-up is then at most a tenth of the steps. Raises `ConfigError` with all faults, those of the budget among
    them.
    """
    run = tree.get("run")
    run = run if isinstance(run, ConfigDict) else {}
    budget = run.get("flops", 0)
    if not _is_number(budget) or not 0 < budget < math.inf:  # `resolve` says what is wrong
        return resolve(tree, *more)
    if "steps" not in run or not _is_number(run.steps) or run.steps != 0:
        return resolve(tree, _two_budgets, *more)
    tree = tree.copy_and_resolve_references().unlock()
    del tree.run.flops  # which may be written as an integer: a ConfigDict would refuse another type
    tree.run.update(flops=0.0, steps=int(MOST_STEPS))
    config = resolve(tree, _pays(budget), *more)
    tree.run.steps = round(budget / full_step(config))
    tree.run.eval_every = min(tree.run.eval_every, tree.run.steps)
    tree.optim.warmup = min(tree.optim.warmup, tree.run.steps // 10)
    return resolve(tree, *more)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


@reads("run")
def _two_budgets(config: Config) -> Iterator[str]:
    """A check for `config.build`: of steps and FLOPs, one decides how long a run is."""
    if config.run.flops > 0 and config.run.steps > 0:
        yield (
            f"run.flops: {config.run.flops:g}, but run.steps is {config.run.steps}: two budgets of one run; set one to "
            "0"
        )


def _pays(budget: float) -> Check:
    """A check for `config.build`: a budget of FLOPs pays for a step at least, and for no more than `MOST_STEPS`."""

    @reads("streams", "towers", "attn", "ffn", "model", "objective", "data")
    def check(config: Config) -> Iterator[str]:
        step = full_step(config)
        if step <= 0:
            return  # a size is out of range, which is said
        if budget < step:
            rows = config.data.batch
            yield f"run.flops: {budget:g}; a step of {rows} rows takes {step:.3g}; raise it, or take a smaller model"
        elif budget / step > MOST_STEPS:
            steps = f"{budget / step:.1g}"
            yield f"run.flops: {budget:g}; pays for {steps} steps, and {MOST_STEPS:.0g} is the most; lower it"

    return check


def layers_share(stream: str, config: Config) -> float:
    """Of a stream that is seen by cross-attention: the share of the layers that have one."""
    L = max(config.model.layers, 1)
    return L // max(config.streams[stream].cross_every, 1) / L


def pairs(batch: "Batch", config: Config) -> int:
    """How many pairs of a host batch see each other in a layer, on average over layers: also by cross-attention."""
    total = visible_pairs({name: t for name, t in batch.items() if name not in config.crossed})
    for stream in config.crossed:
        total += crossed_pairs(batch, stream, config) * layers_share(stream, config)
    return round(total)


def crossed_pairs(batch: "Batch", stream: str, config: Config) -> int:
    """How many tokens of a host batch see how many of the stream's by a cross-attention: each the last unit before."""
    import numpy as np

    B = batch[stream].position.shape[0]
    T = sum(t.position.shape[1] for t in batch.values())
    rows = np.arange(B)[:, None]
    unit_BT, segment_BT, seen_BT = np.zeros((3, B, T), int)
    unit_BT[rows, batch[stream].position] = batch[stream].unit * (batch[stream].segment != 0)
    for name, t in batch.items():
        segment_BT[rows, t.position] = t.segment
        seen_BT[rows, t.position] = name not in config.crossed
    last_BT = np.maximum.accumulate(np.where(unit_BT > 0, np.arange(T)[None], -1), axis=1)
    there_BT = (seen_BT > 0) & (last_BT >= 0) & (segment_BT > 0)
    there_BT &= np.take_along_axis(segment_BT, last_BT, axis=1) == segment_BT
    sizes_BU = np.stack([np.bincount(row, minlength=unit_BT.max() + 1) for row in unit_BT])
    of_last_BT = np.take_along_axis(unit_BT, last_BT, axis=1)
    return int(np.where(there_BT, np.take_along_axis(sizes_BU, of_last_BT, axis=1), 0).sum())


def within_units(batch: "Batch", config: Config) -> dict[str, int]:
    """By stream that predicts states: how many pairs of tokens of a host batch are of one copy of a unit."""
    import numpy as np

    def pairs(t) -> int:
        unit_BC = np.where(np.asarray(t.segment) != 0, 2 * t.unit - t.private, 0)
        return sum(int((np.bincount(row)[1:] ** 2).sum()) for row in unit_BC)

    return {name: pairs(batch[name]) for name, s in config.streams.items() if s.predicts}


def contrasted(batch: "Batch", config: Config) -> int:
    """How many pairs of parts of a host batch a contrastive term compares."""
    import numpy as np

    if not config.contrasted_pairs:
        return 0

    def documents(t, row: int) -> set:
        is_real_C = np.asarray(t.segment)[row] != 0
        return {*zip(t.source[row][is_real_C].tolist(), t.doc_id[row][is_real_C].tolist(), strict=True)}

    sides = [batch[name] for name in config.objective.contrastive.pools]
    rows = range(sides[0].segment.shape[0])
    return sum(min(len(set.intersection(*(documents(t, r) for t in sides))), config.contrasted_pairs) for r in rows)


def visible_pairs(batch: "Batch") -> int:
    """How many (query, key) pairs of a host batch see each other (`batches.visible`), without the `[T, T]` mask."""
    import numpy as np

    def join(field):
        return np.concatenate([getattr(t, field) for t in batch.values()], axis=1)

    order = np.argsort(join("position"), axis=1)

    def sort(field):
        return np.take_along_axis(join(field), order, axis=1)

    total = 0
    for segment, span, private in zip(sort("segment"), sort("span"), sort("private"), strict=True):
        real = segment != 0
        segment = segment[real]
        span = span[real]
        public = ~private[real]
        total += _earlier(segment, public).sum()  # public keys at or before the query
        of_span = span != 0
        key = segment[of_span].astype(np.int64) * (span.max(initial=0) + 1) + span[of_span]
        size = np.unique(key, return_inverse=True, return_counts=True)
        total += (size[2][size[1]] - _earlier(key, public[of_span])).sum()  # the rest of its own span
    return int(total)


def _earlier(group: "np.ndarray", counts: "np.ndarray") -> "np.ndarray":
    """For each token, how many tokens that count lie at or before it in its group."""
    import numpy as np

    order = np.argsort(group, kind="stable")
    running = np.cumsum(counts[order])
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0]) if len(group) else np.zeros(0, int)
    before = np.repeat((running - counts[order])[starts], np.diff(np.r_[starts, len(group)]))
    result = np.empty(len(group), int)
    result[order] = running - before
    return result
