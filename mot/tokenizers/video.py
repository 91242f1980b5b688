"""Films to ids: some frames in time, each in patches that are the nearest of K patches found by k-means.

As MIO (2409.17692) writes a film: its frames' ids one frame after another, as those of pictures.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from mot.tokenizers import codebook, image
from mot.tokenizers.archive import STORED


@dataclass(frozen=True, eq=False)
class VideoTokenizer:
    """Films of `frames` pictures, each of `side` x `side` pixels in patches of `patch` x `patch`, row by row."""

    FORMAT: ClassVar[str] = "mot video tokenizer 1"
    frames: int
    side: int
    patch: int
    codes_KP: np.ndarray = field(metadata={STORED: "codes"})  # uint8, a patch's pixels row by row, RGB; dark ones first

    def __post_init__(self):
        check(self.frames, self.side, self.patch)
        codebook.check(self.codes_KP, 3 * self.patch**2)

    @property
    def ids(self) -> int:
        return len(self.codes_KP)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, and rows and columns of each."""
        return self.frames, self.side // self.patch, self.side // self.patch

    @property
    def tokens(self) -> int:
        """Of a film; each has so many."""
        frames, rows, columns = self.shape
        return frames * rows * columns

    def encode(self, film: np.ndarray) -> np.ndarray:
        """int32 `[tokens]` of a film uint8 `[N, H, W, 3]`, of which `chosen` frames are seen."""
        return codebook.nearest(_patches(film, self.frames, self.side, self.patch), self.codes_KP)

    def decode(self, ids) -> np.ndarray:
        """The film uint8 `[frames, side, side, 3]`; raises `ValueError` where ids are not `[tokens]` of this one."""
        patches_RP = codebook.look_up(np.asarray(ids).reshape(-1), self.codes_KP)
        if len(patches_RP) != self.tokens:
            raise ValueError(f"{len(patches_RP)} ids are no film: it has {self.tokens}; give as many")
        by_patch = patches_RP.reshape(*self.shape, self.patch, self.patch, 3).transpose(0, 1, 3, 2, 4, 5)
        return by_patch.reshape(self.frames, self.side, self.side, 3)


def fit_video(
    films: Iterable[np.ndarray], frames: int, side: int, patch: int, ids: int, fewer: bool = False
) -> VideoTokenizer:
    """A tokenizer for films like these, uint8 `[N, H, W, 3]`; the same from the same films.

    Raises `ValueError` where fewer patches differ than ids are asked for, unless `fewer` will do.
    """
    check(frames, side, patch)
    if fewer:
        ids = min(ids, codebook.CODES // (3 * patch**2))
    codebook.check_ids(ids, 3 * patch**2)
    sample = codebook.sample((_patches(film, frames, side, patch) for film in films), 3 * patch**2)
    codes_KP = codebook.fit(sample, ids, f"patches of {patch} x {patch} pixels", fewer)
    return VideoTokenizer(frames, side, patch, codes_KP)


def check(frames: int, side: int, patch: int) -> None:
    """Raises `ValueError` unless films have so many frames, and these divide into such patches."""
    if frames < 1:
        raise ValueError(f"frames={frames}; must be 1 or more")
    image.check(side, patch)


def chosen(count: int, frames: int) -> np.ndarray:
    """`[frames]`: which of `count` frames are seen: the last of each of so many equal stretches of time."""
    return (np.arange(1, frames + 1) * count + frames - 1) // frames - 1


def _patches(film: np.ndarray, frames: int, side: int, patch: int) -> np.ndarray:
    if film.ndim != 4 or not len(film):
        raise ValueError(f"a film is {film.dtype} {list(film.shape)}; it must be uint8 [frames, height, width, 3]")
    return np.concatenate([image.patches(film[i], side, patch) for i in chosen(len(film), frames)])
