"""One process at a time trains in a run's folder.

The kernel holds the lock (flock), and lets go of it when the process ends, however it ends. Where file systems do not
tell other machines of it, a sign of life that the holder gives does.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mot.errors import UserError
from mot.runs import provenance

BEAT = 20.0  # seconds between signs of life
DEAD = 120.0  # seconds after the last one
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The folder of a run is this process's as long as this lasts; `UserError` where it is another's."""
    file = path / "lock"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(descriptor, file)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_me()).encode(), 0)
        over = threading.Event()
        beats = threading.Thread(target=_give_signs, args=(descriptor, over), name="lock", daemon=True)
        beats.start()
        try:
            yield
        finally:
            over.set()
            beats.join()
            os.ftruncate(descriptor, 0)  # nobody has it; the file stays, as another process may be waiting at it
    finally:
        os.close(descriptor)


def _me() -> dict:
    return {"host": socket.gethostname(), "process": os.getpid(), "since": provenance.now()}


def _take(descriptor: int, file: Path) -> None:
    holder = _holder(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise _refusal(file, holder) from None
    # The kernel of another machine may not tell this one of its lock.
    silent = time.time() - os.fstat(descriptor).st_mtime
    if holder.get("host", socket.gethostname()) != socket.gethostname() and silent < DEAD:
        raise _refusal(
            file, holder, f"; it gave a sign of life {silent:.0f} s ago, and counts as dead after {DEAD:.0f}"
        )


def _holder(descriptor: int) -> dict:
    """What the lock says of who has it, or had it last; {} where it says nothing that can be read."""
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _refusal(file: Path, holder: dict, more: str = "") -> UserError:
    who = f"process {holder.get('process', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
    return UserError(
        f"{file.parent} is being trained by another process ({who}{more}); wait for it, stop it, or choose another "
        "run.name"
    )


def _give_signs(descriptor: int, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with suppress(OSError):  # a disk that fails is told of by those who write to it
            os.utime(descriptor)
