"""Ids and vectors that somebody's own tokenizer made: nothing is encoded here, only judged, and nothing is decoded."""

from dataclasses import dataclass

import numpy as np

from mot.config.modalities import MAX_IDS


@dataclass(frozen=True)
class GivenIds:
    """Ids from 0 to `ids` - 1."""

    ids: int
    tokens: int = 0  # of a unit, where each has so many; 0 = any number

    def __post_init__(self):
        if not 1 <= self.ids <= MAX_IDS:
            raise ValueError(f"ids={self.ids}; must be from 1 to {MAX_IDS}")

    def encode(self, x_C: np.ndarray) -> np.ndarray:
        """Integers `[n]` as they are; raises `ValueError` for ids out of range, and a unit of another length."""
        outside = x_C[(x_C < 0) | (x_C >= self.ids)]
        if len(outside):
            raise ValueError(f"id {outside[0]} is out of range: ids are from 0 to {self.ids - 1}")
        if len(x_C) != (self.tokens or len(x_C)):
            raise ValueError(f"{len(x_C)} ids, where each unit has {self.tokens}")
        return x_C

    def decode(self, x_C: np.ndarray) -> np.ndarray:
        """The same ids, for whoever has the decoder."""
        return self.encode(x_C)


@dataclass(frozen=True)
class GivenVectors:
    """Vectors of `width` features, in rows and columns where `shape` has the most of them."""

    width: int
    shape: tuple[int, ...] = ()
    tokens = 0  # any number

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Floats `[n, width]`, or `[rows, columns, width]` where there is a shape, as they are; `ValueError` for
        others."""
        if x.shape[-1] != self.width:
            raise ValueError(f"latents of {x.shape[-1]} features, where the first ones had {self.width}")
        if x.ndim != (3 if self.shape else 2):
            first = "[rows, columns, P]" if self.shape else "[n, P]"
            raise ValueError(f"latents {list(x.shape)}, where the first ones were {first}")
        if any(n > most for n, most in zip(x.shape, self.shape, strict=False)):
            rows, columns = self.shape
            raise ValueError(f"latents {list(x.shape)}, where the first ones had {rows} x {columns} at most (--sample)")
        return x

    def decode(self, x: np.ndarray) -> np.ndarray:
        return x
