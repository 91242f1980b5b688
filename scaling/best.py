"""Best-of-n: what a search of n points would have found, from all that were tried.

A search reports its best point, and the best of more points is better whatever the architecture. So architectures are
compared at equal n: the best of n points that are drawn without replacement from those that were tried. Of N sorted
losses the i-th is the best of n with probability C(N - i, n - 1) / C(N, n), which is exact: nothing is simulated (as in
1909.03004, which draws with replacement). At n = N only one draw is left, and the spread is 0 whatever was lucky.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mot.config.varied import flat

from . import runs
from .runs import TrainedRun

LEAST = 8  # points of an architecture that make a search
QUANTILES = (0.1, 0.9)  # the spread: four fifths of all draws lie within


class BestOf(NamedTuple):
    """The best of n points, for each n from 1 to N; each `[N]`."""

    n: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def best_of(losses: Sequence[float]) -> BestOf:
    """Of N losses, of which one that is not finite (the run diverged) counts as the worst that is.

    Raises `ValueError` where none is finite.
    """
    given = np.array(losses, np.float64)
    finite = np.isfinite(given)
    if not finite.any():
        raise ValueError("best_of: no loss is finite; leave the search out")
    sorted_N = np.sort(np.where(finite, given, given[finite].max()))
    n_N = np.arange(1, len(given) + 1)
    p_NN = np.stack([chances(len(given), n) for n in n_N])
    # The sum of chances is 1 but for rounding, which must not leave a quantile without its value.
    reached_NN = np.minimum(np.cumsum(p_NN, 1), 1.0)
    low, high = (sorted_N[np.argmax(reached_NN >= q - 1e-9, 1)] for q in QUANTILES)
    return BestOf(n_N, p_NN @ sorted_N, low, high)


def chances(total: int, n: int) -> np.ndarray:
    """`[N]`: how likely the i-th smallest of N is the smallest of n that are drawn without replacement."""
    # Each follows from the one before it: C(N - i - 1, n - 1) / C(N - i, n - 1) = (N - i - n + 1) / (N - i).
    left = np.arange(total - 1, 0, -1, dtype=np.float64)
    return n / total * np.concatenate([[1.0], np.cumprod(np.maximum(left - n + 1, 0) / left)])


class Search(NamedTuple):
    """What was tried of one architecture."""

    keys: tuple[str, ...]  # in which its points differ
    points: list[list[TrainedRun]]  # each with its runs, which differ in their seeds

    def losses(self, modality: str = "") -> list[float]:
        """The last held-out loss of each point, a mean over its seeds; infinite where a run diverged."""
        return [float(np.mean([_last(run, modality) for run in point])) for point in self.points]

    def best(self) -> list[TrainedRun]:
        """The runs of the point whose loss over all modalities is least."""
        return self.points[int(np.argmin(self.losses()))]


def searches(found: Sequence[TrainedRun]) -> dict[str, Search]:
    """By architecture, dense first, the runs that are alike but for what is tuned: LEAST points or more.

    A run that diverged is a point, too; one that is unfinished or otherwise at fault is none.
    """
    alike: dict[tuple, dict[tuple, list[TrainedRun]]] = {}
    for run in found:
        if all(fault.startswith("diverged") for fault in run.faults):
            values = flat(run.config).items()
            point = tuple((key, value) for key, value in values if runs.tuned(key))
            rest = [(key, value) for key, value in values if not runs.tuned(key) and not key.startswith(runs.APART)]
            alike.setdefault((run.arch, repr(rest)), {}).setdefault(point, []).append(run)
    result: dict[str, Search] = {}
    for (arch, _), points in sorted(alike.items(), key=_dense_first):
        if len(points) >= LEAST and len(points) > len(result[arch].points if arch in result else ()):
            keys = tuple(key for i, (key, _) in enumerate(next(iter(points))) if len({p[i] for p in points}) > 1)
            result[arch] = Search(keys, list(points.values()))
    return {arch: search for arch, search in result.items() if np.isfinite(search.losses()).any()}


def _dense_first(item: tuple) -> tuple:
    (arch, _), _ = item
    return arch != "dense", arch


def _last(run: TrainedRun, modality: str) -> float:
    key = "loss" if run.config.causal else "causal_loss"
    values = run.series("eval", f"{key}/{modality}" if modality else key)[1]
    return float(values[-1]) if len(values) and not run.faults else np.inf


def without_the_rest(found: Sequence[TrainedRun], tried: dict[str, Search]) -> list[TrainedRun]:
    """Of searches only each one's best point, and dense at the best points of all: what a page shows in full."""
    best = {arch: search.best() for arch, search in tried.items()}
    kept = {run.path for point in best.values() for run in point}
    if "dense" in tried:
        wanted = [tuning(point[0]) for point in best.values()]
        kept |= {run.path for point in tried["dense"].points for run in point if tuning(run) in wanted}
    searched = {run.path for search in tried.values() for point in search.points for run in point}
    return [run for run in found if run.path not in searched or run.path in kept]


def tuning(run: TrainedRun) -> dict[str, float]:
    """What is tuned, by dotted key."""
    return {key: value for key, value in flat(run.config).items() if runs.tuned(key)}


def told(mine: BestOf, dense: BestOf | None) -> str:
    """Is a gain more than a lucky point? It is from the n on from which four fifths of both's draws lie apart.

    Up to half of the points, as beyond fewer and fewer draws are left to differ.
    """
    if dense is None:
        return ""
    half = max(1, min(len(mine.n), len(dense.n)) // 2)
    for word, better, worse in (("ahead of dense", mine, dense), ("behind dense", dense, mine)):
        apart = better.high[:half] < worse.low[:half]
        if apart[-1]:
            overlap = np.flatnonzero(~apart)
            return f"{word} at equal n, from n = {overlap[-1] + 2 if len(overlap) else 1} on"
    return "undecided: draws overlap"
