"""Pictures to ids: each patch is the nearest of K patches found by k-means.

ImageGPT (Chen et al. 2020) reduced single pixels to 512 colours in this way; `patch=1` is that, larger patches need
fewer tokens and lose more.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from PIL import Image

from mot.config.modalities import IMAGE_SIDE
from mot.tokenizers import codebook
from mot.tokenizers.archive import STORED


@dataclass(frozen=True, eq=False)
class ImageTokenizer:
    """Pictures of `side` x `side` pixels in patches of `patch` x `patch`, row by row."""

    FORMAT: ClassVar[str] = "mot image tokenizer 1"
    side: int
    patch: int
    codes_KP: np.ndarray = field(metadata={STORED: "codes"})  # uint8, a patch's pixels row by row, RGB; dark ones first

    def __post_init__(self):
        check(self.side, self.patch)
        codebook.check(self.codes_KP, 3 * self.patch**2)

    @property
    def ids(self) -> int:
        return len(self.codes_KP)

    @property
    def tokens(self) -> int:
        """Of a picture; each has so many."""
        return (self.side // self.patch) ** 2

    def encode(self, image: np.ndarray) -> np.ndarray:
        """int32 `[tokens]` of a picture uint8 `[H, W, 3]`, of which the square in the middle is seen."""
        return codebook.nearest(patches(image, self.side, self.patch), self.codes_KP)

    def decode(self, ids) -> np.ndarray:
        """The picture uint8 `[side, side, 3]`; raises `ValueError` where ids are not `[tokens]` of this tokenizer."""
        patches_RP = codebook.look_up(ids, self.codes_KP)
        if len(patches_RP) != self.tokens:
            raise ValueError(f"{len(patches_RP)} ids are no picture: it has {self.tokens}; give as many")
        return assembled(patches_RP, self.side, self.patch)


def fit_image(images: Iterable[np.ndarray], side: int, patch: int, ids: int, fewer: bool = False) -> ImageTokenizer:
    """A tokenizer for pictures like these, uint8 `[H, W, 3]`; the same from the same pictures.

    k-means sees a sample of bounded size. Raises `ValueError` where fewer patches differ than ids are asked for, unless
    `fewer` will do.
    """
    check(side, patch)
    if fewer:
        ids = min(ids, codebook.CODES // (3 * patch**2))
    codebook.check_ids(ids, 3 * patch**2)
    sample = codebook.sample((patches(image, side, patch) for image in images), 3 * patch**2)
    return ImageTokenizer(side, patch, codebook.fit(sample, ids, f"patches of {patch} x {patch} pixels", fewer))


def check(side: int, patch: int) -> None:
    """Raises `ValueError` unless pictures of this side divide into such patches."""
    if not 1 <= side <= IMAGE_SIDE:
        raise ValueError(f"side={side}; must be from 1 to {IMAGE_SIDE} pixels")
    fitting = [p for p in range(1, side + 1) if side % p == 0 and 3 * p**2 <= codebook.CODES]
    if patch not in fitting:
        raise ValueError(f"patch={patch}; must divide side={side}; choose one of {', '.join(map(str, fitting))}")


def patches(image: np.ndarray, side: int, patch: int) -> np.ndarray:
    """uint8 `[tokens, 3 * patch**2]`, row by row, of the square in the middle."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"a picture is {image.dtype} {list(image.shape)}; it must be uint8 [height, width, 3]")
    height, width, _ = image.shape
    square = min(height, width)
    left, top = (width - square) // 2, (height - square) // 2
    box = (left, top, left + square, top + square)
    pixels = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS, box))
    n = side // patch
    return pixels.reshape(n, patch, n, patch, 3).transpose(0, 2, 1, 3, 4).reshape(n * n, 3 * patch**2)


def assembled(patches_RP: np.ndarray, side: int, patch: int) -> np.ndarray:
    """`[side, side, 3]`, what `patches` takes apart."""
    n = side // patch
    return patches_RP.reshape(n, n, patch, patch, 3).transpose(0, 2, 1, 3, 4).reshape(side, side, 3)
