"""What two modalities do to each other's loss as models and data grow: the bimodal law of 2301.03728.

L(N, D_i, D_j) = (L_i(N, D_i) + L_j(N, D_j)) / 2 - C + A N^-alpha + B (D_i + D_j)^-beta

L_i and L_j are the laws of runs that train one modality alone, and L is the mean of both losses of a joint run. C is
the most that the modalities gain from each other; the other two terms are their competition for parameters and for
tokens. Where these are less than C the joint run is the better one: beyond the paper's competition barrier. N of a
joint run is the geometric mean of what a token of each modality meets, which in a dense model is one number.

Intervals take the seeds of all three kinds of runs into account: each resample has its own L_i and L_j.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import bootstrap, fit, laws, runs
from .bootstrap import Draws, Interval
from .fit import Fit, Measured
from .laws import Law, Points
from .runs import TrainedRun


class Mixed(NamedTuple):
    """The bimodal law of an architecture and two modalities; where there is none, `why`."""

    arch: str
    modalities: tuple[str, str]
    alone: tuple[Fit, Fit]
    joint: Points | None  # of joint runs: `base` is what the laws of runs alone say
    law: Law | None  # its E is -C
    why: str
    draws: Draws | None = None
    drawn: Law | None = None
    intervals: dict[str, Interval] = {}  # of C, A, B, alpha and beta, as far as there is a competition
    unsure: str = ""

    def gain(self, n: float, d: float) -> tuple[float, Interval | None]:
        """By how much a joint run's mean loss is less than that of runs alone, at n parameters and d tokens of both."""
        value = -float(self.law.loss(n, d))
        if self.drawn is None:
            return value, None
        return value, bootstrap.interval(value, -self.drawn.loss(n, d)[:, 0], self.draws, log=False)


def mixed(found: Sequence[TrainedRun], pair: tuple[str, str], parameters: str = "active") -> list[Mixed]:
    """Of each architecture, dense first. Runs alone are those in which no other modality's loss has a weight, as in the
    sweep `mixture`; joint runs train both and nothing else.
    """
    cells = fit.cells_of(found)
    result = []
    for arch in runs.archs(found):
        own = [run for run in found if run.arch == arch and run.config.run.role == "fit"]
        first, second, both = (
            [run for run in own if set(run.trained) == set(which)] for which in (pair[:1], pair[1:], pair)
        )
        alone = tuple(fit.measured(kind, m, parameters, cells)[0] for kind, m in ((first, pair[0]), (second, pair[1])))
        joint = tuple(fit.measured(both, modality, parameters, cells)[0] for modality in pair)
        result.append(law_of(arch, pair, alone, joint))
    return result


Pair = tuple[Measured, Measured]


def law_of(arch: str, pair: tuple[str, str], alone: Pair, joint: Pair) -> Mixed:
    """The law of runs alone of each modality, and of joint runs as each modality's points."""
    fits = tuple(fit.fitted(one) for one in alone)
    for modality, one in zip(pair, fits, strict=True):
        if why := one.why or ("" if one.form == laws.BOTH else "tokens and sizes go together"):
            return Mixed(arch, pair, fits, None, None, f"no law of {modality} alone: {why}")
    joint = tuple(one.where(np.isin(one.run, other.run)) for one, other in zip(joint, joint[::-1], strict=True))
    points = together(joint)
    if why := fit.unfit(points, laws.INTERACTION):
        return Mixed(arch, pair, fits, points, None, f"of joint runs: {why}")
    points = points._replace(base=base([one.law for one in fits], joint))
    law = laws.fit(points, laws.INTERACTION)
    cell = np.concatenate([np.char.add(f"{i} ", one.cell) for i, one in enumerate((*alone, joint[0]))])
    if unsure := bootstrap.lacking(cell):
        return Mixed(arch, pair, fits, points, law, "", unsure=unsure)
    losses = np.concatenate([one.points.loss for one in alone] + [points.loss])
    draws = bootstrap.draws(cell, losses)
    drawn = resampled(fits, joint, points, law, draws.weight_RP)
    # Of a competition that is not there, no exponent is told.
    names = [*(("A", "alpha") if law.A > 0 else ()), *(("B", "beta") if law.B > 0 else ())]
    intervals = {name: bootstrap.around(getattr(law, name), getattr(drawn, name)[:, 0], draws) for name in names}
    intervals["C"] = bootstrap.interval(-law.E, -drawn.E[:, 0], draws, log=False)
    return Mixed(arch, pair, fits, points, law, "", draws, drawn, intervals)


def together(joint: Pair) -> Points:
    """Joint runs as points of both modalities: mean losses, and tokens of both."""
    one, other = (each.points for each in joint)
    return Points(np.sqrt(one.n * other.n), one.d + other.d, (one.loss + other.loss) / 2)


def base(of: Sequence[Law], joint: Pair) -> np.ndarray:
    """What the laws of runs alone say of joint runs: a mean over both modalities; `[R, P]` of R resampled laws."""
    first, second = (law.loss(one.points.n, one.points.d) for law, one in zip(of, joint, strict=True))
    return (first + second) / 2


def resampled(fits: Sequence[Fit], joint: Pair, points: Points, law: Law, weight_RP: np.ndarray) -> Law:
    """The bimodal law of each resample of all runs, over the laws of runs alone of the same resample."""
    counts = [len(one.measured.cell) for one in fits]
    first_RP, second_RP, joint_RP = np.split(weight_RP, np.cumsum(counts), axis=1)
    alone = [
        laws.refit(one.measured.points, one.law, own_RP)
        for one, own_RP in zip(fits, (first_RP, second_RP), strict=True)
    ]
    return laws.refit(points._replace(base=base(alone, joint)), law, joint_RP, laws.INTERACTION)
