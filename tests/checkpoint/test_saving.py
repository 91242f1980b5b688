"""Steps are saved beside training, one at a time; no failure and no kill, at whichever file, costs an earlier step."""

import errno
import os
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import checkpoint
from mot.checkpoint import Keep, Saver, saving
from mot.checkpoint.saving import kept
from tests.conftest import ROOT
from tests.support.checkpoints import LIKE, TREES, before_change, full_from, same, snapshot
from tests.support.training import ENV


@pytest.fixture
def ten(tmp_path):
    """A folder with one step."""
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, 10, TREES, {"step": 10}, keep=3)
    return folder


def saver_of(folder, keep=3, **others):
    return Saver(folder, Keep(keep, **others))


def save(saver, step):
    saver.begin(step, TREES, {"step": step})
    return saver.wait().error


# --- what a save does ------------------------------------------------------------------------------------------------


def test_the_caller_may_donate_and_change_what_it_gave(tmp_path):
    trees = jax.tree.map(jnp.copy, TREES)
    position = {"plan": [1]}
    saver = saver_of(tmp_path)
    saver.begin(1, trees, position, {"host": "one"})
    jax.tree.map(lambda x: x.delete(), trees)
    position["plan"].append(2)
    outcome = saver.wait()
    assert (outcome.step, outcome.error) == (1, "")
    assert 0 < outcome.stall <= outcome.seconds
    back, data = checkpoint.restore(tmp_path, 1, LIKE)
    same(back)
    assert data == {"plan": [1]}
    assert checkpoint.made_by(tmp_path / "1") == {"host": "one"}


def test_a_save_begins_once_the_one_before_has_ended_and_each_outcome_is_told_once(tmp_path, monkeypatch):
    go, commit, order = threading.Event(), saving._commit, []

    def slow(folder, copied):
        go.wait(60)
        commit(folder, copied)
        order.append(copied.step)

    monkeypatch.setattr(saving, "_commit", slow)
    saver = saver_of(tmp_path)
    saver.begin(1, TREES, {})
    assert saver.is_busy()
    assert saver.outcome() is None
    assert checkpoint.steps(tmp_path) == []
    threading.Timer(0.2, go.set).start()
    saver.begin(2, TREES, {})
    assert order[:1] == [1]
    assert saver.wait().step == 2
    assert saver.outcome().step == 2
    assert saver.outcome() is None
    assert checkpoint.steps(tmp_path) == order == [1, 2]


def test_a_step_is_read_back_before_it_is_trusted(ten, monkeypatch):
    commit = saving._commit

    def damaging(folder, copied):
        copied.checkpointer.wait_until_finished()
        for file in (folder / copied.path.name / "params").rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
        commit(folder, copied)

    monkeypatch.setattr(saving, "_commit", damaging)
    assert "params/a/w came back changed" in save(saver_of(ten), 20)
    assert [path.name for path in ten.iterdir()] == ["10"]


# --- which steps stay ------------------------------------------------------------------------------------------------

SAVED = [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (Keep(2), {40, 50}),
        (Keep(0), {50}),
        (Keep(9), {*SAVED}),
        (Keep(1, every=20), {20, 40, 50}),
        (Keep(1, every=25), {50}),
        (Keep(1, best={10: 3.0, 20: 1.0, 30: 2.0}), {20, 50}),
        (Keep(1, best={5: 0.0, 60: 0.0, 30: 2.0}), {30, 50}),
        (Keep(2, 30, {10: 0.1, 50: 0.2}), {10, 30, 40, 50}),
    ],
    ids=str,
)
def test_the_newest_every_kth_and_the_best_stay(keep, stay):
    assert kept(SAVED, keep) == stay


def test_what_does_not_stay_is_removed_once_the_next_is_whole(tmp_path):
    best = {}
    saver = saver_of(tmp_path, 1, every=4, best=best)
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0), (4, 4.0), (5, 5.0)):
        best[step] = loss
        assert save(saver, step) == ""
    assert checkpoint.steps(tmp_path) == [2, 4, 5]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_step_that_verifies_is_never_removed(ten, keep):
    """Step 20 is damaged, the run has resumed from step 10 and saves step 15; then it meets step 20 again."""
    assert save(saver_of(ten), 20) == ""
    (ten / "20" / "data" / "metadata").write_text("{}", encoding="utf-8")
    saver = saver_of(ten, keep)
    assert save(saver, 15) == ""
    told = []
    assert checkpoint.newest(ten, told.append) == 15
    assert save(saver, 20) == ""
    assert checkpoint.newest(ten, told.append) == 20
    same(checkpoint.restore(ten, 20, LIKE)[0])
    assert (ten / "20.damaged").is_dir()
    assert len(told) == 2
    assert "step 20 is passed over" in told[0]
    assert "20.damaged" in told[1]


# --- FAULTS 5: a save that fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_save_fails_three_times_and_then_works(ten, number):
    saver = saver_of(ten, 1)
    with before_change(ten, full_from(3, number)):
        for _ in range(3):
            why = save(saver, 20)
            assert ("No space left on the disk of" if number == errno.ENOSPC else os.strerror(number)) in why
            assert [path.name for path in ten.iterdir()] == ["10"]
            same(checkpoint.restore(ten, 10, LIKE)[0])
    assert not [thread for thread in threading.enumerate() if "Signaling" in type(thread).__name__]  # nothing waits
    assert save(saver, 20) == ""
    assert [path.name for path in ten.iterdir()] == ["20"]
    assert checkpoint.steps(ten) == [20]
    same(checkpoint.restore(ten, 20, LIKE)[0])


def test_a_library_that_finds_the_disk_full_says_so(ten, monkeypatch):
    def failing(checkpointer, path, args):
        (path.with_name(f"{path.name}.orbax-checkpoint-tmp") / "params").mkdir(parents=True)
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write [OS error 28] [tensorstore_spec='{}']\nmore")

    monkeypatch.setattr(saving.ocp.AsyncCheckpointer, "save", failing)
    assert save(saver_of(ten), 20) == f"No space left on the disk of {ten}"
    assert [path.name for path in ten.iterdir()] == ["10"]


def changes_of_a_save(folder):
    with before_change(folder, lambda *_: None) as seen:
        assert save(saver_of(folder), 20) == ""
    return len(seen)


def test_a_disk_that_is_full_from_the_kth_change_on_costs_no_earlier_step(ten, tmp_path):
    changes = changes_of_a_save(snapshot(ten, tmp_path / "counted"))
    assert changes > 20
    for k in range(1, changes + 1):
        saver = saver_of(ten, 1)
        with before_change(ten, full_from(k)):
            why = save(saver, 20)
        assert why == f"No space left on the disk of {ten}", k
        assert checkpoint.newest(ten, lambda _: None) == 10, k
    same(checkpoint.restore(ten, 10, LIKE)[0])
    assert not [thread for thread in threading.enumerate() if "Signaling" in type(thread).__name__]  # nothing waits
    assert save(saver, 20) == ""
    assert [path.name for path in ten.iterdir()] == ["20"]


# --- killed while it saves -------------------------------------------------------------------------------------------


def test_what_is_left_by_a_kill_at_any_change_restores_the_older_step_and_is_saved_again(ten, tmp_path):
    """What lies there right before each change is what a kill leaves: once as it is, once with the last file cut."""
    left = []
    with before_change(ten, lambda k, _: left.append(snapshot(ten, tmp_path / f"left{k}"))):
        assert save(saver_of(ten), 20) == ""
    assert len(left) > 20
    for folder in left:
        assert checkpoint.newest(folder, lambda _: None) == 10, folder
        begun = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != "10"]
        newest = max(begun, default=None, key=os.path.getmtime)
        if newest:
            newest.write_bytes(newest.read_bytes()[:-1])
        assert checkpoint.newest(folder, lambda _: None) == 10, folder
        assert save(saver_of(folder), 20) == ""
        same(checkpoint.restore(folder, 20, LIKE)[0])
        assert [path.name for path in sorted(folder.iterdir())] == ["10", "20"]


def test_a_kill_while_an_older_step_is_removed_leaves_no_step_without_its_files(ten, tmp_path):
    left = []
    with before_change(ten, lambda k, _: left.append(snapshot(ten, tmp_path / f"left{k}"))):
        assert save(saver_of(ten, 1), 20) == ""
    assert {20} in [{*checkpoint.steps(folder)} for folder in left]
    for folder in left:
        for step in checkpoint.steps(folder):
            checkpoint.verify(folder / str(step))
    assert save(saver_of(left[-1]), 30) == ""
    assert [path.name for path in sorted(left[-1].iterdir())] == ["20", "30"]


KILLED = """
import os, signal, sys
from pathlib import Path
from mot import checkpoint
from tests.support.checkpoints import TREES, before_change

def act(k, event):
    if k == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
with before_change(folder, act):
    checkpoint.save(folder, 20, TREES, {"step": 20}, keep=1)
"""


@pytest.mark.parametrize("part", [0.3, 0.9, pytest.param(None, marks=pytest.mark.slow)], ids=["3rd", "9th", "every"])
def test_a_process_that_is_killed_at_the_kth_change_leaves_the_older_step(ten, tmp_path, part):
    changes = changes_of_a_save(snapshot(ten, tmp_path / "counted"))
    for k in range(1, changes + 1) if part is None else [int(part * changes)]:
        command = [sys.executable, "-c", KILLED, str(ten), str(k)]
        done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert checkpoint.newest(ten, lambda _: None) == 10, k
        same(checkpoint.restore(ten, 10, LIKE)[0])
    assert save(saver_of(ten), 20) == ""
    assert checkpoint.steps(ten) == [10, 20]


def test_a_kill_after_the_damaged_step_was_set_aside_leaves_the_older_one(ten, tmp_path):
    assert save(saver_of(ten), 20) == ""
    (ten / "20" / "data" / "metadata").write_text("{}", encoding="utf-8")
    left = []
    with before_change(ten, lambda k, _: left.append(snapshot(ten, tmp_path / f"left{k}"))):
        assert save(saver_of(ten), 20) == ""
    chosen = {checkpoint.newest(folder, lambda _: None) for folder in left}
    assert chosen == {10}
    assert not (left[-1] / "20").exists()
    np.testing.assert_equal(checkpoint.newest(ten, print), 20)


def test_a_step_that_was_just_saved_is_not_saved_again(tmp_path):
    """As where a signal comes while data are waited for, after a step that was due."""
    saver = checkpoint.Saver(tmp_path, checkpoint.Keep(3))
    for _ in range(2):
        saver.begin(5, TREES, {"step": 5})
        saver.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5"]
