"""What a key's value may be, and the fault where it is not: dotted key, value, what is allowed, remedy.

Tables of them (`checks.VALUES`) are what the checks judge by and what `mot config` shows, so that both say the same.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mot.errors import Fault


class Range(NamedTuple):
    """Numbers from `least` to `most`, of which either may itself be outside."""

    least: float = 0
    most: float = math.inf
    above: bool = False  # `least` is outside
    below: bool = False  # `most` is outside

    def __str__(self) -> str:
        if self.most == math.inf:
            return f"above {self.least:g}" if self.above else f"{self.least:g} or more"
        low = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
        return f"{low} and below {self.most:g}" if self.below else f"{low} and at most {self.most:,}"


ABOVE_0, AT_LEAST_0 = Range(above=True), Range()
FRACTION = Range(most=1, below=True)  # at least 0 and below 1
Allowed = Range | tuple[str, ...] | Mapping[str, str]  # or one of some words, which may each have a meaning to show


def within(path: str, section: Any, table: Mapping[str, Allowed], apart: Collection[str] = ()) -> Iterator[Fault]:
    """The faults of a section's values by its table, without the keys that are judged `apart`."""
    for key, allowed in table.items():
        if key in apart:
            continue
        if isinstance(allowed, Range):
            yield from _in_range(f"{path}.{key}", getattr(section, key), allowed)
        else:
            yield from choice(path, section, key, *allowed)


def _in_range(key: str, value: float, allowed: Range) -> Iterator[Fault]:
    if value < allowed.least or (allowed.above and value == allowed.least):
        yield Fault(key, f"{value}; must be {allowed}; raise it")
    elif value > allowed.most or (allowed.below and value == allowed.most):
        yield Fault(key, f"{value}; must be {allowed}; lower it")


def choice(path: str, section: Any, key: str, *allowed: str) -> Iterator[Fault]:
    value = getattr(section, key)
    if value not in allowed:
        remedy = meant(value, allowed) or "choose one"
        yield Fault(f"{path}.{key}", f"{value!r}; allowed: {', '.join(x or repr(x) for x in allowed)}; {remedy}")


def meant(given: str, allowed: Iterable[str]) -> str:
    """`did you mean 'cosine'?`, or "" where nothing that is allowed looks like it."""
    near = nearest(given, allowed)
    return f"did you mean {near!r}?" if near else ""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """The name that looks most like it, or "" where none does."""
    near = difflib.get_close_matches(str(given), [str(name) for name in allowed], 1)
    return near[0] if near else ""
