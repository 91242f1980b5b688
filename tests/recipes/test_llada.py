"""LLaDA: text by masked diffusion, beside the same model that predicts the next token."""

import json
import math

import numpy as np
import pytest

from mot import batches
from mot.data import sources
from mot.data.pipeline import Batches
from tests.support import commands, recipes
from tests.support.training import rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Some lines, each a document, of few words."""
    folder = tmp_path_factory.mktemp("lines")
    rng = np.random.default_rng(0)
    words = ["one", "two", "three", "four", "five"]
    lines = [" ".join(rng.choice(words, 12)) + "." for _ in range(200)]
    file = folder / "lines.txt"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return recipes.prepared(folder / "data", file, separator="\n")


def test_two_steps_a_bound_in_bits_and_text_in_blocks(data, tmp_path):
    run = recipes.two_steps("llada", tmp_path, f"data={data}")
    said, _ = commands.succeeds("evaluate", run, "--what=bits")
    assert "text: masked, so that its bits are an upper bound" in said
    commands.succeeds(
        "sample", run, "--text=one two", "--max-text=8", "--steps=4", "--block=4", f"--out={tmp_path / 'out'}"
    )
    record = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))
    assert (record["steps"], record["block"]) == (4, 4)
    # Untrained it knows of an id that it is one of all: the bound of that is near log V.
    (first, _) = rows(run)
    assert 0.5 < first["loss/text"] / math.log(recipes.config("llada", tmp_path, f"data={data}").vocab) < 2


def test_documents_see_all_of_themselves_and_all_but_their_begin_may_be_hidden(data, tmp_path):
    """The system's point, read off a batch; by next token nothing is hidden and nothing sees what follows."""
    for text, hides in (("masked", True), ("next_token", False)):
        room = dict(data__length="64", streams__text__budget="64", streams__text__max_tokens="64")
        c = recipes.config("llada", tmp_path, f"data={data}", f"text={text}", **room)
        tokens = Batches(sources.open_(c)[0], c, 0, 1)[0].batch
        batches.check(tokens)
        tokens = tokens["text"]
        real = tokens.segment > 0
        begins = np.diff(tokens.segment, prepend=0) > 0
        assert ((tokens.noise > 0) == (real & ~begins & hides)).all()
        assert ((tokens.span > 0) == (real & hides)).all()
