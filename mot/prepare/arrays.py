"""NumPy arrays in an .npz, row by row, with the JSON lines beside them."""

import contextlib
import itertools
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mot.config.modalities import MODALITIES, TEXT
from mot.errors import UserError, reason
from mot.prepare import codecs
from mot.prepare.inputs import Notes, fault, find, short
from mot.prepare.media import npy_header
from mot.prepare.raw import Raw, TableRow, choose, document, json_rows, lines
from mot.prepare.templates import needed

_BITS = re.compile(r"(.+_)?bits")
MAX_ARRAY = 4 * 2**30  # bytes of one array, which is held whole


def npz(inputs: Sequence[Path], content: Sequence[str], notes: Notes) -> Iterator[Raw]:
    """Row i of the arrays of an .npz, and line i of the JSON lines beside it.

    The JSON lines are those given, or else `name.jsonl` beside `name.npz` or `name_more.npz`. `x` of n rows may also
    lie end to end, row i at `x[offsets[i]:offsets[i + 1]]`; integer `labels` are read as words of `label_names`. An
    array that is called `bits`, or `NAME_bits`, has eight pixels in a byte, as numpy.packbits packs its last axis: they
    become 0 and 255.
    """
    json_lines = [path for path in inputs if path.suffix.lower() == ".jsonl"]
    others = [path for path in inputs if path not in json_lines]
    files = find(others, (".npz",), notes) if others else []
    if not files:
        raise UserError(f"{json_lines[0]}: JSON lines without arrays; name the .npz too, or read it as jsonl")
    beside = {path: _beside(path, json_lines, len(files)) for path, *_ in files}
    for path in json_lines:
        if path not in beside.values():
            raise UserError(f"{path}: belongs to no .npz given; name it like its .npz, or give one pair at a time")
    count = itertools.count()
    for path, name, bad, side in files:
        if beside[path]:
            notes.use(os.path.realpath(beside[path]))
        if not bad and beside[path] and beside[path] not in json_lines:
            bad = fault(path.parent, beside[path])
        if bad:
            yield Raw(name, (), None, bad)
            continue
        for row, templates in _npz_rows(path, name, beside[path], content):
            yield document(
                row._replace(split=side) if row.split is None else row, templates[next(count) % len(templates)]
            )


def _beside(path: Path, json_lines: Sequence[Path], files: int) -> Path | None:
    if len(json_lines) == files == 1:
        return json_lines[0]

    def belongs(other):
        return path.stem == other.stem or path.stem.startswith(other.stem + "_")

    fitting = [other for other in (json_lines or sorted(path.parent.glob("*.jsonl"))) if belongs(other)]
    return max(fitting, key=lambda other: len(other.stem), default=None)


def _npz_rows(path: Path, name: str, beside: Path | None, content: Sequence[str]):
    """Rows, and the templates that suit this file's fields."""
    with _Arrays(path) as arrays:
        first = [fields for _, fields in itertools.islice(json_rows(beside), 100)] if beside else []
        keys = [key for fields in first if isinstance(fields, dict) for key in fields]
        where = f"{path} and {beside.name}" if beside else str(path)
        templates = choose(content, dict.fromkeys([*arrays.headers, *keys]), where, text_alone=False)
        kinds = needed(templates)
        columns = {field: arrays.column(field, kind) for field, kind in kinds.items() if field in arrays.headers}
        if "split" in arrays.headers:
            split = arrays.load("split")
            columns["split"] = len(split), lambda i: split[i]
        counts = {f"{field!r}": n for field, (n, _) in columns.items()}
        if beside and ("split" not in columns or set(kinds) - set(columns)):
            counts[beside.name] = sum(not isinstance(line, bytes) or bool(line.strip()) for _, line in lines(beside))
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{field} {n}" for field, n in counts.items())
            raise UserError(f"{path}: fields of different numbers of rows: {listed}; name fields of the same rows")
        is_sampled = any(kind in MODALITIES and MODALITIES[kind].is_sampled for kind in kinds.values())
        rate = arrays.rate() if is_sampled else 0
        objects = json_rows(beside) if beside and beside.name in counts else itertools.repeat((0, {}))
        for i, (_, extra) in zip(range(next(iter(counts.values()))), objects, strict=False):
            if isinstance(extra, ValueError):
                yield TableRow(f"{name}:{i}", {}, bad=f"its line of {beside.name}: {extra}"), templates
                continue
            fields = {key: extra[key] for key in kinds if key in extra} | {
                key: at(i) for key, (_, at) in columns.items()
            }
            yield TableRow(f"{name}:{i}", fields, None, fields.get("split", extra.get("split")), rate), templates


class _Arrays:
    """The arrays of an .npz: headers at once, each array when it is asked for. Faults are `UserError`s."""

    def __init__(self, path: Path):
        self.path, self.headers = path, {}
        with self._faults():
            self.archive = zipfile.ZipFile(path)
            for member in self.archive.namelist():
                if member.endswith(".npy"):
                    with self.archive.open(member) as file:
                        shape, _, dtype = npy_header(file)
                    self.headers[member.removesuffix(".npy")] = shape, dtype

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.archive.close()

    @contextlib.contextmanager
    def _faults(self, field: str = ""):
        try:
            yield
        except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, UserError):
                raise
            what = f"array {field!r}" if field else "the file"
            raise UserError(
                f"{self.path}: {what} cannot be read: {reason(error)}; make it again with numpy.savez, without objects"
            ) from None

    def load(self, field: str) -> np.ndarray:
        shape, dtype = self.headers[field]
        with self._faults(field), self.archive.open(f"{field}.npy") as file:
            if math.prod(shape) * dtype.itemsize > MAX_ARRAY:
                raise ValueError(f"{dtype} {list(shape)}; at most {MAX_ARRAY} bytes are allowed")
            return np.lib.format.read_array(file, allow_pickle=False)

    def rate(self) -> int:
        if math.prod(self.headers.get("sample_rate", ((0,),))[0]) != 1:
            raise UserError(f"{self.path}: audio without its rate; add an array sample_rate of one integer")
        rate = self.load("sample_rate").reshape(-1)[0]
        whole = rate.dtype.kind in "iu" or (rate.dtype.kind == "f" and np.isfinite(rate) and rate == np.floor(rate))
        if not whole:
            raise UserError(
                f"{self.path}: sample_rate is {rate.dtype} {short(rate)}; one integer is needed; make it again"
            )
        return int(rate)

    def column(self, field: str, kind: str) -> tuple[int, Callable[[int], Any]]:
        """Its number of rows, and row i; a `UserError` where the array is not of a type that `kind` needs."""
        shape, dtype = self.headers[field]
        is_packed = bool(_BITS.fullmatch(field)) and dtype == np.uint8 and len(shape) > 2
        shape = (*shape[:-1], 8 * shape[-1]) if is_packed else shape
        codec = codecs.of(kind)
        offsets = self._offsets(field, shape) if codec.IS_RAGGED else None
        if shape == () or not codec.fits_array(dtype, shape[1:] if offsets is None else shape):
            raise UserError(
                f"{self.path}: {field!r} is {dtype} {list(shape)}; {kind} needs {codec.ARRAYS}; name another in content"
            )
        array = self.load(field)
        if kind == TEXT:
            return len(array), self._words(field, array)
        if is_packed:
            return len(array), lambda i: 255 * np.unpackbits(array[i], axis=-1)
        if offsets is None:
            return len(array), lambda i: array[i]
        return len(offsets) - 1, lambda i: array[offsets[i] : offsets[i + 1]]

    def _offsets(self, field: str, shape: tuple[int, ...]) -> np.ndarray | None:
        for name in (f"{field}_offsets", "offsets"):
            if name in self.headers and shape:
                offsets = self.load(name)
                if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 1:
                    raise UserError(
                        f"{self.path}: {name} is {offsets.dtype} {list(offsets.shape)}; integers [n + 1] are needed"
                    )
                rises = (offsets[1:] >= offsets[:-1]).all() and offsets[0] == 0 and offsets[-1] == shape[0]
                if rises:
                    return offsets.astype(np.int64)
                if name != "offsets" or len(offsets) - 1 != shape[0]:
                    raise UserError(
                        f"{self.path}: {name} must rise from 0 to the {shape[0]} rows of {field!r}; make it again"
                    )
        return None

    def _words(self, field: str, array: np.ndarray) -> Callable[[int], Any]:
        names = next((n for n in (f"{field.removesuffix('s')}_names", f"{field}_names") if n in self.headers), None)
        if array.dtype.kind not in "iu":
            return lambda i: array[i].item()
        if names is None:
            return lambda i: array[i].item()
        words = self.load(names)
        if words.ndim != 1 or words.dtype.kind not in "SU":
            raise UserError(f"{self.path}: {names!r} is {words.dtype} {list(words.shape)}; strings [n] are needed")

        def named(i: int):
            label = int(array[i])
            if 0 <= label < len(words):
                return words[label].item()
            return ValueError(f"{field} {label}; {names} has 0 to {len(words) - 1}")

        return named
