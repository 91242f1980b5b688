"""FAULTS 5: a save that fails never stops training, is told and tried again, and costs no step that was saved."""

import errno
import os
import time

import jax
import numpy as np
import pytest

from mot import checkpoint
from mot.checkpoint import digests
from mot.errors import UserError
from mot.runs import rundir
from mot.train import loop, saves
from tests.support.training import restored, rows, smoke

SETTINGS = dict(run__steps=12, run__save_every=2, run__eval_every=12, run__keep=9)


def failing(monkeypatch, times, number=errno.ENOSPC, part="_copy"):
    """Saves of which this part fails, as often as `times` says; which steps were tried."""
    true = getattr(checkpoint.saving, part)
    tried = []

    def failing_part(folder, *args):
        if "partial" in folder.name:
            return true(folder, *args)  # the trial before training
        tried.append(args[0] if part == "_copy" else args[0].step)
        if len(tried) in times:
            raise OSError(number, os.strerror(number))
        return true(folder, *args)

    monkeypatch.setattr(checkpoint.saving, part, failing_part)
    return tried


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (errno.ENOSPC, "_copy"),
        pytest.param(errno.EACCES, "_copy", marks=pytest.mark.slow),
        (errno.EIO, "_commit"),
    ],
    ids=["disk full", "no permission", "failing file system"],
)
def test_three_saves_fail_and_the_fourth_works(tmp_path, monkeypatch, one_device, capfd, number, part):
    monkeypatch.setattr(saves, "FIRST_PAUSE", 0.01)
    tried = failing(monkeypatch, (2, 3, 4), number, part)
    path = loop.run(smoke(tmp_path / "a", **SETTINGS), devices=one_device)
    assert tried[0] == 2
    assert len(tried) >= 6
    failed = [row for row in rows(path, "event") if row["event"] == "save failed"]
    assert [row["again"] for row in failed] == [0.01, 0.02, 0.04]
    assert os.strerror(number).removesuffix(" device") in failed[0]["why"]
    assert capfd.readouterr().err.count("ALARM: step ") == 3
    steps = checkpoint.steps(path / "checkpoints")
    assert steps == sorted(set(tried) - {row["step"] for row in failed})
    assert steps[0] == tried[0], "the newest step that was saved outlived the saves that failed"
    assert len(rows(path)) == 12
    monkeypatch.undo()
    whole = loop.run(smoke(tmp_path / "b", **SETTINGS), devices=one_device)
    jax.tree.map(np.testing.assert_array_equal, restored(path, 12), restored(whole, 12))


def test_on_a_slow_file_system_training_goes_on_and_saves_when_it_can(tmp_path, monkeypatch, one_device):
    monkeypatch.setattr(saves, "SHORT", 0.01)
    commit = checkpoint.saving._commit
    under_way = []

    def slow(folder, copied):
        assert not under_way
        under_way.append(copied.step)
        time.sleep(1.0)
        commit(folder, copied)
        under_way.clear()

    settings = SETTINGS | dict(run__steps=20)
    monkeypatch.setattr(checkpoint.saving, "_commit", slow)
    path = loop.run(smoke(tmp_path, **settings), devices=one_device)
    assert [row["step"] for row in rows(path)] == [*range(1, 21)]
    done = [row for row in rows(path, "event") if row["event"] == "saved"]
    steps = checkpoint.steps(path / "checkpoints")
    assert [row["step"] for row in done] == steps
    assert 2 <= len(steps) < 10, "some of the ten that were due were left out"
    assert steps[-1] == 20
    assert all(row["seconds"] >= 1 > row["stall"] for row in done)
    assert not [row for row in rows(path, "event") if row["event"] == "save failed"]


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


def test_the_first_save_compiles_nothing_while_the_loop_waits(tmp_path, monkeypatch, one_device):
    begin = saves.Saves.begin
    programs = []

    def counting(self, state):
        programs.append(digests.of_tree._cache_size())
        begin(self, state)
        programs.append(digests.of_tree._cache_size())

    digests.of_tree.clear_cache()
    monkeypatch.setattr(saves.Saves, "begin", counting)
    loop.run(smoke(tmp_path, **SETTINGS), devices=one_device)
    assert len(set(programs)) == 1


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
