"""The files of the inputs: which exist, which may be opened, which split their names say, and which stay unread."""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from mot.config import modalities
from mot.config.modalities import TEXT
from mot.errors import UserError
from mot.prepare import compressed

# Is a document of this split held out? "restval" is what Karpathy's split of COCO adds to the training images.
SPLITS = {"train": False, "val": True, "validation": True, "test": True, "held_out": True, 0: False, 1: True}
SPLITS |= {"training": False, "trainval": False, "restval": False}
SPLITS |= {name: True for name in ("valid", "dev", "eval", "evaluation", "testing", "heldout")}
# "validation-00000-of-00001", as Hugging Face names a part of a split, and "val2014", as COCO does.
_NUMBERED = re.compile(r"([a-z_]+?)[-_.]?\d[\w.-]*")
_REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")
# Media that mot does not read. A text of the same name is probably a caption, not a document.
OTHER_MEDIA = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"),
    *(".m4a", ".aac", ".wma", ".aif", ".aiff", ".au", ".amr", ".mid", ".midi"),
    *(".heic", ".heif", ".jp2", ".jxl", ".svg", ".psd", ".ico", ".exr"),
    *(".npz", ".pt", ".pth", ".pkl", ".h5", ".hdf5", ".mat", ".ply", ".obj", ".glb", ".dcm", ".nii"),
)


def kind_of(name: str) -> tuple[str, str]:
    """A file's modality and the suffix that says so; "" twice where it has none."""
    return modalities.kind_of_file(os.path.basename(name).lower().split("."))


ONE = {
    "links that leave the folder": "link that leaves the folder",
    "links to nothing": "link to nothing",
    "linked folders": "linked folder",
}


class File(NamedTuple):
    path: Path
    label: str  # for ids: its path below the folder that all inputs have in common
    bad: str  # why it may not be opened, or ""
    held_out: bool | None  # what its name says, where the names give both splits; else None


class Notes:
    """What a reader notes besides documents."""

    def __init__(self):
        self.used: set[int] = set()  # hashes of the real paths of files that were read, or have a bad document
        self.packed: Counter[str] = Counter()  # files that were read, by what packed them
        self.members: Counter[str] = Counter()  # of archives, by suffix, that were not read
        self.occurs: list[int] = []  # how often the separator does, for each text file
        self.lost: dict[str, tuple[int, str, str]] = {}  # bad documents with a medium by kind: number, first id, reason

    def use(self, path: Path | str) -> None:
        self.used.add(hash(str(path)))

    def lose(self, kind: str, id: str, why: str) -> None:
        number, *first = self.lost.get(kind, (0, id, why))
        self.lost[kind] = (number + 1, *first)


def inside(folder: str | None, name: str) -> Path:
    """The regular file that a document names, which must lie in the real path `folder`.

    A link may lead into it, and in a snapshot folder of Hugging Face's cache into the blobs of the same repository.
    """
    path = PurePosixPath(name)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        raise ValueError(f"path {short(name)}: an address, and only files are read; download it, and name the file")
    if folder is None or not name or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"path {short(name)}; only paths inside the input's own folder are allowed, without '..'")
    try:
        target = os.path.realpath(os.path.join(folder, name), strict=True)
        regular = stat.S_ISREG(os.stat(target).st_mode)
    except (OSError, ValueError) as error:
        raise ValueError(f"path {short(name)}: {getattr(error, 'strerror', None) or error}") from None
    if os.path.commonpath([folder, target]) != folder and os.path.dirname(target) != _blobs(folder):
        raise ValueError(f"path {short(name)}: a link that leaves the input's folder; copy the file into it")
    if not regular:  # a pipe or device may never end
        raise ValueError(f"path {short(name)}: no regular file; only such can be read")
    return Path(target)


def _blobs(folder: str) -> str:
    """The folder that links may lead to from a snapshot `datasets--OWNER--NAME/snapshots/REVISION/...`; else ""."""
    parts = Path(folder).parts
    for i in range(len(parts) - 2):
        if _REPOSITORY.fullmatch(parts[i]) and parts[i + 1] == "snapshots":
            return os.path.join(*parts[: i + 1], "blobs")
    return ""


def short(value: Any) -> str:
    """A value as JSON or a table holds it, in at most 80 characters."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, str | bytes | bool | int | float | list | tuple | dict):
        value = str(value)  # a date, a decimal, ...
    shown = "null" if value is None else ascii(value)
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


def find(
    inputs: Sequence[Path], suffixes: tuple[str, ...], notes: Notes, wanted: Callable[[Path], bool] | None = None
) -> list[File]:
    """The files among `inputs`, and those in its folders that have one of these suffixes and are `wanted`."""
    files, faults = [], {}
    for path in inputs:
        if path.is_dir():
            names = [here / name for here, names in walk(path) for name in names if name.lower().endswith(suffixes)]
            faults |= {file: why for file in names if (why := fault(path, file))}
            names = [file for file in names if wanted is None or file in faults or wanted(file)]
            if not names:
                plain = " or ".join(name for name in suffixes if not name.endswith(compressed.SUFFIXES))
                raise UserError(f"{path}: no {plain} file in it; name another input or another format")
            files += names
        else:
            files.append(path)
    if len(set(files)) < len(files):
        twice = next(file for i, file in enumerate(files) if file in files[:i])
        raise UserError(f"{twice}: given twice; name it once")
    for file in files:
        notes.use(os.path.realpath(file))
        if file not in faults and (how := compressed.packing(file)):
            notes.packed[how] += 1
    root = common(inputs)
    labels = [label(file, root) for file in files]
    sides = by_name(labels)
    return [File(f, name, faults.get(f, ""), side) for f, name, side in zip(files, labels, sides, strict=True)]


def by_name(labels: Sequence[str]) -> list[bool | None]:
    """Is a file held out, as its name or its folder's says? None unless the names give both splits."""
    sides = [_side(name) for name in labels]
    return sides if {True, False} <= set(sides) else [None] * len(sides)


def _side(name: str) -> bool | None:
    *folders, file = PurePosixPath(name).parts
    for part in (*folders, file.partition(".")[0]):
        try:
            return held_out(part)
        except ValueError:
            continue
    return None


def held_out(split: Any) -> bool | None:
    """Is a document of this split held out? None where it says nothing; raises `ValueError` for an unknown one."""
    if split is None:
        return None
    if isinstance(split, np.generic):  # of an .npz
        split = split.item()
    if isinstance(split, bytes):
        split = split.decode(errors="replace")
    if isinstance(split, int) and split in SPLITS:
        return SPLITS[split]
    if isinstance(split, str):
        name = split.strip().lower()
        numbered = _NUMBERED.fullmatch(name)
        for known in (name, numbered[1] if numbered else ""):
            if known in SPLITS:
                return SPLITS[known]
    raise ValueError(f"split {short(split)}; {', '.join(map(str, SPLITS))} are allowed")


def common(inputs: Sequence[Path]) -> str:
    """The folder that labels are relative to, of absolute paths."""
    return os.path.commonpath([path if path.is_dir() else path.parent for path in inputs])


def label(file: Path, root: str) -> str:
    """Its path below `root`; readable also where a name is not UTF-8."""
    return printable(os.path.relpath(file, root))


# Control codes and half characters. Unicode adds none to these, whereas `str.isprintable` changes.
COMMANDS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(name: str) -> str:
    return COMMANDS.sub(lambda found: ascii(found[0])[1:-1], name)


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and their files in a fixed order, nothing hidden; links to folders are not followed."""

    def fail(error):
        raise UserError(f"{error.filename}: {error.strerror}; make it readable, or leave it out of the input")

    for here, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(here), sorted(name for name in names if not name.startswith("."))


def linked_folders(folder: Path) -> int:
    return sum(os.path.islink(os.path.join(here, name)) for here, names in _folders(folder) for name in names)


def _folders(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for here, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield here, folders


def suffix(name: str) -> str:
    """ ".txt", ".tar.gz"; "" where there is none."""
    path = PurePosixPath(name.lower())
    two = path.suffixes[-2:]
    return "".join(two) if path.suffix in compressed.SUFFIXES and len(two) == 2 else path.suffix


def unread(inputs: Iterable[Path], notes: Notes) -> dict[str, int]:
    """How many files and members of archives became part of no document, by suffix."""
    found: Counter[str] = Counter()
    for path in inputs:
        if not path.is_dir():
            continue
        if links := linked_folders(path):
            found["linked folders"] += links
        for here, names in walk(path):
            real = os.path.realpath(here)
            for name in names:
                file = os.path.join(real, name)
                link = os.path.islink(file)
                if link and (why := fault(path, here / name)):
                    found["links that leave the folder" if "a link that leaves" in why else "links to nothing"] += 1
                elif hash(os.path.realpath(file) if link else file) not in notes.used:
                    found[printable(suffix(name)) or "without a suffix"] += 1
    found.update({f"{printable(ending) or 'without a suffix'} in archives": n for ending, n in notes.members.items()})
    return dict(sorted(found.items()))


def warnings(notes: Notes, not_read: dict[str, int], separator: str, present: Sequence[str]) -> list[str]:
    """Warnings where the dataset may be poorer than its inputs."""
    lines = []
    for kind, (number, id, why) in notes.lost.items():
        if kind not in present:
            lines.append(
                f"no {kind} is in the dataset: all {number:,} documents that have one were left out, the first {id}: "
                f"{why}"
            )
    if media := {what: n for what, n in not_read.items() if _may_be_media(what.split(" ")[0])}:
        lines.append(f"media, or what may hold them, were seen and not read: {listed(media)}")
    if separator and notes.occurs and not all(notes.occurs):
        lacking = notes.occurs.count(0)
        files = len(notes.occurs)
        where = "in none of" if lacking == files else f"{sum(notes.occurs):,} times, but not in {lacking:,} of"
        lines.append(
            f"separator {separator!r} occurs {where} the {files:,} text files; a file without it is one document, or "
            "several where it is long"
        )
    return lines


def _may_be_media(what: str) -> bool:
    return what in (*OTHER_MEDIA, "links", "linked") or kind_of("x" + what)[0] not in ("", TEXT)


def listed(not_read: dict[str, int]) -> str:
    """ "12 .mp4, 3 .pdf"."""
    return ", ".join(f"{n:,} {ONE.get(what, what) if n == 1 else what}" for what, n in not_read.items())
