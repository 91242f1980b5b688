"""A plan made by a process of its own: it gives its memory back, and a compiler that aborts does not take us along."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def plan(config: str, topology: str, overrides: dict[str, str], quick: bool) -> dict:
    """What `mot plan --out` writes; where it wrote nothing, `failed` are its last words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "mot", "plan", f"--config={config}", f"--topology={topology}", f"--out={path}"]
        command += [f"--config.{key}={value}" for key, value in overrides.items()] + ["--quick"] * quick
        env = os.environ | {"PYTHONIOENCODING": "utf-8"}  # and not the terminal's
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env=env, check=False)
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        return {"fits": False, "failed": last_words(done.stderr)}


def progress(console: Console) -> Progress:
    """A bar of what takes minutes a piece: how many are done, the time so far and left, what is at work."""
    times = TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(BarColumn(), MofNCompleteColumn(), *times, TextColumn("{task.description}"), console=console)


def last_words(said: str) -> str:
    """Our message, or what made the compiler abort, or else the last line."""
    lines = [line for line in said.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("mot: ")]
    fatal = [line.partition("] ")[2] for line in lines if re.match(r"F\d{4} ", line)]
    return [*ours, *fatal, *reversed(lines), "it ended without a word"][0][:500]
