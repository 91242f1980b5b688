"""Input files that tests write, and what is read of them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from mot.prepare import readers


def png(level=0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 2), level).save(file, "PNG")
    return file.getvalue()


def read(*inputs, **options):
    return list(readers.read(inputs, **options))


def good(*inputs, **options):
    """`(kind, content)` of each part of each document, of which none is bad."""
    found = read(*inputs, **options)
    assert not [r for r in found if r.bad]
    assert len({r.id for r in found}) == len(found)
    return [[(part.kind, part.content) for part in r.parts] for r in found]


def bad(*inputs, **options):
    """Reasons by id."""
    found = read(*inputs, **options)
    assert len({r.id for r in found}) == len(found)
    assert not [r for r in found if r.bad and r.parts]
    return {r.id: r.bad for r in found if r.bad}


def write_lines(path: Path, *rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)

    def encode(row):
        return row if isinstance(row, bytes) else json.dumps(row).encode()

    path.write_bytes(b"".join(encode(row) + b"\n" for row in rows))
    return path


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(path: Path, columns: dict, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def tar(path: Path, *members, mode="w") -> Path:
    """Members are (name, bytes) or TarInfo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def npz_of_strokes(path: Path, drawings: int) -> Path:
    """Drawings of a pen end to end, with captions beside them: `xy` int16, `pen_up`, offsets."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(12, 60, drawings)
    offsets = np.append(0, np.cumsum(sizes))
    pen_up = np.zeros(offsets[-1], np.uint8)
    pen_up[offsets[1:] - 1] = pen_up[offsets[1:] - 8] = 1
    xy = rng.integers(-300, 300, (offsets[-1], 2)).cumsum(0) % 10000
    np.savez(path, xy=xy.astype(np.int16), pen_up=pen_up, offsets=offsets)
    write_lines(path.with_suffix(".jsonl"), *({"caption": f"drawing {i}"} for i in range(drawings)))
    return path
