"""The real W&B and trackio, offline, in processes of their own, as they keep what an environment said first."""

import json
import subprocess
import sys

import pytest

from mot.runs import rundir, services
from tests.conftest import ROOT
from tests.support.training import ENV, TRAIN, printed, rows

KEY = "0123456789abcdef0123456789abcdef01234567"  # of the form that W&B's have
SECRETS = {"WANDB_API_KEY": KEY, "HF_TOKEN": "hf_planted0123456789", "TRACKIO_WRITE_TOKEN": "planted-write-token"}
KILLED = """
import os, signal, sys, time
from mot.runs.log import Log
from launch import train
write = Log.write
def killed_after_three(log, step, seconds):
    row = write(log, step, seconds)
    if step.number == 3:
        (tracker, _) = log.writer.trackers
        while tracker.sent.get("train") != 3:  # W&B takes some seconds to begin, and has not written it to its file yet
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return row
Log.write = killed_after_three
train.main(sys.argv[1:])
"""


def environment(tmp_path, **more):
    """Of a machine on which nobody is logged in."""
    bare = {name: value for name, value in ENV.items() if not name.startswith(("WANDB_", "TRACKIO_", "HF_"))}
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    return bare | {"HOME": str(home), "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"} | more


def trained(tmp_path, *options, command=TRAIN, code=0, **more):
    """What a training of four steps says, with a checkpoint at every second."""
    given = [f"--config.run.root={tmp_path / 'sweep'}", "--config.run.trackers=wandb,trackio", "--config.run.name=one"]
    given += ["--config.run.steps=4", "--config.run.save_every=2", "--config.run.eval_every=2", *options]
    done = subprocess.run(
        [*command, *given],
        cwd=ROOT,
        env=environment(tmp_path, **more),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def in_trackio(tmp_path):
    """The rows of the only run that trackio's database has, and its configuration."""
    asked = (
        "import json, trackio; from trackio.sqlite_storage import SQLiteStorage as s;"
        "(run,) = trackio.Api().runs('mot'); print(json.dumps([run.name, run.config, s.get_logs('mot', run.name)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked], env=environment(tmp_path), capture_output=True, encoding="utf-8", check=True
    )
    return json.loads(done.stdout)


def in_wandb(run):
    """Id, group, name and project, and the rows, that W&B's files in a run's folder hold, by its starts."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    records = [record for file in files for record in services.wandb_records(file)]
    told = [Record.FromString(record).run for record in records]
    (about,) = {(x.run_id, x.run_group, x.display_name, x.project) for x in told if x.run_id}
    return about, [row for row in map(services.wandb_row, records) if row]


def losses(given):
    """`(tag, step, value)` of what a tracker has of the losses of all modalities, in order."""
    return [(tag, row["step"], row[tag]) for row in given for tag in ("loss", "eval/loss") if tag in row]


def expected(run):
    """What it must have."""
    of = {("loss" if kind == "train" else "eval/loss", kind) for kind in ("train", "eval")}
    return sorted((tag, row["step"], row["loss"]) for tag, kind in of for row in rows(run, kind))


def test_a_run_that_is_killed_and_resumed_is_one_run_with_each_row_once(tmp_path):
    """Its third row went out, and is dropped and written again."""
    said = trained(tmp_path, command=[sys.executable, "-c", KILLED, *TRAIN[3:]], code=-9)
    run = tmp_path / "sweep" / "one"
    assert [row["step"] for row in rows(run)] == [1, 2, 3]
    assert "wandb: offline; `wandb sync " in said
    assert "trackio: run one-" in said
    trained(tmp_path)
    name, config, given = in_trackio(tmp_path)
    assert sorted(losses(given)) == expected(run)
    assert config["optim"] == rundir.read_config(run)["optim"]
    assert config["_Group"] == "sweep"
    about, given = in_wandb(run)
    assert sorted(losses(given)) == expected(run)
    known = {x: json.loads((run / "trackers" / f"{x}.json").read_text(encoding="utf-8")) for x in ("wandb", "trackio")}
    assert about == (known["wandb"]["id"], "sweep", "one", "mot")
    assert name == f"one-{known['trackio']['id']}"


def test_each_run_of_one_program_is_a_run_of_its_own(tmp_path):
    trained(tmp_path, "--runs", "optim.lr=1e-3,2e-3")
    runs = sorted((tmp_path / "sweep").iterdir())
    assert [run.name for run in runs] == ["one-lr0.001", "one-lr0.002"]
    for run in runs:
        about, given = in_wandb(run)
        assert about[2] == run.name
        assert sorted(losses(given)) == expected(run)


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_keys_are_nowhere_and_a_server_that_is_not_there_delays_nothing(tmp_path, mode):
    """Online there is nobody at the address to which W&B would send them."""
    said = trained(tmp_path, WANDB_MODE=mode, WANDB_BASE_URL="http://127.0.0.1:9", **SECRETS)
    run = tmp_path / "sweep" / "one"
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]
    held = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(held) > 20
    for secret in SECRETS.values():
        assert secret not in said
        assert not [path for path in held if secret.encode() in path.read_bytes()]
    assert ("ALARM: wandb" in said) == (mode == "online")
    assert sorted(losses(in_trackio(tmp_path)[2])) == expected(run)


def test_nothing_imports_them_unasked():
    """A training that names no tracker, and every light command."""
    asked = "import sys, mot.train.loop, launch.cli; print({'wandb', 'trackio'} & set(sys.modules))"
    assert printed(asked) == "set()\n"
