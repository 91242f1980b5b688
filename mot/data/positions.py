"""Where RoPE takes a document's tokens to lie: one integer each, or time, row and column (2409.12191)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mot.config import Config

if TYPE_CHECKING:  # it imports this file
    from mot.data.packing import Document


class Rule(NamedTuple):
    """How RoPE counts. By stream: `steps`, positions from one frame to the next, and `gaps`; () = 1 and 0."""

    axes: int = 1  # A: 1, or 3, which are time, row and column
    used: tuple[bool, ...] = (True,)  # by axis: does some pair of a head turn by it?
    reset: bool = False  # rows and columns of a unit count from 0
    steps: tuple[float, ...] = ()
    gaps: tuple[int, ...] = ()
    has_places: bool = False  # the device reads rows and columns

    @property
    def counts_tokens(self) -> bool:
        """Is every token the next integer?"""
        return self.axes == 1 and all(step == 1 for step in self.steps) and not any(self.gaps)


ONE_AXIS = Rule()


def rule(config: Config) -> Rule:
    """That of a configuration."""
    m = config.model
    streams = config.streams.values()
    return Rule(
        m.rope_axes,
        tuple(count > 0 for count in m.rope_sections) or (True,),
        m.rope_reset,
        tuple(s.rope_seconds * m.rope_per_second or 1.0 for s in streams),
        tuple(s.rope_gap for s in streams),
        config.has_places,
    )


def of_streams(rule: Rule, streams: Sequence[int]) -> Rule:
    """That of a batch which has these streams alone."""
    return rule._replace(steps=tuple(rule.steps[s] for s in streams), gaps=tuple(rule.gaps[s] for s in streams))


def of(d: "Document", rule: Rule) -> np.ndarray:
    """int32 `[n, A]`. Text has one integer on all axes, and goes on after the greatest of a unit.

    A unit that begins at s has (s + frame, s + row, s + column), a frame being `step` positions; where it has no rows
    its tokens count as text does, `step` by `step`. A private copy has the positions of the clean one that follows it.
    """
    if rule.counts_tokens:
        return _counted(d.private, d.unit)[:, None]
    n = len(d.token)
    result = np.zeros((n, rule.axes), np.int32)
    begins = np.flatnonzero(_begins(d.private, d.unit))
    following = 0  # where the next token lies
    for begin, end in zip(begins, [*begins[1:], n], strict=True):
        if not d.unit[begin]:
            result[begin:end] = following + np.arange(end - begin)[:, None]
            following += end - begin
            continue
        inside, after = unit(d.place[begin:end], int(d.stream[begin]), rule)
        result[begin:end] = inside + following * shifted(rule)
        following += 0 if d.private[begin] else int(after[-1])
    return result


def unit(place: np.ndarray, stream: int, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Where a unit's tokens lie from where the text before it ends, int32 `[n, A]`, and where text goes on after each.

    `place` is int32 `[n, 3]`: frame, row and column; all 0 where a unit has no rows.
    """
    n = len(place)
    step = rule.steps[stream] if rule.steps else 1.0
    gap = rule.gaps[stream] if rule.gaps else 0
    if place.any() and rule.axes > 1:
        inside = place.copy()
        inside[:, 0] = np.floor(place[:, 0] * step)
    else:
        step = 1.0 if place.any() else step
        inside = np.floor(np.arange(n) * step).astype(np.int32)[:, None] * shifted(rule)
    inside = inside + gap * shifted(rule)
    counted = np.array(rule.used) & (shifted(rule) > 0)
    return inside.astype(np.int32), np.maximum.accumulate(inside[:, counted].max(1)) + 1


def shifted(rule: Rule) -> np.ndarray:
    """int32 `[A]`: 1 for axes on which a unit lies after the text before it, 0 for those on which it begins at 0."""
    return np.array([1] + [1 - rule.reset] * (rule.axes - 1), np.int32)


def places(shape: Sequence[int], n: int) -> np.ndarray:
    """int32 `[n, 3]`: frame, row and column of a unit's tokens, row by row, frame by frame.

    `shape` is (rows, columns), (frames, rows, columns), or anything else for a unit of n tokens without rows.
    """
    if len(shape) not in (2, 3):
        return np.zeros((n, 3), np.int32)
    whole = (1,) * (3 - len(shape)) + tuple(shape)
    return np.indices(whole, np.int32).reshape(3, -1).T


def shape_of(place: np.ndarray) -> tuple[int, ...]:
    """The shape of a unit whose tokens lie there, `[n, 3]`; undoes `places`, but that one frame is a picture."""
    if not place.any():
        return (len(place),)
    frames, rows, columns = (int(side) + 1 for side in place.max(0))
    return (frames, rows, columns) if frames > 1 else (rows, columns)


def _begins(private: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """bool `[n]`: is a token the first of its unit's copy, or of its stretch of text?"""
    begins = np.ones(len(private), bool)
    begins[1:] = (private[1:] != private[:-1]) | (unit[1:] != unit[:-1])
    return begins


def _counted(private: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """int32 `[n]`: each token's place in the document. Two copies of a unit have the same."""
    n = np.arange(len(private), dtype=np.int32)
    if not private.any():
        return n
    public = np.cumsum(~private) - ~private  # that came before
    run = np.maximum.accumulate(np.where(_begins(private, unit), n, 0))
    return (public + np.where(private, n - run, 0)).astype(np.int32)
