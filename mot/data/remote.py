"""Datasets at a remote address: copied once into the user's cache, and read from there.

The copies take `MOT_CACHE_GB` gigabytes at most (by default 200). Those that were used longest ago make room.
"""

import fcntl
import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import fsspec

from mot.data.manifest import files, read_json
from mot.errors import UserError
from mot.files import cache_folder, is_address, replacing, write_atomically

LIMIT = "MOT_CACHE_GB"
USED = "used"  # a copy's file: its time says when it was used last, and who uses it has a shared lock on it
_in_use: dict[Path, int] = {}  # descriptors of those that this process uses, until it ends


def refuse_unknown(path: Path, sources: Mapping[str, str], fetch: bool) -> None:
    """`UserError` where a run's config.json names addresses from which no command of this user's has read before.

    A run may come from anyone, and what it names is not fetched without the user's word: `fetch`.
    """
    unknown = [address for address in sources.values() if is_address(address) and not _is_known(address)]
    if unknown and not fetch:
        raise UserError(
            f"{path / 'config.json'} has its data at {', '.join(unknown)}, from where no command of yours has read "
            "before; nothing was fetched; where you trust it, say so with --fetch"
        )


def _is_known(address: str) -> bool:
    return (note := _note(address)) is not None and note.exists()


def _note(address: str) -> Path | None:
    """The file that says that this user has had an address read; None where there is no cache."""
    cache = cache_folder()
    return cache and cache / "addresses" / hashlib.sha256(address.encode()).hexdigest()


def local(address: str, whole: bool = True) -> Path:
    """The folder of a dataset: where it is, or copied from a remote address into the user's cache.

    ArrayRecord is read from files. A dataset that is too large to copy to every host is better mounted. Raises
    `UserError` where it cannot be had.
    """
    if not is_address(address):
        return Path(address)
    try:
        return _copied(address, whole)
    except UserError:
        raise
    except Exception as error:  # each protocol's library has errors of its own; without it, fsspec says what to install
        raise UserError(
            f"{address} cannot be read ({type(error).__name__}: {error}); see that it is written as fsspec knows it, "
            "and that the package for its protocol is installed (for gs:// the extra gcs); or copy the dataset to a "
            "folder and name that"
        ) from error


def _copied(address: str, whole: bool) -> Path:
    remote, root = fsspec.core.url_to_fs(address)
    try:
        about = remote.cat_file(f"{root}/dataset.json")
    except FileNotFoundError:
        raise UserError(f"{address} is no dataset: it has no dataset.json") from None
    if (cache := cache_folder()) is None:
        raise UserError(f"{address}: there is no folder to copy it to; set XDG_CACHE_HOME to one that can be written")
    folder = cache / "datasets" / hashlib.sha256(about).hexdigest()[:16]
    _use(folder)
    write_atomically(folder / "dataset.json", about)
    note = _note(address)
    note.parent.mkdir(exist_ok=True)
    write_atomically(note, address)
    if whole:
        absent = [(name, size) for name, size, _ in files(read_json(folder)) if not _is_copied(folder / name, size)]
        _make_room(address, folder, sum(size for _, size in absent))
        for name, _ in absent:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                remote.get_file(f"{root}/{name}", str(partial))
    return folder


def _is_copied(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _use(folder: Path) -> None:
    """This process uses a copy until it ends; nobody removes it meanwhile."""
    while folder not in _in_use:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / USED, os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_there(descriptor, folder / USED):
            _in_use[folder] = descriptor
        else:  # another process has just removed it
            os.close(descriptor)
    os.utime(_in_use[folder])


def _is_there(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _make_room(address: str, folder: Path, needed: int) -> None:
    """Removes copies, those that were used longest ago first, until so many more bytes are within the limit."""
    limit = _limit()
    copies = {copy: _size(copy) for copy in folder.parent.iterdir() if copy.is_dir()}
    over = sum(copies.values()) + needed - limit
    for copy in sorted(copies, key=_last_use):
        if over > 0 and _remove(copy):
            over -= copies[copy]
    if over > 0 and needed:
        raise UserError(
            f"{address}: its copy needs {needed / 1e9:.3g} GB more in {folder.parent}, where copies may take "
            f"{limit / 1e9:.3g} GB and {(limit + over - needed) / 1e9:.3g} GB are in use; set {LIMIT} to more, or "
            "mount the bucket and name a folder"
        )


def _limit() -> float:
    """Bytes."""
    said = os.environ.get(LIMIT, "200")
    try:
        limit = float(said)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise UserError(f"{LIMIT}={said!r}: must be a number above 0, of gigabytes; correct it, or unset it")
    return 1e9 * limit


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _last_use(copy: Path) -> float:
    used = copy / USED
    return used.stat().st_mtime if used.exists() else 0.0


def _remove(copy: Path) -> bool:
    """Removes a copy that no process uses; False where one does."""
    if copy in _in_use:
        return False
    descriptor = os.open(copy / USED, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(copy, ignore_errors=True)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
