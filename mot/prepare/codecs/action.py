"""Actions: the path of a pen, from .npy files, to points evenly spaced along its strokes, as vectors, and back."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from mot.config.modalities import MODALITIES, NPY_HEADER, VECTORS
from mot.data import preview
from mot.data.preview import Box, Room
from mot.prepare import columns, media
from mot.prepare.media import Content
from mot.prepare.raw import Part
from mot.tokenizers import vectors
from mot.tokenizers.vectors import ActionVectors

TOKENIZERS = {VECTORS: ActionVectors}
ARRAYS = "numbers [n, points] or [n, points, P], or [points] or [points, P] with offsets [n + 1]"
IS_RAGGED = True
COLUMNS = ".npy files (binary) or lists of numbers"
MAX_BYTES = MODALITIES["action"].max_bytes - NPY_HEADER  # of an array


def read(part: Part, remarks: Counter) -> np.ndarray:
    return path(part.content)


def path(content: Content) -> np.ndarray:
    """float32 [n, 3], at most 1e29 from 0: a path's x, y, and above 0 where the pen leaves the paper after the point.

    A .npy file or an array of numbers, [n, 3], or [n, 2] for one stroke.
    """
    points = media.finite(media.array(content, MODALITIES["action"].max_bytes, _check), "the action holds")
    if (far := np.abs(points[:, :2]).max()) > vectors.FARTHEST:
        raise ValueError(f"the action reaches {far:g}; at most {vectors.FARTHEST:g} is allowed; take a larger unit")
    return points if points.shape[1] == 3 else np.pad(points, ((0, 0), (0, 1)))


def _check(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "iufb" or dtype.itemsize > 8 or len(shape) != 2 or shape[1] not in (2, 3) or not shape[0]:
        raise ValueError(
            f"an action {dtype} {list(shape)}; numbers [n, 2] (x, y) or [n, 3] (and pen up) are allowed; give other "
            "columns as latents"
        )
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise ValueError(f"an action {dtype} {list(shape)}; at most {MAX_BYTES} bytes are allowed")


def fits_array(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return dtype.kind in "iufb" and len(shape) in (1, 2)


def fits_column(column) -> bool:
    return columns.is_array(column, columns.is_number)


def fit(form: str, paths: Iterable[np.ndarray], recipe) -> ActionVectors:
    return vectors.fit_action(paths, recipe.action_points, recipe.action_as == "offsets")


def box(content: Sequence[np.ndarray], tokenizer: ActionVectors, room: Room) -> Box:
    return Box(f", {sum(map(len, content))} points", (), picture(content, room))


def picture(content: Sequence[np.ndarray], room: Room) -> np.ndarray:
    return preview.drawing(content, room.longest)


def files(content: Sequence[np.ndarray], tokenizer: ActionVectors, seed: int) -> dict[str, bytes]:
    """A path `[n, 3]` of strokes: x, y, and 1 where the pen leaves the paper; and its picture."""
    ends = [np.arange(len(stroke)) == len(stroke) - 1 for stroke in content]
    points = [np.column_stack([stroke, end.astype(float)]) for stroke, end in zip(content, ends, strict=True)]
    return {"npy": media.npy(np.concatenate(points)), "png": preview.png(picture(content, Room()))}
