"""What was run: on what, where, when and by what, and what each architecture is."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from mot import optim
from mot.config import Config, depth

from . import match, runs
from .architectures import maps
from .runs import TrainedRun

Groups = dict[str, list[TrainedRun]]
Values = Callable[[list[TrainedRun]], list[str | None]]  # of each run of a group
FAR = 0.1  # of the held-out loss: how far below it training loss ends where a page says "overfits"


class Told(NamedTuple):
    """A value, and the groups (some of their seeds, where a group's runs differ) that have it; none where all do."""

    value: str
    of: tuple[tuple[str, str], ...] = ()  # group, and which of its seeds


def facts(groups: Groups) -> list[tuple[str, list[Told]]]:
    """What was run: a value once where all runs have it, else each value with the groups that do."""
    every = [run for group in groups.values() for run in group]
    if not every:
        return []
    found = [(what, _by_value(groups, of)) for what, of in FACTS.items()]
    started = sorted(run.started["time"] for run in every if run.started.get("time"))
    begun = dict.fromkeys(_time(time) for time in [*started[:1], *started[-1:]])
    found.append(("first begun, last begun" if len(begun) > 1 else "begun", [Told(", ".join(begun))]))
    return [(what, [t if t.value else Told("not recorded", t.of) for t in told]) for what, told in found if told]


def _by_value(groups: Groups, of: Values) -> list[Told]:
    """Empty where a fact does not apply to any run: there `of` gives None."""
    by_value: dict[str, list[tuple[str, TrainedRun]]] = {}
    for label, group in groups.items():
        for run, value in zip(group, of(group), strict=True):
            if value is not None:
                by_value.setdefault(value, []).append((label, run))
    if len(by_value) <= 1:
        return [Told(value) for value in by_value]
    return [Told(value, _named(groups, having)) for value, having in by_value.items()]


def _named(groups: Groups, having: Sequence[tuple[str, TrainedRun]]) -> tuple[tuple[str, str], ...]:
    named = []
    for label in dict.fromkeys(label for label, _ in having):
        seeds = [run.seeds[0] for of, run in having if of == label]
        whole = len(seeds) == len(groups[label])
        named.append((label, "" if whole else f"{_plural(len(seeds), 'seed')} {_listed(seeds)}"))
    return tuple(named)


def _plural(n: int, word: str) -> str:
    return word if n == 1 else f"{word}s"


def _listed(values) -> str:
    return ", ".join(str(value) for value in values)


def _each(of: Callable[[TrainedRun], str | None]) -> Values:
    def values(group: list[TrainedRun]) -> list[str | None]:
        return [of(run) for run in group]

    return values


def _seeds(group: list[TrainedRun]) -> list[str | None]:
    return [f"{len(group)} ({_listed(sorted(run.seeds[0] for run in group))})"] * len(group)


def _time(iso: str) -> str:
    """A time of day as people write it; as it stands where it is none."""
    try:
        return datetime.fromisoformat(iso).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return iso


def _data(run: TrainedRun) -> str:
    return f"{_listed(run.config.data.sources)} (digest {run.digest})" if run.digest else ""


def _documents(run: TrainedRun) -> str | None:
    counts = [size["documents"] for size in _sizes(run).values()]
    if not counts:
        return None
    training, held_out = ("an endless stream of them" if n is None else f"{n:,}" for n in counts)
    return f"{training} for training, {held_out} held out"


def _sizes(run: TrainedRun) -> dict[str, dict]:
    """Documents and tokens of the training and the held-out data; empty where they were not recorded."""
    return {split: size for split, size in run.started.get("size", {}).items() if split in ("training", "held_out")}


def _tokens(group: list[TrainedRun]) -> list[str | None]:
    """Means over seeds: batches of other documents hold a few tokens more or less."""
    return [", ".join(f"{n:,.0f} of {m}" for m, n in _means(map(seen, group)).items())] * len(group)


def _means(counts: Iterable[dict[str, float]]) -> dict[str, float]:
    found = list(counts)
    return {key: sum(one[key] for one in found) / len(found) for key in found[0] if all(key in one for one in found)}


def seen(run: TrainedRun) -> dict[str, int]:
    """Tokens by modality that a run has trained on."""
    counts = {m: run.series("train", f"tokens/{m}")[1] for m in run.config.modalities}
    return {m: int(n[-1]) for m, n in counts.items() if len(n)}


def passes(run: TrainedRun) -> dict[str, float]:
    """By modality, how often a run has seen its training data; empty where their size was not recorded."""
    there = _sizes(run).get("training", {}).get("tokens") or {}
    return {m: n / there[m] for m, n in seen(run).items() if there.get(m)}


def _passes(group: list[TrainedRun]) -> list[str | None]:
    return [", ".join(f"{n:.2g} over {m}" for m, n in _means(map(passes, group)).items()) or None] * len(group)


def _batch(run: TrainedRun) -> str:
    return f"{run.config.data.batch} rows of {run.config.length:,} tokens"


def _rate(run: TrainedRun) -> str:
    return f"{run.config.optim.lr:g}, {run.config.optim.schedule} schedule"


def _optimiser(run: TrainedRun) -> str:
    return optim.told_name(run.config)


def _size(run: TrainedRun) -> str:
    widths = {name: stream.width for name, stream in run.config.streams.items()}
    layers = f"{run.config.model.layers} {_plural(run.config.model.layers, 'layer')}"
    if len(set(widths.values())) == 1:
        return f"{layers} of width {next(iter(widths.values()))}"
    return f"{layers}; widths {', '.join(f'{width} ({name})' for name, width in widths.items())}"


def _machine(run: TrainedRun) -> str:
    s = run.started
    device = f"{s.get('devices', '?')} x {s['device_kind']}" if "device_kind" in s else ""
    return ", ".join(filter(None, [s.get("host"), s.get("cpu"), device]))


def _peak(run: TrainedRun) -> str:
    s = run.started
    measured = f", measured {_time(s['matmul_peak_measured'])}" if s.get("matmul_peak_measured") else ""
    return f"{s['matmul_peak'] / 1e9:,.1f} GFLOP/s{measured}" if s.get("matmul_peak") else ""


def _code(run: TrainedRun) -> str:
    s = run.started
    if not s.get("version"):
        return ""
    commit = f", commit {s['commit']}" + " with changes" * bool(s.get("dirty")) if s.get("commit") else ""
    return f"mot {s['version']}{commit}; jax {s.get('jax', '?')}, Python {s.get('python', '?')}"


def _steps(run: TrainedRun) -> str:
    return f"{run.config.run.steps:,}"


def _command(run: TrainedRun) -> str:
    return run.started.get("command") or ""


COMMAND = "command"
FACTS: dict[str, Values] = {
    "data": _each(_data),
    "documents": _each(_documents),
    "seeds of each architecture": _seeds,
    "steps": _each(_steps),
    "tokens that a run saw": _tokens,
    "passes over the training data": _passes,
    "batch": _each(_batch),
    "optimiser": _each(_optimiser),
    "learning rate": _each(_rate),
    "size": _each(_size),
    "machine": _each(_machine),
    "fastest matmul on the machine": _each(_peak),
    "code": _each(_code),
    COMMAND: _each(_command),
}


def overfits(groups: Groups) -> list[str]:
    """A sentence for each group and modality whose training loss ends far below its held-out loss.

    Of a model whose routers look at later tokens nothing is said: its training loss is low for that reason.
    """
    found = []
    for label, group in groups.items():
        for modality in runs.modalities(groups) if group[0].config.causal else []:
            gaps = [gap for run in group if (gap := _gap(run, modality)) is not None]
            if gaps and (gap := sum(gaps) / len(gaps)) > FAR:
                n = passes(group[0]).get(modality)
                after = f" after {n:.2g} passes over the data" if n else ""
                far = f"its training loss ends {100 * gap:.0f} % below its held-out loss"
                found.append(f"{label} overfits {modality}: {far}{after}")
    return found


def _gap(run: TrainedRun, modality: str) -> float | None:
    """How far below the last held-out loss the smoothed training loss ends, as a share of it."""
    trained, held_out = (run.curve(kind, modality, "step") for kind in ("train", "eval"))
    if not trained or not held_out or held_out.loss[-1] <= 0:
        return None
    return 1 - float(match.smooth(trained, match.HALF_LIFE).loss[-1] / held_out.loss[-1])


PLAIN = {
    "dense": "one set of parameters serves all modalities",
    "mot": "each modality has its own attention projections, FFN and norms; they meet in one attention",
    "mot_ffn": "each modality has its own FFN; attention projections and norms are shared",
    "mot_attn_ffn": "each modality has its own attention projections and FFN; norms are shared",
    "mot_ends": "each modality has its own parameters in the first and the last layers; those between are shared",
    "mot_middle": "the first and the last layers are shared; between them each modality has its own parameters",
}
COMPONENTS = {"attn": "attention projections", "ffn": "FFN", "norm": "norms"}


class Drawing(NamedTuple):
    groups: list[str]
    line: str
    components: list[tuple[str, list[tuple[str, str]]]]  # name, and of each tower its streams and its experts


def architectures(groups: Groups) -> list[Drawing]:
    """Of each architecture what it is in a line and which streams share a tower; groups that are equal have one."""
    drawings: dict[str, Drawing] = {}
    for label, group in groups.items():
        config = group[0].config
        components = [(name, _towers(config, component)) for component, name in COMPONENTS.items()]
        line = PLAIN.get(maps(config), "towers as drawn")
        if any(note for _, towers in components for _, note in towers):
            line += "; where experts are named, a router learns which of them serves a token"
        elif maps(config) == "dense":
            line += ": an ordinary transformer"
        drawings.setdefault(repr(components), Drawing([], line, components)).groups.append(label)
    return list(drawings.values())


def shared(groups: Groups) -> str:
    """What all architectures share, whatever their towers."""
    streams = [s for group in groups.values() for run in group for s in run.config.streams.values()]
    if any(s.latent for s in streams):
        return (
            "All streams of ids share the embedding and the head; a stream of vectors has projections of its own there."
        )
    return "In every architecture all streams share the embedding and the head."


def _towers(config: Config, component: str) -> list[tuple[str, str]]:
    experts = config.component(component).experts
    order = sorted(config.streams, key=lambda s: (config.streams[s].modality != "text", s))
    found = []
    for layers, mapping in depth.parts(config.component(component).written).items():
        towers: dict[str, list[str]] = {}
        for stream in order:
            towers.setdefault(mapping[stream], []).append(stream)
        where = layers and f" in layers {layers}"
        found += [(" + ".join(streams) + where, _experts(experts.get(t))) for t, streams in towers.items()]
    return found


def _experts(sets) -> str:
    if sets is None or not sets.experts:
        return ""
    return f"{sets.experts} experts, {sets.active} active"
