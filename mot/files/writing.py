"""Files that are whole or absent, and files to which whole pieces are appended."""

import contextlib
import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mot.files.paths import is_bucket, make_folder, remove

EVERY = 30.0  # seconds between two parts of a file in a bucket


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


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write to, which becomes `out` at the end, in place of an empty one.

    Nothing stays of what could not be written whole.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    make_folder(partial)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        os.rename(partial, out)
    except BaseException:
        remove(partial)
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


class Parts:
    """Appends as `Appender` does to a file in a bucket, where nothing is appended: as files beside it, FILE.000001, ...

    A thread writes a part every `EVERY` seconds, and `write` the rest. Who appends has read the parts that lie there,
    and has written the file anew with what they hold, so they go.
    """

    def __init__(self, file: Path):
        self.file = file
        self.waiting: list[bytes] = []
        self.written = 0  # parts
        self.last = time.monotonic()
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="parts")
        self.running: Future | None = None
        self.given = 0  # pieces, to the thread
        self.error: OSError | None = None
        for part in _parts(file):
            part.unlink(missing_ok=True)

    def append(self, piece: bytes) -> OSError | None:
        """Takes a piece; why the bucket did not take the part before, or None."""
        self.waiting.append(piece)
        if self.running and self.running.done():
            self._finish()
        if self.running is None and time.monotonic() - self.last >= EVERY:
            self._begin()
        return self.error

    def write(self) -> OSError | None:
        """Writes what waits; why the bucket did not take it, or None."""
        if self.running:
            self._finish()
        if self.waiting:
            self._begin()
            self._finish()
        return self.error

    def _begin(self) -> None:
        self.last = time.monotonic()
        self.given = len(self.waiting)
        part = self.file.with_name(f"{self.file.name}.{self.written + 1:06}")
        self.running = self.pool.submit(_put, part, b"".join(self.waiting))

    def _finish(self) -> None:
        self.error = self.running.result()
        self.running = None
        if self.error is None:
            self.written += 1
            del self.waiting[: self.given]

    def close(self) -> None:
        self.write()
        self.pool.shutdown()


def _put(file: Path, content: bytes) -> OSError | None:
    try:
        file.write_bytes(content)
    except Exception as error:  # each library of a bucket has errors of its own
        return OSError(errno.EIO, f"{type(error).__name__}: {error}", str(file))
    return None


def _parts(file: Path) -> list[Path]:
    beside = file.parent.iterdir() if file.parent.is_dir() else ()
    return sorted(path for path in beside if re.fullmatch(re.escape(file.name) + r"\.\d{6,}", path.name))


def appender(file: Path) -> Appender | Parts:
    return Parts(file) if is_bucket(file) else Appender(file)


def read_appended(file: Path) -> bytes:
    """What was appended to a file of lines. One that a part shares with the file was written anew, and counts once."""
    if is_bucket(file):
        content = file.read_bytes() if file.is_file() else b""
        known = set(content.splitlines())
        lines = [line for part in _parts(file) for line in part.read_bytes().splitlines()]
        return content + b"".join(line + b"\n" for line in lines if line not in known)
    return file.read_bytes()


def digest_of(content: Mapping) -> str:
    """SHA-256 of what JSON holds, but for its own `digest`."""
    said = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def write_atomically(file: Path, content: str | bytes) -> None:
    """Text is written as UTF-8."""
    if is_bucket(file):  # where an object is whole or absent
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return
    with replacing(file) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
