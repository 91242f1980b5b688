"""When a run's state is saved, and what is said of it. A save that fails is tried again, and never stops training."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

from mot import checkpoint
from mot.checkpoint import digests
from mot.config import Config
from mot.errors import UserError
from mot.runs import provenance
from mot.runs.log import Log
from mot.train.agreement import any_process
from mot.train.state import State

FIRST_PAUSE = 10.0  # seconds before a failed save is tried again; each further pause is twice as long
LONGEST_PAUSE = 600.0
SHORT = 60.0  # seconds for which a save that is due waits for the one before it
LAST_PAUSES = (1, 2, 4, 8)  # seconds between tries of the last save, for which training cannot go on meanwhile


class Saves:
    """The saves of a run, or of several in one program: each has a saver and a log.

    `trees_of` gives the arrays of the run of this number, by item; `histories` are what the checkpoints of each run say
    of how it came to be, beside `provenance.made_by`. A run that diverged is saved as it stands then, and not again.
    Where several processes train one run, each has `Saves` and asks them at the same steps.
    """

    def __init__(
        self,
        config: Config,
        savers: Sequence[tuple[checkpoint.Saver, Log]],
        trees_of: Callable[[State, int], dict],
        histories: Sequence[Mapping],
    ):
        self.config = config.run
        self.savers = savers
        self.trees_of = trees_of
        self.histories = histories
        self.ended: set[int] = set()  # runs that diverged and are saved
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

    def prepare(self, state: State) -> None:
        """Compiles what the first save would compile while the loop waits for it."""
        for tree in self.trees_of(state, 0).values():
            digests.of_tree(tree)

    def is_busy(self) -> bool:
        return any(saver.is_busy() for saver, _ in self.savers)

    def wants(self) -> bool:
        """Is a save due off the schedule: `run.save_minutes` after the last, a pause after one that failed, or of a run
        that has diverged?
        """
        now = time.monotonic()
        minutes = self.config.save_minutes
        diverged = any(log.diverged and i not in self.ended for i, (_, log) in enumerate(self.savers))
        return (
            (diverged and self.again == math.inf)
            or now >= self.again
            or (minutes > 0 and now - self.began >= 60 * minutes)
        )

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
        made_by = provenance.made_by()
        with self.clock.of("save"):
            for saver, _ in self.savers:
                saver.wait()
            self.hear()
            for _, log in self.savers:
                log.flush()  # a step that is saved has its rows
            self.began = time.monotonic()
            self.again = math.inf
            self.owed = False
            for i, (saver, log) in enumerate(self.savers):
                if i not in self.ended:
                    saver.begin(
                        log.position.step, self.trees_of(state, i), vars(log.position), made_by | self.histories[i]
                    )
                if log.diverged:
                    self.ended.add(i)

    def hear(self) -> None:
        """Tells what became of saves that have ended."""
        outcomes = {i: outcome for i, (saver, _) in enumerate(self.savers) if (outcome := saver.outcome())}
        if not outcomes:
            return
        failed = any(outcome.error for outcome in outcomes.values())
        self.failures = self.failures + 1 if failed else 0
        pause = min(FIRST_PAUSE * 2 ** (self.failures - 1), LONGEST_PAUSE) if failed else 0.0
        if failed:
            self.again = time.monotonic() + pause
        self._tell(outcomes, pause)

    def _tell(self, outcomes: Mapping[int, checkpoint.Outcome], pause: float) -> None:
        """What became of saves, by run; those that failed are tried again after `pause` seconds."""
        for i, outcome in outcomes.items():
            self.savers[i][1].saved(outcome, pause)
            if outcome.error:
                self.ended.discard(i)

    def finish(self, state: State) -> None:
        """Saves the last state and waits; `UserError` where it cannot be saved after several tries."""
        with self.clock.of("save"):
            for saver, _ in self.savers:
                saver.wait()
        self.hear()  # of a save that was under way
        for pause in (*LAST_PAUSES, None):
            self.begin(state)
            with self.clock.of("save"):
                outcomes = [saver.wait() for saver, _ in self.savers]
            errors = [outcome.error for outcome in outcomes if outcome and outcome.error]
            if not any_process(bool(errors)):
                self.hear()
                return
            ended = {i: outcome for i, (saver, _) in enumerate(self.savers) if (outcome := saver.outcome())}
            self._tell(ended, pause or 0.0)
            if pause:
                time.sleep(pause)
        saver, log = self.savers[0]
        target = saver.folder / str(log.position.step)
        why = errors[0] if errors else "another process could not write its part"
        raise UserError(f"{target} was not saved: {why}; {checkpoint.goes_on(checkpoint.steps(saver.folder))}")
