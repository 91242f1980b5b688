"""Text as pixels: a line's patches and its letters say the same; and two steps of either."""

import math

import numpy as np
import pytest

from configs.recipes import text_as_pixels
from mot.data.manifest import SPLITS
from mot.data.records import Dataset
from mot.prepare import dataset_tokenizers, rendered
from tests.support import recipes

TEXT = "\n\n".join(
    f"Line {i} of a book, which is longer than a picture of it may be: {'word ' * (i % 5)}" for i in range(40)
)
LINES = dict(image_render=20, image_aspect="native", image_patch=6, image_side=120, image_ids=None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The two datasets, as the recipe's commands make them, of a small text."""
    given, out = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp("pixels")
    (given / "book.txt").write_text(TEXT, encoding="utf-8")
    how = dict(format="text", separator="\n\n")
    recipes.prepared(out / "text", given / "book.txt", **how)
    recipes.prepared(out / "lines", given / "book.txt", **how, **LINES)
    return out


def test_a_line_is_two_rows_of_patches_and_nothing_is_lost(data):
    wanted = {line for block in TEXT.split("\n\n") for line in rendered.lines(block, 20)}
    pictures = {rendered.picture(line).tobytes(): line for line in wanted}
    assert len(pictures) == len(wanted), "no two lines look alike"
    tokenizer = dataset_tokenizers.load(data / "lines" / "tokenizers").media["image"]
    seen = set()
    for split in SPLITS:
        dataset = Dataset(data / "lines", split)
        for i in range(dataset.count):
            for span in dataset[i].spans:
                line = pictures[tokenizer.decode(span.data)[..., 0].tobytes()]
                assert span.data.shape == (2, len(line))
                seen.add(line)
    assert seen == wanted
    assert rendered.lines("a  b\n\n" + "long " * 3, 9) == ["a  b", "long long", "long"]


def test_bits_of_lines_are_those_of_their_letters():
    """A fair coin for each patch, and certain markers: two bits a letter, of which each line has a byte more."""
    split = dict(tokens=dict(image=40, text=13), spans=dict(image=4), documents=3)
    losses = {"loss/image": math.log(2), "loss/text": 0.0}
    assert text_as_pixels.bits_per_byte(losses, split) == pytest.approx(40 / 24)
    losses["loss/text"] = math.log(4)
    assert text_as_pixels.bits_per_byte(losses, split) == pytest.approx((40 + 2 * 10) / 24)


@pytest.mark.parametrize("form", ["lines", pytest.param("text", marks=pytest.mark.slow)])
def test_two_steps(data, tmp_path, form):
    run = recipes.two_steps("text_as_pixels", tmp_path, f"data={data / form}")
    assert run.name == f"pixels-{form}-smoke"


def test_letters_that_the_font_lacks_are_told_apart_from_none():
    np.testing.assert_array_equal(rendered.picture("aλ"), rendered.picture("a?"))
