"""Trackers beside TensorBoard (`run.trackers`): each has a thread, and nothing that it does touches training."""

import contextlib
import importlib.util
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mot.config.axes import names
from mot.errors import UserError
from mot.files import as_path, make_folder, write_atomically
from mot.runs import provenance, rundir
from mot.runs.curves import curves
from mot.runs.services import OPENERS, About, Opened

MOST = 10_000  # rows that wait in memory for one tracker; what is older is read again from metrics.jsonl
OFTEN = 1.0  # seconds between two looks at what waits
PATIENCE = 60.0  # seconds without an answer after which it is told
CLOSING = 5.0  # seconds that all trackers of a program may take together to end
PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds after a failure, doubled after each


def refuse_absent(trackers: str) -> None:
    """`UserError` where a package of `run.trackers` is not installed."""
    absent = [name for name in names(trackers) if importlib.util.find_spec(name) is None]
    if absent:
        named = " and ".join(absent)
        raise UserError(
            f"run.trackers: {trackers!r}, and {named} {'is' if len(absent) == 1 else 'are'} not installed; each is an "
            f"extra: pip install -c constraints.txt -e '.[{','.join(absent)}]'; or leave it out"
        )


def opened(path: Path, config: Mapping, kept: Sequence[Mapping], say: Callable[[str], None]) -> list["Tracker"]:
    """The trackers of the run at `path` by its plain `config`, whose metrics.jsonl holds the rows `kept`."""
    return [Tracker(name, path, config, kept, say) for name in names(config["run"]["trackers"])]


def catch_up(path: Path, say: Callable[[str], None]) -> None:
    """Gives the trackers of a run that has ended the rows that they lack, for no longer than `PATIENCE`."""
    config = rundir.read_config(path)
    rows = rundir.read_metrics(path)
    lacking = []
    for name in names(config["run"]["trackers"]):
        _, sent, _ = _remembered(_file(path, name))
        if any(row["kind"] != "event" and row["step"] > sent.get(row["kind"], -1) for row in rows):
            lacking.append(Tracker(name, path, config, rows, say))
    for tracker in lacking:
        tracker.end(PATIENCE)
    for tracker in lacking:
        tracker.close()


class Tracker:
    """Gives a run's rows to a tracker, and keeps in the run's folder what it was given: each row goes once.

    A row that a resumed run writes again is the one that the tracker has, to the bit, and is passed over. One that does
    not reach it, as it raised, or hung while too many waited, is read from metrics.jsonl when it takes rows again, now
    or at the run's next start.
    """

    def __init__(self, name: str, path: Path, config: Mapping, kept: Sequence[Mapping], say: Callable[[str], None]):
        self.name = name
        self.path = path
        self.say = say
        self.file = _file(path, name)
        self.sources = len(config["data"]["sources"])
        # sent: the newest step of each kind that the tracker was given
        id, self.sent, starts = _remembered(self.file)
        run = config["run"]
        self.about = About(id, run["name"], as_path(run["root"]).name, without_secrets(config), path, starts)
        self.lock = threading.Lock()  # of the two that follow
        self.waiting: deque[tuple[str, int, dict]] = deque()
        self.missed: dict[str, int] = {}  # the newest step of each kind that metrics.jsonl alone holds
        for row in kept:
            self._miss(row["kind"], row["step"])
        self.since: float | None = None  # when it was asked something to which it has no answer yet
        self.silent = self.failing = False  # as it was told
        self.ended = threading.Event()
        self.deadline = 0.0
        self.thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self.thread.start()

    def write(self, kind: str, step: int, values: Mapping) -> None:
        """Takes a row, which metrics.jsonl has already, and never waits."""
        points = dict(curves(kind, values, self.sources))
        if not points:
            return
        with self.lock:
            if len(self.waiting) >= MOST:
                oldest_kind, oldest_step, _ = self.waiting.popleft()
                self._miss(oldest_kind, oldest_step)
            self.waiting.append((kind, step, points))
        since = self.since
        if since is not None and not self.silent and time.monotonic() - since > PATIENCE:
            self.silent = True
            self.say(f"ALARM: {self.name} has not answered for {PATIENCE:.0f} s; training goes on without it")

    def end(self, seconds: float | None = None) -> None:
        """Tells it that no row comes any more, and from now on how long `close` waits; by default `CLOSING`."""
        if not self.ended.is_set():
            self.deadline = time.monotonic() + (CLOSING if seconds is None else seconds)
            self.ended.set()

    def close(self) -> None:
        """Waits until it has every row, or its time is up."""
        self.end()
        self.thread.join(max(self.deadline - time.monotonic(), 0))
        with self.lock:
            lacks = self.waiting or self.missed
        if lacks or self.thread.is_alive():
            self.say(f"ALARM: {self.name} did not take the last rows; the command that began the run sends them")

    def _miss(self, kind: str, step: int) -> None:
        if kind != "event":
            self.missed[kind] = max(step, self.missed.get(kind, step))

    def _run(self) -> None:
        pause = PAUSE
        while True:
            try:
                return self._follow()
            except (Exception, SystemExit) as error:
                if not self.failing:
                    why = provenance.hidden(f"{type(error).__name__}: {error}".splitlines()[0])
                    self.say(f"ALARM: {self.name} failed ({why}); training goes on, and it is tried again")
                    pause = PAUSE
                self.failing = True
            if self.ended.wait(pause):
                return None
            pause = min(2 * pause, LONGEST_PAUSE)

    def _follow(self) -> None:
        """Opens the tracker, and sends it rows until the run ends."""
        self._remember()  # a start after this one goes on with the same run, whatever becomes of this one
        with self._asked():
            tracker = OPENERS[self.name](self.about)
        self.about = self.about._replace(starts=self.about.starts + 1)
        self._remember()
        try:
            if not self.failing:
                self.say(f"{self.name}: {provenance.hidden(tracker.where)}")
                self._take_back(tracker)
            while True:
                ended = self.ended.is_set()  # what was written before is sent below
                self._send_what_waits(tracker)
                if self.failing:
                    self.failing = False
                    self.say(f"{self.name} takes rows again; none was lost")
                if ended:
                    return
                self.ended.wait(OFTEN)
        finally:
            with self._asked():
                tracker.close()

    def _take_back(self, tracker: Opened) -> None:
        """After a kill the tracker may lack rows that it was given, or have one of which that was not kept yet."""
        self.sent |= tracker.has

    def _send_what_waits(self, tracker: Opened) -> None:
        before = dict(self.sent)
        try:
            if self._send_missed(tracker):
                while row := self._next():
                    self._send(tracker, *row)
        finally:
            if self.sent != before:
                self._remember()

    def _send_missed(self, tracker: Opened) -> bool:
        """Sends what metrics.jsonl alone holds; False where the file lacks some of it yet."""
        if self._lacks_none():
            return True
        for row in rundir.read_metrics(self.path):
            if row["step"] <= self.missed.get(row["kind"], -1):
                self._send(tracker, row["kind"], row["step"], dict(curves(row["kind"], row, self.sources)))
        return self._lacks_none()

    def _lacks_none(self) -> bool:
        with self.lock:
            self.missed = {kind: step for kind, step in self.missed.items() if self.sent.get(kind, -1) < step}
            return not self.missed

    def _next(self) -> tuple[str, int, dict] | None:
        with self.lock:
            return self.waiting.popleft() if self.waiting and not self.missed else None

    def _send(self, tracker: Opened, kind: str, step: int, points: Mapping[str, float]) -> None:
        if step <= self.sent.get(kind, -1):
            return
        try:
            with self._asked():
                tracker.log(step, points)
        except BaseException:
            with self.lock:
                self._miss(kind, step)
            raise
        self.sent[kind] = step

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        self.since = time.monotonic()
        try:
            yield
        finally:
            self.since = None
            if self.silent:
                self.silent = False
                self.say(f"{self.name} answers again")

    def _remember(self) -> None:
        """A full disk is told by who writes metrics there; what could not be kept is kept after the next row."""
        with contextlib.suppress(OSError):
            make_folder(self.file.parent)
            known = {"id": self.about.id, "sent": self.sent, "starts": self.about.starts}
            write_atomically(self.file, json.dumps(known))


def _file(path: Path, name: str) -> Path:
    return path / "trackers" / f"{name}.json"


def _remembered(file: Path) -> tuple[str, dict[str, int], int]:
    """The id by which a tracker knows a run, what it was given, and how often it was opened.

    A new id where there is nothing that can be read. An older file does not tell how often: 0.
    """
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        sent = {kind: int(known["sent"][kind]) for kind in ("train", "eval") if kind in known["sent"]}
        return str(known["id"]), sent, int(known.get("starts", 0))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return uuid.uuid4().hex[:8], {}, 0


def without_secrets(tree: Any) -> Any:
    """A plain configuration without what looks secret in its words, as the password of an address."""
    if isinstance(tree, Mapping):
        return {key: without_secrets(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_secrets(value) for value in tree]
    return provenance.hidden(tree) if isinstance(tree, str) else tree
