"""The commands as a user meets them: exit codes, messages, and nothing written on bad input."""

import shlex
import subprocess
import sys
import time

import pytest

from launch import cli, flags
from mot.config import load
from mot.runs import rundir
from mot.train import loop
from scaling import runs
from tests.conftest import ROOT
from tests.support.commands import succeeds
from tests.support.devices import devices
from tests.support.training import ENV, SMOKE


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "usage: mot COMMAND"),
        (["fly"], "no command 'fly'; allowed: demo, train, sweep, evaluate"),
        (["train", "--config=nowhere.py"], "there is no file nowhere.py"),
        (
            ["train", "--config=configs/digits.py:arch=transformer"],
            "arch=transformer: no such arch; allowed: dense",
        ),
        (["train", "--config=configs/digits.py:colour=red"], "config argument 'colour=red' is unknown; allowed"),
        (["train", "--config=configs/digits.py:size=huge"], "size=huge: no such size; allowed: smoke, demo"),
        (["train", SMOKE, "--config.optim.inertia=0.9"], "optim.inertia: unknown key, value 0.9"),
        (["train", SMOKE, "--config.optim.lr=fast"], "optim.lr: 'fast' is str; must be of type float"),
        (["train", SMOKE, "--config.optimiser.lr=1"], "optimiser: unknown key"),
        (["train", SMOKE, "--config.data.shares.films=1"], "data.shares.films: no such source"),
        (["train", SMOKE, "--config.optim=3"], "optim: 3 is int; must be a group of keys"),
        (
            ["train", SMOKE, "--config.data.batch=4", "--config.run.root=README.md"],
            "README.md is a file, not a folder; move it away",
        ),
        (
            ["train", "--config=configs/base.py:arch=mot"],
            "base.py:arch=mot: get_config failed: TypeError",
        ),
        (["train", SMOKE, "--config.data.batch=four"], "data.batch: 'four' is str; must be of type int"),
        (["train", SMOKE, "--config.optim.lr.peak=3"], "optim.lr: "),
        (["train", "--config=configs/base.py"], "streams: "),
        (["demo", "--config.run.name=x"], "the demo names and seeds its runs; use --out and --seeds"),
        (["evaluate", SMOKE], "there is no such run directory"),
        (["demo", "--config=configs/digits.py:arch=mot"], "the demo chooses architectures; use --archs"),
        (["demo", "--archs= ,"], "names no architecture"),
        (["demo", "--setting=transfusion", SMOKE], "--setting=transfusion: a setting is a configuration; give one"),
        (["demo", "--setting=transfusion", "--config.data.x=1", "--archs=dense"], "data.x: unknown key"),
        (["demo", "--config.model=5"], "model: 5 is int; must be a group of keys"),
        (["train", SMOKE, "--config.model.seed=4294967296"], "must be less than 2147483648 in size"),
        (["train", SMOKE, "--config.optim.lr=" + "9" * 400], "must be less than 2147483648 in size"),
        (
            ["train", "--config=README.md"],
            "README.md is not run, as its name does not end in .py; name a configuration's",
        ),
        (["train", "--config=configs/archs.py"], "defines no get_config(arg)"),
        (
            [
                "train",
                SMOKE,
                "--config.model.heads=1000000000",
                "--config.model.kv_heads=1000000000",
                "--config.data.batch=4",
            ],
            "and a device has ",
        ),
        (["train", SMOKE, "--config.data.batch=1000000000"], "residual stream of 1,000,000,000 rows"),
        (["demo", "--seeds=0"], "--seeds=0; must be 1 or more"),
        (["train", SMOKE, "--config.run.root=gs:/bucket/a"], "run.root: 'gs:/bucket/a': must be gs://BUCKET/FOLDER"),
        (["train", SMOKE, "--config.run.root=gs://bucket/a[1]"], "without any of * ? [ ] #"),
        (["train", SMOKE, "--accept="], "--accept=: '' is no kind of difference; allowed: config, tree"),
        (["checkpoint", "list", "gs://"], "'gs://': must be gs://BUCKET/FOLDER"),
        (
            ["train", SMOKE, "--config.init.run=a", "--config.init.state=all", "--config.init.match=text"],
            "init.match: 'text', but init.state is all, which takes everything",
        ),
    ],
)
def test_bad_input_gets_one_message_exit_code_2_and_nothing_written(tmp_path, capsys, monkeypatch, args, says):
    monkeypatch.chdir(ROOT)
    root = tmp_path / "runs"
    if args and args[0] in ("train", "evaluate") and not any("run.root" in x for x in args):
        args = [*args, f"--config.run.root={root}"]
    assert cli.main(args) == 2
    printed = capsys.readouterr()
    assert says in printed.out + printed.err
    assert "Traceback" not in printed.err
    assert not root.exists()


def test_all_faults_of_a_command_line_come_at_once(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    bad = ["optim.lr=-1", "model.heads=3", "model.kv_heads=2", "run.steps=0", "streams.image.budget=10", "nothing=1"]
    bad.append("optim.base_rules=({'match': 'norm', 'lr': 1.0, 'decay': 0.0},)")
    assert cli.main(["train", SMOKE, *(f"--config.{x}" for x in bad)]) == 2
    message = capsys.readouterr().err
    for key in (
        "optim.lr: -1",
        "model.heads: 3",
        "optim.rules, base_rules: no rule matches",
        "run.steps: 0",
        "streams.image.budget: 10",
        "nothing: unknown key",
    ):
        assert key in message, message


@pytest.mark.parametrize("command", ["config", "evaluate"])
def test_an_override_may_hold_spaces(capsys, monkeypatch, command):
    """argparse alone takes it for a key, or a run directory."""
    monkeypatch.chdir(ROOT)
    file = SMOKE.removeprefix("--config=") if command == "config" else SMOKE
    assert cli.main([command, file, "--config.towers.norm.image=0:1 image, 1:2 sound"]) == 2
    assert "towers.norm.image: 'sound'; a tower is named by a stream" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["run.name=/" + "x" * 2000],
        ["towers.ffn.image=" + "0:1 image, " * 200],
        ["model.rope_sections=(" + "1," * 800 + ")"],
        ["x" * 2000 + "=1"],
    ],
)
def test_a_message_does_not_repeat_all_of_a_very_long_value(capsys, monkeypatch, words):
    monkeypatch.chdir(ROOT)
    assert cli.main(["config", SMOKE.removeprefix("--config="), *(f"--config.{word}" for word in words)]) == 2
    message = capsys.readouterr().err
    assert "... " in message or "...;" in message
    assert len(message) < 700


def test_flags_that_are_no_overrides_are_refused():
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", SMOKE, "--steps=3"])
    assert caught.value.code == 2


def test_overrides_keep_types_and_reach_every_depth(monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = {"optim.lr": "1e-3", "run.name": "12", "towers.norm.image": "text", "model.scan": "True"}
    overrides["optim.rules"] = "({'match': '.*', 'lr': 1, 'decay': 0.0},)"
    c = flags.build(load.read(SMOKE.removeprefix("--config="), overrides))
    assert (c.optim.lr, c.run.name, c.towers.norm["image"], c.model.scan) == (1e-3, "12", "text", True)
    assert c.optim.rules[0].lr == 1.0


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name not in ("data", "checkpoint")])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  mot {command} " in capsys.readouterr().out


def test_train_then_evaluate_from_the_shell(tmp_path, monkeypatch):
    root = f"--config.run.root={tmp_path}"
    command = [sys.executable, "-m", "launch.cli", "train", SMOKE, root]
    optimised = ENV | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}  # compiled as a user's
    trained = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=optimised, timeout=300)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.strip() == str(tmp_path / "digits-mot-smoke")
    monkeypatch.chdir(ROOT)
    with devices(1):
        assert "loss/image/drawn" in succeeds("evaluate", SMOKE, root)[0]


@pytest.fixture
def trained(monkeypatch):
    """The configurations of runs whose training is left out."""
    monkeypatch.chdir(ROOT)
    trained = []

    def run(config, profiled, accept):
        trained.append(config)
        step = rundir.open_run(config) / "checkpoints" / str(config.run.steps)
        step.mkdir(parents=True)
        (step / "manifest.json").write_text("{}", encoding="utf-8")
        return rundir.folder(config)

    monkeypatch.setattr(loop, "run", run)
    return trained


@pytest.fixture
def train(trained, capsys):
    """Trains; the arguments of the line that trains further, and what it says of it."""

    def train(*arguments):
        assert cli.main(["train", *arguments]) == 0
        line = next(line for line in capsys.readouterr().err.splitlines() if "  # further: " in line)
        command, _, what = line.partition("  # further: ")
        return shlex.split(command)[2:], what

    return train


def test_what_comes_next_can_be_pasted(tmp_path, trained, train):
    """A run whose rate has decayed is begun anew from its weights, one of a constant rate goes on; both are told."""
    further, what = train(SMOKE, f"--config.run.root={tmp_path}")
    assert what.startswith("its cosine schedule ended at step 2, so another run begins from it")
    further, what = train(*further, "--config.optim.schedule=constant")
    assert trained[-1].init.run == str(tmp_path / "digits-mot-smoke")
    assert what == "its rate is constant, so the same run goes on"
    train(*further)
    assert [rundir.folder(c) for c in trained[1:]] == [tmp_path / "digits-mot-smoke-further"] * 2
    assert trained[-1].init.run == trained[-2].init.run
    assert (trained[-2].run.steps, trained[-1].run.steps) == (2, 4)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_what_comes_next_can_be_pasted_where_flops_set_the_steps(tmp_path, trained, train, schedule):
    budget = ["--config.run.steps=0", "--config.run.flops=2e10", f"--config.optim.schedule={schedule}"]
    further, _ = train(SMOKE, f"--config.run.root={tmp_path}", "--config.optim.warmup=50", *budget)
    train(*further)
    before, after = trained
    assert before.run.steps > 1
    assert after.optim.warmup == before.optim.warmup < 50
    assert after.run.steps == before.run.steps * (2 if schedule == "constant" else 1)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("evil.json", "evil.json is not run, as its name does not end in .py; name a configuration's .py file"),
        ("evil", "evil is not run, as its name does not end in .py"),
        (
            "config.json",
            "is what a run wrote, and is never run; `mot evaluate {}` reads the run; to train, name the .py",
        ),
        ("broken.py", "broken.py is no configuration file: SyntaxError"),
    ],
)
@pytest.mark.parametrize("command", [["config"], ["train", "--config"], ["plan", "--help", "--config"]])
def test_only_a_file_of_python_is_run_as_a_configuration(tmp_path, capsys, command, name, says):
    marker = tmp_path / "was run"
    end = "(" if name == "broken.py" else ""
    (tmp_path / name).write_text(f"open({str(marker)!r}, 'w')\n{end}", encoding="utf-8")
    assert cli.main([*command, f"{tmp_path / name}:arch=mot"]) == 2
    assert says.format(tmp_path) in capsys.readouterr().err
    assert not marker.exists()


def test_ctrl_c_ends_with_a_checkpoint_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "launch.cli", "train", SMOKE, f"--config.run.root={tmp_path}"]
    command += ["--config.run.steps=100000", "--config.run.save_every=100000", "--config.run.eval_every=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENV)
    metrics = tmp_path / "digits-mot-smoke" / "metrics.jsonl"
    for _ in range(3000):
        if metrics.exists() and '"train"' in metrics.read_text(encoding="utf-8"):
            break
        time.sleep(0.1)
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "saved; the same command resumes" in err
    assert list((tmp_path / "digits-mot-smoke" / "checkpoints").glob("*/manifest.json"))


@pytest.mark.parametrize(
    ("setting", "unit", "published"),
    [
        ("digits", "nats", "Chameleon"),
        pytest.param("transfusion", "squared error", "Transfusion", marks=pytest.mark.slow),  # a minute of compiling
    ],
)
def test_the_demo_trains_both_draws_and_reports(tmp_path, setting, unit, published):
    with devices(1):
        said, _ = succeeds("demo", f"--config={ROOT}/configs/{setting}.py:size=smoke", "--seeds=1", f"--out={tmp_path}")
    for text in (
        "dense",
        "mot",
        f"held-out image loss ({unit})",
        "held-out text loss (nats)",
        "parameters",
        "FLOPs per token",
        "fill, image",
    ):
        assert text in said
    assert "(too short: no verdict)" in said
    assert f"report: {tmp_path / 'report.html'}" in said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Samples over training" in page
    assert f"{published} setting" in page
    for arch in ("dense", "mot"):
        assert (tmp_path / f"{arch}-seed0" / "samples" / "2" / "digits.png").exists()
    dense, mot_ = (runs.read(tmp_path / f"{arch}-seed0") for arch in ("dense", "mot"))
    assert (dense.arch, mot_.arch) == ("dense", "mot")
    assert dense.digest == mot_.digest
    assert dense.series("train", "tokens/image")[1][-1] == mot_.series("train", "tokens/image")[1][-1] > 0
