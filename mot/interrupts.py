"""Ctrl-C, which a terminal sends to all processes of a command, while some of them begin."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def unheard_by_workers() -> Iterator[None]:
    """Processes that begin meanwhile do not hear of Ctrl-C: they end with this one, which alone has something to say.

    Nor does this one, in its main thread, end before they have what they need to begin: it hears of signals at the end.
    """
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
