"""Paths of folders and of buckets, with what differs between them.

A path of a bucket is `etils.epath`'s, which has the methods of `pathlib.Path`. Its backend is gcsfs (the extra `gcs`).
"""

import contextlib
import importlib.util
import os
import re
import shutil
from pathlib import Path, PurePath

NUMBER = "0|[1-9][0-9]{0,17}"  # what a folder may be called that is numbered
GCS = "gs://"
# Libraries of buckets read * ? [ as patterns, and would find, or remove, what others have there.
ADDRESS = re.compile(r"gs://[a-z0-9][\w.-]+(/[^/*?\[\]#\\\x00-\x1f]+)*/?", re.ASCII)


def is_address(text: str) -> bool:
    return re.match(r"[A-Za-z][\w+.:-]*://", text) is not None  # of fsspec also a chain: simplecache::gs://b


def is_bucket(path: PurePath) -> bool:
    return str(path).startswith(GCS)


def fault_of(address: str) -> str:
    """Why an address of a bucket is none, in words; "" for one that is, and for what is no such address."""
    if not re.match("gs:/", address, re.IGNORECASE) or ADDRESS.fullmatch(address):
        return ""
    return f"{address!r}: must be gs://BUCKET/FOLDER, without any of * ? [ ] # and \\ in it; correct it"


def as_path(address: str | os.PathLike) -> Path:
    """The path of a folder or file of this machine, or of a bucket as gs://BUCKET/FOLDER.

    Raises `OSError` for an address that is none.
    """
    if fault := fault_of(str(address)):
        raise OSError(fault)
    if not str(address).startswith(GCS):
        return Path(address)
    if importlib.util.find_spec("gcsfs") is None:
        raise OSError(f"{address}: gcsfs is not installed, which reads and writes buckets; install mot's extra gcs")
    # One backend, whatever else is installed: with TensorFlow epath would choose another, with its own credentials.
    os.environ["EPATH_USE_TF"] = "false"
    import fsspec  # imported for buckets alone
    from etils import epath

    # What another process has written is seen at once.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(address)


def absolute(address: str) -> str:
    return address if is_address(address) else os.path.abspath(address)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, unless it is there. A bucket has none: to ask for one might make a bucket."""
    if not is_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def remove(folder: Path) -> None:
    """Removes a folder, as far as it can be removed."""
    if not is_bucket(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(Exception):  # each library of a bucket has errors of its own
        folder.rmtree(missing_ok=True)


def move(file: Path, target: Path) -> None:
    """Gives a file another name, whatever has it; in a bucket by copying it."""
    if is_bucket(file):
        target.write_bytes(file.read_bytes())
        file.unlink()
    else:
        os.replace(file, target)


def names_within(folder: Path) -> list[str]:
    """The names of all files in a folder and below it, relative to it, in order."""
    if not is_bucket(folder):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = []
    above = str(folder).removeprefix(GCS)
    for at, _, files in folder.walk():
        below = PurePath(str(at).removeprefix(GCS)).relative_to(above)
        names += [str(below / name) for name in files]
    return sorted(names)


def size(file: Path) -> int:
    """Bytes."""
    return file.stat().length if is_bucket(file) else file.stat().st_size


def modified(file: Path) -> float:
    """When it was written last, in seconds of the time that its file system or bucket has."""
    return file.stat().mtime if is_bucket(file) else file.stat().st_mtime


def touch(file: Path) -> None:
    """Makes a file, or gives it the present time."""
    if is_bucket(file):
        file.write_bytes(b"")
    else:
        file.touch()


def numbered(folder: Path, holding: str = "") -> list[int]:
    """The numbers by which folders in a folder are called, in order, of those alone that hold a file of this name.

    There are none where there is no such folder.
    """
    try:
        paths = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    paths = [path for path in paths if re.fullmatch(NUMBER, path.name) and path.is_dir()]
    return sorted(int(path.name) for path in paths if not holding or (path / holding).is_file())
