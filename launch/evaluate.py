"""Prints the held-out losses of a run's newest checkpoint, by modality and source."""

import dataclasses
import sys

from rich.console import Console
from rich.table import Table

from launch import arguments, flags
from launch.cli import guarded
from mot import rundir, train
from mot.errors import UserError


def main(argv: list[str] | None = None) -> int:
    p = arguments.evaluate()
    options, overrides = flags.parse(p, argv)
    if (options.run is None) == (not options.config):
        raise UserError("give a run directory, or the --config=FILE:arg that it was trained with")
    if options.run and overrides:
        raise UserError(f"--config.{next(iter(overrides))}: a run directory has its own configuration; leave it out")
    if options.run:
        config = rundir.config_of(options.run)
        run = dataclasses.replace(config.run, root=str(options.run.parent), name=options.run.name)
        config = dataclasses.replace(config, run=run)
    else:
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
