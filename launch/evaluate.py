"""Prints the held-out losses of a run's newest checkpoint, by modality and source."""

import sys

from rich.console import Console
from rich.table import Table

from launch import flags
from launch.cli import guarded
from mot import train


def main(argv: list[str] | None = None) -> int:
    p = flags.parser("evaluate", __doc__, "mot evaluate --config=configs/digits.py:arch=mot,size=smoke")
    flags.add_config(p)
    p.add_argument("--step", type=int, help="which checkpoint; default the newest")
    options, overrides = flags.parse(p, argv)
    config = flags.build(flags.read(options.config, overrides))
    step, row = train.evaluate(config, options.step)
    table = Table("", "held out", title=f"{config.run.name}, step {step}", title_justify="left")
    for name, value in row.items():
        if isinstance(value, float):  # loads by layer and expert are for the report
            table.add_row(name, f"{value:.4f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
