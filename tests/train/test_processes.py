"""FAULTS 2, 6 and 15 among several real processes on this machine: they train as one, stop as one, and none waits for
ever for another that dies or hangs."""

import re
import signal
import socket
import time

import jax
import numpy as np
import pytest

from mot import checkpoint
from mot.errors import HUNG
from tests.support import processes

STEPS = 40
SETTINGS = dict(run__steps=STEPS, run__save_every=2, run__eval_every=STEPS, run__eval_batches=1, mesh__fsdp=2)
FEW = dict(run__steps=2, run__save_every=2, run__eval_every=2, run__eval_batches=1, data__batch=4, run__check_every=1)


# --- the same figures ------------------------------------------------------------------------------------------------


def assert_near(found, expected, tolerance=1e-5):
    """Of each array the greatest difference over its greatest number, and each figure of each row."""
    assert found[0].keys() == expected[0].keys()
    for name, x in expected[0].items():
        error = np.abs(found[0][name].astype(np.float64) - x).max()
        assert error <= tolerance * max(np.abs(x).max(), 1e-30), name
    assert len(found[1]) == len(expected[1])
    for row, other in zip(found[1], expected[1], strict=True):
        assert row.keys() == other.keys()
        for key, value in other.items():
            assert row[key] == (pytest.approx(value, rel=tolerance) if isinstance(value, float) else value), key


@pytest.mark.parametrize(
    ("arch", "count", "more"),
    [
        ("dense", 2, {}),
        pytest.param("dense", 4, {}, marks=pytest.mark.slow),
        pytest.param("mot", 2, {}, marks=pytest.mark.slow),
        pytest.param("mot", 4, dict(mesh__fsdp=2), marks=pytest.mark.slow),
        pytest.param("moe_ec4", 2, dict(mesh__expert=2), marks=pytest.mark.slow),
        pytest.param("moe_ec4", 4, dict(mesh__expert=2), marks=pytest.mark.slow),
        pytest.param("moe_tc4", 2, dict(mesh__expert=2), marks=pytest.mark.slow),
        pytest.param("moe_tc4", 4, dict(mesh__expert=2), marks=pytest.mark.slow),
    ],
)
def test_processes_train_to_the_figures_of_one_with_as_many_devices(tmp_path, arch, count, more):
    """Two steps: at the third one of expert choice's near-ties goes the other way, as it may."""
    settings = FEW | more
    several = processes.results(processes.train(tmp_path / "several", count, arch, **settings), 2)
    one = processes.results(processes.train_here(tmp_path / "one", count, arch, **settings), 2)
    assert_near(several, one)


# --- one writer ------------------------------------------------------------------------------------------------------

TELLS_WHAT_IT_CHANGES = """
import os, sys
def heard(event, arguments):
    writes = event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    changes = writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink")
    if changes and "digits-mot-smoke" in os.fspath(arguments[0]):
        os.write(2, f"CHANGES {os.fspath(arguments[0])}\\n".encode())
if me:
    sys.addaudithook(heard)
"""


def test_log_metrics_and_checkpoint_have_one_writer(tmp_path):
    codes, said = processes.ended(processes.start(tmp_path, 2, script=TELLS_WHAT_IT_CHANGES, **FEW))
    assert codes == [0, 0], said
    folder = processes.folder(tmp_path)
    changed = re.findall(r"CHANGES (.*)", said[1])
    changed = {path.removeprefix(f"{folder}/") for path in changed if path.startswith(str(folder))}
    own = {path for path in changed if path.endswith("/process_1")}  # what it tells of its part of the arrays
    assert all(path.startswith("checkpoints/2.partial") for path in own)
    assert changed - own <= {"processes", "processes/1"}
    assert "held-out" in said[0]
    assert "held-out" not in said[1]
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert sorted(re.findall(r'"kind": "(train|eval)", "step": (\d+)', text)) == [
        *(("eval", str(step)) for step in (0, 2)),
        *(("train", str(step)) for step in (1, 2)),
    ]
    checkpoint.verify(folder / "checkpoints" / "2")


# --- corruption ------------------------------------------------------------------------------------------------------

FLIPS = """
import ctypes
import jax
from mot.train import loop, replicas

def after_a_flip(tree, step):
    if me == 1 and step == 2:
        part = jax.tree.leaves(tree["params"])[0].addressable_shards[0].data
        ctypes.c_uint32.from_address(part.unsafe_buffer_pointer()).value ^= 1 << 7
    replicas.refuse_corrupt(tree, step)

loop.refuse_corrupt = after_a_flip
"""


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_bit_that_flips_in_one_process_is_noticed_and_its_machine_named(tmp_path, count):
    settings = FEW | dict(run__steps=4, run__save_every=1)
    codes, said = processes.ended(processes.start(tmp_path, count, script=FLIPS, **settings))
    assert codes == [2] * count, said
    host = re.escape(socket.gethostname())
    one = rf"device \d+ of process 1 on {host}"
    of_two = rf"device \d+ of process 0 on {host}, {one}"  # of two, each may be wrong
    for told in said:
        assert re.search(rf"after step 2 {of_two if count == 2 else one}: other bits of params/\S+ than", told), told
    assert processes.saved(tmp_path)[-1] == 1


# --- one that is asked to stop, dies or hangs ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return processes.results(processes.train_here(tmp_path_factory.mktemp("whole"), 2, **SETTINGS), STEPS)


def interrupted(root, number, victim):
    """Starts two processes, sends one of them a signal in the middle; their exit codes and what the other one said."""
    after = max(processes.saved(root), default=0) + 2
    both = processes.start(root, 2, run__peer_timeout=20, **SETTINGS)
    try:
        processes.wait_for_step(both[0], processes.folder(root), after)
        both[victim].send_signal(number)
        said = both[1 - victim].communicate(timeout=processes.PATIENCE)[1]
        if number != signal.SIGTERM:
            both[victim].kill()
        codes = [process.wait(timeout=processes.PATIENCE) for process in both]
    finally:
        for process in both:
            process.kill()
    both[victim].communicate()
    return codes, said


def assert_whole(root, whole):
    arrays, rows = processes.results(processes.train_here(root, 2, **SETTINGS), STEPS)
    jax.tree.map(np.testing.assert_array_equal, arrays, whole[0])
    assert rows == whole[1]


def test_one_that_is_asked_stops_all_at_one_step_and_one_that_dies_is_told_of(tmp_path, whole):
    codes, said = interrupted(tmp_path, signal.SIGTERM, 1)
    assert codes == [75, 75], said
    newest = max(processes.saved(tmp_path))
    assert f"stopped at step {newest}, saved; the same command resumes" in said
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


ASKS = """
import os, signal
from mot.checkpoint import saving
from mot.data import pipeline
from mot.train import evaluate

def asking(known, n):
    calls = []
    def call(*args, **named):
        calls.append(1)
        if me == 1 and len(calls) == n:
            os.kill(os.getpid(), signal.SIGTERM)
        return known(*args, **named)
    return call
"""
WHILE = {
    "evaluating": "evaluate.total = asking(evaluate.total, 2)",
    "saving": "saving._copy = asking(saving._copy, 2)",
    "waiting for data": "pipeline._next = asking(pipeline._next, 9)",
}


@pytest.mark.slow
@pytest.mark.parametrize("script", WHILE.values(), ids=WHILE)
def test_one_that_is_asked_stops_all_whatever_it_is_doing(tmp_path, script):
    settings = SETTINGS | dict(run__eval_every=4)
    codes, said = processes.ended(processes.start(tmp_path, 2, script=f"{ASKS}\n{script}", **settings))
    assert codes == [75, 75], said
    newest = max(processes.saved(tmp_path))
    assert 0 < newest < STEPS
    assert f"stopped at step {newest}, saved; the same command resumes" in said[0]
    checkpoint.verify(processes.folder(tmp_path) / "checkpoints" / str(newest))


COMPILES = """
import numpy as np
from mot import sharding
def busy(mesh):
    return np.linalg.eig(np.random.rand(2500, 2500))
if me == 1:
    sharding.compiler_options = busy
"""


@pytest.mark.slow
def test_one_that_is_asked_while_compiling_ends_all(tmp_path):
    both = processes.start(tmp_path, 2, script=COMPILES, run__peer_timeout=20, **SETTINGS)
    for line in both[0].stderr:
        if line.startswith("compiling the step"):
            break
    time.sleep(2)
    began = time.monotonic()
    both[1].send_signal(signal.SIGTERM)
    codes, said = processes.ended(both)
    assert codes == [HUNG, 75], said
    assert time.monotonic() - began < 60
    assert "stopped before a step was taken; the same command resumes" in said[1]


# --- on another number of processes ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_goes_on_from_one_process_in_two_and_back(tmp_path, whole):
    """One has two devices; two have one each."""
    processes.train_here(tmp_path, 2, until=9, **SETTINGS)
    codes, said = interrupted(tmp_path, signal.SIGTERM, 0)
    assert codes == [75, 75], said
    assert_whole(tmp_path, whole)


@pytest.mark.slow
def test_a_run_goes_on_from_four_processes_in_two(tmp_path):
    settings = SETTINGS | dict(run__steps=6, data__batch=4)
    four = processes.start(tmp_path / "several", 4, **settings | dict(run__steps=6))
    processes.wait_for_step(four[0], processes.folder(tmp_path / "several"), 3)
    four[3].send_signal(signal.SIGTERM)
    codes, said = processes.ended(four)
    assert codes == [75] * 4, said
    processes.train(tmp_path / "several", 2, devices=2, **settings)
    several = processes.results(processes.folder(tmp_path / "several"), 6)
    assert_near(several, processes.results(processes.train_here(tmp_path / "one", 4, **settings), 6), 1e-4)
