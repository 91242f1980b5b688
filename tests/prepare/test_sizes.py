"""Pictures of any size: from files to patches, batches, training, samples and back to pictures."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from configs import records as records_config
from mot import batches
from mot.config import resolve
from mot.data import budgets, layout, sources
from mot.data.manifest import SPLITS, most_shape
from mot.data.pipeline import Batches
from mot.data.records import Dataset
from mot.prepare import dataset_tokenizers, job
from tests.support.commands import run, succeeds
from tests.support.datasets import of_any_size


@pytest.fixture(scope="module", params=["ids", "vectors"])
def made(tmp_path_factory, request):
    """A dataset of pictures of any size up to 8 pixels, in patches of 2."""
    folder = tmp_path_factory.mktemp("sizes")
    recipe = of_any_size(folder / "in")
    recipe = dataclasses.replace(recipe, vectors=("image",) * (request.param == "vectors"))
    return folder, job.prepare(recipe, folder / "all", 1, 0).about


def test_patches_are_whole_and_keep_their_rows(made):
    folder, about = made
    entry = about["tokenizers"]["image"]
    assert ("tokens" in entry, entry["shape"], most_shape("image", entry)) == (False, [4, 4], (4, 4))
    assert not about["warnings"], "nothing of a picture is cut off"
    tokenizer = dataset_tokenizers.load(folder / "all" / "tokenizers").media["image"]
    found = {}
    for split in SPLITS:
        dataset = Dataset(folder / "all", split)
        for i in range(dataset.count):
            record = dataset[i]
            data = record.spans[1].data
            number = int(record.id.rpartition(":")[2])
            found[number] = data.shape[:2]
            picture = tokenizer.decode(data)
            assert picture.shape == (2 * data.shape[0], 2 * data.shape[1], 3)
            given = np.asarray(Image.open(folder / "in" / f"{number}.png"))
            if given.shape == picture.shape and data.dtype.kind == "f":
                np.testing.assert_array_equal(picture, given)
    want = [(4, 2), (1, 4), (2, 2), (3, 1), (2, 4), (4, 2)]
    assert found == {i: want[i % 6] for i in range(36)}


def configured(folder, **changes):
    c = records_config.get_config(f"data={folder / 'all'},arch=mot,size=smoke,length=64")
    c.run.update(dict(steps=2, eval_every=2, eval_batches=1, root=str(folder / "runs")))
    c.model.update(changes)
    return c


def test_units_are_packed_whole_with_their_rows(made):
    folder, _ = made
    config = resolve(configured(folder, rope_sections=(2, 1, 1), head_size=8))
    training, _ = sources.open_(config)
    config = budgets.resolve(config, training)
    packed = Batches(training, config, 0, 4)[1]
    batches.check(packed.batch)
    assert not packed.left_out
    image, shapes = packed.batch["image"], set()
    for b in range(len(image.unit)):
        for u in set(image.unit[b].tolist()) - {0}:
            at = image.rope_position[b][(image.unit[b] == u) & ~image.private[b]]
            rows, columns = (at[:, axis].max() - at[:, axis].min() + 1 for axis in (1, 2))
            assert len(at) == rows * columns, "whole"
            assert len(set(at[:, 0].tolist())) == 1
            shapes.add((int(rows), int(columns)))
    assert shapes <= {(4, 2), (1, 4), (2, 2), (3, 1), (2, 4)}
    assert len(shapes) > 2
    found = layout.stretches(training.all[0].read(0), config, layout.of(config))
    assert found[1].data.shape[:2] in shapes


def test_a_run_draws_pictures_of_the_size_that_is_asked_for(made):
    """The commands that a user runs: train, sample --size, inspect with a picture."""
    folder, about = made
    own = dict(root=folder / "runs", name="any", steps=2, eval_every=2, eval_batches=1)
    values = {f"run.{key}": value for key, value in own.items()} | {"data.batch": 4, "optim.warmup": 1}
    values |= {"model.rope_sections": "(2, 1, 1)", "model.head_size": 8, "model.layers": 1}
    config = f"--config=configs/records.py:data={folder / 'all'},arch=mot,size=smoke,length=64"
    succeeds("train", config, *(f"--config.{key}={value}" for key, value in values.items()))
    asked = ("sample", folder / "runs" / "any", "--prompt", "Picture 1 is", "--n", "2")
    few = ("--steps", "2") if "width" in about["tokenizers"]["image"] else ()
    succeeds(*asked, *few, "--size", "6x8", "--out", folder / "out")
    assert Image.open(folder / "out" / "document-0-2.png").size == (6, 8)
    for wrong, says in (
        ("5x8", "--size=5x8: image has patches of 2 x 2 pixels; sides must be multiples of 2, up to 8x8"),
        ("6x10", "up to 8x8"),
        ("6", "--size=6: must be WIDTHxHEIGHT in pixels, as 24x40"),
    ):
        code, _, err = run(*asked, *few, "--size", wrong)
        assert (code, says in err) == (2, True), err
    succeeds("data", "inspect", folder / "all", "--document", "1", "--out", folder / "preview.png")
    assert Image.open(folder / "preview.png").size[0] > 100
