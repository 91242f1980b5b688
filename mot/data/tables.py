"""Rows with named fields: folders of captioned images, and Parquet tables."""

import csv
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mot.data.raw import (
    MAX_TEXT,
    READY,
    Raw,
    Row,
    check_text,
    choose,
    common,
    document,
    documents,
    fault,
    inside,
    json_rows,
    label,
    lines,
    needed,
    parse,
    short,
    text,
    walk,
)
from mot.errors import UserError

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
FILES, CAPTIONS = ("file_name", "filename", "file", "image"), ("caption", "text")
CAPTION_FILES = ("captions.csv", "metadata.csv")
BATCH = 64 * 2**20  # bytes of table rows that are decoded at a time, about
MAX_CAPTION = 2**20  # bytes of a .txt beside an image


def folder(inputs: Sequence[Path], content: Sequence[str]) -> Iterator[Raw]:
    """Images, each with a .txt of its name, or rows of a captions file, whose paths are relative to it.

    A row's file and caption are also called `image` and `caption`, whatever the columns' names. A folder below one
    with a captions file needs none.
    """
    rows = (row for path in inputs for row in _folder_rows(path, common(inputs), content))
    return documents(rows, parse(content) or parse(["text:caption|image:image"]))


def _folder_rows(path: Path, root: str, content: Sequence[str]) -> Iterator[Row]:
    if not path.is_dir():
        yield from _caption_rows(path, label(path, root), content)
        return
    covered, any_found = set(), False
    for here, names in walk(path):
        files = [name for name in names if name.lower() in CAPTION_FILES or name.lower().endswith(".jsonl")]
        if files or here.parent in covered:
            covered.add(here)
        for name in files:
            if why := fault(path, here / name):
                yield Row(label(here / name, root), {}, bad=why)
            else:
                yield from _caption_rows(here / name, label(here / name, root), content)
        images = [] if here in covered else [name for name in names if name.lower().endswith(IMAGES)]
        real = os.path.realpath(here)
        for name in images:
            caption = _sidecar(real, f"{Path(name).stem}.txt")
            yield Row(label(here / name, root), {"image": name, "caption": caption, "text": caption}, real)
        any_found = any_found or bool(files or images)
    if not any_found:
        raise UserError(
            f"{path}: no image ({', '.join(IMAGES)}) and no {', '.join(CAPTION_FILES)} or .jsonl in it; name another "
            "input or another format"
        )


def _sidecar(folder: str, name: str) -> str | ValueError:
    try:
        path = inside(folder, name)
    except ValueError as error:
        return ValueError(f"no caption: {error}")
    try:
        with open(path, "rb") as file:
            words = file.read(MAX_CAPTION + 1)
        if len(words) > MAX_CAPTION:
            return ValueError(f"{name} has more than {MAX_CAPTION} bytes")
        return text(words.removeprefix(b"\xef\xbb\xbf"), name).strip()
    except OSError as error:
        return ValueError(f"no caption: {name} cannot be read ({error.strerror})")
    except ValueError as error:
        return error


def _caption_rows(path: Path, name: str, content: Sequence[str]) -> Iterator[Row]:
    real = os.path.realpath(path.parent)
    rows = _csv_fields(path, content) if path.name.lower().endswith(".csv") else json_rows(path)
    for line, fields in rows:
        if isinstance(fields, ValueError):
            yield Row(f"{name}:{line}", {}, bad=str(fields))
        else:
            yield Row(f"{name}:{line}", _aliased(fields), real, fields.get("split") or None)


def _aliased(fields: dict) -> dict:
    """With `image`, `caption` and `text` for whatever column holds them."""
    for alias, names in (("image", FILES), ("caption", CAPTIONS), ("text", CAPTIONS)):
        column = next((name for name in names if name in fields), None)
        if column is not None:
            fields.setdefault(alias, fields[column])
    return fields


def _csv_fields(path: Path, content: Sequence[str]) -> Iterator[tuple[int, dict | ValueError]]:
    rows = _csv_rows(path)
    header = next(rows, (1, []))[1]
    columns = list(_aliased(dict.fromkeys(header)))
    if content:
        choose(content, columns, str(path))
    elif not {"image", "caption"} <= set(columns):
        raise UserError(
            f"{path}: its columns are {', '.join(header) or 'none'}; name one {' or '.join(FILES)} and one "
            f"{' or '.join(CAPTIONS)}, or say which to use, e.g. --content 'text:title|image:path'"
        )
    for line, row in rows:
        if len(row) == len(header):
            yield line, dict(zip(header, row, strict=True))
        else:
            yield line, ValueError(f"{len(row)} values; the header has {len(header)} columns")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line that each record begins in, and its values; the header first."""

    def decoded():
        for number, line in lines(path):
            if line is None:
                raise UserError(f"{path}:{number}: the line is too long for a CSV; break it")
            # What is not UTF-8 stays in as half characters: the one row that has it is bad, not the file.
            yield line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode(errors="surrogateescape")

    reader, begin = csv.reader(decoded(), strict=True), 1
    try:
        for row in reader:
            if row:
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}:{begin}: the record that begins here is not CSV ({error}); close its quotes, and write a quote "
            "inside quotes twice"
        ) from None


def parquet(files: Sequence[tuple[Path, str, str]], content: Sequence[str]) -> Iterator[Raw]:
    """Tables as Hugging Face stores them, some rows at a time."""
    import pyarrow  # takes 0.2 s, which other formats need not wait for

    count = itertools.count()
    for path, name, bad in files:
        if bad:
            yield Raw(name, (), None, bad)
            continue
        done = 0
        try:
            for row, templates in _parquet_rows(path, name, content):
                yield document(row, templates[next(count) % len(templates)])
                done += 1
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
            reason = str(error).partition("\n")[0][:200]
            yield Raw(name, (), None, f"the rest of the table, after {done} rows, cannot be read: {reason}")


def _parquet_rows(path: Path, name: str, content: Sequence[str]):
    """Rows, and the templates that suit this file's columns."""
    from pyarrow.parquet import ParquetFile

    folder = os.path.realpath(path.parent)
    with ParquetFile(path) as table:
        schema = table.schema_arrow
        templates = choose(content, schema.names, str(path))
        kinds = needed(templates)
        for column, kind in kinds.items():
            _check_type(path, column, kind, schema.field(column).type)
        columns = list(dict.fromkeys([*kinds, *(["split"] if "split" in schema.names else [])]))
        i = 0
        for batch in _batches(table, columns):
            lists = {column: _values(batch.column(column), kinds.get(column)) for column in columns}
            for values in zip(*lists.values(), strict=True):
                fields = dict(zip(lists, values, strict=True))
                split = fields.get("split")
                split = split.decode(errors="replace") if isinstance(split, bytes) else split
                yield Row(f"{name}:{i}", fields, folder, split), templates
                i += 1


def _batches(table, columns: Sequence[str]):
    """Of few rows where one may be large: a dictionary's only value may stand in every row."""
    from pyarrow import types

    fields = [table.schema_arrow.field(column) for column in columns]
    shared = {field.name for field in fields if types.is_dictionary(field.type)}  # values are not repeated
    for g in range(table.num_row_groups):
        group = table.metadata.row_group(g)
        chunks = [group.column(c) for c in range(group.num_columns)]
        own = [c for c in chunks if (name := c.path_in_schema.split(".")[0]) in columns and name not in shared]
        largest = max([1, *(max(c.total_uncompressed_size, 8 * c.num_values) for c in own)])
        size = max(1, min(32 if own else 1024, BATCH // largest))
        yield from table.iter_batches(batch_size=size, row_groups=[g], columns=columns, use_threads=False)


def _check_type(path: Path, column: str, kind: str, of) -> None:
    from pyarrow import types

    is_bytes = lambda t: types.is_binary(t) or types.is_large_binary(t)
    is_text = lambda t: types.is_string(t) or types.is_large_string(t)
    is_list = lambda t: types.is_list(t) or types.is_large_list(t) or types.is_fixed_size_list(t)
    media = is_bytes(of) or (
        types.is_struct(of)
        and of.get_field_index("bytes") >= 0
        and is_bytes(of.field("bytes").type)
        and (of.get_field_index("path") < 0 or is_text(of.field("path").type) or types.is_null(of.field("path").type))
    )
    if kind == "text":
        fits, allowed = is_text(of) or (types.is_dictionary(of) and is_text(of.value_type)), "a string"
    elif kind.endswith(READY):
        fits = is_bytes(of) or (is_list(of) and types.is_integer(of.value_type))
        allowed = "lists of integers, those of a unit in one list, or .npy files (binary)"
    elif kind in ("action", "latents"):
        inner = of.value_type if is_list(of) else of
        inner = inner.value_type if is_list(inner) else inner
        number = types.is_floating(inner) or (kind == "action" and (types.is_integer(inner) or types.is_boolean(inner)))
        what = "floats" if kind == "latents" else "numbers"
        fits, allowed = media or (is_list(of) and number), f".npy files (binary) or lists of {what}"
    else:
        fits, allowed = media, "binary or a struct of bytes (binary) and path (string)"
    if not fits:
        raise UserError(
            f"{path}: column {column!r} is {of}; {kind} needs {allowed}; name another column in --content, or store it "
            "so"
        )


def _values(column, kind: str | None) -> list:
    """A column as Python values: text as bytes, for one that is not UTF-8 must not spoil its neighbours."""
    import pyarrow
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        places = column.indices.to_pylist()
        used = sorted(set(places) - {None})
        found = dict(zip(used, _values(column.dictionary.take(pyarrow.array(used, "int64")), kind), strict=True))
        return [found.get(place) for place in places]
    if types.is_string(column.type) or types.is_large_string(column.type):
        encoded = column.cast(pyarrow.large_binary())
        if (compute.max(compute.binary_length(encoded)).as_py() or 0) > MAX_TEXT:
            return [_words(value) for value in encoded]
        return encoded.to_pylist()
    if types.is_struct(column.type) and kind is not None:
        paths = [None] * len(column)
        if column.type.get_field_index("path") >= 0:
            paths = _values(compute.struct_field(column, "path"), None)
        encoded = compute.struct_field(column, "bytes").to_pylist()
        return [b if b is not None else p and os.fsdecode(p) for b, p in zip(encoded, paths, strict=True)]
    values = column.to_pylist()
    if kind in ("action", "latents"):
        return [_floats(value) if isinstance(value, list) else value for value in values]
    return values


def _words(value) -> bytes | ValueError | None:
    """An Arrow scalar, unless it is too long to be copied."""
    try:
        check_text(0 if not value.is_valid else value.as_buffer().size)
    except ValueError as error:
        return error
    return value.as_py()


def _floats(value: list) -> np.ndarray | ValueError:
    try:
        return np.asarray(value, np.float32)
    except (ValueError, TypeError):
        return ValueError(f"vectors {short(value)}; lists of the same length, of numbers, are needed")
