"""Runs a sweep, a list of configurations, on this machine; says what it would cost; tells how far it is."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import arguments, cores, refusals, sweep_cost, sweep_work
from launch.process import guarded
from launch.sweep_rows import Row, chosen, claim, judged, read, refuse_other, usual_out
from launch.sweep_shown import console, count, shown, table
from launch.sweep_work import Failure
from mot import sharding
from mot.config import Config
from mot.console import phase
from mot.data import sources
from mot.errors import UserError
from mot.files import as_path
from mot.runs import rundir, states, trackers
from mot.runs.swept import NAME, saved
from mot.train.memory import too_large


def main(argv: list[str] | None = None) -> int:
    options = arguments.sweep().parse_args(argv)
    if options.sweep == arguments.STATUS:
        return status(as_path(options.folder))
    text = options.sweep
    rows = read(text)
    out = options.out or usual_out(text)
    if options.row is not None:
        return one_program(text, rows, out, chosen(text, options.row, len(rows)), options.distributed)
    if options.dry_run:
        return dry_run(text, rows, out, options.topology)
    return whole(text, rows, out)


def whole(text: str, rows: Sequence[Mapping], out: Path) -> int:
    """Trains all rows to their end, and writes the report about them."""
    with phase(f"reading {len(rows)} rows"):
        refuse_other(out, text, rows)
        refusals.folder(out, "--out")
        found = judged(text, rows, out, faults)
    claim(out, text, rows)
    before = {row.name: states.of(row.path, row.config.run.steps) for row in found}
    is_left_alone = all(state.name in states.ENDED for state in before.values()) and (out / "report.html").exists()
    failures: dict[str, Failure] = {}
    if is_left_alone:
        print(f"nothing is left to do: {count(before)}", file=sys.stderr)
    else:
        with shown() as (show, say):
            failures = sweep_work.work(text, out, found, show, say)
    status(out)
    told = [f"{name}: {failure.why}; its log is {failure.log}" for name, failure in failures.items()]
    told = [f"{len(failures)} of {len(found)} rows failed twice", *told] if told else []
    if not is_left_alone:
        told += _report(out, found)
    if told:
        raise UserError("\n  ".join(told))
    return 0


def faults(config: Config) -> Iterator[str]:
    """What is wrong with a row beside its configuration: its data, its size, or its folder, which holds another run."""
    yield from sources.faults(config)
    if not cores.accelerators():  # of which the process that trains asks JAX
        mesh = sharding.abstract(config, 1)
        if fault := too_large(config, mesh, sharding.machine_memory() // mesh.size):
            yield fault
        if mesh.size > cores.cores():
            yield f"mesh: {mesh.size} devices, and this machine has {cores.cores()} cores; make its axes smaller"
    yield from _refused(refusals.training, [config])
    yield from _refused(trackers.refuse_absent, config.run.trackers)
    path = rundir.folder(config)
    if (path / "config.json").exists():
        different = rundir.changes(rundir.read_config(path), rundir.plain(config))
        allowed = (*rundir.HOW_OFTEN, *rundir.RATES)  # to change as a run goes on
        if any(one.partition(":")[0] not in allowed for one in different):
            told = "; ".join(different[:5])
            yield f"{path} holds a run of another configuration (its -> yours): {told}; choose another --out"


def _refused(refuse: Callable[[Any], None], given: Any) -> Iterator[str]:
    try:
        refuse(given)
    except UserError as error:
        yield str(error)


def _report(out: Path, rows: Sequence[Row]) -> list[str]:
    """Writes the report about the runs that have begun; returns why, where it cannot be written."""
    from scaling import report, runs  # they take a second to import, and only here anybody waits for them

    paths = [row.path for row in rows if states.of(row.path).step]
    try:
        with phase("writing the report"):
            sentence = report.write(runs.find(paths), out)
    except UserError as error:
        return [f"no report was written: {error}"]
    print(f"{sentence}\nreport: {out / 'report.html'}")
    return []


def one_program(
    text: str, rows: Sequence[Mapping], out: Path, indices: Sequence[int], distributed: str | None = None
) -> int:
    """Trains some rows in this process: one, or several in one program; also as a task of a cluster's array.

    `distributed`: this is one of several processes of the row, as `mot train --distributed` has it.
    """
    from launch import train  # as above
    from mot.train import ensemble, loop

    sweep_work.end_with_parent()
    if distributed is not None:
        train.join(distributed)
    found = judged(text, rows, out, sources.faults, indices)
    configs = [row.config for row in found]
    if distributed is None or sharding.is_first_process():
        refusals.training(configs)
        claim(out, text, rows, is_part=True)
    if distributed is None:  # else each process has what its user gave it
        cores.take(*configs, together=len(configs) > 1)
    if len(configs) == 1:
        loop.run(configs[0])
    else:
        ensemble.run(configs)
    return 0


def dry_run(text: str, rows: Sequence[Mapping], out: Path, topology: str | None) -> int:
    """Shows what would run, and what it would cost; writes nothing."""
    devices = sweep_cost.here() if topology is None else sweep_cost.named(topology)
    refuse_other(out, text, rows)
    sweep_cost.show(judged(text, rows, out, sweep_cost.fits(devices)), devices)
    return 0


def status(out: Path) -> int:
    """Shows the state of every row of the sweep whose folder this is."""
    names = [row[NAME] for row in saved(out)["rows"]]
    console(sys.stdout).print(table({name: states.of(out / name) for name in names}))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
