"""A run whose run.root is a bucket: killed, resumed, read by every command, and equal to a run in a folder."""

import signal
import time

import pytest

from mot import files
from mot.checkpoint import manifest
from mot.runs import rundir
from tests.support import killed
from tests.support.commands import run, succeeds
from tests.support.examples import CLOCK


def rows(path):
    kept = [row for row in rundir.read_metrics(path) if row["kind"] != "event"]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in kept]


def arrays(path):
    return manifest.verify(path / "checkpoints" / str(killed.STEPS))["arrays"]


@pytest.fixture(scope="module")
def in_bucket(bucket, tmp_path_factory):
    """A run that was killed once it had saved a step, and then went on to its end."""
    root = files.as_path(f"{bucket}/{tmp_path_factory.mktemp('root').name}")
    path = root / killed.NAME
    process = killed.start(root)
    while process.poll() is None and not files.numbered(path / "checkpoints", holding=manifest.MANIFEST):
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, said
    assert not (path / "checkpoints" / str(killed.STEPS)).is_dir()
    killed.finish(root)
    return path


@pytest.fixture(scope="module")
def in_folder(tmp_path_factory):
    return killed.finish(tmp_path_factory.mktemp("root"))


def test_it_resumes_to_the_bits_and_rows_of_a_run_in_a_folder(in_bucket, in_folder):
    assert arrays(in_bucket) == arrays(in_folder)
    assert rows(in_bucket) == rows(in_folder)


def test_every_command_reads_it(in_bucket, tmp_path):
    for command in (
        ["evaluate", in_bucket],
        ["replay", in_bucket, "6"],
        ["sample", in_bucket, "--each=1", "--read=1"],
        ["checkpoint", "list", in_bucket],
        ["checkpoint", "verify", in_bucket, f"--step={killed.STEPS}"],
        ["checkpoint", "show", in_bucket, "params/embed"],
        ["report", in_bucket, f"--out={tmp_path}"],
    ):
        succeeds(*command)
    assert (in_bucket / "samples" / str(killed.STEPS) / "samples.json").is_file()


def test_a_flipped_bit_is_found_and_the_older_step_taken(in_bucket):
    target = in_bucket / "checkpoints" / str(killed.STEPS)
    name = next(name for name in manifest.files(target) if name.startswith("params/") and "/d/" in name)
    whole = (target / name).read_bytes()
    (target / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    try:
        code, out, _ = run("checkpoint", "verify", in_bucket, f"--step={killed.STEPS}")
        assert (code, "is damaged: its digest is not the manifest's" in out) == (2, True)
    finally:
        (target / name).write_bytes(whole)


def test_a_bucket_that_is_not_there_is_one_message(bucket):
    code, _, err = run(*killed.arguments("gs://no-such-bucket/runs"))
    assert code == 2
    assert "gs://no-such-bucket/runs/digits-mot-smoke: nothing can be written there" in err
    assert "see that the bucket exists, that this machine's account may write to it" in err
    code, _, err = run("evaluate", "gs://no-such-bucket/runs/a")
    assert (code, "gs://no-such-bucket/runs/a: there is no such run directory" in err) == (2, True)
