"""FAULTS 2: SIGTERM whatever training does: the last step that was finished is saved, and the command resumes."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from mot import checkpoint
from mot.data import pipeline
from mot.runs import log, rundir
from mot.train import evaluate, loop
from mot.train.signals import Signals, Stopped
from tests.conftest import ROOT
from tests.support.examples import CLOCK
from tests.support.training import ENV, SMOKE, restored, rows, smoke

SETTINGS = dict(run__steps=4, run__eval_every=2, run__save_every=2, run__eval_batches=2)


def timeless(path, kind):
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows(path, kind)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_device):
    return loop.run(smoke(tmp_path_factory.mktemp("whole"), **SETTINGS), devices=one_device)


def term():
    os.kill(os.getpid(), signal.SIGTERM)


def while_stepping(monkeypatch):
    advance = log.Log.advance

    def ask(self, *args):
        row = advance(self, *args)
        if self.position.step == 3:
            term()
        return row

    monkeypatch.setattr(log.Log, "advance", ask)
    return 3


def while_waiting_for_data(monkeypatch):
    """Batch 3 does not come, once step 3 is taken."""
    made = pipeline.Batches.__getitem__
    advance = log.Log.advance
    taken = threading.Event()

    def note(self, *args):
        row = advance(self, *args)
        if self.position.step == 3:
            taken.set()
        return row

    def slow(self, n):
        if n == 3 and self.count == 4:
            taken.wait(100)
            threading.Timer(0.5, term).start()
            time.sleep(4)
        return made(self, n)

    monkeypatch.setattr(log.Log, "advance", note)
    monkeypatch.setattr(pipeline.Batches, "__getitem__", slow)
    return 3


def while_evaluating(monkeypatch):
    """After step 2; its evaluation is the second."""
    total = evaluate.total
    begun = []

    def ask(*args, **named):
        begun.append(1)
        if len(begun) == 2:
            term()
        return total(*args, **named)

    monkeypatch.setattr(evaluate, "total", ask)
    return 2


def while_saving(monkeypatch):
    copied = checkpoint.saving._copy

    def ask(folder, step, *args):
        if step == 2:
            term()
        return copied(folder, step, *args)

    monkeypatch.setattr(checkpoint.saving, "_copy", ask)
    return None


@pytest.mark.parametrize("when", [while_stepping, while_waiting_for_data, while_evaluating, while_saving])
def test_a_signal_at_any_moment_ends_with_a_saved_step_and_the_run_goes_on(
    tmp_path, whole, one_device, monkeypatch, when
):
    c = smoke(tmp_path, **SETTINGS)
    with monkeypatch.context() as patched:
        step = when(patched)
        with pytest.raises(Stopped) as caught:
            loop.run(c, devices=one_device)
    assert caught.value.code == 75
    folder = rundir.folder(c) / "checkpoints"
    last = checkpoint.steps(folder)[-1]
    checkpoint.verify(folder / str(last))
    assert last < 4
    assert step in (None, last)
    path = loop.run(c, devices=one_device)
    jax.tree.map(np.testing.assert_array_equal, restored(path, 4), restored(whole, 4))
    for kind in ("train", "eval"):
        assert timeless(path, kind) == timeless(whole, kind)


def test_a_signal_while_compiling_is_heard_at_once(tmp_path):
    """Compiling holds the main thread in C++: here it is in LAPACK, for a minute or more."""
    script = (
        "import sys\n"
        "import numpy as np\n"
        "from launch import cli\n"
        "from mot import sharding\n"
        "def busy(mesh):\n"
        "    return np.linalg.eig(np.random.rand(2500, 2500))\n"
        "sharding.compiler_options = busy\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, "train", SMOKE, f"--config.run.root={tmp_path}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENV)
    for line in process.stderr:
        if line.startswith("compiling the step"):
            break
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert time.monotonic() - began < 30
    assert "stopped before a step was taken; the same command resumes" in said


def test_a_second_sigterm_harms_nothing():
    with Signals() as signals:
        term()
        term()
        assert signals.came()
        assert signals.code == 75
