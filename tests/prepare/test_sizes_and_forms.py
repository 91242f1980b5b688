"""Pictures of any size that are kept as ids and as patches: what is drawn is the patches, and the ids are read."""

import dataclasses
import json
import math

import pytest
from PIL import Image

from mot.generate import codecs, opened
from mot.measures import conditioning
from mot.prepare import job
from mot.prepare.raw import Part
from mot.runs import rundir
from tests.support.commands import succeeds
from tests.support.datasets import of_any_size


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a dataset `all` and a run of it, `runs/both`."""
    folder = tmp_path_factory.mktemp("both")
    job.prepare(dataclasses.replace(of_any_size(folder / "in"), also=("image=vectors",)), folder / "all", 1, 0)
    values = {"run.root": folder / "runs", "run.name": "both", "run.steps": 2, "run.eval_every": 2}
    values |= {"run.eval_batches": 1, "data.batch": 4, "optim.warmup": 1, "model.layers": 1}
    values |= {"model.rope_sections": "(2, 1, 1)", "model.head_size": 8}
    values |= {"streams.image.objective": "none", "streams.image_vectors.objective": "flow"}
    config = f"--config=configs/records.py:data={folder / 'all'},arch=mot,size=smoke,length=128"
    succeeds("train", config, *(f"--config.{key}={value}" for key, value in values.items()))
    return folder


def test_a_picture_is_drawn_at_the_size_that_is_asked_for_and_given_back_once(made):
    asked = ("sample", made / "runs" / "both", "--n", "1", "--steps", "2")
    succeeds(*asked, "--prompt", "Picture 1 is", "--size", "6x8", "--max-text", "4", "--out", made / "out")
    assert Image.open(made / "out" / "document-0-2.png").size == (6, 8)
    (made / "in" / "given.json").write_text(json.dumps([{"image": "0.png"}, {"text": "is"}]), encoding="utf-8")
    succeeds(*asked, "--prompt-file", made / "in" / "given.json", "--max-text", "4", "--out", made / "back")
    parts = json.loads((made / "back" / "document-0.json").read_text(encoding="utf-8"))
    assert [next(iter(part)) for part in parts[:2]] == ["image", "text"]
    config = rundir.config_of(made / "runs" / "both")
    given = codecs.of(config).forms(Part("image", (made / "in" / "0.png").read_bytes()))
    assert {kind: data.shape for kind, data in given} == {"image": (4, 2), "image_vectors": (4, 2, 12)}
    direction = conditioning.Prompted((), tuple(opened.prompt(given, config)))
    assert conditioning._tokens(direction, config).tolist() == [2 + 4, 8, 8]


def test_held_out_pictures_are_compared_with_drawn_ones_in_the_form_that_is_drawn(made):
    file = made / "mine.py"
    file.write_text("import numpy as np\ndef means(x):\n    return np.stack([y.mean((0, 1)) for y in x])\n")
    out, _ = succeeds(
        "evaluate", made / "runs" / "both", "--what=distances", f"--features={file}:means", "--draws=3", "--steps=2"
    )
    assert "frechet" in out.lower()


def test_inspect_counts_the_tokens_of_what_has_rows(made):
    out, _ = succeeds("data", "inspect", made / "all", "--document", "1", "--out", made / "preview.png")
    found = {line.split()[0]: int(line.split()[1]) for line in out.splitlines() if " tokens  " in line}
    assert found["image"] == found["image_vectors"]
    assert found["image"] in {math.prod(shape) for shape in ((4, 2), (1, 4), (2, 2), (3, 1), (2, 4))}
