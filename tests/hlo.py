"""What a compiled program computes, read off its text."""

import math
import re

_DOT = re.compile(r"= \w+\[([\d,]*)\]\S* dot\(%?([\w.-]+)[^)]*\).*lhs_contracting_dims=\{([\d,]+)\}")
_SHAPE = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = \w+\[([\d,]*)\]")


def dots(text: str) -> int:
    """FLOPs of the `dot`s in an HLO module's text; those in a loop's body count once."""
    shapes = {m[1]: _numbers(m[2]) for line in text.splitlines() if (m := _SHAPE.match(line))}
    return sum(
        2 * math.prod(_numbers(m[1])) * math.prod(shapes[m[2]][i] for i in _numbers(m[3])) for m in _DOT.finditer(text)
    )


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x]
