"""FAULTS 17: one process at a time trains in a run's folder; a dead one's lock is nobody's."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mot.errors import UserError
from mot.runs import lock, rundir
from mot.train import loop
from tests.conftest import ROOT
from tests.support.training import smoke

HOLD = """
import sys, time
from pathlib import Path
from mot.runs import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_that_another_process_has_is_refused_and_a_dead_ones_is_taken(tmp_path, holder):
    told = f"is being trained by another process \\(process {holder.pid} on .*; wait for it, stop it, or choose another"
    with pytest.raises(UserError, match=told), lock.held(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / "lock").read_text(encoding="utf-8"))["process"] == holder.pid
    with lock.held(tmp_path):
        assert json.loads((tmp_path / "lock").read_text(encoding="utf-8"))["process"] == os.getpid()
    assert (tmp_path / "lock").read_bytes() == b""


@pytest.mark.parametrize(("silent", "is_refused"), [(5, True), (300, False)])
def test_another_machine_counts_as_alive_as_long_as_it_gives_signs_of_life(tmp_path, silent, is_refused):
    file = tmp_path / "lock"
    file.write_text(json.dumps({"host": "elsewhere", "process": 7, "since": "noon"}), encoding="utf-8")
    os.utime(file, (time.time() - silent,) * 2)
    if is_refused:
        told = "process 7 on elsewhere, since noon; it gave a sign of life 5 s ago, and counts as dead after 120"
        with pytest.raises(UserError, match=told), lock.held(tmp_path):
            pass
        assert json.loads(file.read_text(encoding="utf-8"))["host"] == "elsewhere"
    else:
        with lock.held(tmp_path):
            pass


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"9" * 5000])
def test_a_lock_that_says_nothing_is_taken(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    with lock.held(tmp_path):
        pass


def test_a_run_that_is_being_trained_is_neither_trained_nor_changed(tmp_path, one_device):
    c = smoke(tmp_path, optim__schedule="constant")
    path = rundir.open_run(c)
    before = (path / "config.json").read_bytes()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    try:
        with pytest.raises(UserError, match="is being trained by another process"):
            loop.run(smoke(tmp_path, optim__schedule="constant", run__steps=9), devices=one_device)
    finally:
        process.kill()
        process.communicate()
    assert (path / "config.json").read_bytes() == before
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "lock"]


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "fifo"])
def test_what_has_the_locks_name_and_is_none_is_neither_followed_nor_emptied(tmp_path, kind):
    precious = tmp_path / "precious"
    precious.write_text("mine", encoding="utf-8")
    path = tmp_path / "run"
    path.mkdir()
    if kind == "folder":
        (path / "lock").mkdir()
    elif kind == "fifo":
        os.mkfifo(path / "lock")
    else:
        (path / "lock").symlink_to(precious if kind == "link" else tmp_path / "absent")
    with pytest.raises(UserError, match=r"run/lock is in the way: .*; move it away"), lock.held(path):
        pass
    assert precious.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "absent").exists()


def test_what_a_lock_says_is_shown_as_a_terminal_may_show_it(tmp_path):
    told = str(lock._refusal(tmp_path / "lock", {"host": "\x1b[31m" + "a" * 4000, "process": 1, "since": "x\ny"}))
    assert told.isprintable()
    assert len(told) < 600
