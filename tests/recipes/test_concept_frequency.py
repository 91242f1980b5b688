"""Concepts that are seen 1, 2, 4, ... times as often: what is known of them follows, and does not where none is."""

import json

import jax
import numpy as np
import pytest

from configs.recipes import concept_frequency as recipe
from mot.train import loop
from tests.support import recipes
from tests.support.training import rows


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The datasets of all counts, with one tokenizer."""
    root = tmp_path_factory.mktemp("concepts")
    recipe.plant(str(root))
    like = ""
    for count in recipe.COUNTS:
        file = root / f"n{count}.jsonl"
        like = like or recipes.prepared(root / "n1", file, text_ids=400, held_out=0.25)
        if count > 1:
            recipes.prepared(root / f"n{count}", file, like=like, held_out=0.25)
    return root


def test_a_concept_has_properties_of_its_own_in_all_of_its_captions(planted):
    for count in recipe.COUNTS:
        lines = (planted / f"n{count}.jsonl").read_text(encoding="utf-8").splitlines()
        told = {json.loads(line)["text"].partition(": the ")[2] for line in lines}
        assert (len(lines), len(told)) == (recipe.CONCEPTS * recipe.PHRASES, recipe.CONCEPTS)


def test_two_steps_and_the_shares_that_are_planted(planted, tmp_path):
    recipes.two_steps("concept_frequency", tmp_path, f"data={planted}")
    shares = recipes.config("concept_frequency", tmp_path, f"data={planted}").data.shares
    assert shares == {f"n{count}": count for count in recipe.COUNTS}
    even = recipes.config("concept_frequency", tmp_path, f"data={planted}", "planted=no")
    assert set(even.data.shares.values()) == {1}


def trend(run) -> tuple[float, np.ndarray]:
    """How the held-out loss goes with the logarithm of the count (a correlation), and the losses."""
    last = rows(run, "eval")[-1]
    losses = np.array([last[f"loss/text/n{count}"] for count in recipe.COUNTS])
    return float(np.corrcoef(np.log2(recipe.COUNTS), losses)[0, 1]), losses


@pytest.mark.slow
def test_the_loss_falls_with_the_logarithm_of_the_count(planted, tmp_path):
    changes = dict(run__steps=200, run__eval_every=200, run__eval_batches=16, optim__lr=4e-3)
    found = {}
    for word in ("yes", "no"):
        config = recipes.config("concept_frequency", tmp_path / word, f"data={planted}", f"planted={word}", **changes)
        found[word], losses = trend(loop.run(config, devices=jax.devices()[:1]))
        print(word, found[word], losses.round(3))
    assert found["yes"] < -0.9
    assert abs(found["no"]) < 0.7
