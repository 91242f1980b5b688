"""LLM2Vec's three steps on a text, each from the one before, and the halves of passages that its embeddings find."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import sizes
from mot import batches
from mot.data.pipeline import Batches
from mot.errors import UserError
from mot.model import params
from mot.train import loop, restore
from tests.support import recipes
from tests.support.commands import succeeds
from tests.support.training import rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm2vec")
    rng = np.random.default_rng(0)
    words = ["sun", "moon", "rain", "hill", "road", "bird", "tree", "stone"]
    passages = (" ".join(rng.choice(words, rng.integers(40, 60))) + "." for _ in range(150))
    (folder / "book.txt").write_text("\n\n".join(passages), encoding="utf-8")
    return recipes.prepared(folder / "book", folder / "book.txt", separator="\n\n")


def test_a_recipe_that_is_read_twice_is_the_same(data, tmp_path):
    """A command reads it twice, and sizes are those of all recipes."""
    asked = (f"data={data}", "step=simcse")
    first = recipes.config("llm2vec", tmp_path, *asked, optim__end_lr=0)
    assert recipes.config("llm2vec", tmp_path, *asked, optim__end_lr=0) == first
    assert first.optim.lr == sizes.LAPTOP["smoke"]["lr"] / 4 == 5e-4


@pytest.mark.parametrize(
    ("name", "needs"),
    [("clip", "image"), ("siglip", "image"), ("pi05", "action"), ("video_order", "video"), ("whisper", "latents")],
)
def test_a_recipe_says_what_its_data_lack(data, tmp_path, name, needs):
    with pytest.raises(UserError, match=f"data={data}: it has text, and no {needs}; prepare data that has it"):
        recipes.config(name, tmp_path, f"data={data}")


def test_three_steps_each_from_the_one_before(data, tmp_path):
    asked = [f"data={data}", f"runs={tmp_path}"]
    paths = {
        step: recipes.two_steps("llm2vec", tmp_path, *asked, f"step={step}") for step in ("text", "mntp", "simcse")
    }
    last = rows(paths["simcse"])[-1]
    assert last["contrastive/temperature"] == pytest.approx(0.05)  # fixed
    assert last["contrastive/gap"] > 0  # two passes with other dropout
    assert "loss/text" not in last
    assert "loss/text" in rows(paths["mntp"])[-1]
    # Embeddings are what the last step is for, though it continues no text.
    succeeds("evaluate", paths["simcse"], "--what=retrieval", "--pool=8", f"--out={tmp_path / 'o.json'}")
    found = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))["retrieval"]["figures"]
    assert found["first/second/book/recall_1"]["chance"] == 1 / 8


def test_a_step_has_what_the_one_before_learnt_and_sees_both_ways(data, tmp_path):
    asked = [f"data={data}", f"runs={tmp_path}"]
    text = recipes.two_steps("llm2vec", tmp_path, *asked, "step=text")
    c = recipes.config("llm2vec", tmp_path, *asked, "step=mntp")
    c, training, _ = restore.open_data(c)
    tokens = Batches(training, c, 0, 1)[0].batch["text"]
    seen = batches.visible(tokens.info, tokens.info)[0]
    same = (tokens.segment[0][:, None] == tokens.segment[0]) & (tokens.segment[0] > 0)[:, None]
    np.testing.assert_array_equal(seen, same)
    before = params.paths(jax.device_get(restore.load(text)[2]))
    first = dataclasses.replace(
        c, run=dataclasses.replace(c.run, steps=2), optim=dataclasses.replace(c.optim, lr=1e-12, end_lr=1e-12)
    )
    after = params.paths(jax.device_get(restore.load(loop.run(first, devices=jax.devices()[:1]))[2]))
    ids = before["embed/tokens"].shape[0]
    assert after["embed/tokens"].shape[0] == ids + 1  # the hidden token's id is new
    np.testing.assert_allclose(after["embed/tokens"][:ids], before["embed/tokens"], atol=1e-6)
    np.testing.assert_allclose(after["blocks/main/ffn/text/w1"], before["blocks/main/ffn/text/w1"], atol=1e-6)
