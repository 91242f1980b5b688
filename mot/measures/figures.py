"""A number that was measured, and how sure it is."""

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

SURE = 0.95  # of intervals
RESAMPLES = 1000


class Figure(NamedTuple):
    """What is None is not known, or does not apply."""

    value: float
    low: float | None = None  # of the interval
    high: float | None = None
    chance: float | None = None  # what a guess would give
    n: int | None = None  # of how many answers, queries or samples


def share(hits: Sequence[float] | np.ndarray, chance: float | None = None) -> Figure:
    """The mean of hits from 0 to 1, with Wilson's interval (1927; Brown, Cai and DasGupta, 2001).

    Each hit is taken as independent. Nothing between 0 and 1 but ties is meant: there the interval is a little wide.
    """
    n = len(hits)
    p = float(np.mean(hits))
    z2 = NormalDist().inv_cdf((1 + SURE) / 2) ** 2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * (p * (1 - p) / n + z2 / (4 * n * n))) ** 0.5 / (1 + z2 / n)
    return Figure(p, max(middle - half, 0.0), min(middle + half, 1.0), chance, n)


def resampled(x: np.ndarray, of: Callable[[np.ndarray], np.ndarray], chance: float | None = None) -> Figure:
    """A statistic `of(x, axis=-1)` of `[n]`, with the percentile interval of its bootstrap over the n (Efron, 1979)."""
    index = np.random.default_rng(0).integers(0, len(x), (RESAMPLES, len(x)))
    low, high = np.quantile(of(x[index], axis=-1), [(1 - SURE) / 2, (1 + SURE) / 2])
    return Figure(float(of(x, axis=-1)), float(low), float(high), chance, len(x))
