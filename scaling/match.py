"""How many of one run's steps another run needs for the same loss: the matching slope.

Both curves are smoothed by an exponential moving average to both sides whose half-life at each step is 2 % of that
step. For each step t of the reference in its last three quarters, t'(t) is where the other run is first at or below the
reference's loss at t. The slope is that of the least-squares line through the origin in the points (t, t'): 0.5 means
half the steps.

A slope is a ratio of positive costs, so over seeds the mean is a geometric one, and the 95 % interval is made over the
logarithms of the slopes: an interval around an arithmetic mean reaches below 0, where no cost is. With two seeds it
stays wide, for two values say little of their spread, but every value in it is one that a slope can have.

Not every slope can be read off. Where the other run ended before it was as low as the reference, its slope is greater
than what is found (">"). Where it was below a level when it was first measured, nobody knows how long before, and the
slope is less than what is found ("<"). Both are bounds, and no interval is told of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

HALF_LIFE = 0.02  # of the step at hand
SEED, RESAMPLES = 0, 2000
LEAST = 4  # points of a reference from which a slope says something: two steps of a trial say nothing


class Curve(NamedTuple):
    """A loss measured along a run; the three arrays have one length, and steps and cost rise."""

    step: np.ndarray
    cost: np.ndarray  # what t is counted in: steps, FLOPs or seconds, from the start of the run
    loss: np.ndarray


class Slope(NamedTuple):
    """t' / t: a value, or where `bound` says so what the true slope is greater (">") or less ("<") than.

    Where `bound` is "?", some seeds have a slope above their bound and others one below it: the value is NaN.
    """

    value: float
    bound: str = ""
    low: float = np.nan  # of the 95 % interval over seeds; NaN with a single seed. Of bounds: what every seed's slope
    high: float = np.nan  # is above, and what it is below
    seeds: int = 1
    points: int = LEAST  # of the reference's curve that were matched, the fewest of all seeds
    bounded: int = 0  # seeds of which a bound alone is known


def smooth(curve: Curve, half_life: float) -> Curve:
    """The exponential moving average of the loss, to both sides; at step t a weight halves within `half_life` * t.

    A span that grows with t treats a curve and the same curve stretched alike, so it leaves the slope as it is. A usual
    average over 2 % of all steps lags behind both alike: of a planted slope of 0.2 it made 0.24.
    """
    keep = 0.5 ** (np.diff(np.log(np.maximum(curve.step, 1))) / np.log1p(half_life))

    def past(loss, keep):
        totals, total, weight = [], 0.0, 0.0
        for x, k in zip(loss, [0.0, *keep], strict=True):
            total, weight = k * total + x, k * weight + 1
            totals.append((total, weight))
        return np.array(totals).T

    total, weight = past(curve.loss, keep) + past(curve.loss[::-1], keep[::-1])[:, ::-1]
    return curve._replace(loss=(total - curve.loss) / (weight - 1))


def first_at_or_below(curve: Curve, level: float) -> float:
    """The cost at which the curve, straight between measurements, first reaches `level`; infinite if it never does."""
    below = curve.loss <= level
    if not below.any():
        return np.inf
    i = int(below.argmax())
    if i == 0:
        return float(curve.cost[0])
    above, under = curve.loss[i - 1], curve.loss[i]
    return float(curve.cost[i - 1] + (above - level) / (above - under) * (curve.cost[i] - curve.cost[i - 1]))


def slope(reference: Curve, other: Curve, half_life: float = HALF_LIFE) -> Slope:
    """The matching slope of one pair; where the other run left both kinds of levels unmeasured, its lower bound."""
    reference, other = (smooth(c, half_life) for c in (reference, other))
    late = reference.step >= reference.step[-1] / 4
    t = reference.cost[late]
    there = np.array([first_at_or_below(other, level) for level in reference.loss[late]])
    unreached = np.isinf(there)
    before = reference.loss[late] >= other.loss[0]
    # What was not reached would have cost more than all the other run had.
    there[unreached] = other.cost[-1]
    # What it had when first measured took it at most so long, which is more than no time at all.
    there[before] = 0 if unreached.any() else other.cost[other.cost > 0][0]
    bound = ">" if unreached.any() else "<" if before.any() else ""
    return Slope(float(t @ there / (t @ t)), bound, points=len(t))


def over_seeds(pairs: Sequence[tuple[Curve, Curve]], half_life: float = HALF_LIFE) -> Slope:
    """The geometric mean of the slopes of pairs (reference, other), a pair a seed, with a 95 % interval.

    The interval is bootstrapped: pairs are drawn with replacement, and the spread of the means of their logarithms,
    corrected for the number of seeds, is widened by Student's t, without which two to five seeds cover far less than
    they promise.
    """
    each = [slope(reference, other, half_life) for reference, other in pairs]
    values = np.array([s.value for s in each])
    n = len(each)
    points = min(s.points for s in each)
    bounds = {s.bound for s in each} - {""}
    bounded = sum(bool(s.bound) for s in each)
    if len(bounds) > 1:
        return Slope(np.nan, "?", seeds=n, points=points, bounded=bounded)
    center = float(np.log(values).mean())
    if bounds:
        least, greatest = float(values.min()), float(values.max())
        low, high = (least, np.inf) if bounds == {">"} else (0.0, greatest)
        return Slope(float(np.exp(center)), bounds.pop(), low, high, n, points, bounded)
    if n == 1:
        return Slope(float(values[0]), points=points)
    drawn = np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))
    error = np.log(values)[drawn].mean(1).std() * np.sqrt(n / (n - 1))
    half = float(student.ppf(0.975, n - 1) * error)
    low, mean, high = np.exp([center - half, center, center + half]).tolist()
    return Slope(mean, "", low, high, n, points)
