"""Chunks of actions through `mot data prepare`: what is kept gives every chunk back, and what cannot be is named."""

import dataclasses
import json

import numpy as np
import pytest

from mot.data import preview
from mot.data.records import Dataset
from mot.errors import UserError
from mot.prepare import codecs, dataset_tokenizers, job
from mot.prepare.codecs import fast
from mot.prepare.raw import Part
from tests.support.datasets import SMALL

T, P = 10, 4


def planted(folder, n=60, odd=()):
    """Chunks of four joints that follow their caption; those that are `odd` leap far out of range."""
    rng = np.random.default_rng(0)
    chunks = rng.standard_normal((n, T, P)).cumsum(1).astype("f")
    for i in odd:
        chunks[i] *= 1e4
    words = np.array([f"task {i % 3}" for i in range(n)])
    folder.mkdir()
    np.savez(folder / "a.npz", caption=words, chunk=chunks)
    return dataclasses.replace(
        SMALL, inputs=(str(folder / "a.npz"),), format="npz", content=("text:caption|fast:chunk",)
    )


def test_every_chunk_comes_back(tmp_path):
    recipe = planted(tmp_path / "in")
    job.prepare(recipe, tmp_path / "out", 1, 0)
    tokenizers = dataset_tokenizers.load(tmp_path / "out" / "tokenizers")
    tokenizer = tokenizers.media["fast"]
    about = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert about["tokenizers"]["fast"]["ids"] == tokenizer.ids
    assert "tokens" not in about["tokenizers"]["fast"], "a chunk has as many ids as it needs"
    chunks = np.load(tmp_path / "in" / "a.npz")["chunk"]
    found = 0
    for split in ("train", "held_out"):
        dataset = Dataset(tmp_path / "out", split)
        for i in range(dataset.count):
            record = dataset[i]
            ids = record.spans[1].data
            assert record.spans[1].modality == "fast"
            off = tokenizer.decode(ids) - chunks[int(record.id.rpartition(":")[2])]
            assert (np.abs(off) <= (tokenizer.high_P - tokenizer.low_P) * np.sqrt(T) * 0.5 / tokenizer.scale).all()
            found += 1
    assert found == 60
    shown = codecs.box("fast", tokenizer, tokenizer.decode(ids), preview.Room())
    assert shown.caption == f"fast {T} x {P}"
    (kept,) = codecs.files("fast", tokenizer, tokenizer.decode(ids), 0).items()
    assert kept[0] == "npy"


def test_chunks_that_fast_cannot_invert_are_left_out_and_named(tmp_path):
    recipe = planted(tmp_path / "in", odd=(59,))
    job.prepare(dataclasses.replace(recipe, sample=50), tmp_path / "out", 1, 1)
    told = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text(encoding="utf-8").splitlines()]
    (one,) = told
    assert one["id"] == "a.npz:59"
    assert "has the coefficient" in one["why"]
    assert "bring all to one unit, leave it out, or learn from more (--sample)" in one["why"]


def test_too_few_ids_are_one_message(tmp_path):
    with pytest.raises(UserError, match=r"the fast tokenizer: .* different coefficients, .*--fast-ids"):
        job.prepare(dataclasses.replace(planted(tmp_path / "in"), fast_ids=8), tmp_path / "out", 1, 0)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (np.zeros((3, 0)), r"a chunk float64 \[3, 0\]; numbers \[points, P\] are allowed"),
        (np.full((3, 2), np.inf), "the chunk holds NaN or infinity"),
        (np.array([["a"]]), "numbers"),
    ],
)
def test_what_is_no_chunk_is_refused(content, why):
    with pytest.raises(ValueError, match=why):
        fast.read(Part("fast", content), {})
