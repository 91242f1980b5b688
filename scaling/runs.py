"""Run directories, read back: their rows, the table that compares them, and their curves."""

import statistics
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from mot import config as configs
from mot import flops, params, rundir
from mot.config import Config

# Okabe and Ito's colours, which the colour-blind tell apart; one architecture has one colour everywhere.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


class Run(NamedTuple):
    path: Path
    config: Config
    rows: list[dict]

    @property
    def arch(self) -> str:
        """The run's name without its seed."""
        return self.config.run.name.rpartition("-seed")[0] or self.config.run.name

    def series(self, kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of the rows that have the key."""
        points = [(row["step"], row[key]) for row in self.rows if row["kind"] == kind and key in row]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps), np.array(values, float)


def load(path: Path | str) -> Run:
    """A run directory; raises `ValueError` where it is none or is damaged."""
    path = Path(path)
    return Run(path, configs.build(rundir.read_config(path)), rundir.read_metrics(path))


def by_arch(runs: list[Run]) -> dict[str, list[Run]]:
    result: dict[str, list[Run]] = {}
    for run in runs:
        result.setdefault(run.arch, []).append(run)
    return result


def print_table(runs: list[Run]) -> None:
    """Held-out loss by modality, size, cost and speed; means over seeds, with the least and the greatest."""
    grouped = by_arch(runs)
    table = Table("", *grouped, title="after the same steps on the same batches", title_justify="left")
    first = runs[0].config
    for modality in first.modalities:
        finals = [[run.series("eval", f"loss/{modality}")[1][-1] for run in group] for group in grouped.values()]
        table.add_row(f"held-out loss, {modality} (nats)", *(_spread(x, "{:.4f}") for x in finals))
    evaluated = [row for row in runs[0].rows if row["kind"] == "eval"][-1]
    for key in [k for k in evaluated if k.startswith("bits_per_byte/")]:
        finals = [[run.series("eval", key)[1][-1] for run in group] for group in grouped.values()]
        table.add_row(key.replace("bits_per_byte/", "bits per byte, "), *(_spread(x, "{:.3f}") for x in finals))
    group_configs = [group[0].config for group in grouped.values()]
    millions = lambda n: f"{n / 1e6:.2f} M"
    table.add_row("parameters", *(millions(params.count(params.table(c))) for c in group_configs))
    for stream in first.streams:
        table.add_row(f"active, {stream} token", *(millions(flops.active_parameters(c)[stream]) for c in group_configs))
    last = lambda run, key: run.series("train", key)[1][-1]
    tokens = lambda run: sum(last(run, f"tokens/{m}") for m in first.modalities)
    table.add_row("FLOPs per token", *(millions(last(g[0], "flops") / tokens(g[0])) for g in grouped.values()))
    for label, key, form in (
        ("step time (ms)", "step_seconds", lambda x: f"{1e3 * x:.0f}"),
        ("tokens per second", "tokens_per_s", lambda x: f"{x:,.0f}"),
        ("of matmul peak", "mfu", lambda x: f"{100 * x:.0f} %"),
        *((f"fill, {s}", f"fill/{s}", lambda x: f"{100 * x:.1f} %") for s in first.streams),
    ):
        summary = statistics.mean if key.startswith("fill") else statistics.median
        table.add_row(
            label, *(form(summary([x for r in g for x in r.series("train", key)[1]])) for g in grouped.values())
        )
    Console().print(table)


def _spread(values, form):
    mean = form.format(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean}  [{form.format(min(values))}, {form.format(max(values))}]"


def draw_curves(runs: list[Run], file: Path) -> None:
    """One panel a modality: held-out loss against steps, a line an architecture, a band over its seeds."""
    modalities = runs[0].config.modalities
    figure = Figure(figsize=(5.2 * len(modalities), 4.2), layout="constrained")
    axes = figure.subplots(1, len(modalities), squeeze=False)
    for axis, modality in zip(axes[0], modalities, strict=True):
        for (arch, group), colour in zip(by_arch(runs).items(), cycle(COLOURS), strict=False):
            steps = group[0].series("eval", f"loss/{modality}")[0]
            values = np.stack([run.series("eval", f"loss/{modality}")[1] for run in group])
            steps, values = steps[1:], values[:, 1:]  # before training all are alike, and off the scale
            axis.plot(
                steps,
                values.mean(0),
                color=colour,
                marker="o",
                markersize=3,
                label=f"{arch} {values[:, -1].mean():.3f}",
            )
            axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
        axis.set(title=modality, xlabel="step", ylabel="held-out loss (nats per token)")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    seeds = max(len(group) for group in by_arch(runs).values())
    which = f"mean of {seeds} seeds, band from least to greatest" if seeds > 1 else "one seed"
    figure.suptitle(f"the same batches, the same FLOPs per token; {which}")
    figure.savefig(file, dpi=150)
