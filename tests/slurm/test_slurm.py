"""`mot launch --target slurm` on a real Slurm."""

import re
import subprocess
import time

import pytest

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


@pytest.mark.parametrize("how", ["SIGKILL of one task", "SIGTERM of all"])
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
    else:  # to the steps of the job, and not to its script: as before the time limit
        number = subprocess.run(
            ["squeue", "--me", "-h", "-o", "%A"], capture_output=True, encoding="utf-8", check=True
        ).stdout.split()[0]
        subprocess.run(["scancel", "--signal=TERM", number], check=True)
    wait_for(lambda: "queued again" in logs(name), name)
    assert reached(path) < STEPS
    wait_for(lambda: has_ended(name), name)
    assert not killed.unlike(processes.results(path, STEPS), whole)


SWEEP = """
def two(arg):
    config = "configs/digits.py:arch=mot,size=smoke"
    return [{"config": config, "run.name": f"row-{i}", "model.seed": i} for i in range(2)]
"""


def test_the_rows_of_a_sweep_are_an_array(one_device):
    (one_device / "sweeps.py").write_text(SWEEP, encoding="utf-8")
    out = one_device / "out"
    succeeds("launch", "--target=slurm", "--name=rows", "--", "sweep", "sweeps.py:two", "--out", str(out))
    wait_for(lambda: has_ended("rows"), "rows")
    assert len(list(processes.Path("launched/rows").glob("log-*_*.txt"))) == 2
    assert [reached(out / f"row-{i}") for i in range(2)] == [2, 2], logs("rows")


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


def test_a_run_whose_time_is_nearly_over_saves_and_is_queued_again(one_device):
    launched = ["launch", "--target=slurm", "--name=long", "--time=2", "--grace=60", "--", "train", SMOKE]
    succeeds(*launched, *overrides(one_device / "runs"), "--config.run.steps=100000")
    wait_for(lambda: "queued again" in logs("long"), "long")
    succeeds("launch", "stop", "long")
    assert "launch: ended with 75; queued again" in logs("long")
    assert "DUE TO TIME LIMIT" not in logs("long")
