"""Datasets of records as sources of training: what must fit, budgets, damage, workers."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest

from configs import records as records_config
from mot import batches, sharding
from mot.config import ConfigError, resolve
from mot.data import budgets, pipeline, sources
from mot.data.pipeline import Batches
from mot.errors import HUNG, UserError
from mot.prepare import job
from mot.train import loop
from mot.train.evaluate import make_evaluate
from tests.support.datasets import SMALL, contents, write_inputs
from tests.support.media import same

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset `pictures` of text and images, and `prose` of text, tokenised alike."""
    path = tmp_path_factory.mktemp("datasets")
    job.prepare(write_inputs(path / "in", 120), path / "pictures", 1, 0)
    rng = np.random.default_rng(1)
    text = "".join(f"Sentence {i} has {'many ' * int(rng.integers(1, 9))}words.\n\n" for i in range(900))
    (path / "prose.txt").write_text(text, encoding="utf-8")
    recipe = dataclasses.replace(SMALL, inputs=(str(path / "prose.txt"),), format="text", like=str(path / "pictures"))
    job.prepare(dataclasses.replace(recipe, held_out=0.0), path / "prose", 1, 0)
    return path


def tree(folder, arg="", names=("pictures",), **changes):
    c = records_config.get_config(
        f"data={'+'.join(str(folder / n) for n in names)},size=smoke,length=2048{arg}"
    ).unlock()
    for key, value in changes.items():
        group, name = key.split("__")
        c[group][name] = value
    return c


def make(folder, names=("pictures",), **changes):
    c = resolve(tree(folder, names=names, **changes), sources.faults)
    training, held_out = sources.open_(c)
    return budgets.resolve(c, training), training, held_out


def test_documents_of_a_dataset_make_valid_batches_with_full_budgets(folder):
    c, training, held_out = make(folder, ("pictures", "prose"))
    assert sum(s.budget for s in c.streams.values()) <= 2048
    assert training.names == held_out.names == ("pictures", "prose")
    made = Batches(training, c, 0, 400)
    fills = []
    for n in range(0, 400):
        packed = made[n]
        if n % 50 == 0:
            batches.check(packed.batch)
        fills.append(list(pipeline.fill(packed.batch).values()))
        assert not packed.left_out
    assert (np.mean(fills, axis=0) > 0.97).all(), np.mean(fills, axis=0)


def test_text_alone_fills_99_percent(folder):
    c, training, _ = make(folder, ("prose",))
    made = Batches(training, c, 0, 100)
    assert np.mean([pipeline.fill(made[n].batch)["text"] for n in range(100)]) > 0.99
    assert c.streams["text"].max_tokens == c.streams["text"].budget == 2048


def test_budgets_that_do_not_fit_fill_the_scarcest_and_are_told_better_ones(folder):
    fitting, training, _ = make(folder, ("pictures", "prose"))
    assert not budgets.advice(fitting, training)
    text, image = (s.budget for s in fitting.streams.values())
    for name, wrong in (("text", (text // 2, image)), ("image", (2 * text, image))):
        streams = {
            k: dataclasses.replace(s, budget=b, max_tokens=min(s.max_tokens, b))
            for (k, s), b in zip(fitting.streams.items(), wrong, strict=True)
        }
        c = dataclasses.replace(fitting, streams=streams)
        (line,) = budgets.advice(c, training)
        assert "better: streams.text.budget=" in line
        made = Batches(training, c, 0, 300)
        fills = [pipeline.fill(made[n].batch) for n in range(300)]
        assert np.mean([f[name] for f in fills]) > 0.98, (name, line)


@pytest.mark.parametrize(
    ("mean", "units", "length", "wanted"),
    [
        ([10, 64], [1, 64], 1024, lambda b: b[1] % 64 == 0 and b[1] == 832),
        ([300.0, 0], [1, 64], 1024, lambda b: b.tolist() == [1024, 1]),
        ([5, 256], [1, 256], 2048, lambda b: b.tolist() == [35, 1792]),
        ([100, 100], [1, 1], 4096, lambda b: b.tolist() == [2048, 2048]),
    ],
)
def test_budgets_follow_the_mixture(mean, units, length, wanted):
    found = budgets.best(np.array(mean, float), np.array(units), length)
    assert wanted(found), found
    assert found.sum() <= length + 1
    assert budgets.bounds(found, np.array(mean, float), np.array(units)).min() > 0.97


def test_a_length_that_holds_no_image_is_refused():
    with pytest.raises(ValueError, match=r"data.length: 40 tokens are too few for images or clips of 64; raise it"):
        budgets.best(np.array([5.0, 64]), np.array([1, 64]), 40)


def test_a_configuration_that_the_data_cannot_serve_gets_every_fault(folder, tmp_path):
    c = tree(folder)
    c.streams.image.ids = 9
    c.streams.image.max_tokens = c.streams.image.budget = 3
    c.data.sources.more = str(tmp_path / "nothing")
    c.data.shares.films = 1.0
    with pytest.raises(ConfigError) as caught:
        resolve(c, sources.faults)
    told = "\n".join(caught.value.faults)
    for line in (
        "streams.image.ids: 9; the image tokenizer of pictures has 12 ids; write 12",
        "streams.image.max_tokens: 3; image of pictures has 16 tokens; raise it",
        f"data.sources.more: '{tmp_path}/nothing'; {tmp_path}/nothing is no dataset: it has no dataset.json",
        "data.shares.films: no such source; data.sources names more, pictures; remove it",
    ):
        assert line in told, told


def test_streams_and_modalities_must_meet(folder):
    c = tree(folder)
    del c.streams["image"]
    c.towers = {k: {"text": "text"} for k in ("attn", "ffn", "norm")}
    c.attn, c.ffn = ({"text": dict(c[k].text)} for k in ("attn", "ffn"))
    with pytest.raises(ConfigError, match=r"data.sources.pictures: it has image, for which there is no stream"):
        resolve(c, sources.faults)
    c = tree(folder)
    c.data.sources.manual = "embedded"
    with pytest.raises(ConfigError, match=r"embedded data mixes with no other; remove it"):
        resolve(c, sources.faults)


def test_datasets_of_different_tokenizers_do_not_mix(folder, tmp_path):
    (tmp_path / "in.txt").write_text("Quite different words, again and again. " * 50, encoding="utf-8")
    recipe = dataclasses.replace(SMALL, inputs=(str(tmp_path / "in.txt"),), format="text")
    job.prepare(recipe, tmp_path / "other", 1, 0)
    c = tree(folder)
    c.data.sources.other = str(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"text tokenizer is \w+, that of \w+ is \w+; prepare one with --like"):
        resolve(c, sources.faults)


def damaged(folder, tmp_path):
    """A copy of `pictures` with one byte of a shard changed; and the documents that are lost with it."""
    copy = tmp_path / "pictures"
    for name, content in contents(folder / "pictures").items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    shard = copy / "train" / "shard-00001.array_record"
    content = bytearray(shard.read_bytes())
    for at in range(len(content) // 3, len(content), 997):
        content[at] ^= 255
        shard.write_bytes(bytes(content))
        dataset = sources.Dataset(copy, "train", verify=False)
        lost = []
        for i in range(dataset.count):
            try:
                dataset[i]
            except ValueError:
                lost.append(i)
        if lost:
            return lost
    raise AssertionError("no byte mattered")


def test_a_damaged_document_leaves_padding_and_the_plan_as_it_was(folder, tmp_path):
    lost = damaged(folder, tmp_path)
    with pytest.raises(ValueError, match=r"shard-00001.array_record is damaged: its digest"):
        make(tmp_path)
    c, training, _ = make(tmp_path, data__verify=False)
    whole = Batches(make(folder)[1], c, 0, 40)
    broken = Batches(training, c, 0, 40)
    seen = []
    for n in range(30):
        a, b = whole[n], broken[n]
        assert a.state == b.state
        seen += [d.document for d in b.left_out]
        if not b.left_out:
            same(a, b)
        else:
            assert sum(pipeline.fill(b.batch).values()) < sum(pipeline.fill(a.batch).values())
    assert set(seen) <= {f"number {i}" for i in lost}
    assert set(seen), "the damaged documents never came"
    resumed = Batches(training, c, 0, 40, json.loads(json.dumps(broken[9].state)))
    again = [d.document for n in range(10, 30) for d in resumed[n].left_out]
    assert again == seen[len(seen) - len(again) :]


def test_training_counts_what_it_left_out_and_stops_when_it_is_too_much(folder, tmp_path, capfd):
    damaged(folder, tmp_path)
    changes = dict(run__root=str(tmp_path / "runs"), run__steps=6, run__eval_every=6, run__save_every=3)
    c = resolve(tree(tmp_path, data__verify=False, **changes), sources.faults)
    path = loop.run(c, until=3, devices=jax.devices()[:1])
    loop.run(c, devices=jax.devices()[:1])
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    events = [d for row in rows if row.get("event") == "left out" for d in row["documents"]]
    last = [row for row in rows if row["kind"] == "train"][-1]
    assert last["left_out/pictures"] == len(events) > 0
    assert all(d["document"].startswith("number ") and d["why"] for d in events)
    assert "left out document number" in capfd.readouterr().err
    few = resolve(tree(tmp_path, data__verify=False, data__max_skipped=0, **changes), sources.faults)
    few = dataclasses.replace(few, run=dataclasses.replace(few.run, name="few"))
    with pytest.raises(UserError, match=r"documents were left out \(\d+ of pictures; .*data.max_skipped allows 0"):
        loop.run(few, devices=jax.devices()[:1])


def test_damaged_held_out_documents_are_told_and_too_many_stop_it(folder, tmp_path):
    damaged(folder, tmp_path)
    for shard in (tmp_path / "pictures" / "held_out").glob("shard-*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    c, _, held_out = make(tmp_path, data__verify=False)

    def allowing(n):
        return dataclasses.replace(c, data=dataclasses.replace(c.data, max_skipped=n))

    said = []
    with pytest.raises(UserError, match=r"the held-out batches hold nothing to predict"):
        make_evaluate(allowing(10**6), held_out, sharding.one_device(), said.append)
    assert said[0].startswith("evaluation: left out document number ")
    with pytest.raises(UserError, match=r"documents were left out \(\d+ of pictures; .*data.max_skipped allows 2"):
        make_evaluate(allowing(2), held_out, sharding.one_device(), said.append)


def test_a_stage_must_not_bring_what_the_budgets_have_no_room_for(folder):
    late = {"stages": ({"step": 1, "shares": {"pictures": 1.0}},), "shares": {"prose": 1.0, "pictures": 0.0}}
    changes = {f"data__{key}": value for key, value in late.items()}
    with pytest.raises(UserError, match=r"leave streams.image 1, and the first stage's mixture has none of it; raise"):
        make(folder, ("pictures", "prose"), **changes)


def test_a_dataset_may_be_called_what_it_likes(folder, tmp_path):
    os.symlink(folder / "pictures", tmp_path / "pictures.v1")
    c = records_config.get_config(f"data={tmp_path / 'pictures.v1'}")
    assert list(c.data.sources) == ["pictures_v1"]
    c = records_config.get_config(f"data=other@{folder / 'pictures'}")
    assert dict(c.data.sources) == {"other": str(folder / "pictures")}


def test_a_remote_dataset_is_copied_once(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remote = fsspec.filesystem("memory")
    for name, content in contents(folder / "pictures").items():
        remote.pipe(f"/bucket/pictures/{name}", content)
    here, training, _ = make(folder)
    c = tree(folder)
    c.data.sources.pictures = "memory://bucket/pictures"
    c = resolve(c, sources.faults)
    there = sources.open_(c)[0]
    assert there.digest == training.digest
    same(Batches(there, here, 0, 3)[2], Batches(training, here, 0, 3)[2])
    remote.rm("/bucket/pictures/train", recursive=True)
    assert sources.open_(c)[0].digest == training.digest
    remote.rm("/bucket", recursive=True)
    with pytest.raises(ConfigError, match=r"memory://bucket/pictures is no dataset: it has no dataset.json"):
        resolve(tree(folder, data__sources={"pictures": "memory://bucket/pictures"}), sources.faults)


def test_workers_make_the_same_batches(folder):
    c, training, _ = make(folder)
    one = list(pipeline.iterate(Batches(training, c, 0, 7), 2))
    two = list(pipeline.iterate(Batches(training, c, 0, 7), 2, workers=2))
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        same(a, b)
        assert list(a.batch) == list(b.batch) == list(c.streams)  # counts of tokens go by the order


TRAIN = """
import os, sys, time
from launch.process import guarded
from mot.data import sources
from mot.config import load
from mot.train import loop
from launch import flags

def read(self, i, known=sources.Records.read):
    if {how!r} == "hangs" and i % 5 == 3:
        time.sleep(1000)
    if {how!r} == "dies" and i % 5 == 3 and {workers}:
        os._exit(7)
    return known(self, i)

if __name__ != "__main__" or not {workers}:
    sources.Records.read = read

def main(argv):
    c = flags.build(load.read(argv[0], dict(x.split("=", 1) for x in argv[1:])))
    loop.run(c)
    return 0

if __name__ == "__main__":
    from mot.data import embedded
    sys.exit(guarded(main, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("how", "workers"), [pytest.param("hangs", 0, marks=pytest.mark.slow), ("hangs", 1), ("dies", 1)]
)
def test_a_worker_that_hangs_or_dies_stops_the_run_with_stacks(folder, tmp_path, how, workers):
    script = tmp_path / "run.py"
    script.write_text(TRAIN.format(how=how, workers=workers), encoding="utf-8")
    file = f"{ROOT}/configs/records.py:data={folder / 'pictures'},size=smoke,length=2048"
    wait = 15.0 if how == "hangs" else 200.0  # a busy machine takes long to start a worker
    changes = [f"data.workers={workers}", f"data.timeout={wait}", f"run.root={tmp_path}", "data.lookahead=8"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(script), file, *changes], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == HUNG, done.stderr
    assert "most recent call first" in done.stderr
    expected = "no batch came in 15 s (data.timeout)" if how == "hangs" else "a data worker died"
    assert expected in done.stderr, done.stderr
    left = subprocess.run(["pgrep", "-f", str(script)], capture_output=True, text=True).stdout.split()
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert not left, "processes were left behind"
