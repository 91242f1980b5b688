"""A tokenizer's file: an .npz of its fields, without pickle, the same bytes for the same content.

A tokenizer is a dataclass of whole numbers, floats, truth values and arrays; its class says what file it is in FORMAT.
A field that is as usual (its default) is not stored: so a class may have fields that files of earlier versions lack.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from mot.files import write_atomically

LARGEST = (1 << 23) + 4096  # bytes of a file
STORED = "stored"  # in a field's metadata: its name in the file, where that is another


def save(tokenizer: Any, file: Path) -> None:
    """Equal tokenizers give equal bytes."""
    write_atomically(file, to_bytes(tokenizer))


def load(kind: type, file: Path) -> Any:
    """The tokenizer of this class that `save` wrote; raises `ValueError` for anything else."""
    try:
        return from_bytes(kind, _read(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def to_bytes(tokenizer: Any) -> bytes:
    values = [(getattr(tokenizer, field.name), field, stored) for field, stored in _fields(type(tokenizer))]
    arrays = {stored: np.asarray(x) for x, field, stored in values if field.default is MISSING or x != field.default}
    return pack(tokenizer.FORMAT, arrays)


def from_bytes(kind: type, content: bytes) -> Any:
    """What `to_bytes` made of a tokenizer of this class; raises `ValueError` for anything else."""
    names = [stored for field, stored in _fields(kind) if field.default is MISSING]
    arrays = unpack(content, kind.FORMAT, names, [stored for _, stored in _fields(kind) if stored not in names])
    values = {}
    for field, stored in _fields(kind):
        if stored not in arrays:
            continue
        array = arrays[stored]
        if field.type is not np.ndarray and (array.shape or array.dtype != np.dtype(field.type)):
            raise ValueError(f"its {stored} is {array.dtype}; {field.type.__name__} is needed")
        values[field.name] = array if field.type is np.ndarray else array.item()
    return kind(**values)


def _fields(kind: type) -> list[tuple[Any, str]]:
    """The fields that are stored, each with its name in the file."""
    return [(field, field.metadata.get(STORED, field.name)) for field in fields(kind)]


def pack(format: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz file: the same content gives the same bytes, on any machine and in any version."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in ({"format": np.array(format)} | arrays).items():
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array, order="C"), (1, 0), allow_pickle=False)
            archive.writestr(entry, member.getvalue())
    return out.getvalue()


def unpack(content: bytes, format: str, names: Sequence[str], usual: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """What `pack` wrote; raises `ValueError` for anything else, also where a single bit differs.

    Arrays of the names `usual` may be absent.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")  # and might unfold to any size

            def read(name):
                return np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)

            found = str(read("format"))
            there = [name for name in usual if f"{name}.npy" in archive.namelist()]
            arrays = {name: read(name) for name in (*names, *there) if found == format}
    except Exception as error:  # a damaged archive or header raises any of a dozen kinds
        raise ValueError(f"it is no tokenizer of this project: {type(error).__name__}: {error}") from error
    if found != format:
        raise ValueError(f"it holds {found[:60]!r} and {format!r} is needed; give another file, or fit one anew")
    if pack(format, arrays) != content:
        raise ValueError("it is not as it was written; fit it anew, or copy it again")
    return arrays


def _read(file: Path) -> bytes:
    """A file's bytes; raises `ValueError` where there is none, or one too large to be ours."""
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes, which no tokenizer has")
    return content
