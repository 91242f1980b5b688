"""The state of a run, from its directory alone."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from mot.runs import lock, rundir, states, written
from tests.support.training import smoke


def row(kind, step, **values):
    return {"schema": rundir.SCHEMA, "kind": kind, "step": step, "time": "now", **values}


START = row("event", 0, event="start")
TRAINED = [row("train", step, **{"loss/text": 7.0, "loss/text/manual": 7.5, "step_seconds": 2.0}) for step in (1, 2)]


@pytest.fixture
def path(tmp_path):
    config = smoke(tmp_path)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=10))
    path = rundir.folder(config)
    path.mkdir()
    (path / "config.json").write_text(written.sealed(rundir.plain(config)), encoding="utf-8")
    return path


def log(path, *rows, cut=""):
    (path / "metrics.jsonl").write_text("".join(map(rundir.line_of, rows)) + cut, encoding="utf-8")


def save(path, step):
    (path / "checkpoints" / str(step)).mkdir(parents=True)
    (path / "checkpoints" / str(step) / "manifest.json").write_text("{}", encoding="utf-8")


def test_a_run_that_has_not_begun_waits(tmp_path):
    assert states.of(tmp_path / "nowhere", 7) == states.State(states.WAITING, steps=7)
    (tmp_path / "made").mkdir()
    assert states.of(tmp_path / "made").name == states.WAITING


def test_a_run_that_nobody_trains_is_interrupted(path):
    assert states.of(path) == states.State(states.INTERRUPTED, 0, 10)
    log(path, START, *TRAINED, cut='{"kind": "train", "st')
    assert states.of(path) == states.State(states.INTERRUPTED, 2, 10, {"text": 7.0})
    save(path, 4)
    assert states.of(path).step == 4


def test_held_out_losses_come_before_those_of_a_step(path):
    log(path, START, TRAINED[0], row("eval", 1, **{"loss/text": 6.0, "loss/image": "nan"}), TRAINED[1])
    assert states.of(path).losses == {"text": 6.0, "image": "nan"}


def test_a_run_whose_lock_is_held_runs_and_tells_how_long_yet(path):
    log(path, START, *TRAINED)
    with lock.held(path):
        assert states.of(path) == states.State(states.RUNNING, 2, 10, {"text": 7.0}, 16.0)
    assert states.of(path).name == states.INTERRUPTED


def test_a_lock_of_the_dead_is_none(path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    def say(host, process, silent):
        (path / "lock").write_text(json.dumps({"host": host, "process": process, "since": "then"}), encoding="utf-8")
        os.utime(path / "lock", (time.time() - silent,) * 2)
        return states.of(path).name

    here = socket.gethostname()
    assert say(here, dead.pid, 0) == states.INTERRUPTED
    assert say(here, os.getpid(), 0) == states.RUNNING
    assert say(here, os.getpid(), lock.DEAD + 9) == states.INTERRUPTED  # another process has this number now
    assert say("elsewhere", dead.pid, 0) == states.RUNNING
    assert say("elsewhere", dead.pid, lock.DEAD + 9) == states.INTERRUPTED
    (path / "lock").write_text("not JSON", encoding="utf-8")
    assert states.of(path).name == states.INTERRUPTED


def test_to_ask_takes_no_lock(path):
    """Or a run that begins at this moment would be refused."""
    before = os.stat(path / "lock") if (path / "lock").exists() else None
    states.of(path)
    assert before is None
    assert not (path / "lock").exists()


def test_a_run_whose_last_step_is_saved_is_done(path):
    save(path, 9)
    assert states.of(path).name == states.INTERRUPTED
    save(path, 10)
    assert states.of(path) == states.State(states.DONE, 10, 10)
    assert states.of(path, 20).name == states.INTERRUPTED  # it shall have more


def test_a_run_that_diverged_or_was_given_up_says_so_until_it_is_begun_again(path):
    log(path, START, *TRAINED, row("event", 2, event="diverged"))
    save(path, 10)  # as one of several in one program is
    assert states.of(path)[0] == states.DIVERGED
    assert states.of(path).why == "at step 2"
    log(path, START, *TRAINED, row("event", 2, event="failed", why="no room"))
    (path / "checkpoints" / "10" / "manifest.json").unlink()
    assert states.of(path)[0] == states.FAILED
    assert states.of(path).why == "no room"
    log(path, START, *TRAINED, row("event", 2, event="failed", why="no room"), START)
    assert states.of(path)[0] == states.INTERRUPTED


def test_a_config_that_is_not_what_was_written_is_damaged(path):
    (path / "config.json").write_text("[]", encoding="utf-8")
    assert states.of(path).name == states.DAMAGED
    assert "config.json" in states.of(path).why


def test_the_end_of_a_long_file_is_enough(path):
    many = [row("train", step, **{"loss/text": float(step), "padding": "x" * 1000}) for step in range(1, 1001)]
    log(path, START, *many)
    assert (path / "metrics.jsonl").stat().st_size > 3 * states.TAIL
    assert len(states.last_rows(path / "metrics.jsonl")) < 300
    assert states.of(path)[:4] == (states.INTERRUPTED, 1000, 10, {"text": 1000.0})
