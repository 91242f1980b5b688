import time

import pytest

from mot.runs import goodput


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
    removed = [{"kind": "train", "wall_seconds": 30.0}, {"kind": "event"}, {"kind": "train", "wall_seconds": 42.0}]
    clock = goodput.resumed({"step": 20.0}, removed, time.monotonic())
    assert clock.seconds["lost"] == 22
    assert clock.total() == pytest.approx(42, abs=0.5)
    assert goodput.resumed({"step": 20.0}, [], time.monotonic()).seconds["lost"] == 0
