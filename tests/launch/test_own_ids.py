"""A modality that nobody knows, of ids that somebody's own tokenizer made: trained on, drawn, read and reported."""

import json

import numpy as np
import pytest

from launch import cli
from tests.conftest import ROOT
from tests.support.files import write_lines

LENGTH, IDS = 9, 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """On depth maps of one length and clips of any, by four devices."""
    root = tmp_path_factory.mktemp("own")

    def ids(i):
        return [(i + k) % IDS for k in range(LENGTH)]

    def clip(i):
        return {"ids": ids(i)[: 4 + i % 3], "modality": "speech_units"}

    rows = [[{"text": f"number {i % IDS}"}, {"ids": ids(i), "modality": "depth"}, clip(i)] for i in range(60)]
    file = write_lines(root / "a.jsonl", *({"content": row} for row in rows))
    options = [f"--ids=depth={IDS}", f"--ids=speech_units={IDS}", "--text-ids=300", "--workers=1", "--format=jsonl"]
    assert cli.main(["data", "prepare", str(file), f"--out={root / 'data'}", *options]) == 0
    config = f"--config={ROOT}/configs/records.py:data={root / 'data'},arch=mot,size=smoke,length=128"
    steps = [
        "--config.run.steps=2",
        "--config.run.eval_every=2",
        f"--config.run.root={root}",
        "--config.run.name=run",
        "--config.data.batch=4",
    ]
    assert cli.main(["train", config, *steps]) == 0
    return root / "run"


def sampled(run, out, *arguments):
    assert cli.main(["sample", str(run), f"--out={out}", "--max-text=4", "--max-media=2", *arguments]) == 0
    return json.loads((out / "document-0.json").read_text(encoding="utf-8"))


def test_ids_are_drawn_and_what_was_drawn_is_the_next_prompt(run, tmp_path):
    drawn = sampled(run, tmp_path / "a", "--prompt=number 3", "--draw=depth")
    assert drawn[0] == {"text": "number 3"}
    assert drawn[1]["modality"] == "depth"
    assert len(drawn[1]["ids"]) == LENGTH
    assert set(drawn[1]["ids"]) <= set(range(IDS))
    np.testing.assert_array_equal(np.load(tmp_path / "a" / "document-0-2.npy"), drawn[1]["ids"])
    assert "[depth: 9 ids]" in (tmp_path / "a" / "document-0.txt").read_text(encoding="utf-8")
    again = sampled(run, tmp_path / "b", f"--prompt-file={tmp_path / 'a' / 'document-0.json'}", "--draw=speech_units")
    assert again[: len(drawn)] == drawn
    assert again[len(drawn)]["modality"] == "speech_units"
    assert 0 <= len(again[len(drawn)]["ids"]) <= 2 * 6, "about twice the mean at most"
    for name in ("a", "b"):
        assert (tmp_path / name / "documents.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ({"ids": [5] * LENGTH, "modality": "depth"}, "part 1: depth: id 5 is out of range: ids are from 0 to 4"),
        ({"ids": [1, 2], "modality": "depth"}, "part 1: depth: 2 ids, where each unit has 9"),
        ({"ids": [1, 2], "modality": "flow"}, "part 1: this run has no flow; it has text, depth, speech_units"),
        ({"ids": [1, 2]}, 'ids are written {"ids": [3, 5], "modality": "depth"}'),
        ({"ids": "no.npy", "modality": "depth"}, "path 'no.npy': No such file"),
    ],
)
def test_prompts_of_other_ids_are_refused(run, tmp_path, capsys, part, why):
    (tmp_path / "doc.json").write_text(json.dumps([part]), encoding="utf-8")
    assert cli.main(["sample", str(run), f"--out={tmp_path / 'out'}", f"--prompt-file={tmp_path / 'doc.json'}"]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_its_losses_are_reported(run, tmp_path, capsys):
    assert cli.main(["evaluate", str(run)]) == 0
    told = capsys.readouterr().out
    assert "loss/depth" in told
    assert "loss/speech_units" in told
    assert cli.main(["report", str(run), f"--out={tmp_path / 'report'}"]) == 0
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "held-out depth loss (nats)" in page
    assert "held-out speech_units loss (nats)" in page
    assert (tmp_path / "report" / "curves_speech_units.png").exists()
