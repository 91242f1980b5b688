import time

import pytest

from mot import checkpoint
from mot.runs import goodput, rundir
from mot.runs.log import Log
from mot.train import loop
from tests.support.training import smoke


def test_all_of_a_runs_time_is_of_some_kind():
    began = time.monotonic() - 10
    clock = goodput.Clock({"step": 5.0, "other": 1.0}, began)
    clock.settle("start")
    with clock.of("evaluation"):
        time.sleep(0.05)
    clock.book("step", 2.0)
    row = clock.row()
    split = clock.split()
    assert set(split) == {f"wall/{kind}" for kind in goodput.KINDS}
    assert split["wall/start"] == pytest.approx(10, abs=0.5)
    assert split["wall/step"] == 7
    assert split["wall/evaluation"] >= 0.05
    assert row["wall_seconds"] == pytest.approx(16, abs=0.5)
    assert row["goodput"] == pytest.approx(7 / row["wall_seconds"])


def test_what_is_done_again_is_lost():
    found = [{"kind": "train", "wall_seconds": 30.0}, {"kind": "event"}, {"kind": "train", "wall_seconds": 42.0}]
    clock = goodput.resumed({"step": 20.0}, found, time.monotonic())
    assert clock.seconds["lost"] == 22
    assert clock.total() == pytest.approx(42, abs=0.5)
    assert goodput.resumed({"step": 20.0}, [], time.monotonic()).seconds["lost"] == 0


def test_what_a_kill_costs_is_lost_and_stays_so_after_the_next_kill(tmp_path, monkeypatch, one_device):
    """A run is killed at step 7, resumes from step 4 and is killed before a step, and resumes again."""
    c = smoke(tmp_path, run__steps=8, run__save_every=4, run__eval_every=8)

    def killed_after(step):
        class Killed(BaseException):
            pass

        advance = Log.advance

        def advancing(log, *args):
            if log.position.step == step:
                raise Killed
            return advance(log, *args)

        with monkeypatch.context() as patched:
            patched.setattr(Log, "advance", advancing)
            with pytest.raises(Killed):
                loop.run(c, devices=one_device)

    killed_after(7)
    path = rundir.folder(c)
    assert checkpoint.steps(path / "checkpoints") == [4]
    before = rundir.read_metrics(path)
    until = max(row["wall_seconds"] for row in before if "wall_seconds" in row)
    _, position = checkpoint.restore(path / "checkpoints", 4, {})
    cost = until - sum(position["wall"].values())
    assert cost > 0
    killed_after(4)
    again = rundir.read_metrics(path)[-1]
    assert again["event"] == "start"
    second = again["wall_seconds"] - until
    assert second > 0
    loop.run(c, devices=one_device)
    rows = rundir.read_metrics(path)
    split = [row for row in rows if row.get("event") == "saved"][-1]
    assert split["wall/lost"] == pytest.approx(cost + second, abs=0.01)
    last = [row for row in rows if row["kind"] == "train"][-1]
    whole = sum(value for key, value in split.items() if key.startswith("wall/"))
    assert whole == pytest.approx(last["wall_seconds"], abs=2)
    assert last["goodput"] == pytest.approx(split["wall/step"] / last["wall_seconds"], rel=0.05)
