"""Runs that are really killed, in processes of their own (one row of the project's table of faults)."""

import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mot import checkpoint
from mot.runs import rundir
from tests.conftest import ROOT
from tests.support.commands import succeeds
from tests.support.devices import devices
from tests.support.examples import CLOCK
from tests.support.training import ENV, restored

STEPS, EVERY = 24, 4


def arguments(root):
    values = {"root": root, "steps": STEPS, "save_every": EVERY, "eval_every": EVERY, "eval_batches": 1, "keep": 20}
    config = f"--config={ROOT}/configs/digits.py:arch=mot,size=smoke"
    return ["train", config, *(f"--config.run.{key}={value}" for key, value in values.items())]


# On one of as many devices as this process has: XLA adds up by how many there are.
RUN = """
import sys
from launch import cli
from tests.support.devices import devices

with devices(1):
    sys.exit(cli.main(sys.argv[1:]))
"""


def start(root):
    command = [sys.executable, "-c", RUN, *arguments(root)]
    env = ENV | {"JAX_NUM_CPU_DEVICES": str(len(jax.local_devices()))}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(root):
    """The same command to its end, in this process."""
    with devices(1):
        succeeds(*arguments(root))
    return root / "digits-mot-smoke"


def results(path):
    rows = [row for row in rundir.read_metrics(path) if row["kind"] != "event"]
    return restored(path, STEPS), [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return results(finish(tmp_path_factory.mktemp("whole")))


def trial(root, seed, uninterrupted):
    """SIGKILL once a random row is written, at a random moment after it: perhaps in the middle of a save."""
    rng = random.Random(seed)
    process, path, wanted = start(root), root / "digits-mot-smoke", rng.randrange(EVERY + 2, STEPS)
    for _ in range(30_000):  # a busy machine takes minutes to start
        if (path / "metrics.jsonl").exists() and f'"train", "step": {wanted},' in (path / "metrics.jsonl").read_text(
            encoding="utf-8"
        ):
            break
        time.sleep(0.01)
    time.sleep(rng.random() * 0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = checkpoint.steps(path / "checkpoints")
    assert before, "no checkpoint although one was due"
    assert before[-1] >= wanted - 2 * EVERY
    for step in before:
        checkpoint.verify(path / "checkpoints" / str(step))
    arrays, rows = results(finish(root))
    jax.tree.map(np.testing.assert_array_equal, arrays, uninterrupted[0])
    assert rows == uninterrupted[1]


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, uninterrupted):
    trial(tmp_path, 0, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_twenty_killed_runs_resume_to_the_same_bytes(tmp_path, seed, uninterrupted):
    trial(tmp_path, seed, uninterrupted)
