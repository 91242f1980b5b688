"""What probes have measured of a run: rows of probes.jsonl, and arrays in probes/STEP-WHAT.npz.

A row is an object with `step`, `what` and plain numbers by name. There is one for each step and kind: who measures one
again replaces it. Only who holds the run's lock writes.
"""

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mot.files import is_bucket, make_folder, read_appended, write_atomically
from mot.runs import provenance
from mot.runs.rundir import LONGEST, SCHEMA, line_of, row_of
from mot.runs.writer import as_json
from mot.runs.written import not_ours


class Found(NamedTuple):
    """What one kind of probe has measured."""

    numbers: dict[str, float]
    arrays: dict[str, np.ndarray]  # their names end in their axes


NOT_OURS = (ValueError, TypeError, KeyError, RecursionError)  # what `parsed` raises


def parsed(line: bytes) -> dict:
    """The row of a line of probes.jsonl; one of `NOT_OURS` where it is cut, damaged or foreign."""
    row = row_of(line)
    is_step = type(row["step"]) is int and 0 <= row["step"] < LONGEST
    if not is_step or not isinstance(row["what"], str) or row["schema"] != SCHEMA:
        raise ValueError(f"step {row['step']!r:.40}, what {row['what']!r:.40}, schema {row['schema']!r:.40}")
    return row


def read(path: Path) -> list[dict]:
    """The rows of a run's probes.jsonl, by step; none where there is no such file. `Damaged` where it is not ours."""
    file = path / "probes.jsonl"
    if not file.exists() and not is_bucket(file):
        return []
    rows = []
    try:
        for line in read_appended(file).splitlines():
            rows.append(parsed(line))
    except (OSError, *NOT_OURS) as error:
        not_ours(file, f"line {len(rows) + 1}: {error!r:.200}")
    return rows


def write(path: Path, step: int, found: Mapping[str, Found]) -> None:
    """Writes what probes have measured of a step, by kind, in place of what was there of these kinds."""
    make_folder(path / "probes")
    for what, (_, arrays) in found.items():
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        write_atomically(path / "probes" / f"{step}-{what}.npz", file.getvalue())
    common = {"schema": SCHEMA, "step": step, "time": provenance.now()}
    new = [
        common | {"what": what} | {name: as_json(x) for name, x in numbers.items()}
        for what, (numbers, _) in found.items()
    ]
    _keep(path, lambda row: row["step"] != step or row["what"] not in found, new)


def forget_after(path: Path, step: int) -> None:
    """Removes what was measured after the step from which a run goes on: it takes these steps once more."""
    if not any(row["step"] > step for row in read(path)):
        return
    _keep(path, lambda row: row["step"] <= step)
    for file in list((path / "probes").iterdir()) if (path / "probes").is_dir() else ():
        number = re.fullmatch(r"(\d{1,18})-\w+\.npz", file.name)
        if number and int(number[1]) > step:
            file.unlink()


def _keep(path: Path, is_kept: Callable[[dict], bool], new: list[dict] | None = None) -> None:
    rows = [row for row in read(path) if is_kept(row)] + (new or [])
    rows.sort(key=lambda row: row["step"])  # stable: kinds stay in their order
    write_atomically(path / "probes.jsonl", "".join(map(line_of, rows)))
