"""SIGINT and SIGTERM end training after a step, its state saved."""

import signal
import threading

CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}


class Stopped(SystemExit):
    """Training ended by a signal, its state saved. Uncaught, it ends the process with 130 (SIGINT) or 75 (SIGTERM)."""


class Signals:
    """The first SIGINT or SIGTERM asks the loop to stop after its step; a second SIGINT ends at once."""

    code: int | None = None  # with which the process is to end; None until a signal comes

    def __enter__(self) -> "Signals":
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody set handlers
            for number in CODES:
                self.before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number, _) -> None:
        if self.code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = CODES[number]

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
