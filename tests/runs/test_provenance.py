"""A run says which code, command and machine made it, and when; and says no secret."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jax
import pytest

from launch import cli
from mot import checkpoint
from mot.checkpoint import manifest
from mot.runs import provenance, rundir
from tests.support.training import SMOKE

SAID = ("version", "commit", "dirty", "command", "host", "device_kind", "devices", "cpu", "platform", "python", "time")
SAID += (*provenance.PACKAGES, "matmul_peak", "matmul_peak_measured", "matmul_peak_cached")
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained for a step, then for one more."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for steps in (1, 2):
            settings = dict(root=root, steps=steps, eval_batches=1, eval_every=1)
            argv = ["train", SMOKE, "--config.data.batch=4", "--config.optim.schedule=constant"]
            argv += [f"--config.run.{key}={value}" for key, value in settings.items()]
            patch.setattr(sys, "argv", [f"{Path(sys.executable).parent}/mot", *argv])
            patch.setattr(sys.modules["__main__"], "__spec__", None)
            assert cli.main(argv) == 0
    return root / "digits-mot-smoke"


def test_each_start_says_what_made_it(run):
    first, second = [row for row in rundir.read_metrics(run) if row.get("event") == "start"]
    for event, steps in ((first, 1), (second, 2)):
        assert not [key for key in SAID if event.get(key) is None and key not in ("commit", "dirty")]
        assert shlex.split(event["command"])[:3] == ["mot", "train", SMOKE]
        assert f"--config.run.steps={steps}" in shlex.split(event["command"])
        assert (event["jax"], event["devices"]) == (jax.__version__, 4)
        assert ISO.fullmatch(event["matmul_peak_measured"])
        training, held_out = (event["size"][split] for split in ("training", "held_out"))
        assert training["documents"] > held_out["documents"] > 0
        assert all(training["tokens"][m] > held_out["tokens"][m] > 0 for m in ("text", "image"))
    assert second["matmul_peak"] >= first["matmul_peak"], "what was measured is kept"


def test_every_row_has_the_time_of_day(run):
    rows = rundir.read_metrics(run)
    assert {row["kind"] for row in rows} == {"train", "eval", "event"}
    assert {"changed", "saved", "start"} == {row["event"] for row in rows if row["kind"] == "event"}
    assert all(ISO.fullmatch(row["time"]) for row in rows)
    times = [datetime.fromisoformat(row["time"]) for row in rows]
    assert sorted(times) == times
    assert datetime.now(UTC) - times[0] < timedelta(hours=1)


def test_a_checkpoint_says_what_made_it(run, capsys):
    start = [row for row in rundir.read_metrics(run) if row.get("event") == "start"][-1]
    made = checkpoint.made_by(run / "checkpoints" / "2")
    assert {key: made[key] for key in ("version", "commit", "command", "host", "jax")} == {
        key: start[key] for key in ("version", "commit", "command", "host", "jax")
    }
    capsys.readouterr()
    assert cli.main(["evaluate", str(run)]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("checkpoint of step 2: ")]
    assert f"made {made['time']} on {made['host']} (4 x cpu, " in line
    assert f"by mot {made['version']}" in line


def test_a_checkpoint_of_an_earlier_version_is_read(run, tmp_path, capsys):
    """Its manifest has files alone, and its meta no `made_by`."""
    shutil.copytree(run, tmp_path / "old")
    target = tmp_path / "old" / "checkpoints" / "2"
    (target / "meta").mkdir()
    (target / "meta" / "metadata").write_text(json.dumps({"format": 1, "step": 2}), encoding="utf-8")
    written = manifest.digests(target, manifest.files(target))
    (target / "manifest.json").write_text(json.dumps(written), encoding="utf-8")
    assert cli.main(["evaluate", str(tmp_path / "old")]) == 0
    assert "checkpoint of step 2: made by a version of mot that did not write down where" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["mot", "train", "--config=a.py:arch=mot,size=smoke"], ["mot", "train", "--config=a.py:arch=mot,size=smoke"]),
        (["mot", "a file", "--runs", "optim.lr=1,2"], ["mot", "a file", "--runs", "optim.lr=1,2"]),
        (["x", "--config.model.tokens=3", "--tokenizer", "t.json"],) * 2,
        (["x", "--config.attn.text.keys=own", "--max-text", "9", "key"],) * 2,
        (["x", "--token", "abc", "--n", "3"], ["x", "--token", "***", "--n", "3"]),
        (["x", "--hf-token=abc,def"], ["x", "--hf-token=***"]),
        (["x", "--config.data.api_key=abc"], ["x", "--config.data.api_key=***"]),
        (["x", "--config=a.py:apiKey=abc,size=smoke"], ["x", "--config=a.py:apiKey=***,size=smoke"]),
        (["x", "PASSWORD=abc", "--my.client_secret", "-q"], ["x", "PASSWORD=***", "--my.client_secret", "***"]),
        (["x", "hf_" + "a" * 34, "n=ghp_" + "b" * 36], ["x", "***", "n=***"]),
        (["x", "https://me:pass@host/a?part=1&access_token=z"], ["x", "https://***@host/a?part=1&access_token=***"]),
        (["x", '{"secret": "two words", "a": 1}'], ["x", '{"secret": ***, "a": 1}']),
        (["x", "Authorization: Bearer abc", "AKIA" + "A" * 16], ["x", "Authorization: Bearer ***", "***"]),
        (["x", "a\udce9"], ["x", "a\\udce9"]),
    ],
)
def test_what_looks_secret_is_not_written_down(typed, kept):
    assert shlex.split(provenance.command(typed)) == kept


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, encoding="utf-8", check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository that mot's code lies in."""
    code = tmp_path / "mot"
    code.mkdir()
    for name in ("__init__.py", "provenance.py"):
        (code / name).write_text("", encoding="utf-8")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "mot")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "__file__", str(code / "provenance.py"))
    return tmp_path


def test_the_commit_is_of_the_checkout_that_mot_lies_in(checkout, monkeypatch):
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of another repository
    assert provenance.commit.__wrapped__() == (head, False)
    (checkout / "mot" / "provenance.py").write_text("changed\n", encoding="utf-8")
    assert provenance.commit.__wrapped__() == (head, True)


def test_a_package_in_an_environment_below_a_checkout_is_not_of_its_commit(checkout, monkeypatch):
    installed = checkout / ".venv" / "mot"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.setattr(provenance, "__file__", str(installed / "provenance.py"))
    assert provenance.commit.__wrapped__() == (None, None)


@pytest.mark.parametrize("program", ["", "#!/bin/sh\nexec sleep 60\n", "#!/bin/sh\nexit 3\n"])
def test_without_a_git_that_answers_there_is_no_commit(checkout, monkeypatch, program):
    (checkout / "bin").mkdir()
    if program:
        (checkout / "bin" / "git").write_text(program, encoding="utf-8")
        os.chmod(checkout / "bin" / "git", 0o755)
    monkeypatch.setenv("PATH", f"{checkout / 'bin'}:/usr/bin:/bin" if program else str(checkout / "bin"))
    monkeypatch.setattr(provenance, "GIT_TIMEOUT", 0.2)
    start = time.monotonic()
    assert provenance.commit.__wrapped__() == (None, None)
    assert time.monotonic() - start < 10
