"""Latents: vectors `[n, P]`, or `[rows, columns, P]`, of somebody's own encoder, from .npy files, kept as they are."""

import math
from collections import Counter

import numpy as np

from mot.config.modalities import MODALITIES, NPY_HEADER, VECTORS
from mot.data import preview
from mot.data.preview import Box, Room
from mot.prepare import columns, media
from mot.prepare.media import Content
from mot.prepare.raw import Part
from mot.tokenizers.given import GivenVectors

TOKENIZERS = {VECTORS: GivenVectors}
ARRAYS = "floats [n, P], [n, tokens, P] or [n, rows, columns, P], or [tokens, P] with offsets [n + 1]"
AXES = (1, 2, 3)  # of an array: [P], [n, P], [rows, columns, P]
IS_RAGGED = True
COLUMNS = ".npy files (binary) or lists of floats"
MAX_BYTES = MODALITIES["latents"].max_bytes - NPY_HEADER  # of an array


def read(part: Part, remarks: Counter) -> np.ndarray:
    return vectors(part.content)


def vectors(content: Content) -> np.ndarray:
    """float32 [n, P] or [rows, columns, P], finite: a .npy file or an array of such floats, or [P] for one."""
    return media.finite(media.array(content, MODALITIES["latents"].max_bytes, _check), "latents hold")


def _check(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind != "f" or dtype.itemsize > 8 or len(shape) not in AXES or 0 in shape:
        allowed = "float16, float32 or float64 [n, P], [rows, columns, P] or [P]"
        raise ValueError(f"latents {dtype} {list(shape)}; {allowed} are allowed")
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise ValueError(f"latents {dtype} {list(shape)}; at most {MAX_BYTES} bytes are allowed")


def fits_array(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return dtype.kind == "f" and len(shape) in AXES


def fits_column(column) -> bool:
    return columns.is_array(column, columns.is_floating)


def fit(form: str, examples, recipe) -> GivenVectors:
    """Nothing but their width, and of those with rows and columns the most of these."""
    first = next(examples, None)
    if first is None or first.ndim == 2:
        return GivenVectors(0 if first is None else first.shape[-1])
    shapes = [first.shape, *(x.shape for x in examples if x.ndim == first.ndim)]
    return GivenVectors(first.shape[-1], tuple(map(max, *(shape[:-1] for shape in shapes), (1, 1))))


def box(content: np.ndarray, tokenizer: GivenVectors, room: Room) -> Box:
    return Box(f" {' x '.join(map(str, content.shape))}", (), picture(content, room))


def picture(content: np.ndarray, room: Room) -> np.ndarray:
    """Features upwards and tokens to the right, as in a spectrogram."""
    return preview.heat(content.reshape(-1, content.shape[-1]).T[::-1], "viridis", room)


def files(content: np.ndarray, tokenizer: GivenVectors, seed: int) -> dict[str, bytes]:
    return {"npy": media.npy(content)}
