"""SIGINT and SIGTERM end training after a step, its state saved; before the first step, at once."""

import signal
import socket
import threading
from contextlib import suppress

import jax

from mot.train.watchdog import leave

CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
PATIENCE = 5.0  # seconds in which the main thread may answer a signal itself, before the first step


class Stopped(SystemExit):
    """Training ended by a signal, its state saved. Uncaught, it ends the process with 130 (SIGINT) or 75 (SIGTERM)."""


class Interrupted(Exception):
    """What waited for data, or evaluated, gave up: a signal has come."""


class Signals:
    """The first SIGINT or SIGTERM asks the loop to stop after its step; a second SIGINT ends at once.

    Python's handlers wait until C++ returns, and compiling takes minutes. So a thread listens, too: as long as nothing
    is `unsaved`, it ends the process where the main thread does not answer.
    """

    code: int | None = None  # with which the process is to end; None until a signal comes
    unsaved = False  # has a step been taken since this command began?

    def __enter__(self) -> "Signals":
        self.before = {}
        self.left = threading.Event()
        if threading.current_thread() is not threading.main_thread():  # elsewhere Python lets nobody set handlers
            return self
        for number in CODES:
            self.before[number] = signal.signal(number, self._ask)
        self.ear, self.mouth = socket.socketpair()
        self.mouth.setblocking(False)
        self.earlier = signal.set_wakeup_fd(self.mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        return self

    def came(self) -> bool:
        return self.code is not None

    def interrupt(self) -> None:
        """Ends an evaluation, or a wait for data, once a signal has come. Several processes end these together only."""
        if self.came() and jax.process_count() == 1:
            raise Interrupted

    def _ask(self, number, _) -> None:
        if self.came() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = CODES[number]

    def _listen(self) -> None:
        """In a thread: Python's C code writes a signal's number here when it comes, whatever the main thread is at."""
        with suppress(OSError):  # it was closed
            while heard := self.ear.recv(1):
                number = heard[0]
                if number in CODES and not self.left.wait(PATIENCE) and not self.unsaved:
                    leave(CODES[number], "stopped before a step was taken; the same command resumes")

    def __exit__(self, *_) -> None:
        self.left.set()
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.before:
            signal.set_wakeup_fd(self.earlier)
            self.mouth.close()
            self.ear.close()
