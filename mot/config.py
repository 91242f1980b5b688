"""The configuration: frozen dataclasses, and every check there is.

Users write `ml_collections.ConfigDict`s (configs/); `build` turns one into a `Config`, once and strictly. All faults
are reported together, each with its dotted key, the value, what is allowed and the remedy.
"""

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict


class ConfigError(ValueError):
    """A configuration that cannot be run; `faults` lists every reason."""

    def __init__(self, faults: Iterable[str]):
        self.faults = list(faults)
        count = f"{len(self.faults)} fault" + "s" * (len(self.faults) > 1)
        super().__init__(f"the configuration has {count}:\n" + "\n".join(f"  {fault}" for fault in self.faults))


@dataclass(frozen=True)
class Stream:
    """A kind of token. Discrete: ids `first_id .. first_id + ids - 1` of the one vocabulary."""

    modality: str  # what metrics report it under
    width: int  # D, the residual's; discrete streams share one
    ffn: int  # F, the hidden size of its FFN
    budget: int  # C, its tokens in each row
    longest: int  # its tokens in one document at most; text is split to fit, images are refused
    first_id: int
    ids: int
    loss_weight: float  # lambda


@dataclass(frozen=True)
class Towers:
    """Which tower (parameter set) serves each stream, by component; a tower is named by its first stream."""

    attn: dict[str, str]
    ffn: dict[str, str]
    norm: dict[str, str]


@dataclass(frozen=True)
class Model:
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    norm: str  # pre: x + f(norm(x)); post: x + norm(f(x)), the MoT paper's (Swin) form
    norm_eps: float
    qk_norm: str
    rope_theta: float
    tied: bool  # the head is the embedding
    scan: bool  # lax.scan over layers: flat compile time; unrolled is faster on CPU
    remat: str  # what backward recomputes: nothing, all but projections' results, whole blocks
    dtype: str  # of compute; parameters are float32
    attention: str
    seed: int


@dataclass(frozen=True)
class Objective:
    z_loss: float
    per: str  # Z: the weight of all tokens (Chameleon), or of each modality (Transfusion)
    chunk: int  # tokens of a row whose logits exist at once


@dataclass(frozen=True)
class Data:
    batch: int  # rows in a global batch
    seed: int
    lookahead: int  # documents that wait for a row where they fit
    shares: dict[str, int]  # source -> documents out of every sum(shares)


@dataclass(frozen=True)
class Rule:
    """For the parameters whose path holds a match; the first rule that matches counts."""

    match: str  # regular expression
    lr: float  # factor on the learning rate; 0 freezes
    decay: float  # decoupled weight decay


@dataclass(frozen=True)
class Optim:
    lr: float
    end_lr: float
    warmup: int
    schedule: str
    decay_steps: int  # wsd alone: length of the final decay
    beta1: float
    beta2: float
    eps: float
    clip: float  # of the global gradient norm
    accumulate: int  # microbatches in a step
    ema: float  # of the parameters; 0 = none
    patience: int  # steps in a row that may be skipped for a gradient that is not finite
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Run:
    root: str
    name: str
    steps: int
    eval_every: int
    eval_batches: int
    save_every: int
    keep: int  # checkpoints


@dataclass(frozen=True)
class Config:
    run: Run
    streams: dict[str, Stream]  # in the order of their ids
    towers: Towers
    model: Model
    objective: Objective
    data: Data
    optim: Optim

    def __post_init__(self):
        if faults := list(_value_faults(self, set())):
            raise ConfigError(faults)

    @property
    def vocab(self) -> int:
        return max(s.first_id + s.ids for s in self.streams.values())

    @property
    def length(self) -> int:
        """T, the tokens of a row."""
        return sum(s.budget for s in self.streams.values())

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.modality for s in self.streams.values()))


Check = Callable[[Any], Iterator[str]]


def build(tree: ConfigDict | Mapping, *more: Check) -> Config:
    """A ConfigDict, or a nested mapping, to a `Config`.

    `more` are checks that need rooms above this one (`optim.uncovered`). Raises `ConfigError` with all faults.
    """
    tree = tree.to_dict() if isinstance(tree, ConfigDict) else tree
    faults: list[str] = []
    sections = _fields(tree, Config, "", faults)
    broken = {name for name in sections if _touch(faults, {name})}
    if "streams" not in broken:  # ConfigDict sorts keys by name; the order of ids is the one with a meaning
        sections["streams"] = dict(sorted(sections["streams"].items(), key=lambda item: item[1].first_id))
    view = object.__new__(Config)  # not checked yet: `__post_init__` would raise at the first section that is broken
    vars(view).update(sections)
    faults += _value_faults(view, broken)
    if "optim" not in broken and not _touch(faults, {"streams", "towers", "model"}):
        for check in more:
            faults += check(view)
    if faults:
        raise ConfigError(faults)
    return Config(**sections)


def differences(old: Mapping, new: Mapping, path: str = "") -> list[str]:
    """`dotted.key: old -> new` wherever two configurations (as nested mappings) differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        join = lambda k: f"{path}.{k}" if path else str(k)
        return [d for k in keys for d in differences(old.get(k, "absent"), new.get(k, "absent"), join(k))]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


def _touch(faults: list[str], sections: set[str]) -> bool:
    """Is one of the faults in one of the sections?"""
    return any(re.split(r"[.:]", fault)[0] in sections for fault in faults)


def _fields(value, kind, path, faults) -> dict:
    """Every field of a dataclass, converted; None where there is a fault."""
    hints = typing.get_type_hints(kind)
    join = lambda key: f"{path}.{key}" if path else key
    for key in [k for k in value if k not in hints]:
        faults.append(f"{join(key)}: unknown key, value {value[key]!r}; allowed: {', '.join(hints)}; remove it")
    for key in [k for k in hints if k not in value]:
        faults.append(f"{join(key)}: missing; configs/base.py shows every key; add it")
    return {k: _convert(value[k], t, join(k), faults) if k in value else None for k, t in hints.items()}


def _convert(value, kind, path, faults):
    """`value` as type `kind`, or None with a fault."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            return _wrong(value, "a group of keys", path, faults)
        before = len(faults)
        fields = _fields(value, kind, path, faults)
        return kind(**fields) if len(faults) == before else None
    if origin is dict:
        if not isinstance(value, Mapping) or not value:
            return _wrong(value, "a group of keys with at least one entry", path, faults)
        return {str(k): _convert(v, args[1], f"{path}.{k}", faults) for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return _wrong(value, "a tuple", path, faults)
        return tuple(_convert(v, args[0], f"{path}[{i}]", faults) for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        return _wrong(value, f"of type {kind.__name__}", path, faults)
    if kind is float and not math.isfinite(value):
        return _wrong(value, "a finite number", path, faults)
    return value


def _wrong(value, allowed, path, faults):
    faults.append(f"{path}: {value!r} is {type(value).__name__}; must be {allowed}; give it such a value")


# --- values --------------------------------------------------------------------------------------------------------


def _value_faults(c, broken: set[str]) -> Iterator[str]:
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
