"""Pictures of fits, for `pictures.both`: the law among its runs, residuals, and the losses of budgets of FLOPs.

Where there is no law there is no line: the runs stand alone, and the reason above them.
"""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from . import fit
from .fit import Fit, Scaling
from .isoflop import LEAST_SIZES
from .pictures import MARKERS, OTHERS, legend

ROLES = {"validation": "^", "test": "*"}


def law(one: Scaling, what: str) -> Figure:
    """Loss over parameters: runs, the law, and what was held out. `what` names the loss.

    The law is a line for each number of tokens; of many it would be a tangle, so there each run has a dash where the
    law puts it.
    """
    figure, axis = _figure()
    points, of = one.fit.measured.points, one.fit.law
    lengths = _groups(points.d)
    span = np.geomspace(min(points.n, default=1), max([*points.n, *(p.n for p in one.ahead)], default=1), 60)
    if len(lengths) <= len(OTHERS):
        for colour, (d, own) in zip(OTHERS, lengths, strict=False):
            label = f"{count(d)} tokens"
            axis.plot(points.n[own], points.loss[own], MARKERS[0], markersize=4, color=colour, label=label)
            if of is not None and fit.has_both(one.fit):
                axis.plot(span, of.loss(span, d), linewidth=1, color=colour)
    else:
        axis.plot(points.n, points.loss, MARKERS[0], markersize=4, color=OTHERS[0], label="a run")
        if of is not None and fit.has_both(one.fit):
            axis.plot(points.n, of.loss(points.n, points.d), "_", markersize=10, color=OTHERS[1], label="the law of it")
    if of is not None and not fit.has_both(one.fit):
        axis.plot(span, of.loss(span, 1.0), linewidth=1, color=OTHERS[0])
    for role, marker in ROLES.items():
        own = [p for p in one.ahead if p.role == role and np.isfinite(p.measured)]
        if own:
            style = dict(markersize=9, color="none", markeredgecolor=axis.xaxis.label.get_color())
            axis.plot([p.n for p in own], [p.measured for p in own], marker, label=role, **style)
    axis.set(xlabel="parameters", ylabel=what)
    _counted(axis)
    return _ended(figure, axis, _no_law(one.fit))


def residuals(one: Fit) -> Figure:
    """How far each run's loss lies from the law, in per cent, over parameters and over tokens."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots(2, 1)
    points = one.measured.points
    for axis, x, name in zip(axes, (points.n, points.d), ("parameters", "tokens"), strict=True):
        if one.law is not None:
            axis.plot(x, 100 * one.residuals, MARKERS[0], markersize=4, color=OTHERS[0], alpha=0.8)
        axis.axhline(0, color=axis.xaxis.label.get_color(), linewidth=0.8)
        axis.set(xlabel=name, ylabel="above the law (%)")
        _counted(axis)
        axis.grid(alpha=0.25)
    return _titled(figure, axes[0], _no_law(one))


def isoflops(one: Scaling, what: str) -> Figure:
    """Loss over parameters, a colour a budget: runs, the law along the budget, and the best size where it is told."""
    figure, axis = _figure()
    for i, budget in enumerate(one.budgets):
        colour = OTHERS[i % len(OTHERS)]
        own = budget.points
        axis.plot(own.n, own.loss, MARKERS[0], markersize=4, color=colour, label=f"{count(budget.flops)} FLOPs")
        if one.fit.law is not None:
            n = np.geomspace(own.n.min(), own.n.max(), 60)
            slope, level = np.polyfit(np.log(own.n), np.log(own.d), 1)
            axis.plot(n, one.fit.law.loss(n, np.exp(level) * n**slope), linewidth=1, color=colour)
        if not budget.why:
            axis.plot(budget.n, budget.loss, "*", markersize=11, color=colour, markeredgecolor="white")
            if budget.interval:
                axis.plot(budget.interval, [budget.loss] * 2, linewidth=2, color=colour)
    axis.set(xlabel="parameters", ylabel=what)
    _counted(axis)
    few = "" if one.budgets else f"no budget of FLOPs was spent by {LEAST_SIZES} sizes"
    return _ended(figure, axis, _no_law(one.fit) or few)


def _groups(values: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Each value, those that are alike as one, and where it stands."""
    numbers = fit.alike(values)
    return [(float(values[numbers == i].mean()), numbers == i) for i in dict.fromkeys(sorted(numbers.tolist()))]


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    return figure, figure.subplots()


def count(x: float, _: object = None) -> str:
    """67 K, 1.2 M; beyond what letters are usual for as 1.2e+17."""
    for size, letter in ((1e15, ""), (1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")):
        if x >= 0.995 * size:
            digits = 3 if x >= 99.5 * size else 2
            return f"{x / size:.{digits}g}{letter}" if letter else f"{x:.2g}"
    return f"{x:.2g}"


def _counted(axis: Axes) -> None:
    """A logarithmic axis of counts, which end far from powers of ten."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axis.xaxis.set_major_formatter(count)
    axis.xaxis.set_minor_locator(NullLocator())


def _ended(figure: Figure, axis: Axes, why: str) -> Figure:
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[1]:
        legend(axis)
    return _titled(figure, axis, why)


def _no_law(one: Fit) -> str:
    return f"no law: {one.why}" if one.why else ""


def _titled(figure: Figure, axis: Axes, why: str) -> Figure:
    if why:
        axis.set_title(textwrap.fill(why, 70), fontsize=9)
    return figure
