"""How a tensor of theirs lies in ours: each transform with its inverse, and what shape theirs must have.

Torch's matrices are [out, in]; ours are [in, out], with heads as axes of their own. By RoPE both turn the first half of
a head against the second, and Gemma's norms hold w of 1 + w as `model.norm_offset` does: nothing else is converted.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Transform(NamedTuple):
    shape: Callable[[Shape], Shape]  # of theirs, by that of ours
    to_ours: Callable[[np.ndarray, Shape], np.ndarray]  # and the shape that ours has
    to_theirs: Callable[[np.ndarray], np.ndarray]
    is_added: bool = False  # what several parameters make of one tensor is added, and does not lie end to end


def _turned(ins: int) -> Transform:
    """A matrix whose first `ins` axes of ours are summed over."""

    def shape(ours: Shape) -> Shape:
        return math.prod(ours[ins:]), math.prod(ours[:ins])

    return Transform(shape, lambda x, ours: x.T.reshape(ours), lambda x: x.reshape(shape(x.shape)[::-1]).T)


def _half(first: bool) -> Transform:
    """A table of columns (first) or rows, of whose sum theirs has the entry of each place of a square, row by row.

    Half of the features are of the column, half of the row, as sines of either are (2505.14683).
    """

    def to_ours(x: np.ndarray, ours: Shape) -> np.ndarray:
        side, D = ours
        square = x.reshape(side, side, D)
        half = np.arange(D) < D // 2
        return np.where(half[None], square[0], 0) if first else np.where(half[None], 0, square[:, 0])

    def to_theirs(x: np.ndarray) -> np.ndarray:
        return np.tile(x, (len(x), 1)) if first else np.repeat(x, len(x), axis=0)

    return Transform(lambda ours: (ours[0] ** 2, ours[1]), to_ours, to_theirs, is_added=True)


def _in_pairs() -> Transform:
    """A matrix of heads whose features 2 i and 2 i + 1 turn together, where ours has the first and the second half."""
    heads = _turned(1)

    def parted(x: np.ndarray, pairs: Shape) -> np.ndarray:
        return x.reshape(*x.shape[:2], *pairs).swapaxes(-1, -2).reshape(x.shape)

    def to_ours(x: np.ndarray, ours: Shape) -> np.ndarray:
        return parted(heads.to_ours(x, ours), (-1, 2))

    return Transform(heads.shape, to_ours, lambda x: heads.to_theirs(parted(x, (2, x.shape[-1] // 2))))


TRANSFORMS = {
    "same": Transform(lambda ours: ours, lambda x, _: x, lambda x: x),
    "transpose": _turned(1),  # [F, D] to [D, F]
    "split_heads": _turned(1),  # [N H, D] to [D, N, H]
    "split_pairs": _in_pairs(),
    "join_heads": _turned(2),  # [D, N H] to [N, H, D]
    "rows": _half(first=False),
    "columns": _half(first=True),
    "row": Transform(lambda ours: (1, *ours), lambda x, ours: x.reshape(ours), lambda x: x[None]),
    "split_bias": Transform(lambda ours: (math.prod(ours),), lambda x, ours: x.reshape(ours), lambda x: x.reshape(-1)),
}
