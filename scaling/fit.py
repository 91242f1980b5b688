"""Scaling laws of runs: by architecture and modality, with intervals over seeds, and with what they do not tell.

A point is a run: its parameters, the tokens of the modality that it trained on, and its last held-out loss. A loss
halfway is none, as a schedule had not ended there (2203.15556, section 3.1). Runs whose `run.role` is `validation` or
`test` are fitted by no law; what the law says of them stands beside what they came to.

Which number of parameters: `active` ones are those that a token of the modality meets, the embedding and the head
among them. A step's FLOPs follow from these, and for a dense model they are what Chinchilla counts, which is all.
`total` are all there are, with other modalities' towers and experts that were not chosen. `blocks` are active ones
without embedding and head, as Kaplan counts (2001.08361), which rungs of configs/ladder.py are named by.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mot.config import Config
from mot.config.varied import flat
from mot.errors import UserError
from mot.model import flops, params

from . import bootstrap, facts, isoflop, laws, runs
from .bootstrap import Draws, Interval
from .isoflop import Budget
from .laws import Form, Law, Points
from .runs import TrainedRun

PARAMETERS = ("active", "total", "blocks")
TOGETHER = 0.999  # the squared correlation of size and tokens from which on they cannot be told apart
ALIKE = 0.02  # sizes that differ by less are one
NO_DIFFERENCE = 1e-9  # of the least loss: a term that falls by less over all points is rounding
LEAST_PLACES = 3  # sizes, and lengths, that tell an exponent: E + A N^-alpha has three numbers


class Measured(NamedTuple):
    """Points with what they are of, an entry a run."""

    points: Points
    flops: np.ndarray  # model FLOPs that the run spent
    cell: np.ndarray  # its group: runs of a cell differ in their seeds alone
    run: np.ndarray  # its path
    role: np.ndarray  # `run.role`

    def where(self, chosen: np.ndarray) -> "Measured":
        points = Points(*(x[chosen] if np.ndim(x) else x for x in self.points))
        return Measured(points, *(x[chosen] for x in self[1:]))


class Fit(NamedTuple):
    """A law and what it was fitted to; where there is none, `why`."""

    measured: Measured
    form: Form
    law: Law | None
    why: str
    draws: Draws | None = None
    drawn: Law | None = None  # the law of each resample
    intervals: dict[str, Interval] = {}  # of E, A, B, alpha, beta, a and b, as far as the law has them
    unsure: str = ""  # why there are no intervals

    @property
    def residuals(self) -> np.ndarray:
        """log of each run's loss less log of the law's; empty where there is no law."""
        points = self.measured.points
        return np.log(points.loss / self.law.loss(points.n, points.d)) if self.law else np.array([])


class Prediction(NamedTuple):
    """What a law says of a size and a number of tokens, and what a run of them came to."""

    n: float
    d: float
    loss: float  # NaN where `why` says why there is no prediction
    interval: Interval | None  # of one run's loss; None where the fit has no intervals
    measured: float  # the mean over seeds; NaN where none has run
    why: str = ""
    role: str = ""

    @property
    def error(self) -> float:
        """The measured loss over the predicted, less 1; NaN until it has run."""
        return self.measured / self.loss - 1


class Scaling(NamedTuple):
    """All that runs of one architecture tell of one modality."""

    arch: str
    modality: str
    fit: Fit
    budgets: list[Budget]  # best sizes, where several sizes spent one budget
    without: list[Prediction]  # each size as the law of all other sizes predicts it
    ahead: list[Prediction]  # sizes that were held out beforehand
    left_out: list[tuple[str, str]]  # runs, and why


def scalings(found: Sequence[TrainedRun], parameters: str = "active") -> list[Scaling]:
    """Of each architecture, dense first, and each of its modalities.

    Runs that differ in other things than size, tokens, architecture and seeds are no points of one law: give the runs
    of one sweep.
    """
    result = []
    cells = cells_of(found)
    for arch in runs.archs(found):
        own = [run for run in found if run.arch == arch]
        for modality in dict.fromkeys(m for run in own for m in run.config.modalities):
            every, left_out = measured(own, modality, parameters, cells)
            to_fit = every.where(every.role == "fit")
            fit = fitted(to_fit)
            at = (isoflop.budgets(to_fit.points, to_fit.flops, fit.law, fit.drawn, fit.draws)) if has_both(fit) else []
            ahead = held_out(fit, every, own, modality, parameters)
            result.append(Scaling(arch, modality, fit, at, leave_one_size_out(fit), ahead, left_out))
    return result


def measured(
    found: Sequence[TrainedRun],
    modality: str,
    parameters: str = "active",
    cells: dict[Path, str] | None = None,
) -> tuple[Measured, list[tuple[str, str]]]:
    """The points of runs, and the runs that give none with the reason."""
    cells = cells or cells_of(found)
    rows, left_out = [], []
    for run in found:
        curve = run.curve("eval", modality, "step")
        seen = facts.seen(run).get(modality, 0)
        if run.faults or curve is None or not seen or curve.loss[-1] <= 0:
            none = f"no held-out {modality} loss at its end"
            above = f"its last held-out {modality} loss is not above 0, and has no logarithm"
            why = run.faults[0] if run.faults else none if curve is None or not seen else above
            left_out.append((str(run.path), why))
            continue
        size, spent = parameters_of(run.config, modality, parameters), run.series("train", "flops")[1][-1]
        rows.append((size, seen, curve.loss[-1], spent, cells[run.path], str(run.path), run.config.run.role))
    n, d, loss, spent, cell, path, role = zip(*rows, strict=True) if rows else [()] * 7
    points = Points(*(np.array(x, float) for x in (n, d, loss)))
    return Measured(points, np.array(spent, float), *(np.array(x, str) for x in (cell, path, role))), left_out


def cells_of(found: Sequence[TrainedRun]) -> dict[Path, str]:
    """By path, the number of a run's cell, in which runs differ in seeds and in what changes no result alone."""
    numbers: dict[str, int] = {}
    cells = {}
    for run in found:
        same = repr([item for item in flat(run.config).items() if not item[0].startswith(runs.APART)])
        cells[run.path] = str(numbers.setdefault(same, len(numbers)))
    return cells


def parameters_of(config: Config, modality: str, which: str = "active") -> float:
    """Parameters as the module counts them; a mean over the modality's streams, where it has several."""
    if which not in PARAMETERS:
        raise UserError(f"parameters={which}: must be one of {', '.join(PARAMETERS)}")
    if which == "total":
        return float(flops.total_parameters(config))
    active = flops.active_parameters(config)
    streams = [name for name, stream in config.streams.items() if stream.modality == modality]
    table = params.table(config)

    def ends(stream: str) -> int:
        own = [path for path in ("embed/tokens", "head/out") if path in table and stream in params.users(path, config)]
        return sum(math.prod(table[path].shape) for path in own) if which == "blocks" else 0

    return float(np.mean([active[stream] - ends(stream) for stream in streams]))


# --- fitting ---------------------------------------------------------------------------------------------------------


def fitted(given: Measured, resamples: int = bootstrap.RESAMPLES) -> Fit:
    """The law of the points with its intervals, or why there is none."""
    points = given.points
    form = form_of(points)
    if why := unfit(points, form):
        return Fit(given, form, None, why)
    law = laws.fit(points, form)
    if why := untold(law, form, points):
        return Fit(given, form, None, why)
    if unsure := bootstrap.lacking(given.cell):
        return Fit(given, form, law, "", unsure=unsure)
    draws = bootstrap.draws(given.cell, points.loss, resamples)
    drawn = laws.refit(points, law, draws.weight_RP, form)
    names = ("E", "A", "alpha") if form == laws.SIZE else laws.NAMES
    intervals = {name: bootstrap.around(getattr(law, name), getattr(drawn, name)[:, 0], draws) for name in names}
    if form == laws.BOTH:  # a lies between 0 and 1, its odds anywhere above 0
        low, high = bootstrap.interval(law.beta / law.alpha, (drawn.beta / drawn.alpha)[:, 0], draws)
        intervals["a"] = Interval(low / (1 + low), high / (1 + high))
        intervals["b"] = Interval(1 - intervals["a"].high, 1 - intervals["a"].low)
    return Fit(given, form, law, "", draws, drawn, intervals)


def form_of(points: Points) -> Form:
    """Of size alone where tokens are the same for all sizes or grow with them, as on a ladder's rungs."""
    x_P, z_P = np.log(points.n), np.log(points.d)
    if len(x_P) < 2 or np.ptp(x_P) < ALIKE:
        return laws.BOTH
    if np.ptp(z_P) < ALIKE:
        return laws.SIZE
    return laws.SIZE if np.corrcoef(x_P, z_P)[0, 1] > TOGETHER**0.5 else laws.BOTH


def unfit(points: Points, form: Form) -> str:
    """Why points can tell no law; empty where they can."""
    if not len(points.loss):
        return "no run to fit"
    size_P, length_P = alike(points.n), alike(points.d)
    if not size_P.any():
        return f"all runs have one size, {points.n[0]:.3g} parameters; train others"
    cells = len(set(zip(size_P, length_P, strict=True)))
    if cells < form.numbers:
        what = "E, A and alpha" if form == laws.SIZE else "E, A, B, alpha and beta"
        return f"{cells} sizes and lengths for the law's {form.numbers} numbers ({what}); train more"
    if form.numbers < laws.BOTH.numbers:
        return ""
    if not length_P.any():
        return f"all runs read one number of tokens, {points.d[0]:.3g}; train others"
    for what, of_P, numbers in (("sizes", size_P, "E, A and alpha"), ("lengths", length_P, "E, B and beta")):
        if of_P.max() + 1 < LEAST_PLACES:  # a curve through two points bends as it likes
            return f"{of_P.max() + 1} {what}, and {numbers} need {LEAST_PLACES} or more; train more"
    if np.corrcoef(np.log(points.n), np.log(points.d))[0, 1] ** 2 > TOGETHER:
        return (
            "tokens follow from sizes, as in one budget: which of them does what cannot be told; train another budget"
        )
    return ""


def alike(values: np.ndarray) -> np.ndarray:
    """The number of each value, from 0 for the least, where those within `ALIKE` of a neighbour have one number."""
    order = np.argsort(values)
    numbers = np.zeros(len(values), int)
    numbers[order[1:]] = np.cumsum(np.diff(np.log(values[order])) > ALIKE)
    return numbers


def untold(law: Law, form: Form, points: Points) -> str:
    """Why a law that was fitted is none: a term makes no difference, or its exponent ran to a bound."""
    terms = [("parameters", points.n, law.A, law.alpha)]
    if form != laws.SIZE:
        terms.append(("tokens", points.d, law.B, law.beta))
    for what, of_P, size, exponent in terms:
        if size * np.ptp(of_P**-exponent) < NO_DIFFERENCE * points.loss.min():
            return f"the losses do not fall with {what}"
        if not laws.LEAST * 1.01 < exponent < laws.MOST / 1.01:
            return f"the losses do not tell the exponent of {what}: {exponent:.3g} is a bound of the fit"
    return ""


def has_both(fit: Fit) -> bool:
    """Is there a law of size and tokens?"""
    return fit.law is not None and fit.form == laws.BOTH


# --- predicting ------------------------------------------------------------------------------------------------------


def predict(fit: Fit, n: float, d: float, losses: Sequence[float] = (), role: str = "") -> Prediction:
    """The loss of n parameters after d tokens, with the interval of one run; `losses` are what runs of them came to."""
    found = float(np.mean(losses)) if len(losses) else np.nan
    if why := fit.why or beside(fit, n, d):
        return Prediction(n, d, np.nan, None, found, why, role)
    loss = float(fit.law.loss(n, d))
    if fit.drawn is None:
        return Prediction(n, d, loss, None, found, "", role)
    noise = bootstrap.noise(fit.measured.cell, fit.measured.points.loss)
    interval = bootstrap.interval(loss, fit.drawn.loss(n, d)[:, 0], fit.draws, noise=noise)
    return Prediction(n, d, loss, interval, found, "", role)


def beside(fit: Fit, n: float, d: float) -> str:
    """Why a law of size alone says nothing of so many tokens."""
    if fit.form != laws.SIZE:
        return ""
    x_P, z_P = np.log(fit.measured.points.n), np.log(fit.measured.points.d)
    usual = float(np.exp(np.polyval(np.polyfit(x_P, z_P, 1), np.log(n))))
    if abs(np.log(d / usual)) < np.log(isoflop.APART):
        return ""
    return f"{d:.3g} tokens, where the fitted sizes point to {usual:.3g}: a law of size alone does not tell of others"


def leave_one_size_out(fit: Fit) -> list[Prediction]:
    """Each cell as predicted by the law of all cells of other sizes; nothing where there is no law."""
    if fit.law is None:
        return []
    given, result = fit.measured, []
    size_P = alike(given.points.n)
    for size in range(size_P.max() + 1):
        rest = given.where(size_P != size)
        form = form_of(rest.points)
        why = unfit(rest.points, form)
        law = None if why else laws.fit(rest.points, form)
        result += _cells(Fit(rest, form, law, why and f"without it: {why}"), given.where(size_P == size))
    return result


def held_out(
    fit: Fit, every: Measured, found: Sequence[TrainedRun], modality: str, parameters: str
) -> list[Prediction]:
    """Each cell whose role is validation or test, as the law predicts it, and those that have not ended yet."""
    told = _cells(fit, every.where(every.role != "fit"))
    begun = [run.config for run in found if run.config.run.role != "fit" and str(run.path) not in every.run]
    ahead = {(one.n, one.d): one for one in (before(fit, config, modality, parameters) for config in begun)}
    known = [(one.n, one.d) for one in told]
    return told + [one for place, one in ahead.items() if not any(np.allclose(place, k, rtol=ALIKE) for k in known)]


def before(fit: Fit, config: Config, modality: str, parameters: str = "active") -> Prediction:
    """What a run will come to, from its configuration alone.

    Its tokens are those of full rows, which it needs budgets of its streams for.
    """
    n, role = parameters_of(config, modality, parameters), config.run.role
    budget = sum(stream.budget for stream in config.streams.values() if stream.modality == modality)
    if not budget:
        why = "how many tokens it will read is not known: its streams have no budget"
        return Prediction(n, np.nan, np.nan, None, np.nan, why, role)
    return predict(fit, n, float(config.run.steps * config.data.batch * budget), role=role)


def _cells(fit: Fit, given: Measured) -> list[Prediction]:
    result = []
    for cell in dict.fromkeys(given.cell.tolist()):
        own = given.where(given.cell == cell)
        n, d = float(own.points.n.mean()), float(own.points.d.mean())
        result.append(predict(fit, n, d, own.points.loss, str(own.role[0])))
    return sorted(result, key=lambda one: (one.n, one.d))
