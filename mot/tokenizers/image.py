"""Pictures to ids: each patch is the nearest of K patches found by k-means.

ImageGPT (Chen et al. 2020) reduced single pixels to 512 colours in this way; `patch=1` is that, larger patches need
fewer tokens and lose more.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from PIL import Image

from mot.config.modalities import IMAGE_SIDE
from mot.tokenizers import codebook
from mot.tokenizers.archive import STORED


@dataclass(frozen=True, eq=False)
class ImageTokenizer:
    """Pictures of `side` x `side` pixels in patches of `patch` x `patch`, row by row; `native`: no side is longer."""

    FORMAT: ClassVar[str] = "mot image tokenizer 1"
    side: int
    patch: int
    codes_KP: np.ndarray = field(metadata={STORED: "codes"})  # uint8, a patch's pixels row by row, RGB; dark ones first
    native: bool = False

    def __post_init__(self):
        check(self.side, self.patch)
        codebook.check(self.codes_KP, 3 * self.patch**2)

    @property
    def ids(self) -> int:
        return len(self.codes_KP)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a picture, or the most of them."""
        return (self.side // self.patch,) * 2

    @property
    def tokens(self) -> int:
        """Of a picture, where each has so many; else 0."""
        return 0 if self.native else math.prod(self.shape)

    def encode(self, image: np.ndarray) -> np.ndarray:
        """int32 `[tokens]` of a picture uint8 `[H, W, 3]`, of which the square in the middle is seen.

        Of a `native` one `[rows, columns]`, of all of it.
        """
        if not self.native:
            return codebook.nearest(patches(image, self.side, self.patch), self.codes_KP)
        found, shape = native_patches(image, self.side, self.patch)
        return codebook.nearest(found, self.codes_KP).reshape(shape)

    def decode(self, ids) -> np.ndarray:
        """The picture uint8 `[side, side, 3]`, or `[height, width, 3]` of a native one.

        Raises `ValueError` where ids are not `[tokens]` of this tokenizer, or `[rows, columns]`.
        """
        ids = np.asarray(ids)
        patches_RP = codebook.look_up(ids.reshape(-1), self.codes_KP)
        shape = checked_shape(ids.shape, self)
        return assembled(patches_RP, shape, self.patch)


def fit_image(
    images: Iterable[np.ndarray], side: int, patch: int, ids: int, fewer: bool = False, native: bool = False
) -> ImageTokenizer:
    """A tokenizer for pictures like these, uint8 `[H, W, 3]`; the same from the same pictures.

    k-means sees a sample of bounded size. Raises `ValueError` where fewer patches differ than ids are asked for, unless
    `fewer` will do.
    """
    check(side, patch)
    if fewer:
        ids = min(ids, codebook.CODES // (3 * patch**2))
    codebook.check_ids(ids, 3 * patch**2)
    seen = (native_patches(image, side, patch)[0] if native else patches(image, side, patch) for image in images)
    sample = codebook.sample(seen, 3 * patch**2)
    codes_KP = codebook.fit(sample, ids, f"patches of {patch} x {patch} pixels", fewer)
    return ImageTokenizer(side, patch, codes_KP, native)


def check(side: int, patch: int) -> None:
    """Raises `ValueError` unless pictures of this side divide into such patches."""
    if not 1 <= side <= IMAGE_SIDE:
        raise ValueError(f"side={side}; must be from 1 to {IMAGE_SIDE} pixels")
    fitting = [p for p in range(1, side + 1) if side % p == 0 and 3 * p**2 <= codebook.CODES]
    if patch not in fitting:
        raise ValueError(f"patch={patch}; must divide side={side}; choose one of {', '.join(map(str, fitting))}")


def patches(image: np.ndarray, side: int, patch: int) -> np.ndarray:
    """uint8 `[tokens, 3 * patch**2]`, row by row, of the square in the middle."""
    return _apart(square(image, side), patch)


def square(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 `[side, side, 3]`: the square in the middle of a picture uint8 `[H, W, 3]`."""
    height, width = _size(image)
    least = min(height, width)
    left, top = (width - least) // 2, (height - least) // 2
    box = (left, top, left + least, top + least)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS, box))


def native_patches(image: np.ndarray, side: int, patch: int) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 `[tokens, 3 * patch**2]`, row by row, of a whole picture, and its rows and columns of patches.

    It is made smaller, never larger, until no side is longer than `side`; then each side becomes the nearest multiple
    of a patch, one patch at least. One whose sides are such already stays as it is, to the pixel.
    """
    height, width = _size(image)
    smaller = min(1, side / max(height, width))
    rows, columns = (max(round(x * smaller / patch), 1) for x in (height, width))
    pixels = image
    if (rows * patch, columns * patch) != (height, width):
        size = (columns * patch, rows * patch)
        pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return _apart(pixels, patch), (rows, columns)


def _size(image: np.ndarray) -> tuple[int, int]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"a picture is {image.dtype} {list(image.shape)}; it must be uint8 [height, width, 3]")
    return image.shape[0], image.shape[1]


def _apart(pixels: np.ndarray, patch: int) -> np.ndarray:
    rows, columns = (x // patch for x in pixels.shape[:2])
    by_patch = pixels.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
    return by_patch.reshape(rows * columns, 3 * patch**2)


def checked_shape(shape: Sequence[int], tokenizer) -> tuple[int, int]:
    """Rows and columns of a picture whose tokens have this shape; `ValueError` where it is none of the tokenizer's."""
    if not tokenizer.native:
        if math.prod(shape) != tokenizer.tokens:
            raise ValueError(f"{math.prod(shape)} ids are no picture: it has {tokenizer.tokens}; give as many")
        return tokenizer.shape
    most = tokenizer.shape[0]
    if len(shape) != 2 or not all(1 <= side <= most for side in shape):
        raise ValueError(f"tokens {list(shape)} are no picture: [rows, columns] are needed, of {most} at most")
    return shape[0], shape[1]


def assembled(patches_RP: np.ndarray, shape: tuple[int, int], patch: int) -> np.ndarray:
    """`[height, width, 3]` of so many rows and columns of patches: what `patches` takes apart."""
    rows, columns = shape
    by_patch = patches_RP.reshape(rows, columns, patch, patch, 3).transpose(0, 2, 1, 3, 4)
    return by_patch.reshape(rows * patch, columns * patch, 3)
