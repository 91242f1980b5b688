"""Files that are whole or absent, and the folder of what can be made again."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

NUMBER = "0|[1-9][0-9]{0,17}"  # what a folder may be called that is numbered


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A name beside `file` to write to, which becomes `file` at the end.

    Nothing stays of what could not be written whole. An `OSError` names `file`, as that of a full disk does not.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")  # another process may be at it, too
    try:
        yield partial
        sync(partial)
        os.replace(partial, file)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename = str(file)
            error.filename2 = None
        raise


def sync(path: Path) -> None:
    """Waits until the disk has a file's content, or the names in a folder: a power cut may take what it has not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Appender:
    """Appends whole pieces to a file. A piece that the disk does not take whole is taken back, and waits for the next.

    So what lies in the file is always whole pieces in their order, and a disk that was full for a while costs none.
    """

    def __init__(self, file: Path):
        self.file = file.open("ab", buffering=0)
        self.length = self.file.tell()
        self.waiting: list[bytes] = []

    def append(self, piece: bytes) -> OSError | None:
        """Writes what waits, and then this; why the disk did not take it, or None."""
        self.waiting.append(piece)
        return self.write()

    def write(self) -> OSError | None:
        """Writes what waits; why the disk did not take it, or None."""
        try:
            while self.waiting:
                self._write_whole(self.waiting[0])
                del self.waiting[0]
        except OSError as error:
            return error
        return None

    def _write_whole(self, piece: bytes) -> None:
        try:
            if self.file.write(piece) != len(piece):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.file.fileno(), self.length)
            raise
        self.length += len(piece)

    def close(self) -> None:
        self.file.close()


def digest_of(content: Mapping) -> str:
    """SHA-256 of what JSON holds, but for its own `digest`."""
    said = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def write_atomically(file: Path, content: str | bytes) -> None:
    """Text is written as UTF-8."""
    with replacing(file) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def numbered(folder: Path, holding: str = "") -> list[int]:
    """The numbers by which folders in a folder are called, in order, of those alone that hold a file of this name.

    There are none where there is no such folder.
    """
    paths = list(folder.iterdir()) if folder.is_dir() else []
    paths = [path for path in paths if re.fullmatch(NUMBER, path.name) and path.is_dir()]
    return sorted(int(path.name) for path in paths if not holding or (path / holding).is_file())


def cache_folder() -> Path | None:
    """Where what can be made again is kept, ready to be written: `$XDG_CACHE_HOME/mot`, by default `~/.cache/mot`.

    Where that cannot be, as without a home, it is a folder of this user alone among the temporary files, and None where
    there is no such folder either.
    """
    usual = os.environ.get("XDG_CACHE_HOME") or _home_cache()
    if usual and _is_ready(folder := Path(usual) / "mot"):
        return folder
    return _temporary()


def _home_cache() -> str:
    """`~/.cache`; "" where there is no home: nobody wants one to be made."""
    home = os.path.expanduser("~")
    return os.path.join(home, ".cache") if os.path.isabs(home) and os.path.isdir(home) else ""


def _is_ready(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _temporary() -> Path | None:
    """Others may write beside it, and what lies in it is trusted: it must be this user's, and closed to others."""
    import tempfile  # takes as long to import as all of the above, and is seldom needed

    try:
        folder = Path(tempfile.gettempdir()) / f"mot-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    safe = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if safe and _is_ready(folder) else None
