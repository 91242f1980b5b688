"""When a run's state is saved, and what is said of it. A save that fails is tried again, and never stops training."""

import math
import time
from collections.abc import Callable, Sequence

from mot import checkpoint
from mot.config import Config
from mot.errors import UserError
from mot.runs.log import Log
from mot.train.agreement import any_process
from mot.train.state import State

FIRST_PAUSE = 10.0  # seconds before a failed save is tried again; each further pause is twice as long
LONGEST_PAUSE = 600.0
SHORT = 60.0  # seconds for which a save that is due waits for the one before it
LAST_PAUSES = (1, 2, 4, 8)  # seconds between tries of the last save, for which training cannot go on meanwhile


class Saves:
    """The saves of a run, or of several in one program: each has a saver and a log.

    `begin` gives the state to the savers. Where several processes train one run, each has `Saves` and asks them at the
    same steps.
    """

    def __init__(self, config: Config, savers: Sequence[tuple[checkpoint.Saver, Log]], begin: Callable[[State], None]):
        self.config = config.run
        self.savers = savers
        self.give = begin
        self.began = time.monotonic()  # the last save
        self.again = math.inf  # when a failed save is tried again
        self.failures = 0  # in a row
        self.owed = False  # a save was due while another one was under way
        self.clock = savers[0][1].clock

    def __enter__(self) -> "Saves":
        return self

    def __exit__(self, *_) -> None:
        """However training ended, a save that is under way ends well."""
        for saver, _ in self.savers:
            saver.wait()
        self.hear()

    def is_busy(self) -> bool:
        return any(saver.is_busy() for saver, _ in self.savers)

    def wants(self) -> bool:
        """Is a save due by the clock: `run.save_minutes` after the last, or a pause after one that failed?"""
        now = time.monotonic()
        minutes = self.config.save_minutes
        return now >= self.again or (minutes > 0 and now - self.began >= 60 * minutes)

    def due(self, step: int, wanted: bool, busy: bool) -> bool:
        """Is a save to begin after this step? `wanted` and `busy` are what any process of the run says."""
        on_schedule = step % self.config.save_every == 0
        self.owed = self.owed or wanted or on_schedule
        if on_schedule and busy:  # a step of the schedule is worth a short wait: others may be waiting for that step
            busy = any_process(self._still_busy())
        return self.owed and not busy

    def _still_busy(self) -> bool:
        """Is the last save still under way after a wait?"""
        end = time.monotonic() + SHORT
        with self.clock.of("save"):
            for saver, _ in self.savers:
                saver.wait(end - time.monotonic())
        self.hear()
        return self.is_busy()

    def begin(self, state: State) -> None:
        with self.clock.of("save"):
            for saver, _ in self.savers:
                saver.wait()
            self.hear()
            for _, log in self.savers:
                log.flush()  # a step that is saved has its rows
            self.began = time.monotonic()
            self.again = math.inf
            self.owed = False
            self.give(state)

    def hear(self) -> None:
        """Tells what became of saves that have ended."""
        outcomes = [(log, outcome) for saver, log in self.savers if (outcome := saver.outcome())]
        if not outcomes:
            return
        failed = any(outcome.error for _, outcome in outcomes)
        self.failures = self.failures + 1 if failed else 0
        pause = min(FIRST_PAUSE * 2 ** (self.failures - 1), LONGEST_PAUSE) if failed else 0.0
        if failed:
            self.again = time.monotonic() + pause
        for log, outcome in outcomes:
            log.saved(outcome, pause)

    def finish(self, state: State) -> None:
        """Saves the last state and waits; `UserError` where it cannot be saved after several tries."""
        for pause in (*LAST_PAUSES, None):
            self.begin(state)
            with self.clock.of("save"):
                outcomes = [(saver, log, saver.wait()) for saver, log in self.savers]
            errors = [outcome.error for _, _, outcome in outcomes if outcome and outcome.error]
            if not any_process(bool(errors)):
                self.hear()
                return
            for saver, log, _ in outcomes:
                if outcome := saver.outcome():
                    log.saved(outcome, pause or 0.0)
            if pause:
                time.sleep(pause)
        saver, log = self.savers[0]
        target = saver.folder / str(log.position.step)
        why = errors[0] if errors else "another process could not write its part"
        raise UserError(f"{target} was not saved: {why}; {checkpoint.goes_on(checkpoint.steps(saver.folder))}")
