"""A command and its terminal: what it is at while nothing else shows it, and Ctrl-C while its processes begin."""

import contextlib
import functools
import signal
import sys
import threading
import time
from collections.abc import Iterator

OFTEN = 0.5  # seconds between two pictures of a line


@contextlib.contextmanager
def phase(what: str, is_first: bool = True) -> Iterator[None]:
    """Shows `what` on stderr as long as it lasts, with the seconds so far, where this process `is_first`.

    Without a terminal it is a line before each phase, so that a log is not mute either.
    """
    if not is_first or not sys.stderr.isatty():
        if is_first:
            announce(what)
        yield
        return
    over = threading.Event()
    shower = threading.Thread(target=_show, args=(what, over), daemon=True)
    shower.start()
    try:
        yield
    finally:
        over.set()
        shower.join()


def announce(what: str) -> None:
    """A line for a log; a terminal shows the phase itself."""
    if not sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)


@functools.cache
def say_once(line: str) -> None:
    """A line on stderr, the first time that it is said."""
    print(line, file=sys.stderr, flush=True)


def _show(what: str, over: threading.Event) -> None:
    began = time.monotonic()
    while not over.wait(OFTEN):
        sys.stderr.write(f"\r{what} ... {time.monotonic() - began:.0f} s\x1b[K")
        sys.stderr.flush()
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()


@contextlib.contextmanager
def unheard_by_workers() -> Iterator[None]:
    """Processes that begin meanwhile do not hear of Ctrl-C: they end with this one, which alone has something to say.

    Nor does this one, in its main thread, end before they have what they need to begin: it hears of signals at the end.
    """
    from multiprocessing import resource_tracker  # only those who begin processes wait for its import

    resource_tracker.ensure_running()  # or multiprocessing begins it now, and unblocks what is blocked here
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    heard, before = [], {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in heard[:1]:
            signal.raise_signal(number)
