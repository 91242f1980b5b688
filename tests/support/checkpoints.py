"""A small step to save, what a save does to the file system, and what would be left of it at any moment."""

import errno
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

TREES = {"params": {"a": {"w": jnp.arange(6.0).reshape(2, 3)}}, "opt": {"count": jnp.int32(3)}}
LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), TREES)

_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink")
_watched: dict[str, Callable[[str], None]] = {}  # what is called before a file below this folder changes


ROOM = ("os.mkdir", "os.rename", "open")  # changes that a full disk refuses


def _hook(event: str, arguments: tuple) -> None:
    if not _watched or not (event in _CHANGES or (event == "open" and _writes(arguments))):
        return
    for folder, act in list(_watched.items()):
        if os.fspath(arguments[0]).startswith(folder):
            act(event)


def _writes(arguments: tuple) -> bool:
    path, _, flags = arguments
    return isinstance(path, str) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


sys.addaudithook(_hook)  # which cannot be taken away, and does nothing while nothing is watched


def full_from(first: int, number: int = errno.ENOSPC) -> Callable[[int, str], None]:
    """For `before_change`: nothing more is written from this change on, as on a disk that is full, or not ours."""

    def act(k: int, event: str) -> None:
        if k >= first and event in ROOM:
            raise OSError(number, os.strerror(number))

    return act


def same(trees: dict) -> None:
    """Asserts that these are TREES, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, trees, TREES)
    assert [x.dtype for x in jax.tree.leaves(trees)] == [x.dtype for x in jax.tree.leaves(TREES)]


@contextmanager
def before_change(folder: Path, act: Callable[[int, str], None]) -> Iterator[list[str]]:
    """Calls `act(k, event)` right before Python makes, opens, renames or removes the k-th file below `folder`.

    What tensorstore writes by itself lies between such moments. The list gets each event.
    """
    seen: list[str] = []
    lock = threading.RLock()

    def heard(event: str) -> None:
        with lock:
            seen.append(event)
            act(len(seen), event)

    _watched[str(folder)] = heard
    try:
        yield seen
    finally:
        del _watched[str(folder)]


def snapshot(folder: Path, to: Path) -> Path:
    """A copy of what lies there while others may write to it: what a process would leave that is killed now."""
    for root, _, names in os.walk(folder):
        there = to / Path(root).relative_to(folder)
        there.mkdir(parents=True, exist_ok=True)
        for name in names:
            try:
                shutil.copyfile(Path(root) / name, there / name)
            except FileNotFoundError:
                continue  # another thread has just renamed it
    return to
