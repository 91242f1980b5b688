"""From users' files to a dataset, and from there to training."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mot.data.manifest import SPLITS, read_json
from mot.data.records import Dataset
from mot.errors import UserError
from mot.prepare import dataset_tokenizers, job, readers
from tests.support.datasets import SMALL, contents, write_inputs
from tests.support.files import write_lines

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset, its recipe and where it lies."""
    folder = tmp_path_factory.mktemp("prepared")
    recipe = write_inputs(folder / "in")
    return recipe, folder / "out", job.prepare(recipe, folder / "out", 1, 0)


def test_documents_come_out_as_they_went_in(made):
    recipe, out, summary = made
    tools = dataset_tokenizers.load(out / "tokenizers")
    assert tools.modalities == ("text", "image")
    raws = {raw.id: raw for raw in readers.read([Path(recipe.inputs[0])], "jsonl")}
    seen = {}
    for split in SPLITS:
        dataset = Dataset(out, split)
        for i in range(dataset.count):
            record = dataset[i]
            name, _, number = record.id.partition("#")
            assert int(number or 0) == len(seen.setdefault(name, [])), "parts come in order"
            seen[name].append((split, record))
            tokens = {m: sum(len(s.data) for s in record.spans if s.modality == m) for m in tools.modalities}
            images = sum(s.modality == "image" for s in record.spans)
            assert dataset.lengths[i].tolist() == [tokens["text"] + 2 + 2 * images, tokens["image"]]
            assert dataset.atoms_of(i)[:, 1].sum() == sum(tokens.values()) <= recipe.max_tokens
    assert seen.keys() == raws.keys()
    for name, parts in seen.items():
        assert len({split for split, _ in parts}) == 1, "a document is on one side"
        spans = [span for _, record in parts for span in record.spans if span.modality == "text"]
        text = "".join(tools.text.decode(span.data.tolist()) for span in spans)
        assert text == "".join(part.content for part in raws[name].parts if part.kind == "text")
    counts = {split: summary.about["splits"][split]["documents"] for split in SPLITS}
    assert counts["train"] > counts["held_out"] > 0
    assert any(len(parts) > 1 for parts in seen.values()), "no document was longer than `max_tokens`"


def test_text_that_spells_a_special_token_is_text(made):
    _, out, _ = made
    about = read_json(out)
    special = set(about["tokenizers"]["text"]["special"].values())
    dataset = Dataset(out, "train")
    for i in range(dataset.count):
        for modality, data in dataset[i].spans:
            assert modality != "text" or not special & set(data.tolist())


def test_the_same_command_finds_all_done_and_another_is_refused(made):
    recipe, out, summary = made
    again = job.prepare(recipe, out, 1, 0)
    assert (again.documents, again.about) == (0, json.loads(json.dumps(summary.about)))
    before = contents(out)
    with pytest.raises(ValueError, match=r"was begun otherwise \(shard 8 -> 9\); nothing was overwritten"):
        job.prepare(dataclasses.replace(recipe, shard=9), out, 1, 0)
    assert contents(out) == before


def test_a_recipe_that_came_to_nothing_may_be_mended(made, tmp_path):
    recipe, out, _ = made
    with pytest.raises(ValueError, match=r"5000 ids were asked for"):
        job.prepare(dataclasses.replace(recipe, image_ids=5000), tmp_path / "out", 1, 0)
    job.prepare(recipe, tmp_path / "out", 1, 0)
    assert contents(tmp_path / "out") == contents(out)


def test_a_folder_that_holds_something_else_is_not_touched(made, tmp_path):
    recipe, _, _ = made
    (tmp_path / "photo.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds something else; nothing was overwritten; choose another --out"):
        job.prepare(recipe, tmp_path, 1, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.txt"]


def test_any_number_of_processes_gives_the_same_bytes(made, tmp_path):
    recipe, out, _ = made
    job.prepare(recipe, tmp_path / "two", 2, 0)
    assert contents(tmp_path / "two") == contents(out)


COMMAND = """
import sys, json
from pathlib import Path
from mot.prepare import job
from tests.support.datasets import SMALL
import dataclasses, time

def slowly(*block, write=job.write_block):
    time.sleep(0.2)  # so that whoever waits for a shard comes in time
    return write(*block)

job.write_block = slowly
if __name__ == "__main__":
    recipe = dataclasses.replace(SMALL, inputs=(sys.argv[1],))
    job.prepare(recipe, Path(sys.argv[2]), int(sys.argv[3]), 0)
"""


def start(tmp_path, recipe, out, workers, **more):
    script = tmp_path / "command.py"
    script.write_text(COMMAND, encoding="utf-8")
    arguments = [sys.executable, str(script), recipe.inputs[0], str(out), str(workers)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, start_new_session=True, **more)


def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bytes(made, tmp_path):
    recipe, out, _ = made
    again = tmp_path / "again"
    for shards in (0, 2, 3):  # that are there when it is killed
        process = start(tmp_path, recipe, again, 1)
        while len(list(again.glob("*/shard-*"))) < shards or not (again / "recipe.json").exists():
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (again / "dataset.json").exists(), "it was done before it could be killed"
    job.prepare(recipe, again, 1, 0)
    assert contents(again) == contents(out)


def test_a_damaged_shard_is_made_again(made, tmp_path):
    recipe, out, _ = made
    again = tmp_path / "again"
    process = start(tmp_path, recipe, again, 1)
    while not list(again.glob(".work/block-00001.json")):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shard = again / "train" / "shard-00000.array_record"
    shard.write_bytes(shard.read_bytes()[:-9])
    job.prepare(recipe, again, 1, 0)
    assert contents(again) == contents(out)


def test_a_full_disk_is_told_and_the_same_command_goes_on(made, tmp_path):
    """Files of at most 20 kB stand for a disk with no more room."""
    recipe, out, _ = made
    again = tmp_path / "again"

    def limit():
        return resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(tmp_path, recipe, again, 1, preexec_fn=limit)
    told = process.communicate()[1].decode()
    assert process.returncode != 0
    assert "OSError" in told, told
    assert not (again / "dataset.json").exists()
    job.prepare(recipe, again, 1, 0)
    assert contents(again) == contents(out)


def test_bad_documents_are_left_out_counted_and_too_many_stop_it(tmp_path):
    recipe = write_inputs(tmp_path / "in", 30, bad={4, 7, 8, 13})  # 4, 7 and 13 get as far as their picture
    about = job.prepare(recipe, tmp_path / "out", 1, 10).about
    told = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(told) == sum(about["left_out"].values()) == 4
    assert all("doc" in bad["id"] and bad["why"] for bad in told)
    with pytest.raises(
        ValueError,
        match=r"4 documents are bad, --max-skipped allows 3; mend(?s:.*)the first:\n  .*doc4: path 'nowhere.*\n"
        r".*doc7.*\n.*doc8",
    ):
        job.prepare(recipe, tmp_path / "strict", 1, 3)
    assert not (tmp_path / "strict" / "dataset.json").exists()
    job.prepare(recipe, tmp_path / "strict", 1, 4)
    assert contents(tmp_path / "strict") == contents(tmp_path / "out")


def test_a_text_tokenizer_has_the_markers_of_datasets_that_will_be_like_it(tmp_path):
    pictures = write_inputs(tmp_path / "in")
    (tmp_path / "book.txt").write_text("\n\n".join(f"Line {i}." for i in range(9)), encoding="utf-8")
    book = dataclasses.replace(SMALL, inputs=(str(tmp_path / "book.txt"),), format="text", separator="\n\n")
    job.prepare(dataclasses.replace(book, markers=("image", "video")), tmp_path / "books", 1, 0)
    special = read_json(tmp_path / "books")["tokenizers"]["text"]["special"]
    assert {"<boi>", "<eoi>", "<video>", "</video>"} <= special.keys()
    about = job.prepare(dataclasses.replace(pictures, like=str(tmp_path / "books")), tmp_path / "pictures", 1, 0).about
    assert about["tokenizers"]["text"]["special"] == special
    job.prepare(book, tmp_path / "alone", 1, 0)
    assert "markers" not in json.loads((tmp_path / "alone" / "recipe.json").read_text(encoding="utf-8"))
    lines = write_lines(
        tmp_path / "x.jsonl", *({"text": f"row {i}", "ids": [i % 3], "modality": "depth"} for i in range(9))
    )
    depth = dataclasses.replace(SMALL, inputs=(str(lines),), ids=(("depth", 3),), like=str(tmp_path / "alone"))
    with pytest.raises(UserError, match=r"has no </depth>, <depth>; train one anew, there with --markers=depth"):
        job.prepare(depth, tmp_path / "depth", 1, 0)


def test_a_marker_that_may_be_misspelt_is_told(tmp_path):
    book = dataclasses.replace(write_inputs(tmp_path / "in"), markers=("vidoe", "depth"))
    warned = job.prepare(book, tmp_path / "out", 1, 0).about["warnings"]
    assert [line for line in warned if "--markers" in line] == [
        "--markers=vidoe is no modality of mot's own; if video was meant, prepare it again with that"
    ]


@pytest.mark.parametrize("name", ["a.npy", "a.fast.npy"])
def test_documents_that_are_all_bad_leave_nothing_but_their_list(tmp_path, name):
    """A .npy of latents is found bad where blocks are made, one of actions where tokenizers are learnt."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("an array", encoding="utf-8")
    (tmp_path / "in" / name).write_bytes(b"junk")
    alone = dataclasses.replace(SMALL, inputs=(str(tmp_path / "in"),), format="folder")
    for _ in range(2):  # and the same folder is taken again
        with pytest.raises(UserError, match=f"what is bad, the first:\n  {name}: not a .npy file"):
            job.prepare(alone, tmp_path / "out", 1, 1)
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["left_out.jsonl"]


def test_a_dataset_like_another_has_its_tokenizers(made, tmp_path):
    _, out, _ = made
    (tmp_path / "other.txt").write_text("Quite another text. " * 30, encoding="utf-8")
    other = dataclasses.replace(
        SMALL, inputs=(str(tmp_path / "other.txt"),), format="text", like=str(out), held_out=0.0
    )
    about = job.prepare(other, tmp_path / "out", 1, 0).about

    def known(about):
        return {k: v for k, v in about["tokenizers"]["text"].items() if k != "files"}

    assert known(about) == known(read_json(out))
    assert about["modalities"] == ["text"]
    lone = dataclasses.replace(other, like=str(tmp_path))
    with pytest.raises(ValueError, match=r"is no dataset: it has no dataset.json"):
        job.prepare(lone, tmp_path / "lone", 1, 0)
    damaged = dataclasses.replace(other, like=str(tmp_path / "out"))
    (tmp_path / "out" / "tokenizers" / "text.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"--like=.*text.json is missing or damaged; copy it again"):
        job.prepare(damaged, tmp_path / "lone", 1, 0)


def test_a_tokenizer_of_ones_own_gets_the_special_tokens(made, tmp_path):
    from mot.tokenizers import text as texts

    recipe, _, _ = made
    own = texts.train(["some words of my own, and some more of them"] * 9, 280, ["<unk>"])
    (tmp_path / "own.json").write_text(own.to_str(), encoding="utf-8")
    own_recipe = dataclasses.replace(recipe, tokenizer=str(tmp_path / "own.json"))
    text = job.prepare(own_recipe, tmp_path / "out", 1, 0).about["tokenizers"]["text"]
    assert text["ids"] == own.get_vocab_size() + 5
    assert min(i for name, i in text["special"].items() if name != "<unk>") == own.get_vocab_size()
    (tmp_path / "no.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"the text tokenizer: no tokenizer of the tokenizers library"):
        job.prepare(dataclasses.replace(recipe, tokenizer=str(tmp_path / "no.json")), tmp_path / "no", 1, 0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (dict(text_ids=10), "--text-ids=10; must be 300 or more"),
        (
            dict(image_render=2),
            "--image-render=2, --image-aspect=square, --image-side=8: a line of 2 letters is 12 pixels",
        ),
        (dict(image_side=9), "--image-side=9 is no multiple of --image-patch=2"),
        (dict(held_out=1.0), "--held-out=1.0; must be a fraction"),
        (dict(markers=("text",)), "--markers=text: 'text' has no markers; name modalities other than text"),
        (dict(markers=("image",), tokenizer="b"), "--markers=image, --tokenizer=b: the text tokenizer is not trained"),
        (dict(like="a", tokenizer="b"), "each says which tokenizer; give one"),
        (dict(image_ids=5000), "the image tokenizer: 5000 ids were asked for and only"),
        (dict(inputs=("nowhere.jsonl",)), "nowhere.jsonl"),
    ],
)
def test_a_bad_recipe_gets_a_message(made, tmp_path, change, why):
    recipe, _, _ = made
    with pytest.raises(ValueError, match=why):
        job.prepare(dataclasses.replace(recipe, **change), tmp_path / "out", 1, 0)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_two_processes_do_not_prepare_one_folder(made, tmp_path):
    recipe, out, _ = made
    first = job.claimed(tmp_path / "out", {"inputs": [], "shard": 8})
    with (
        first,
        pytest.raises(ValueError, match=r"is being prepared by another process; wait for it, or choose another"),
    ):
        job.prepare(recipe, tmp_path / "out", 1, 0)
    job.prepare(recipe, tmp_path / "out", 1, 0)
    assert contents(tmp_path / "out") == contents(out)


def test_workers_end_with_their_command(made, tmp_path):
    recipe, _, _ = made
    recipe = write_inputs(tmp_path / "many", 400)
    process = start(tmp_path, recipe, tmp_path / "again", 2)
    while not list((tmp_path / "again").glob(".work/*.json")):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    def mine():
        return subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout.split()

    end = time.monotonic() + 20
    while mine() and time.monotonic() < end:
        time.sleep(0.1)
    assert not mine()


def test_a_dataset_does_not_lie_in_its_own_input(made):
    recipe, _, _ = made
    folder = Path(recipe.inputs[0]).parent
    inside = dataclasses.replace(recipe, inputs=(str(folder),))
    with pytest.raises(ValueError, match=r"lies in the input .*, and would be read as part of it; choose another"):
        job.prepare(inside, folder / "out", 1, 0)
    assert not (folder / "out").exists()
