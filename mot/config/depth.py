"""Towers by depth: which tower serves a stream in which layers, and which layers are alike.

A stream's tower is written as a name, which then serves every layer, or by ranges of layers with commas between:
`0:4 image, 4:20 text, 20:24 image`. Layers count from 0, and the end of a range is outside of it, as in Python.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
RANGE = re.compile(r"(\d{1,5}):(\d{1,5}) +(\w+)", re.ASCII)


class Range(NamedTuple):
    """Layers `first` to `end - 1`."""

    first: int
    end: int
    tower: str


@lru_cache
def ranges(written: str) -> tuple[Range, ...] | None:
    """The ranges that are written; () of a name alone, and None of what is neither."""
    if ":" not in written and "," not in written:
        return ()
    found = [RANGE.fullmatch(part.strip()) for part in written.split(",")]
    return tuple(Range(int(m[1]), int(m[2]), m[3]) for m in found) if all(found) else None


def tower(written: str, layer: int) -> str:
    """The tower that serves a layer."""
    return next((r.tower for r in ranges(written) or () if r.first <= layer < r.end), written)


def towers(written: str) -> list[str]:
    """The towers that serve some layer, in order."""
    return list(dict.fromkeys(r.tower for r in ranges(written) or ())) or [written]


def parts(maps: Mapping[K, str]) -> dict[str, dict[K, str]]:
    """The map of each run of layers that are served alike, by its range as `0:4`; "" where no ranges are written."""
    written = [r for text in maps.values() for r in ranges(text) or ()]
    if not written:
        return {"": dict(maps)}
    last = max(r.end for r in written)
    served = {first: {key: tower(text, first) for key, text in maps.items()} for first in {r.first for r in written}}
    borders = [
        first for i, first in enumerate(sorted(served)) if not i or served[first] != served[sorted(served)[i - 1]]
    ]
    return {f"{first}:{end}": served[first] for first, end in zip(borders, [*borders[1:], last], strict=True)}


@lru_cache
def stacks(written: tuple[tuple[str, ...], ...], sparse: tuple[bool, ...]) -> tuple[str, ...]:
    """The stack of each layer, as `Sections.stacks` says; `written` are the towers of all streams, by component."""
    maps = [tuple(tower(w, layer) for of_component in written for w in of_component) for layer in range(len(sparse))]
    firsts = [maps.index(own) for own in maps]
    return tuple(
        ("sparse" if is_sparse else "main") + (f"_{first}" if first else "")
        for is_sparse, first in zip(sparse, firsts, strict=True)
    )


class Segment(NamedTuple):
    """Layers that repeat a period: the stacks of a few layers, some times over."""

    first: int
    period: tuple[str, ...]
    times: int


def segments(stacks: Sequence[str], dense_layers: int, sparse_every: int) -> list[Segment]:
    """All layers in order: the first, dense ones, then periods that end with a layer that may be sparse."""
    found: list[Segment] = []
    first = 0
    while first < len(stacks):
        end, n = (dense_layers, 1) if first < dense_layers else (len(stacks), sparse_every)
        period = tuple(stacks[first : first + n])
        times = 1
        while tuple(stacks[first + times * n : min(first + times * n + n, end)]) == period:
            times += 1
        found.append(Segment(first, period, times))
        first += times * n
    return found
