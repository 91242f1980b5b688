"""LLaVA: a trained language model, to which an entry of two layers is fitted first, and then everything."""

import re

import jax
import numpy as np
import pytest

from mot.model import params
from mot.runs import rundir
from tests.support import recipes
from tests.support.training import restored


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The runs of all three stages."""
    root = tmp_path_factory.mktemp("llava")
    text = recipes.two_steps("llava", root)
    align = recipes.two_steps("llava", root, "stage=align", init__run=text)
    return text, align, recipes.two_steps("llava", root, "stage=all", init__run=align)


def moved(before, after):
    """The paths of the parameters that differ in two runs' last checkpoints."""
    a, b = (params.paths(restored(run, 2)["params"]) for run in (before, after))
    return {path for path in a if (a[path] != b[path]).any()}


def test_the_entry_alone_learns_first_then_everything(stages):
    text, align, every = stages
    assert moved(text, align) == {f"latent/image/{name}" for name in ("in", "in_bias", "in_2", "in_2_bias")}
    assert len(moved(align, every)) > 10


def test_the_language_model_learns_without_its_entry(stages):
    c = rundir.config_of(stages[0])
    fresh = params.paths(jax.jit(lambda: params.init(params.table(c), c.model.seed))())
    trained = params.paths(restored(stages[0], 2)["params"])
    same = {path for path in fresh if np.array_equal(fresh[path], trained[path])}
    assert {path for path in fresh if re.match("latent/image/in", path)} == same
