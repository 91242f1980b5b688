"""What a command is at, while nothing else shows it: a line with the seconds so far, which goes when they are over.

Without a terminal it is a line before each phase, so that a log is not mute either.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

OFTEN = 0.5  # seconds between two pictures of a line


@contextlib.contextmanager
def phase(what: str, speaks: bool = True) -> Iterator[None]:
    """Shows `what` on stderr as long as it lasts, where this process `speaks`."""
    if not speaks or not sys.stderr.isatty():
        if speaks:
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


def _show(what: str, over: threading.Event) -> None:
    began = time.monotonic()
    while not over.wait(OFTEN):
        sys.stderr.write(f"\r{what} ... {time.monotonic() - began:.0f} s\x1b[K")
        sys.stderr.flush()
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()
