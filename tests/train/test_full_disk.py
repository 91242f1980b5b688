"""FAULTS 16: a run on a disk that is full at its metrics or at TensorBoard's file trains on, and loses no row."""

import os
import subprocess
import sys

import pytest

from mot.runs import rundir, tensorboard
from mot.runs.writer import Writer
from mot.train import loop
from tests.conftest import ROOT
from tests.support.training import rows, smoke

# A file that grows beyond some bytes is refused by the kernel, as a full disk refuses it, without mount or root.
GROWING = """
import resource, sys
from pathlib import Path
from mot.runs import tensorboard
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 8192))
board = tensorboard.Board(Path(sys.argv[1]), 1)
for step in range(100):
    board.add_scalar("loss", 1.0, step)
print(board.error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
board.add_scalar("loss", 1.0, 100)
print(board.error)
"""


def test_a_disk_that_is_full_at_tensorboards_file_costs_no_point(tmp_path):
    command = [sys.executable, "-c", GROWING, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "No space left on device\nNone\n", done.stderr
    (file,) = tmp_path.iterdir()
    points = [event.step for event, _ in tensorboard.read(file) if event.HasField("summary")]
    assert points == list(range(101))


def full(appender):
    """From now on this file takes half of a row, as the last block of a disk does."""

    class Full:
        def write(self, piece):
            return os.write(appender.kept.fileno(), piece[: len(piece) // 2])

        def fileno(self):
            return appender.kept.fileno()

        def close(self):
            appender.kept.close()

    appender.kept = appender.file
    appender.file = Full()


@pytest.mark.parametrize("where", ["metrics", "board"])
def test_metrics_that_cannot_be_written_for_a_while_are_written_later(tmp_path, monkeypatch, one_device, capfd, where):
    c = smoke(tmp_path, run__steps=4, run__save_every=2, run__eval_every=2)
    write = Writer.write

    def full_from_two_to_three(writer, kind, step, values):
        appender = writer.file if where == "metrics" else writer.board.file
        if (kind, step) == ("train", 2):
            full(appender)
        if (kind, step) == ("train", 4):
            appender.file = appender.kept
        write(writer, kind, step, values)

    monkeypatch.setattr(Writer, "write", full_from_two_to_three)
    path = loop.run(c, devices=one_device)
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4]
    assert [row["step"] for row in rows(path, "eval")] == [0, 2, 4]
    (file,) = (path / "tensorboard").glob("*tfevents*")
    points = [e for e, _ in tensorboard.read(file) if e.HasField("summary") and e.summary.value[0].tag == "loss"]
    assert [event.step for event in points] == [1, 2, 3, 4]
    said = capfd.readouterr().err
    assert said.count("ALARM: metrics cannot be written (No space left on device); training goes on") == 1
    assert said.count("metrics are written again; no row was lost") == 1


def test_where_a_resumed_run_meets_rows_that_it_wrote_each_stands_once(tmp_path, monkeypatch, one_device):
    """The disk takes no row of steps 3 to 5, and then the process is killed in the middle of one."""
    c = smoke(tmp_path / "killed", run__steps=8, run__save_every=4, run__eval_every=2)
    write = Writer.write

    class Killed(BaseException):
        pass

    def full_for_a_while_and_killed(writer, kind, step, values):
        if (kind, step) == ("train", 3):
            full(writer.file)
        if (kind, step) == ("train", 6):
            writer.file.file = writer.file.kept
        if (kind, step) == ("train", 7):
            raise Killed
        write(writer, kind, step, values)

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "write", full_for_a_while_and_killed)
        with pytest.raises(Killed):
            loop.run(c, devices=one_device)
    file = rundir.folder(c) / "metrics.jsonl"
    assert [row["step"] for row in rows(rundir.folder(c))] == [*range(1, 7)]
    file.write_bytes(file.read_bytes() + b'{"schema": 1, "kind": "train", "st')
    path = loop.run(c, devices=one_device)
    whole = loop.run(smoke(tmp_path / "whole", run__steps=8, run__save_every=4, run__eval_every=2), devices=one_device)

    def said(run):
        found = [row for row in rundir.read_metrics(run) if row["kind"] != "event"]
        return sorted(((row["kind"], row["step"], row["loss"]) for row in found), key=str)

    assert said(path) == said(whole)
    places = [(kind, step) for kind, step, _ in said(path)]
    assert len({*places}) == len(places) == 8 + 5


def test_rows_that_were_never_written_are_counted(tmp_path, monkeypatch, one_device, capfd):
    c = smoke(tmp_path, run__steps=2, run__save_every=2, run__eval_every=2)
    write = Writer.write

    def full_at_the_second(writer, kind, step, values):
        if (kind, step) == ("train", 2):
            full(writer.file)
        write(writer, kind, step, values)

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "write", full_at_the_second)
        path = loop.run(c, devices=one_device)
    assert "rows of metrics.jsonl were not written: No space left on device" in capfd.readouterr().err
    assert [row["step"] for row in rundir.read_metrics(path) if row["kind"] == "train"] == [1]


def test_events_are_read_back(tmp_path):
    board = tensorboard.Board(tmp_path, 3)
    board.add_scalar("loss", 2.0, 5)
    board.close()
    (file,) = tmp_path.iterdir()
    version, start, point = (event for event, _ in tensorboard.read(file))
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (3, start.session_log.START)
    assert (point.step, point.summary.value[0].tag, point.summary.value[0].simple_value) == (5, "loss", 2.0)
