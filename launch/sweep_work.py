"""Runs the rows of a sweep on this machine: those that can be one program are, and processes share the cores.

The sweep holds nothing that its runs' directories do not say, so it may be killed at any moment: the same command goes
on. Its processes end with it, each after it has saved its step.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from launch import cores
from launch.sweep_rows import Row, program
from mot import sharding
from mot.errors import UserError
from mot.files import is_bucket, write_atomically
from mot.plan.process import last_words
from mot.runs import provenance, rundir, states
from mot.runs.states import State
from mot.train.memory import needed

TICK = 0.5  # seconds between two looks at the runs' directories
TRIES = 2
PARENT = "MOT_SWEEP"  # in the environment of a sweep's processes: its own process
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
Shown = Callable[[Mapping[str, State]], None]


class Working(NamedTuple):
    """A process, and what it has."""

    process: subprocess.Popen
    rows: Sequence[Row]
    cores: set[int]
    memory: float  # bytes that it needs at the least
    log: Path
    begins: int  # where in `log` it begins


class Failure(NamedTuple):
    why: str
    log: Path


class Machine(NamedTuple):
    """What processes share."""

    cores: set[int]
    memory: float  # bytes; half of the machine's, as the other half is for what cannot be counted

    def left(self, working: Sequence[Working]) -> "Machine":
        taken = set().union(*(one.cores for one in working))
        return Machine(self.cores - taken, self.memory - sum(one.memory for one in working))


def machine() -> Machine:
    found = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return Machine(set(found), sharding.machine_memory() / 2)


def work(text: str, out: Path, rows: Sequence[Row], show: Shown, say: Callable[[str], None]) -> dict[str, Failure]:
    """Trains all rows that have not ended; returns those that failed twice.

    `show` gets the state of every row, again and again. Raises `SystemExit` after SIGINT or SIGTERM, when its processes
    have saved and ended.
    """
    whole = machine()
    tries: Counter[str] = Counter()
    failures: dict[str, Failure] = {}
    working: list[Working] = []
    known: dict[str, State] = {}
    with _signals() as came:
        while True:
            for one in [one for one in working if one.process.poll() is not None]:
                working.remove(one)
                failures |= _reap(one, tries, say)
            busy = {row.name for one in working for row in one.rows}
            known = {row.name: _state(row, known.get(row.name), failures) for row in rows}
            show({name: _started(state) if name in busy else state for name, state in known.items()})
            if came:
                _stop(working, came)
                say(f"stopped; the same command goes on: {len(_open(rows, known, failures))} rows are left")
                raise SystemExit(came[0])
            left = [row for row in _open(rows, known, failures) if row.name not in busy]
            if not left and not working:
                return failures
            ready = [row for row in left if known[row.name].name != states.RUNNING]  # else by another command
            working += _begin(text, out, ready, tries, whole, working)
            time.sleep(TICK)


def _open(rows: Sequence[Row], known: Mapping[str, State], failures: Mapping[str, Failure]) -> list[Row]:
    """The rows of which something is left to do."""
    return [row for row in rows if known[row.name].name not in states.ENDED and row.name not in failures]


def _state(row: Row, before: State | None, failures: Mapping[str, Failure]) -> State:
    if before and before.name in states.ENDED:
        return before
    state = states.of(row.path, row.config.run.steps)
    if row.name in failures:
        return state._replace(name=states.FAILED, why=failures[row.name].why)
    return state


def _started(state: State) -> State:
    """Of a row that has a process: it runs before it has its lock, too."""
    return state if state.name in states.ENDED else state._replace(name=states.RUNNING)


def _begin(
    text: str, out: Path, ready: Sequence[Row], tries: Mapping[str, int], whole: Machine, working: Sequence[Working]
) -> Iterator[Working]:
    """Starts as many programs as there is room for, the first in line first. An accelerator serves one at a time."""
    working = list(working)
    waiting = programs(ready, tries, whole.memory)
    while waiting:
        room = whole.left(working)
        rows = waiting.pop(0)
        memory = memory_of(rows)
        if cores.accelerators():
            share = len(whole.cores)
        else:  # each device of a mesh takes a core
            share = max(len(room.cores) // (1 + len(waiting)), sharding.abstract(rows[0].config, 1).size)
        if len(room.cores) < share or (working and memory > room.memory):
            return
        working.append(_start(text, out, rows, set(sorted(room.cores)[:share]), memory))
        yield working[-1]


def programs(rows: Sequence[Row], tries: Mapping[str, int], memory: float) -> list[list[Row]]:
    """Rows that can be one program, together as far as the memory goes; those that have failed once are alone.

    Runs of one program are at one step.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        saved = max(rundir.checkpoint.steps(row.path / "checkpoints"), default=0)
        groups.setdefault((row.name,) if tries[row.name] else (program(row.config), saved), []).append(row)
    result = []
    for group in groups.values():
        most = max(int(memory // memory_of(group[:1])), 1)
        result += [group[i : i + most] for i in range(0, len(group), most)]
    return result


def memory_of(rows: Sequence[Row]) -> float:
    """Bytes that rows need at the least as one program of one device."""
    config = rows[0].config
    return sum(needed(config, sharding.abstract(config, 1), len(rows)))


def command(text: str, out: Path, rows: Sequence[Row]) -> list[str]:
    """What trains these rows in one program."""
    which = ",".join(str(row.index) for row in rows)
    return [sys.executable, "-m", "mot", "sweep", text, f"--out={out}", f"--row={which}"]


def _start(text: str, out: Path, rows: Sequence[Row], own: set[int], memory: float) -> Working:
    """A process of these rows on its own cores, which a child has from its parent."""
    log = log_folder(out) / f"{rows[0].name}.log"
    env = os.environ | {PARENT: str(os.getpid()), "PYTHONIOENCODING": "utf-8"}
    with open(log, "ab") as file, _on(own):
        begins = file.tell()
        process = subprocess.Popen(
            command(text, out, rows),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Working(process, rows, own, memory, log, begins)


@cache
def log_folder(out: Path) -> Path:
    """Where a sweep's logs lie: beside its rows, or where those lie in a bucket in a new folder of this user alone."""
    return Path(tempfile.mkdtemp(prefix="mot-sweep-")) if is_bucket(out) else out


@contextmanager
def _on(own: set[int]) -> Iterator[None]:
    """This thread on these cores alone, as long as this lasts."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, own)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _reap(one: Working, tries: Counter, say: Callable[[str], None]) -> dict[str, Failure]:
    """Of a process that has ended: the rows that have now failed as often as they may."""
    failures = {}
    for row in one.rows:
        if states.of(row.path, row.config.run.steps).name in states.ENDED:
            continue
        tries[row.name] += 1
        why = f"{_last_words(one)} (exit code {one.process.returncode})"
        if tries[row.name] < TRIES:
            say(f"{row.name}: {why}; it is tried once more")
            continue
        say(f"{row.name}: failed: {why}")
        failures[row.name] = Failure(why, one.log)
        note_failure(row, why)
    return failures


def _last_words(one: Working) -> str:
    with open(one.log, "rb") as file:
        file.seek(one.begins)
        return last_words(file.read().decode("utf-8", "replace"))


def note_failure(row: Row, why: str) -> None:
    """Writes into a run's metrics.jsonl that a sweep gave it up, and why, so that its directory says so."""
    if not (row.path / "config.json").exists() or states.of(row.path).name != states.INTERRUPTED:
        return
    step = max(rundir.checkpoint.steps(row.path / "checkpoints"), default=0)
    with suppress(UserError, OSError):  # what cannot be read or written is why it failed
        rows = rundir.read_metrics(row.path)
        event = {"schema": rundir.SCHEMA, "kind": "event", "step": step, "time": provenance.now()}
        event |= {"event": "failed", "why": why}
        write_atomically(row.path / "metrics.jsonl", "".join(map(rundir.line_of, [*rows, event])))


# --- how it ends -----------------------------------------------------------------------------------------------------


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The exit code of the first SIGINT or SIGTERM, in a list that is empty until it comes."""
    came: list[int] = []

    def ask(number, _):
        came.append(CODES[number])

    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody set handlers
        before = {number: signal.signal(number, ask) for number in CODES}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(working: Sequence[Working], came: Sequence[int]) -> None:
    """Has every process save its step and end; a second signal ends them at once."""
    for one in working:
        one.process.send_signal(signal.SIGTERM)
    while any(one.process.poll() is None for one in working):
        if len(came) > 1:
            for one in working:
                one.process.kill()
        time.sleep(TICK / 5)


def end_with_parent() -> None:
    """In a process of a sweep: ends it, its step saved, when the sweep is gone, however that ended."""
    parent = os.environ.pop(PARENT, "")
    if not parent:
        return

    def watch():
        while os.getppid() == int(parent):
            time.sleep(TICK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
