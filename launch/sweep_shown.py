"""How far the rows of a sweep are, as a person sees it: one table that lives, or lines where there is no terminal."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mot.runs import states
from mot.runs.states import State

MOST = 30  # rows that a terminal shows while they run
WIDE = 160  # columns where there is no terminal
EVERY = 30.0  # seconds after which, without news, lines tell how far the running rows are
ORDER = (  # what a person looks for comes first
    states.RUNNING,
    states.FAILED,
    states.DAMAGED,
    states.DIVERGED,
    states.INTERRUPTED,
    states.DONE,
    states.WAITING,
)
Show = Callable[[Mapping[str, State]], None]


@contextmanager
def shown() -> Iterator[tuple[Show, Callable[[str], None]]]:
    """`show`, which takes the states of all rows as often as one likes, and `say`, which takes a line."""
    out = console(sys.stderr)
    if out.is_terminal:
        with Live(console=out, auto_refresh=False, transient=True) as live:
            yield (lambda known: live.update(table(known, MOST), refresh=True), out.print)
        return
    before: dict[str, State] = {}
    last = time.monotonic()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def show(known: Mapping[str, State]) -> None:
        nonlocal last
        news = {name: state for name, state in known.items() if name in before and before[name].name != state.name}
        if before and not news and time.monotonic() > last + EVERY:
            news = {name: state for name, state in known.items() if state.name == states.RUNNING}
        if not before or news:
            last = time.monotonic()
            say(count(known))
        for name, state in news.items():
            say(f"  {name}: {told(state)}")
        before.update(known)

    yield show, say


def console(file) -> Console:
    width = None if file.isatty() else WIDE
    return Console(file=file, highlight=False, markup=False, width=width)


def count(known: Mapping[str, State]) -> str:
    """`6 rows: 2 running, 1 done, 3 waiting`."""
    found = Counter(state.name for state in known.values())
    return f"{len(known)} rows: {', '.join(f'{found[name]} {name}' for name in ORDER if found[name])}"


def told(state: State) -> str:
    in_time = f"{left(state.seconds_left)} left" if state.name == states.RUNNING and state.seconds_left else ""
    parts = [state.name, _step(state), losses(state), in_time, state.why]
    return ", ".join(filter(None, parts))


def _step(state: State) -> str:
    return f"{state.step:,} of {state.steps:,}" if state.step else ""


def losses(state: State) -> str:
    return " ".join(
        f"{modality} {loss:.4f}" if isinstance(loss, float) else f"{modality} {loss}"
        for modality, loss in state.losses.items()
    )


def left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def table(known: Mapping[str, State], most: int = 0) -> Group:
    """Every row, or so many of them, those that are at work first."""
    chosen = list(known)
    if most and len(chosen) > most:
        chosen = sorted(chosen, key=lambda name: ORDER.index(known[name].name))[:most]
    hidden = f"; {len(known) - len(chosen)} of them are not shown" if len(chosen) < len(known) else ""
    result = Table("row", "state", "step", "losses", "time left", box=None)
    for name in chosen:
        state = known[name]
        result.add_row(name, state.name, _step(state), losses(state), left(state.seconds_left))
    return Group(result, Text(count(known) + hidden))
