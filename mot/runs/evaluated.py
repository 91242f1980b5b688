"""What `mot evaluate --what` found of a run's steps, beyond its losses: a file for each step and kind.

Each is written whole, in place of an earlier one of the same step and kind, and nothing else of the run is touched: a
run may be evaluated while it trains.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mot.files import make_folder, write_atomically
from mot.runs import provenance
from mot.runs.rundir import SCHEMA

FOLDER = "evaluations"


def write(path: Path, step: int, what: str, content: Mapping[str, Any]) -> Path:
    """Writes evaluations/STEP/WHAT.json; raises `OSError` where nothing can be written."""
    folder = path / FOLDER / str(step)
    make_folder(folder)
    file = folder / f"{what}.json"
    common = {"schema": SCHEMA, "step": step, "what": what, "time": provenance.now()}
    write_atomically(file, json.dumps(common | content, indent=1) + "\n")
    return file
