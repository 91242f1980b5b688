"""Prints the held-out losses of a run's newest checkpoint, by modality and source."""

import dataclasses
import sys

from rich.console import Console
from rich.table import Table

from launch import arguments, flags, refusals
from launch.process import guarded
from mot import checkpoint, sharding
from mot.config import load
from mot.runs import provenance, rundir
from mot.train import evaluate


def main(argv: list[str] | None = None) -> int:
    p = arguments.evaluate()
    options, overrides = flags.parse(p, argv)
    config = flags.build(load.read(options.config, overrides)) if options.config else None
    refusals.evaluation(options, overrides, config)
    if options.run:
        config = rundir.config_of(options.run)
        run = dataclasses.replace(config.run, root=str(options.run.parent), name=options.run.name)
        config = dataclasses.replace(config, run=run)
    # A configuration says how its rows are split; a run is read wherever it lies.
    step, row = evaluate.run(
        config, options.step, sharding.dividing(config) if options.run else None, bool(options.run)
    )
    table = Table("", "held out", title=f"{config.run.name}, step {step}", title_justify="left")
    for name, value in row.items():
        if isinstance(value, float):  # loads by layer and expert are for the report
            table.add_row(name, f"{value:.4f}")
    Console().print(table)
    made = checkpoint.made_by(rundir.folder(config) / "checkpoints" / str(step))
    print(f"checkpoint of step {step}: {provenance.told(made)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
