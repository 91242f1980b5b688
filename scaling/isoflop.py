"""The best size for a budget of FLOPs, from runs of several sizes that each spent the budget.

The best size is that of the law which is fitted to all budgets at once (scaling/laws.py), along the budget: no parabola
is drawn. A parabola through the losses of one budget over log N, which is Approach 2 of 2203.15556, is biased where the
two exponents differ, where sizes do not lie evenly about the best one, and the more so the wider they lie (2603.22339).
It is told beside, for comparison.
"""

from typing import NamedTuple

import numpy as np

from . import bootstrap
from .bootstrap import Draws, Interval
from .laws import Law, Points

LEAST_SIZES = 3  # that make a budget
APART = 1.25  # budgets whose FLOPs differ by less are one: steps are whole, and rows are not quite full


class Budget(NamedTuple):
    """Runs that spent one number of FLOPs, and the best size for it."""

    flops: float
    points: Points
    n: float  # the best number of parameters; NaN where `why` says that it is not known
    d: float  # tokens that the budget then pays for
    loss: float
    interval: Interval | None  # of n
    why: str
    parabola: float  # the best number of parameters by a parabola; NaN where `parabola_why` says why there is none
    parabola_why: str


def budgets(
    points: Points, flops_P: np.ndarray, law: Law, drawn: Law | None = None, draws: Draws | None = None
) -> list[Budget]:
    """A `Budget` for each number of FLOPs at which `LEAST_SIZES` were trained, from the least to the greatest.

    `drawn` are the laws of the bootstrap's `draws`, without which there are no intervals.
    """
    order = np.argsort(flops_P)
    breaks = np.flatnonzero(np.diff(np.log(flops_P[order])) > np.log(APART)) + 1
    found = []
    for place in np.split(order, breaks):
        own = Points(points.n[place], points.d[place], points.loss[place])
        if len(np.unique(own.n)) >= LEAST_SIZES:
            flops = float(np.exp(np.log(flops_P[place]).mean()))
            found.append(_budget(own, flops, law, drawn, draws))
    return found


def _budget(own: Points, flops: float, law: Law, drawn: Law | None, draws: Draws | None) -> Budget:
    # What the budget pays for: d = reach * n^-fall, where fall is 1 if FLOPs are a constant times n d.
    slope, level = np.polyfit(np.log(own.n), np.log(own.d), 1)
    fall, reach = -float(slope), float(np.exp(level))
    parabola, parabola_why = by_parabola(own)
    if fall <= 0:
        why = "larger models read no fewer tokens here: it is no budget"
        return Budget(flops, own, np.nan, np.nan, np.nan, None, why, parabola, parabola_why)
    n = best(law, reach, fall)
    if why := outside(n, own.n):
        return Budget(flops, own, np.nan, np.nan, np.nan, None, why, parabola, parabola_why)
    interval = None
    if drawn is not None and draws is not None:
        interval = bootstrap.interval(n, best(drawn, reach, fall)[:, 0], draws)
    d = reach * n**-fall
    return Budget(flops, own, n, d, law.loss(n, d), interval, "", parabola, parabola_why)


def best(law: Law, reach: float, fall: float):
    """The n at which law.loss(n, reach * n^-fall) is least: where its two terms' slopes in log n are equal."""
    rise = fall * law.beta
    return (law.alpha * law.A / (rise * law.B * reach**-law.beta)) ** (1 / (law.alpha + rise))


def outside(n: float, sizes: np.ndarray) -> str:
    """Why a best size is not told: it lies outside the sizes that were trained."""
    low, high = float(sizes.min()), float(sizes.max())
    if low <= n <= high:
        return ""
    side, more = ("below", "smaller") if n < low else ("above", "larger")
    return f"the best size lies {side} those trained, {low:.3g} to {high:.3g} parameters; train {more} ones"


def by_parabola(own: Points) -> tuple[float, str]:
    """The foot of the least-squares parabola of loss over log n; or NaN and why there is none."""
    x_P = np.log(own.n)
    curve, slope, _ = np.polyfit(x_P - x_P.mean(), own.loss, 2)
    if curve <= 0:
        return np.nan, "the losses do not bend upwards"
    foot = x_P.mean() - slope / (2 * curve)
    n = float(np.exp(np.clip(foot, x_P.min() - 1, x_P.max() + 1)))  # a flat one's foot is beyond all numbers
    why = outside(n, own.n)
    return (np.nan if why else n), why


def growth(found: list[Budget], parabola: bool = False) -> float:
    """The exponent a of the best size in FLOPs^a, by a line through the budgets' best sizes; NaN of fewer than two."""
    pairs = [(one.flops, one.parabola if parabola else one.n) for one in found]
    known = np.log([pair for pair in pairs if np.isfinite(pair[1])])
    return float(np.polyfit(*known.T, 1)[0]) if len(known) > 1 else np.nan
