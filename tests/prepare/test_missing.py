"""A missing picture, a split of few documents, a codebook that few pictures cannot fill: told, not the end."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from launch import cli
from mot.data.manifest import read_json
from mot.data.records import Dataset
from mot.errors import UserError
from mot.prepare import job
from mot.prepare.raw import Part, Raw
from mot.prepare.sides import held_out_below
from tests.support.datasets import SMALL, write_inputs
from tests.support.files import table, write_lines

ABSENT, BROKEN, NULL, FOLDER = 4, 7, 10, 13  # documents of three parts, or two, whose picture is no picture


@pytest.fixture
def inputs(tmp_path):
    recipe = dataclasses.replace(write_inputs(tmp_path / "in", bad=[ABSENT]), max_tokens=2000)
    lines = (tmp_path / "in" / "all.jsonl").read_text(encoding="utf-8").splitlines()
    lines[NULL] = lines[NULL].replace(f'"{NULL}.png"', "null")
    (tmp_path / "in" / "all.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "in" / f"{BROKEN}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "in" / f"{FOLDER}.png").unlink()
    (tmp_path / "in" / f"{FOLDER}.png").mkdir()
    return recipe


def spans(folder) -> dict[str, list[str]]:
    found = {}
    for split in ("train", "held_out"):
        dataset = Dataset(folder, split)
        found |= {dataset[i].id: [span.modality for span in dataset[i].spans] for i in range(dataset.count)}
    return found


def left_out(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "left_out.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_missing_medium_costs_its_document_or_itself(inputs, tmp_path, capsys):
    lost = [f"all.jsonl:{i + 1}:doc{i}" for i in (ABSENT, BROKEN, NULL, FOLDER)]
    about = job.prepare(inputs, tmp_path / "documents", 1, 4).about
    assert sum(about["left_out"].values()) == 4
    assert about["missing"] == {}
    assert [line["id"] for line in left_out(tmp_path / "documents")] == lost
    assert not set(lost) & spans(tmp_path / "documents").keys()

    options = ["--missing=drop-medium", "--image-side=8", "--image-patch=2", "--image-ids=12", "--workers=1"]
    out = tmp_path / "media"
    assert cli.main(["data", "prepare", inputs.inputs[0], f"--out={out}", "--max-skipped=0", *options]) == 0
    assert "dropped: 4 image, which are missing or cannot be read" in capsys.readouterr().out
    assert read_json(out)["missing"] == {"image": 4}
    assert read_json(out)["left_out"] == {}
    lines = left_out(out)
    assert [(line["id"], line["medium"]) for line in lines] == [(id_, "image") for id_ in lost]
    for line, why in zip(lines, ("No such file", "header", "is null", "no regular file"), strict=True):
        assert why in line["why"]
    found = spans(out)
    assert len(found) == 40
    for id_ in lost:
        assert set(found[id_]) == {"text"}
    assert sum("image" in kinds for kinds in found.values()) == sum(i % 3 > 0 for i in range(40)) - 4


def test_media_of_other_formats_are_dropped_too(tmp_path):
    rng, png = np.random.default_rng(0), tmp_path / "a.png"
    pictures = []
    for _ in range(6):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(png)
        pictures.append(png.read_bytes())
    pictures[2], pictures[4] = None, b"no picture"
    columns = {"caption": [f"number {i}" for i in range(6)], "image": pictures}
    file = table(tmp_path / "in" / "a.parquet", columns)
    recipe = dataclasses.replace(SMALL, inputs=(str(file),), format="parquet", missing="drop-medium", held_out=0.0)
    about = job.prepare(recipe, tmp_path / "out", 1, 0).about
    assert about["missing"] == {"image": 2}
    assert about["splits"]["train"]["documents"] == 6
    assert about["splits"]["train"]["spans"] == {"image": 4}


def test_a_modality_that_is_wholly_missing_is_told(tmp_path):
    rows = [{"content": [{"text": f"text {i}"}, {"image": f"{i}.png"}]} for i in range(5)]
    file = write_lines(tmp_path / "a.jsonl", *rows)
    recipe = dataclasses.replace(SMALL, inputs=(str(file),), missing="drop-medium")
    with pytest.raises(UserError, match=r"every image of the first documents is missing \(the first: path '\d.png'"):
        job.prepare(recipe, tmp_path / "out", 1, 0)


@pytest.mark.parametrize("missing", ["drop-document", "drop-medium"])
def test_where_no_sound_can_be_read_that_is_told(tmp_path, missing):
    rows = [{"text": f"{i}", "audio": f"{i}.png"} for i in range(3)]
    for row in rows:
        Image.new("L", (3, 2)).save(tmp_path / row["audio"])
    file = write_lines(tmp_path / "a.jsonl", *rows, {"text": "silence"})
    recipe = dataclasses.replace(SMALL, inputs=(str(file),), missing=missing)
    says = (
        "^3 of the first 4 documents have audio, and all of these are bad; mend them, .* lists what is bad, the first:"
    )
    with pytest.raises(UserError, match=says):
        job.prepare(recipe, tmp_path / "out", 1, 4)
    assert [line["id"] for line in left_out(tmp_path / "out")] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]


@pytest.mark.parametrize("name", ["image", "images", "audio", "action", "latents"])
def test_what_stands_under_a_modality_and_is_no_medium_costs_its_document_or_itself(tmp_path, name):
    values = [None, 3, [[1, 2]], [None], "" if name in ("image", "images", "audio") else {}]
    rows = [{"text": f"{i}", name: value} for i, value in enumerate(values)]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    good = [[{"text": "first"}, {"image": "a.png"}], *({"text": f"good {i}"} for i in range(5))]
    file = write_lines(tmp_path / "a.jsonl", *good, *rows)
    recipe = dataclasses.replace(SMALL, inputs=(str(file),), image_ids=None, held_out=0.0)
    job.prepare(recipe, tmp_path / "documents", 1, len(rows))
    ids = [f"a.jsonl:{1 + len(good) + i}" for i in range(len(rows))]
    assert [line["id"] for line in left_out(tmp_path / "documents")] == ids
    assert sum(read_json(tmp_path / "documents")["left_out"].values()) == len(rows)
    recipe = dataclasses.replace(recipe, missing="drop-medium")
    modality = name.removesuffix("s") if name == "images" else name
    if modality == "image":
        assert job.prepare(recipe, tmp_path / "media", 1, 0).about["missing"] == {modality: len(rows)}
        assert [line["id"] for line in left_out(tmp_path / "media")] == ids
    else:
        with pytest.raises(UserError, match=f"every {modality} of the first documents is missing"):
            job.prepare(recipe, tmp_path / "media", 1, 0)


def test_where_no_line_has_a_medium_under_its_modality_nothing_is_made(tmp_path):
    rows = [{"text": f"x{i}", "action": [[1, 2], [3, 4]]} for i in range(3)]
    file = write_lines(tmp_path / "a.jsonl", *rows)
    recipe = dataclasses.replace(SMALL, inputs=(str(file),))
    with pytest.raises(
        UserError, match=r"a.jsonl:1: action field 'action' is \[\[1, 2\], \[3, 4\]\]; a path or encoded"
    ):
        job.prepare(recipe, tmp_path / "out", 1, 4)


@pytest.mark.parametrize("action_as", ["positions", "offsets"])
def test_a_drawing_of_no_size_that_can_be_is_left_out_by_its_value(tmp_path, action_as):
    paths = [[[0.0, 0.0], [1.0, i]] for i in range(6)]
    paths[2] = [[0.0, 0.0], [1.0, 1e38]]
    file = table(tmp_path / "a.parquet", {"text": list("abcdef"), "action": paths})
    recipe = dataclasses.replace(SMALL, inputs=(str(file),), format="parquet", action_as=action_as)
    job.prepare(recipe, tmp_path / "out", 1, 1)
    told = {"id": "a.parquet:2", "why": "the action reaches 1e+38; at most 1e+29 is allowed; take a larger unit"}
    assert left_out(tmp_path / "out") == [told]


def of_text(tmp_path, n, out, shard=8, workers=1, fraction=0.01, same=False):
    rows = [{"text": "the same" if same else f"document number {i} of {n}"} for i in range(n)]
    file = write_lines(tmp_path / f"{n}.jsonl", *rows)
    recipe = dataclasses.replace(SMALL, inputs=(str(file),), held_out=fraction, shard=shard)
    splits = job.prepare(recipe, tmp_path / out, workers, 0).about["splits"]
    return [splits[split]["documents"] for split in ("train", "held_out")]


@pytest.mark.parametrize("n", range(2, 12))
def test_few_documents_are_on_both_sides(tmp_path, n):
    for fraction in (1e-6, 0.01, 0.5, 0.999):
        train, held_out = of_text(tmp_path, n, f"out{fraction}", fraction=fraction)
        assert train >= 1 <= held_out
        assert train + held_out == n
        if fraction == 1e-6:
            assert held_out == 1
    assert of_text(tmp_path, n, "none", fraction=0.0) == [n, 0]


def test_one_document_or_equal_ones_are_trained_on(tmp_path):
    assert of_text(tmp_path, 1, "one", fraction=0.999) == [1, 0]
    assert of_text(tmp_path, 5, "equal", fraction=0.999, same=True) == [5, 0]
    assert of_text(tmp_path, 6, "equal too", fraction=0.01, same=True) == [6, 0]


def test_the_split_depends_on_neither_blocks_nor_workers(tmp_path):
    ids = []
    for out, shard, workers in (("a", 1, 1), ("b", 8, 1), ("c", 2, 2)):
        assert of_text(tmp_path, 9, out, shard, workers, 0.001) == [8, 1]
        ids.append(Dataset(tmp_path / out, "held_out")[0].id)
    assert len(set(ids)) == 1


def test_a_bad_document_is_not_the_one_that_is_held_out(tmp_path):
    """Also where its hash is the least: in some of the trials."""
    for trial in range(12):
        rows = [{"content": [{"text": f"{trial} {i}"}, {"ids": [9 * (i == 0)], "modality": "depth"}]} for i in range(4)]
        file = write_lines(tmp_path / f"{trial}.jsonl", *rows)
        recipe = dataclasses.replace(SMALL, inputs=(str(file),), held_out=1e-6, ids=(("depth", 5),))
        splits = job.prepare(recipe, tmp_path / f"out{trial}", 1, 1).about["splits"]
        assert [splits[split]["documents"] for split in ("train", "held_out")] == [2, 1]


def test_what_the_input_says_of_splits_holds():
    def raws(*sides):
        return [Raw(f"{i}", (Part("text", f"{i}"),), side) for i, side in enumerate(sides)]

    def below(*sides):
        return held_out_below(raws(*sides), 1e-9, "drop-document", {})

    usual = int(1e-9 * 2**64)
    assert below(False, True, None) == below(False, False) == below(None, True) == usual
    assert below(None, None) > usual


def test_usual_numbers_of_ids_are_lowered_and_told(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}", encoding="utf-8")
    options = [f"--out={tmp_path / 'out'}", "--workers=1", "--image-side=8", "--held-out=0"]
    assert cli.main(["data", "prepare", str(folder), *options, "--image-ids=7"]) == 2
    assert "7 ids were asked for and only 6 different patches" in capsys.readouterr().err
    assert cli.main(["data", "prepare", str(folder), *options]) == 0
    told = capsys.readouterr()
    assert "image: 6 ids; the usual 1024 are more than the first documents yield (--image-ids)" in told.err
    assert "the usual 8192 are more than the first documents yield (--text-ids)" in told.err
    assert "image: 6 ids, 4 tokens each" in told.out
    assert read_json(tmp_path / "out")["tokenizers"]["image"]["ids"] == 6


def test_large_patches_have_room_for_fewer_ids(tmp_path, capsys):
    folder, rng = tmp_path / "in", np.random.default_rng(0)
    folder.mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}", encoding="utf-8")
    sizes = ["--image-side=64", "--image-patch=64", "--held-out=0", "--workers=1"]
    assert cli.main(["data", "prepare", str(folder), f"--out={tmp_path / 'out'}", *sizes]) == 0
    assert "image: 3 ids" in capsys.readouterr().err


def test_few_sounds_lower_the_ids_of_sound(tmp_path, capsys):
    offsets = np.array([0, 800, 1600, 2400])
    wave = np.sin(np.arange(2400) / 5).astype(np.float32) / 2
    np.savez(tmp_path / "a.npz", audio=wave, offsets=offsets, sample_rate=[8000], labels=["a", "b", "c"])
    command = ["data", "prepare", str(tmp_path / "a.npz"), "--content=text:labels|audio:audio", "--audio-rate=8000"]
    assert cli.main([*command, f"--out={tmp_path / 'out'}", "--workers=1", "--held-out=0"]) == 0
    assert "the usual 512 are more than the first documents yield (--audio-ids)" in capsys.readouterr().err
