"""`mot data prepare` and `mot data inspect`, as a user calls them."""

import json
import shutil

import pytest
from PIL import Image

from launch import data, flags
from launch.process import guarded
from mot.config import load
from mot.data import pipeline, sources
from mot.errors import UserError
from tests.conftest import ROOT
from tests.support.datasets import write_inputs

OPTIONS = ["--image-side=8", "--image-patch=2", "--image-ids=12", "--text-ids=300", "--workers=1", "--held-out=0.2"]


def call(*arguments):
    return guarded(data.main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("command")
    write_inputs(path / "in")
    assert call("prepare", path / "in", "--out", path / "pictures", "--preview", *OPTIONS) == 0
    return path


def test_prepare_ends_with_a_summary_and_a_page(folder, capsys):
    assert call("prepare", folder / "in", "--out", folder / "pictures", "--preview", *OPTIONS) == 0
    told = capsys.readouterr().out
    assert "pictures is already whole" in told
    about = json.loads((folder / "pictures" / "dataset.json").read_text(encoding="utf-8"))
    assert f"{about['splits']['train']['tokens']['text']:,}" in told
    assert "image: 12 ids, 16 tokens each" in told
    assert f"mot train --config=configs/records.py:data={folder / 'pictures'},arch=mot" in told
    assert Image.open(folder / "pictures" / "preview.png").width > 600


def test_inspect_shows_documents(folder, capsys):
    assert call("inspect", folder / "pictures", "--document", 2, "--document", 3, "--out", folder / "two.png") == 0
    told = capsys.readouterr().out
    assert told.count("\ndocument ") + told.startswith("document ") == 2
    assert "said 0 times" in told
    assert Image.open(folder / "two.png").width > 600


def test_inspect_shows_a_packed_batch(folder, capsys):
    config = f"{ROOT}/configs/records.py:data={folder / 'pictures'},size=smoke,length=2048"
    assert call("inspect", f"--config={config}", "--batch", 1, "--out", folder / "batch.png") == 0
    told = capsys.readouterr().out
    assert "row 1:" in told
    assert "% filled in batch 1" in told
    assert "document 1: pictures" in told
    assert Image.open(folder / "batch.png").width > 600


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["prepare", "nowhere.jsonl", "--out", "x"], "nowhere.jsonl"),
        (
            ["prepare", "IN", "--out", "x", "--held-out", "2"],
            "--held-out=2.0; must be a fraction, from 0 to below 1; lower it",
        ),
        (["prepare", "IN", "--out", "FILE"], "mot.txt is a file; nothing was overwritten; choose another --out"),
        (["prepare", "IN", "--out", "FILE/x"], "mot.txt/x: Not a directory; choose a folder that can be made"),
        (["prepare", "IN", "--out", "/proc/x"], "--out=/proc/x: No such file or directory; choose a folder that"),
        (["prepare", "IN", "--out", "x" * 300], "File name too long; choose a folder that can be made and written"),
        (["prepare", "IN", "--out", "OTHER"], "holds something else; nothing was overwritten"),
        (["inspect", "nowhere"], "nowhere is no dataset: it has no dataset.json"),
        (["inspect", "OUT", "--document", "999"], "--document=999; train has documents 0 to"),
        (["inspect", "BATCH", "--batch", "-1"], "--batch=-1; from 0 to run.steps less 1, here 1"),
        (["inspect", "BATCH", "--batch", "2"], "--batch=2; from 0 to run.steps less 1, here 1"),
        (["prepare", "IN", "--out", "x", "--max-skipped", "-1"], "--max-skipped=-1; must be 0 or more"),
        (["prepare", "IN", "--out", "x", "--sample", str(10**20)], "at most 2147483648; lower it"),
        (["prepare", "IN", "--out", "x", "--action-points=1"], "--action-points=1; must be 2 or more; raise it"),
        (
            ["prepare", "IN", "--out", "x", "--fast-points=1"],
            "--fast-points=1; must be 0 (chunks as they are), or from 2",
        ),
        (["prepare", "IN", "--out", "x", "--also=image=ids"], "image are ids as it is; write --also image=vectors"),
        (["inspect"], "give a dataset's folder, or --config=FILE:arg"),
        (["inspect", "OUT", "--config=x"], "give a dataset's folder, or --config=FILE:arg"),
    ],
)
def test_bad_input_gets_one_message_and_exit_code_2(folder, tmp_path, monkeypatch, capsys, arguments, why):
    monkeypatch.chdir(tmp_path)
    places = {"IN": folder / "in", "OUT": folder / "pictures", "OTHER": ROOT / "docs"}
    places["BATCH"] = f"--config={ROOT}/configs/records.py:data={folder / 'pictures'},size=smoke,length=2048"
    file = folder / "mot.txt"
    file.write_text("mine", encoding="utf-8")
    places |= {"FILE": file, "FILE/x": file / "x"}
    assert call(*(places.get(a, a) for a in arguments), *(OPTIONS if "prepare" in arguments else [])[:5]) == 2
    told = capsys.readouterr().err
    assert why in told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_inspect_names_documents_of_training_and_held_out_by_their_own_numbers(split, capsys):
    """Of the embedded text, whose numbers go over both."""
    config = f"{ROOT}/configs/digits.py:size=smoke,arch=mot"
    assert call("inspect", f"--config={config}", "--split", split, "--config.data.batch=8") == 0
    told = capsys.readouterr().out
    built = flags.build(load.read(config, {"data.batch": "8"}))
    chosen = sources.open_(built)[split == "held_out"]
    batch = pipeline.Batches(chosen, built, built.data.seed, 1)[0].batch
    for tokens in batch.values():
        for source, doc_id in zip(tokens.source[tokens.segment > 0], tokens.doc_id[tokens.segment > 0], strict=True):
            assert f": {chosen.names[source]} {doc_id}\n" in told


@pytest.mark.parametrize("name", ["a+b", "me@home", "proj [v2]", "50% {x}", "~me", "a::b", "漢", "x" * 250])
def test_a_dataset_in_any_folder_is_trained_on(folder, tmp_path, monkeypatch, name):
    shutil.copytree(folder / "pictures", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for written in (name, tmp_path / name):
        config = flags.build(load.read(f"{ROOT}/configs/records.py:data={written},size=smoke", {}))
        assert len(sources.open_(config)[0].all) == 1


def test_a_folder_that_is_not_found_says_what_separates(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*; .*here \+ joins datasets, @ follows a name, a comma ends"):
        load.read(f"{ROOT}/configs/records.py:data={tmp_path}/a+b,size=smoke", {})
