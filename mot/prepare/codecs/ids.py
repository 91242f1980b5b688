"""Ids that somebody's own tokenizer made, of a modality of any name: judged, kept and given back as they are."""

from collections import Counter

import numpy as np

from mot.config.modalities import NPY_HEADER
from mot.data import preview
from mot.data.preview import Box, Room
from mot.prepare import columns, media
from mot.prepare.media import Content
from mot.prepare.raw import Part
from mot.tokenizers.given import GivenIds

MAX_BYTES = 256 * 2**20
ARRAYS = "integers [n, tokens] (x.reshape(len(x), -1)), or [tokens] with offsets [n + 1]"
IS_RAGGED = True
COLUMNS = "lists of integers, those of a unit in one list, or .npy files (binary)"


def read(part: Part, remarks: Counter) -> np.ndarray:
    return ids(part.content)


def ids(content: Content) -> np.ndarray:
    """Integers `[n]`: a .npy file or an array."""
    return media.array(content, MAX_BYTES + NPY_HEADER, _check)


def _check(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "iu" or len(shape) != 1 or not shape[0]:
        flat = "; write those of one unit one after the other (x.reshape(-1))" * (len(shape) > 1)
        raise ValueError(f"ids are {dtype} {list(shape)}; integers [n] are needed, n of 1 or more{flat}")
    if shape[0] * dtype.itemsize > MAX_BYTES:
        raise ValueError(f"{shape[0]:,} ids of {dtype}; at most {MAX_BYTES:,} bytes are allowed")


def fits_array(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return dtype.kind in "iu" and len(shape) == 1


def fits_column(column) -> bool:
    return columns.is_bytes(column) or (columns.is_list(column) and columns.is_integer(column.value_type))


def box(content: np.ndarray, tokenizer: GivenIds | None, room: Room) -> Box:
    return Box(f", {len(content)} ids", (), picture(content, room))


def picture(content: np.ndarray, room: Room) -> np.ndarray:
    return preview.tiles(content, room.longest)


def files(content: np.ndarray, tokenizer: GivenIds, seed: int) -> dict[str, bytes]:
    return {"npy": media.npy(content)}
