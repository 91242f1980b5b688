"""What became of a run, read from its directory alone: its checkpoints, its lock, and the end of metrics.jsonl.

Nothing is written and no lock is taken, so that any number of processes may ask while others train. The end of a long
file says enough: whole rows of a run's last steps are there.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from mot.errors import UserError
from mot.files import is_bucket, numbered, read_appended
from mot.runs import lock
from mot.runs.written import read_config

TAIL = 2**18  # bytes; a row has some thousands at the most
WAITING, RUNNING, INTERRUPTED, FAILED, DIVERGED, DONE, DAMAGED = (
    "waiting",  # nothing was written yet
    "running",  # a process has its lock
    "interrupted",  # it has begun, nobody trains it, and it can go on
    "failed",  # as `interrupted`, and a sweep says why it gave it up
    "diverged",  # too many of its last steps were not finite
    "done",  # its last step is saved
    "damaged",  # its config.json is not what was written
)
ENDED = (DONE, DIVERGED)  # there is nothing left to do


class State(NamedTuple):
    name: str  # one of the above
    step: int = 0  # the last of which a row was written, or a checkpoint
    steps: int = 0  # of the whole run; 0 where it does not say yet
    losses: dict[str, float | str] = {}  # by modality: held-out ones, or else the last step's
    seconds_left: float | None = None  # where it runs
    why: str = ""


def of(path: Path, steps: int = 0) -> State:
    """The state of a run; `steps` is how many it shall have, in place of those that its config.json says."""
    if not (path / "config.json").exists():
        return State(WAITING, steps=steps)
    try:
        steps = steps or read_config(path)["run"]["steps"]
    except UserError as error:
        return State(DAMAGED, steps=steps, why=str(error))
    saved = max(numbered(path / "checkpoints", holding="manifest.json"), default=0)
    rows = last_rows(path / "metrics.jsonl")
    trained = next((row for row in reversed(rows) if row["kind"] == "train"), {})
    evaluated = next((row for row in reversed(rows) if row["kind"] == "eval"), trained)
    events = [row for row in rows if row.get("event") in ("start", "failed", "diverged")]
    last = events[-1] if events else {}
    known = State(INTERRUPTED, max(trained.get("step", 0), saved), steps, _losses(evaluated))
    if lock.holder(path):
        return known._replace(name=RUNNING, seconds_left=_left(known, trained))
    if last.get("event") == "diverged":
        return known._replace(name=DIVERGED, why=f"at step {last['step']}")
    if saved >= steps:
        return known._replace(name=DONE)
    if last.get("event") == "failed":
        return known._replace(name=FAILED, why=str(last.get("why", "")))
    return known


def _left(state: State, trained: dict) -> float | None:
    seconds = trained.get("step_seconds")
    return (state.steps - state.step) * seconds if isinstance(seconds, int | float) else None


def _losses(row: dict) -> dict[str, float | str]:
    """`loss/text` is of a modality, `loss/text/manual` of a source."""
    return {
        key.partition("/")[2]: value for key, value in row.items() if key.startswith("loss/") and key.count("/") == 1
    }


def last_rows(file: Path) -> list[dict]:
    """The last rows of a metrics.jsonl, of which somebody may be writing the next; [] where there is none."""
    try:
        lines = _tail(file).split(b"\n")[:-1]  # what follows the last newline is cut off
    except OSError:  # there is none yet, or it is being replaced
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the first line of the tail is cut off
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and "kind" in row:
            rows.append(row)
    return rows


def _tail(file: Path) -> bytes:
    if is_bucket(file):
        return read_appended(file)
    with open(file, "rb") as opened:
        opened.seek(max(os.fstat(opened.fileno()).st_size - TAIL, 0))
        return opened.read()
