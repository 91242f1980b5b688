"""One process at a time trains in a run's folder.

The kernel holds the lock (flock), and lets go of it when the process ends, however it ends. Where file systems do not
tell other machines of it, and in buckets, which have no locks, a sign of life that the holder gives does.
"""

import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mot.console import say_once
from mot.errors import UserError
from mot.files import is_bucket, modified
from mot.runs import provenance

SETTLES = 2.0  # seconds after which a process that began at the same moment has written, too
BEAT = 20.0  # seconds between signs of life
DEAD = 120.0  # seconds after the last one
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The folder of a run is this process's as long as this lasts; `UserError` where it is another's."""
    with (_in_bucket if is_bucket(path) else _in_folder)(path / "lock"):
        yield


@contextmanager
def _in_folder(file: Path) -> Iterator[None]:
    descriptor = _opened(file)
    try:
        _take(descriptor, file)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_me()).encode(), 0)
        try:
            with _beating(_give_signs, descriptor):
                yield
        finally:
            os.ftruncate(descriptor, 0)  # nobody has it; the file stays, as another process may be waiting at it
    finally:
        os.close(descriptor)


def _opened(file: Path) -> int:
    """The lock's descriptor; `UserError` where something else has its name: nothing of it is followed or emptied."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise UserError(f"{file} is in the way: a run has a file of this name, and this is none; move it away")


@contextmanager
def _beating(give_signs: Callable, *of: object) -> Iterator[None]:
    """A thread gives signs of life as long as this lasts: `give_signs(*of, over)`, until `over` is set."""
    over = threading.Event()
    beats = threading.Thread(target=give_signs, args=(*of, over), name="lock", daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()


@contextmanager
def _in_bucket(file: Path) -> Iterator[None]:
    """An object says who trains, and when it last gave a sign of life.

    Of two processes that find none and both write theirs, the last is read by both a moment later, and the other gives
    way; also later, if it was read too soon.
    """
    me = _me() | {"token": secrets.token_hex(8)}
    _refuse_living(file)
    _sign(file, me)
    time.sleep(SETTLES)
    holder = _read(file)
    if holder.get("token") != me["token"]:
        raise _refusal(file, holder)
    try:
        with _beating(_keep, file, me):
            yield
    finally:
        with suppress(Exception):  # what a bucket does not take counts as dead after a while
            file.unlink(missing_ok=True)


def holder(path: Path) -> dict:
    """Who trains in the folder of a run: its host, its process, since when; {} where nobody does.

    The lock is not touched, so nobody who begins at this moment is refused for it.
    """
    file = path / "lock"
    said = _read(file)
    if not said or (said.get("host") == socket.gethostname() and not _is_alive(said.get("process"))):
        return {}
    sign = said.get("sign")
    silent = time.time() - (sign if isinstance(sign, int | float) else modified(file))
    return said if silent < DEAD else {}


def _sign(file: Path, me: dict) -> None:
    file.write_bytes(json.dumps(me | {"sign": time.time()}).encode())


def _read(file: Path) -> dict:
    try:
        said = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _refuse_living(file: Path) -> None:
    holder = _read(file)
    if not holder:
        return
    if holder.get("host") == socket.gethostname() and not _is_alive(holder.get("process")):
        return
    sign = holder.get("sign")
    silent = time.time() - sign if isinstance(sign, int | float) else DEAD
    if silent < DEAD:
        raise _refusal(file, holder, _told(silent))


def _is_alive(process: object) -> bool:
    """Is it a process of this machine? What is no process's number never was."""
    if type(process) is not int or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _keep(file: Path, me: dict, over: threading.Event) -> None:
    """Gives signs of life; where another has taken the lock meanwhile, this process stops as by SIGTERM."""
    while not over.wait(BEAT):
        with suppress(Exception):  # a bucket that fails is told of by those who write to it
            holder = _read(file)
            if holder and holder.get("token") != me["token"]:
                say_once(f"{_refusal(file, holder)}; this process stops")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            _sign(file, me)


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
        raise _refusal(file, holder, _told(silent))


def _told(silent: float) -> str:
    """When the holder gave its last sign of life, so many seconds ago."""
    if silent < 0:
        return f"; by this machine's clock its sign of life comes {-silent:.0f} s from now"
    return f"; it gave a sign of life {silent:.0f} s ago, and counts as dead after {DEAD:.0f}"


def _holder(descriptor: int) -> dict:
    """What the lock says of who has it, or had it last; {} where it says nothing that can be read."""
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _refusal(file: Path, holder: dict, more: str = "") -> UserError:
    process, host, since = (_shown(holder.get(key, "?")) for key in ("process", "host", "since"))
    return UserError(
        f"{file.parent} is being trained by another process (process {process} on {host}, since {since}{more}); wait "
        f"for it, stop it, or choose another run.name; where you know that it is gone, remove {file}"
    )


def _shown(value: object) -> str:
    """What another process wrote, as a terminal may show it."""
    return "".join(character for character in str(value)[:60] if character.isprintable())


def _give_signs(descriptor: int, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with suppress(OSError):  # a disk that fails is told of by those who write to it
            os.utime(descriptor)
