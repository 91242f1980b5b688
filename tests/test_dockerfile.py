"""The steps of Dockerfile, done in a folder and an environment of their own: no container engine is needed.

What a container adds is not tested here: the base image, and that nothing of this machine is seen.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "CMD"}


def steps():
    """The instructions of Dockerfile and what each takes."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    found = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    assert {instruction for instruction, _ in found} <= KNOWN
    return found


def copied(words, root):
    *sources, target = words.split()
    for source in sources:
        there = root / target.lstrip("/")
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, there, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            there.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, there)


def test_every_file_that_is_copied_is_there_and_reaches_the_engine():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for instruction, words in steps():
        if instruction == "COPY":
            for source in words.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored


def test_the_image_has_a_python_that_mot_takes():
    (base,) = (words for instruction, words in steps() if instruction == "FROM")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    least, most = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', project).groups()
    assert int(least) <= int(re.fullmatch(r"python:3\.(\d+)-slim", base)[1]) < int(most)


@pytest.mark.slow
def test_the_steps_make_a_mot_that_trains(tmp_path):
    """With the extra for buckets alone: those for accelerators are a gigabyte more, of the same kind."""
    root = tmp_path / "root"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    kept = {name: os.environ[name] for name in ("HOME", "PIP_CONFIG_FILE", "PIP_INDEX_URL") if name in os.environ}
    env = kept | {"PATH": f"{tmp_path}/venv/bin:/usr/bin:/bin", "EXTRAS": "gcs"}
    where = root
    for instruction, words in steps():
        if instruction == "ENV":
            env |= dict([words.split("=", 1)])
        elif instruction == "WORKDIR":
            where = root / words.lstrip("/")
            where.mkdir(parents=True)
        elif instruction == "COPY":
            copied(words, root)
        elif instruction == "RUN":
            script = re.sub(r"(?<=[ \"])/src", str(root / "src"), words)
            subprocess.run(["bash", "-ec", script], cwd=where, env=env, check=True, timeout=1500)
    (last,) = (words for instruction, words in steps() if instruction == "CMD")
    assert ran(json.loads(last), where, env).startswith("usage: mot COMMAND")
    smoke = ["train", "--config=configs/digits.py:arch=mot,size=smoke"]
    ran(["mot", *smoke], where, env | {"JAX_PLATFORMS": "cpu"})
    assert (where / "runs" / "digits-mot-smoke" / "checkpoints" / "2").is_dir()
    shown = ran(["mot", "launch", "--target=slurm", "--dry-run", "--", *smoke], where, env)
    assert "#SBATCH --requeue" in shown


def ran(command, where, env):
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout
