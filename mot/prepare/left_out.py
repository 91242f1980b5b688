"""Documents and media that are not in a dataset, and the file that lists them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mot.files import write_atomically

NAME = "left_out.jsonl"


class Bad(NamedTuple):
    """A document that was left out, or one of its media."""

    id: str
    why: str
    medium: str = ""  # the modality of what is missing; "" = the document itself


def write(file: Path, left_out: Sequence[Bad]) -> None:
    lines = [{"id": bad.id, "why": bad.why} | ({"medium": bad.medium} if bad.medium else {}) for bad in left_out]
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))


def first_of(left_out: Sequence[Bad], file: Path) -> str:
    """The end of a message that counts bad documents: which are the first, and that `file` lists all."""
    if not left_out:
        return ""
    first = [f"{bad.id}: {bad.why}" for bad in left_out[:3]]
    return "\n  ".join([f"; {file} lists what is bad, the first:", *first])
