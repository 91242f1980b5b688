"""A sweep's processes without training: runs whose directories look as training leaves them, in a second.

`python -m tests.support.sweeping FOLDER` is such a process, `sweep(FOLDER)` a sweep of them.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from launch import flags, sweep_rows, sweep_work
from mot.config import load
from mot.runs import lock, rundir, written

STEPS = 4
MACHINE = sweep_work.Machine(set(sorted(os.sched_getaffinity(0))[:2]), 1e12)  # two cores on any machine
HELD = "held"
SMOKE = "configs/digits.py:size=smoke"


def rows(out, names, **more):
    """Rows that are called by what becomes of their processes, see `one`."""
    found = []
    for i, name in enumerate(names):
        values = {"config": SMOKE, "run.name": name, "run.steps": STEPS, "data.seed": i} | more
        tree = load.read(SMOKE, sweep_rows.overrides(values) | {"run.root": str(out)})
        found.append(sweep_rows.Row(i, values, flags.judged(tree)))
    return found


def one(path: Path) -> int:
    """Trains nothing, and goes on from the last step that was saved.

    fails*: ends after a step, always; once*: after its second, the first time; dies*: is killed there, the first time;
    diverges*: ends after its second step, as a run does whose patience is up; slow*: takes half a second a step,
    and no second one while a file HELD lies beside its folder.
    """
    sweep_work.end_with_parent()
    name = path.name
    again = (path / "again").exists()
    path.mkdir(exist_ok=True)
    (path / "again").touch()
    with lock.held(path):
        done = rundir.checkpoint.steps(path / "checkpoints")
        write(path, {"kind": "event", "step": done[-1] if done else 0, "event": "start"})
        for step in range(1 + (done[-1] if done else 0), STEPS + 1):
            time.sleep(0.5 if name.startswith("slow") else 0.01)
            while name.startswith("slow") and step > 1 and (path.parent / HELD).exists():
                time.sleep(0.02)
            write(path, {"kind": "train", "step": step, "loss/text": 1.0 / step, "step_seconds": 0.1})
            (path / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
            (path / "checkpoints" / str(step) / "manifest.json").touch()
            if name.startswith("fails") or (step == 2 and name.startswith("once") and not again):
                print("mot: there is no room for it", file=sys.stderr)
                return 2
            if step == 2 and name.startswith("diverges"):
                write(path, {"kind": "event", "step": step, "event": "diverged"})
                return 2
            if step == 2 and name.startswith("dies") and not again:
                os.kill(os.getpid(), signal.SIGKILL)
    return 0


def write(path, row):
    with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(rundir.line_of({"schema": rundir.SCHEMA, **row}))


def command(text, out, rows):
    for row in rows:
        row.path.mkdir(parents=True, exist_ok=True)
        (row.path / "config.json").write_text(written.sealed(rundir.plain(row.config)), encoding="utf-8")
    return [sys.executable, "-m", "tests.support.sweeping", *(str(row.path) for row in rows)]


def sweep(out, names, show=lambda known: None, say=lambda line: None):
    """Runs such rows to their end; the failures, and the processes that were started."""
    started = []

    def recorded(text, out, rows):
        started.append([row.name for row in rows])
        return command(text, out, rows)

    def machine():
        return MACHINE

    before = sweep_work.command, sweep_work.machine
    sweep_work.command = recorded
    sweep_work.machine = machine
    try:
        return sweep_work.work("FILE:NAME", out, rows(out, names), show, say), started
    finally:
        sweep_work.command, sweep_work.machine = before


if __name__ == "__main__":
    if sys.argv[1] == "sweep":
        out, names = Path(sys.argv[2]), json.loads(sys.argv[3])
        failures, _ = sweep(out, names)
        sys.exit(len(failures))
    sys.exit(max(one(Path(path)) for path in sys.argv[1:]))
