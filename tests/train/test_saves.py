"""FAULTS 5: a save that fails never stops training, is told and tried again, and costs no step that was saved."""

import errno

import jax
import numpy as np
import pytest

from mot import checkpoint
from mot.errors import UserError
from mot.runs import rundir
from mot.train import loop, saves
from tests.support.training import restored, rows, smoke

SETTINGS = dict(run__steps=12, run__save_every=2, run__eval_every=12, run__keep=9)


def failing(monkeypatch, times):
    """Saves that fail on a full disk, as often as `times` says; which steps were tried."""
    copied = checkpoint.saving._copy
    tried = []

    def full(folder, step, *args):
        if "number" in str(args[0]):
            return copied(folder, step, *args)  # the trial before training
        tried.append(step)
        if len(tried) in times:
            raise OSError(errno.ENOSPC, "No space left on device")
        return copied(folder, step, *args)

    monkeypatch.setattr(checkpoint.saving, "_copy", full)
    return tried


def test_three_saves_fail_and_the_fourth_works(tmp_path, monkeypatch, one_device, capfd):
    monkeypatch.setattr(saves, "FIRST_PAUSE", 0.01)
    tried = failing(monkeypatch, times=(2, 3, 4))
    path = loop.run(smoke(tmp_path / "a", **SETTINGS), devices=one_device)
    assert tried[0] == 2
    assert len(tried) >= 6
    failed = [row for row in rows(path, "event") if row["event"] == "save failed"]
    assert [row["again"] for row in failed] == [0.01, 0.02, 0.04]
    assert "No space left on the disk" in failed[0]["why"]
    assert capfd.readouterr().err.count("ALARM: step ") == 3
    steps = checkpoint.steps(path / "checkpoints")
    assert steps == sorted(set(tried) - {row["step"] for row in failed})
    assert len(rows(path)) == 12
    monkeypatch.undo()
    whole = loop.run(smoke(tmp_path / "b", **SETTINGS), devices=one_device)
    jax.tree.map(np.testing.assert_array_equal, restored(path, 12), restored(whole, 12))


def test_a_last_step_that_cannot_be_saved_is_told_with_the_step_that_was(tmp_path, monkeypatch, one_device):
    monkeypatch.setattr(saves, "LAST_PAUSES", (0.01, 0.01))
    c = smoke(tmp_path, **SETTINGS)
    tried = failing(monkeypatch, times=range(3, 100))
    with pytest.raises(UserError, match=r"/12 was not saved: No space left .*; step \d+ was saved last, and the same"):
        loop.run(c, devices=one_device)
    assert tried.count(12) == 3
    monkeypatch.undo()
    path = loop.run(c, devices=one_device)
    assert checkpoint.steps(path / "checkpoints")[-1] == 12
    assert len([row for row in rundir.read_metrics(path) if row["kind"] == "train"]) == 12


def test_the_best_step_stays_after_a_resume(tmp_path, monkeypatch, one_device):
    """Its loss is remembered: of steps evaluated since the resume alone another one would be the best."""
    kept = dict(run__save_every=1, run__eval_every=1, run__keep=1, run__keep_best="loss/image", run__steps=6)
    c = smoke(tmp_path, **kept)
    losses = iter([9.0, 5.0, 1.0, 4.0, 3.0, 2.0, 2.5])

    def one_loss(*_):
        return lambda params: {"loss/image": next(losses), "loss/text": 1.0}

    monkeypatch.setattr(loop, "make_evaluate", one_loss)
    path = loop.run(c, until=3, devices=one_device)
    assert checkpoint.steps(path / "checkpoints") == [2, 3]
    loop.run(c, devices=one_device)
    assert checkpoint.steps(path / "checkpoints") == [2, 6]
    assert [row["loss/image"] for row in rows(path, "eval")] == [9.0, 5.0, 1.0, 4.0, 3.0, 2.0, 2.5]


def test_a_save_is_due_by_the_clock_too(tmp_path, one_device):
    settings = SETTINGS | dict(run__save_every=12, run__save_minutes=1e-5)
    path = loop.run(smoke(tmp_path, **settings), devices=one_device)
    assert len(checkpoint.steps(path / "checkpoints")) > 2
