"""FAULTS 14 and 17: a data worker that dies or hangs costs no step; of a run that is killed no worker stays."""

import multiprocessing
import os
import queue
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mot import checkpoint
from mot.data import pipeline
from mot.errors import HUNG
from tests.support import processes

STEPS = 40
SETTINGS = dict(run__steps=STEPS, run__save_every=STEPS, run__eval_every=STEPS, run__eval_batches=1)
WITH_WORKER = SETTINGS | dict(data__workers=1, data__timeout=20.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return processes.results(processes.train_here(tmp_path_factory.mktemp("whole"), 1, **SETTINGS), STEPS)


def worker_of(parent):
    """The id of the process that makes a run's batches."""
    for listed in Path(f"/proc/{parent.pid}/task").glob("*/children"):
        for child in map(int, listed.read_text(encoding="utf-8").split()):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    raise AssertionError("no worker")


def begun(root):
    """A run after its first steps, and its worker."""
    (process,) = processes.start(root, 1, **WITH_WORKER)
    processes.wait_for_step(process, processes.folder(root), 3)
    return process, worker_of(process)


def assert_goes_on_to(root, whole):
    arrays, rows = processes.results(processes.train_here(root, 1, **SETTINGS), STEPS)
    jax.tree.map(np.testing.assert_array_equal, arrays, whole[0])
    assert rows == whole[1]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "a data worker died"),
        pytest.param(signal.SIGSTOP, "no batch came in 20 s (data.timeout)", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_or_hangs_ends_the_run_saved(tmp_path, whole, number, told):
    process, worker = begun(tmp_path)
    os.kill(worker, number)
    (code,), (said,) = processes.ended([process])
    assert code == HUNG, said
    assert told in said
    assert "most recent call first" in said
    (saved,) = processes.saved(tmp_path)
    assert 3 <= saved < STEPS
    checkpoint.verify(processes.folder(tmp_path) / "checkpoints" / str(saved))
    assert not is_there(worker)
    assert_goes_on_to(tmp_path, whole)


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_that_had_started_at_once_is_known_when_it_dies():
    """Of a death amid a message grain says nothing: its reader waits for the rest."""
    others = {child.pid for child in multiprocessing.active_children()}
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    worker.start()
    ready = queue.Queue()
    ready.put("the first batch, for which nobody had to wait")
    known = {}
    assert pipeline._next(ready, 60.0, pipeline.nothing, known, others)[1] == ""
    worker.kill()
    worker.join()
    assert pipeline._next(ready, 5.0, pipeline.nothing, known, others) == (None, "a data worker died (exit code -9)")


def test_a_killed_runs_folder_is_free_and_its_worker_ends(tmp_path, whole):
    process, worker = begun(tmp_path)
    os.kill(worker, signal.SIGSTOP)  # it lives on, as the next command begins
    process.kill()
    process.wait()
    process.stderr.close()  # of which the worker has the other end
    assert is_there(worker)
    assert_goes_on_to(tmp_path, whole)
    os.kill(worker, signal.SIGCONT)
    for _ in range(200):
        if not is_there(worker):
            break
        time.sleep(0.05)
    still = is_there(worker)
    if still:
        os.kill(worker, signal.SIGKILL)
    assert not still
