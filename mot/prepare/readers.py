"""Files to documents: for each format one ordered, deterministic stream in bounded memory."""

import contextlib
import itertools
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mot.config import modalities
from mot.config.modalities import MODALITIES, TEXT
from mot.config.options import FORMATS
from mot.errors import UserError, reason
from mot.prepare import arrays, tables
from mot.prepare.compressed import SUFFIXES as PACKED
from mot.prepare.compressed import DamagedInput, opened
from mot.prepare.inputs import (
    OTHER_MEDIA,
    Notes,
    fault,
    find,
    held_out,
    kind_of,
    linked_folders,
    listed,
    printable,
    short,
    suffix,
    walk,
)
from mot.prepare.raw import (
    BOM,
    Part,
    Raw,
    TableRow,
    document,
    documents,
    files_of,
    ids_part,
    json_rows,
    kind_and_value,
    media_of,
    medium,
    parallel,
    representations,
    sample,
    text,
    unix,
    whole,
)
from mot.prepare.templates import INTERLEAVED, declared, modality_of, needed, parse

JSON = tuple(".json" + packed for packed in ("", *PACKED))  # JSON lines too, or one array; other programs' as well
SUFFIXES = {
    "jsonl": tables.JSON_LINES,
    "parquet": (".parquet",),
    "webdataset": (*(".tar" + packed for packed in ("", *PACKED)), ".tgz"),
    "text": tuple(".txt" + packed for packed in ("", *PACKED)),
    "npz": (".npz",),
}
LONGEST_TEXT = 64 * 2**10  # bytes of a plain text handed on whole, so that no worker gets a book
MAX_MEMBER, MAX_SAMPLE, MAX_HEADERS = 256 * 2**20, 512 * 2**20, 2**20  # bytes in an archive
JSON_LOOKED_AT = 3  # of the .json in a folder, to tell whether they hold documents
PICKLES = (".pkl", ".pickle", ".pyd")


def read(
    inputs: Sequence[Path | str],
    format: str = "auto",
    content: Sequence[str] = (),
    separator: str = "",
    ids: Iterable[str] = (),
    notes: Notes | None = None,
) -> Iterator[Raw]:
    """The documents of files and folders. A bad document says why; `UserError` is raised where reading must stop.

    `content`: templates (`templates.parse`) that make documents of a row's fields, in turn; by default guessed from
    names.
    `separator`: what stands between two documents of a plain text; by default a file is one.
    `ids`: modalities whose fields hold ids already. `notes` are added to as the documents are taken.
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
    notes = notes or Notes()
    return _noted(_documents(inputs, format, content, separator, notes), notes)


def _documents(inputs: list[Path], format: str, content: Sequence[str], separator: str, notes: Notes) -> Iterator[Raw]:
    match format:
        case "jsonl":
            return _jsonl(inputs, content, notes)
        case "folder":
            return tables.folder(inputs, content, notes)
        case "parquet":
            return tables.parquet(find(inputs, SUFFIXES[format], notes), content)
        case "webdataset":
            return _webdataset(inputs, content, notes)
        case "text":
            if content:
                raise UserError(f"--content {content[0]!r}: plain text has no fields; leave it out")
            return _text(inputs, separator, notes)
        case "npz":
            return arrays.npz(inputs, content, notes)
    raise UserError(f"format {format!r}: allowed are auto, {', '.join(FORMATS)}; choose one")


@contextlib.contextmanager
def _told():
    """Raises `UserError` where the system refuses."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; make it readable, or leave it out of the input") from None


def _noted(found: Iterator[Raw], notes: Notes) -> Iterator[Raw]:
    with _told():
        for raw in found:
            for part in (*raw.parts, *raw.rest):
                if isinstance(part.content, Path):
                    notes.use(part.content)
            lost = {modality_of(part.kind) for part in raw.rest} if raw.rest else set(raw.lost)
            for kind in sorted(lost - {TEXT}):
                notes.lose(kind, raw.id, raw.bad)
            yield raw


class _Shown(NamedTuple):
    """What the names of the inputs' files show."""

    good: dict[str, Path]  # by format, the first file that may be opened
    refused: dict[str, tuple[int, str]]  # by format, how many may not be, and why not the first
    paired: int  # media that have a text, or JSON, of their name beside them
    alone: dict[str, int]  # by suffix, files that mot cannot read and that have a text of their name beside them


def detect(inputs: Sequence[Path]) -> str:
    """The richest format that the files' names show; what is not clear is a `UserError`."""
    shown = _shown(inputs)
    formats = dict.fromkeys([*shown.good, *shown.refused])
    # A .jsonl is documents by itself, rows beside .npz arrays, or the captions of media; texts may be captions or a
    # read-me beside anything else.
    captions = "captions" in formats
    formats.pop("captions", None)
    if "jsonl" in shown.good and _are_captions(shown.good["jsonl"]):
        formats.pop("jsonl")
        formats["folder"] = None
    elif "npz" in formats:
        formats.pop("jsonl", None)
        if not captions and kind_of(str(shown.good.get("folder", "")))[0] in ("", *modalities.arrays()):
            formats.pop("folder", None)
    elif formats.keys() & {"jsonl", "parquet"} and not captions:
        formats.pop("folder", None)  # the pictures that documents or rows name
    if captions:
        formats["folder"] = None
    for weak in ("text", "json"):
        if len(formats) > 1:
            formats.pop(weak, None)
    if len(formats) != 1:
        raise UserError(_not_clear(inputs, {form: shown.good.get(form) for form in formats}))
    form = next(iter(formats))
    _check_nothing_is_lost(inputs, form, shown, captions)
    return "jsonl" if form == "json" else form


def _shown(inputs: Sequence[Path]) -> _Shown:
    good = {}
    refused = {}
    paired = 0
    alone = Counter()
    looked_at = 0
    for path in inputs:
        if not path.is_dir() and not _form(path.name, is_found=False):
            raise UserError(f"{path}: not clear what it is; give its format: one of {', '.join(FORMATS)}")
        for here, names in walk(path) if path.is_dir() else [(path.parent, [path.name])]:
            texts = {os.path.splitext(name)[0] for name in names if name.lower().endswith(tables.SIDECARS)}
            for name in names:
                form = _form(name, path.is_dir())
                if form == "folder":
                    paired += bool({name[: -len(kind_of(name)[1]) - 1], name.partition(".")[0]} & texts)
                elif not form and name.lower().endswith(OTHER_MEDIA) and os.path.splitext(name)[0] in texts:
                    alone[suffix(name)] += 1
                if form in ("", *good) or (form == "json" and path.is_dir() and looked_at >= JSON_LOOKED_AT):
                    continue
                if path.is_dir() and (why := fault(path, here / name)):
                    number, first = refused.get(form, (0, f"{here / name}: {why}"))
                    refused[form] = number + 1, first
                    continue
                if form == "json" and path.is_dir():
                    looked_at += 1
                    if not _are_documents(here / name):
                        continue
                good[form] = here / name
    return _Shown(good, refused, paired, alone)


def _suffixes(form: str) -> tuple[str, ...]:
    """Of files that are read in this format."""
    if form == "folder":
        return tuple(f".{suffix}" for name in modalities.media() for suffix in MODALITIES[name].suffixes)
    return SUFFIXES[form]


def _form(name: str, is_found: bool) -> str:
    """What a file's name shows, "" for nothing; `is_found`: in a folder, not named by the user."""
    name = name.lower()
    if name in tables.CAPTION_FILES or (name.endswith(".csv") and not is_found):
        return "captions"
    if name.endswith(JSON):
        return "json"
    return next((form for form in FORMATS if name.endswith(_suffixes(form))), "")


def _check_nothing_is_lost(inputs: Sequence[Path], form: str, shown: _Shown, captions: bool) -> None:
    """Raises `UserError` where the richest content cannot be read and something poorer would take its place."""
    named = ", ".join(map(str, inputs))
    number, why = shown.refused.get(form, (0, ""))
    if number and form not in shown.good and not captions and "jsonl" not in shown.good:
        raise UserError(f"{named}: what is in it looks like {form}, and none of {number} files may be opened; {why}")
    texts_alone = "give --format text for the texts alone"
    has_captions = captions or shown.paired or "jsonl" in shown.good
    if form == "folder" and not has_captions and {"text", "json"} & shown.good.keys():
        first = shown.good["folder"]
        raise UserError(
            f"{named}: it holds media ({first.name}, ...) and texts, and no text has a medium's name; write x.txt "
            f"beside x{first.suffix}, or a captions file (captions.csv: file_name,caption), or {texts_alone}"
        )
    if form in ("text", "json", "folder") and shown.alone:
        rest = "give --format folder to do without them" if form == "folder" else texts_alone
        raise UserError(
            f"{named}: {listed(shown.alone)} have a text of their name beside them, and cannot be read; make them one "
            f"of {', '.join(_suffixes('folder'))}, or {rest}"
        )


def _not_clear(inputs: Sequence[Path], found: dict[str, Path | None]) -> str:
    what = " and ".join(f"{form} ({file.name})" if file else form for form, file in found.items())
    if not found:
        seen = Counter(
            suffix(name) or "without a suffix" for path in inputs for _, names in walk(path) for name in names
        )
        links = sum(map(linked_folders, inputs))
        seen |= {"linked folders": links} if links else {}
        what = f"none that is known ({listed(dict(seen.most_common(9))) or 'no file is in it'})"
    return (
        f"{', '.join(map(str, inputs))}: not clear what it is, the files look like {what}; give its format: one of "
        f"{', '.join(FORMATS)}"
    )


def _first(path: Path) -> dict:
    first = next(json_rows(path), (0, {}))[1]
    return first if isinstance(first, dict) else {}


def _are_captions(path: Path) -> bool:
    first = _first(path)
    return "content" not in first and not parallel(first) and bool(files_of(first, every=False))


def _are_documents(path: Path) -> bool:
    first = _first(path)
    return bool({"content", "text"} & first.keys() or parallel(first))


def _jsonl(inputs: list[Path], content: Sequence[str], notes: Notes) -> Iterator[Raw]:
    in_folders = [name for path in inputs if path.is_dir() for _, names in walk(path) for name in names]
    if any(name.lower().endswith(SUFFIXES["jsonl"]) for name in in_folders):
        files = find(inputs, SUFFIXES["jsonl"], notes)
    else:  # a .json may be another program's
        files = find(inputs, (*SUFFIXES["jsonl"], *JSON), notes, None if content else _are_documents)

    def rows():
        for path, name, bad, side in files:
            if bad:
                yield TableRow(name, {}, bad=bad)
                continue
            folder = os.path.realpath(path.parent)
            for number, fields in json_rows(path):
                if isinstance(fields, ValueError):
                    yield TableRow(f"{name}:{number}", {}, bad=str(fields))
                else:
                    own = fields.get("id")
                    own = "" if own is None else ":" + printable(str(own))[:100]
                    split = fields.get("split")
                    yield TableRow(f"{name}:{number}{own}", fields, folder, side if split is None else split)

    yield from documents(rows(), parse(content)) if content else map(_interleaved, rows())


def _interleaved(row: TableRow) -> Raw:
    """A document of the row's `content`, of its parallel lists, or of its text and then its media."""
    try:
        if row.bad:
            raise ValueError(row.bad)
        content = row.fields.get("content")
        if content is None and (both := parallel(row.fields)):
            return document(row, ((INTERLEAVED, both),))
        media = {} if "text" not in row.fields else media_of(row.fields)
        if content is None and (media or {"ids", "modality"} <= row.fields.keys()):
            template = tuple(
                (kind, kind) for kind in MODALITIES if kind in media or (kind == TEXT and kind in row.fields)
            )
            return document(row._replace(fields=row.fields | media), template, with_ids=True)
        if content is None and "text" in row.fields:
            content = [{"text": row.fields["text"]}]
        if not isinstance(content, list):
            raise ValueError("no list named 'content' and no 'text'; content templates say how to read other rows")
        parts = [
            _json_part(one, row.folder)._replace(is_same=n > 0)
            for part in content
            for n, one in enumerate(representations(part))
        ]
        return whole(row.id, parts, held_out(row.split))
    except ValueError as error:
        return Raw(row.id, (), None, str(error))


def _json_part(part, folder: str) -> Part:
    if isinstance(part, dict) and "ids" in part:
        return ids_part(part, folder)
    pair = kind_and_value(part)
    if pair is None:
        keys = ", ".join(modalities.names())
        raise ValueError(f"part {short(part)}; an object with one of the keys {keys}, ids is allowed")
    kind, value = pair
    if not isinstance(value, str) and (kind == TEXT or value is not None):
        raise ValueError(f"part {short(part)}; a string is needed")
    try:
        return Part(kind, text(value) if kind == TEXT else medium(kind, value, folder, f"the part's {kind}"))
    except ValueError as error:
        return Part(kind, error)


def _text(inputs: list[Path], separator: str, notes: Notes) -> Iterator[Raw]:
    try:
        between = unix(separator.encode())
    except UnicodeEncodeError:
        raise UserError(f"separator {separator!r}: half a character; write a whole one") from None
    for path, name, bad, side in find(inputs, SUFFIXES["text"], notes):
        if bad:
            yield Raw(name, (), None, bad)
            continue
        empty, offset = True, 0
        notes.occurs.append(0)
        try:
            for offset, piece, ends in _pieces(path, between):
                notes.occurs[-1] += ends
                if piece.strip():
                    empty = False
                    yield _piece(f"{name}:{offset}", piece, side)
        except DamagedInput as error:
            empty = False
            yield Raw(name, (), None, f"the rest of the file, after {offset} characters, cannot be read: {error}")
        if empty:
            yield Raw(f"{name}:0", (), None, "an empty document")


def _piece(id: str, piece: bytes, side: bool | None) -> Raw:
    try:
        return Raw(id, (Part("text", text(piece)),), side)
    except ValueError as error:
        return Raw(id, (), None, str(error))


def _pieces(path: Path, separator: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Byte offset (lines ending as Unix has them) and bytes of each document, or of the parts of a long one, and
    whether the separator follows it."""
    held, place, base = b"", 0, 0  # bytes from `base` of the file, of which `place` are done
    with opened(path) as (file, _):
        blocks = _unix_blocks(file, 16 * LONGEST_TEXT + len(separator))
        while True:
            if len(held) - place <= LONGEST_TEXT + len(separator):
                held = held[place:] + next(blocks, b"")
                base = base + place
                place = 0
                if not held:
                    return
            end = held.find(separator, place, place + LONGEST_TEXT + len(separator)) if separator else -1
            ends = end >= 0
            if ends:
                after = end + len(separator)
            elif len(held) - place <= LONGEST_TEXT:
                end = after = len(held)
            else:
                end = after = place + _cut(held[place : place + LONGEST_TEXT])
            yield base + place, held[place:end].removeprefix(BOM if base + place == 0 else b""), ends
            place = after


def _unix_blocks(file, size: int) -> Iterator[bytes]:
    """A file's bytes, `size` or somewhat fewer at a time, with lines ending as Unix has them."""
    held = b""
    while block := held + file.read(size - len(held)):
        held = b"\r" if block.endswith(b"\r") and len(block) > 1 else b""  # its \n may begin the next block
        yield unix(block[: len(block) - len(held)])


def _cut(piece: bytes) -> int:
    """Where a piece of a longer text may end: after its last paragraph, line, sentence, word or character."""
    half = len(piece) // 2
    for mark in (b"\n\n", b"\n"):
        if (at := piece.rfind(mark, half)) >= 0:
            return at + len(mark)
    ends = [match.end() for match in re.finditer(rb"[.!?]+[\"')]*\s|\xe3\x80\x82", piece[half:])]
    if ends:
        return half + ends[-1]
    if (at := piece.rfind(b" ", half)) >= 0:
        return at + 1
    back = next((i for i in range(1, 5) if piece[-i] & 0xC0 != 0x80), 1)  # at the last character's first byte
    return len(piece) - back if piece[-back] >= 0xC0 else len(piece)


class _Tape:
    """An archive's bytes as tarfile needs them: read onwards, no more than `left`, whatever sizes a header claims."""

    def __init__(self, file, is_packed: bool):
        self.file = file
        self.is_packed = is_packed
        self.left = MAX_HEADERS  # bytes that may be read
        self.place = 0
        self.last = b""  # what was read last
        self.held = b""  # what follows `place` and was read ahead

    def tell(self) -> int:
        return self.place

    def seek(self, place: int) -> None:
        if place < self.place:
            raise tarfile.ReadError("a member that lies before it")
        if not self.is_packed:
            self.file.seek(place)
            self.held = b""
        else:
            missing = place - self.place - len(self.held)
            self.held = self.held[place - self.place :]
            while missing > 0 and (skipped := len(self.file.read(min(missing, 2**20)))):
                missing -= skipped
        self.place = place

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError("its headers are too long")
        self.last = self.held[:size] + self.file.read(max(0, size - len(self.held)))
        self.held = self.held[size:]
        self.place += len(self.last)
        return self.last

    def next_archive(self) -> bool:
        """Skips the zeros that end an archive; does another one follow?"""
        while block := self.held + self.file.read(2**16 - len(self.held)):
            self.held = block.lstrip(b"\0")
            self.place += len(block) - len(self.held)
            if self.held:
                return True
        return False


def _webdataset(inputs: list[Path], content: Sequence[str], notes: Notes) -> Iterator[Raw]:
    templates = parse(content)
    count = itertools.count()
    wanted = needed(templates)
    for path, name, bad, side in find(inputs, SUFFIXES["webdataset"], notes):
        for row in [TableRow(name, {}, bad=bad)] if bad else _samples(path, name, wanted, notes):
            template = templates[next(count) % len(templates)] if templates else ()
            if not templates and not row.bad:
                template = tuple((kind, kind) for kind in MODALITIES if kind in row.fields)
                if "text" not in row.fields:
                    row = row._replace(bad=f"no text among {', '.join(row.fields) or 'its members'}")
            row = row._replace(split=side) if row.split is None else row
            yield document(row, template, with_ids=not templates)


class _Sample:
    """The members of one name, as they come."""

    def __init__(self, archive: int, before: str, stem: str, place: int):
        self.key = archive, before, stem
        self.place = place
        self.fields: dict[str, bytes] = {}  # by suffix
        self.bad = ""
        self.size = 0  # bytes of what is used
        self.kinds: set[str] = set()

    def row(self, name: str, again: bool) -> TableRow:
        archive, *key = self.key
        title = f"{name}{f'#{archive + 1}' if archive else ''}:{printable(os.path.join(*key))}"
        if again:
            why = "its sample came before; members of one sample must follow each other"
            return TableRow(f"{title}#{self.place}", {}, bad=why)
        return sample(title, self.fields, self.bad)._replace(lost=tuple(sorted(self.kinds)))


def _samples(path: Path, name: str, wanted: dict[str, str], notes: Notes) -> Iterator[TableRow]:
    """Adjacent members of one key; after damage, one last row that stands for the rest of the archive."""
    seen = set()
    done = 0
    now = None
    try:
        for archive, member, load in _members(path):
            if member is None:
                if now is not None:
                    yield now.row(name, now.key in seen)
                    now = None
                    done = done + 1
                continue
            before, base = os.path.split(member.name.removeprefix("./"))
            stem, _, ending = base.partition(".")
            fault = _fault(member, ending)
            ending = ending.lower()
            if not fault and (member.isdir() or not ending or not stem):  # hidden ones have no stem
                continue
            if now is None or now.key != (archive, before, stem):
                if now is not None:
                    yield now.row(name, now.key in seen)
                    seen.add(now.key)
                    done += 1
                now = _Sample(archive, before, stem, done)
            _add(now, member, ending, fault, load, wanted, notes)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        yield TableRow(name, {}, bad=f"the rest of the archive, after {done} samples, cannot be read: {reason(error)}")


def _add(now: _Sample, member, ending: str, fault: str, load, wanted: dict[str, str], notes: Notes) -> None:
    """Adds a member to its sample. It is read only if it is used, and not if the sample is bad."""
    kind = kind_of("x." + ending)[0]
    is_used = _is_used(ending, wanted)
    now.kinds |= {kind} - {"", TEXT}
    if not is_used:
        notes.members[suffix("x." + ending)] += 1
    if ending in now.fields:
        fault = fault or f"two members {short(member.name)}"
    now.size += member.size if is_used else 0
    if now.size > MAX_SAMPLE:
        fault = fault or f"{now.size} bytes in one sample; at most {MAX_SAMPLE} are allowed"
    now.bad = now.bad or fault
    if now.bad:
        now.fields = {}
    elif is_used:
        now.fields[ending] = load()


def _is_used(suffix: str, wanted: dict[str, str]) -> bool:
    return suffix in wanted or suffix == "json" or any(suffix in row.suffixes for row in MODALITIES.values())


def _members(path: Path):
    """The archive's number, each of its members, and how to read its bytes, which is only possible until the next is
    asked for; after the last of each archive of a file, None in their place."""
    with opened(path) as (file, is_packed):
        tape = _Tape(file, is_packed)
        for number in itertools.count():
            tape.left, begins = MAX_HEADERS, tape.place
            with tarfile.open(fileobj=tape, mode="r:") as archive:
                if number and archive.firstmember is None:
                    raise tarfile.ReadError(f"what follows its end mark, from byte {begins:,} on, is no archive")
                reached = -1
                while (member := archive.next()) is not None:
                    archive.members.clear()  # else it remembers each
                    if archive.offset <= reached or member.size < 0:
                        raise tarfile.ReadError("a member of negative size")
                    reached = archive.offset

                    def load(member=member, archive=archive):
                        tape.left = member.size + 2**16
                        return archive.extractfile(member).read()

                    yield number, member, load
                    tape.left = MAX_HEADERS
            if tape.last != bytes(512):  # `next` takes a damaged header for the end
                raise tarfile.ReadError("it is damaged or cut off")
            yield number, None, None
            if not tape.next_archive():
                return


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
