"""lm-eval's own code asks a run of mot: a local task, whose likelihoods are those of `mot evaluate --what ranking`."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mot.data import layout
from mot.data.layout import Stretch
from mot.errors import UserError
from mot.generate import harness, opened
from mot.measures import likelihood, ranking
from tests.support import published
from tests.support.commands import run, succeeds

TASK = """
task: foxes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""
QUESTIONS = [
    {"question": "the quick brown", "choices": ["one fox", "two dogs", "a lazy day"], "answer": 0},
    {"question": "two dogs jumps over", "choices": ["the quick", "brown"], "answer": 1},
    {"question": "one fox", "choices": ["jumps", "over", "brown"], "answer": 2},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("harness")
    texts = published.write(root / "texts")
    succeeds(
        "train",
        f"--config=configs/records.py:data={texts / 'data'},arch=dense,size=smoke,length=64",
        f"--config.run.root={root}",
        "--config.run.name=run",
        "--config.data.batch=4",
    )
    return opened.opened(root / "run")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    lines = "".join(json.dumps(question) + "\n" for question in QUESTIONS)
    (folder / "foxes.jsonl").write_text(lines, encoding="utf-8")
    (folder / "foxes.yaml").write_text(TASK.format(file=folder / "foxes.jsonl"), encoding="utf-8")
    return folder


def asked(*args):
    return SimpleNamespace(args=args)


def ids(model, text):
    return np.array(model.codec.tokenizers["text"].encode(text, add_special_tokens=False).ids)


def test_likelihoods_are_the_rankings(model):
    pairs = [(q["question"], f" {choice}") for q in QUESTIONS for choice in q["choices"]]
    found = harness.Run(model).loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    stretches = [[(Stretch("text", ids(model, part)),) for part in pair] for pair in pairs]
    documents = [ranking.document(*pair, model.config, model.format) for pair in stretches]
    score = likelihood.make(model.sampler.params, model.config)
    np.testing.assert_allclose([nats for nats, _ in found], score(documents), rtol=1e-6)


def test_one_id_of_all_is_the_greedy_one(model):
    lm = harness.Run(model)
    context = ids(model, "the quick").tolist()
    found = lm._loglikelihood_tokens([("", context, [i]) for i in range(model.config.vocab)])
    best = int(np.argmax([nats for nats, _ in found]))
    assert [i for i, (_, is_greedy) in enumerate(found) if is_greedy] == [best]
    (pair,) = lm._loglikelihood_tokens([("", context, [best, (best + 1) % model.config.vocab])])
    assert not pair[1], "one of two is not the likeliest"


def test_new_text_ends_where_the_task_says(model):
    lm = harness.Run(model)
    (text,) = lm.generate_until([asked("the quick", {"max_gen_toks": 9, "until": []})])
    end = text[len(text) // 2]
    cut, again = lm.generate_until([asked("the quick", {"max_gen_toks": 9, "until": x}) for x in (end, ["\0", end])])
    assert cut == again == text[: text.index(end)]


def test_a_whole_text_is_the_sum_of_its_windows(model):
    lm = harness.Run(model)
    words = "one fox jumps over two dogs. " * 40
    assert len(ids(model, words)) > 2 * lm.room
    short, long = lm.loglikelihood_rolling([asked(words[:40]), asked(words)])
    score = likelihood.make(model.sampler.params, model.config)
    stretch = (Stretch("text", ids(model, words[:40])),)
    alone = score([layout.document(stretch, model.config, model.format, scored=0)])
    assert short == pytest.approx(alone[0], rel=1e-6)
    assert long < short


def test_the_command_runs_a_task_of_ones_own(model, tasks):
    task = ["--what=harness", "--tasks=foxes", f"--task-folder={tasks}"]
    out, _ = succeeds("evaluate", model.path, *task, f"--out={tasks / 'found.json'}")
    assert "foxes/acc" in out
    found = json.loads((tasks / "found.json").read_text(encoding="utf-8"))["harness"]["figures"]
    scores = harness.Run(model).loglikelihood(
        [asked(q["question"], f" {choice}") for q in QUESTIONS for choice in q["choices"]], disable_tqdm=True
    )
    nats = iter([nats for nats, _ in scores])
    right = [int(np.argmax([next(nats) for _ in q["choices"]])) == q["answer"] for q in QUESTIONS]
    assert found["foxes/acc"]["value"] == pytest.approx(np.mean(right))
    assert found["foxes/acc"]["n"] == len(QUESTIONS)


def test_a_task_that_is_none(model, monkeypatch):
    monkeypatch.setattr(harness, "TaskManager", partial(harness.TaskManager, include_defaults=False))
    with pytest.raises(UserError, match="'nothing' is no task of lm-eval's"):
        harness.figures(model, ["nothing"], None, None, None)


def test_the_harness_without_tasks(model):
    code, _, err = run("evaluate", model.path, "--what=harness")
    assert code == 2
    assert "--tasks is missing" in err
    code, _, err = run("evaluate", model.path, "--tasks=foxes")
    assert code == 2
    assert "--tasks=foxes: is for --what harness" in err
