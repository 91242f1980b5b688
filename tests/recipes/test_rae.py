"""Semantic latents in small: a picture's supplied features are drawn in place of its pixels."""

import dataclasses

import numpy as np
import pytest

from bench import features
from configs.recipes import rae
from mot.config import resolve
from mot.data import budgets, pipeline, sources
from mot.prepare import job
from tests.support import datasets, recipes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rae")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    np.savez(
        folder / "in.npz",
        images=images,
        name=np.array(["one", "two"] * 20),
        features=features.features(images, features.learnt(images)),
    )
    recipe = dataclasses.replace(
        datasets.SMALL,
        inputs=(str(folder / "in.npz"),),
        format="auto",
        content=("text:name|image:images|latents:features",),
        also=("image=latents",),
        vectors=("image",),
        image_patch=4,
    )
    job.prepare(recipe, folder / "out", 1, 0)
    return folder / "out"


def test_features_are_white():
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8)).astype(np.uint8)
    x = features.features(images, features.learnt(images))
    assert x.shape == (50, 4, features.WIDTH)
    np.testing.assert_allclose(np.cov(x.reshape(-1, features.WIDTH), rowvar=False), np.eye(features.WIDTH), atol=1e-3)


@pytest.mark.parametrize(("draws", "width"), [("latents", features.WIDTH), ("pixels", 48)])
def test_one_form_of_a_picture_is_drawn(dataset, draws, width):
    c = resolve(rae.get_config(f"size=smoke,data={dataset},draws={draws},tokens=1024"), sources.faults)
    (name,) = [name for name in c.streams if name != "text"]
    s = c.streams[name]
    assert (s.modality, s.latent, s.objective) == ("image", width, "x")
    assert s.diffusion.shift == pytest.approx((1024 * width / 4096) ** 0.5)
    training, _ = sources.open_(c)
    c = budgets.resolve(c, training)
    packed = pipeline.Batches(training, c, 0, 1)[0]
    assert not packed.left_out
    assert packed.batch[name].value.std() > 0


def test_two_steps(dataset, tmp_path):
    recipes.two_steps("rae", tmp_path, f"data={dataset}", "tokens=4")
