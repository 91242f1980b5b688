"""Adaptive search: the file keeps what was asked and told, and what waits is asked for again."""

import math
import sys

import pytest

from configs.search import linear, log
from mot.errors import UserError
from scaling import adaptive

RANGES = {"optim.lr": log(1e-4, 1e-1), "optim.beta2": linear(0.9, 0.99)}


def test_without_optuna_there_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"adaptive search needs optuna, which is not installed; install '.\[search\]'"):
        adaptive.ask(tmp_path / "search.log", "mot", RANGES, 2)


def test_what_was_asked_waits_until_it_is_told(tmp_path):
    pytest.importorskip("optuna")
    file = tmp_path / "sweep" / "search.log"
    first = adaptive.ask(file, "mot", RANGES, 3)
    assert list(first) == [0, 1, 2]
    assert all(1e-4 <= point["optim.lr"] <= 1e-1 for point in first.values())
    adaptive.tell(file, "mot", {0: 2.0, 1: None, 2: math.inf})
    adaptive.tell(file, "mot", {0: 9.0})  # told already: nothing changes
    again = adaptive.ask(file, "mot", RANGES, 2)
    assert list(again) == [3, 4]
    assert adaptive.ask(file, "mot", RANGES, 2) == again, "as after a restart"
    assert list(adaptive.ask(file, "dense", RANGES, 1)) == [0], "a study of its own in the same file"
    with pytest.raises(UserError, match="study mot has no point 7; it has 5, from 0"):
        adaptive.tell(file, "mot", {7: 1.0})


def test_it_comes_nearer_to_the_best_rate_than_its_first_points(tmp_path):
    pytest.importorskip("optuna")
    file, far = tmp_path / "search.log", []
    for _ in range(16):
        points = adaptive.ask(file, "mot", RANGES, 4)
        losses = {n: abs(math.log10(point["optim.lr"]) + 2) for n, point in points.items()}
        adaptive.tell(file, "mot", losses)
        far += losses.values()
    assert sum(far[-12:]) < 0.6 * sum(far[:12])
