"""Measures how modalities compete inside a run's checkpoints, and writes it into the run's folder."""

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from launch import arguments, cores, flags
from launch.process import guarded
from mot.console import say_once
from mot.runs import written
from mot.train import probe


def main(argv: list[str] | None = None) -> int:
    p = arguments.probe()
    options = p.parse_args(argv)
    steps, what = arguments.probed(options)
    cores.take(written.config_as_written(options.run))
    found = probe.run(options.run, steps, what, say_once, options.fetch)
    for step, kinds in found.items():
        for kind, (numbers, _) in kinds.items():
            show(f"{options.run.name} step {step}: {kind}", numbers)
    print(f"written: {options.run / 'probes.jsonl'}, arrays in {options.run / 'probes'}")
    next_line = flags.command("probe", str(options.run), "--steps", "all")
    print(f"next:\n  {next_line}  # the same of all its checkpoints", file=sys.stderr)
    return 0


def show(title: str, numbers: Mapping[str, float]) -> None:
    """A table of numbers by name, a column for each layer: the last part of a name."""
    rows: dict[str, dict[str, float]] = {}
    for name, number in numbers.items():
        first, _, layer = name.partition("/")[2].rpartition("/")
        is_layer = layer.isdecimal() or layer in ("ends", "all")
        rows.setdefault(first if is_layer else f"{first}/{layer}", {})[layer if is_layer else "all"] = number
    layers = sorted({layer for row in rows.values() for layer in row}, key=_place)
    table = Table("", *layers, title=title, title_justify="left", box=None, padding=(0, 1))
    for name, row in rows.items():
        table.add_row(name, *(f"{row[layer]:.3g}" if layer in row else "" for layer in layers))
    Console(soft_wrap=True, highlight=False).print(table, markup=False)


def _place(layer: str) -> tuple[bool, int, str]:
    return (not layer.isdecimal(), int(layer) if layer.isdecimal() else 0, layer)


if __name__ == "__main__":
    sys.exit(guarded(main))
