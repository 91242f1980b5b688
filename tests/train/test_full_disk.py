"""A run on a disk that is full at its metrics or at TensorBoard's file: one message, no wait, and it resumes."""

import subprocess
import sys
from pathlib import Path

import pytest

from mot import checkpoint
from mot.errors import UserError
from mot.runs import tensorboard
from mot.runs.writer import Writer
from mot.train import loop
from tests.conftest import ROOT
from tests.support.training import rows, smoke

FULL = Path("/dev/full")

# A file that grows beyond some bytes is refused by the kernel, as a full disk refuses it, without mount or root.
GROWING = """
import resource, sys
from pathlib import Path
from mot.runs import tensorboard
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
board = tensorboard.Board(Path(sys.argv[1]), 1)
try:
    for step in range(1000):
        board.add_scalar("loss", 1.0, step)
        board.flush()
except OSError as error:
    print(error.strerror)
"""


def test_a_disk_that_is_full_at_tensorboards_file_is_an_error_and_no_wait(tmp_path):
    command = [sys.executable, "-c", GROWING, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "File too large\n", done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("where", ["metrics", "board"])
def test_a_run_whose_disk_is_full_says_what_was_saved_last_and_resumes(tmp_path, monkeypatch, one_device, where):
    c = smoke(tmp_path, run__steps=2, run__save_every=1, run__eval_every=2)
    write = Writer.write

    def full_at_the_second(writer, kind, step, values):
        if (kind, step) == ("train", 2):
            if where == "metrics":
                writer.file = FULL.open("a", encoding="utf-8")
            else:
                writer.board.file = FULL.open("ab")
        write(writer, kind, step, values)

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "write", full_at_the_second)
        with pytest.raises(
            UserError, match=r"No space left on device: .*; step 1 was saved last, and the same command"
        ):
            loop.run(c, devices=one_device)
    path = loop.run(c, devices=one_device)
    assert [row["step"] for row in rows(path)] == [1, 2]
    assert checkpoint.steps(path / "checkpoints") == [1, 2]


def test_events_are_read_back(tmp_path):
    board = tensorboard.Board(tmp_path, 3)
    board.add_scalar("loss", 2.0, 5)
    board.close()
    (file,) = tmp_path.iterdir()
    version, start, point = (event for event, _ in tensorboard.read(file))
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (3, start.session_log.START)
    assert (point.step, point.summary.value[0].tag, point.summary.value[0].simple_value) == (5, "loss", 2.0)
