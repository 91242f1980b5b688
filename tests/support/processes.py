"""Runs of several real processes on this machine, each with a device of its own, and what is left of them."""

import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from mot import checkpoint
from mot.checkpoint import arrays, manifest
from mot.runs import rundir
from mot.train import loop
from tests.conftest import ROOT
from tests.support.examples import CLOCK
from tests.support.training import ENV, smoke

PATIENCE = 150.0  # seconds: a busy machine takes minutes to start


# One alone takes its devices of as many as this process has: XLA adds up by how many there are.
RUN = """
import contextlib, sys
from launch import cli
from tests.support.devices import devices

if __name__ == "__main__":
    with devices({alone}) if {alone} else contextlib.nullcontext():
        sys.exit(cli.main(sys.argv[1:]))
"""


def start(root: Path, count: int, arch: str = "mot", devices: int = 1, script: str = "", **settings) -> list:
    """The processes of one run, with so many devices each. Each first runs the Python `script`: `me` is its number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = count == 1
    command = ["train", f"--config={ROOT}/configs/digits.py:arch={arch},size=smoke", f"--config.run.root={root}"]
    command += [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
    env = ENV | {"JAX_NUM_CPU_DEVICES": str(len(jax.local_devices()) if alone else devices)}
    started = []
    for i in range(count):
        code = f"me = {i}\n{script}\n{RUN.format(alone=devices if alone else 0)}"
        joined = [] if alone else [f"--distributed=127.0.0.1:{port},{i},{count}"]
        whole = [sys.executable, "-c", code, *command, *joined]
        quiet = subprocess.DEVNULL
        started.append(subprocess.Popen(whole, cwd=ROOT, env=env, stdout=quiet, stderr=subprocess.PIPE, text=True))
    return started


def ended(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit codes, and what each said; none is left behind."""
    try:
        with ThreadPoolExecutor(len(processes)) as threads:  # a pipe that nobody reads stops who writes to it
            said = [both[1] for both in threads.map(lambda process: process.communicate(timeout=PATIENCE), processes)]
    finally:
        for process in processes:
            process.kill()
    return [process.wait() for process in processes], said


def train(root: Path, count: int, arch: str = "mot", devices: int = 1, **settings) -> Path:
    """Trains by so many processes to the end; the run's folder."""
    codes, said = ended(start(root, count, arch, devices, **settings))
    assert codes == [0] * count, "\n".join(said)
    return folder(root, arch)


def train_here(root: Path, devices: int, arch: str = "mot", until: int | None = None, **settings) -> Path:
    """The same by this process alone, on so many of its devices."""
    return loop.run(smoke(root, arch, **settings), until, jax.devices()[:devices])


def folder(root: Path, arch: str = "mot") -> Path:
    return root / f"digits-{arch}-smoke"


def saved(root: Path, arch: str = "mot") -> list[int]:
    return checkpoint.steps(folder(root, arch) / "checkpoints")


def wait_for(process: subprocess.Popen, found) -> None:
    """Until `found()`; an error where the process ends, or time is up, before."""
    end = time.monotonic() + PATIENCE
    while not found():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_for_step(process: subprocess.Popen, path: Path, step: int) -> None:
    """Until a row of this step or of a later one is written."""

    def is_written() -> bool:
        file = path / "metrics.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return any(int(n) >= step for n in re.findall(r'"kind": "train", "step": (\d+)', text))

    wait_for(process, is_written)


def results(path: Path, step: int) -> tuple[dict, list[dict]]:
    """The arrays of a step, and all rows without what clocks say."""
    rows = [row for row in rundir.read_metrics(path) if row["kind"] != "event"]
    target = path / "checkpoints" / str(step)
    saved = {name: arrays.read(target, name) for name in manifest.read(target)["arrays"]}
    return saved, [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
