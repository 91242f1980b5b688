"""Results as tables for the screen and for Markdown, and as a picture."""

import io
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown

from bench.device.machine import ARCHS
from mot.files import write_atomically
from scaling.architectures import COLOURS

SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#1b1b1b"
NONE = "-"
PREFIXES = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
WIDTH = 120  # characters that tables want, also where nobody says how wide the screen is


class Table(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def of_part(results: dict, part: str) -> list[dict]:
    return [row for row in results["rows"] if row["part"] == part]


def figure(results: dict, part: str, name: str, key: str) -> float | None:
    """One figure of the row of that name; None where it is missing."""
    return next((row[key] for row in of_part(results, part) if row.get("name") == name), None)


def mfu(row: dict) -> float | None:
    """Of the published peak, or else of the measured one."""
    return row.get("mfu", row.get("mfu_measured"))


def tables(results: dict) -> list[Table]:
    """What was measured, and last what failed, what was done otherwise than asked, and what was left out."""
    found = [_peaks(results), _steps(results), _memory(results), _attention(results), _grouped(results)]
    remarks = [(told(row), remark) for row in results["rows"] if (remark := _remark(row))]
    found += [
        Table("What went wrong", ("part", "what was said"), remarks),
        Table("Left out, as there was no time", ("part",), [(name,) for name in results["left_out"]]),
    ]
    return [table for table in found if table.rows]


def told(row: dict) -> str:
    """The part that a row is of, and which row."""
    keys = ("part", "name", "rung", "arch", "backend", "mask", "kind", "experts")
    return " ".join(str(row[key]) for key in keys if key in row)


def _remark(row: dict) -> str:
    return row.get("failed") or "; ".join(row.get("failures", ()))


def number(value: float | None) -> str:
    """Three figures and a unit's prefix: 412 T of 4.12e14."""
    if value is None:
        return NONE
    prefix, scale = next((p for p in PREFIXES if abs(value) >= p[1]), ("", 1))
    return f"{value / scale:.3g} {prefix}".rstrip()


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _fixed(value: float | None, scale: float = 1.0) -> str:
    """To two places; smaller numbers to three figures."""
    if value is None:
        return NONE
    return f"{value * scale:.2f}" if value * scale >= 0.1 else f"{value * scale:.3g}"


def _done(results: dict, part: str) -> list[dict]:
    return [row for row in of_part(results, part) if "failed" not in row]


def _done_steps(results: dict) -> list[dict]:
    """In the order of sizes, not in that of their worth."""
    rungs = [of["rung"] for of in results["machine"]["rungs"]]
    return sorted(_done(results, "step"), key=lambda row: (rungs.index(row["rung"]), ARCHS.index(row["arch"])))


def _peaks(results: dict) -> Table:
    published = results["machine"]["published"] or {}
    rows = []
    for row in _done(results, "peak"):
        key, unit = ("flops", "FLOP/s") if row["name"] == "matmul" else ("bandwidth", "bytes/s")
        most = published.get(key)
        rows.append((row["name"], unit, number(row[key]), number(most), _share(row[key] / most if most else None)))
    return Table("Peaks of a device", ("", "of", "measured", "published", "share"), rows)


def _steps(results: dict) -> Table:
    columns = ("rung", "architecture", "rows", "ms", "bound, ms", "binds", "MFU", "at most", "tokens/s", "kernels")
    rows = []
    for row in _done_steps(results):
        size = f"{row['rows']} x {row['length']}"
        times = _fixed(row["seconds"], 1e3), _fixed(row.get("bound"), 1e3), row.get("binding", NONE)
        kernels = row["attention"] if row["arch"] in ("dense", "mot") else f"{row['attention']}, {row['dispatch']}"
        shares = _share(mfu(row)), _share(mfu_at_most(row))
        rows.append((row["rung"], row["arch"], size, *times, *shares, number(row["tokens_per_s"]), kernels))
    return Table("Training steps", columns, rows)


def mfu_at_most(row: dict) -> float | None:
    return mfu(row) * row["seconds"] / row["bound"] if row.get("bound") else None


def _memory(results: dict) -> Table:
    columns = ("rung", "architecture", "parameters", "traced, s", "compiled, s", "GB used", "GB compiled")
    columns += ("GB estimated", "matmuls")
    rows = []
    for row in _done_steps(results):
        bytes_ = row["used"], row.get("memory", {}).get("peak"), row["estimated"]
        gigabytes = (_fixed(n, 1e-9) for n in bytes_)
        times = f"{row['tracing']:.1f}", f"{row['compiling']:.1f}"
        matmuls = f"{row['matmuls']:.3f}" if "matmuls" in row else NONE
        rows.append((row["rung"], row["arch"], number(row["parameters"]), *times, *gigabytes, matmuls))
    return Table("Compiling and memory of these steps", columns, rows)


def _attention(results: dict) -> Table:
    rows = []
    for row in _done(results, "attention"):
        times = _fixed(row["forward"], 1e3), _fixed(row["both"], 1e3)
        rows.append((row["backend"], row["mask"], *times, number(row["flops"] / row["both"]), _unlike(row)))
    return Table("Attention", ("backend", "mask", "forward, ms", "both, ms", "FLOP/s", "differs"), rows)


def _grouped(results: dict) -> Table:
    rows = []
    for row in _done(results, "grouped"):
        times = _fixed(row["both"], 1e3), _fixed(row["single"], 1e3)
        rows.append((row["kind"], str(row["experts"]), *times, number(row["flops"] / row["both"]), _unlike(row)))
    return Table("Grouped matmuls", ("kind", "experts", "both, ms", "one matrix, ms", "FLOP/s", "differs"), rows)


def _unlike(row: dict) -> str:
    return NONE if row["difference"] is None else f"{row['difference']:.1e}"


def line(row: dict) -> str:
    """A row in some words, as it comes."""
    if "failed" in row:
        return f"{told(row)}: failed: {row['failed']}"
    if row["part"] == "peak":
        return f"{told(row)}: {number(row.get('flops', row.get('bandwidth')))} a second"
    if row["part"] == "step":
        return f"{told(row)}: {_fixed(row['seconds'], 1e3)} ms, MFU {_share(mfu(row))}"
    return f"{told(row)}: {_fixed(row['both'], 1e3)} ms, {number(row['flops'] / row['both'])} FLOP/s"


HEAD = """# What {devices} x {device_kind} reaches

`python -m bench.device`, {time}, commit {commit}, jax {jax}; {minutes:g} minutes allowed, {seconds:.0f} s taken.

{bound} "Matmuls" are those of the program, over the formula's and what is recomputed; loops of unknown length and
kernels that do not tell theirs are missing. Compiling is without JAX's cache. Memory is one device's: what the
allocator counted in the step's own process, what the compiler says, and what `mot plan --search` estimates before.
"Both" is forward and backward. FLOP/s are of visible pairs, and of rows. "Differs" is the largest difference of any
result or gradient from `reference` and `einsum` in the same dtype, of the largest number.
"""
PUBLISHED = """MFU is model FLOPs of the published peak. The bound is the plan's: the operations of the program that is
timed, one after another at the chip's published figures."""
MEASURED = """No figures of this chip are known, so MFU is of the measured matmul peak, and the bound is of matmuls at
that peak alone."""


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
    write_atomically(folder / "device.md", "\n".join(parts))
    file = io.BytesIO()
    picture(results).savefig(file, format="png", dpi=150)
    write_atomically(folder / "device.png", file.getvalue())


def show(results: dict) -> None:
    out = Console()
    out.width = max(out.width, WIDTH)
    for table in tables(results):
        shown = Shown(*table.columns, title=table.title, title_justify="left", title_style="bold")
        for row in table.rows:
            shown.add_row(*map(escape, row))
        out.print(shown)


# --- the picture -----------------------------------------------------------------------------------------------------


def picture(results: dict) -> Figure:
    """MFU of steps under the plan's bound, attention by backend, experts by their number."""
    drawn = Figure(figsize=(13, 4.6), layout="constrained")
    machine = results["machine"]
    drawn.suptitle(f"{machine['devices']} x {machine['device_kind']}, jax {machine['jax']}", x=0.01, ha="left")
    steps, attention, experts = drawn.subplots(1, 3, width_ratios=(1.3, 1.3, 1))
    _draw_steps(steps, [row for row in _done_steps(results) if mfu(row)], machine)
    _draw_attention(attention, _done(results, "attention"))
    _draw_experts(experts, _done(results, "grouped"))
    for axis in (steps, attention, experts):
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(11)
    return drawn


class Bars(NamedTuple):
    """Bars side by side, a series in each group."""

    series: list[str]
    groups: list[str]

    @property
    def width(self) -> float:
        return 0.8 / max(len(self.series), 1)

    def place(self, name: str, group: str) -> float:
        """The middle of a bar."""
        return self.groups.index(group) + (self.series.index(name) - (len(self.series) - 1) / 2) * self.width


def _draw_bars(axis: Axes, values: dict[tuple[str, str], float], colours: dict[str, str]) -> Bars:
    """`values[series, group]`."""
    bars = Bars(*(list(dict.fromkeys(key[i] for key in values)) for i in (0, 1)))
    for name in bars.series:
        own = {bars.place(name, group): value for (of, group), value in values.items() if of == name}
        axis.bar([*own], [*own.values()], 0.9 * bars.width, color=colours[name], label=name)
    axis.set_xticks(range(len(bars.groups)), bars.groups)
    axis.margins(y=0.25)
    return bars


def _legend(axis: Axes, columns: int, place: str = "upper left") -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8, ncols=columns, loc=place)


def _draw_steps(axis: Axes, rows: list[dict], machine: dict) -> None:
    bars = _draw_bars(axis, {(row["arch"], row["rung"]): 100 * mfu(row) for row in rows}, COLOURS)
    label = "the plan's bound"
    for row in rows:
        if (most := mfu_at_most(row)) is not None:
            at = bars.place(row["arch"], row["rung"])
            half = 0.45 * bars.width
            axis.plot([at - half, at + half], [100 * most] * 2, color=INK, linewidth=2, label=label)
            label = None
    of = "the published peak" if machine["published"] else "the measured peak"
    axis.set(title="Training steps", ylabel=f"MFU, % of {of}")
    _legend(axis, 3)


def _draw_attention(axis: Axes, rows: list[dict]) -> None:
    rates = {(row["backend"], row["mask"]): row["flops"] / row["both"] for row in rows}
    backends = dict.fromkeys(row["backend"] for row in rows)
    _draw_bars(axis, rates, dict(zip(backends, SERIES, strict=False)))
    axis.yaxis.set_major_formatter(lambda value, _: number(value))
    axis.set(title="Attention, forward and backward", ylabel="FLOP/s of visible pairs")
    _legend(axis, 2, "upper right")


def _draw_experts(axis: Axes, rows: list[dict]) -> None:
    kinds = dict.fromkeys(row["kind"] for row in rows)
    for kind, colour in zip(kinds, SERIES, strict=False):
        own = {row["experts"]: row["single"] / row["both"] for row in rows if row["kind"] == kind}
        axis.plot([*own], [*own.values()], "o-", color=colour, label=kind)
    axis.axhline(1, color=INK, linewidth=0.8)
    axis.set(title="Experts' matmuls", xlabel="experts", ylabel="speed, of one matrix for all rows", ylim=(0, None))
    if rows:
        numbers = sorted({row["experts"] for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(numbers, map(str, numbers))
        axis.minorticks_off()
    _legend(axis, 1, "lower left")
