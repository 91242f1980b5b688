"""What a report tells of groups of runs beside their slopes: sections, each of pictures and a table."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from mot.runs import evaluated

from . import competition, equal, fit, fit_pictures, mixed, pictures, runs
from .bootstrap import Interval
from .fit import Scaling
from .runs import TrainedRun

Groups = dict[str, list[TrainedRun]]
Colours = dict[str, str]
MOST = 8  # laws in pictures; the table has all


class Section(NamedTuple):
    """A picture and a table, each of which may be absent."""

    title: str
    reads: str  # how a reader understands it
    pictures: dict[str, tuple[str, dict[str, bytes]]]  # by name: words, and PNGs by theme
    columns: tuple[str, ...]  # of the table, after group and modality
    rows: list[tuple[str, str, list[str]]]  # group or architecture, modality, cells
    notes: tuple[str, ...] = ()  # what could not be told, and why
    second: str = "modality"  # what the table's second column holds


def of(groups: Groups, shown: Groups, colour: Colours) -> list[Section]:
    """Those that have something to tell. `shown` are the groups that a page has room for."""
    found = [frequencies(shown, colour), evaluations(groups), equal_cost(groups)]
    if several_sizes(groups):
        scalings = fit.scalings([run for group in groups.values() for run in group if run.is_joint])
        found += [laws(scalings, groups), budgets(scalings), predictions(scalings), bimodal(groups)]
    return [section for section in found if section]


def several_sizes(groups: Groups) -> bool:
    """Has an architecture at least two sizes?"""
    sizes: dict[str, list[float]] = {}
    for group in groups.values():
        config = group[0].config
        sizes.setdefault(group[0].arch, []).append(fit.parameters_of(config, config.modalities[0]))
    return any(max(of) > min(of) for of in sizes.values())


LEAST_SOURCES = 4  # for a trend on the page: with three its interval says nothing


def frequencies(groups: Groups, colour: Colours) -> Section | None:
    """How held-out losses of sources follow how often they were seen; nothing where shares are equal or few."""
    rows, points = [], {}
    for label, modality in product(groups, runs.modalities(groups)):
        of = competition.by_source(groups[label], modality)
        if len(of) < LEAST_SOURCES or len({share for _, share, _ in of}) < 2:
            continue
        found = competition.trend([share for _, share, _ in of], [loss for *_, loss in of])
        points.setdefault(modality, {})[label] = of
        slope = f"{found.slope:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        ranks = [f"{found.kendall:+.2f}", f"{found.p:.2g}", f"{found.spearman:+.2f}", str(found.n)]
        rows.append((label, modality, [slope, *ranks]))
    if not rows:
        return None
    drawn = pictures.both(pictures.frequency, points, colour)
    return Section(
        "Rare and common sources",
        "Does a source that was seen more often in training have a lower held-out loss? The slope is the change of the "
        "loss for each tenfold share, by least squares, with its 95 % interval over sources; the rank test asks the "
        "same without a line (arXiv:2404.04125 found accuracy to grow with the logarithm of a concept's count). "
        "Sources differ in more than how often they were seen: only where documents of one kind were given other "
        "data.shares is this the effect of frequency.",
        {"frequency": ("held-out loss of each source against its share of training", drawn)},
        ("slope for each tenfold share", "Kendall's tau", "p", "Spearman's rho", "sources"),
        rows,
    )


def evaluations(groups: Groups) -> Section | None:
    """What `mot evaluate --what` found of each run's newest step that was evaluated so."""
    rows, notes = [], []
    for label, group in groups.items():
        for run in group:
            found, left_out = evaluated.read(run.path)
            notes += left_out
            for row in {row["what"]: row for row in found}.values():
                for name, figure in row["figures"].items():
                    place = [run.config.run.name, f"{row['step']:,}", name]
                    rows.append((label, row["what"], [*place, _figure(figure), _cell(figure.get("chance"))]))
    if not rows and not notes:
        return None
    return Section(
        "Beyond the loss",
        "What mot evaluate --what found: likelihood ranking, retrieval, linear probes, distances and what a classifier "
        "says. Brackets hold 95 % intervals over questions, queries or samples; chance is what a guess would give.",
        {},
        ("run", "step", "figure", "value", "chance"),
        rows,
        tuple(notes),
        "kind",
    )


def _figure(figure: dict) -> str:
    low, high = figure.get("low"), figure.get("high")
    return _cell(figure["value"]) + (f" [{_cell(low)}, {_cell(high)}]" if low is not None else "")


def _cell(x: object) -> str:
    return "" if x is None else f"{x:.3g}" if isinstance(x, int | float) else str(x)


def equal_cost(groups: Groups) -> Section | None:
    """Each architecture's loss over dense's at equal FLOPs, seconds and parameters."""
    found = equal.equal(groups)
    told: dict[tuple[str, str], dict[str, str]] = {}
    for one in found:
        interval = f" [{one.low:.3f}, {one.high:.3f}]" if one.pairs > 1 else ""
        told.setdefault((one.group, one.modality), {})[one.what] = "-" if one.why else f"{one.ratio:.3f}{interval}"
    kinds = equal.COSTS | equal.COUNTS
    if all(one.why for one in found):
        return None
    return Section(
        "At equal cost",
        "Held-out loss over dense's, where both cost as much: below 1 the architecture is better. At equal FLOPs and "
        "seconds both curves are read where the cheaper run ended. At equal parameters dense's loss is read between "
        "its own sizes, and never beyond them. Brackets hold 95 % intervals over pairs of seeds.",
        {},
        tuple(f"at equal {kind}" for kind in kinds.values()),
        [(*place, [cells.get(kind, "-") for kind in kinds]) for place, cells in told.items()],
        tuple(dict.fromkeys(f"{one.group}, at equal {kinds[one.what]}: {one.why}" for one in found if one.why)),
    )


# --- scaling laws ----------------------------------------------------------------------------------------------------

NUMBERS = ("E", "A", "alpha", "B", "beta", "a")


def laws(scalings: Sequence[Scaling], groups: Groups) -> Section:
    """The fitted law of each architecture and modality, or why there is none."""
    drawn = {}
    for i, one in enumerate([one for one in scalings if one.fit.law is not None][:MOST]):
        what = f"held-out {one.modality} loss ({runs.unit(groups, one.modality)})"
        name = f"{one.arch}, {one.modality}"
        drawn[f"law_{i}"] = (f"{name}: runs and the law", pictures.both(fit_pictures.law, one, what))
        residuals = pictures.both(fit_pictures.residuals, one.fit)
        drawn[f"residuals_{i}"] = (f"{name}: how far the runs lie from the law", residuals)
    rows, notes = [], []
    for one in scalings:
        rows.append(
            (one.arch, one.modality, [str(len(one.fit.measured.run)), *(_number(one, name) for name in NUMBERS)])
        )
        notes += [f"{one.arch}, {one.modality}: {why}" for why in (one.fit.why, one.fit.unsure) if why]
        notes += [f"{path}: {why}" for path, why in one.left_out]
    return Section(
        "Scaling laws",
        "E + A N^-alpha + B D^-beta, fitted to the last held-out losses by Huber loss of their logarithms "
        "(arXiv:2203.15556). N are parameters that a token of the modality meets, D its tokens; the best size for a "
        "budget of FLOPs grows as FLOPs^a. Brackets hold 95 % intervals, bootstrapped over runs and seeds. A pattern "
        "in the residuals says that the law is the wrong one.",
        drawn,
        ("runs", *NUMBERS),
        rows,
        tuple(dict.fromkeys(notes)),
    )


def _number(one: Scaling, name: str) -> str:
    """A number of the law with its interval; "-" where the law has none of that name."""
    if one.fit.law is None or (name in ("B", "beta", "a") and not fit.has_both(one.fit)):
        return "-"
    return f"{getattr(one.fit.law, name):.3g}{_interval(one.fit.intervals.get(name))}"


def _interval(interval: Interval | None) -> str:
    return f" [{interval.low:.3g}, {interval.high:.3g}]" if interval else ""


def budgets(scalings: Sequence[Scaling]) -> Section | None:
    """The best size for each budget of FLOPs that several sizes spent."""
    rows, notes, drawn = [], [], {}
    for i, one in enumerate([one for one in scalings if one.budgets]):
        if i < MOST:
            picture = pictures.both(fit_pictures.isoflops, one, f"held-out {one.modality} loss")
            drawn[f"budgets_{i}"] = (f"{one.arch}, {one.modality}: stars are the best sizes", picture)
        for budget in one.budgets:
            told = f"{fit_pictures.count(budget.n)}" if not budget.why else "-"
            span = [fit_pictures.count(n) for n in budget.interval or ()]
            told += f" [{', '.join(span)}]" if span and not budget.why else ""
            loss = f"{budget.loss:.4f}" if not budget.why else "-"
            foot = "-" if budget.parabola_why else fit_pictures.count(budget.parabola)
            rows.append((one.arch, one.modality, [fit_pictures.count(budget.flops), told, loss, foot]))
            notes += [f"{one.arch}, {one.modality}, {budget.flops:.3g} FLOPs: {budget.why}"] if budget.why else []
    if not rows:
        return None
    return Section(
        "The best size for a budget",
        "From the law along each budget, with its 95 % interval. A parabola through the losses of one budget stands "
        "beside for comparison: it is biased where sizes do not lie evenly about the best one (arXiv:2603.22339). A "
        "size outside those that were trained is not told.",
        drawn,
        ("FLOPs", "best number of parameters", "loss there", "by a parabola"),
        rows,
        tuple(notes),
    )


def predictions(scalings: Sequence[Scaling]) -> Section | None:
    """Each size as the law of all others predicts it, and sizes that were held out beforehand."""
    rows, notes = [], []
    for one in scalings:
        for kind, found in (("left out once", one.without), ("", one.ahead)):
            for p in found:
                place = [fit_pictures.count(p.n), fit_pictures.count(p.d), kind or f"{p.role}, held out beforehand"]
                if p.why:
                    notes.append(f"{one.arch}, {one.modality}, {place[0]} parameters: {p.why}")
                    continue
                ran = np.isfinite(p.measured)
                came = [f"{p.measured:.4f}", f"{100 * p.error:+.1f} %"] if ran else ["has not run", "-"]
                rows.append((one.arch, one.modality, [*place, f"{p.loss:.4f}{_interval(p.interval)}", *came]))
    if not rows:
        return None
    return Section(
        "Predictions, and what came of them",
        "Each size as the law of all other sizes predicts it, and sizes that the sweep held out beforehand "
        "(run.role). The interval is of one run's loss.",
        {},
        ("parameters", "tokens", "size", "predicted loss", "measured", "error"),
        rows,
        tuple(dict.fromkeys(notes)),
    )


def bimodal(groups: Groups) -> Section | None:
    """What two modalities do to each other as models and data grow, where both were also trained alone."""
    every = [run for group in groups.values() for run in group]
    if all(run.is_joint for run in every):
        return None
    names = ("C", "A", "alpha", "B", "beta")
    rows, notes = [], []
    for pair in combinations(runs.modalities(groups), 2):
        for one in mixed.mixed(every, pair):
            modalities = " and ".join(one.modalities)
            if one.why:
                notes.append(f"{one.arch}, {modalities}: {one.why}")
                continue
            values = {"C": -one.law.E} | {name: getattr(one.law, name) for name in names[1:]}
            cells = [f"{values[name]:.3g}{_interval(one.intervals.get(name))}" for name in names]
            rows.append((one.arch, modalities, cells))
    return Section(
        "Competition as models grow",
        "The bimodal law of arXiv:2301.03728: a joint run's mean loss is that of runs alone, less C, the most that the "
        "modalities gain from each other, plus A N^-alpha + B D^-beta, their competition for parameters and tokens.",
        {},
        names,
        rows,
        tuple(notes),
    )
