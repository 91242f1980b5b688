"""Commands work wherever they are given: installed, in another folder, with a project that was moved."""

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

from launch import cli, flags
from mot.config import load
from mot.errors import UserError
from mot.runs import rundir
from mot.train import loop
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUP = PROJECT["tool"]["setuptools"]
SIZES = "size=smoke,length=64"


def folder_of(package):
    """Where the repository has an installed package, by pyproject's mapping."""
    return SETUP["package-dir"].get(package, package.replace(".", "/"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """`mot`'s packages as a wheel lays them out, and nothing else of the repository."""
    site = tmp_path_factory.mktemp("site")
    for package in SETUP["packages"]:
        to = site / package.replace(".", "/")
        to.mkdir(parents=True, exist_ok=True)
        for pattern in ("*.py", *SETUP["package-data"].get(package, ())):
            for file in (ROOT / folder_of(package)).glob(pattern):
                shutil.copyfile(file, to / file.name)
    return site


def mot(site, folder, *args):
    env = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-P", "-m", "mot", *args]
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder, env=env, timeout=300)


def test_a_wheel_holds_every_package_and_takes_one_name():
    everywhere = {"mot", "mot.configs", "mot.configs.recipes", "mot.launch", "mot.launch.targets", "mot.scaling"}
    folders = {p.parent for p in (ROOT / "mot").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)
    everywhere |= {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(SETUP["packages"]) == everywhere
    for package in SETUP["packages"]:
        suffixes = {p.name for p in (ROOT / folder_of(package)).iterdir() if p.is_file() and p.suffix != ".py"}
        assert suffixes == set(SETUP["package-data"].get(package, ())), package
    assert PROJECT["project"]["scripts"] == {"mot": "mot.__main__:main"}


def test_installed_it_trains_from_any_folder_whatever_else_is_called_configs(installed, tmp_path):
    """Others' packages of these names are beside it, and one's own configs/, which imports mot's."""
    for name in ("launch", "scaling", "configs"):
        (installed / name).mkdir()
        (installed / name / "__init__.py").write_text("raise ImportError('another project')", encoding="utf-8")
    (tmp_path / "configs").mkdir()
    own = "from configs import digits\n\n\ndef get_config(arg=''):\n    return digits.get_config('size=smoke')\n"
    (tmp_path / "configs" / "mine.py").write_text(own, encoding="utf-8")
    shipped, mine = (mot(installed, tmp_path, "config", f"configs/{name}", "run") for name in ("digits.py", "mine.py"))
    assert "run.name = 'digits-mot-demo'" in shipped.stdout, shipped.stderr
    assert "run.name = 'digits-mot-smoke'" in mine.stdout, mine.stderr
    trained = mot(installed, tmp_path, "train", "--config=configs/digits.py:size=smoke,arch=dense")
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout == "runs/digits-dense-smoke\n"
    # The matmul peak is measured, and this said, where none is kept.
    phases = ("loading mot and JAX", "opening the data", "the first state", "compiling the step, about")
    told = [text for line in trained.stderr.splitlines() for text in phases if line.startswith(text)]
    assert told == list(phases)  # nothing that takes long is mute
    line = next(line for line in trained.stderr.splitlines() if " report " in line).partition("  #")[0]
    program, *args = shlex.split(line)  # as it was printed
    assert program == sys.executable
    assert args[:2] == ["-m", "mot"]
    reported = mot(installed, tmp_path, *args[2:])
    assert reported.returncode == 0, reported.stderr
    assert (tmp_path / "runs" / "report.html").stat().st_size > 1000


def test_scaling_is_a_part_of_mot_to_a_notebook(installed):
    code = "import mot.scaling.runs as runs, mot; print(runs.load.__module__, mot.__file__)"
    env = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, encoding="utf-8", env=env, timeout=300, check=True
    )
    assert done.stdout.split() == ["mot.scaling.runs", str(installed / "mot" / "__init__.py")]


def test_ones_own_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load.file_of("configs/digits.py:arch=mot") == ROOT / "configs" / "digits.py"
    Path("configs").mkdir()
    assert load.file_of("configs/digits.py") == ROOT / "configs" / "digits.py"
    Path("configs/digits.py").write_text("", encoding="utf-8")
    assert load.file_of("configs/digits.py") == Path("configs/digits.py")
    with pytest.raises(UserError, match=r"no file elsewhere/digits\.py; did you mean 'configs/digits\.py'"):
        load.file_of("elsewhere/digits.py")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a dataset and two runs, named by relative paths; the second began from the first."""
    home = tmp_path_factory.mktemp("project")
    text = "\n\n".join(f"Paragraph {i} says {' and '.join(map(str, range(i % 9)))}." for i in range(60))
    (home / "my text.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        proposed = prepared()
        assert proposed == "--config=configs/records.py:data=data/my text,arch=dense"
        for changes in ({"run.name": "first"}, {"run.name": "second", "init.run": "runs/first"}):
            tree = load.read(f"{proposed.removeprefix('--config=')},{SIZES}", changes | {"data.batch": "4"})
            loop.run(flags.build(tree), devices=jax.devices()[:1])
    return home


def prepared():
    """The configuration that `mot data prepare` proposes for training, unquoted."""
    said = io.StringIO()
    options = ["--format=text", "--separator=\\n\\n", "--text-ids=300", "--held-out=0.2", "--workers=1"]
    with contextlib.redirect_stdout(said):
        assert cli.main(["data", "prepare", "my text.txt", "--out", "data/my text", *options]) == 0
    line = next(line for line in said.getvalue().splitlines() if line.startswith("train on it: "))
    program, command, argument = shlex.split(line.removeprefix("train on it: "))
    assert (program, command) == ("mot", "train")
    return argument


def test_a_run_is_read_from_any_folder_and_after_its_project_moved(project, tmp_path, monkeypatch, capsys):
    written = json.loads((project / "runs" / "second" / "config.json").read_text(encoding="utf-8"))
    assert written["data"]["sources"] == {"my_text": str(project / "data" / "my text")}
    assert written["init"]["run"] == str(project / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    for command in (["evaluate", str(project / "runs" / "first")], ["report", str(project / "runs" / "second")]):
        assert cli.main(command) == 0, capsys.readouterr().err
    moved = shutil.copytree(project, tmp_path / "moved")
    (project / "data").rename(project / "gone")
    try:
        assert cli.main(["evaluate", "moved/runs/first"]) == 0, capsys.readouterr().err
        there = rundir.config_of(moved / "runs" / "second")
        assert there.data.sources == {"my_text": str(moved / "data" / "my text")}
    finally:
        (project / "gone").rename(project / "data")


def test_a_run_goes_on_where_its_paths_are_written_otherwise(project, monkeypatch, capsys):
    monkeypatch.chdir(project / "runs")
    args = ["train", f"--config=configs/records.py:data=../data/my text,arch=dense,{SIZES}"]
    args += ["--config.data.batch=4", "--config.run.root=."]
    assert cli.main([*args, "--config.run.name=second", "--config.init.run=first"]) == 0
    assert "already at step 2" in capsys.readouterr().err
    assert cli.main([*args, "--config.run.name=second", "--config.init.run=second"]) == 2
    assert "init.run: " in capsys.readouterr().err


def test_paths_with_a_meaning_of_their_own_stay_as_they_are():
    known = {"run": {"root": "/r"}, "init": {"run": ""}, "data": {"sources": {}}}
    sources = {"a": "embedded", "b": "seqio:mix", "c": "gs://bucket/data", "d": "", "e": "/abs/data"}
    known["data"]["sources"] = sources
    assert rundir.anchored(known) == known
