"""Generation: each id is what the whole document's forward pass says, within a grammar."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import digits
from launch import cli
from mot import config, model, rundir, sample, train
from mot.data import embedded
from mot.data.embedded import PIXELS, TEXT_IDS
from mot.data.packing import document, pack
from mot.tokenizers.text import BOI, BOS, EOI, EOS
from scaling.judge import judge
from tests import examples
from tests.test_model import in_document_order

ROOM = {"text": 10, "image": 9}


def grammar(ids):
    """Text and image ids as they come; id 0 ends."""
    allowed = np.ones(2 * examples.IDS, bool)
    return allowed & (ids[-1] != 0)


@pytest.fixture(scope="module")
def tiny():
    c = examples.make("mot")
    return c, examples.weights(c)


def generate(tiny, prompts, **options):
    return sample.generate(tiny[1], tiny[0], prompts, grammar, ROOM, **options)


PROMPTS = [[3, 14], [5, 2, 20, 21], [7]]


def test_greedy_ids_are_the_likeliest_of_a_whole_forward_pass(tiny):
    c, weights = tiny
    for prompt, row in zip(PROMPTS, generate(tiny, PROMPTS, temperature=0), strict=True):
        assert row[: len(prompt)] == prompt
        assert len(row) > len(prompt)
        stream = np.array(row) >= examples.IDS
        batch = pack([[document(0, 0, row, stream)]], ["text", "image"], (30, 30))
        h_TD = in_document_order(model.forward(weights, batch, c).hidden)[0]
        logits_TV = np.array(h_TD @ model.head(weights, c))
        for t in range(len(prompt) - 1, len(row) - 1):
            used = np.bincount(stream[: t + 1], minlength=2)
            logits_TV[t, : examples.IDS] -= 1e9 * (used[0] >= ROOM["text"])
            logits_TV[t, examples.IDS :] -= 1e9 * (used[1] >= ROOM["image"])
            assert row[t + 1] == logits_TV[t].argmax()
        ended = row[-1] == 0 or (np.bincount(stream, minlength=2) == list(ROOM.values())).all()
        assert ended


def test_a_row_depends_on_its_place_prompt_and_seed_alone(tiny):
    rows = generate(tiny, PROMPTS, seed=1)
    assert rows == generate(tiny, PROMPTS, seed=1)
    assert rows != generate(tiny, PROMPTS, seed=2)
    assert rows[0] == generate(tiny, PROMPTS[:1], seed=1)[0]
    same = generate(tiny, PROMPTS[:1] * 4, seed=1)
    assert len(set(map(tuple, same))) > 1


def test_top_k_of_one_is_greedy(tiny):
    assert generate(tiny, PROMPTS, seed=3, top_k=1) == generate(tiny, PROMPTS, temperature=0)


def test_the_grammar_of_embedded_documents():
    allowed = lambda ids: set(np.flatnonzero(embedded.grammar(ids)))
    levels = set(range(TEXT_IDS, TEXT_IDS + embedded.LEVELS))
    assert not allowed([BOS]) & levels
    assert {BOI, EOS} <= allowed([BOS])
    assert allowed([BOS, BOI]) == levels
    image = [BOS, BOI] + [TEXT_IDS] * PIXELS
    assert allowed(image[:-1]) == levels
    assert allowed(image) == {EOI}
    assert BOI not in allowed([*image, EOI])
    assert allowed([BOS, 30, EOS]) == set()


def test_every_document_obeys_the_grammar():
    c = config.build(digits.get_config("size=smoke"), embedded.faults)
    for source in embedded.load(c)[1].all:
        for d in source.documents[:20]:
            assert all(embedded.grammar(d.token[: i + 1])[d.token[i + 1]] for i in range(len(d.token) - 1))


@pytest.mark.parametrize(("text", "digit"), [("a handwritten seven", 7), ("a seven or two", None), ("someone", None)])
def test_a_caption_names_a_digit_or_none(text, digit):
    assert embedded.named(text) == digit
    assert embedded.named("the digit nine, written by hand") == 9


def test_the_judge_knows_real_digits():
    training, held_out = embedded.load(config.build(digits.get_config("size=smoke"), embedded.faults))
    classify, accuracy = judge(training, held_out)
    assert accuracy >= 0.97
    pixels, labels = embedded.labelled(held_out)
    assert (classify(pixels) == labels).mean() == accuracy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    tree = digits.get_config("arch=mot,size=smoke").unlock()
    tree.run.root = str(tmp_path_factory.mktemp("runs"))
    return train.run(config.build(tree, embedded.faults), devices=jax.devices()[:1])


def test_sample_writes_labelled_pictures_and_a_record(run, capsys):
    command = ["sample", str(run), "--prompt=a picture of the number two", "--each=2", "--read=3", "--text=The"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    for words in ("digits drawn as asked: ", " of 2, by a classifier", "captions that name the digit: ", "text: 'The"):
        assert words in printed
    folder = run / "samples" / "2"
    record = json.loads((folder / "samples.json").read_text())
    assert record["drawn"]["prompts"] == ["a picture of the number two"]
    assert len(record["read"]["captions"]) == 3
    for name in ("digits", "captions"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["--prompt=a handwritten eleven"],
            "--prompt 'a handwritten eleven': eleven is in no caption; allowed words: a ",
        ),
        (["--prompt="], "nothing is in no caption"),
        (["--prompt=!!!"], "!!! is in no caption"),
        (["--prompt=" + "a handwritten seven " * 8], "tokens; there is room for 21; shorten it"),
        (["--text=" + "word " * 200], "tokens; there is room for 48; shorten it"),
        (["--text=a\udce9"], "holds characters that are no text"),
        (["--temperature=inf"], "--temperature=inf; must be from 0 to 100"),
        (["--seed=4294967296"], "--seed=4294967296; must be from 0 to 2147483647"),
        (["--each=0"], "--each=0; must be from 1 to 1000"),
        (["--temperature=-1"], "--temperature=-1.0; must be from 0 to 100"),
        (["--temperature=nan"], "--temperature=nan; must be from 0 to 100"),
        (["--top-k=-2"], "--top-k=-2; must be from 0"),
        (["--step=7"], "has no checkpoint of step 7; it has 2"),
    ],
)
def test_bad_input_gets_one_message_and_nothing_written(run, tmp_path, capsys, args, says):
    assert cli.main(["sample", str(run), f"--out={tmp_path / 'out'}", *args]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_faults_come_at_once(run, capsys):
    assert cli.main(["sample", str(run), "--each=0", "--top-k=-1", "--prompt=a cat"]) == 2
    err = capsys.readouterr().err
    assert all(x in err for x in ("--each=0", "--top-k=-1", "cat is in no caption"))


def test_a_folder_that_is_no_run_and_one_without_checkpoints(run, tmp_path, capsys):
    assert cli.main(["sample", str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err
    shutil.copy(run / "config.json", tmp_path)
    assert cli.main(["sample", str(tmp_path)]) == 2
    assert "has no checkpoint yet; `mot train` with its configuration" in capsys.readouterr().err


def test_a_run_on_other_data_is_refused(run, monkeypatch, capsys):
    here = embedded.load(config.build(rundir.read_config(run)))
    monkeypatch.setattr(embedded, "load", lambda c: [split._replace(digest="other") for split in here])
    assert cli.main(["sample", str(run)]) == 2
    assert "was trained on other data" in capsys.readouterr().err


def test_samples_are_drawn_over_samples_and_over_nothing_else(run, tmp_path, capsys):
    assert cli.main(["sample", str(run), f"--out={tmp_path}", "--each=1", "--read=1"]) == 0
    assert cli.main(["sample", str(run), f"--out={tmp_path}", "--each=1", "--read=0"]) == 0
    assert not (tmp_path / "captions.png").exists()
    (tmp_path / "samples.json").write_text("mine")
    assert cli.main(["sample", str(run), f"--out={tmp_path}"]) == 2
    assert "was not written by mot sample and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "samples.json").read_text() == "mine"
