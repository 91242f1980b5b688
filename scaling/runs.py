"""Run directories, read back: what each run is, whether its numbers may be averaged, and tidy tables of them all."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from flax.traverse_util import flatten_dict

from mot import checkpoint
from mot.config import Config, differences
from mot.config.varied import varies
from mot.errors import reason
from mot.files import as_path, read_appended
from mot.model import flops
from mot.runs import goodput, probed, rundir, swept

from . import architectures, match
from .match import Curve, Slope

# What may differ between two runs that are compared: keys that change no result, seeds, and the architecture.
APART = (
    "run.root",
    "run.name",
    "run.role",
    *(key for key in rundir.HOW_OFTEN if key != "run.eval_every"),  # which decides where curves have points
    "model.seed",
    "data.seed",
)
ARCHITECTURE = ("towers.", "attn.", "ffn.", "model.dense_layers", "model.sparse_every", "model.dispatch", "mesh.")


def tuned(key: str) -> bool:
    """True of what each architecture may have at its own best: the optimiser's numbers, and no weight of a loss."""
    return key.startswith("optim.") and varies(key)


COSTS = {"step": "steps", "flops": "FLOPs", "seconds": "seconds"}
KINDS = {"train": "training", "eval": "held-out"}
HALF_LIVES = (0.01, 0.02, 0.04)


class TrainedRun(NamedTuple):
    path: Path
    config: Config
    rows: list[dict]
    faults: tuple[str, ...]  # why it is left out of every mean and slope; a sound run has none
    notes: tuple[str, ...]  # what else a reader should know
    plain: dict  # its configuration as JSON holds it, which every comparison reads

    @property
    def arch(self) -> str:
        return architectures.name(self.config)

    @property
    def seeds(self) -> tuple[int, int]:
        return self.config.model.seed, self.config.data.seed

    @property
    def digest(self) -> str | None:
        """Of its training data."""
        return next((str(row["data"]) for row in self.rows if row.get("event") == "start" and "data" in row), None)

    @property
    def started(self) -> dict:
        """Its newest start: what made it, where and when; empty where it was not recorded."""
        return next((row for row in reversed(self.rows) if row.get("event") == "start"), {})

    @property
    def wall(self) -> dict[str, float]:
        """Seconds of all its starts by kind (`goodput.KINDS`), when it was saved last; empty where none recorded it."""
        split = next((row for row in reversed(self.rows) if "wall/step" in row), {})
        return {kind: float(split.get(f"wall/{kind}", 0.0)) for kind in goodput.KINDS if split}

    @property
    def trained(self) -> list[str]:
        """The modalities whose loss has a weight: the others' tokens are read, and train nothing."""
        weighed = {s.modality for s in self.config.streams.values() if s.loss_weight and s.objective != "none"}
        return [modality for modality in self.config.modalities if modality in weighed]

    @property
    def is_joint(self) -> bool:
        """Does it train all modalities that have an objective?"""
        return set(self.trained) == {s.modality for s in self.config.streams.values() if s.objective != "none"}

    @property
    def probes(self) -> list[dict]:
        """The rows of probes.jsonl, `step`, `what` and numbers by name, in order; [] where there is none."""
        return _probes(self.path)[0]

    def series(self, kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of the rows that have the key."""
        points = [(row["step"], row[key]) for row in self.rows if row["kind"] == kind and key in row]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps), np.array(values, float)

    def curve(self, kind: str, modality: str, cost: str) -> Curve | None:
        """The loss along steps, FLOPs or seconds; None where it has too few values to be one, no cost, or no weight.

        `modality` may be MODALITY/SOURCE. The held-out loss of a model whose routers look at later tokens is the causal
        one.
        """
        if modality.partition("/")[0] not in self.trained:
            return None
        key = f"loss/{modality}" if kind == "train" or self.config.causal else f"causal_loss/{modality}"
        rows = [row for row in self.rows if row["kind"] == kind and np.isfinite(float(row.get(key, "nan")))]

        def column(k):
            return np.array([float(row.get(k, 0)) for row in rows])

        curve = Curve(column("step"), column(cost), column(key))
        return curve if len(rows) > 1 and curve.cost[-1] > 0 else None


class SlopeKey(NamedTuple):
    """What a slope is of: a group against dense."""

    group: str
    modality: str
    kind: str
    cost: str
    half_life: float
    rates: str = "equal"  # "best": each architecture at the learning rate that served it best


class Tables(NamedTuple):
    """Tidy tables: a row a run; a row a (run, kind, step, modality); a row a slope."""

    runs: pd.DataFrame
    losses: pd.DataFrame
    slopes: pd.DataFrame


def read(path: Path | str) -> TrainedRun:
    """A run directory; raises `UserError` where it is none, or is damaged."""
    path = as_path(path)
    config, rows = rundir.config_of(path), rundir.read_metrics(path)
    trained = [row for row in rows if row["kind"] == "train"]
    steps = max((row["step"] for row in trained), default=0)
    faults, notes = [], []
    ends = [row["event"] for row in rows if row.get("event") in ("start", "diverged")]
    if ends[-1:] == ["diverged"]:  # one that was resumed after it has gone on
        faults.append(f"diverged at step {steps}")
    elif not steps:
        faults.append("no training steps recorded")
    elif steps < config.run.steps:
        faults.append(f"unfinished: step {steps:,} of {config.run.steps:,}")
    needed = ("flops", "seconds", "step_seconds", "tokens_per_s", "mfu", *(f"tokens/{m}" for m in config.modalities))

    def known(value):
        return isinstance(value, (int, float)) and value >= 0

    for row in [row for row in rows if row.get("event") == "accepted"]:
        faults.append(f"at step {row['step']} it went on with other {', '.join(row['kinds'])} (--accept)")
    if absent := [key for key in needed if not all(known(row.get(key)) for row in trained)]:
        faults.append(f"metrics.jsonl has rows without {', '.join(absent)}")
    elif not all(sum(row[f"tokens/{m}"] for m in config.modalities) for row in trained):
        faults.append("metrics.jsonl has steps that trained on no token")
    for kind, what in (("train", "steps"), ("eval", "evaluations")):
        order = [row["step"] for row in rows if row["kind"] == kind]
        if order != sorted(set(order)):
            faults.append(f"metrics.jsonl has {what} twice or out of order")
    if below := [row["step"] for row in rows if any(x < 0 for x in _losses_of(row))]:
        faults.append(f"metrics.jsonl has losses below 0, first at step {below[0]:,}: no loss of mot is")
    if not np.isfinite([x for row in rows[-1:] for x in _losses_of(row)]).all():
        faults.append(f"its losses are not finite at the end, step {steps:,}")
    file = path / "metrics.jsonl"
    if file.exists() and (content := read_appended(file)) and not content.endswith(b"\n"):
        notes.append("metrics.jsonl was cut mid-line; the cut line is left out")
    if skipped := sum(row.get("event") == "skipped" for row in rows):
        notes.append(f"{skipped} steps were not finite and were skipped")
    if not checkpoint.steps(path / "checkpoints"):
        notes.append("no checkpoints, so no samples can be drawn")
    notes += _probes(path)[1]
    return TrainedRun(path, config, rows, tuple(faults), tuple(notes), rundir.plain(config))


def _losses_of(row: dict) -> list[float]:
    return [float(x) for key, x in row.items() if key.startswith(("loss", "causal_loss"))]


def _probes(path: Path) -> tuple[list[dict], list[str]]:
    """The rows of probes.jsonl, and what must be said of it: a line that is cut or damaged is left out."""
    file = path / "probes.jsonl"
    if not file.exists():
        return [], []
    try:
        lines = read_appended(file).split(b"\n")
    except OSError as error:
        return [], [f"probes.jsonl cannot be read: {reason(error)}"]
    rows, notes = [], []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            rows.append(probed.parsed(line))
        except probed.NOT_OURS as error:
            notes.append(f"probes.jsonl, line {number} is left out: it is cut or damaged ({error!r:.80})")
    return rows, notes


def find(patterns: Sequence[str | Path]) -> list[TrainedRun]:
    """The runs that paths, globs and sweeps' folders name, each once, in order.

    Other data than most runs of the same sources have is a fault; runs of other sources are never compared. A folder
    that is no run raises `UserError`, and so does whatever names no run at all; files among runs (a shell's `runs/*`
    names the report beside them) are passed over.
    """
    runs = [read(path) for path in swept.named(patterns)]
    digests: dict[tuple, Counter] = {}
    for run in runs:
        digests.setdefault(_sources(run), Counter()).update([run.digest] if run.digest else [])
    for i, run in enumerate(runs):
        usual = next((digest for digest, _ in digests[_sources(run)].most_common(1)), None)
        if run.digest not in (None, usual):
            fault = f"trained on other data: digest {run.digest}, most have {usual}"
            runs[i] = run._replace(faults=(*run.faults, fault))
    first: dict[tuple, TrainedRun] = {}
    for i, (label, run) in enumerate(zip(names(runs), runs, strict=True)):
        before = run if run.faults else first.setdefault((label, run.seeds), run)
        if before is not run and before.config.optim.lr == run.config.optim.lr:
            runs[i] = run._replace(faults=(f"the same architecture and seeds as {before.path}: no further evidence",))
    return runs


def _sources(run: TrainedRun) -> tuple:
    """The names of what a run read: runs of other ones have another digest by design."""
    return tuple(sorted(run.config.data.sources))


def load(*patterns: str | Path) -> Tables:
    """The tables of `load("runs/*")`, or of a sweep's folder, `load("runs/loo")`, for a notebook.

    All is read from run directories. Names in angle brackets stand for a modality, a stream, a source or a kind.

    `runs`, a row a run:

    run                        its folder
    group, arch                what the report calls its group and its architecture; from `config.json`
    model_seed, data_seed      `model.seed` and `data.seed`
    faults                     why it is in no mean, slope or verdict, with "; " between; empty where it is sound
    notes                      what else a reader should know
    data                       digest of the training data; the start in `metrics.jsonl`
    steps                      the last step that was trained
    parameters                 how many in all (`mot.model.flops.total_parameters`)
    active/<stream>            parameters that a token of the stream meets
    flops                      model FLOPs of the whole run; the last step's row
    flops_per_token            those by the tokens of all modalities
    seconds                    s in steps, without compiling, evaluating and saving; the last step's row
    step_seconds               s of a step, median over steps
    tokens_per_s               real tokens a second, all devices together, median over steps
    mfu                        model FLOPs of a step by its time and the matmul peak, 0 to 1, median over steps
    matmul_peak                FLOP/s of the machine's fastest matmul; matmul_peak_measured: when, ISO 8601
    lr                         `optim.lr`
    grad_norm, grad_norm_last  of the whole gradient before clipping: median over steps, and of the last
    fill/<stream>              fraction of the stream's budget that tokens filled, mean over steps
    wall/<kind>                s of wall-clock time by kind (`mot.runs.goodput.KINDS`), all starts together
    held_out/loss...           the last held-out losses, of all, by modality and source: nats of ids, squared errors of
                               vectors; the last row of kind eval
    held_out/causal_loss...    the same by routers that see no later tokens
    held_out/bits_per_byte...  bits per byte of text, by source
    <dotted key>               each key of the configuration in which the runs differ

    `losses`, a row a (run, kind, step, modality):

    run, group, arch, model_seed  as above
    kind                       train (of that step's batch, before its update) or eval (held out)
    step                       batches consumed
    flops, seconds             model FLOPs and s in steps, so far
    modality, loss             nats of ids, squared errors of vectors

    `slopes`, a row a matching slope (`scaling.match`, 2411.04996) of a group against dense:

    group, modality            of what
    kind                       train or eval
    cost                       what is counted: step, flops or seconds
    half_life                  of the smoothing, as a fraction of the step at hand
    rates                      equal: at one learning rate; best: each architecture at its own best
    value                      the group's cost by dense's, for dense's loss: less is better; a geometric mean
    bound                      "" or the true value is greater (">") or less ("<"); "?": both, by seed
    low, high                  the 95 % interval over pairs of equal seeds; NaN with one pair
    seeds                      pairs of runs
    points                     of dense's curve that were matched, the fewest of all pairs
    bounded                    pairs of which a bound alone is known
    """
    runs = find(patterns)
    return tables(runs, slopes(sound(runs)))


def tables(runs: list[TrainedRun], slopes: dict[SlopeKey, Slope]) -> Tables:
    labels, differing = names(runs), varied(runs)
    return Tables(
        pd.DataFrame([_summary(run, label) | differing[run.path] for run, label in zip(runs, labels, strict=True)]),
        pd.DataFrame([row for run, label in zip(runs, labels, strict=True) for row in _losses(run, label)]),
        pd.DataFrame([(*key, *slope) for key, slope in slopes.items()], columns=[*SlopeKey._fields, *Slope._fields]),
    )


def varied(runs: list[TrainedRun]) -> dict[Path, dict[str, object]]:
    """By run, the value of each dotted key in which the runs' configurations differ; None where a run lacks it."""
    flat = {run.path: flatten_dict(run.plain, sep=".") for run in runs}
    keys = dict.fromkeys(key for one in flat.values() for key in one)
    shown = {key: {path: one.get(key) for path, one in flat.items()} for key in keys if not key.startswith("run.")}
    different = [key for key, values in shown.items() if len({repr(value) for value in values.values()}) > 1]
    return {path: {key: shown[key][path] for key in different} for path in flat}


def names(runs: list[TrainedRun]) -> list[str]:
    """Each run's group: its architecture, and what tells the groups of one architecture apart.

    That is their learning rate where it does, and their name without the seed where it does not.
    """
    groups = [(run.arch, _without_seed(run), run.config.optim.lr) for run in runs]
    groups_of = Counter(arch for arch, *_ in set(groups))
    rates_of = Counter(arch for arch, _ in {(arch, rate) for arch, _, rate in groups})
    labels = []
    for arch, name, rate in groups:
        if groups_of[arch] == 1:
            labels.append(arch)
        elif groups_of[arch] == rates_of[arch]:
            labels.append(f"{arch} (rate {rate:g})")
        else:
            labels.append(arch if name == arch else f"{arch} ({name})")
    return labels


def _without_seed(run):
    """Its name, wherever in it the seed stands: a sweep joins names in the order of its products."""
    return re.sub(r"(?<=.)-seed\d+(?=-|$)", "", run.config.run.name)


def grouped(runs: list[TrainedRun]) -> dict[str, list[TrainedRun]]:
    """Runs by group, dense first."""
    result: dict[str, list[TrainedRun]] = {}
    for label, run in sorted(zip(names(runs), runs, strict=True), key=lambda x: (x[1].arch != "dense", x[0])):
        result.setdefault(label, []).append(run)
    return result


def archs(runs: Sequence[TrainedRun]) -> list[str]:
    """Architectures of runs, each once, dense first."""
    return sorted({run.arch for run in runs}, key=_dense_first)


def _dense_first(arch: str) -> tuple[bool, str]:
    return arch != "dense", arch


def sound(runs: list[TrainedRun]) -> dict[str, list[TrainedRun]]:
    """The groups of runs that may be averaged."""
    return {label: whole for label, group in grouped(runs).items() if (whole := [r for r in group if not r.faults])}


def loads(run: TrainedRun) -> dict:
    """`{component/tower: {modality: [layer][expert]}}` of a run's last evaluation; empty where it has no experts."""
    return next((row["experts"] for row in reversed(run.rows) if row["kind"] == "eval" and "experts" in row), {})


def modalities(groups: dict[str, list[TrainedRun]]) -> list[str]:
    return list(dict.fromkeys(m for group in groups.values() for run in group for m in run.config.modalities))


def unit(groups: dict[str, list[TrainedRun]], modality: str) -> str:
    """What the losses of a modality are counted in."""
    streams = [s for group in groups.values() for run in group for s in run.config.streams.values()]
    units = ["squared error" if s.latent else "nats" for s in streams if s.modality == modality]
    return " or ".join(sorted(set(units)))


def comparable(a: TrainedRun, b: TrainedRun, each_at_its_best: bool = False) -> list[str]:
    """In what, other than architecture, seeds and what is `tuned` where each is at its best, two runs' configurations
    differ."""
    unlike = [name for name in a.plain if a.plain[name] != b.plain[name]]  # few sections, and the rest takes long
    different = differences({name: a.plain[name] for name in unlike}, {name: b.plain[name] for name in unlike})
    left = [d for d in different if not d.startswith((*APART, *ARCHITECTURE))]
    return [d for d in left if not (each_at_its_best and tuned(d.partition(":")[0]))]


def partners(
    groups: dict[str, list[TrainedRun]],
    label: str,
    dense: list[TrainedRun] | None = None,
    each_at_its_best: bool = False,
) -> tuple[list[tuple[TrainedRun, TrainedRun]], str]:
    """Pairs (dense, other) of equal seeds that differ in nothing but towers; and why there are none.

    `dense` are the runs to choose from, else all dense ones; `each_at_its_best`: what is `tuned` may differ too.
    """
    if dense is None:
        dense = [run for group in groups.values() for run in group if run.arch == "dense"]
    if not dense:
        return [], "no dense partner: no faultless run of a dense model"
    every = list(product(groups[label], dense))
    same_seed = [(o, d) for o, d in every if d.seeds == o.seeds]  # first: to compare two runs takes some milliseconds
    pairs = {o.path: (d, o) for o, d in same_seed if not comparable(d, o, each_at_its_best)}
    if pairs:
        return list(pairs.values()), ""
    if any(not comparable(d, o, each_at_its_best) for o, d in every):
        return [], "no dense partner with the same seeds"
    return [], "no dense partner: every dense run differs in " + "; ".join(comparable(dense[0], groups[label][0])[:3])


def slopes(groups: dict[str, list[TrainedRun]]) -> dict[SlopeKey, Slope]:
    """Of every group of sound runs that has a dense partner, on training and held-out loss, in every cost.

    Where dense or another architecture was tuned, as at several learning rates, each at its best is compared as well.
    """
    result = {}
    for label, group in groups.items():
        if group[0].arch != "dense":
            result |= _slopes_of(groups, label, partners(groups, label)[0], "equal")
    best = best_rates(groups)
    for arch, label in best.items():
        if arch != "dense" and "dense" in best:
            dense = groups[best["dense"]]
            result |= _slopes_of(groups, label, partners(groups, label, dense, True)[0], "best")
    return result


def _slopes_of(groups, label, pairs, rates) -> dict[SlopeKey, Slope]:
    result = {}
    for modality, kind, cost in product(modalities(groups), KINDS, COSTS):
        curves = [tuple(run.curve(kind, modality, cost) for run in pair) for pair in pairs]
        if curves := [pair for pair in curves if all(pair)]:
            for half_life in HALF_LIVES:
                result[SlopeKey(label, modality, kind, cost, half_life, rates)] = match.over_seeds(curves, half_life)
    return result


def best_rates(groups: dict[str, list[TrainedRun]]) -> dict[str, str]:
    """By architecture, the group whose last held-out loss is the least, a mean over its seeds.

    Empty unless some architecture has groups that differ in what is `tuned` alone, as in their learning rate.
    """
    by_arch: dict[str, list[str]] = {}
    for label, group in groups.items():
        if np.isfinite(held_out(group)):
            by_arch.setdefault(group[0].arch, []).append(label)
    best = {arch: min(labels, key=lambda label: held_out(groups[label])) for arch, labels in by_arch.items()}
    swept = [
        label
        for arch, labels in by_arch.items()
        for label in labels
        if label != best[arch] and comparable(groups[label][0], groups[best[arch]][0])
        if not comparable(groups[label][0], groups[best[arch]][0], each_at_its_best=True)
    ]
    return best if swept else {}


def held_out(group: list[TrainedRun]) -> float:
    """The last held-out loss over all modalities, by routers that see no later tokens; a mean over seeds."""
    key = "loss" if group[0].config.causal else "causal_loss"
    ends = [values[-1] for run in group if len(values := run.series("eval", key)[1])]
    return float(np.mean(ends)) if ends else np.nan


def _summary(run, label):
    c = run.config

    def last(key):
        return (run.series("train", key)[1][-1:].tolist() or [np.nan])[0]

    def middle(key):
        return float(np.median(run.series("train", key)[1])) if len(run.series("train", key)[1]) else np.nan

    tokens = sum(last(f"tokens/{m}") for m in c.modalities)
    row = {
        "run": str(run.path),
        "group": label,
        "arch": run.arch,
        "model_seed": run.seeds[0],
        "data_seed": run.seeds[1],
    }
    row |= {"faults": "; ".join(run.faults), "notes": "; ".join(run.notes), "data": run.digest}
    row |= {"steps": run.series("train", "loss")[0].max(initial=0), "parameters": flops.total_parameters(c)}
    row |= {f"active/{s}": n for s, n in flops.active_parameters(c).items()}
    row |= {"flops": last("flops"), "flops_per_token": last("flops") / (tokens or np.nan), "seconds": last("seconds")}
    row |= {key: middle(key) for key in ("step_seconds", "tokens_per_s", "mfu")}
    started = run.started
    row |= {"matmul_peak": started.get("matmul_peak"), "matmul_peak_measured": started.get("matmul_peak_measured")}
    row |= {"lr": c.optim.lr, "grad_norm": middle("grad_norm"), "grad_norm_last": last("grad_norm")}
    row |= {f"fill/{s}": _mean(run, f"fill/{s}") for s in c.streams}
    row |= {f"wall/{kind}": seconds for kind, seconds in run.wall.items()}
    evaluated = [r for r in run.rows if r["kind"] == "eval"][-1:]
    keys = [k for r in evaluated for k in r if k.startswith(("loss", "causal_loss", "bits_per_byte"))]
    return row | {f"held_out/{k}": float(evaluated[0][k]) for k in keys}


def _mean(run, key):
    values = run.series("train", key)[1]
    return float(values.mean()) if len(values) else np.nan


def _losses(run, label):
    for row in run.rows:
        for modality in run.config.modalities:
            if row["kind"] in ("train", "eval") and f"loss/{modality}" in row:
                common = {"run": str(run.path), "group": label, "arch": run.arch, "model_seed": run.seeds[0]}
                place = {key: row.get(key, 0) for key in ("kind", "step", "flops", "seconds")}
                yield common | place | {"modality": modality, "loss": float(row[f"loss/{modality}"])}
