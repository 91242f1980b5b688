"""Runs that are really killed, in processes of their own, and what is left of them."""

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from launch import cli
from mot import checkpoint
from mot.runs import rundir
from tests.conftest import ROOT
from tests.support.commands import succeeds
from tests.support.devices import devices
from tests.support.examples import CLOCK
from tests.support.training import ENV, restored

STEPS, EVERY = 24, 4
NAME = "digits-mot-smoke"

# On one of as many devices as this process has: XLA adds up by how many there are.
RUN = """
import sys
from launch import cli
from tests.support.devices import devices

with devices(1):
    sys.exit(cli.main(sys.argv[1:]))
"""


def arguments(root: Path, steps: int = STEPS) -> list[str]:
    values = {"root": root, "steps": steps, "save_every": EVERY, "eval_every": EVERY, "eval_batches": 1, "keep": 20}
    config = f"--config={ROOT}/configs/digits.py:arch=mot,size=smoke"
    return ["train", config, *(f"--config.run.{key}={value}" for key, value in values.items())]


def start(root: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, *arguments(root)]
    env = ENV | os.environ | {"JAX_NUM_CPU_DEVICES": str(len(jax.local_devices()))}  # a bucket's address came later
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(root: Path, steps: int = STEPS) -> Path:
    """The same command to its end, in this process."""
    with devices(1):
        succeeds(*arguments(root, steps))
    return root / NAME


def results(path: Path, steps: int = STEPS) -> tuple[dict, list[dict]]:
    """The arrays of the last step, and the rows without what clocks say."""
    rows = [row for row in rundir.read_metrics(path) if row["kind"] != "event"]
    return restored(path, steps), [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def trial(root: Path, seed: int, whole: tuple[dict, list[dict]]) -> str:
    """SIGKILL once a random row is written, at a random moment after it: perhaps in the middle of a save.

    Returns what is wrong then: "" where the run resumes to the bytes of `whole`, at most one interval behind.
    """
    rng = random.Random(seed)
    process = start(root)
    wanted = rng.randrange(EVERY + 2, STEPS)
    file = root / NAME / "metrics.jsonl"
    for _ in range(30_000):  # a busy machine takes minutes to start
        if file.exists() and f'"train", "step": {wanted},' in file.read_text(encoding="utf-8"):
            break
        time.sleep(0.01)
    time.sleep(rng.random() * 0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    saved = checkpoint.steps(root / NAME / "checkpoints")
    if not saved or saved[-1] < wanted - 2 * EVERY:  # one interval, and the save that was under way
        return f"killed after step {wanted}, and its steps are {saved}"
    for step in saved:
        checkpoint.verify(root / NAME / "checkpoints" / str(step))
    return unlike(results(finish(root)), whole)


def unlike(found: tuple[dict, list[dict]], whole: tuple[dict, list[dict]]) -> str:
    """In what results differ from those of `whole`: "" where in no bit."""
    equal = jax.tree.map(np.array_equal, found[0], whole[0])
    if not all(jax.tree.leaves(equal)):
        return "other arrays than those of the run that nobody killed"
    return "" if found[1] == whole[1] else "other rows than those of the run that nobody killed"


def warm() -> multiprocessing.context.ForkServerContext:
    """Starts commands in processes that have imported everything, and have not used it yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.killed", "launch.train"])
    return context


def _command(*argv: str) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())
    with devices(1):
        sys.exit(cli.main([*argv]))


def kills(context: multiprocessing.context.ForkServerContext, root: Path, seed: int, steps: int) -> Iterator[int]:
    """Kills one run again and again, each time a few steps after it has resumed, until it ends.

    Of each kill, how many steps were logged after the newest one that was saved. All that are saved verify.
    """
    rng = random.Random(seed)
    folder = root / NAME / "checkpoints"
    while True:
        process = context.Process(target=_command, args=arguments(root, steps))
        process.start()
        wanted = reached(root / NAME) + rng.randrange(1, 2 * EVERY)
        while process.is_alive() and reached(root / NAME) < wanted:
            time.sleep(0.005)
        process.join(rng.random() * 0.3)
        if process.exitcode is not None:
            assert process.exitcode == 0, f"the command ended with {process.exitcode}"
            return
        process.kill()
        process.join()
        saved = checkpoint.steps(folder)
        for step in saved:
            checkpoint.verify(folder / str(step))
        yield reached(root / NAME) - max(saved, default=0)


def reached(path: Path) -> int:
    """The newest step of which a run has logged a row."""
    file = path / "metrics.jsonl"
    written = re.findall(r'"train", "step": (\d+),', file.read_text(encoding="utf-8")) if file.exists() else []
    return max(map(int, written), default=0)
