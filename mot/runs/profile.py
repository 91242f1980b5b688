"""`--profile`: an XProf trace of a few steps, and which operations took their time."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax
from jax.profiler import ProfileData
from rich.table import Table

from mot.checkpoint import Position
from mot.files import is_bucket, make_folder, names_within
from mot.runs.log import Pending
from mot.runs.writer import Live, Writer

FIRST, LAST = 3, 5  # the steps that are traced, counted from this start: the first ones still allocate
TOP = 12  # operations that are named


class Operation(NamedTuple):
    name: str  # the compiler's
    share: float  # of all operations' time, without what it calls
    seconds: float  # in one step, on each device
    where: str  # the program's name for it, and its line; "" where the compiler made it


class Trace:
    """A trace of steps FIRST to LAST into `<run>/profile`; the operations that took the most time are told.

    The steps before and after it are waited for, so that it holds these steps and nothing else of the device.
    """

    def __init__(self, path: Path, position: Position, writer: Writer, live: Live):
        self.folder = path / "profile"
        self.traced = self.folder  # where JAX writes: into a folder of this machine, which a bucket is given
        self.closing = ExitStack()
        self.position = position
        self.writer = writer
        self.live = live
        self.began = position.step
        self.step: jax.stages.Compiled | None = None
        self.running: Pending | None = None  # the steps that are waited for, while a trace is taken

    def __enter__(self) -> "Trace":
        if is_bucket(self.folder):
            self.traced = Path(self.closing.enter_context(tempfile.TemporaryDirectory(prefix="mot-")))
        make_folder(self.folder)  # or it is refused before a step is taken
        return self

    def __exit__(self, kind, *_) -> None:
        with self.closing:
            self._end(kind)

    def _end(self, kind: type[BaseException] | None) -> None:
        if self.running:
            self._stop(self.running)
        elif self.step is None and kind is None:
            self.live.say(
                f"no profile: the run ended at step {self.position.step}, and it would trace steps "
                f"{self.began + FIRST} to {self.began + LAST}; give a run more steps, by another run.name"
            )

    def before(self, step: jax.stages.Compiled, pending: Pending) -> None:
        """To be called before each step is dispatched."""
        done = self.position.step - self.began
        if done == FIRST - 1:
            pending.finish()
            self.step = step
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # of no use here, and it slows the host
            jax.profiler.start_trace(str(self.traced), profiler_options=options)
            self.running = pending
            pending.resume()
        elif done == LAST and self.running:
            self._stop(pending)
            pending.resume()

    def _stop(self, pending: Pending) -> None:
        pending.finish()  # waits for the last traced step
        jax.profiler.stop_trace()
        self.running = None
        self._tell(self.position.step - self.began - (FIRST - 1))

    def _tell(self, steps: int) -> None:
        """A table for who watches, an event for metrics.jsonl."""
        file = max(self.traced.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
        ranked = operations(ProfileData.from_file(str(file)), self.step.as_text(), steps)[:TOP]
        if self.traced != self.folder:
            for name in names_within(self.traced):
                (self.folder / name).write_bytes((self.traced / name).read_bytes())
        file = self.folder / file.relative_to(self.traced)
        listed = [{**op._asdict(), "share": round(op.share, 4)} for op in ranked]
        event = {"event": "profile", "trace": str(file), "operations": listed}
        self.writer.write("event", self.position.step, event)
        table = Table("share", "ms a step", "operation", "where", title=f"{steps} steps, {file}")
        for op in ranked:
            table.add_row(f"{100 * op.share:.1f} %", f"{1e3 * op.seconds:.2f}", op.name, op.where)
        self.live.console.print(table)


def operations(data: ProfileData, program: str, steps: int) -> list[Operation]:
    """The operations of a compiled program in a trace, the longest first; their shares of its time, which add up to 1.

    Of accelerators where the trace has any, else of the host's threads. An operation's time is its own: a loop's is
    without its body's. What the host's operations hand to other threads counts for nobody.
    """
    devices = [plane for plane in data.planes if plane.name.startswith("/device:")]
    own: dict[str, float] = defaultdict(float)
    module = (re.match(r"HloModule ([^,\s]+)", program) or ["", ""])[1]
    for plane in devices or data.planes:
        lines = list(plane.lines)
        # A TPU's plane has the same time in several forms: steps, programs, operations.
        for line in [x for x in lines if x.name == "XLA Ops"] or lines:
            for name, seconds in _own_time(_events(line, module)):
                own[name] += seconds
    total = sum(own.values()) or 1.0
    partitions = re.search(r"^HloModule .*\bnum_partitions=(\d+)", program)
    steps *= len(devices) or int(partitions[1] if partitions else 1)
    where = places(program)
    ranked = sorted(own.items(), key=lambda item: -item[1])
    return [Operation(name, s / total, s / steps, where.get(name, "")) for name, s in ranked]


def _events(line, module: str) -> Iterator[tuple[float, float, str]]:
    """Begin and end in nanoseconds, and the name, of a line's events that are the module's operations."""
    for event in line.events:
        stats = dict(event.stats)
        if stats.get("hlo_module", module) != module:  # an evaluation's, between two steps
            continue
        if "hlo_op" in stats or line.name == "XLA Ops":
            name = str(stats.get("hlo_op") or event.name.split(" = ")[0].lstrip("%"))
            yield event.start_ns, event.start_ns + event.duration_ns, name


def _own_time(events: Iterable[tuple[float, float, str]]) -> Iterator[tuple[str, float]]:
    """Each event's seconds without those inside it."""
    open_: list[list] = []  # end, name, own nanoseconds: each inside the one before
    for begin, end, name in sorted(events, key=lambda e: (e[0], -e[1])):
        while open_ and open_[-1][0] <= begin:
            _, done, own = open_.pop()
            yield done, max(own, 0.0) / 1e9
        if open_:
            open_[-1][2] -= end - begin
        open_.append([end, name, end - begin])
    for _, done, own in open_:
        yield done, max(own, 0.0) / 1e9


def places(program: str) -> dict[str, str]:
    """`{operation: "transpose(jvp(...))/dot_general, layers.py:120"}` of a compiled program's text."""

    def table(title):
        return dict(re.findall(r"(?m)^(\d+) (.+)$", _section(program, title)))

    files = {n: Path(name.strip('"')).name for n, name in table("FileNames").items()}

    def field(text, name):
        return (re.search(rf"\b{name}=(\d+)", text) or [None, ""])[1]

    lines = {n: (files.get(field(x, "file_name_id"), ""), field(x, "line")) for n, x in table("FileLocations").items()}
    frames = {n: lines.get(field(x, "file_location_id"), ("", "")) for n, x in table("StackFrames").items()}
    named = {}
    for name, op, frame in re.findall(
        r'%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]*)"(?:[^}]*stack_frame_id=(\d+))?', program
    ):
        file, line = frames.get(frame, ("", ""))
        short = "/".join(op.split("/")[-3:])
        named[name] = f"{short}, {file}:{line}" if file else short
    return named


def _section(program: str, title: str) -> str:
    """The lines below a title at the head of a program's text, up to an empty one."""
    return program.partition(f"\n{title}\n")[2].partition("\n\n")[0]
