"""Documents as readers give them, before anything is decoded, and how a row of fields becomes one."""

import base64
import codecs
import json
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mot.config import modalities
from mot.config.modalities import MODALITIES, TEXT
from mot.config.options import DROP_MEDIUM
from mot.errors import UserError, reason
from mot.prepare.compressed import DamagedInput, opened
from mot.prepare.inputs import held_out, inside, kind_of, short
from mot.prepare.templates import BRACES, INTERLEAVED, MODALITY, READY, Template, needed, parse

BOM = b"\xef\xbb\xbf"
PARALLEL = (("texts", "images"), ("text_list", "image_info"))
_BETWEEN = re.compile(r"[\s,]*")  # values of an array
MAX_LINE = 64 * 2**20  # bytes
MAX_TEXT = 16 * 2**20  # bytes of a document's text
# Fields of a row that name files, beside those of a modality (`paths`); of each the suffix says what it is.
FILES = ("file_name", "filename", "file", "path", "file_names")
FILE_ENDINGS = ("_file_name", "_file_names", "_path", "_filepath")


class Part(NamedTuple):
    """A stretch of a document in one modality, still encoded."""

    kind: str  # a modality of MODALITIES, or any modality's name and READY
    content: str | bytes | Path | np.ndarray | ValueError  # text: str; media: what its codec reads, or why not
    rate: int = 0  # of audio given as an array: samples a second
    is_same: bool = False  # another representation of the unit that the part before it is


class Raw(NamedTuple):
    id: str  # unique in the input: "train.jsonl:17", "cat.png", "a.tar:0001"
    parts: tuple[Part, ...]  # in document order
    held_out: bool | None = None  # as the input says; None: the content's hash decides
    bad: str = ""  # why there is no document; then `parts` is empty
    rest: tuple[Part, ...] = ()  # where only media are bad: all parts, some of them ValueErrors
    lost: tuple[str, ...] = ()  # modalities of a bad document's media, where its parts do not say


class TableRow(NamedTuple):
    """Named fields that a template makes a document of."""

    id: str
    fields: Mapping[str, Any]  # a value may be the ValueError that says why there is none
    folder: str | None = None  # real path that media paths are relative to
    split: Any = None
    rate: int = 0  # of audio arrays
    bad: str = ""
    lost: tuple[str, ...] = ()  # modalities of its media, which are lost where the document is bad


def parts_of(raw: Raw, missing: str) -> tuple[Part, ...]:
    """A document's parts. Where media may be `missing`, a document that is bad only for its media has parts, too."""
    return raw.rest if raw.bad and missing == DROP_MEDIUM else raw.parts


def weight_of(part: Part) -> int:
    """About how many bytes a part takes in memory; for a file its size, 0 where that is unknown."""
    if isinstance(part.content, Path):
        try:
            return os.stat(part.content).st_size
        except OSError:
            return 0
    if isinstance(part.content, ValueError):
        return 0
    return getattr(part.content, "nbytes", 0) or len(part.content)


def choose(content: Sequence[str], fields: Iterable[str], where: str, text_alone: bool = True) -> tuple[Template, ...]:
    """The user's templates, or one of guessed fields; a `UserError` lists the fields of `where` if they do not fit.

    A guess has text, and media too unless `text_alone` will do.
    """
    fields = list(fields)
    templates = parse(content) or (guess(fields),)
    missing = [name for name in needed(templates) if name not in fields]
    lacks = [] if {TEXT, INTERLEAVED} & dict(templates[0]).keys() else [TEXT]
    lacks += [] if text_alone or set(dict(templates[0])) - {TEXT} else [" or ".join(modalities.listed())]
    if missing or (lacks and not content):
        fault = f"content names {missing[0]!r}" if missing else f"no field's name says that it is {lacks[0]}"
        guesses = dict(guess(fields))
        others = iter([name for name in fields if name not in guesses.values()])
        names = {
            kind: guesses.get(kind) or next(others, kind)
            for kind in dict.fromkeys([TEXT, *guesses, modalities.media()[0]])
        }
        raise UserError(
            f"{where}: {fault}; its fields are {', '.join(map(str, fields)) or 'none'}; say which to use, e.g. "
            f"--content '{'|'.join(f'{kind}:{name}' for kind, name in names.items())}'"
        )
    return templates


def guess(fields: Sequence[str]) -> Template:
    """Parallel lists, or text first, then media; `()` if no name is known."""
    if both := parallel(fields):
        return ((INTERLEAVED, both),)
    lower = {str(name).lower(): name for name in reversed(fields)}
    firsts = {kind: next((name for name in row.fields if name in lower), None) for kind, row in MODALITIES.items()}
    return tuple((kind, lower[name]) for kind, name in firsts.items() if name is not None)


def files_of(fields: Mapping[str, Any], every: bool) -> dict[str, Any]:
    """The files that a row names, one or a list, under their kinds, which their suffixes say.

    `every`: what such a field names is a file whatever its suffix, an image if that says nothing.
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if not names_files(name):
            continue
        first = value[0] if isinstance(value, list) and value else value
        if not isinstance(first, str) or not first:
            continue
        kind = kind_of(first)[0]
        if name in modalities.listed() or (name in MODALITIES and kind in modalities.arrays()):  # an action is a .npy
            kind = name
        if kind not in ("", TEXT):
            found.setdefault(kind, value)
        elif every and not str(name).endswith(FILE_ENDINGS):
            found.setdefault(modalities.media()[0], value)
    return found


def media_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`files_of`, and what else a row has under a modality's own name: no codec takes it, and that must be told.

    A list of no media names none, and a word may be no medium's (`"action": "walk"`), but for an image or a sound.
    """
    found = files_of(fields, every=False)
    for kind in modalities.media():
        for name in [name for name in MODALITIES[kind].paths if name in fields]:
            value = fields[name]
            passed = value == [] if MODALITIES[kind].is_listed else isinstance(value, str)
            if not passed and not files_of({name: value}, every=False):
                found.setdefault(kind, value)
    return found


def names_files(field: Any) -> bool:
    """Does a field of this name hold files' names?"""
    of_a_modality = any(field in row.paths for row in MODALITIES.values())
    return field in FILES or of_a_modality or str(field).endswith(FILE_ENDINGS)


def documents(rows: Iterator[TableRow], templates: Sequence[Template]) -> Iterator[Raw]:
    """Row i by template i modulo their number."""
    for i, row in enumerate(rows):
        yield document(row, templates[i % len(templates)])


def document(row: TableRow, template: Template, with_ids: bool = False) -> Raw:
    """The document that a template makes of a row; `with_ids` appends the row's `ids` of its `modality`."""
    try:
        if row.bad:
            raise ValueError(row.bad)
        parts = [part for kind, field in template for part in _parts(kind, field, row)]
        if with_ids and {"ids", "modality"} <= row.fields.keys():
            parts.append(ids_part({key: row.fields[key] for key in ("ids", "modality")}, row.folder))
        return whole(row.id, parts, held_out(row.split))
    except ValueError as error:
        return Raw(row.id, (), None, str(error), lost=row.lost)


def whole(id: str, parts: Sequence[Part], held_out: bool | None) -> Raw:
    """A document of these parts, bad where a medium is missing. Raises `ValueError` where text is missing or blank."""
    faulty = [part for part in parts if isinstance(part.content, ValueError)]
    if any(part.kind == TEXT for part in faulty):
        raise faulty[0].content
    parts = filled(parts)
    return Raw(id, (), held_out, str(faulty[0].content), parts) if faulty else Raw(id, parts, held_out)


def filled(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts without empty texts. Raises `ValueError` where nothing is left, or too much."""
    parts = tuple(part for part in parts if part.kind != TEXT or part.content)
    words = [part.content for part in parts if part.kind == TEXT]
    if 4 * sum(map(len, words)) > MAX_TEXT:  # no character has more bytes
        check_text(sum(len(word.encode(errors="surrogatepass")) for word in words))
    if all(part.kind == TEXT and not part.content.strip() for part in parts):
        raise ValueError("an empty document")
    return parts


def _parts(kind: str, field: str, row: TableRow) -> list[Part]:
    """The parts of a template's field: one, one for each of a list of media, or those of two parallel lists."""
    if kind == INTERLEAVED:
        return interleaved(*(_value(row, name) for name in field.split("+")), row.folder)
    value = row.fields.get(field)
    if kind in modalities.listed() and isinstance(value, list):
        if not value:
            return [Part(kind, ValueError(f"{kind} field {field!r} is an empty list"))]
        fields = [{field: one if one is not None else ValueError(f"no {kind} in {field!r}")} for one in value]
        return [_part(kind, field, row._replace(fields=one)) for one in fields]
    return [_part(kind, field, row)]


def parallel(fields: Container[str]) -> str:
    """The two fields, joined by +, that hold the texts and the images of one document; "" where there are none."""
    return next(("+".join(pair) for pair in PARALLEL if all(name in fields for name in pair)), "")


def interleaved(texts: Any, images: Any, folder: str | None) -> list[Part]:
    """The parts of a document whose texts and images are parallel lists; raises `ValueError` where they are not.

    As OBELICS (arXiv 2306.16527) has them: at each place a text or an image, and None in the other list. Or as mmc4
    (arXiv 2304.06939): an image is an object that says before which text it stands, `matched_text_index`.
    """
    for name, value in (("texts", texts), ("images", images)):
        if not isinstance(value, list):
            raise ValueError(f"its {name} are {short(value)}; a list is needed")
    if any(isinstance(image, dict) and "matched_text_index" in image for image in images):
        texts, images = _matched(texts, images)
    images = images or [None] * len(texts)
    if len(texts) != len(images):
        raise ValueError(f"{len(texts)} texts and {len(images)} images; lists of one length are needed")
    parts = []
    for words, image in zip(texts, images, strict=True):
        if words is not None:
            parts.append(Part(TEXT, text(words)))
        if image is not None:
            try:
                parts.append(Part("image", medium("image", image, folder, "an image")))
            except ValueError as error:
                parts.append(Part("image", error))
    return parts


def _matched(texts: list, images: list) -> tuple[list, list]:
    """Parallel lists of mmc4's: each text after the images that it was matched with."""
    before: dict[int, list] = {}
    for image in images:
        index = image.get("matched_text_index") if isinstance(image, dict) else None
        if type(index) is not int or not 0 <= index < len(texts):
            raise ValueError(f"image {short(image)}: its matched_text_index must be 0 to {len(texts) - 1}")
        try:
            encoded = image.get("image_base64")
            content = base64.b64decode(encoded, validate=True) if encoded else image.get("image_name")
        except (ValueError, TypeError) as error:
            content = ValueError(f"its image_base64 is no base64: {reason(error)}")
        before.setdefault(index, []).append(ValueError("no image_name") if content is None else content)
    order = []
    for index, words in enumerate(texts):
        order += [(None, image) for image in before.get(index, ())]
        order.append((words, None))
    return [words for words, _ in order], [image for _, image in order]


def _part(kind: str, field: str, row: TableRow) -> Part:
    """A part; where there is no content, its content is the ValueError that says why."""
    try:
        if kind == TEXT and "{" in field:
            return Part(TEXT, BRACES.sub(lambda match: text(_value(row, match[1]), match[1]), field))
        if kind == TEXT:
            return Part(TEXT, text(_value(row, field), field))
        value = _joined(row, field) if kind in modalities.joined() and "+" in field else _value(row, field)
        value = medium(kind, value, row.folder, f"{kind} field {field!r}")
    except ValueError as error:
        value = error
    is_sampled = isinstance(value, np.ndarray) and kind in MODALITIES and MODALITIES[kind].is_sampled
    return Part(kind, value, row.rate if is_sampled else 0)


def medium(kind: str, value: Any, folder: str | None, name: str) -> bytes | Path | np.ndarray:
    """The encoded content of a medium: a path in `folder`, bytes, or an array; ready ids may also be a list."""
    if isinstance(value, ValueError):
        raise value
    if kind.endswith(READY) and isinstance(value, list):
        return integers(value)
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:  # as Hugging Face stores a medium
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str):
        return inside(folder, value)
    if not isinstance(value, bytes | Path | np.ndarray):
        lists = "a list of integers, " * kind.endswith(READY)
        raise ValueError(f"{name} is {short(value)}; {lists}a path or encoded bytes are allowed")
    return value


def integers(value: list) -> np.ndarray:
    """int64 `[n]`; raises `ValueError` for a list of anything else."""
    odd = [x for x in value if type(x) is not int or not -(2**63) <= x < 2**63]
    if odd:
        raise ValueError(f"ids {short(value)}; a list of integers is needed, and {short(odd[0])} is none")
    return np.array(value, np.int64)


def kind_and_value(part: Any) -> tuple[str, Any] | None:
    """Those of a part as JSON has it, `{kind: value}`; None for anything else."""
    if not isinstance(part, dict) or len(part) != 1 or next(iter(part)) not in MODALITIES:
        return None
    return next(iter(part.items()))


def representations(part: Any) -> list:
    """A part as JSON has it; one that names a unit in several representations, a part for each of them."""
    if isinstance(part, dict) and len(part) > 1 and part.keys() <= set(modalities.media()):
        return [{kind: value} for kind, value in part.items()]
    return [part]


def ids_part(part: dict, folder: str) -> Part:
    """`{"ids": [...], "modality": "depth"}`: ids as they are, or in the .npy file that it names."""
    name, value = part.get("modality"), part.get("ids")
    if part.keys() != {"ids", "modality"} or not isinstance(name, str) or not MODALITY.fullmatch(name):
        raise ValueError(
            f'part {short(part)}; ids are written {{"ids": [3, 5], "modality": "depth"}}, the modality in lower-case '
            "letters, digits and _"
        )
    try:
        value = medium(name + READY, value, folder, f"the ids of {name}")
    except ValueError as error:
        value = error
    return Part(name + READY, value)


def _value(row: TableRow, field: str):
    if field not in row.fields:
        raise ValueError(f"no field {field!r}; it has {', '.join(map(str, row.fields))[:200] or 'none'}")
    value = row.fields[field]
    if isinstance(value, ValueError):
        raise value
    return value


def _joined(row: TableRow, field: str) -> np.ndarray:
    """`[n, columns]`: arrays side by side."""
    names = field.split("+")
    values = [_value(row, name) for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, np.ndarray) or value.ndim not in (1, 2) or len(value) != len(values[0]):
            shown = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else short(value)
            raise ValueError(f"field {name!r} of {field!r} is {shown}; arrays of one length, [n] or [n, P], are joined")
    return np.column_stack(values)


def check_text(size: int) -> None:
    if size > MAX_TEXT:
        raise ValueError(f"{size:,} bytes of text; at most {MAX_TEXT:,} are allowed; make several documents of it")


def text(value: Any, name: str = "text") -> str:
    """Strings, UTF-8 bytes, numbers and lists of them as text that encodes; otherwise a `ValueError`."""
    match value:
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{name} holds half a character (a lone surrogate)") from None
            return value
        case int() | float() | np.number():
            return str(value)
        case list() if value:
            return ", ".join(text(item, name) for item in value)
    raise ValueError(f"{name} is {short(value)}; text is needed")


def plain(encoded: bytes, name: str = "text") -> str:
    """A text file's words as Python opens one: without a byte-order mark, lines ending as Unix has them."""
    return text(unix(encoded.removeprefix(BOM)), name)


def unix(encoded: bytes) -> bytes:
    return encoded.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def lines(path: Path) -> Iterator[tuple[int, bytes | DamagedInput | None]]:
    """Numbered from 1; None for one of more than MAX_LINE bytes, which is never held whole; last of all, where the
    file is packed and damaged, what stands for the rest of it."""
    number = 0
    with opened(path) as (file, _):
        try:
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    while not line.endswith(b"\n") and (line := file.readline(2**20)):
                        pass
                    line = None
                yield number, line
        except DamagedInput as error:
            yield number + 1, error


def json_rows(path: Path) -> Iterator[tuple[int, dict | ValueError]]:
    """The objects of a JSON-lines file by line number, or why there is none; blank lines are not counted as rows.

    A file called .json may also hold one array of objects, which are numbered from 1.
    """
    if is_json(path.name):
        with opened(path) as (file, _):
            try:
                start = file.read(2**16).removeprefix(BOM).lstrip()
            except DamagedInput:
                start = b""  # told below
        if start.startswith(b"["):
            document = _only_document(start)
            yield from _json_array(path) if document is None else [(1, document)]
            return
        if re.match(rb"\{\s*\n", start):
            yield 1, ValueError("one object over several lines; one object a line, or an array of objects, is needed")
            return
    for number, line in lines(path):
        try:
            if isinstance(line, DamagedInput):
                raise ValueError(f"the rest of the file, after {number - 1} lines, cannot be read: {line}")
            if line is None:
                raise ValueError(f"a line of more than {MAX_LINE} bytes")
            if not line.strip():
                continue
            row = parsed(text(line.removeprefix(BOM) if number == 1 else line, "the line"))
            row = _as_object(row)
        except ValueError as error:
            row = error
        yield number, row


def _as_object(row: Any) -> dict:
    """A row; of a list of parts, as `mot sample` writes a document, the object that has them as its content."""
    if isinstance(row, list) and row and all(isinstance(part, dict) for part in row):
        return {"content": row}
    if not isinstance(row, dict):
        raise ValueError(f"{short(row)}; an object is needed, or a list of parts")
    return row


def _object_or_error(row: Any) -> dict | ValueError:
    try:
        return _as_object(row)
    except ValueError as error:
        return error


def _only_document(start: bytes) -> dict | None:
    """The document that a short file is, the parts of which are its array; None where it is an array of documents."""
    try:
        parts = json.loads(start)
    except (ValueError, RecursionError):
        return None
    keys = [set(part) for part in parts if isinstance(part, dict)]
    is_part = [key in ({TEXT}, {"ids", "modality"}) or bool(key and key <= set(modalities.media())) for key in keys]
    has_media = any(key != {"text"} for key in keys)
    return {"content": parts} if len(keys) == len(parts) and all(is_part) and has_media else None


def parsed(words: str) -> Any:
    """The value of a JSON text; raises `ValueError` where there is none."""
    try:
        return json.loads(words)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {_json_fault(error)}") from None


def _json_fault(error: ValueError) -> str:
    """A decoder's reason with its place, or, where it has none, what cannot be read."""
    return str(error) if isinstance(error, json.JSONDecodeError) else reason(error)


def is_json(name: str) -> bool:
    return re.fullmatch(r".*\.json(\.(gz|zst|bz2|xz))?", name.lower()) is not None


def _json_array(path: Path) -> Iterator[tuple[int, dict | ValueError]]:
    """The objects of one array, each decoded when its turn comes; one last error stands for what follows a fault."""
    number = 0
    characters = codecs.getincrementaldecoder("utf-8-sig")()
    with opened(path) as (file, _):
        try:
            held = characters.decode(file.read(2**20))
            place = held.index("[") + 1
            while not held.startswith("]", place := _BETWEEN.match(held, place).end()):
                try:
                    row, end = json.JSONDecoder().raw_decode(held, place)
                except json.JSONDecodeError as error:
                    row = error
                    end = len(held)
                if end < len(held) or isinstance(row, dict):  # a number may go on
                    place = end
                    number = number + 1
                    yield number, _object_or_error(row)
                    continue
                held = held[place:]
                place = 0
                more = file.read(max(2**20, len(held)))  # twice as much each time, or long values take for ever
                held += characters.decode(more, final=not more)
                if not more or len(held) > 2 * MAX_LINE:
                    raise row if isinstance(row, ValueError) else ValueError("it ends before its last bracket")
        except (ValueError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else _json_fault(error)
            yield number + 1, ValueError(f"the rest of the array, after {number} objects, is not JSON: {why}"[:300])


def sample(title: str, fields: dict, bad: str = "") -> TableRow:
    """A row of the files of one name: fields by suffix, by the keys of its JSON, and by modality."""
    extra = {}
    try:
        if bad:
            raise ValueError(bad)
        if isinstance(fields.get("json", ""), ValueError):
            raise fields["json"]
        if "json" in fields:
            if len(fields["json"]) > MAX_LINE:
                raise ValueError(f"its .json has {len(fields['json'])} bytes; at most {MAX_LINE} are allowed")
            words = fields["json"]
            extra = parsed(text(words.removeprefix(BOM) if isinstance(words, bytes) else words, "its .json"))
            if not isinstance(extra, dict):
                raise ValueError(f"its .json is {short(extra)}; an object is needed")
    except ValueError as error:
        why = str(error)
        return TableRow(title, {}, bad=f"its .json is {why}"[:200] if why.startswith("not JSON") else why)
    named = {name: value for name, value in extra.items() if name not in MODALITIES} | fields
    words = [extra[name] for name in ("caption", "text") if isinstance(extra.get(name), str)]
    named |= {"text": words[0]} if words else {}
    for kind, row in MODALITIES.items():
        first = next((suffix for suffix in row.suffixes if suffix in fields), None)
        named |= {} if first is None else {kind: fields[first]}
    if isinstance(named.get("text"), bytes):  # of a file in an archive
        named["text"] = unix(named["text"].removeprefix(BOM))
    return TableRow(title, named, split=extra.get("split"))
