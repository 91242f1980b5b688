"""Ids of somebody's own tokenizers: from every format to a dataset, refused where they are not what was declared."""

import dataclasses
import json

import numpy as np
import pyarrow
import pytest

from launch import data
from launch.process import guarded
from mot.data import sources
from mot.data.manifest import read_json
from mot.data.records import Dataset
from mot.errors import UserError
from mot.prepare import dataset_tokenizers, job
from tests.support.datasets import SMALL
from tests.support.files import png, table, write_lines

CODES = np.arange(40 * 6).reshape(40, 6) * 7 % 50
CAPTIONS = [f"a thing of number {i}" for i in range(40)]


def call(*arguments):
    return guarded(data.main, [str(a) for a in arguments])


def lines(folder, modality="depth", codes=CODES, name="a.jsonl"):
    ids = [{"ids": np.asarray(row).tolist(), "modality": modality} for row in codes]
    rows = [{"content": [{"text": text}, part]} for text, part in zip(CAPTIONS, ids, strict=False)]
    return write_lines(folder / name, *rows)


def made(folder, file, out="out", **changes):
    recipe = dataclasses.replace(SMALL, inputs=(str(file),), max_tokens=512, **changes)
    return job.prepare(recipe, folder / out, 1, 100).about


def spans(folder):
    """The ids of each document by its text, of both splits, and their modality."""
    found, tools = {}, dataset_tokenizers.load(folder / "tokenizers")
    for split in ("train", "held_out"):
        dataset = Dataset(folder, split)
        for i in range(dataset.count):
            text, medium = dataset[i].spans
            found[tools.text.decode(text.data.tolist())] = medium.modality, medium.data.tolist()
    return found


def of_parquet(folder, kind):
    column = pyarrow.array(CODES.tolist(), kind)
    return table(folder / "a.parquet", {"caption": CAPTIONS, "codes": column})


def of_npz(folder, **arrays):
    np.savez(folder / "a.npz", **arrays)
    write_lines(folder / "a.jsonl", *({"caption": caption} for caption in CAPTIONS))
    return folder / "a.npz"


def of_files(folder):
    for i, row in enumerate(CODES):
        np.save(folder / f"{i}.npy", row.astype(np.uint16))
    rows = [[{"text": text}, {"ids": f"{i}.npy", "modality": "depth"}] for i, text in enumerate(CAPTIONS)]
    return write_lines(folder / "a.jsonl", *({"content": row} for row in rows))


FORMS = {
    "lines": lines,
    "columns of lines": lambda f: write_lines(
        f / "b.jsonl", *({"caption": c, "codes": r.tolist()} for c, r in zip(CAPTIONS, CODES, strict=True))
    ),
    "files": of_files,
    "lists": lambda f: of_parquet(f, pyarrow.list_(pyarrow.uint16())),
    "lists of one size": lambda f: of_parquet(f, pyarrow.list_(pyarrow.int64(), 6)),
    "arrays": lambda f: of_npz(f, codes=CODES.astype(np.int32)),
    "arrays end to end": lambda f: of_npz(f, codes=CODES.reshape(-1), codes_offsets=np.arange(0, 241, 6)),
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_come_out_as_they_went_in(tmp_path, form):
    file = FORMS[form](tmp_path)
    fields = form not in ("lines", "files")
    content = ("text:caption|depth:codes",) if fields else ()
    about = made(tmp_path, file, format="auto" if fields else "jsonl", content=content, ids=(("depth", 50),))
    depth = about["tokenizers"]["depth"]
    assert about["modalities"] == ["text", "depth"]
    assert (depth["ids"], depth["tokens"], depth["digest"], depth["files"]) == (50, 6, "ids-50", [])
    assert {"<depth>", "</depth>"} < about["tokenizers"]["text"]["special"].keys()
    found = spans(tmp_path / "out")
    assert found == {text: ("depth", row.tolist()) for text, row in zip(CAPTIONS, CODES, strict=True)}


@pytest.mark.parametrize("modality", ["image", "audio", "action", "depth_2"])
def test_any_name_may_have_ids_of_ones_own_and_units_of_any_length(tmp_path, modality):
    codes = [row[: 3 + i % 3] for i, row in enumerate(CODES)]
    about = made(tmp_path, lines(tmp_path, modality, codes), ids=((modality, 50),))
    assert about["tokenizers"][modality] == {"digest": "ids-50", "files": [], "ids": 50}
    assert {name for name, _ in spans(tmp_path / "out").values()} == {modality}


def test_ids_out_of_range_are_bad_documents(tmp_path):
    codes = CODES.tolist()
    codes[3], codes[5], codes[7], codes[9] = [1, 50, 2, 3, 4, 5], [1, -1, 2, 3, 4, 5], [], [0.5] * 6
    about = made(tmp_path, lines(tmp_path, codes=codes), ids=(("depth", 50),))
    assert about["left_out"] == {
        "depth: id 50 is out of range: ids are from 0 to 49": 1,
        "depth: id -1 is out of range: ids are from 0 to 49": 1,
        "ids are int64 [0]; integers [n] are needed, n of 1 or more": 1,
        "ids [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]; a list of integers is needed, and 0.5 is none": 1,
    }


def test_ids_are_taken_over_with_like_and_counts_must_agree(tmp_path):
    made(tmp_path, lines(tmp_path), ids=(("depth", 50),))
    more = lines(tmp_path, codes=CODES[:, :4], name="b.jsonl")
    about = made(tmp_path, more, "like", like=str(tmp_path / "out"))
    assert (about["tokenizers"]["depth"]["ids"], about["tokenizers"]["depth"]["tokens"]) == (50, 4)
    with pytest.raises(UserError, match=r"--ids depth=64: .*out has 50; leave --ids out, or --like"):
        made(tmp_path, more, "other", like=str(tmp_path / "out"), ids=(("depth", 64),))
    made(tmp_path, more, "other", ids=(("depth", 64),))
    known = {name: read_json(tmp_path / name) for name in ("out", "other")}
    (text, depth) = list(sources._tokenizer_faults(known))
    assert "its text tokenizer" in text
    assert "its depth tokenizer is ids-64, that of out is ids-50" in depth
    assert "the same --ids depth=COUNT" in depth
    # Units of 6 here and of 4 there have no one length.
    assert sources.unit_lengths([known["out"], about]) == {"text": 0, "depth": 0}
    assert sources.unit_lengths([known["out"], known["out"]])["depth"] == 6


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "nothing says how many there are; write --ids depth=COUNT (those of the first documents go up to 49)"),
        (["--ids=text=5"], "'text' means something else here"),
        (["--ids=bos=5"], "'bos' means something else here"),
        (["--ids=latents=5"], "'latents' means something else here"),
        (["--ids=normals=5"], "'normals' means something else here"),
        (["--ids=Depth=5"], "--ids Depth=5: a modality's name is lower-case letters, digits and _"),
        (["--ids=depth", "--ids==5", "--ids=Flow=0"], "--ids =5: write NAME=COUNT"),
        (["--ids=depth", "--ids==5", "--ids=Flow=0"], "--ids Flow=0: must be from 1 to 16777216"),
        (["--ids=depth"], "--ids depth: write NAME=COUNT, as --ids depth=64"),
        (["--ids=depth=0"], "--ids depth=0: must be from 1 to 16777216"),
        (["--ids=depth=50", "--ids=depth=60"], "--ids says 2 times how many depth has; say it once"),
        (["--ids=depth=50", "--ids=flow=50"], "--ids flow=50: the first documents have no flow; leave it out"),
        (["--ids=image=50", "--vectors=image"], "--ids image=50, --vectors=image: each says what image is kept as"),
        (["--content=text:caption|flow:codes"], "or a modality that --ids declares (--ids depth=64)"),
    ],
)
def test_what_is_wrong_with_ids_is_told_at_once(tmp_path, capsys, arguments, why):
    file = lines(tmp_path)
    assert call("prepare", file, "--out", tmp_path / "out", "--workers=1", "--format=jsonl", *arguments) == 2
    told = capsys.readouterr().err
    assert why in told
    assert "Traceback" not in told


def test_columns_that_hold_no_ids_are_refused(tmp_path):
    how = dict(format="auto", content=("text:caption|depth:codes",), ids=(("depth", 50),))
    nested = pyarrow.array([[row.tolist()] for row in CODES])
    with pytest.raises(UserError, match=r"depth ids needs lists of integers, those of a unit in one list"):
        made(tmp_path, table(tmp_path / "a.parquet", {"caption": CAPTIONS, "codes": nested}), **how)
    with pytest.raises(UserError, match=r"'codes' is int64 \[40, 2, 3\]; depth ids needs integers \[n, tokens\]"):
        made(tmp_path, of_npz(tmp_path, codes=CODES.reshape(40, 2, 3)), **how)


def test_pictures_and_ids_of_pictures_do_not_mix(tmp_path):
    rows = [{"content": [{"text": "x"}, {"image": "none.png"}]}, {"content": [{"ids": [1], "modality": "image"}]}]
    file = write_lines(tmp_path / "a.jsonl", *rows)
    about = made(tmp_path, file, ids=(("image", 4),), held_out=0.0)
    assert list(about["left_out"].values()) == [1]
    (tmp_path / "none.png").write_bytes(png())
    with pytest.raises(UserError, match=r"--ids image=4: the first documents have image that are no ids of one's own"):
        made(tmp_path, file, "again", ids=(("image", 4),), held_out=0.0)


def test_the_summary_and_a_document_show_ids(tmp_path, capsys):
    file, out = lines(tmp_path), tmp_path / "out"
    command = ["prepare", file, "--out", out, "--format=jsonl", "--ids=depth=50", "--workers=1", "--preview"]
    assert call(*command) == 0
    assert "depth: 50 ids of one's own, 6 tokens each, tokenizer ids-50" in capsys.readouterr().out
    assert (out / "preview.png").stat().st_size > 5000
    assert call("inspect", out, "--document", 0, "--out", tmp_path / "one.png") == 0
    text, depth = capsys.readouterr().out.splitlines()[1:3]
    assert depth.split()[:3] == ["depth", "6", "tokens"]
    number = int(text.split()[-1].strip("'"))
    assert json.loads(f"[{','.join(depth.partition('[')[2].partition(']')[0].split())}]") == CODES[number].tolist()
