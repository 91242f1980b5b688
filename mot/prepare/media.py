"""What codecs share: bytes of a file under a limit, and arrays of .npy files, judged before they are read.

Every fault of a file is a `ValueError` that says why; nothing here unpickles.
"""

import io
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mot.config.modalities import NPY_HEADER
from mot.errors import reason

Content = bytes | Path | np.ndarray  # of a medium: encoded, a file of such bytes, or an array


def npy(array: np.ndarray) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def array(content: Content, limit: int, check: Callable[[tuple[int, ...], np.dtype], None]) -> np.ndarray:
    """An array, or that of a .npy file of at most `limit` bytes; its shape and dtype are checked before it is read."""
    if isinstance(content, np.ndarray):
        check(content.shape, content.dtype)
        return content
    file = io.BytesIO(bytes_of(content, limit))
    shape, fortran, dtype = npy_header(file)
    check(shape, dtype)
    have = len(file.getbuffer()) - file.tell()
    count = math.prod(shape)
    if have < count * dtype.itemsize:
        raise ValueError(f"the .npy file is cut off: {have} of {count * dtype.itemsize} bytes")
    return np.frombuffer(file.getbuffer(), dtype, count, file.tell()).reshape(shape, order="FC"[not fortran])


def finite(array: np.ndarray, what: str) -> np.ndarray:
    """float32, of two axes at least; raises `ValueError` where it is not finite, as "the action holds NaN ...", where
    `what` is "the action holds"."""
    with np.errstate(over="ignore", invalid="ignore"):
        floats = np.array(array, np.float32, order="C", ndmin=2)
    if not np.isfinite(floats).all():
        raise ValueError(f"{what} NaN or infinity (in float32)")
    return floats


def npy_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype of the .npy that an open file stands at; the data come next."""
    read = {
        (1, 0): ("<H", np.lib.format.read_array_header_1_0),
        (2, 0): ("<I", np.lib.format.read_array_header_2_0),
    }
    try:
        version = np.lib.format.read_magic(file)
        if version not in read:
            raise ValueError(f"version {version}; 1.0 and 2.0 are allowed")
        form, parsed = read[version]
        length = file.read(struct.calcsize(form))
        (size,) = struct.unpack(form, length)
        if size > NPY_HEADER:
            raise ValueError(f"a header of {size:,} bytes; at most {NPY_HEADER:,} are allowed")
        shape, fortran, dtype = parsed(io.BytesIO(length + file.read(size)))
    except Exception as error:  # the header is a Python literal, whose parser raises of many kinds
        raise ValueError(f"not a .npy file: {reason(error)}") from None
    if min(shape, default=0) < 0:
        raise ValueError(f"not a .npy file: shape {shape}")
    return shape, fortran, dtype


def check_file(path: Path, limit: int) -> None:
    """Raises `ValueError` for what is no regular file, or has more than `limit` bytes; `OSError` as the system does."""
    if not path.is_file():  # a pipe or a device would never end
        raise ValueError(f"{path.name} is not a file" if path.exists() else f"no file {path.name}")
    if path.stat().st_size > limit:
        raise ValueError(
            f"{path.name} has {path.stat().st_size:,} bytes; at most {limit:,} are allowed; make it smaller"
        )


def bytes_of(content: bytes | Path, limit: int) -> bytes:
    """Of a file, which are counted before they are read; raises `ValueError` where there are none, or too many."""
    if isinstance(content, Path):
        try:
            check_file(content, limit)
            content = content.read_bytes()
        except OSError as error:
            raise ValueError(f"{content.name} cannot be read: {error.strerror}") from None
    if not content:
        raise ValueError("no bytes in it")
    if len(content) > limit:
        raise ValueError(f"{len(content):,} bytes; at most {limit:,} are allowed")
    return content
