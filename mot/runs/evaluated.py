"""What `mot evaluate --what` found of a run's steps, beyond its losses: a file for each step and kind.

Each is written whole, in place of an earlier one of the same step and kind, and nothing else of the run is touched: a
run may be evaluated while it trains.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mot.files import make_folder, write_atomically
from mot.runs import provenance
from mot.runs.rundir import SCHEMA

FOLDER = "evaluations"


def read(path: Path) -> tuple[list[dict], list[str]]:
    """What was found of a run, by step and kind; and what must be said of files that are damaged or foreign."""
    rows, notes = [], []
    for file in sorted((path / FOLDER).glob("*/*.json")):
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
            if not re.fullmatch(r"\d{1,18}", file.parent.name) or row["what"] != file.stem or row["schema"] != SCHEMA:
                raise ValueError("it is of another step, kind or version")
            if not all(type(figure["value"]) in (int, float, str) for figure in row["figures"].values()):
                raise ValueError("its figures have no values")
            rows.append(row | {"step": int(file.parent.name)})
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            notes.append(f"{file} is left out: it is damaged or foreign ({error!r:.80})")
    return sorted(rows, key=lambda row: row["step"]), notes


def write(path: Path, step: int, what: str, content: Mapping[str, Any]) -> Path:
    """Writes evaluations/STEP/WHAT.json; raises `OSError` where nothing can be written."""
    folder = path / FOLDER / str(step)
    make_folder(folder)
    file = folder / f"{what}.json"
    common = {"schema": SCHEMA, "step": step, "what": what, "time": provenance.now()}
    write_atomically(file, json.dumps(common | content, indent=1) + "\n")
    return file
