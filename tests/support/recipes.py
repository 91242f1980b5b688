"""Recipes as a user trains them: two steps in the tests' own process, or as a command; and the data that they need."""

import dataclasses
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import flags
from mot.config import Config, load
from mot.prepare import job
from mot.train import loop
from tests.conftest import DATA, ROOT
from tests.support import commands, datasets
from tests.support.devices import devices
from tests.support.training import rows

SHARED = ROOT.parent / "shared" / "data"  # `make test` needs none of it


def needs(*names: str):
    """Marks a test that reads these files of ../shared/data: it is skipped where they are not, and listed nowhere."""
    absent = [name for name in names if not (SHARED / name).exists()]
    return pytest.mark.skipif(bool(absent), reason=f"needs {DATA}: {', '.join(absent)} is not there")


def file_and_arg(name: str, *arguments: str) -> str:
    """`configs/recipes/NAME.py:size=smoke` and what else it is told, as `data=FOLDER`, or another size."""
    size = [] if any(x.startswith("size=") for x in arguments) else ["size=smoke"]
    return f"{load.RECIPES}/{name}.py:{','.join([*size, *arguments])}"


def config(name: str, root: Path, *arguments: str, **overrides) -> Config:
    """A recipe's configuration, judged as the command judges it; `run__steps=4` changes a value."""
    changed = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return flags.build(load.read(file_and_arg(name, *arguments), {"run.root": str(root)} | changed))


def two_steps(name: str, root: Path, *arguments: str, **overrides) -> Path:
    """Trains a recipe's two steps in this process, on one device; the run's folder."""
    return checked(loop.run(config(name, root, *arguments, **overrides), devices=jax.devices()[:1]))


def as_command(name: str, root: Path, *arguments: str) -> Path:
    """The same by `mot train`, with all that it prints; the run's folder."""
    with devices(1):
        out, _ = commands.succeeds("train", f"--config={file_and_arg(name, *arguments)}", f"--config.run.root={root}")
    return checked(Path(out.split()[0]))


def checked(run: Path) -> Path:
    """A run that took two steps, whose losses are finite."""
    done = rows(run)
    assert [row["step"] for row in done] == [1, 2]
    losses = {key: x for row in done for key, x in row.items() if key.startswith("loss")}
    assert losses
    assert all(np.isfinite(x) for x in losses.values()), losses
    return run


def of_docstring(name: str) -> list[list[str]]:
    """The commands of a recipe's docstring, in words, files of ../shared/data where they lie.

    What a command is for stands three blanks or more after it.
    """
    text = load.run(load.SHIPPED / "recipes" / f"{name}.py", name)["__doc__"]
    lines = re.sub(r" *\\\n *", " ", text).splitlines()
    words = [shlex.split(line.split("   ")[0]) for line in lines if line.startswith(("mot ", "python "))]
    return [[_found(word) for word in line] for line in words]


def _found(word: str) -> str:
    file = SHARED / word.removeprefix("../shared/data/")
    return str(file) if file.is_file() else word


def prepared(out: Path, *inputs: Path, **options) -> str:
    """The folder of a small dataset that `mot data prepare` makes of files; `options` are fields of its recipe."""
    given = dict(inputs=tuple(map(str, inputs)), format="auto") | options
    job.prepare(dataclasses.replace(datasets.SMALL, **given), out, 1, 0)
    return str(out)
