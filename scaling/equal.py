"""Losses at equal FLOPs, equal seconds and equal parameters: an architecture against dense.

Equal FLOPs or seconds: both curves are read where the one that spent less ended, a pair of runs a seed
(`runs.partners`). Equal parameters: dense's last losses are read between its sizes, straight in the logarithms, at the
other's number of parameters, after equally many tokens of the same data. Nothing is read beyond what was trained: where
dense has no size on either side of the other's, the reason stands instead.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mot.config.varied import flat

from . import competition, facts, fit, match, runs
from .match import Curve
from .runs import TrainedRun

COSTS = {"flops": "FLOPs", "seconds": "seconds"}
COUNTS = {"total": "parameters", "active": "active parameters"}


class Equal(NamedTuple):
    """The losses of an architecture and of dense where they cost the same."""

    group: str
    modality: str
    what: str  # flops, seconds, total or active
    at: float  # how many; NaN where `why`
    loss: float
    dense: float
    low: float  # of the 95 % interval of loss / dense over pairs of seeds; NaN with one pair
    high: float
    pairs: int
    why: str  # why there is no comparison; empty where there is one

    @property
    def ratio(self) -> float:
        """Below 1: the architecture is better."""
        return self.loss / self.dense


def equal(groups: dict[str, list[TrainedRun]], kind: str = "eval") -> list[Equal]:
    """Each group of sound runs that is not dense, each modality, at equal FLOPs, seconds and parameters.

    `kind` is of `runs.KINDS`: held-out or training losses at equal FLOPs and seconds. At equal parameters they are
    held-out ones.
    """
    result, settings = [], {run.path: setting(run) for group in groups.values() for run in group}
    for label, group in groups.items():
        if group[0].arch != "dense":
            pairs, why = runs.partners(groups, label)
            of_sizes = [(run, siblings(run, groups, settings)) for run in group]
            for modality in runs.modalities({label: group}):
                result += [at_cost(pairs, why, label, modality, kind, cost) for cost in COSTS]
                result += [at_parameters(of_sizes, label, modality, count) for count in COUNTS]
    return result


def setting(run: TrainedRun) -> str:
    """What two runs have in common that differ in size and architecture: data and seeds, but not the batch, steps and
    the optimiser's numbers, which may go with the size."""
    apart = ("run.", "streams.", "model.", "optim.", "data.batch", *runs.ARCHITECTURE)
    return repr([(key, value) for key, value in flat(run.config).items() if not key.startswith(apart)] + [run.seeds])


def siblings(run: TrainedRun, groups: dict[str, list[TrainedRun]], settings: dict[Path, str]) -> list[TrainedRun]:
    """The dense runs of any size in its setting."""
    dense = [other for group in groups.values() for other in group if other.arch == "dense"]
    return [other for other in dense if settings[other.path] == settings[run.path]]


def at_cost(pairs: list[tuple], why: str, label: str, modality: str, kind: str, cost: str) -> Equal:
    """At what the cheaper run of each pair (dense, other) had spent at its end; `why` there is no pair."""
    curves = [tuple(run.curve(kind, modality, cost) for run in pair) for pair in pairs]
    curves = [pair for pair in curves if all(pair)]
    if not curves:
        return nothing(label, modality, cost, why or f"no {runs.KINDS[kind]} {modality} loss over {COSTS[cost]}")
    read = [(min(dense.cost[-1], other.cost[-1]), dense, other) for dense, other in curves]
    if any(at < curve.cost[0] for at, *both in read for curve in both):
        return nothing(label, modality, cost, f"one run was first measured after more {COSTS[cost]} than the other had")
    losses = [(loss_at(dense, at, kind), loss_at(other, at, kind)) for at, dense, other in read]
    return compared(label, modality, cost, float(np.mean([at for at, *_ in read])), losses)


def loss_at(curve: Curve, cost: float, kind: str) -> float:
    """Straight between measurements; training losses are smoothed first, as for slopes."""
    smooth = match.smooth(curve, match.HALF_LIFE) if kind == "train" else curve
    return float(np.interp(cost, smooth.cost, smooth.loss))


def at_parameters(of_sizes: Sequence[tuple], label: str, modality: str, count: str) -> Equal:
    """Of pairs (run, dense runs of any size in its setting): at the run's own number of parameters, after as many
    tokens of the modality."""
    losses, size = [], fit.parameters_of(of_sizes[0][0].config, modality, count)
    why = f"no dense run of the same setting, seed and {modality} tokens has a held-out loss"
    for run, dense in of_sizes:
        alike = [one for one in dense if same_tokens(one, run, modality)]
        known = [(fit.parameters_of(one.config, modality, count), last(one, modality)) for one in alike]
        known = sorted((n, loss) for n, loss in known if loss > 0)
        if known and last(run, modality) > 0:
            n, loss = np.log(known).T
            if not n[0] - fit.ALIKE <= np.log(size) <= n[-1] + fit.ALIKE:
                trained = " to ".join(dict.fromkeys(f"{known[i][0]:.3g}" for i in (0, -1)))
                why = f"dense was trained with {trained} {COUNTS[count]}, this one has {size:.3g}"
                continue
            losses.append((float(np.exp(np.interp(np.log(size), n, loss))), last(run, modality)))
    return compared(label, modality, count, size, losses) if losses else nothing(label, modality, count, why)


def same_tokens(one: TrainedRun, other: TrainedRun, modality: str) -> bool:
    counts = [facts.seen(run).get(modality, 0) for run in (one, other)]
    return min(counts) > 0 and abs(np.log(counts[0] / counts[1])) <= fit.ALIKE


def last(run: TrainedRun, modality: str) -> float:
    """The last held-out loss; NaN where there is none."""
    curve = run.curve("eval", modality, "step")
    return float(curve.loss[-1]) if curve else np.nan


def compared(label: str, modality: str, what: str, at: float, losses: Sequence[tuple[float, float]]) -> Equal:
    """Of pairs (dense's loss, the other's): geometric means, and the interval of their ratio by Student's t."""
    if np.min(losses) <= 0:
        return nothing(label, modality, what, "a loss is not above 0, and has no ratio")
    logs = np.log(losses)
    dense, loss = np.exp(logs.mean(0)).tolist()
    ratio = competition.mean((logs[:, 1] - logs[:, 0]).tolist())
    low, high = np.exp([ratio.low, ratio.high]).tolist()
    return Equal(label, modality, what, at, loss, dense, low, high, ratio.n, "")


def nothing(label: str, modality: str, what: str, why: str) -> Equal:
    return Equal(label, modality, what, np.nan, np.nan, np.nan, np.nan, np.nan, 0, why)
