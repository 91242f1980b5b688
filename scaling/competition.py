"""Who competes with whom: what a modality pays for the others' training, and what a rare concept pays for its rarity.

The **tax** of a modality is its held-out loss in the joint run minus its loss in a run that trained it alone, both
after equally many of its tokens. Below zero it is a **synergy**: the others' training helps. Pairs have equal seeds and
read the same batches, so the 95 % interval over seeds is Student's t of the differences.

For concepts, 2404.04125 found that accuracy grows with the logarithm of how often a concept was seen in training:
`trend` gives that slope.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy import stats

from . import runs
from .runs import TrainedRun


class Estimate(NamedTuple):
    """A mean, and its 95 % interval: NaN where there is one value alone."""

    value: float
    low: float
    high: float
    n: int


class Trend(NamedTuple):
    """How a value follows the logarithm of a count: by a line, and by ranks."""

    slope: float  # for each tenfold count
    low: float
    high: float
    spearman: float  # rank correlation, from -1 to 1
    kendall: float
    p: float  # of Kendall's test; exact where no two are equal
    n: int  # concepts


def mean(values: Sequence[float]) -> Estimate:
    """The mean of differences, one a pair of runs, with Student's 95 % interval."""
    n = len(values)
    center = float(np.mean(values))
    if n < 2:
        return Estimate(center, np.nan, np.nan, n)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Estimate(center, center - half, center + half, n)


def by_tokens(run: TrainedRun, modality: str, source: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a modality that had been trained on, and the held-out loss there, of a source or all: `[points]`."""
    curve = run.curve("eval", f"{modality}/{source}" if source else modality, "step")
    steps, counts = run.series("train", f"tokens/{modality}")
    if curve is None or not len(steps):
        return np.array([]), np.array([])
    return np.interp(curve.step, [0, *steps], [0, *counts]), curve.loss


def excess(solo: TrainedRun, joint: TrainedRun, modality: str, source: str = "") -> float:
    """The loss of `joint` minus that of `solo` after as many tokens of the modality as both have seen.

    In nats, or squared errors. NaN where one of them has no held-out curve of it.
    """
    (at_solo, losses_solo), (at_joint, losses_joint) = (by_tokens(run, modality, source) for run in (solo, joint))
    if not len(at_solo) or not len(at_joint):
        return np.nan
    tokens = min(at_solo[-1], at_joint[-1])
    return float(np.interp(tokens, at_joint, losses_joint) - np.interp(tokens, at_solo, losses_solo))


def pairs(
    solo: Sequence[TrainedRun], joint: Sequence[TrainedRun], apart: Sequence[str]
) -> tuple[list[tuple[TrainedRun, TrainedRun]], list[str]]:
    """Pairs (solo, joint) of equal seeds that differ in the keys `apart` alone; and why others are none.

    A key in `apart` that begins with a dot, as `.loss_weight`, is the last word of a key of any stream.
    """
    found, why = [], []
    for one in solo:
        name = one.config.run.name
        others = [other for other in joint if other.seeds == one.seeds]
        if not others:
            why.append(f"{name}: it has no partner with its seeds")
        for other in others:
            different = [d for d in runs.comparable(one, other) if not _is_of(d.partition(":")[0], apart)]
            if different:
                why.append(f"{name} and {other.config.run.name} differ in {'; '.join(different[:3])}")
            else:
                found.append((one, other))
    return found, why


def _is_of(key: str, apart: Sequence[str]) -> bool:
    return any(key.endswith(one) if one.startswith(".") else key.startswith(one) for one in apart)


def shares(run: TrainedRun) -> dict[str, float]:
    """By source, its share of a run's training in what `data.per` counts, over all stages of the mixture."""
    data = run.config.data
    begins = [0, *(stage.step for stage in data.stages), run.config.run.steps]
    whole: dict[str, float] = {}
    mixtures = [data.shares, *(stage.shares for stage in data.stages)]
    for mixed, (first, end) in zip(mixtures, pairwise(begins), strict=True):
        total = sum(mixed.values())
        for source, share in mixed.items():
            whole[source] = whole.get(source, 0.0) + share / total * max(end - first, 0) / run.config.run.steps
    return whole


def by_source(group: Sequence[TrainedRun], modality: str) -> list[tuple[str, float, float]]:
    """Of a group's runs, (source, its share of training, its last held-out loss): a mean over seeds.

    Without the sources that no run trained on, and those of which no loss of the modality was held out.
    """
    found = []
    for source, share in shares(group[0]).items():
        curves = [run.curve("eval", f"{modality}/{source}", "step") for run in group]
        ends = [curve.loss[-1] for curve in curves if curve is not None]
        if ends and share > 0:
            found.append((source, share, float(np.mean(ends))))
    return found


def trend(counts: Sequence[float], values: Sequence[float]) -> Trend:
    """How values (accuracies, or losses) of concepts follow the logarithm (base 10) of their counts in training.

    The line is of least squares, its 95 % interval Student's with n - 2 degrees of freedom: concepts are what is drawn.
    A factor common to all counts changes nothing, so shares may stand for counts. Raises `ValueError` for fewer than
    three concepts, for counts that are all equal, and for a count that is not positive.
    """
    counts, values = np.array(counts, np.float64), np.array(values, np.float64)
    known = np.isfinite(values)
    counts, values = counts[known], values[known]
    if len(counts) < 3:
        raise ValueError(f"{len(counts)} concepts with a value; a trend needs three or more")
    if (counts <= 0).any():
        raise ValueError("a concept was never seen in training: its logarithm is none; leave it out")
    if len(set(counts.tolist())) == 1:
        raise ValueError("all concepts were seen equally often; plant other data.shares")
    line = stats.linregress(np.log10(counts), values)
    half = float(stats.t.ppf(0.975, len(counts) - 2) * line.stderr)
    ranks = stats.kendalltau(counts, values)
    rho = float(stats.spearmanr(counts, values).statistic)
    slope = float(line.slope)
    return Trend(slope, slope - half, slope + half, rho, float(ranks.statistic), float(ranks.pvalue), len(counts))
