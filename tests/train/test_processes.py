"""FAULTS 2 and 15 among several processes: one that is asked to stop, dies or hangs never leaves the others waiting."""

import re
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest

from mot import checkpoint
from mot.errors import HUNG
from mot.runs import rundir
from mot.train import loop
from tests.conftest import ROOT
from tests.support.examples import CLOCK
from tests.support.training import ENV, TRAIN, restored, smoke

STEPS = 40
SETTINGS = dict(run__steps=STEPS, run__save_every=2, run__eval_every=STEPS, run__eval_batches=1, mesh__fsdp=2)
NAME = "digits-mot-smoke"


def start(root):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {key.replace("__", "."): value for key, value in SETTINGS.items()} | {"run.peer_timeout": 20}
    command = [*TRAIN, f"--config.run.root={root}", *(f"--config.{key}={value}" for key, value in values.items())]
    env = ENV | {"JAX_NUM_CPU_DEVICES": "1"}
    return [
        subprocess.Popen(
            [*command, f"--distributed=127.0.0.1:{port},{i},2"], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]


def wait_for_step(root, after):
    file = root / NAME / "metrics.jsonl"
    for _ in range(3000):
        rows = file.read_text(encoding="utf-8") if file.exists() else ""
        steps = [int(n) for n in re.findall(r'"kind": "train", "step": (\d+)', rows)]
        if steps and max(steps) > after:
            return
        time.sleep(0.05)
    raise AssertionError(f"no step after {after} in time")


def newest(root):
    return max(checkpoint.steps(root / NAME / "checkpoints"), default=0)


def interrupted(root, number, victim):
    """Starts two processes, sends one of them a signal in the middle; their exit codes and what the other one said."""
    after = newest(root)
    processes = start(root)
    try:
        wait_for_step(root, after + 1)
        processes[victim].send_signal(number)
        said = processes[1 - victim].communicate(timeout=120)[1]
    finally:
        if number != signal.SIGTERM:
            processes[victim].kill()
        codes = [process.wait(timeout=120) for process in processes]
        processes[victim].communicate()
    return codes, said


def finish(root):
    """By one process that has two devices."""
    return loop.run(smoke(root, **SETTINGS), devices=jax.devices()[:2])


def results(path):
    rows = [row for row in rundir.read_metrics(path) if row["kind"] != "event"]
    return restored(path, STEPS), [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return results(finish(tmp_path_factory.mktemp("whole")))


def assert_whole(root, whole):
    arrays, rows = results(finish(root))
    jax.tree.map(np.testing.assert_array_equal, arrays, whole[0])
    assert rows == whole[1]


def test_one_that_is_asked_stops_all_at_one_step_and_one_that_dies_is_told_of(tmp_path, whole):
    codes, said = interrupted(tmp_path, signal.SIGTERM, 1)
    assert codes == [75, 75], said
    assert f"stopped at step {newest(tmp_path)}, saved; the same command resumes" in said
    codes, said = interrupted(tmp_path, signal.SIGKILL, 1)
    assert codes[0] == HUNG, said
    assert "mot: another process of this run has ended or is out of reach; start all of them again" in said
    assert_whole(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_hangs_ends_the_other_within_the_time_out(tmp_path, whole, victim):
    began = time.monotonic()
    codes, said = interrupted(tmp_path, signal.SIGSTOP, victim)
    assert codes[1 - victim] == HUNG, said
    assert f"process {victim} of this run has given no sign of life for" in said
    assert time.monotonic() - began < 150
    assert_whole(tmp_path, whole)
