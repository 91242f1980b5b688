"""What people have, as documents: one ordered, deterministic stream in bounded memory for each format."""

import contextlib
import gzip
import itertools
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mot.data import arrays, tables
from mot.data.raw import (
    KINDS,
    MAX_LINE,
    Part,
    Raw,
    Row,
    declared,
    document,
    documents,
    fault,
    find,
    held_out,
    ids_part,
    json_rows,
    medium,
    needed,
    parse,
    printable,
    short,
    text,
    walk,
    whole,
)
from mot.errors import UserError

SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson"),
    "folder": (*tables.IMAGES, ".csv"),
    "parquet": (".parquet",),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "text": (".txt",),
    "npz": (".npz",),
}
FORMATS = tuple(SUFFIXES)
LONGEST_TEXT = 64 * 2**10  # bytes of a plain text handed on whole, so that no worker gets a book
MAX_MEMBER, MAX_SAMPLE, MAX_HEADERS = 256 * 2**20, 512 * 2**20, 2**20  # bytes in an archive
MEMBERS = {
    "text": ("txt", "text", "caption"),
    "image": ("jpg", "jpeg", "png", "webp", "bmp", "gif"),
    "audio": ("wav", "flac", "ogg", "mp3"),
    "action": ("action.npy",),
    "latents": ("npy",),
}
PICKLES = (".pkl", ".pickle", ".pyd")


def read(
    inputs: Sequence[Path | str],
    format: str = "auto",
    content: Sequence[str] = (),
    separator: str = "",
    ids: Iterable[str] = (),
) -> Iterator[Raw]:
    """The documents of files and folders; those that are bad say why, a `UserError` says what stops the reading.

    `content`: templates (`raw.parse`) that make documents of a row's fields, in turn; by default guessed from names.
    `separator`: what stands between two documents of a plain text; by default a file is one.
    `ids`: modalities whose fields hold ids already.
    """
    inputs = [Path(os.path.abspath(path)) for path in inputs]
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; name one that exists")
        if not path.is_dir() and not path.is_file():
            raise UserError(f"{path}: a pipe or device; only files and folders are read; write it to a file first")
    if not inputs:
        raise UserError("no input; name at least one file or folder")
    if format == "auto":
        with _told():
            format = detect(inputs)
    if separator and format != "text":
        raise UserError(f"separator {separator!r}: the input is read as {format}; only text has one; leave it out")
    content = declared([content] if isinstance(content, str) else list(content), ids)
    parse(content)
    return _streamed(_documents(inputs, format, content, separator))


def _documents(inputs: list[Path], format: str, content: Sequence[str], separator: str) -> Iterator[Raw]:
    match format:
        case "jsonl":
            return _jsonl(inputs, content)
        case "folder":
            return tables.folder(inputs, content)
        case "parquet":
            return tables.parquet(find(inputs, SUFFIXES[format]), content)
        case "webdataset":
            return _webdataset(inputs, content)
        case "text":
            if content:
                raise UserError(f"--content {content[0]!r}: plain text has no fields; leave it out")
            return _text(inputs, separator)
        case "npz":
            return arrays.npz(inputs, content)
    raise UserError(f"format {format!r}: allowed are auto, {', '.join(FORMATS)}; choose one")


@contextlib.contextmanager
def _told():
    """What the system refuses, as a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; make it readable, or leave it out of the input") from None


def _streamed(found: Iterator[Raw]) -> Iterator[Raw]:
    with _told():
        yield from found


def detect(inputs: Sequence[Path]) -> str:
    """The format by the files' suffixes; what is not clear is a `UserError`."""
    found: dict[str, Path] = {}
    refused = []
    for path in inputs:
        names = ((here / name for here, names in walk(path) for name in names)) if path.is_dir() else (path,)
        for file in names:
            name = file.name.lower()
            form = next((form for form, suffixes in SUFFIXES.items() if name.endswith(suffixes)), None)
            if form in found:
                continue
            if form is not None and not (path.is_dir() and (why := fault(path, file))):
                found[form] = file
            elif form is not None:
                refused.append(f"{file}: {why}")
            elif not path.is_dir():
                raise UserError(f"{path}: not clear what it is; give its format: one of {', '.join(FORMATS)}")
    # A .jsonl is documents by itself, rows beside .npz arrays, or the captions of images; texts may be captions or a
    # read-me beside anything else.
    if "jsonl" in found and _are_captions(found["jsonl"]):
        found["folder"] = found.pop("jsonl")
    elif "npz" in found:
        found.pop("jsonl", None)
    elif found.keys() & {"jsonl", "parquet"} and "folder" in found and found["folder"].suffix.lower() != ".csv":
        found.pop("folder")  # the pictures that documents or rows name
    if len(found) > 1:
        found.pop("text", None)
    if len(found) == 1:
        return next(iter(found))
    what = " and ".join(f"{form} ({file.name})" for form, file in found.items())
    what = what or "none that is known" + "".join(f" ({why})" for why in refused[:1])
    raise UserError(
        f"{', '.join(map(str, inputs))}: not clear what it is, the files look like {what}; give its format: one of "
        f"{', '.join(FORMATS)}"
    )


def _are_captions(path: Path) -> bool:
    first = next(json_rows(path), None)
    return (
        first is not None
        and isinstance(first[1], dict)
        and any(str(first[1].get(name)).lower().endswith(tables.IMAGES) for name in tables.FILES)
    )


def _jsonl(inputs: list[Path], content: Sequence[str]) -> Iterator[Raw]:
    files = find(inputs, SUFFIXES["jsonl"])

    def rows():
        for path, name, bad in files:
            if bad:
                yield Row(name, {}, bad=bad)
                continue
            folder = os.path.realpath(path.parent)
            for number, fields in json_rows(path):
                if isinstance(fields, ValueError):
                    yield Row(f"{name}:{number}", {}, bad=str(fields))
                else:
                    own = fields.get("id")
                    own = "" if own is None else ":" + printable(str(own))[:100]
                    yield Row(f"{name}:{number}{own}", fields, folder, fields.get("split"))

    yield from documents(rows(), parse(content)) if content else map(_interleaved, rows())


def _interleaved(row: Row) -> Raw:
    try:
        if row.bad:
            raise ValueError(row.bad)
        content = row.fields.get("content")
        if content is None and "text" in row.fields:
            content = [{"text": row.fields["text"]}]
        if not isinstance(content, list):
            raise ValueError("no list named 'content' and no 'text'; content templates say how to read other rows")
        return whole(row.id, [_json_part(part, row.folder) for part in content], held_out(row.split))
    except ValueError as error:
        return Raw(row.id, (), None, str(error))


def _json_part(part, folder: str) -> Part:
    if isinstance(part, dict) and "ids" in part:
        return ids_part(part, folder)
    if not isinstance(part, dict) or len(part) != 1 or next(iter(part)) not in KINDS:
        raise ValueError(f"part {short(part)}; an object with one of the keys {', '.join(KINDS)}, ids is allowed")
    ((kind, value),) = part.items()
    if not isinstance(value, str) and (kind == "text" or value is not None):
        raise ValueError(f"part {short(part)}; a string is needed")
    try:
        return Part(kind, text(value) if kind == "text" else medium(kind, value, folder, f"the part's {kind}"))
    except ValueError as error:
        return Part(kind, error)


def _text(inputs: list[Path], separator: str) -> Iterator[Raw]:
    for path, name, bad in find(inputs, SUFFIXES["text"]):
        if bad:
            yield Raw(name, (), None, bad)
            continue
        empty = True
        for offset, piece in _pieces(path, separator.encode()):
            if not piece.strip():
                continue
            empty = False
            try:
                words = text(piece.removeprefix(b"\xef\xbb\xbf") if offset == 0 else piece)
                yield Raw(f"{name}:{offset}", (Part("text", words),))
            except ValueError as error:
                yield Raw(f"{name}:{offset}", (), None, str(error))
        if empty:
            yield Raw(f"{name}:0", (), None, "an empty document")


def _pieces(path: Path, separator: bytes) -> Iterator[tuple[int, bytes]]:
    """Byte offset and bytes of each document, or of the parts of a long one."""
    held, place, base = b"", 0, 0  # bytes from `base` of the file, of which `place` are done
    with open(path, "rb") as file:
        while True:
            if len(held) - place <= LONGEST_TEXT + len(separator):
                held, base, place = held[place:] + file.read(16 * LONGEST_TEXT + len(separator)), base + place, 0
                if not held:
                    return
            end = held.find(separator, place, place + LONGEST_TEXT + len(separator)) if separator else -1
            if end >= 0:
                after = end + len(separator)
            elif len(held) - place <= LONGEST_TEXT:
                end = after = len(held)
            else:
                end = after = place + _cut(held[place : place + LONGEST_TEXT])
            yield base + place, held[place:end]
            place = after


def _cut(piece: bytes) -> int:
    """Where a piece of a longer text may end: after its last paragraph, line, sentence, word or character."""
    half = len(piece) // 2
    for mark in (b"\n\n", b"\r\n\r\n", b"\n"):
        if (at := piece.rfind(mark, half)) >= 0:
            return at + len(mark)
    ends = [match.end() for match in re.finditer(rb"[.!?]+[\"')]*\s|\xe3\x80\x82", piece[half:])]
    if ends:
        return half + ends[-1]
    if (at := piece.rfind(b" ", half)) >= 0:
        return at + 1
    back = next((i for i in range(1, 5) if piece[-i] & 0xC0 != 0x80), 1)  # at the last character's first byte
    return len(piece) - back if piece[-back] >= 0xC0 else len(piece)


class _Capped:
    """A file that reads no more than `left` bytes, whatever sizes a header claims; seeks are free."""

    def __init__(self, file, left: int):
        self.file, self.left, self.tell, self.seek = file, left, file.tell, file.seek

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError("its headers are too long")
        return self.file.read(size)


def _webdataset(inputs: list[Path], content: Sequence[str]) -> Iterator[Raw]:
    templates, count = parse(content), itertools.count()
    wanted = needed(templates)
    for path, name, bad in find(inputs, SUFFIXES["webdataset"]):
        for row in [Row(name, {}, bad=bad)] if bad else _samples(path, name, wanted):
            template = templates[next(count) % len(templates)] if templates else ()
            if not templates and not row.bad:
                template = tuple((kind, kind) for kind in KINDS if kind in row.fields)
                if "text" not in row.fields:
                    row = row._replace(bad=f"no text among {', '.join(row.fields) or 'its members'}")
            yield document(row, template)


def _samples(path: Path, name: str, wanted: dict[str, str]) -> Iterator[Row]:
    """Adjacent members of one key; after damage, one last row that stands for the rest of the archive."""
    seen, done, key, fields, bad, size = set(), 0, None, {}, "", 0
    try:
        for member, load in _members(path):
            before, base = os.path.split(member.name.removeprefix("./"))
            stem, _, suffix = base.partition(".")
            fault, suffix = _fault(member, suffix), suffix.lower()
            if not fault and (member.isdir() or not suffix or not stem):  # hidden ones have no stem
                continue
            if key is not None and key != (before, stem):
                yield _sample(f"{name}:{printable(os.path.join(*key))}", fields, bad)
                seen.add(key)
                done, fields, bad, size = done + 1, {}, "", 0
            key = (before, stem)
            if key in seen:
                yield Row(
                    f"{name}:{printable(member.name)}#{done}",
                    {},
                    bad="its sample came before; members of one sample must follow each other",
                )
                key, done = None, done + 1
                continue
            if suffix in fields:
                fault = fault or f"two members {short(member.name)}"
            size += member.size if _is_used(suffix, wanted) else 0
            if size > MAX_SAMPLE:
                fault = fault or f"{size} bytes in one sample; at most {MAX_SAMPLE} are allowed"
            bad = bad or fault
            if bad:
                fields = {}
            elif _is_used(suffix, wanted):
                fields[suffix] = load()
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError, RecursionError) as error:
        yield Row(name, {}, bad=f"the rest of the archive, after {done} samples, cannot be read: {error}")
        return
    if key is not None:
        yield _sample(f"{name}:{printable(os.path.join(*key))}", fields, bad)


def _is_used(suffix: str, wanted: dict[str, str]) -> bool:
    return suffix in wanted or suffix == "json" or any(suffix in names for names in MEMBERS.values())


def _members(path: Path):
    """Each member of a tar and how to read its bytes, which is only possible until the next is asked for."""
    with open(path, "rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        file = _Capped(gzip.GzipFile(fileobj=plain) if packed else plain, MAX_HEADERS)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            reached = -1
            while (member := archive.next()) is not None:
                archive.members.clear()  # else it remembers each
                if archive.offset <= reached or member.size < 0:
                    raise tarfile.ReadError("a member of negative size")
                reached = archive.offset

                def load(member=member):
                    file.left = member.size + 2**16
                    return archive.extractfile(member).read()

                yield member, load
                file.left = MAX_HEADERS
            # `next` takes a damaged header for the end.
            file.seek(archive.offset)
            file.left = MAX_HEADERS
            if file.read(512) != bytes(512):
                raise tarfile.ReadError("it is damaged or cut off")


def _fault(member: tarfile.TarInfo, suffix: str) -> str:
    """Why a member makes its sample bad."""
    if member.name.startswith("/") or ".." in re.split(r"[/\\]", member.name):
        return f"member {short(member.name)}: a path that leaves the archive"
    if not member.isdir() and (not member.isreg() or member.issparse()):
        return f"member {short(member.name)}: a link, device or other special file"
    if f".{suffix}".lower().endswith(PICKLES):
        return f"member {short(member.name)}: a pickle, which could run code"
    if member.size > MAX_MEMBER:
        return f"member {short(member.name)}: {member.size} bytes; at most {MAX_MEMBER} are allowed"
    return ""


def _sample(title: str, fields: dict, bad: str) -> Row:
    """Fields by suffix, by the keys of its JSON, and by kind."""
    extra = {}
    try:
        if bad:
            raise ValueError(bad)
        if "json" in fields:
            if len(fields["json"]) > MAX_LINE:
                raise ValueError(f"its .json has {len(fields['json'])} bytes; at most {MAX_LINE} are allowed")
            extra = json.loads(fields["json"])
            if not isinstance(extra, dict):
                raise ValueError(f"its .json is {short(extra)}; an object is needed")
    except RecursionError:
        return Row(title, {}, bad="its .json is nested too deeply")
    except ValueError as error:
        return Row(title, {}, bad=str(error) if type(error) is ValueError else f"its .json is not JSON: {error}"[:200])
    named = {name: value for name, value in extra.items() if name not in KINDS} | fields
    words = [extra[name] for name in ("caption", "text") if isinstance(extra.get(name), str)]
    named |= {"text": words[0]} if words else {}
    for kind, suffixes in MEMBERS.items():
        first = next((suffix for suffix in suffixes if suffix in fields), None)
        named |= {} if first is None else {kind: fields[first]}
    return Row(title, named, split=extra.get("split"))
