"""What a run writes as it goes: metrics.jsonl, the curves of its boards, and the line that a person watches."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from mot.console import say_once
from mot.files import appender, write_atomically
from mot.runs import provenance, rundir, tensorboard, trackers


class Sink(Protocol):
    """A board that shows curves of a run's rows."""

    def write(self, kind: str, step: int, values: Mapping) -> OSError | None: ...
    def close(self) -> None: ...


class Writer:
    """Rows of metrics.jsonl, one for each (kind, step), and their curves in TensorBoard and in `run.trackers`.

    A resumed run's rows after `resumed_at` are removed. The run's folder has its configuration. Only the first process
    writes. A disk that takes no row never stops training: rows wait in memory until it takes them, and `say` tells of
    it, once.
    """

    def __init__(self, path: Path, resumed_at: int, is_first: bool = True, say: Callable[[str], None] = say_once):
        self.is_first = is_first
        self.found: list[dict] = []  # what earlier starts of the run wrote, also after the step from which it goes on
        self.trackers: list[trackers.Tracker] = []
        self.evaluations: list[dict] = []  # rows that the run has already; the first process alone knows them
        if not is_first:
            return
        file = path / "metrics.jsonl"
        self.found = rundir.read_metrics(path)
        kept = [row for row in self.found if row["step"] <= resumed_at]
        write_atomically(file, "".join(map(rundir.line_of, kept)))
        self.written = {(row["kind"], row["step"]) for row in kept if row["kind"] != "event"}
        self.evaluations = [row for row in kept if row["kind"] == "eval"]
        self.say = say
        self.failing = False
        self.file = appender(file)
        config = rundir.read_config(path)
        self.board = tensorboard.opened(path, resumed_at, config)
        self.trackers = trackers.opened(path, config, kept, say)
        self.sinks: list[Sink] = [self.board, *self.trackers]

    def lacks(self, kind: str, step: int) -> bool:
        """Is this row still to be written? Only the first process knows; for the others it is not."""
        return self.is_first and (kind, step) not in self.written

    def write(self, kind: str, step: int, values: Mapping) -> None:
        if not self.is_first or (kind, step) in self.written:
            return
        if kind != "event":
            self.written.add((kind, step))
        row = {"schema": rundir.SCHEMA, "kind": kind, "step": step, "time": provenance.now()}
        row |= {key: as_json(value) for key, value in values.items()}
        errors = [self.file.append(rundir.line_of(row).encode())]
        errors += [sink.write(kind, step, values) for sink in self.sinks]
        self._tell(next(filter(None, errors), None))

    def flush(self) -> None:
        """Writes the rows that wait: a step that is saved has its rows."""
        if self.is_first:
            self._tell(self.file.write() or self.board.error)

    def _tell(self, error: OSError | None) -> None:
        """Says when the disk stops taking rows, and when it takes them again."""
        if error and not self.failing:
            self.say(f"ALARM: metrics cannot be written ({error.strerror}); training goes on, and rows wait in memory")
        if self.failing and not error:
            self.say("metrics are written again; no row was lost")
        self.failing = error is not None

    def end(self) -> None:
        """Tells trackers that no row comes any more. They take their time to end, those of several runs the same."""
        for tracker in self.trackers:
            tracker.end()

    def close(self) -> None:
        if not self.is_first:
            return
        self.end()
        if error := self.file.write():
            lost = len(self.file.waiting)
            self.say(f"ALARM: the last {lost} rows of metrics.jsonl were not written: {error.strerror}")
        self.file.close()
        for sink in self.sinks:
            sink.close()


def as_json(value: Any) -> Any:
    """JSON has no NaN and no infinity: these are text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Live:
    """The line a person watches: losses by modality, speed, time left. Without a terminal, `say` alone prints."""

    def __init__(self, title: str, done: int, steps: int, is_first: bool = True):
        self.console = Console(file=sys.stderr, soft_wrap=True, highlight=False, quiet=not is_first)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _Line(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, completed=done, total=steps, line="", since=None)

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def update(self, step: int, line: str) -> None:
        self.bar.update(self.task, completed=step, line=line, since=None)

    def phase(self, what: str) -> None:
        """Work that delays the next step: shown on the line with its seconds, or printed where there is no terminal."""
        self.bar.update(self.task, line=f"{what} ...", since=time.monotonic())
        if not self.console.is_terminal:
            self.say(f"{what} ...")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)


class _Line(ProgressColumn):
    """A task's `line`, and the seconds `since` it is shown, where it has such."""

    def render(self, task) -> Text:
        since = task.fields["since"]
        return Text(task.fields["line"] + (f" {time.monotonic() - since:.0f} s" if since else ""))
