"""BAGEL in small: what is drawn and what is read of one picture, in one row."""

import numpy as np
import pytest

from configs.recipes import bagel
from mot import batches
from mot.config import resolve
from mot.data import embedded, pipeline, sources


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
