"""A sweep's folder, read back: `sweep.json`, which a sweep writes before any of its rows begins, and its runs.

It imports no JAX, so that a command line that names a sweep is answered at once.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mot.config import checks
from mot.errors import UserError
from mot.files import as_path
from mot.runs import written

FILE = "sweep.json"  # of a sweep's folder: its rows, written before any begins, and anew where rows are added
NAME = "run.name"


def parse(text: str) -> tuple[str, str, str]:
    """`FILE:NAME,arg` as the file, the name in it, and the argument."""
    file, _, rest = text.partition(":")
    name, _, arg = rest.partition(",")
    if not file or not name:
        raise UserError(f"{text}: must be FILE:NAME,arg, as configs/sweeps.py:archs,size=smoke; name a sweep of a file")
    return file, name, arg


def saved(out: Path) -> dict[str, Any]:
    """What a sweep wrote about itself: `sweep`, its FILE:NAME,arg, and its `rows`."""
    file = out / FILE
    if not file.exists():
        raise UserError(f"{out}: no sweep was begun there: it has no {FILE}; name the --out of a sweep")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = [row[NAME] for row in found["rows"]]
        if not isinstance(found["sweep"], str) or not rows or not all(re.fullmatch(checks.NAME, row) for row in rows):
            raise ValueError("its rows are no rows")
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UserError(
            f"{file} is damaged or foreign ({error!r}); move it away, and the sweep writes it anew"
        ) from error
    return found


def is_sweep(path: Path) -> bool:
    """Is it a folder that a sweep has begun, and no run's own?"""
    return path.is_dir() and (path / FILE).exists() and not (path / "config.json").exists()


def names(out: Path) -> list[str]:
    return [row[NAME] for row in saved(out)["rows"]]


def begun(out: Path) -> list[Path]:
    """The run directories of a sweep's folder that have begun: of its rows, or where it cannot be read, all."""
    try:
        folders = [out / name for name in names(out)]
    except UserError:
        folders = sorted(path for path in out.iterdir() if path.is_dir())
    return [folder for folder in folders if (folder / "config.json").exists()]


def named(patterns: Sequence[str | Path]) -> list[Path]:
    """The run directories that paths and globs name, as `written.named`; of a sweep's folder those that have begun.

    Raises `UserError` as it does, and for a sweep of which nothing has begun.
    """
    paths: list[str | Path] = []
    for pattern in patterns:
        if not is_sweep(folder := as_path(pattern)):
            paths.append(pattern)
        elif found := begun(folder):
            paths += found
        else:
            raise UserError(f"{folder}: none of this sweep's runs has begun; see `mot sweep status {folder}`")
    return written.named(paths)
