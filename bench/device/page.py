"""Results as tables for the screen and for Markdown, and as a picture."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown

from mot.files import write_atomically
from scaling.architectures import COLOURS

BACKENDS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
NONE = "-"


class Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]  # a row that failed has what went wrong in its last column


def of_part(results: dict, part: str) -> list[dict]:
    return [row for row in results["rows"] if row["part"] == part]


def figure(results: dict, part: str, name: str, key: str) -> float | None:
    """One figure of the row of that name; None where it is missing."""
    return next((row[key] for row in of_part(results, part) if row.get("name") == name), None)


def tables(results: dict) -> list[Table]:
    found = [_peaks(results), _steps(results), _attention(results), _grouped(results)]
    return [table for table in found if table.rows]


def told(row: dict) -> str:
    """What went wrong, or differs from what was asked for."""
    return row.get("failed") or "; ".join(row.get("failures", ()))


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return NONE if value is None else format(value * scale, form)


def _peaks(results: dict) -> Table:
    published = results["machine"]["published"] or {}
    rows = []
    for row in of_part(results, "peak"):
        key = "flops" if row.get("name") == "matmul" else "bandwidth"
        unit, scale = ("TFLOP/s", 1e-12) if key == "flops" else ("GB/s", 1e-9)
        measured, most = row.get(key), published.get(key)
        share = measured / most if measured and most else None
        name = f"{row['dtype']} matmul" if key == "flops" and "dtype" in row else row.get("name", "")
        figures = (f"{_number(measured, '.4g', scale)} {unit}", f"{_number(most, '.4g', scale)} {unit}")
        rows.append((name, *figures, _number(share, ".1%"), told(row)))
    return Table("Peaks of a device", ("", "measured", "published", "share", "remarks"), rows)


def _steps(results: dict) -> Table:
    columns = ("rung", "architecture", "rows", "ms", "bound, ms", "MFU", "at most", "thousand tokens a second")
    columns += ("compiled, s", "GB used", "GB of the compiler", "GB estimated", "remarks")
    rows = []
    for row in of_part(results, "step"):
        seconds, bound = row.get("seconds"), row.get("bound")
        share = mfu(row)
        most = share * seconds / bound if share and bound else None
        of_compiler = row.get("memory", {}).get("peak")
        gigabytes = (row.get("used"), of_compiler, row.get("estimated"))
        rows.append(
            (
                row["rung"],
                row["arch"],
                f"{row['rows']} x {row['length']}" if seconds else NONE,
                _number(seconds, ".1f", 1e3),
                _number(bound, ".1f", 1e3),
                _number(share, ".1%"),
                _number(most, ".1%"),
                _number(row.get("tokens_per_s"), ".1f", 1e-3),
                _number(row.get("compiling"), ".1f"),
                *(_number(n, ".2f", 1e-9) for n in gigabytes),
                told(row),
            )
        )
    return Table("Training steps", columns, rows)


def mfu(row: dict) -> float | None:
    """Of the published peak, or else of the measured one."""
    return row.get("mfu", row.get("mfu_measured"))


def _attention(results: dict) -> Table:
    rows = []
    for row in of_part(results, "attention"):
        both = row.get("both")
        rows.append(
            (
                row["backend"],
                row.get("mask", NONE),
                _number(row.get("forward"), ".2f", 1e3),
                _number(both, ".2f", 1e3),
                _number(both and row["flops"] / both, ".4g", 1e-12),
                _number(row.get("difference"), ".1e"),
                told(row),
            )
        )
    columns = ("backend", "mask", "forward, ms", "with backward, ms", "TFLOP/s", "differs", "remarks")
    return Table("Attention", columns, rows)


def _grouped(results: dict) -> Table:
    rows = []
    for row in of_part(results, "grouped"):
        both = row.get("both")
        rows.append(
            (
                row["kind"],
                str(row.get("experts", NONE)),
                _number(both, ".2f", 1e3),
                _number(both and row["single"], ".2f", 1e3),
                _number(both and row["flops"] / both, ".4g", 1e-12),
                _number(row.get("difference"), ".1e"),
                told(row),
            )
        )
    columns = ("kind", "experts", "with backward, ms", "one matrix, ms", "TFLOP/s", "differs", "remarks")
    return Table("Grouped matmuls", columns, rows)


def line(row: dict) -> str:
    """A row in some words, as it comes."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    if row["part"] == "peak":
        rate, unit = (row["flops"] / 1e12, "TFLOP/s") if "flops" in row else (row["bandwidth"] / 1e9, "GB/s")
        return f"{row['name']} {rate:.4g} {unit}"
    if row["part"] == "step":
        return f"{row['seconds'] * 1e3:.1f} ms, MFU {_number(mfu(row), '.1%')}"
    return f"{row.get('mask', row.get('experts'))}: {row['both'] * 1e3:.2f} ms, {row['flops'] / row['both'] / 1e12:.4g} TFLOP/s"


HEAD = """# What {devices} x {device_kind} reaches

`python -m bench.device`, {time}, commit {commit}, jax {jax}; {minutes:g} minutes allowed, {seconds:.0f} s taken.

{bound} A step's compiling is without JAX's cache. Memory is one device's: what the allocator counted in the step's own
process, what the compiler says, and what `mot plan --search` estimates before. Attention's and grouped matmuls' FLOP/s
are those of visible pairs and of rows; "differs" is the largest difference from `reference` and `einsum` in the same
dtype, of the largest number, results and gradients together.
"""
PUBLISHED = (
    "MFU is model FLOPs of the published peak. The bound is the plan's: the operations of the program that is timed, one "
    "after another at the chip's published figures."
)
MEASURED = (
    "No figures of this chip are known, so MFU is of the measured matmul peak, and the bound is of matmuls at that peak "
    "alone."
)


def head(results: dict) -> str:
    machine = results["machine"]
    bound = PUBLISHED if machine["published"] else MEASURED
    return HEAD.format(**machine | {k: results[k] for k in ("minutes", "seconds")}, bound=bound)


def write(results: dict, folder: Path) -> None:
    """device.md and device.png."""
    parts = [head(results)]
    for table in tables(results):
        lines = ["| " + " | ".join(cells) + " |" for cells in (table.columns, ["---"] * len(table.columns))]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
        parts += [f"## {table.title}\n", "\n".join(lines) + "\n"]
    if results["left_out"]:
        parts += ["## Left out, as there was no time\n", ", ".join(results["left_out"]) + "\n"]
    write_atomically(folder / "device.md", "\n".join(parts))
    file = io.BytesIO()
    picture(results).savefig(file, format="png", dpi=150)
    write_atomically(folder / "device.png", file.getvalue())


def show(results: dict, out: Console) -> None:
    for table in tables(results):
        shown = Shown(*table.columns, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*map(escape, row))
        out.print(shown)
    if results["left_out"]:
        out.print(f"left out, as there was no time: {', '.join(results['left_out'])}", markup=False)


# --- the picture -----------------------------------------------------------------------------------------------------


def picture(results: dict) -> Figure:
    """MFU of steps under the plan's bound, attention by backend, experts by their number."""
    drawn = Figure(figsize=(13, 4.6), layout="constrained")
    machine = results["machine"]
    drawn.suptitle(f"{machine['devices']} x {machine['device_kind']}, jax {machine['jax']}", x=0.01, ha="left")
    steps, attention, experts = drawn.subplots(1, 3, width_ratios=(1.3, 1.3, 1))
    _draw_steps(steps, [row for row in of_part(results, "step") if "seconds" in row and mfu(row)], machine)
    rows = [row for row in of_part(results, "attention") if "both" in row]
    rate = {(row["backend"], row["mask"]): row["flops"] / row["both"] / 1e12 for row in rows}
    _bars(attention, rate, BACKENDS)
    attention.set(title="Attention, forward and backward", ylabel="TFLOP/s of visible pairs")
    _draw_experts(experts, [row for row in of_part(results, "grouped") if "both" in row])
    for axis in (steps, attention, experts):
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(11)
    return drawn


def _bars(axis: Axes, values: dict[tuple[str, str], float], colours: Sequence[str] | dict[str, str]) -> Callable:
    """`values[series, group]` as bars side by side in each group; the function tells where one stands."""
    series, groups = (list(dict.fromkeys(key[i] for key in values)) for i in (0, 1))
    width = 0.8 / max(len(series), 1)

    def place(name: str, group: str) -> float:
        return groups.index(group) + (series.index(name) - (len(series) - 1) / 2) * width

    for n, name in enumerate(series):
        own = [group for group in groups if (name, group) in values]
        colour = colours[name] if isinstance(colours, dict) else colours[n % len(colours)]
        at = [place(name, group) for group in own]
        axis.bar(at, [values[name, group] for group in own], 0.9 * width, color=colour, label=name)
    axis.set_xticks(range(len(groups)), groups)
    axis.margins(y=0.25)
    if series:
        axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    return place


def _draw_steps(axis: Axes, rows: list[dict], machine: dict) -> None:
    place = _bars(axis, {(row["arch"], row["rung"]): 100 * mfu(row) for row in rows}, COLOURS)
    for n, row in enumerate(row for row in rows if row.get("bound")):
        at, most = place(row["arch"], row["rung"]), 100 * mfu(row) * row["seconds"] / row["bound"]
        axis.plot([at - 0.09, at + 0.09], [most, most], color="#1b1b1b", linewidth=2, label=None if n else "bound")
    of = "the published peak" if machine["published"] else "the measured peak"
    axis.set(title="Training steps", ylabel=f"MFU, % of {of}")
    if rows:
        axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")


def _draw_experts(axis: Axes, rows: list[dict]) -> None:
    for n, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
        own = [row for row in rows if row["kind"] == kind]
        numbers, shares = zip(*((row["experts"], row["single"] / row["both"]) for row in own), strict=True)
        axis.plot(numbers, shares, "o-", color=BACKENDS[n % len(BACKENDS)], label=kind)
    axis.set(
        title="Experts' matmuls, forward and backward", xlabel="experts", ylabel="speed, of one matrix for all rows"
    )
    axis.set_ylim(0, 1.05 * max([1.0, *(row["single"] / row["both"] for row in rows)]))
    if rows:
        numbers = sorted({row["experts"] for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(numbers, map(str, numbers))
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize=8)
