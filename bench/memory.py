"""Memory of the process that measures, of which later figures and other processes need theirs."""

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Gives free pages back to the kernel, which a heap as of `launch.process.MALLOC` keeps. Not but with glibc."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
