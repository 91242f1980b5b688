"""`mot evaluate --what`: what it prints, writes and refuses, of runs on digits in ids and in vectors."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits, transfusion
from launch import answers, evaluate, refusals
from mot.config import resolve
from mot.data import embedded, layout, sources
from mot.data.manifest import file_digest
from mot.errors import UserError
from mot.generate import codecs
from mot.runs import rundir
from mot.train import loop
from tests.support import recipes
from tests.support.commands import run, succeeds
from tests.support.training import rows

RIGHT = {"prompt": "a handwritten", "candidates": [" seven", " two"], "answer": 0}


def trained(tree, root):
    tree = tree.unlock()
    tree.run.root = str(root)
    return loop.run(resolve(tree, sources.faults), devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    return trained(digits.get_config("arch=mot,size=smoke"), tmp_path_factory.mktemp("ids"))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    return trained(transfusion.get_config("arch=mot,size=smoke"), tmp_path_factory.mktemp("vectors"))


def written(folder, *questions, name="quiz.jsonl"):
    """A file of questions, beside a picture `a.png` of a digit and one `b.png` of another."""
    shown, _ = embedded.labelled(embedded.load(resolve(digits.get_config("size=smoke")))[1])
    for levels, picture in zip(shown, ("a.png", "b.png"), strict=False):
        Image.fromarray(codecs.paper(levels)).save(folder / picture)
    (folder / name).write_text("".join(json.dumps(q) + "\n" for q in questions), encoding="utf-8")
    return folder / name


def test_every_kind_is_told_written_and_kept_with_the_run(ids, tmp_path):
    before = (ids / "metrics.jsonl").read_bytes()
    file = written(
        tmp_path,
        RIGHT,
        {"prompt": {"image": "a.png"}, "candidates": ["a handwritten two", "six in handwriting"], "answer": 1},
        {"prompt": "the digit six", "candidates": [{"image": "a.png"}, {"image": "b.png"}], "answer": 0, "source": "x"},
    )
    kinds = ["loss", "bits", "ranking", "retrieval", "conditioning", "judged", "distances"]
    asked = ["--documents=5", "--answers", file, "--pool=6", "--pools=2", "--draws=4", "--out", tmp_path / "found.json"]
    out, _ = succeeds("evaluate", ids, "--what", ",".join(kinds), *asked)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert list(found) == ["run", "step", *kinds]
    last = rows(ids, "eval")[-1]
    losses = {name: figure["value"] for name, figure in found["loss"]["figures"].items()}
    assert losses == {name: pytest.approx(last[name], rel=1e-5) for name in losses}
    bits = {name: figure["value"] for name, figure in found["bits"]["figures"].items()}
    assert bits["bits_per_byte/manual"] == losses["bits_per_byte/manual"]
    assert bits["bits_per_token/image/drawn"] == pytest.approx(losses["loss/image/drawn"] / np.log(2))
    ranked = found["ranking"]["figures"]
    assert ranked["text/quiz/byte"]["n"] == ranked["text/byte"]["n"] == 2
    assert ranked["image/x/sum"]["n"] == 1
    assert "image/x/byte" not in ranked
    assert found["ranking"]["asked"] == {"answers": "quiz.jsonl", "digest": file_digest(file)[:16]}
    ways = {"text/image", "image/text"}
    assert {name.rpartition("/")[0] for name in found["retrieval"]["figures"]} == {
        f"{way}/{source}" for way in ways for source in ("drawn", "read")
    }
    assert found["retrieval"]["figures"]["text/image/read/recall_5"] | {"value": 0, "low": 0, "high": 0} == {
        "value": 0, "low": 0, "high": 0, "chance": pytest.approx(5 / 6), "n": 12
    }  # fmt: skip
    assert {*found["conditioning"]["figures"]} == {
        f"{way}/{name}"
        for way in ("text/image/drawn", "image/text/read")
        for name in ("own", "other", "gain", "better", "p", "p_rank")
    }
    assert found["conditioning"]["figures"]["text/image/drawn/gain"]["n"] == 5
    judged = found["judged"]["figures"]
    assert judged["image/drawn"]["n"] == judged["text/read"]["n"] == 4
    assert judged["classifier"]["value"] > 0.95
    assert {*found["distances"]["figures"]} == {
        f"image/{source}/{name}" for source in ("drawn", "read") for name in ("frechet", "kernel")
    }
    for kind in kinds[2:]:
        kept = json.loads((ids / "evaluations" / "2" / f"{kind}.json").read_text(encoding="utf-8"))
        assert (kept["step"], kept["what"], kept["figures"]) == (2, kind, found[kind]["figures"])
    assert not (ids / "evaluations" / "2" / "loss.json").exists()
    assert (ids / "metrics.jsonl").read_bytes() == before
    assert "checkpoint of step 2: made" in out


def test_losses_alone_are_what_a_command_without_what_prints(ids):
    plain = succeeds("evaluate", ids)[0]
    assert plain == succeeds("evaluate", ids, "--what=loss")[0]
    assert "bits_per_byte/manual" in plain
    assert "95 %" not in plain


def test_where_one_side_is_diffused_the_other_way_is_told(vectors, tmp_path):
    out, _ = succeeds("evaluate", vectors, "--what=retrieval,bits", "--pool=4", "--pools=1", f"--out={tmp_path / 'o'}")
    found = json.loads((tmp_path / "o").read_text(encoding="utf-8"))
    assert {name.rpartition("/")[0] for name in found["retrieval"]["figures"]} == {
        "image/text/drawn",
        "image/text/read",
    }
    why = "no image by text: image is diffused (flow), and has no likelihood"
    assert found["retrieval"]["notes"] == [f"drawn: {why}", f"read: {why}"]
    assert why in out
    assert not any("image" in name for name in found["bits"]["figures"])
    assert found["bits"]["notes"] == ["image: vectors, whose loss is a squared error, have no bits"]


def test_a_diffused_candidate_is_refused_and_a_prompt_of_it_is_not(vectors, tmp_path):
    candidates = [{"image": "a.png"}, {"image": "b.png"}]
    file = written(tmp_path, {"prompt": "the digit six", "candidates": candidates, "answer": 0})
    code, _, said = run("evaluate", vectors, "--what=ranking", "--answers", file)
    assert code == 2
    assert "quiz.jsonl: line 1: candidate 0: image is diffused (flow), and has no likelihood; rank text" in said
    file = written(tmp_path, {"prompt": {"image": "a.png"}, "candidates": ["a two", "a six"], "answer": 0})
    assert "text/sum" in succeeds("evaluate", vectors, "--what=ranking", "--answers", file)[0]


@pytest.fixture(scope="module")
def known(ids):
    """What reading answers for the run of ids takes; opened once."""
    config = rundir.config_of(ids)
    return config, layout.of(config), codecs.of(config)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a", "candidates": ["b", "c"], "answre": 0}', "unknown key 'answre'; .* did you mean 'answer'"),
        ('{"candidates": ["b", "c"]}', "it lacks answer; write {"),
        ('{"candidates": [], "answer": 0}', r"candidates are \[\]; a list of 2 or more"),
        ('{"candidates": ["b"], "answer": 0}', r"candidates are \['b'\]; a list of 2 or more"),
        ('{"candidates": "bc", "answer": 0}', "candidates are 'bc'; a list"),
        ('{"candidates": ["b", "c"], "answer": 2}', "answer is 2; must be 0 to 1"),
        ('{"candidates": ["b", "c"], "answer": -1}', "answer is -1; must be 0 to 1"),
        ('{"candidates": ["b", "c"], "answer": true}', "answer is True; must be 0 to 1"),
        ('{"candidates": ["b", "c"], "answer": "b"}', "answer is 'b'; must be 0 to 1"),
        ('{"candidates": ["b", " "], "answer": 0}', "candidate 1: it is empty"),
        ('{"candidates": ["b", []], "answer": 0}', "candidate 1: it is empty"),
        ('{"candidates": ["b", "c", "b"], "answer": 0}', "candidates 0 and 2 have the same tokens"),
        ('{"candidates": ["b", 3], "answer": 0}', "candidate 1: part 1 is 3; an object with one of the keys text"),
        ('{"prompt": {"audio": "a.wav"}, "candidates": ["b", "c"], "answer": 0}', "prompt: .*a.wav.*No such file"),
        ('{"candidates": ["b", {"image": "../a.png"}], "answer": 0}', "candidate 1: .*only paths inside"),
        ('{"candidates": ["b", {"image": "no.png"}], "answer": 0}', "candidate 1: .*no.png.*No such file"),
        ('{"candidates": ["b", "c"], "answer": 0, "source": "a/b"}', "source is 'a/b'; must be a name, without /"),
        ('{"candidates": ["b", "c"], "answer": 0, "source": "\\u001b[31m"}', "source is .*; must be a name, without /"),
        ('{"candidates": ["b", "c' + " and so on" * 400 + '"], "answer": 0}', "tokens of text, and a row of this run"),
        ('{"candidates": ["b", "c"], "answer"', "not JSON: "),
        ('["b", "c"]', "an object is needed"),
        ('{"candidates": ["b", "\\ud800"], "answer": 0}', "candidate 1: .*half a character"),
    ],
)
def test_bad_questions_are_told_by_file_and_line(known, tmp_path, line, says):
    file = written(tmp_path, RIGHT)
    with file.open("a", encoding="utf-8") as more:
        more.write("\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"--answers=.*quiz.jsonl: line 3: .*{says}"):
        answers.read(file, *known)


def test_a_medium_that_the_run_lacks_is_told(known, tmp_path):
    np.save(tmp_path / "codes.npy", np.arange(4))
    prompt = {"ids": "codes.npy", "modality": "depth"}
    file = written(tmp_path, {"prompt": prompt, "candidates": ["b", "c"], "answer": 0})
    with pytest.raises(ValueError, match=r"line 1: prompt: part 1: this run has no depth; it has text, image"):
        answers.read(file, *known)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "it holds no question; write one a line"), (b'{"candidates": ["\xff", "c"]}\n', "line 1: .*not UTF-8")],
)
def test_files_without_questions_are_told(known, tmp_path, content, says):
    (tmp_path / "quiz.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"quiz.jsonl: {says}"):
        answers.read(tmp_path / "quiz.jsonl", *known)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--what=rankin"], "--what=rankin: 'rankin' is no kind of evaluation; allowed: loss, .* mean 'ranking'?"),
        (["--what=loss,"], "'' is no kind of evaluation; allowed: loss, bits"),
        (["--what=ranking"], "--answers is missing: ranking needs a file of questions, one a line, as {"),
        (["--what=ranking", "--answers=no.jsonl"], "--answers=no.jsonl: there is no such file"),
        (["--what=ranking", "--answers=."], "--answers=.: is a folder"),
        (["--answers=pyproject.toml"], "--answers=pyproject.toml: is for --what ranking; leave one out"),
        (["--pool=4"], "--pool=4: is for --what retrieval"),
        (["--what=retrieval", "--pool=1"], "--pool=1; must be from 2 to 1,000"),
        (["--what=judged", "--draws=0"], "--draws=0; must be from 2 to"),
        (["--what=distances", "--features=no.npz"], "--features=no.npz: there is no such file"),
        (["--what=distances", "--features=README.md"], "must be an .npz of arrays real and generated, or FILE.py:NAME"),
        (["--what=distances", "--features=docs/generate.py"], "or FILE.py:NAME"),
        (["--out=docs"], "--out docs: is a folder; name a file in it"),
    ],
)
def test_bad_commands_are_told_before_work_starts(ids, argv, says):
    code, out, said = run("evaluate", ids, *argv)
    assert (code, out) == (2, "")
    assert len(said.strip().splitlines()) == 1
    assert re.search(says.replace("?", r"\?").replace("{", r"\{"), said), said


@pytest.mark.parametrize("kind", ["ranking", "conditioning", "retrieval"])
def test_a_run_whose_tokens_see_later_ones_has_no_likelihoods(kind):
    c = resolve(digits.get_config("size=smoke"))
    c = dataclasses.replace(c, data=dataclasses.replace(c.data, blocks="document"))
    with pytest.raises(UserError, match=f"--what={kind}: needs likelihoods, and this run has none: data.blocks is"):
        refusals._of_the_run(["loss", kind], SimpleNamespace(steps=None, features=None), c)


def test_a_run_whose_units_have_no_states_has_no_labels(tmp_path):
    c = recipes.config("flamingo", tmp_path, "stage=see")
    with pytest.raises(UserError, match="--what=labels: no stream of this run is of units that have states"):
        refusals._of_the_run(["labels"], SimpleNamespace(steps=None, features=None), c)


def test_a_pool_that_is_too_large_is_told(ids):
    code, _, said = run("evaluate", ids, "--what=retrieval", "--pool=500")
    assert code == 2
    for source in ("drawn", "read"):
        assert f"--pool=500: the held-out documents of {source} make no pool of 500 pairs that all differ; the" in said


FUNCTION = """
import numpy as np

def mean(pictures):
    assert all(x.dtype == np.uint8 and x.shape == (8, 8, 3) for x in pictures)
    return np.array([[x.mean(), x.std()] for x in pictures])

def broken(pictures):
    return 1 / 0

def short(pictures):
    return np.zeros((1, 2))

def ragged(pictures):
    return [[1], [2, 3]]

def ends(pictures):
    raise SystemExit(0)

def empty(pictures):
    return np.zeros((len(pictures), 0))

nothing = 3
"""


def test_features_are_a_users_function(ids, tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTION, encoding="utf-8")

    def asked(name):
        return run("evaluate", ids, "--what=distances", f"--features={tmp_path / 'mine.py'}:{name}", "--draws=4")

    code, out, _ = asked("mean")
    assert code == 0
    assert "image/drawn/frechet" in out
    assert "mine.py:broken: it failed: ZeroDivisionError" in asked("broken")[2]
    assert "mine.py:short: it made [1, 2] of 4 media, not [4, D]" in asked("short")[2]
    assert "mine.py:ragged: it failed: ValueError" in asked("ragged")[2]
    assert "mine.py:empty: real is [4, 0]; a sample needs one feature or more" in asked("empty")[2]
    code, _, said = asked("ends")
    assert code == 2
    assert "mine.py:ends: it failed: SystemExit(0)" in said
    assert "mine.py defines no function absent" in asked("absent")[2]
    assert "mine.py defines no function nothing" in asked("nothing")[2]


def test_features_are_an_archive_of_two_arrays(ids, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "f.npz", real=rng.standard_normal((50, 3)), generated=rng.standard_normal((60, 3)) + 2)

    def asked(name):
        return run("evaluate", ids, "--what=distances", f"--features={tmp_path / name}")

    code, out, _ = asked("f.npz")
    assert code == 0
    assert "frechet" in out
    np.savez(tmp_path / "odd.npz", real=np.zeros((3, 2)))
    assert "odd.npz: it has no array generated, but real; write it with np.savez" in asked("odd.npz")[2]
    np.savez(tmp_path / "pickled.npz", real=np.array([{}]), generated=np.zeros((3, 2)))
    assert "allow_pickle=False" in asked("pickled.npz")[2]
    (tmp_path / "cut.npz").write_bytes((tmp_path / "f.npz").read_bytes()[:99])
    assert asked("cut.npz")[0] == 2


def test_a_run_that_cannot_be_written_to_is_evaluated(ids, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(evaluate.evaluated, "write", refuse)
    out, said = succeeds("evaluate", ids, "--what=ranking", "--answers", written(tmp_path, RIGHT))
    assert "text/sum" in out
    assert "ranking was not kept there (Permission denied); --out names another file" in said


def test_figures_are_written_into_a_folder_that_is_not_there_yet(ids, tmp_path):
    file = tmp_path / "new" / "found.json"
    source = RIGHT | {"source": "[red]"}
    out, _ = succeeds("evaluate", ids, "--what=ranking", "--answers", written(tmp_path, source), "--out", file)
    assert json.loads(file.read_text(encoding="utf-8"))["ranking"]["figures"]
    assert "[red]" in out  # a name, and no colour
