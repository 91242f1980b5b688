"""What a user is told instead of a traceback."""

import re
import sys
from typing import NamedTuple


class UserError(ValueError):
    """Bad input: the message says what was given, what is allowed, what to change. Commands exit with 2."""


class Fault(NamedTuple):
    """One thing that is wrong with a configuration: where, and what is given, what is allowed, the remedy."""

    key: str  # dotted; several of one section with commas between
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"

    @property
    def section(self) -> str:
        return self.key.partition(".")[0]


HUNG = 76  # the exit code of a process that left what does not end


class Hung(UserError):
    """Something that this process waited for does not end: it must leave without waiting for its threads, with HUNG."""


class Damaged(UserError):
    """A file of a run directory that is not what was written."""


LONGEST = 500  # characters of one value that a message shows
# What is quoted, numbers in parentheses, and words.
_VALUE = re.compile(rf"""(?<!\w)'[^'\n]*'|(?<!\w)"[^"\n]*"|\([-+\d., ]+\)|\S{{{LONGEST},}}""")


def shortened(message: str) -> str:
    """A message that shows the first characters alone of a value that is very long."""
    return _VALUE.sub(lambda found: found[0] if len(found[0]) < LONGEST else f"{found[0][:77]}...", message)


_OBJECT = re.compile(r"(Error opening )?<[^<>]* at 0x[0-9a-fA-F]+>:?\s*")  # of Python, with its address


def reason(error: BaseException) -> str:
    """What a library's error says, in its words: the same every time, in one line of at most 200 characters."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start}"
    told = error.args[0] if len(error.args) > 1 and isinstance(error.args[0], str) else error
    told = getattr(error, "strerror", None) or str(told)
    if "set_int_max_str_digits" in told:
        return f"a number of more than {sys.get_int_max_str_digits():,} digits"
    told = next(iter(_OBJECT.sub("", told).strip().splitlines()), "")
    return told.rstrip(" :.")[:200] or "the library that reads it does not say why"
