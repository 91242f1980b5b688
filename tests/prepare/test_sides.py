"""Which documents are held out: never the only ones of a modality, unless the input says so, and always one."""

import dataclasses
import json

import pytest
from PIL import Image

from launch import cli
from mot.data.manifest import read_json
from mot.data.records import Dataset
from mot.errors import UserError
from mot.prepare import job
from tests.support.datasets import SMALL
from tests.support.files import png, write, write_lines

TEXTS = [{"content": [{"text": f"plain {i}"}]} for i in range(3)]


def pictured(trial, **more):
    return {"content": [{"text": f"with a picture {trial}"}, {"image": "a.png"}]} | more


def recipe(folder, *rows, **more):
    write(folder / "a.png", png())
    file = write_lines(folder / "m.jsonl", *rows)
    return dataclasses.replace(
        SMALL, inputs=(str(file),), image_ids=None, audio_ids=None, **({"held_out": 0.01} | more)
    )


def prepared(folder, recipe, out="out", workers=1):
    """Modalities, documents that are trained on and held out, and the ids of the latter."""
    about = job.prepare(recipe, folder / out, workers, 0).about
    held_out = Dataset(folder / out, "held_out")
    ids = {held_out[i].id for i in range(held_out.count)}
    return about["modalities"], [about["splits"][side]["documents"] for side in ("train", "held_out")], ids


@pytest.mark.parametrize("fraction", [0.01, 0.9])
def test_the_only_document_of_a_modality_is_trained_on(tmp_path, fraction):
    """Also where its hash is the least, in some of the trials, or all but one are held out."""
    for trial in range(6):
        asked = recipe(tmp_path / f"{trial}", pictured(trial), *TEXTS, held_out=fraction)
        modalities, (train, held_out), ids = prepared(tmp_path / f"{trial}", asked)
        assert modalities == ["text", "image"]
        assert train >= 1 <= held_out
        assert train + held_out == 4
        assert "m.jsonl:1" not in ids


def test_neither_order_nor_workers_decide_it(tmp_path):
    rows = [pictured(0), pictured(1), {"content": [{"text": "depth"}, {"ids": [1], "modality": "depth"}]}, *TEXTS]
    found = []
    for i, (order, workers) in enumerate(((rows, 1), (rows[::-1], 1), (rows, 2))):
        asked = recipe(tmp_path / f"{i}", *order, held_out=0.7, ids=(("depth", 4),), shard=2)
        modalities, sizes, ids = prepared(tmp_path / f"{i}", asked, workers=workers)
        assert modalities == ["text", "image", "depth"]
        lines = {int(id_.partition(":")[2]) - 1 for id_ in ids}
        found.append((sizes, sorted(json.dumps(order[line]) for line in lines)))
    assert found[0] == found[1] == found[2]


def test_documents_that_each_have_a_modality_of_their_own_are_all_trained_on(tmp_path):
    rows = [pictured(0), {"content": [{"text": "depth"}, {"ids": [1], "modality": "depth"}]}]
    modalities, sizes, _ = prepared(tmp_path, recipe(tmp_path, *rows, ids=(("depth", 4),)))
    assert (modalities, sizes) == (["text", "image", "depth"], [2, 0])


def test_a_broken_example_is_none(tmp_path):
    """What is trained on has the modality only where it can be decoded."""
    write(tmp_path / "b.png", b"no picture")
    for trial in range(6):
        broken = {"content": [{"text": f"broken {trial}"}, {"image": "b.png"}]}
        asked = recipe(tmp_path, broken, pictured(trial), *TEXTS)
        about = job.prepare(asked, tmp_path / f"out{trial}", 1, 1).about
        assert about["modalities"] == ["text", "image"]
        assert [about["splits"][side]["documents"] for side in ("train", "held_out")] == [3, 1]
        assert not [why for why in about["left_out"] if "raise --sample" in why]


def test_the_only_good_line_of_a_list_of_pictures_is_trained_on(tmp_path):
    """As mmc4 has them: text_list and image_info."""
    info = [{"image_name": "a.png", "matched_text_index": 0}]
    for trial in range(6):
        good = {"text_list": [f"a {trial}"], "image_info": info}
        lost = {"text_list": ["b"], "image_info": [{"image_name": "none.png", "matched_text_index": 0}]}
        asked = recipe(tmp_path, good, lost, {"text_list": ["plain"], "image_info": []})
        about = job.prepare(asked, tmp_path / f"out{trial}", 1, 1).about
        assert about["modalities"] == ["text", "image"]


def test_a_split_of_the_input_stays_and_is_named_where_it_holds_out_a_modality(tmp_path, capsys):
    rows = [pictured(0, split="val"), *TEXTS]
    with pytest.raises(UserError, match=r"image is in held-out documents alone \(the first: m.jsonl:1\), as the input"):
        prepared(tmp_path, recipe(tmp_path, *rows))
    assert not (tmp_path / "out" / "dataset.json").exists()
    (tmp_path / "all.jsonl").write_text(json.dumps({"text": "a", "split": "test"}) + "\n", encoding="utf-8")
    assert cli.main(["data", "prepare", str(tmp_path / "all.jsonl"), f"--out={tmp_path / 'all'}"]) == 2
    assert (
        "(0 are bad, the others are held out, as the input's split says, the first all.jsonl:1)"
        in capsys.readouterr().err
    )


def test_equal_documents_that_move_the_held_out_part_are_told(tmp_path, capsys):
    rows = [{"text": f"one of {i % 4}"} for i in range(200)]
    command = ["data", "prepare", str(write_lines(tmp_path / "a.jsonl", *rows)), "--workers=1", "--shard=50"]
    assert cli.main([*command, f"--out={tmp_path / 'few'}", "--held-out=0.1"]) == 0
    about = read_json(tmp_path / "few")
    share = about["splits"]["held_out"]["documents"] / 2
    (told,) = about["warnings"]
    assert told.startswith(f"4 distinct documents of 200; {share:.0f} % are held out, 10 % were asked for")
    assert f"warning: {told}" in capsys.readouterr().out
    write_lines(tmp_path / "a.jsonl", *({"text": f"{i}"} for i in range(200)))
    assert cli.main([*command, f"--out={tmp_path / 'many'}", "--held-out=0.1"]) == 0
    assert read_json(tmp_path / "many")["warnings"] == []


def test_pictures_that_lose_their_edges_or_frames_are_told(tmp_path, capsys):
    for i in range(4):
        first, second = (Image.new("L", (4 + i % 2, 4), 9 * i + j) for j in range(2))
        first.save(tmp_path / f"{i}.gif", save_all=True, append_images=[second] * (i == 0))
        write(tmp_path / f"{i}.txt", f"picture {i}")
    options = ["--image-side=4", "--shard=1", "--workers=1"]
    assert cli.main(["data", "prepare", str(tmp_path), f"--out={tmp_path}-out", *options]) == 0
    told = capsys.readouterr().out
    assert "warning: 2 of 4 images are not square: the square in the middle is kept" in told
    assert "warning: 1 of 4 images have several frames: the first is kept" in told
    assert len(read_json(tmp_path.with_name(f"{tmp_path.name}-out"))["warnings"]) == 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.json"])
def test_what_is_empty_is_called_so(tmp_path, capsys, name):
    import pyarrow
    from pyarrow import parquet

    if name.endswith("parquet"):
        parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / name)
    else:
        (tmp_path / name).write_text("[]" if name == "a.json" else "\n", encoding="utf-8")
    assert cli.main(["data", "prepare", str(tmp_path / name), f"--out={tmp_path / 'out'}"]) == 2
    told = capsys.readouterr().err
    assert f"{name}: it is empty: there is no document in it; name another input" in told
    assert "0 are bad" not in told
