"""BAGEL in small: what is drawn and what is read of one picture, in one row."""

import numpy as np
import pytest

from configs.recipes import bagel
from mot import batches
from mot.config import resolve
from mot.data import embedded, pipeline, sources
from mot.generate import opened
from tests.support import recipes
from tests.support.training import rows


@pytest.fixture(scope="module")
def batch():
    c = resolve(bagel.get_config("size=smoke"), embedded.faults, sources.faults)
    training, _ = sources.open_(c)
    return c, pipeline.Batches(training, c, 0, 1)[0].batch


def test_a_picture_that_is_read_is_not_drawn(batch):
    """Of `read` the ids alone; of all others the latents, noised and clean, which text never follows."""
    c, streams = batch
    batches.check(streams)
    read = list(c.data.sources).index("read")
    names = np.array(embedded.SOURCES)
    seen, image = streams["seen"], streams["image"]
    assert set(names[seen.source[seen.segment > 0]]) == {"read"}
    assert "read" not in set(names[image.source[image.segment > 0]])
    assert read == 1
    for private, noise in ((True, 1), (False, 0)):
        here = (image.segment > 0) & (image.private == private)
        assert here.sum() == (image.segment > 0).sum() // 2
        np.testing.assert_array_equal(image.noise[here], noise)


def test_its_losses_weigh_as_published(batch):
    c, _ = batch
    assert (c.streams["text"].loss_weight, c.streams["image"].loss_weight, c.objective.per) == (0.25, 1.0, "modality")


def test_two_steps_in_which_every_tower_learns(tmp_path):
    """Also that of text through what it reads: pictures have no loss there."""
    last = rows(recipes.two_steps("bagel", tmp_path))[-1]
    assert {key for key in last if key.startswith("loss/")} >= {"loss/text", "loss/image", "loss/text/read"}
    assert last["grad_norm/text"] > 0
    assert last["grad_norm/image"] > 0
    assert "grad_norm/seen" not in last


def test_without_rules_a_picture_is_drawn_before_it_is_read_wherever_it_lies():
    """What the rules change: then `read` learns to draw without a word, and twice as many tokens are read."""
    tree = bagel.get_config("size=smoke")
    tree.unlock()
    tree.data.roles = ()
    c = resolve(tree, embedded.faults)
    batch = pipeline.Batches(sources.open_(c)[0], c, 0, 1)[0].batch
    assert {int(x) for x in batch["image"].source[batch["image"].segment > 0]} == {
        int(x) for x in batch["seen"].source[batch["seen"].segment > 0]
    }


def test_a_prompt_is_read_where_training_reads_it():
    """A picture with which a prompt begins goes through what is read alone, one after words through both."""
    c = resolve(bagel.get_config("size=smoke"), embedded.faults)
    picture = [("image_ids", np.zeros(64, int)), ("image_vectors", np.zeros((16, 4)))]
    words = [("text", np.arange(3))]
    assert [s.stream for s in opened.prompt(picture, c)] == ["seen"]
    assert [s.stream for s in opened.prompt([*words, *picture], c)] == ["text", "image", "seen"]
    assert [s.stream for s in opened.prompt([*picture, *words], c)] == ["seen", "text"]
