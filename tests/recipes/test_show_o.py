"""Show-o: text by next token beside pictures by unmasking."""

import json

import numpy as np

from mot import batches
from mot.data import embedded
from mot.data.pipeline import Batches
from tests.support import commands, recipes


def test_two_steps_and_a_digit_in_eight(tmp_path):
    run = recipes.two_steps("show_o", tmp_path)
    commands.succeeds("sample", run, "--n=2", "--read=0", "--steps=8", f"--out={tmp_path / 'out'}")
    record = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))
    assert record["steps"] == 8
    assert record["guidance"] == 2.0  # the recipe hides the text of some pictures


def test_text_is_causal_a_drawn_picture_sees_itself_and_a_read_one_is_shown(tmp_path):
    """The system's point, read off a batch; with pictures by next token nothing is hidden."""
    for pictures, hides in (("masked", True), ("next_token", False)):
        c = recipes.config("show_o", tmp_path, f"pictures={pictures}")
        batch = Batches(embedded.load(c)[0], c, 0, 1)[0].batch
        batches.check(batch)
        text, image = batch["text"], batch["image"]
        assert not text.span.any()
        assert (text.weight > 0).any()
        drawn = (image.source == embedded.SOURCES.index("drawn")) & (image.segment > 0)
        assert ((image.noise > 0) == (drawn & hides)).all()
        assert (image.span[image.segment > 0] > 0).all() == hides
        assert (c.vocab == c.mask_id) != hides


def test_the_same_model_and_data_learn_pictures_both_ways(tmp_path):
    masked, following = (recipes.config("show_o", tmp_path, f"pictures={p}") for p in ("masked", "next_token"))
    assert masked.model == following.model
    assert masked.data == following.data
    assert np.isclose(masked.streams["image"].masking.drop_rate, 0.1)
