"""Datasets at a remote address: copied once into the user's cache, and read from there."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import fsspec

from mot.data.manifest import files, read_json
from mot.errors import UserError
from mot.files import cache_folder, replacing, write_atomically


def refuse_unknown(path: Path, sources: Mapping[str, str], fetch: bool) -> None:
    """`UserError` where a run's config.json names addresses from which no command of this user's has read before.

    A run may come from anyone, and what it names is not fetched without the user's word: `fetch`.
    """
    unknown = [address for address in sources.values() if "://" in address and not _is_known(address)]
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
    return cache and cache / "datasets" / "addresses" / hashlib.sha256(address.encode()).hexdigest()


def local(address: str, whole: bool = True) -> Path:
    """The folder of a dataset: where it is, or copied from a remote address into the user's cache.

    ArrayRecord is read from files. A dataset that is too large to copy to every host is better mounted. Raises
    `UserError` where it cannot be had.
    """
    if "://" not in address:
        return Path(address)
    try:
        return _copied(address, whole)
    except UserError:
        raise
    except Exception as error:  # each protocol's library has errors of its own; without it, fsspec says what to install
        raise UserError(
            f"{address} cannot be read ({type(error).__name__}: {error}); see that it is written as fsspec knows it, "
            "and that the package for its protocol is installed; or copy the dataset to a folder and name that"
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
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "dataset.json", about)
    note = _note(address)
    note.parent.mkdir(exist_ok=True)
    write_atomically(note, address)
    if whole:
        for name, size, _ in files(read_json(folder)):
            path = folder / name
            if not (path.is_file() and path.stat().st_size == size):
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as partial:
                    remote.get_file(f"{root}/{name}", str(partial))
    return folder
