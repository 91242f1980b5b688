"""This machine: a process apart from the terminal, which outlives it."""

import os
import signal
import subprocess
from contextlib import suppress
from typing import Any

from launch.targets import job
from launch.targets.job import Job, Target
from launch.targets.render import render

SCRIPT, LOG, EXIT = "run.sh", "log.txt", "exit"


def files(j: Job) -> dict[str, str]:
    return {SCRIPT: render("local.sh", name=j.name, folder=str(j.folder), command=[*job.MOT, *j.command])}


def command(j: Job) -> list[str]:
    return ["bash", str(j.folder / SCRIPT)]


def submit(j: Job) -> dict[str, Any]:
    (j.folder / EXIT).unlink(missing_ok=True)
    with (j.folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            command(j),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return {"process": process.pid}


def is_alive(j: Job) -> bool:
    """Of two processes that had the same number, the later is not ours: its command line names another script."""
    try:
        with open(f"/proc/{j.facts['process']}/cmdline", "rb") as file:
            return os.fsencode(j.folder / SCRIPT) in file.read().split(b"\0")
    except (OSError, KeyError):
        return False


def status(j: Job) -> str:
    if is_alive(j):
        return f"running as process {j.facts['process']}"
    with suppress(OSError):
        code = (j.folder / EXIT).read_text(encoding="utf-8").strip()
        return {"0": "ended", str(job.STOPPED): "stopped, its state saved"}.get(code, f"failed with exit code {code}")
    return "killed, or this machine was started anew; the same command goes on"


def logs(j: Job, follow: bool) -> list[str]:
    return ["tail", "-n", "+1", *["-F"] * follow, str(j.folder / LOG)]


def stop(j: Job) -> str:
    if not is_alive(j):
        return f"it does not run: {status(j)}"
    with suppress(ProcessLookupError):
        os.killpg(j.facts["process"], signal.SIGTERM)
    return "asked to save and end"


TARGET = Target("", "", files, command, submit, status, logs, stop, is_alive=is_alive)
