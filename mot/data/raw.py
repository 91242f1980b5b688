"""Documents as a reader finds them, before anything is decoded, and how a row of fields becomes one."""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from mot.errors import UserError

KINDS = ("text", "image", "audio", "action", "latents")
# Ends the kind of a part that is ids already, of somebody's own tokenizer: "depth ids" are ids of the modality depth.
READY = " ids"
MODALITY = re.compile(r"[a-z][a-z0-9_]*")
MAX_LINE = 64 * 2**20  # bytes
MAX_TEXT = 16 * 2**20  # bytes of a document's text
# The fields that a document is made of where the user names none: the first of each kind that is there.
GUESSES = {
    "text": ("caption", "text", "title", "name", "transcription", "sentence", "labels", "label"),
    "image": ("image", "images", "jpg", "jpeg", "png", "webp"),
    "audio": ("audio", "wav", "flac", "ogg", "mp3"),
    "action": ("action", "actions", "trajectory", "strokes"),
    "latents": ("latents", "npy"),
}
SPLITS = {"train": False, "val": True, "validation": True, "test": True, "held_out": True, 0: False, 1: True}


class Part(NamedTuple):
    """A stretch of a document in one modality, still encoded."""

    kind: str  # of KINDS, or a modality's name and READY
    content: str | bytes | Path | np.ndarray | ValueError  # text: str; media: what mot.data.media takes, or why not
    rate: int = 0  # of audio given as an array: samples a second


class Raw(NamedTuple):
    id: str  # unique in the input: "train.jsonl:17", "cat.png", "a.tar:0001"
    parts: tuple[Part, ...]  # in document order
    held_out: bool | None = None  # as the input says; None: the content's hash decides
    bad: str = ""  # why there is no document; then `parts` is empty
    rest: tuple[Part, ...] = ()  # of a document that is bad for its media alone: all parts, some of them ValueErrors


class Row(NamedTuple):
    """Named fields that a template makes a document of."""

    id: str
    fields: Mapping[str, Any]  # a value may be the ValueError that says why there is none
    folder: str | None = None  # real path that media paths are relative to
    split: Any = None
    rate: int = 0  # of audio arrays
    bad: str = ""


# (kind, field), or for text (kind, words with {field} in them), for an action (kind, fields joined by +)
Template = tuple[tuple[str, str], ...]
_BRACES = re.compile(r"\{([^{}]+)\}")
# What may command a terminal, or is half a character: Unicode adds none to these, where `str.isprintable` changes.
COMMANDS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def modality_of(kind: str) -> str:
    return kind.removesuffix(READY)


def declared(content: Sequence[str], modalities: Iterable[str]) -> list[str]:
    """Templates in which `depth:codes` reads `depth ids:codes`, for the modalities whose ids are ready."""
    modalities = set(modalities)

    def marked(part: str) -> str:
        kind, colon, field = part.partition(":")
        return f"{kind.strip()}{READY}:{field}" if colon and kind.strip() in modalities else part

    return ["|".join(map(marked, template.split("|"))) for template in content]


def parse(content: Sequence[str]) -> tuple[Template, ...]:
    """Templates like "text:a drawing of {name}|image:image" or "text:caption|action:xy+pen_up"."""
    return tuple(_parse(template) for template in content)


def _parse(template: str) -> Template:
    parts = []
    for part in template.split("|"):
        kind, colon, field = part.partition(":")
        kind = kind.strip()
        braces = "{" in field or "}" in field
        balanced = not re.search(r"[{}]", _BRACES.sub("", field))
        names = [name.strip() for name in field.split("+")] if kind == "action" else [field.strip()]
        known = kind in KINDS or kind.endswith(READY)
        if not known or not colon or not all(names) or (braces and (kind != "text" or not balanced)):
            raise UserError(
                f"--content {template!r}: {part!r}; write kind:field, the kind one of {', '.join(KINDS)} or a modality "
                "that --ids declares (--ids depth=64), text also "
                "with {field} among words, action with fields joined by +, parts separated by |, e.g. 'text:a drawing "
                "of {name}|image:image'"
            )
        parts.append((kind, field if braces else "+".join(names)))
    return tuple(parts)


def needed(templates: Sequence[Template]) -> dict[str, str]:
    """The kind of each field that templates name."""
    names = [(name, kind) for template in templates for kind, field in template for name in _names(kind, field)]
    kinds = dict(names)
    for name, kind in names:
        if kinds[name] != kind:
            raise UserError(f"content uses the field {name!r} as {kinds[name]} and as {kind}; choose one")
    return kinds


def _names(kind: str, field: str) -> list[str]:
    return field.split("+") if kind == "action" else _BRACES.findall(field) or [field]


def choose(content: Sequence[str], fields: Iterable[str], where: str, text_alone: bool = True) -> tuple[Template, ...]:
    """The user's templates, or one of guessed fields; a `UserError` lists the fields of `where` if they do not fit.

    A guess has text, and media too unless `text_alone` will do.
    """
    fields = list(fields)
    templates = parse(content) or (guess(fields),)
    missing = [name for name in needed(templates) if name not in fields]
    lacks = [kind for kind in ("text",) if kind not in dict(templates[0])]
    lacks += [] if text_alone or set(dict(templates[0])) - {"text"} else ["image or audio"]
    if missing or (lacks and not content):
        found = f"content names {missing[0]!r}" if missing else f"no field's name says that it is {lacks[0]}"
        known = dict(guess(fields))
        others = iter([name for name in fields if name not in known.values()])
        names = {kind: known.get(kind) or next(others, kind) for kind in dict.fromkeys(["text", *known, "image"])}
        raise UserError(
            f"{where}: {found}; its fields are {', '.join(map(str, fields)) or 'none'}; say which to use, e.g. "
            f"--content '{'|'.join(f'{kind}:{name}' for kind, name in names.items())}'"
        )
    return templates


def guess(fields: Sequence[str]) -> Template:
    """Text first, then media; `()` if no name is known."""
    lower = {str(name).lower(): name for name in reversed(fields)}
    found = ((kind, next((lower[g] for g in names if g in lower), None)) for kind, names in GUESSES.items())
    return tuple((kind, name) for kind, name in found if name is not None)


def documents(rows: Iterator[Row], templates: Sequence[Template]) -> Iterator[Raw]:
    """Row i by template i modulo their number."""
    for i, row in enumerate(rows):
        yield document(row, templates[i % len(templates)])


def document(row: Row, template: Template) -> Raw:
    try:
        if row.bad:
            raise ValueError(row.bad)
        return whole(row.id, [_part(kind, field, row) for kind, field in template], held_out(row.split))
    except ValueError as error:
        return Raw(row.id, (), None, str(error))


def whole(id: str, parts: Sequence[Part], held_out: bool | None) -> Raw:
    """A document of these parts, bad where a medium is missing; raises `ValueError` where its text is, or is blank."""
    faulty = [part for part in parts if isinstance(part.content, ValueError)]
    if any(part.kind == "text" for part in faulty):
        raise faulty[0].content
    parts = filled(parts)
    return Raw(id, (), held_out, str(faulty[0].content), parts) if faulty else Raw(id, parts, held_out)


def filled(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Without empty texts; `ValueError` if nothing is left to learn from, or too much."""
    parts = tuple(part for part in parts if part.kind != "text" or part.content)
    words = [part.content for part in parts if part.kind == "text"]
    if 4 * sum(map(len, words)) > MAX_TEXT:  # no character has more bytes
        check_text(sum(len(word.encode(errors="surrogatepass")) for word in words))
    if all(part.kind == "text" and not part.content.strip() for part in parts):
        raise ValueError("an empty document")
    return parts


def held_out(split: Any) -> bool | None:
    if split is None:
        return None
    if isinstance(split, str | int | np.integer) and split in SPLITS:
        return SPLITS[split]
    raise ValueError(f"split {short(split)}; {', '.join(map(str, SPLITS))} are allowed")


def _part(kind: str, field: str, row: Row) -> Part:
    """A part whose content is the ValueError that says why there is none, where there is none."""
    try:
        if kind == "text" and "{" in field:
            return Part("text", _BRACES.sub(lambda match: text(_value(row, match[1]), match[1]), field))
        if kind == "text":
            return Part("text", text(_value(row, field), field))
        value = _joined(row, field) if kind == "action" and "+" in field else _value(row, field)
        value = medium(kind, value, row.folder, f"{kind} field {field!r}")
    except ValueError as error:
        value = error
    return Part(kind, value, row.rate if isinstance(value, np.ndarray) and kind == "audio" else 0)


def medium(kind: str, value: Any, folder: str | None, name: str) -> bytes | Path | np.ndarray:
    """What is to be decoded or read as `kind`: a path in `folder`, bytes, an array, and of ready ids also a list."""
    if kind.endswith(READY) and isinstance(value, list):
        return integers(value)
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


def _value(row: Row, field: str):
    if field not in row.fields:
        raise ValueError(f"no field {field!r}; it has {', '.join(map(str, row.fields))[:200] or 'none'}")
    value = row.fields[field]
    if isinstance(value, ValueError):
        raise value
    return value


def _joined(row: Row, field: str) -> np.ndarray:
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


def inside(folder: str | None, name: str) -> Path:
    """The regular file that a document names, which must lie in the real path `folder`."""
    path = PurePosixPath(name)
    if folder is None or not name or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"path {short(name)}; only paths inside the input's own folder are allowed, without '..'")
    try:
        target = os.path.realpath(os.path.join(folder, name), strict=True)
        regular = stat.S_ISREG(os.stat(target).st_mode)
    except (OSError, ValueError) as error:
        raise ValueError(f"path {short(name)}: {getattr(error, 'strerror', None) or error}") from None
    if os.path.commonpath([folder, target]) != folder:
        raise ValueError(f"path {short(name)}: a link that leaves the input's folder; copy the file into it")
    if not regular:  # a pipe or device may never end
        raise ValueError(f"path {short(name)}: no regular file; only such can be read")
    return Path(target)


def short(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def fault(folder: Path, file: Path) -> str:
    """Why a file that was found in `folder` is not to be opened; "" for one that may be."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            inside(os.path.realpath(folder), os.path.relpath(file, folder))
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except ValueError as error:
        return str(error)
    return ""


def find(inputs: Sequence[Path], suffixes: tuple[str, ...]) -> list[tuple[Path, str, str]]:
    """The files among `inputs` and, of those suffixes, in the folders among them.

    Each with its label for ids, and why it is not to be opened, or "".
    """
    files, faults = [], {}
    for path in inputs:
        if path.is_dir():
            names = [here / name for here, names in walk(path) for name in names if name.lower().endswith(suffixes)]
            if not names:
                raise UserError(f"{path}: no {' or '.join(suffixes)} file in it; name another input or another format")
            files += names
            faults |= {file: why for file in names if (why := fault(path, file))}
        else:
            files.append(path)
    if len(set(files)) < len(files):
        twice = next(file for i, file in enumerate(files) if file in files[:i])
        raise UserError(f"{twice}: given twice; name it once")
    root = common(inputs)
    return [(file, label(file, root), faults.get(file, "")) for file in files]


def common(inputs: Sequence[Path]) -> str:
    """The folder that labels are relative to, of absolute paths."""
    return os.path.commonpath([path if path.is_dir() else path.parent for path in inputs])


def label(file: Path, root: str) -> str:
    """Its path below `root`; readable also where a name is not UTF-8."""
    return printable(os.path.relpath(file, root))


def printable(name: str) -> str:
    return COMMANDS.sub(lambda found: ascii(found[0])[1:-1], name)


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and their files in a fixed order, nothing hidden."""

    def fail(error):
        raise UserError(f"{error.filename}: {error.strerror}; make it readable, or leave it out of the input")

    for here, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(here), sorted(name for name in names if not name.startswith("."))


def lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered from 1; None for one of more than MAX_LINE bytes, which is never held whole."""
    number = 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                while not line.endswith(b"\n") and (line := file.readline(2**20)):
                    pass
                line = None
            yield number, line


def json_rows(path: Path) -> Iterator[tuple[int, dict | ValueError]]:
    """The objects of a JSON-lines file by line number, or why there is none; blank lines are not counted as rows."""
    for number, line in lines(path):
        try:
            if line is None:
                raise ValueError(f"a line of more than {MAX_LINE} bytes")
            if not line.strip():
                continue
            row = json.loads(text(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, "the line"))
            if not isinstance(row, dict):
                raise ValueError(f"{short(row)}; an object is needed")
        except RecursionError:
            row = ValueError("not JSON: nested too deeply")
        except json.JSONDecodeError as error:
            row = ValueError(f"not JSON: {error}")
        except ValueError as error:
            row = error
        yield number, row
