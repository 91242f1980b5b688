"""Decompressed files: gzip, Zstandard, bzip2 and xz, recognised by their first bytes."""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mot.errors import reason

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
MEMORY = 256 * 2**20  # bytes that an xz file may ask its reader to hold


class DamagedInput(ValueError):
    """A compressed file that is cut off or corrupt."""


class _Unpacked(io.RawIOBase):
    """Whatever the library's own error for a damaged file is, it becomes `DamagedInput`.

    `read` gives some of the next bytes; what comes before the damage is given before it fails.
    """

    def __init__(self, read: Callable[[int], bytes]):
        self.some = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            data = self.some(len(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError, MemoryError) as error:
            if getattr(error, "errno", None):  # the system's, not the file's
                raise
            raise DamagedInput(f"it is damaged or cut off: {reason(error)}") from None
        buffer[: len(data)] = data
        return len(data)


def packing(path: Path) -> str:
    """gzip, Zstandard, bzip2 or xz; "" for a file that is none of them."""
    with open(path, "rb") as file:
        start = file.read(10)
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    # Zstandard's second mark begins a frame that is skipped, as pzstd writes one first.
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[1:4] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F):
        return "Zstandard"
    if start.startswith(b"BZh") and start[4:] == b"1AY&SY":
        return "bzip2"
    return "xz" if start.startswith(b"\xfd7zXZ\0") else ""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file's bytes, unpacked as they are read, and whether they were packed: if so, they cannot be sought in.

    Reading raises `DamagedInput` where the packed bytes are not what they should be. Packed files that follow
    each other in one file are read as one.
    """
    form = packing(path)
    with open(path, "rb") as file:
        if form == "gzip":
            stream = gzip.GzipFile(fileobj=file)
            read = stream.read1
        elif form == "Zstandard":
            import pyarrow  # takes 0.2 s, which other files need not wait for

            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
            read = _a_little(stream)
        elif form == "bzip2":
            stream = bz2.BZ2File(file)
            read = stream.read1
        elif form == "xz":
            stream = contextlib.nullcontext()
            read = _Xz(file).read
        else:
            yield file, False
            return
        with stream:
            yield io.BufferedReader(_Unpacked(read), 2**18), True


def _a_little(stream) -> Callable[[int], bytes]:
    """Reads little at a time: of a damaged stretch this library loses all that it was asked for."""

    def read(size: int) -> bytes:
        return stream.read(min(size, 2**12))

    return read


class _Xz:
    """What `lzma.LZMAFile` does, but for its memory, which a file may set to 4 GiB."""

    def __init__(self, file):
        self.file, self.inner = file, None

    def read(self, size: int) -> bytes:
        while True:
            if self.inner is None or self.inner.eof:
                packed = self.inner.unused_data if self.inner else b""
                packed = (packed or self.file.read(2**16)).lstrip(b"\0")  # padding between streams
                if not packed:
                    return b""
                self.inner = lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY)
            else:
                packed = self.file.read(2**16) if self.inner.needs_input else b""
                if not packed and self.inner.needs_input:
                    raise EOFError("it ends before its end mark")
            if found := self.inner.decompress(packed, size):
                return found
