"""`mot launch --target slurm` on a real Slurm."""

import re
import subprocess
import sys
import time

import pytest

from launch.targets import job
from mot.runs import rundir
from tests.support import killed, processes
from tests.support.commands import run, succeeds
from tests.support.training import SMOKE

STEPS = 24
SETTINGS = dict(run__steps=STEPS, run__save_every=4, run__eval_every=100, run__keep=20, run__peer_timeout=60)
PATIENCE = 500.0  # seconds


def overrides(root):
    given = {key.replace("__", "."): value for key, value in SETTINGS.items()} | {"run.root": root}
    return [f"--config.{key}={value}" for key, value in given.items()]


@pytest.fixture
def one_device(monkeypatch, tmp_path, cluster):
    """What Slurm's jobs inherit; launched from an empty folder."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wait_for(found, name, patience=PATIENCE):
    end = time.monotonic() + patience
    while not (last := found()):
        assert time.monotonic() < end, logs(name)
        time.sleep(0.1)
    return last


def logs(name):
    folder = processes.Path("launched") / name
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in sorted(folder.glob("*.txt")))


def has_ended(name):
    return "not in the queue" in succeeds("launch", "status", name)[0]


def reached(path):
    rows = rundir.read_metrics(path) if (path / "metrics.jsonl").exists() else []
    return max((row["step"] for row in rows if row["kind"] == "train"), default=0)


def pids_of(root):
    """The processes of mot that train there."""
    told = subprocess.run(["ps", "-eo", "pid,args", "-ww"], capture_output=True, encoding="utf-8", check=True).stdout
    lines = [line.split(maxsplit=1) for line in told.splitlines()]
    wanted = rf"\S*python\S* (-\S+ )*-m mot train .*{re.escape(str(root))}"
    return [int(pid) for pid, command in lines if re.match(wanted, command)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cluster):
    """The run that nobody stopped, of two tasks."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
        monkeypatch.chdir(root)
        succeeds("launch", "--target=slurm", "--tasks=2", "--name=whole", "--", "train", SMOKE, *overrides(root))
        wait_for(lambda: has_ended("whole"), "whole")
        assert "queued again" not in logs("whole")
    return processes.results(processes.folder(root), STEPS)


@pytest.mark.parametrize("how", ["SIGKILL of one task", "SIGTERM before the time limit"])
def test_a_run_of_two_tasks_is_queued_again_and_ends_with_the_bits_of_one_that_nobody_stopped(one_device, whole, how):
    root = one_device / "runs"
    name = "stopped"
    launched = ["launch", "--target=slurm", "--tasks=2", f"--name={name}", "--", "train", SMOKE, *overrides(root)]
    succeeds(*launched)
    path = processes.folder(root)
    wait_for(lambda: reached(path) >= 6, name)
    code, _, said = run(*launched)
    assert code == 2
    assert "runs already" in said
    if how.startswith("SIGKILL"):
        pids = pids_of(root)
        assert len(pids) == 2
        subprocess.run(["kill", "-KILL", str(pids[1])], check=True)
    else:  # as --signal=TERM@... has Slurm do: to the steps, and not to the script
        number = subprocess.run(
            ["squeue", "--me", "-h", "-o", "%A"], capture_output=True, encoding="utf-8", check=True
        ).stdout.split()[0]
        subprocess.run(["scancel", "--signal=TERM", number], check=True)
    wait_for(lambda: "queued again" in logs(name), name)
    assert reached(path) < STEPS
    wait_for(lambda: has_ended(name), name)
    assert not killed.unlike(processes.results(path, STEPS), whole)


# A sweep of two rows in few words: `mot sweep SPEC --out OUT --row I` as far as an array needs it.
SWEEP = """
import sys
from mot.__main__ import main

_, spec, _, out, _, row = sys.argv[1:]
own = {"run.root": out, "run.name": f"row-{row}", "model.seed": row}
sys.argv = ["mot", "train", spec, *(f"--config.{key}={value}" for key, value in own.items())]
if __name__ == "__main__":
    sys.exit(main())
"""


def test_the_rows_of_a_sweep_are_an_array(one_device, monkeypatch):
    (one_device / "sweep.py").write_text(SWEEP, encoding="utf-8")
    monkeypatch.setattr(job, "MOT", [sys.executable, str(one_device / "sweep.py")])
    sweep = ["sweep", SMOKE, "--out", str(one_device / "out")]
    succeeds("launch", "--target=slurm", "--name=rows", "--rows=2", "--", *sweep)
    wait_for(lambda: has_ended("rows"), "rows")
    assert sorted(path.name for path in (one_device / "out").iterdir()) == ["row-0", "row-1"], logs("rows")
    assert [reached(one_device / "out" / f"row-{i}") for i in range(2)] == [2, 2]


def test_a_queue_that_refuses_is_one_message(one_device):
    code, _, said = run("launch", "--target=slurm", "--partition=nowhere", "--", "train", SMOKE)
    assert code == 2
    assert re.search(r"mot: sbatch .*: refused \(exit code 1\): .*invalid partition", said, re.IGNORECASE)
    assert not list(processes.Path("launched").glob("*/launch.json"))


def test_a_run_that_is_stopped_saves_and_is_not_queued_again(one_device):
    root = one_device / "runs"
    succeeds(
        "launch", "--target=slurm", "--name=gone", "--", "train", SMOKE, *overrides(root), "--config.run.steps=4000"
    )
    path = processes.folder(root)
    wait_for(lambda: reached(path) >= 6, "gone")
    succeeds("launch", "stop", "gone")
    wait_for(lambda: has_ended("gone"), "gone")
    assert "queued again" not in logs("gone")
    assert processes.saved(root)[-1] >= 6
