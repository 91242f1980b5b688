"""The report's pictures, each in a light and a dark version, an architecture in one colour everywhere."""

import io
import textwrap
from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from .architectures import COLOURS
from .best import BestOf
from .match import HALF_LIFE, Slope, smooth
from .published import Published
from .runs import TrainedRun, unit

# Of architectures without a colour of their own.
OTHERS = ("#8F6BD1", "#A0703C", "#3FA7A0", "#C2557A", "#6C8E2F", "#7E8AA8")
MARKERS = "osD^vP*X"
BOUNDS = {"": "o", ">": ">", "<": "<", "?": "x"}
COSTS = {"step": "steps", "flops": "model FLOPs", "seconds": "seconds of training"}
INK = {"light": ("#1b1b1b", "#ffffff"), "dark": ("#dddddd", "#16181c")}


def colours(groups: dict[str, list[TrainedRun]]) -> dict[str, str]:
    """By group; a second group of one architecture takes the spare colour that is least like those in use."""
    result: dict[str, str] = {}
    for label, runs in groups.items():
        usual = COLOURS.get(runs[0].arch)
        if usual and usual not in result.values():
            result[label] = usual
        else:
            kept = [*result.values(), *(c for run in groups.values() if (c := COLOURS.get(run[0].arch)))]
            spare = [c for c in OTHERS if c not in kept] or OTHERS
            result[label] = max(spare, key=partial(_unlike, kept))
    return result


def _unlike(others: Sequence[str], colour: str) -> float:
    """How far a colour is from the nearest of the others."""
    return min((float(np.abs(np.subtract(to_rgb(colour), to_rgb(other))).sum()) for other in others), default=0.0)


def both(draw, *args) -> dict[str, bytes]:
    """PNGs of `draw(*args) -> Figure`, by theme."""
    images = {}
    for theme, (ink, paper) in INK.items():
        names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        style = dict.fromkeys(names, ink) | {
            "figure.facecolor": paper,
            "axes.facecolor": paper,
            "savefig.facecolor": paper,
        }
        with rc_context(style | {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
            file = io.BytesIO()
            draw(*args).savefig(file, format="png", dpi=150)
            images[theme] = file.getvalue()
    return images


def legend(axis: Axes) -> None:
    """One that lies on the curves and lets them show through."""
    axis.legend(fontsize=8, framealpha=0.8, facecolor=axis.get_facecolor(), edgecolor="none", loc="best")


def headline(slopes: dict[str, dict[str, Slope]], colour: dict[str, str], known: Published) -> Figure:
    """`slopes[group][modality]`: the fraction of dense's steps that each group needs, beside MoT's published range."""
    modalities = list(dict.fromkeys(m for of in slopes.values() for m in of))
    places = [(m, group) for m in modalities for group in slopes if m in slopes[group]]
    figure = Figure(figsize=(5.2, 1.5 + 0.45 * (len(places) + len(modalities))), layout="constrained")
    axis = figure.subplots()
    y, ticks, right = 0, [], 1.3
    for modality in modalities:
        top = y
        for group in (group for at, group in places if at == modality):
            s = slopes[group][modality]
            at = s.value if np.isfinite(s.value) else 1.0  # "?": on dense's line
            axis.plot(at, y, marker=BOUNDS[s.bound], markersize=8, color=colour[group], zorder=3)
            if not s.bound and s.seeds > 1:
                axis.plot([s.low, s.high], [y, y], color=colour[group], linewidth=2, zorder=3)
                right = max(right, 1.05 * s.high)
            words = axis.annotate(text(s), (at, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
            words.set_bbox(dict(facecolor=axis.get_facecolor(), edgecolor="none", alpha=0.7, pad=0.5))
            right = max(right, 1.15 * at)
            ticks.append((y, textwrap.fill(f"{modality}: {group}", 18)))
            y += 1
        if band := known.slopes["mot"].get(modality):
            label = f"MoT, published ({known.rungs[0]} to {known.rungs[-1]})"
            axis.fill_betweenx(
                [top - 0.5, y - 0.5],
                min(band),
                max(band),
                color="#888888",
                alpha=0.3,
                linewidth=0,
                label=label if label not in axis.get_legend_handles_labels()[1] else None,
            )
        y += 0.4
    axis.axvline(1, color=colour.get("dense", COLOURS["dense"]), linewidth=2, label="dense")
    axis.set_yticks([t for t, _ in ticks], [label for _, label in ticks])
    axis.set(
        xlim=(0, min(right, 3)),
        ylim=(y - 0.6, -0.9),
        xlabel="share of dense's steps (less is better)",
    )
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.9 / (y + 1)), ncols=2, fontsize=9)
    return figure


def panels(loads: dict[str, dict[str, list]]) -> list[tuple]:
    """What `experts` draws of `loads[tower][modality][layer][expert]`, a panel each.

    A panel of a modality shows the share of its choices that each expert took, 1 = an even share. A tower that
    modalities share has one of specialisation, too: +1 where an expert serves the first modality alone.
    """
    found = []
    for tower, by_modality in loads.items():
        arrays = {m: np.array(x) for m, x in by_modality.items()}
        found += [(f"{tower}: {m}", x * x.shape[1], "viridis", 0, 2) for m, x in arrays.items()]
        if len(arrays) > 1:
            name, first = next(iter(arrays.items()))
            others = np.mean([*arrays.values()][1:], 0)
            total = np.where(first + others > 0, first + others, 1)
            found.append((f"{tower}: {name} (+) or not (-)", (first - others) / total, "RdBu_r", -1, 1))
    return found


def experts(title: str, x_LE: np.ndarray, colours: str, low: float, high: float) -> Figure:
    """One panel, layer by expert."""
    figure = Figure(figsize=(3.6, 2.5), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(x_LE, aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.set(xlabel="expert", ylabel="layer")
    axis.locator_params(integer=True)
    figure.colorbar(image, ax=axis)
    return figure


def text(s: Slope) -> str:
    """A bound with its sign; one below 0.01 with the digits that it takes to be none of 0."""
    if s.bound == "?":
        return "not known"
    value = f"{s.value:.2f}" if s.value >= 0.005 else f"{s.value:.1g}"
    return f"{s.bound} {value}" if s.bound else value


def curves(groups: dict[str, list[TrainedRun]], colour: dict[str, str], modality: str, cost: str) -> Figure:
    """Loss of one modality against a cost: held-out with markers, smoothed training thin; bands over seeds."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for i, (label, runs) in enumerate(groups.items()):
        for kind in ("train", "eval"):
            found = [c for run in runs if (c := run.curve(kind, modality, cost))]
            if not found:
                continue
            n = min(len(c.step) for c in found)
            x = np.mean([c.cost[:n] for c in found], axis=0)
            y = np.stack([smooth(c, HALF_LIFE).loss[:n] if kind == "train" else c.loss[:n] for c in found])
            late = found[0].step[:n] >= found[0].step[-1] / 4  # the part that slopes are read from
            x = x[late]
            y = y[:, late]
            # Later curves are thinner, so that those that lie on earlier ones hide none.
            thick = max(1.2, 3.2 - 2 * i / max(1, len(groups) - 1))
            style = dict(marker=MARKERS[i % len(MARKERS)], markersize=2.5 * thick, linewidth=thick)
            style = dict(linewidth=0.4 * thick) if kind == "train" else style
            axis.plot(x, y.mean(0), color=colour[label], label=label if kind == "eval" else None, **style)
            if len(found) > 1:
                axis.fill_between(x, y.min(0), y.max(0), color=colour[label], alpha=0.25, linewidth=0)
    axis.set(xlabel=COSTS[cost], ylabel=f"{modality} loss ({unit(groups, modality)})")
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[1]:
        legend(axis)
    return figure


def best_of(found: dict[str, BestOf], colour: dict[str, str], what: str) -> Figure:
    """The loss of the best of n points by architecture: the mean over all draws, and where four fifths of them lie."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for i, (arch, best) in enumerate(found.items()):
        half = max(1, len(best.n) // 2)  # beyond it few draws are left, and their spread says nothing
        axis.plot(best.n, best.mean, color=colour[arch], marker=MARKERS[i % len(MARKERS)], markersize=3, label=arch)
        axis.fill_between(best.n[:half], best.low[:half], best.high[:half], color=colour[arch], alpha=0.2, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set(xlabel="points tried (n)", ylabel=what)
    axis.grid(alpha=0.25)
    legend(axis)
    return figure


def intervals(numbers: Sequence, what: str) -> Figure:
    """`numbers`, of `questions.Number`: a place each, by modality, with its interval; a line where nothing differs."""
    places = sorted(range(len(numbers)), key=partial(_by_modality, numbers))
    figure = Figure(figsize=(5.2, 1.3 + 0.42 * len(places)), layout="constrained")
    axis = figure.subplots()
    ticks = []
    for y, i in enumerate(places):
        n = numbers[i]
        colour = COLOURS.get(n.group, OTHERS[0])
        axis.plot(n.value, y, marker="o", markersize=8, color=colour, zorder=3)
        if np.isfinite(n.low):
            axis.plot([n.low, n.high], [y, y], color=colour, linewidth=2, zorder=3)
        words = axis.annotate(f"{n.value:+.3f}", (n.value, y), xytext=(0, 7), textcoords="offset points", ha="center")
        words.set_bbox(dict(facecolor=axis.get_facecolor(), edgecolor="none", alpha=0.7, pad=0.5))
        words.set_fontsize(9)
        told = f"{n.modality}: {n.group}" if n.what == "tax" else f"{n.group}: {n.what}"
        ticks.append(textwrap.fill(told, 24))
    axis.axvline(0, color="#888888", linewidth=1.5)
    axis.set_yticks(range(len(places)), ticks, fontsize=9)
    axis.set(ylim=(len(places) - 0.5, -0.8), xlabel=what)
    axis.margins(x=0.15)
    return figure


def _by_modality(numbers: Sequence, i: int) -> tuple:
    n = numbers[i]
    return n.modality, n.what, n.group != "dense", n.group


def heat(maps: dict[str, dict[str, dict[str, float]]]) -> Figure:
    """`maps[title][architecture][modality]`, one below the other: shares of dense's steps, blue below 1, red above."""
    rows = [len(cells) for cells in maps.values()]
    figure = Figure(figsize=(5.2, 0.45 * sum(rows) + 0.75 * len(maps)), layout="constrained")
    axes = figure.subplots(len(maps), squeeze=False, height_ratios=rows)[:, 0]
    for axis, (title, cells) in zip(axes, maps.items(), strict=True):
        columns = list(dict.fromkeys(m for row in cells.values() for m in row))
        values = np.array([[row.get(m, np.nan) for m in columns] for row in cells.values()], np.float64)
        axis.imshow(np.log2(values), cmap="RdBu_r", vmin=-2.5, vmax=2.5, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            known = np.isfinite(value)
            ink = "#888888" if not known else "#ffffff" if abs(np.log2(value)) > 1.5 else "#1b1b1b"
            axis.text(j, i, f"{value:.2f}" if known else "?", ha="center", va="center", color=ink)
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(cells)), list(cells))
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(title, fontsize=10)
    return figure


def by_size(numbers: Sequence, sizes: dict[str, tuple[str, int]], known: Published) -> Figure:
    """Matching slopes against dense's parameters, a panel a modality; `sizes[group]` is its architecture and size."""
    modalities = list(dict.fromkeys(n.modality for n in numbers))
    figure = Figure(figsize=(5.2, 2.6 * len(modalities) + 0.4), layout="constrained")
    axes = figure.subplots(len(modalities), sharex=True, squeeze=False)[:, 0]
    for axis, modality in zip(axes, modalities, strict=True):
        for i, arch in enumerate(dict.fromkeys(arch for arch, _ in sizes.values())):
            of = [n for n in numbers if n.modality == modality and sizes[n.group][0] == arch and np.isfinite(n.value)]
            x = [sizes[n.group][1] for n in of]
            y = [n.value for n in of]
            colour = COLOURS.get(arch, OTHERS[i % len(OTHERS)])
            axis.plot(x, y, color=colour, linewidth=1, label=arch)
            for at, n in zip(x, of, strict=True):
                axis.plot(at, n.value, marker=BOUNDS[n.bound], color=colour, markersize=7)
                if not n.bound and n.n > 1:
                    axis.plot([at, at], [n.low, n.high], color=colour, linewidth=2)
        if band := known.slopes["mot"].get(modality):
            axis.axhspan(min(band), max(band), color="#888888", alpha=0.25, linewidth=0)
        axis.axhline(1, color=COLOURS["dense"], linewidth=1.5, label="dense")
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_ylabel(f"{modality}: share of\ndense's steps")
        axis.grid(alpha=0.25)
    axes[-1].set_xlabel("dense's parameters")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def isoflop(drawn: dict[tuple[float, str, str], dict[int, float]]) -> Figure:
    """`drawn[budget, architecture, modality][parameters]`: held-out loss, a panel a modality."""
    modalities = list(dict.fromkeys(modality for *_, modality in drawn))
    budgets = sorted({budget for budget, *_ in drawn})
    figure = Figure(figsize=(5.2, 2.8 * len(modalities) + 0.4), layout="constrained")
    axes = figure.subplots(len(modalities), sharex=True, squeeze=False)[:, 0]
    for (budget, arch, modality), losses in drawn.items():
        axis = axes[modalities.index(modality)]
        marker = MARKERS[budgets.index(budget) % len(MARKERS)]
        colour = COLOURS.get(arch, OTHERS[0])
        axis.plot([*losses], [*losses.values()], color=colour, marker=marker, label=f"{arch}, {budget:.2g} FLOPs")
    for axis, modality in zip(axes, modalities, strict=True):
        axis.set_xscale("log")
        axis.set_ylabel(f"held-out {modality} loss")
        axis.grid(alpha=0.25)
    axes[-1].set_xlabel("parameters")
    legend(axes[0])
    return figure


def lines(
    drawn: dict[str, dict[str, np.ndarray]],
    places: Sequence[int],
    along: str,
    even: float | None,
    colour: dict[str, str],
) -> Figure:
    """`drawn[series][group]`, `[runs, places]`: a panel a series, a line a group, and a band over its runs."""
    columns = min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(5.2, 0.4 + 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (series, by_group) in zip(axes, drawn.items(), strict=False):
        for i, (group, values) in enumerate(by_group.items()):
            known = ~np.isnan(values).all(0)
            x, y = np.array(places)[known], values[:, known]
            axis.plot(
                x, np.nanmean(y, 0), color=colour[group], marker=MARKERS[i % len(MARKERS)], markersize=4, label=group
            )
            if len(y) > 1:
                axis.fill_between(x, np.nanmin(y, 0), np.nanmax(y, 0), color=colour[group], alpha=0.25, linewidth=0)
        if even is not None:
            axis.axhline(even, color="#888888", linewidth=1)
        axis.set_title(series or "all", fontsize=9, parse_math=False)  # names of a file, none of ours
        axis.grid(alpha=0.25)
        axis.locator_params(axis="x", integer=True)
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    for axis in axes[-columns:]:
        axis.set_xlabel(along)
    labels = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(labels.values(), labels, fontsize=8, frameon=False, loc="outside upper center", ncols=3)
    return figure


def components(title: str, steps: Sequence[int], points: Sequence[np.ndarray], modalities: Sequence[str]) -> Figure:
    """Sampled tokens on the two principal components of a layer, a panel a step.

    `points` of each step are `[R, 2]`, and `modalities` say of each of the R tokens what it is.
    """
    figure = Figure(figsize=(0.4 + 2.2 * len(steps), 2.7), layout="constrained")
    axes = figure.subplots(1, len(steps), squeeze=False)[0]
    names = np.array(modalities)
    for axis, step, x_R2 in zip(axes, steps, points, strict=True):
        for i, name in enumerate(dict.fromkeys(modalities)):
            own = x_R2[names == name]
            axis.plot(*own.T, MARKERS[i % len(MARKERS)], markersize=2, color=OTHERS[i % len(OTHERS)], label=name)
        axis.set_title(f"step {step:,}", fontsize=9)
        axis.set(xticks=[], yticks=[])
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=9)
    return figure


def frequency(drawn: dict[str, dict[str, list[tuple[str, float, float]]]], colour: dict[str, str]) -> Figure:
    """`drawn[modality][group]`, a (source, share, loss) each: held-out loss against how often a source was seen."""
    figure = Figure(figsize=(5.2, 0.4 + 2.6 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), squeeze=False)[:, 0]
    for axis, (modality, by_group) in zip(axes, drawn.items(), strict=True):
        for i, (group, points) in enumerate(by_group.items()):
            names, x, y = zip(*points, strict=True)
            axis.plot(x, y, color=colour[group], marker=MARKERS[i % len(MARKERS)], linestyle="", label=group)
            for name, at, loss in zip(names, x, y, strict=True) if not i and len(names) < 16 else ():
                axis.annotate(name, (at, loss), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axis.set_xscale("log")
        axis.set_ylabel(f"held-out {modality} loss")
        axis.grid(alpha=0.25)
    axes[-1].set_xlabel("share of training")
    legend(axes[0])
    return figure


def coords(found: dict[str, dict], steps: Sequence[int]) -> Figure:
    """`found[transfer][width]`, sizes of activations (`launch/coords.py`): a panel of each transfer, a line a block."""
    figure = Figure(figsize=(4.2 * len(found), 6.4), layout="constrained")
    axes = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
    for column, (transfer, by_width) in enumerate(found.items()):
        widths = [*by_width]
        for row, name in enumerate(("value", "moved")):
            axis = axes[row, column]
            sizes = np.array([getattr(sizes, name) for sizes in by_width.values()])  # [widths, steps, layers, groups]
            for i, number in enumerate(steps):
                if name == "moved" and not number:
                    continue
                colour = OTHERS[i % len(OTHERS)]
                lines = sizes[:, i].reshape(len(widths), -1)
                axis.plot(widths, lines, color=colour, marker="o", markersize=3, linewidth=1)
                axis.plot([], [], color=colour, label=f"step {number}")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.set_xticks(widths, [str(width) for width in widths])
            axis.grid(alpha=0.25)
        axes[0, column].set_title(transfer)
        axes[1, column].set_xlabel("width")
    axes[0, 0].set_ylabel("root mean square after a block")
    axes[1, 0].set_ylabel("its change since step 0")
    axes[0, 0].legend(fontsize=8, frameon=False)
    return figure
