"""Rows with named fields: folders of media with their captions, and Parquet tables."""

import csv
import itertools
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mot.config import modalities
from mot.config.modalities import MODALITIES, TEXT
from mot.errors import UserError, reason
from mot.prepare import codecs
from mot.prepare.columns import is_list, is_media, is_text
from mot.prepare.compressed import SUFFIXES as PACKED
from mot.prepare.compressed import DamagedInput
from mot.prepare.inputs import File, Notes, by_name, common, fault, inside, kind_of, label, short, walk
from mot.prepare.raw import (
    BOM,
    FILES,
    MAX_TEXT,
    Raw,
    TableRow,
    check_text,
    choose,
    document,
    files_of,
    json_rows,
    lines,
    names_files,
    plain,
    sample,
)
from mot.prepare.templates import TEXTS, Template, needed, parse

JSON_LINES = tuple(name + packed for name in (".jsonl", ".ndjson") for packed in ("", *PACKED))
CAPTIONS = ("caption", "text", "transcription", "transcript", "sentence")
SIDECARS = tuple(f".{suffix}" for suffix in (*MODALITIES[TEXT].suffixes, "json"))
CAPTION_FILES = ("captions.csv", "metadata.csv")
BATCH = 64 * 2**20  # bytes of table rows that are decoded at a time, about
MAX_CAPTION = 2**20  # bytes of a .txt beside an image


def folder(inputs: Sequence[Path], content: Sequence[str], notes: Notes) -> Iterator[Raw]:
    """Media, those of one name together with the .txt (or .json) of that name, or rows of a captions file, whose paths
    are relative to it.

    A row's files are also called by their kinds (`image`, `audio`, ...), its words `caption` and `text`, whatever the
    columns' names. A folder below one with a captions file needs none.
    """
    templates = parse(content)
    of = _Of(common(inputs), content, _sides(inputs), notes)
    for i, row in enumerate(row for path in inputs for row in _folder_rows(path, of)):
        template = templates[i % len(templates)] if templates else default(row.fields)
        yield document(row, template, with_ids=not templates)


class _Of(NamedTuple):
    """What the readers of all rows share."""

    root: str  # that labels are relative to
    content: Sequence[str]
    sides: Mapping[str, bool]  # is it held out, by label, as the names of folders and files say
    notes: Notes


def default(fields: Container[str]) -> Template:
    """The caption, then the media that are there; without any, an image, which is then missing."""
    media = modalities.media()
    kinds = [kind for kind in media if kind in fields]
    return tuple((kind, kind) for kind in (TEXT, *(kinds or media[:1])))


def _sides(inputs: Sequence[Path]) -> dict[str, bool]:
    root = common(inputs)
    names = [here / name for path in inputs if path.is_dir() for here, names in walk(path) for name in names]
    labels = [label(file, root) for file in names if kind_of(file.name)[0] or is_captions_file(file.name)]
    return {name: side for name, side in zip(labels, by_name(labels), strict=True) if side is not None}


def is_captions_file(name: str) -> bool:
    return name.lower() in CAPTION_FILES or name.lower().endswith(JSON_LINES)


def _folder_rows(path: Path, of: _Of) -> Iterator[TableRow]:
    if not path.is_dir():
        if kind_of(path.name)[0] in modalities.media():
            beside = [other.name for other in sorted(path.parent.iterdir()) if kind_of(other.name)[0] == TEXT]
            yield from _named_alike(path.parent, [path.name, *beside], of)
        else:
            yield from _caption_rows(path, of)
        return
    covered = set()
    any_found = False
    for here, names in walk(path):
        files = [name for name in names if is_captions_file(name)]
        if files or here.parent in covered:
            covered.add(here)
        for name in files:
            of.notes.use(os.path.realpath(here / name))
            if why := fault(path, here / name):
                yield TableRow(label(here / name, of.root), {}, bad=why)
            else:
                yield from _caption_rows(here / name, of)
        media = [] if here in covered else [name for name in names if kind_of(name)[0] in modalities.media()]
        if media:
            yield from _named_alike(here, names, of)
        any_found = any_found or bool(files or media)
    if not any_found:
        *others, last = [MODALITIES[kind].called or kind for kind in modalities.media()]
        endings = ", ".join(f".{suffix}" for kind in modalities.media() for suffix in MODALITIES[kind].suffixes)
        raise UserError(
            f"{path}: no {', '.join(others)} or {last} ({endings}) and no {', '.join(CAPTION_FILES)} or .jsonl in it; "
            "name another input or another format"
        )


def _named_alike(here: Path, names: Sequence[str], of: _Of) -> Iterator[TableRow]:
    """One row for the files of one name: media, text, JSON. Several rows where a modality has several files."""
    real = os.path.realpath(here)
    for stem, files in _by_stem(names).items():
        media = [files[kind] for kind in modalities.media() if kind in files]
        if not media:  # what there is is said where a template asks for it, or for what there is not
            media = [[name] for name in list(files.get("more", {}).values())[:1]]
        if not media:
            continue
        words = {kind_of(name)[1]: _sidecar(real, name, of.notes) for name in files.get("text", ())}
        for name in files.get("json", ()):
            words["json"] = _sidecar(real, name, of.notes)
        for i, first in enumerate(max(media, key=len)):
            shown = [same[min(i, len(same) - 1)] for same in media]
            for name in shown:
                of.notes.use(os.path.join(real, name))
            title = label(here / first, of.root)
            row = sample(title, {kind_of(name)[1]: name for name in shown} | words | files.get("more", {}))
            caption = row.fields.get("text", ValueError(f"no caption: no {stem}.txt beside it, and no captions file"))
            fields = {"text": caption, "caption": caption, "folder": here.name} | row.fields
            split = of.sides.get(title) if row.split is None else row.split
            lost = tuple(kind for kind in modalities.media() if kind in fields)
            yield row._replace(folder=real, fields=fields, split=split, lost=lost)


def _by_stem(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Files by the name that they share, then by modality or "json"; "more" has those that only a template asks for."""
    texts = {os.path.splitext(name)[0] for name in names if name.lower().endswith(SIDECARS)}
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        kind, suffix = ("json", "json") if name.lower().endswith(".json") else kind_of(name)
        stem = name[: -len(suffix) - 1]
        before, _, between = stem.partition(".")
        if kind and between and stem not in texts and before in texts:  # "x.depth.npy" beside "x.txt", as in an archive
            found.setdefault(before, {}).setdefault("more", {})[f"{between}.{suffix}".lower()] = name
        elif kind:
            found.setdefault(stem, {}).setdefault(kind, []).append(name)
    return found


def _sidecar(folder: str, name: str, notes: Notes) -> str | ValueError:
    """The text of a file beside a medium."""
    try:
        path = inside(folder, name)
    except ValueError as error:
        return ValueError(f"no caption: {error}")
    notes.use(path)
    try:
        with open(path, "rb") as file:
            words = file.read(MAX_CAPTION + 1)
        if len(words) > MAX_CAPTION:
            return ValueError(f"{name} has more than {MAX_CAPTION} bytes")
        return plain(words, name).strip()
    except OSError as error:
        return ValueError(f"no caption: {name} cannot be read ({error.strerror})")
    except ValueError as error:
        return error


def _caption_rows(path: Path, of: _Of) -> Iterator[TableRow]:
    real = os.path.realpath(path.parent)
    name = label(path, of.root)
    rows = _csv_fields(path, of.content) if path.name.lower().endswith(".csv") else json_rows(path)
    for line, fields in rows:
        if isinstance(fields, ValueError):
            yield TableRow(f"{name}:{line}", {}, bad=str(fields))
        else:
            split = fields.get("split")
            split = of.sides.get(name) if split in (None, "") else split
            yield TableRow(f"{name}:{line}", _aliased(fields), real, split)


def _aliased(fields: dict) -> dict:
    """With its files under their kinds, and `caption` and `text` for whatever column holds the words."""
    fields = files_of(fields, every=True) | fields
    words = next((name for name in CAPTIONS if name in fields), None)
    if words is not None:
        fields = {alias: fields[words] for alias in CAPTIONS[:2]} | fields
    return fields


def _csv_fields(path: Path, content: Sequence[str]) -> Iterator[tuple[int, dict | ValueError]]:
    rows = _csv_rows(path)
    header = next(rows, (1, []))[1]
    naming = {name for name in header if names_files(name)}
    if content:
        aliases = {*(CAPTIONS[:2] if set(CAPTIONS) & set(header) else ()), *(modalities.media() if naming else ())}
        choose(content, dict.fromkeys([*header, *(aliases & needed(parse(content)).keys())]), str(path))
    elif not naming or not set(CAPTIONS) & set(header):
        raise UserError(
            f"{path}: its columns are {', '.join(header) or 'none'}; name one {' or '.join(FILES[:4])} and one "
            f"{' or '.join(CAPTIONS)}, or say which to use, e.g. --content 'text:title|image:path'"
        )
    for line, row in rows:
        if len(row) == len(header):
            fields = dict(zip(header, row, strict=True))
            # A cell that is empty names no file.
            yield line, {name: cell for name, cell in fields.items() if cell or name not in naming}
        else:
            yield line, ValueError(f"{len(row)} values; the header has {len(header)} columns")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line that each record begins in, and its values; the header first."""

    def decoded():
        for number, line in lines(path):
            if line is None or isinstance(line, DamagedInput):
                raise UserError(f"{path}:{number}: {line or 'the line is too long for a CSV; break it'}")
            # What is not UTF-8 stays in as half characters: the one row that has it is bad, not the file.
            yield line.removeprefix(BOM if number == 1 else b"").decode(errors="surrogateescape")

    reader = csv.reader(decoded(), strict=True)
    begin = 1
    try:
        for row in reader:
            if row:
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}:{begin}: the record that begins here is not CSV ({reason(error)}); close its quotes, and write a "
            "quote inside quotes twice"
        ) from None


def parquet(files: Sequence[File], content: Sequence[str]) -> Iterator[Raw]:
    """Tables as Hugging Face stores them, some rows at a time."""
    import pyarrow  # takes 0.2 s, which other formats need not wait for

    count = itertools.count()
    for file in files:
        name = file.label
        if file.bad:
            yield Raw(name, (), None, file.bad)
            continue
        done = 0
        try:
            for row, templates in _parquet_rows(file, content):
                yield document(row, templates[next(count) % len(templates)])
                done += 1
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
            yield Raw(name, (), None, f"the rest of the table, after {done} rows, cannot be read: {reason(error)}")


def _parquet_rows(file: File, content: Sequence[str]):
    """Rows, and the templates that suit this file's columns."""
    from pyarrow.parquet import ParquetFile

    path, name, _, side = file
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
                yield TableRow(f"{name}:{i}", fields, folder, side if split is None else split), templates
                i += 1


def _batches(table, columns: Sequence[str]):
    """Batches of few rows where a row may be large: a dictionary's only value may stand in every row."""
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


def _check_type(path: Path, column: str, kind: str, type_) -> None:
    if kind == TEXTS:
        fits, allowed = is_list(type_) and is_text(type_.value_type), "lists of strings"
    else:
        codec = codecs.of(kind)
        fits, allowed = codec.fits_column(type_), codec.COLUMNS
    if not fits:
        raise UserError(
            f"{path}: column {column!r} is {type_}; {kind} needs {allowed}; name another column in --content, or store "
            "it so"
        )


def _values(column, kind: str | None) -> list:
    """A column as Python values. Text stays bytes: one that is not UTF-8 must not spoil its neighbours."""
    import pyarrow
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        places = column.indices.to_pylist()
        used = sorted(set(places) - {None})
        found = dict(zip(used, _values(column.dictionary.take(pyarrow.array(used, "int64")), kind), strict=True))
        return [found.get(place) for place in places]
    if is_text(column.type):
        encoded = column.cast(pyarrow.large_binary())
        if (compute.max(compute.binary_length(encoded)).as_py() or 0) > MAX_TEXT:
            return [_words(value) for value in encoded]
        return encoded.to_pylist()
    if is_media(column.type) and types.is_struct(column.type) and kind is not None:
        paths = [None] * len(column)
        if column.type.get_field_index("path") >= 0:
            paths = _values(compute.struct_field(column, "path"), None)
        encoded = compute.struct_field(column, "bytes").to_pylist()
        return [b if b is not None else p and os.fsdecode(p) for b, p in zip(encoded, paths, strict=True)]
    if is_list(column.type) and (is_media(column.type.value_type) or is_text(column.type.value_type)):
        return _lists(column, kind)
    values = column.to_pylist()
    if kind in MODALITIES and kind != TEXT and not MODALITIES[kind].is_listed:  # a list of it is numbers
        return [_floats(value) if isinstance(value, list) else value for value in values]
    return values


def _lists(column, kind: str | None) -> list[list | None]:
    """Lists of texts, of media, or of paths of media."""
    from pyarrow import compute

    inner = _values(compute.list_flatten(column), kind)
    if kind != TEXTS:
        inner = [
            os.fsdecode(one) if isinstance(one, bytes) and is_text(column.type.value_type) else one for one in inner
        ]
    sizes = compute.list_value_length(column).to_pylist()
    values = iter(inner)
    return [None if size is None else list(itertools.islice(values, size)) for size in sizes]


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
