"""seqio's tasks and mixtures: exported, they are the stream that seqio gives; streamed, a run resumes exactly."""

import json
import random
import sys

import jax
import numpy as np
import pytest

from configs import archs, base
from launch import data as command
from mot.config import ConfigError, resolve
from mot.data import seqio_bridge, sources
from mot.data.pipeline import Batches
from mot.data.records import Dataset
from mot.errors import UserError
from mot.prepare import dataset_tokenizers, job, seqio_export
from mot.train import loop
from tests.seqio import tasks
from tests.support.training import IMPORTS_TENSORFLOW, printed, restored, rows

ADDED = ["<pad>", "<bos>", "<eos>", "<boi>", "<eoi>"]


def exported(out, name="both", max_skipped=5, **changes):
    recipe = dict(split="train", features=(), held_out=0.2, max_tokens=4096, shard=16) | changes
    return seqio_export.export(seqio_export.SeqioRecipe(name, **recipe), out, max_skipped)


def expected(name, split):
    """Each example's ids, as seqio gives them but for what ends a feature."""
    found = tasks.seqio.get_mixture_or_task(name).get_dataset(split=split, shuffle=False, num_epochs=1)
    for example in found.as_numpy_iterator():
        features = [example[key].tolist() for key in ("inputs", "targets") if key in example]
        yield [ids[:-1] if ids[-1:] == [1] else ids for ids in features]


def every_file(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def make(name="both", ids=None, **changes):
    ids = seqio_bridge.open_(name).about()["tokenizers"]["text"]["ids"] if ids is None else ids
    tree = base.get_config()
    tree.streams = {"text": base.stream("text", 16, 24, budget=64, max_tokens=60, ids=ids)}
    tree.model.update(dict(layers=1, heads=2, kv_heads=2, head_size=8))
    archs.choose(tree, "dense")
    tree.optim.warmup = 1
    tree.data.update(dict(batch=2, lookahead=8, sources={"s": f"seqio:{name}"}, shares={"s": 1.0}) | changes)
    tree.run.update(name="streamed", steps=4, eval_every=4, eval_batches=1, save_every=2)
    return tree


@pytest.mark.parametrize(("name", "split"), [("both", "train"), ("questions", "train"), ("stories", "validation")])
def test_an_export_is_the_stream_of_seqio(tmp_path, name, split):
    exported(tmp_path / "made", name, split=split, held_out=0)
    sides = {"train": split} | ({"held_out": "validation"} if split == "train" else {})
    for mine, theirs in sides.items():
        dataset = Dataset(tmp_path / "made", mine)
        found = [[span.data.tolist() for span in dataset[i].spans] for i in range(dataset.count)]
        assert found == [[ids for ids in features if ids] for features in expected(name, theirs) if any(features)]
        assert {modality for i in range(dataset.count) for modality, _ in dataset[i].spans} == {"text"}
        assert len(found) >= 5


def test_an_export_twice_and_one_begun_anew_are_the_same_bytes(tmp_path, monkeypatch):
    for folder in ("drawn", "again"):
        exported(tmp_path / folder, "drawn")
    assert every_file(tmp_path / "drawn") == every_file(tmp_path / "again")
    summary = exported(tmp_path / "a")
    exported(tmp_path / "b")
    assert every_file(tmp_path / "a") == every_file(tmp_path / "b")
    with monkeypatch.context() as m:
        m.setattr(job, "finish", lambda *_: pytest.fail("interrupted"))
        with pytest.raises(pytest.fail.Exception):
            exported(tmp_path / "c")
    (tmp_path / "c" / "train" / "shard-00099.array_record").write_bytes(b"of another time")
    exported(tmp_path / "c")
    assert every_file(tmp_path / "a") == every_file(tmp_path / "c")
    assert summary.documents > exported(tmp_path / "a").documents == 0
    with pytest.raises(UserError, match=r"was begun otherwise \(shard 16 -> 17\)"):
        exported(tmp_path / "a", shard=17)


def test_without_a_validation_split_the_content_decides(tmp_path):
    exported(tmp_path / "made", "alone")
    train_, held_out = (Dataset(tmp_path / "made", split) for split in ("train", "held_out"))
    assert train_.count + held_out.count == len(tasks.STORIES["train"][1]) - 1
    assert 3 <= held_out.count <= 25
    told = json.loads((tmp_path / "made" / "dataset.json").read_text())
    assert told["left_out"] == {"an empty document": 1}
    assert told["source"]["inputs"] == ["seqio:alone"]


def test_long_documents_become_several_at_sentences(tmp_path, monkeypatch):
    story = tasks.sentences(9, 1)[0] + " " + " ".join(tasks.sentences(10, 60))
    monkeypatch.setitem(tasks.STORIES, "train", ([""], [story]))
    exported(tmp_path / "made", "stories", max_tokens=256)
    dataset = Dataset(tmp_path / "made", "train")
    pieces = [dataset[i].spans[0].data.tolist() for i in range(dataset.count)]
    assert [i for piece in pieces for i in piece] == tasks.VOCABULARY.encode(story)
    assert len(pieces) > 2
    assert max(map(len, pieces)) <= 256
    assert all(tasks.VOCABULARY.decode(piece).endswith(".") for piece in pieces)


@pytest.mark.parametrize("name", ["questions", "bytes", "bpe"])
def test_the_tokenizer_of_a_dataset_is_that_of_the_task(tmp_path, name):
    exported(tmp_path / name, name)
    vocabulary = tasks.seqio.get_mixture_or_task(name).output_features["targets"].vocabulary
    about = json.loads((tmp_path / name / "dataset.json").read_text())["tokenizers"]["text"]
    n = vocabulary.vocab_size
    assert about["ids"] == n + 5
    assert about["special"] == {token: n + i for i, token in enumerate(ADDED)}
    tokenizer = dataset_tokenizers.load(tmp_path / name / "tokenizers").text
    sizes = np.load(tmp_path / name / "tokenizers" / "text_bytes.npy")
    assert not sizes[n:].any()
    assert not sizes[[0, 1, 2]].any()
    for text in [*tasks.sentences(11, 50), "unseen: Ω≈ç√ <pad> </s> {}"]:
        ids = vocabulary.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == vocabulary.decode(ids) == text
        assert sizes[ids].sum() == len(text.encode()) + (name != "bytes")  # the space before the first word
        assert name != "questions" or tokenizer.encode(text, add_special_tokens=False).ids == ids
    other = tasks.sentences(12, 200)
    rng = random.Random(0)
    spaced = ["  ".join(rng.sample(text.split(" "), 2)) + " " for text in other if " " in text]
    if name == "questions":
        assert [tokenizer.encode(text, add_special_tokens=False).ids for text in spaced] == vocabulary_ids(spaced)


def vocabulary_ids(texts):
    return [tasks.VOCABULARY.encode(text) for text in texts]


def test_ids_of_unknown_meaning_are_kept_and_bad_ones_left_out(tmp_path):
    exported(tmp_path / "made", "numbers", held_out=0)
    dataset = Dataset(tmp_path / "made", "train")
    assert [dataset[i].spans[0].data.tolist() for i in range(dataset.count)] == [[5, 6, 7], [9, 40], [8]]
    assert (dataset[1].id, dataset.about["tokenizers"]["text"]["ids"]) == ("train:2", 55)
    assert not np.load(tmp_path / "made" / "tokenizers" / "text_bytes.npy").any()
    left_out = [json.loads(line) for line in (tmp_path / "made" / "left_out.jsonl").read_text().splitlines()]
    assert [bad["id"] for bad in left_out] == ["train:1", "train:3"]
    with pytest.raises(UserError, match=r"2 documents are bad, the last train:3: ids from 3 to 99, where the vocab"):
        exported(tmp_path / "other", "numbers", max_skipped=1)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, (a.batch, a.state, a.left_out), (b.batch, b.state, b.left_out))


@pytest.mark.parametrize(("name", "held", "count"), [("both", 1 << 20, 30), ("both", 400, 12), ("drawn", 1 << 20, 30)])
def test_a_stream_goes_on_from_any_state(monkeypatch, name, held, count):
    monkeypatch.setattr(seqio_bridge, "HELD", held)
    monkeypatch.setattr(seqio_bridge, "FEWEST", 2)
    begun, begin = [], seqio_bridge.SeqioStream._begin
    monkeypatch.setattr(seqio_bridge.SeqioStream, "_begin", lambda self: begun.append(1) or begin(self))
    c = resolve(make(name), sources.faults)

    def made(state=None):
        return Batches(sources.open_(c)[0], c, seed=0, count=count, state=state)

    whole = made()
    batches = [whole[n] for n in range(count)]
    assert (len(begun) > 2) == (held == 400)  # of what it did not hold, it began anew
    assert batches[-1].state["position"] > 2 * count
    for n in (0, count // 2, count - 3):
        later = made(batches[n].state)
        equal(later[n + 1], batches[n + 1])
        equal(later[count - 1], batches[count - 1])
    equal(whole[3], batches[3])


def test_of_several_hosts_each_reads_the_stream_and_makes_its_rows():
    c = resolve(make(), sources.faults)

    def made(p, n):
        return Batches(sources.open_(c)[0], c, 0, 5, process=p, processes=n)[4].batch["text"].token

    np.testing.assert_array_equal(np.concatenate([made(0, 2), made(1, 2)]), made(0, 1))


def test_a_stream_holds_documents_in_the_order_of_seqio():
    stream = seqio_bridge.SeqioStream(seqio_bridge.open_("stories"), "train")
    wanted = [[ids for ids in features if ids] for features in expected("stories", "train") if any(features)]
    n = len(wanted)
    found = [[span.data.tolist() for span in stream[i].spans] for i in range(2 * n)]
    assert found == wanted * 2
    held_out = seqio_bridge.SeqioStream(seqio_bridge.open_("stories"), "validation", 3)
    assert (held_out.count, held_out.totals().tolist()) == (3, [sum(int(held_out.lengths_of(i)[0]) for i in range(3))])
    assert seqio_bridge.SeqioStream(seqio_bridge.open_("alone"), "validation", 3).count == 0


def test_a_bad_document_of_a_stream_is_left_out_and_counted():
    c = resolve(make("numbers"), sources.faults)
    first = Batches(sources.open_(c)[0], c, 0, 1)[0]
    told = [(x.document, x.why.split(",")[0]) for x in first.left_out]
    assert sorted(told)[-2:] == [("number 2", "train:3: ids from 3 to 99"), ("number 6", "train:8: ids from 3 to 99")]
    assert {int(document.removeprefix("number ")) % 4 for document, _ in told} == {2}


def test_a_run_on_a_stream_resumes_exactly(tmp_path, one_device, capsys):
    tree = make()
    paths = []
    for folder, stops in (("whole", [4]), ("halves", [2, 4])):
        tree.run.root = str(tmp_path / folder)
        for stop in stops:
            paths.append(loop.run(resolve(tree, sources.faults), stop, one_device))
    whole, halves = paths[0], paths[-1]
    losses = [[(row["step"], row["loss"]) for row in rows(path)] for path in (whole, halves)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    jax.tree.map(np.testing.assert_array_equal, restored(whole, 4), restored(halves, 4))
    assert capsys.readouterr().err.count("seqio:both is not elastic") == 3  # once a start


def test_a_stream_and_an_export_of_one_vocabulary_mix_and_others_do_not(tmp_path):
    exported(tmp_path / "made", "stories")
    exported(tmp_path / "foreign", "bpe")
    tree = make("questions", sources={"s": "seqio:questions", "e": str(tmp_path / "made")}, shares={"s": 1.0, "e": 1.0})
    training, held_out = sources.open_(resolve(tree, sources.faults))
    assert training.names == held_out.names == ("e", "s")
    assert [source.count for source in held_out.all] == [5, 6]
    assert training.byte_lengths.sum() > 300
    tree.data.sources.e = str(tmp_path / "foreign")
    with pytest.raises(ConfigError, match=r"data\.sources\.s: its text tokenizer is \w+, that of e is"):
        resolve(tree, sources.faults)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("both", dict(workers=2), r"data\.workers: 2; seqio:both is read by one process; set it to 0, or export it"),
        ("both", dict(ids=7), r"streams\.text\.ids: 7; the text tokenizer of s has \d+ ids; write \d+"),
        ("neither", dict(ids=7), r"(?s)data\.sources\.s: 'seqio:neither'; .*Import the module that registers it"),
        ("two", dict(ids=7), r"seqio:two: inputs and targets have different vocabularies .*--seqio-features"),
    ],
)
def test_configurations_that_a_stream_cannot_serve_are_refused(name, changes, says):
    with pytest.raises(ConfigError, match=says):
        resolve(make(name, **changes), sources.faults)


def test_a_stream_that_nobody_has_counted_has_no_shares_of_tokens():
    c = resolve(make(per="tokens"), sources.faults)
    with pytest.raises(UserError, match=r"source s is a stream, whose tokens nobody has counted; set data\.per=doc"):
        Batches(sources.open_(c)[0], c, 0, 1)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("neither", {}, r"seqio:neither: "),
        ("both", dict(split="test"), r"seqio:both has no split test; it has train, validation; choose one"),
        (
            "both",
            dict(features=("inputs", "answers")),
            r"features inputs, answers; of its features inputs, targets only inputs",
        ),
        ("failing", {}, r"seqio:failing, train: its pipeline failed \("),
        ("both", dict(held_out=1.0), r"--held-out=1\.0; a fraction"),
        ("both", dict(max_tokens=3), r"--max-tokens=3; must be 256 or more"),
    ],
)
def test_what_cannot_be_exported_is_said(tmp_path, name, changes, says):
    with pytest.raises(UserError, match=says):
        exported(tmp_path / "made", name, **changes)
    assert not (tmp_path / "made" / "dataset.json").exists()


def test_features_are_chosen(tmp_path):
    exported(tmp_path / "made", "two", features=("targets",))
    assert Dataset(tmp_path / "made", "train").about["tokenizers"]["text"]["ids"] == 256 + 3 + 5


def test_other_files_are_prepared_like_an_export_where_its_vocabulary_can_encode(tmp_path):
    exported(tmp_path / "made", "questions")
    exported(tmp_path / "foreign", "bpe")
    (tmp_path / "books.txt").write_text("\n".join(tasks.sentences(13, 30)))
    arguments = ["prepare", str(tmp_path / "books.txt"), "--held-out=0", "--workers=1"]
    command.main([*arguments, f"--out={tmp_path / 'books'}", f"--like={tmp_path / 'made'}", "--separator=\n"])
    digests = [Dataset(tmp_path / name, "train").about["tokenizers"]["text"]["digest"] for name in ("made", "books")]
    assert digests[0] == digests[1]
    assert Dataset(tmp_path / "books", "train").count == 30
    with pytest.raises(UserError, match=r"--like=.*foreign: its text is a seqio vocabulary's"):
        command.main([*arguments, f"--out={tmp_path / 'other'}", f"--like={tmp_path / 'foreign'}"])


def test_the_command_runs_the_module_of_the_user(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from tests.seqio import tasks\ntasks.task('of_' + __name__.strip('<>'), tasks.QUESTIONS)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for module, name in ((str(tmp_path / "mine.py"), "of_run_path"), ("mine", "of_mine")):
        out = tmp_path / name
        assert (
            command.main(["prepare", f"--seqio={name}", f"--seqio-module={module}", f"--out={out}", "--preview"]) == 0
        )
        assert (out / "preview.png").exists()
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "seqio", None)  # who has the dataset needs it no more
    assert command.main(["inspect", str(out), "--document=0"]) == 0
    shown = capsys.readouterr().out
    assert tasks.QUESTIONS["train"][0][0] in shown
    assert "document train:0" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seqio=both", "--seqio-module=nowhere.at_all"], r"--seqio-module=nowhere.at_all: ModuleNotFoundError"),
        (["--seqio=both", "--seqio-module=nowhere.py"], r"--seqio-module=nowhere.py: FileNotFoundError"),
        (["--seqio=both", "--like=x"], r"--like is for files; --seqio=both brings its own"),
    ],
)
def test_commands_that_cannot_be_obeyed_say_why(tmp_path, arguments, says):
    with pytest.raises(UserError, match=says):
        command.main(["prepare", *arguments, f"--out={tmp_path / 'made'}"])
    assert not (tmp_path / "made").exists()
    with pytest.raises(SystemExit):
        command.main(["prepare", "README.md", *arguments, f"--out={tmp_path / 'made'}"])


def test_nothing_imports_tensorflow_unasked():
    """Here TensorFlow is installed."""
    assert printed(IMPORTS_TENSORFLOW) == "[]\n"
