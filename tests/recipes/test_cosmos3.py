"""Cosmos 3 in small: what is read goes with text, what is generated apart."""

import json

import numpy as np
import pytest

from configs.recipes import cosmos3
from mot import batches
from mot.config import resolve
from mot.data import budgets, embedded, pipeline, sources
from mot.prepare import job
from tests.support import datasets, media, recipes
from tests.support.training import rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A picture, what is said of it, a picture, a sound and an action."""
    folder = tmp_path_factory.mktemp("cosmos3")
    recipe = datasets.write_inputs(folder / "in", 12)
    (folder / "in" / "a.wav").write_bytes(media.sound(media.tone(300, 0.2, 8000), "WAV", rate=8000))
    np.save(folder / "in" / "a.action.npy", np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32))
    lines = [
        [
            {"image": f"{i}.png"},
            {"text": f"number {i}"},
            {"image": "1.png"},
            {"audio": "a.wav"},
            {"action": "a.action.npy"},
        ]
        for i in range(12)
    ]
    text = "\n".join(json.dumps({"content": line}) for line in lines)
    (folder / "in" / "all.jsonl").write_text(text, encoding="utf-8")
    job.prepare(recipe.__class__(**vars(recipe) | dict(vectors=("audio", "image"))), folder / "out", 1, 0)
    return folder / "out"


def opened(arg):
    c = resolve(cosmos3.get_config(arg), embedded.faults if "data" not in arg else sources.faults)
    training, _ = sources.open_(c)
    c = budgets.resolve(c, training)
    packed = pipeline.Batches(training, c, 0, 1)[0]
    assert not packed.left_out
    batches.check(packed.batch)
    return c, packed.batch


def test_towers_go_by_role(dataset):
    c, _ = opened(f"size=smoke,data={dataset}")
    assert c.towers.attn == dict(text="text", seen="text", action="action", audio="action", image="action")


def test_a_picture_before_which_nothing_stands_is_an_input(dataset):
    """And has no loss and no noise there; the second one is generated, in two copies."""
    for arg in ("size=smoke", f"size=smoke,data={dataset}"):
        _, batch = opened(arg)
        seen, image = batch["seen"], batch["image"]
        assert (seen.segment > 0).any()
        assert not seen.weight.any()
        assert not seen.noise.any()
        assert image.private.sum() * 2 == (image.segment > 0).sum() > 0
        for row, segments in enumerate(seen.segment):
            for segment in set(segments[segments > 0]):
                begins = [t.position[row][t.segment[row] == segment].min() for t in (batch["text"], seen)]
                assert begins[1] - begins[0] == 2, "<bos> and the marker alone come before it"


def test_two_steps_in_which_all_that_is_generated_has_a_loss(dataset, tmp_path):
    last = rows(recipes.two_steps("cosmos3", tmp_path, f"data={dataset}"))[-1]
    assert {f"loss/{m}" for m in ("text", "image", "audio", "action")} <= last.keys()
    assert last["grad_norm/action"] > 0
