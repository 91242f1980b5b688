"""Flamingo: a frozen language model, which begins as it was and sees pictures by gates that open."""

import jax
import numpy as np
import pytest

from mot.data import pipeline
from mot.model import params, transformer
from mot.objectives import losses
from mot.runs import rundir
from mot.train import restore
from tests.support import recipes
from tests.support.training import restored


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    root = tmp_path_factory.mktemp("flamingo")
    text = recipes.two_steps("flamingo", root)
    return text, recipes.two_steps("flamingo", root, "stage=see", init__run=text)


def test_the_language_model_is_frozen_and_the_gates_open(stages):
    before, after = (params.paths(restored(run, 2)["params"]) for run in stages)
    moved = {path for path in before if (before[path] != after[path]).any()}
    assert {params.part(path) for path in moved} == {"cross", "latent"}
    assert {"cross/image/attn_gate", "cross/image/ffn_gate"} <= moved
    assert not before["cross/image/attn_gate"].any()


def test_it_begins_as_the_language_model_whatever_the_pictures_are(stages):
    """With the weights of the first stage the loss is the same to the bit; with those of the second it is not."""
    config, training, _ = restore.open_data(rundir.config_of(stages[1]))
    batch = next(iter(pipeline.iterate(pipeline.Batches(training, config, 0, 1), 0))).batch
    blank = batch | {"image": batch["image"].replace(value=np.zeros_like(batch["image"].value))}

    @jax.jit
    def loss(weights, batch):
        given = losses.noised(batch, config, 0)
        output = transformer.forward(weights, given.batch, config)
        return losses.loss(weights, output, given, losses.totals(batch, config), config, len(training.names))[0]

    for run, alike in zip(stages, (True, False), strict=True):
        weights = restored(run, 2)["params"]
        assert (float(loss(weights, batch)) == float(loss(weights, blank))) == alike
