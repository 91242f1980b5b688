"""Whisper: log-mel frames in, text out, by towers of their own."""

import dataclasses

import numpy as np
import pytest

from bench import whisper as made
from mot.model import params
from mot.prepare import job
from mot.runs import rundir
from tests.support import datasets, recipes
from tests.support.training import rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Forty tones, high and low, and what they are."""
    folder = tmp_path_factory.mktemp("whisper")
    n = np.arange(3000) / 8000
    audio = [np.sin(2 * np.pi * (300 if i % 2 else 1200) * n) * 2**14 for i in range(40)]
    latents = made.frames(np.concatenate(audio).astype(np.int16), 3000 * np.arange(41), 8000)
    assert latents.shape == (40, 60, 80)
    np.savez(folder / "frames.npz", latents=latents, labels=np.array(["high", "low"] * 20))
    recipe = dataclasses.replace(
        datasets.SMALL,
        inputs=(str(folder / "frames.npz"),),
        format="auto",
        content=("latents:latents|text:{labels}",),
        image_patch=4,
    )
    job.prepare(recipe, folder / "out", 1, 0)
    return folder / "out"


def test_two_steps(dataset, tmp_path):
    run = recipes.two_steps("whisper", tmp_path, f"data={dataset}")
    c = rundir.config_of(run)
    assert c.streams["latents"].latent == 80
    assert c.towers.ffn["latents"] == "latents"
    assert "latent/latents/in_2" in params.table(c)
    assert {key for key in rows(run)[0] if key.startswith("loss/")} >= {"loss/text"}
