"""What ends a process that would wait for ever: for a step that hangs, or for a process of the run that is gone."""

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import jax

from mot.errors import HUNG
from mot.files import make_folder, modified, touch

OFTEN = 1.0  # seconds between two looks
BEAT = 5.0  # seconds between two signs of life, or a quarter of a short run.peer_timeout


class Watchdog:
    """A thread that ends this process where training has not moved for `run.hang_timeout` seconds.

    Of several processes each gives a sign of life in the run's folder, and each ends where another has given none for
    `run.peer_timeout` seconds. What is waited for then may never come, so the process leaves at once, with exit code
    76, after the stacks of all its threads. 0 seconds: nobody looks.
    """

    def __init__(self, path: Path, hang_timeout: float, peer_timeout: float):
        self.path = path
        self.hang_timeout = hang_timeout
        self.peer_timeout = peer_timeout
        self.what = "the start"
        self.since = time.monotonic()
        self.over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if jax.process_count() > 1 and self.peer_timeout:
            self.folder = self.path / "processes"
            make_folder(self.folder)
            threading.Thread(target=self._watch_peers, name="peers", daemon=True).start()
        if self.hang_timeout:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()

    def moved(self, what: str) -> None:
        """Training has moved on, and is at `what` now."""
        self.what = what
        self.since = time.monotonic()

    def _watch(self) -> None:
        while not self.over.wait(OFTEN):
            still = time.monotonic() - self.since
            if still > self.hang_timeout:
                _end(f"{self.what} has taken {still:.0f} s, and run.hang_timeout allows {self.hang_timeout:g}")

    def _watch_peers(self) -> None:
        """Compares times that the file system gave, as the clocks of machines differ."""
        me = self.folder / str(jax.process_index())
        peers = [self.folder / str(i) for i in range(jax.process_count()) if i != jax.process_index()]
        began = _beat(me)
        while not self.over.wait(min(BEAT, self.peer_timeout / 4)):
            now = _beat(me)
            for peer in peers:
                silent = now - max(_last(peer), began)
                if silent > self.peer_timeout:
                    _end(
                        f"process {peer.name} of this run has given no sign of life for {silent:.0f} s, and "
                        f"run.peer_timeout allows {self.peer_timeout:g}"
                    )


def _beat(file: Path) -> float:
    """Gives a sign of life; its time."""
    with suppress(Exception):  # a disk or bucket that fails is told of by those who save to it
        touch(file)
    return _last(file)


def _last(file: Path) -> float:
    try:
        return modified(file)
    except Exception:  # of a bucket's library, which has errors of its own
        return 0.0


def _end(why: str) -> NoReturn:
    faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
    leave(HUNG, f"{why}; the stacks are above; the newest checkpoint is whole: the same command resumes, exactly")


def leave(code: int, told: str) -> NoReturn:
    """Ends this process and its workers, whatever its other threads do."""
    shows_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    os.write(2, f"{shows_cursor}\nmot: {told}\n".encode())
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)
