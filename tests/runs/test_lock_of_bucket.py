"""FAULTS 17, in a bucket: which has no locks, and where a sign of life says who trains."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from mot import files
from mot.errors import UserError
from mot.runs import lock


@pytest.fixture
def path(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SETTLES", 0.1)
    return files.as_path(f"{bucket}/{tmp_path.name}")


def write(path, **said):
    (path / "lock").write_bytes(json.dumps(said).encode())


def test_a_run_that_another_host_trains_is_refused(path):
    write(path, host="elsewhere", process=1, since="now", sign=time.time() - 30, token="other")
    told = r"trained by another process \(process 1 on elsewhere.*sign of life 3\d s ago, and counts as dead after 120"
    with pytest.raises(UserError, match=told), lock.held(path):
        pass
    assert json.loads((path / "lock").read_bytes())["token"] == "other"


@pytest.mark.parametrize("age", [200.0, None])
def test_a_host_that_is_silent_counts_as_dead(path, age):
    write(path, host="elsewhere", process=1, sign=None if age is None else time.time() - age)
    with lock.held(path):
        assert json.loads((path / "lock").read_bytes())["process"] == os.getpid()
    assert not (path / "lock").exists()


def test_a_dead_process_of_this_host_is_followed_at_once(path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write(path, host=socket.gethostname(), process=dead.pid, sign=time.time(), token="dead")
    with lock.held(path):
        pass


def test_what_is_no_lock_of_ours_is_nobodys(path):
    here = json.dumps({"host": socket.gethostname(), "process": -1, "sign": time.time()}).encode()
    for content in (b"", b"[]", b"[" * 100_000, b"\xff", b'{"process": "x", "sign": "y"}', here):
        (path / "lock").write_bytes(content)
        with lock.held(path):
            pass


def test_of_two_that_begin_at_once_one_gives_way(path, monkeypatch):
    monkeypatch.setattr(lock, "SETTLES", 0.5)
    monkeypatch.setattr(lock, "_refuse_living", lambda file: None)  # both look before either has written
    outcomes = []

    def hold():
        try:
            with lock.held(path):
                outcomes.append("held")
                time.sleep(1.0)
        except UserError:
            outcomes.append("refused")

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]


def test_who_lost_the_lock_later_stops(path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    stopped = threading.Event()
    former = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        with lock.held(path):
            write(path, host="elsewhere", process=1, since="now", sign=time.time(), token="other")
            assert stopped.wait(10)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert (
        "being trained by another process (process 1 on elsewhere, since now); wait for it" in capsys.readouterr().err
    )


def test_a_sign_of_life_from_the_future_is_told_with_the_remedy(path):
    write(path, host="elsewhere", process=1, since="later", sign=time.time() + 1e6, token="other")
    told = (
        r"by this machine's clock its sign of life comes \d+ s from now.*where you know that it is gone, remove gs://"
    )
    with pytest.raises(UserError, match=told), lock.held(path):
        pass
