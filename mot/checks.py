"""Every check of a configuration's values. Each yields faults: dotted key, value, what is allowed, remedy."""

import re
from collections.abc import Iterator


def faults(c, broken: set[str]) -> Iterator[str]:
    """The faults of every check whose sections were readable."""
    for check, needs in (
        (_run, {"run"}),
        (_streams, {"streams"}),
        (_towers, {"streams", "towers"}),
        (_model, {"model"}),
        (_objective, {"objective"}),
        (_data, {"data"}),
        (_optim, {"optim"}),
        (_steps, {"run", "optim"}),
        (_accumulate, {"data", "optim"}),
    ):
        if not needs & broken:
            yield from check(c)


def _positive(path, section, *keys) -> Iterator[str]:
    for key in keys:
        if (value := getattr(section, key)) <= 0:
            yield f"{path}.{key}: {value}; must be above 0; raise it"


def _at_least_0(path, section, *keys) -> Iterator[str]:
    for key in keys:
        if (value := getattr(section, key)) < 0:
            yield f"{path}.{key}: {value}; must be 0 or more; raise it"


def _choice(path, section, key, *allowed) -> Iterator[str]:
    if (value := getattr(section, key)) not in allowed:
        yield f"{path}.{key}: {value!r}; allowed: {', '.join(allowed)}; choose one"


NAME = r"[A-Za-z0-9][A-Za-z0-9._=,+-]*"


def _run(c):
    yield from _positive("run", c.run, "steps", "eval_every", "eval_batches", "save_every", "keep")
    if not re.fullmatch(NAME, c.run.name):
        yield f"run.name: {c.run.name!r}; must be one folder name matching {NAME}; rename the run"
    if not c.run.root:
        yield "run.root: ''; must be a folder; give one"


def _streams(c):
    for name, s in c.streams.items():
        path = f"streams.{name}"
        yield from _positive(path, s, "width", "ffn", "budget", "longest", "ids")
        yield from _at_least_0(path, s, "first_id", "loss_weight")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            yield f"{path}: a stream's name is lower-case letters, digits and _; rename it"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", s.modality):
            yield f"{path}.modality: {s.modality!r}; must be lower-case letters, digits and _; rename it"
        if s.longest > s.budget:
            yield (
                f"{path}.budget: {s.budget} tokens do not hold this stream's longest document, {path}.longest = "
                f"{s.longest}; raise the budget to at least {s.longest}"
            )
    names = list(c.streams)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            x, y = c.streams[a], c.streams[b]
            if x.width != y.width:
                yield (
                    f"streams.{b}.width: {y.width}, but streams.{a}.width is {x.width}; discrete streams share "
                    "embedding and head, so one width; set both alike"
                )
            if x.modality == y.modality and x.loss_weight != y.loss_weight:
                yield (
                    f"streams.{b}.loss_weight: {y.loss_weight}, but streams.{a}'s is {x.loss_weight} and both are of "
                    f"modality {x.modality}, which has one weight; set both alike"
                )
            if x.first_id < y.first_id + y.ids and y.first_id < x.first_id + x.ids:
                yield (
                    f"streams.{b}.first_id: ids {y.first_id}..{y.first_id + y.ids - 1} overlap streams.{a}'s "
                    f"{x.first_id}..{x.first_id + x.ids - 1}; move first_id to a free range"
                )


def _towers(c):
    names = list(c.streams)
    for component in ("attn", "ffn", "norm"):
        towers, path = getattr(c.towers, component), f"towers.{component}"
        for stream in [s for s in towers if s not in names]:
            yield f"{path}.{stream}: {towers[stream]!r}; no such stream; allowed: {', '.join(names)}; remove the key"
        for stream in [s for s in names if s not in towers]:
            yield f"{path}.{stream}: missing; every stream needs a tower; add it (a stream's own name gives it its own)"
        known = {s: t for s, t in towers.items() if s in names}
        for stream, tower in known.items():
            sharers = [s for s in names if known.get(s) == tower]
            if tower not in names:
                yield f"{path}.{stream}: {tower!r}; a tower is named by a stream: {', '.join(names)}; choose one"
            elif sharers[0] != tower:
                yield (
                    f"{path}.{stream}: {tower!r}; a tower is named by the first stream that maps to it, here "
                    f"{sharers[0]!r}; write {sharers[0]!r}"
                )
            elif component == "ffn" and c.streams[stream].ffn != c.streams[tower].ffn:
                yield (
                    f"streams.{stream}.ffn: {c.streams[stream].ffn}, but it shares its FFN tower with {tower}, whose "
                    f"ffn is {c.streams[tower].ffn}; set both alike or untie {path}.{stream}"
                )


def _model(c):
    m = c.model
    yield from _positive("model", m, "layers", "heads", "kv_heads", "head_size", "norm_eps", "rope_theta")
    yield from _at_least_0("model", m, "seed")
    yield from _choice("model", m, "norm", "pre", "post")
    yield from _choice("model", m, "qk_norm", "none", "rms", "layer")
    yield from _choice("model", m, "remat", "none", "dots", "block")
    yield from _choice("model", m, "dtype", "float32", "bfloat16")
    yield from _choice("model", m, "attention", "chunked", "reference")
    if m.kv_heads > 0 and m.heads % m.kv_heads:
        yield (
            f"model.heads: {m.heads} query heads do not divide among model.kv_heads = {m.kv_heads}; "
            "make heads a multiple of kv_heads"
        )
    if m.head_size % 2:
        yield f"model.head_size: {m.head_size}; RoPE turns pairs, so it must be even; add or take one"


def _objective(c):
    yield from _at_least_0("objective", c.objective, "z_loss")
    yield from _positive("objective", c.objective, "chunk")
    yield from _choice("objective", c.objective, "per", "all", "modality")


def _data(c):
    yield from _positive("data", c.data, "batch", "lookahead")
    yield from _at_least_0("data", c.data, "seed")
    for source, share in c.data.shares.items():
        if share < 0:
            yield f"data.shares.{source}: {share}; must be 0 or more; raise it"
    if sum(c.data.shares.values()) <= 0:
        yield f"data.shares: {dict(c.data.shares)}; at least one source must have a share above 0; raise one"


def _optim(c):
    o = c.optim
    yield from _positive("optim", o, "lr", "eps", "clip", "accumulate", "patience")
    yield from _at_least_0("optim", o, "end_lr", "warmup", "decay_steps")
    yield from _choice("optim", o, "schedule", "cosine", "linear", "wsd")
    for key in ("beta1", "beta2", "ema"):
        if not 0 <= (value := getattr(o, key)) < 1:
            yield f"optim.{key}: {value}; must be at least 0 and below 1; change it"
    if o.end_lr > o.lr > 0:
        yield f"optim.end_lr: {o.end_lr} is above optim.lr = {o.lr}; the rate decays; lower end_lr"
    for i, rule in enumerate(o.rules):
        yield from _at_least_0(f"optim.rules[{i}]", rule, "lr", "decay")
        try:
            re.compile(rule.match)
        except re.error as error:
            yield f"optim.rules[{i}].match: {rule.match!r} is no regular expression ({error}); mend it"


def _steps(c):
    if c.run.steps < c.optim.warmup:
        yield (
            f"run.steps: {c.run.steps} is less than optim.warmup = {c.optim.warmup}; the rate would never reach its "
            "peak; raise steps or lower warmup"
        )
    elif c.optim.schedule == "wsd" and not 0 < c.optim.decay_steps <= c.run.steps - c.optim.warmup:
        yield (
            f"optim.decay_steps: {c.optim.decay_steps}; wsd needs 1 to {c.run.steps - c.optim.warmup} (run.steps less "
            "optim.warmup); change it"
        )


def _accumulate(c):
    if c.optim.accumulate > 0 and c.data.batch % c.optim.accumulate:
        yield (
            f"data.batch: {c.data.batch} rows do not divide into optim.accumulate = {c.optim.accumulate} microbatches; "
            "make batch a multiple of it"
        )
