"""Chunks of actions to FAST's ids, and back: any array [points, P], or a pen's path, resampled."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from mot.config.modalities import IDS, MODALITIES, NPY_HEADER
from mot.data.preview import Box, Room
from mot.prepare import media
from mot.prepare.codecs import action, latents
from mot.prepare.media import Content
from mot.prepare.raw import Part
from mot.tokenizers.fast import WIDTH, FastTokenizer, fit_fast

TOKENIZERS = {IDS: FastTokenizer}
ARRAYS = action.ARRAYS
IS_RAGGED = True
COLUMNS = action.COLUMNS
MAX_BYTES = MODALITIES["fast"].max_bytes - NPY_HEADER  # of an array

fits_array = action.fits_array
fits_column = action.fits_column


def read(part: Part, remarks: Counter) -> np.ndarray:
    return chunk(part.content)


def chunk(content: Content) -> np.ndarray:
    """float32 [points, P], finite: a .npy file or an array of numbers."""
    return media.finite(media.array(content, MODALITIES["fast"].max_bytes, _check), "the chunk holds")


def _check(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "iufb" or dtype.itemsize > 8 or len(shape) != 2 or 0 in shape or shape[1] > WIDTH:
        raise ValueError(f"a chunk {dtype} {list(shape)}; numbers [points, P] are allowed, P at most {WIDTH}")
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise ValueError(f"a chunk {dtype} {list(shape)}; at most {MAX_BYTES} bytes are allowed")


def fit(form: str, chunks: Iterable[np.ndarray], recipe) -> FastTokenizer:
    asked = recipe.fast_ids
    ids = asked or MODALITIES["fast"].usual_ids
    is_pen = recipe.fast_points > 0
    return fit_fast(chunks, recipe.fast_points, recipe.fast_scale, ids, is_pen, fewer=not asked)


def box(content: np.ndarray | Sequence[np.ndarray], tokenizer: FastTokenizer, room: Room) -> Box:
    if tokenizer.is_pen:
        return action.box(content, tokenizer, room)
    return latents.box(content, tokenizer, room)


def picture(content: np.ndarray | Sequence[np.ndarray], room: Room) -> np.ndarray:
    """A pen's strokes as they are drawn; of other chunks the features upwards and points to the right."""
    return latents.picture(content, room) if isinstance(content, np.ndarray) else action.picture(content, room)


def files(content: np.ndarray | Sequence[np.ndarray], tokenizer: FastTokenizer, seed: int) -> dict[str, bytes]:
    codec = action if tokenizer.is_pen else latents
    return codec.files(content, tokenizer, seed)
