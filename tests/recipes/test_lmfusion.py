"""A text run gets a tower for images by the real command, and its held-out text loss is the same to the bit."""

import jax
import numpy as np
import pytest

from configs.recipes import lmfusion
from mot import optim
from mot.model import params
from tests.support import recipes
from tests.support.training import restored, rows

MANUAL = "loss/text/manual"  # documents in which text attends to nothing else


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    return recipes.two_steps("lmfusion", tmp_path_factory.mktemp("text"), "stage=text", run__eval_every=2)


def fused(root, text_run, *arguments):
    changes = dict(init__run=text_run, run__steps=4, run__eval_every=4, run__save_every=4)
    config = recipes.config("lmfusion", root, "stage=fusion", *arguments, **changes)
    return recipes.loop.run(config, devices=jax.devices()[:1]), config


def held_out(path, step):
    return next(row for row in rows(path, "eval") if row["step"] == step)


def test_the_held_out_text_loss_is_the_text_runs_to_the_bit(text_run, tmp_path):
    path, _ = fused(tmp_path, text_run)
    assert held_out(path, 0)[MANUAL] == held_out(path, 4)[MANUAL] == held_out(text_run, 2)[MANUAL]
    assert held_out(path, 4)["loss/image"] < held_out(path, 0)["loss/image"]
    was, now = (params.paths(restored(*run)["params"]) for run in ((text_run, 2), (path, 4)))
    for name, x in now.items():
        of_text = "/text/" in name or name.startswith(("embed/", "head/"))
        assert np.array_equal(x, was[name.replace("/image/", "/text/") if "latent" not in name else name]) == of_text


def test_text_that_is_not_frozen_changes_at_a_tenth_of_the_rate(text_run, tmp_path):
    path, config = fused(tmp_path, text_run, "text=slow")
    assert held_out(path, 0)[MANUAL] == held_out(text_run, 2)[MANUAL] != held_out(path, 4)[MANUAL]
    rates = {name: rule.lr for name, rule in optim.rules(config).items()}
    assert {rates[name] for name in rates if "/text/" in name or name.startswith(("embed/", "head/"))} == {0.1}
    assert {rates[name] for name in rates if "image" in name} == {1.0}
    decays = {name: rule.decay for name, rule in optim.rules(config).items()}
    assert all((decay == 0) == ("norm" in name) for name, decay in decays.items())
    assert [rule["lr"] for rule in lmfusion.SLOW] == [0.1, 0.1]
