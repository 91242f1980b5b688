"""Where a run's wall-clock time goes, over all its starts: the fraction in which it trains is its goodput."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

# start: from the command's begin to the loop's. lost: work after the checkpoint from which a run resumed. other: what
# no other kind is, as writing the log.
KINDS = ("start", "compile", "data", "step", "evaluation", "probe", "save", "lost", "other")


class Clock:
    """Seconds of a run by kind. `seconds` are those of its earlier starts, and go on; this one began at `began`."""

    def __init__(self, seconds: dict[str, float], began: float):
        self.seconds = seconds
        self.earlier = sum(seconds.values())
        self.began = began  # on the monotonic clock

    def total(self) -> float:
        return self.earlier + time.monotonic() - self.began

    def book(self, kind: str, seconds: float) -> None:
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """What happens meanwhile is of this kind."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.book(kind, time.monotonic() - began)

    def settle(self, kind: str = "other") -> None:
        """All time that was not booked is of this kind."""
        self.book(kind, max(self.total() - sum(self.seconds.values()), 0.0))

    def row(self) -> dict[str, float]:
        """`wall_seconds`, all of the run's time, and `goodput`, the fraction of it in steps."""
        self.settle()
        total = self.total()
        return {"wall_seconds": total, "goodput": self.seconds.get("step", 0.0) / total}

    def split(self) -> dict[str, float]:
        """`wall/<kind>`: seconds of each kind."""
        return {f"wall/{kind}": self.seconds.get(kind, 0.0) for kind in KINDS}


def resumed(seconds: dict[str, float], found: Sequence[Mapping], began: float) -> Clock:
    """The clock of a run that goes on from a checkpoint with these `seconds`; its earlier starts wrote rows `found`."""
    seconds["lost"] = seconds.get("lost", 0.0) + lost(found, seconds)
    return Clock(seconds, began)


def lost(found: Sequence[Mapping], seconds: Mapping[str, float]) -> float:
    """Seconds that a run spent after its checkpoint, which has these `seconds` by kind: all that is done again.

    Its rows tell them; where it was killed several times since, that of its start does, for those between are gone.
    """
    reached = max((row["wall_seconds"] for row in found if "wall_seconds" in row), default=0.0)
    return max(reached - sum(seconds.values()), 0.0)
