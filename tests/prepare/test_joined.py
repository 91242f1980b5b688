"""Rows of several inputs that are one document."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mot.errors import UserError
from mot.prepare import asked, job, joined
from mot.prepare.raw import Part
from tests.support.datasets import SMALL, write_inputs
from tests.support.files import write_lines

RNG = np.random.default_rng(0)
CONTENT = ("text:{labels}|image:images", "image:images|text:a spoken {2.labels}|audio:2.audio", "audio:2.audio")


def inputs(folder: Path) -> tuple[str, str]:
    """Pictures of three digits, each pixel of which is the row's number, and clips, whose first sample is theirs."""
    names = dict(label_names=np.array(["zero", "one", "two"]))
    images = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], (40, 8, 8))
    split = (np.arange(40) % 4 == 3).astype(np.uint8)
    np.savez(folder / "drawn.npz", images=images, labels=np.arange(40) % 3, split=split, **names)
    waves = (RNG.normal(size=(18, 400)) * 1000).astype(np.int16)
    waves[:, 0] = np.arange(18)
    of_18 = dict(labels=np.arange(18) // 6, split=np.arange(18) % 2, sample_rate=8000)
    np.savez(folder / "spoken.npz", audio=waves, **of_18, **names)
    return str(folder / "drawn.npz"), str(folder / "spoken.npz")


def recipe(files, **changes):
    given = dict(inputs=tuple(files), format="auto", content=CONTENT, join=("labels",))
    return dataclasses.replace(SMALL, **given | changes)


def rows(raw) -> tuple[int, int]:
    """Which picture and which clip a document has."""
    by_kind = {part.kind: part.content for part in raw.parts}
    return int(by_kind["image"][0, 0]), int(by_kind["audio"][0])


def test_rows_of_one_label_and_split_are_paired_and_each_of_the_largest_input_is_there_once(tmp_path):
    given = recipe(inputs(tmp_path), content=("image:images|audio:2.audio",))
    found = list(joined.read(given, ()))
    pairs = [rows(raw) for raw in found]
    assert sorted(picture for picture, _ in pairs) == list(range(40))
    assert all(picture % 3 == clip // 6 for picture, clip in pairs)
    assert [raw.held_out for raw in found] == [picture % 4 == 3 for picture, _ in pairs]
    assert all(clip % 2 == (picture % 4 == 3) for picture, clip in pairs)
    times = Counter(clip for _, clip in pairs)  # of a group's three clips none comes a second time before all have come
    for clip in times:
        same = [n for other, n in times.items() if (other // 6, other % 2) == (clip // 6, clip % 2)]
        assert max(same) - min(same) <= 1
    assert [picture for picture, _ in pairs] != sorted(picture for picture, _ in pairs)
    assert len({raw.id for raw in found}) == 40
    assert found[0].id == f"drawn.npz:{pairs[0][0]}+spoken.npz:{pairs[0][1]}#0"


def test_templates_take_turns_and_text_may_be_of_either_input(tmp_path):
    found = list(joined.read(recipe(inputs(tmp_path)), ()))
    assert [[part.kind for part in raw.parts] for raw in found[:3]] == [
        ["text", "image"],
        ["image", "text", "audio"],
        ["audio"],
    ]
    label = found[1].parts[1].content.removeprefix("a spoken ")
    assert ["zero", "one", "two"].index(label) == rows(found[1])[1] // 6
    assert found[2].parts[0].rate == 8000


def test_another_seed_pairs_others_and_documents_are_shared_out_in_proportion(tmp_path):
    files = inputs(tmp_path)
    one, same, other = (
        [raw.id for raw in joined.read(recipe(files, join_seed=seed, join_documents=1000), ())] for seed in (0, 0, 1)
    )
    assert one == same
    assert set(one) != set(other)
    found = list(joined.read(recipe(files, content=CONTENT[1:2], join_documents=1000), ()))
    assert len(found) == 1000
    assert sum(raw.held_out for raw in found) == 250
    assert max(Counter(rows(raw)[0] for raw in found).values()) == 25  # of 40 pictures each comes 25 times


def test_inputs_of_any_format_and_each_with_a_field_of_its_own(tmp_path):
    file, _ = inputs(tmp_path)
    lines = [{"digit": word, "fact": f"{word} is a number", "split": split} for word in ("zero", "one", "two")
             for split in ("train", "val")]  # fmt: skip
    facts = write_lines(tmp_path / "facts.jsonl", *lines)
    given = recipe((str(facts), file), join=("digit", "labels"), content=("text:fact|image:2.images",))
    found = list(joined.read(given, ()))
    assert len(found) == 40
    for raw in found:
        word = raw.parts[0].content.partition(" ")[0]
        assert ["zero", "one", "two"].index(word) == int(raw.parts[1].content[0, 0]) % 3


def test_rows_of_one_number_are_one_document_on_the_side_that_any_input_says(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 8, 8), np.uint8), split=np.array([0, 1, 0]))
    lines = write_lines(tmp_path / "b.jsonl", *({"words": f"row {i}"} for i in range(3)))
    of = (str(tmp_path / "a.npz"), str(lines))
    found = list(joined.read(recipe(of, join=("row_number",), content=("image:images|text:2.words",)), ()))
    told = {raw.parts[1].content: raw.held_out for raw in found}
    assert told == {"row 0": False, "row 1": True, "row 2": False}


def test_rows_that_say_no_split_are_held_out_by_their_content_and_never_on_both_sides(tmp_path):
    a = write_lines(tmp_path / "a.jsonl", *({"k": "x", "words": f"left {i}"} for i in range(60)))
    b = write_lines(tmp_path / "b.jsonl", *({"k": "x", "words": f"right {i}"} for i in range(60)))
    given = recipe((str(a), str(b)), join=("k",), content=("text:words|text:2.words",), held_out=0.3)
    sides = {True: set(), False: set()}
    for raw in joined.read(given, ()):
        sides[raw.held_out] |= {part.content for part in raw.parts}
    assert 10 < len(sides[True]) < 60
    assert not sides[True] & sides[False]


def test_a_value_without_a_partner_is_told_with_all_others(tmp_path):
    a = write_lines(tmp_path / "a.jsonl", *({"k": k, "split": "train"} for k in "xxyzz"))
    b = write_lines(tmp_path / "b.jsonl", *({"k": k, "split": "train"} for k in "wxx"))
    given = recipe((str(a), str(b)), join=("k",), content=("text:k|text:2.k",))
    with pytest.raises(UserError) as caught:
        list(joined.read(given, ()))
    told = str(caught.value)
    assert told.startswith("--join=k: b.jsonl has no training row of 'y', 'z', which another input has")
    assert "a.jsonl has no training row of 'w'" in told
    assert "add their partners" in told


def test_a_bad_row_is_one_bad_document(tmp_path):
    file, _ = inputs(tmp_path)
    lines = [{"k": word, "split": split, "audio": "no.wav"} for word in ("zero", "one", "two") for split in (0, 1)]
    facts = write_lines(tmp_path / "facts.jsonl", *lines, {"split": 0})
    given = recipe((file, str(facts)), join=("labels", "k"), content=("image:images|text:2.k", "audio:2.audio"))
    found = list(joined.read(given, ()))
    assert [raw.bad for raw in found[:1]] == ["no field 'k'; it has split"]
    assert all("no.wav" in raw.bad for raw in found[2::2])
    assert [part.kind for part in found[1].parts] == ["image", "text"]
    assert [part.kind for part in found[2].rest] == ["audio"]  # which --missing=drop-medium may leave out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (dict(join=(), join_documents=3, join_seed=2), ["--join-documents=3: is for --join", "--join-seed=2: is for"]),
        (dict(inputs=("a.npz",), content=("image:images",)), ["--join=labels: 1 input; two or more"]),
        (dict(join=("a", "b", "c")), ["--join=a,b,c: 3 fields of 2 inputs"]),
        (
            dict(join_documents=10**12, join_seed=-5),
            ["--join-documents=1000000000000; must be 0", "--join-seed=-5; must be"],
        ),
        (dict(content=(), join_documents=-1), ["nothing says what documents hold", "--join-documents=-1; must be 0"]),
        (dict(content=("text:3.name",)), ["--content text:3.name: there are 2 inputs"]),
        (dict(content=("action:xy+2.pen",)), ["--content action:xy+2.pen: its fields are of several inputs"]),
        (dict(format="text"), ["plain text has no fields"]),
    ],
)
def test_what_cannot_be_joined_is_told_at_once(tmp_path, changes, why):
    faults = list(asked.faults(recipe(("a.npz", "b.npz"), **changes), tmp_path / "out", 1, 0))
    assert len(faults) == len(why)
    for fault, part in zip(faults, why, strict=True):
        assert part in fault


def test_a_dataset_of_joined_rows_goes_on_and_one_without_is_written_as_before(tmp_path):
    given = recipe(inputs(tmp_path), image_side=8, image_ids=4)
    summary = job.prepare(given, tmp_path / "pairs", 1, 0)
    assert summary.documents == 40
    assert job.prepare(given, tmp_path / "pairs", 1, 0).documents == 0
    with pytest.raises(UserError, match=r"was begun otherwise \(join_seed None -> 1\)"):
        job.prepare(dataclasses.replace(given, join_seed=1), tmp_path / "pairs", 1, 0)
    job.prepare(write_inputs(tmp_path / "in"), tmp_path / "alone", 1, 0)
    for name in ("recipe.json", "dataset.json"):
        assert '"join' not in (tmp_path / "alone" / name).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "pairs" / "dataset.json").read_text(encoding="utf-8"))["source"]["join"] == ["labels"]


def test_a_part_that_is_asked_for_twice_is_read_once(tmp_path):
    found = list(joined.read(recipe(inputs(tmp_path), content=("image:images|image:1.images|audio:2.audio",)), ()))
    first, second, _ = found[0].parts
    assert first == Part("image", second.content)
