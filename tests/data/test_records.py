import contextlib
import json

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from launch import data as command
from launch.process import guarded
from mot.data import manifest, records, remote, sources
from mot.data.manifest import read_json
from mot.data.records import Dataset, Placement, Record, Span, TokenLayout, atoms, decode, encode, lengths, render
from mot.errors import UserError
from mot.prepare import dataset_tokenizers
from tests.support.records import dataset, saved, tokenizers_of

SPECIAL = {name: i for i, name in enumerate(manifest.special_tokens(["text", "image", "audio", "latents"]))}
PLACES = (
    Placement("text", 0, 0, 50),
    Placement("image", 1, 50, 20),
    Placement("audio", 2, 70, 30),
    Placement("latents", 3, 0, 0, 2),
)
LAYOUT = TokenLayout(PLACES, SPECIAL, ("image",))

ids = arrays.arrays(np.uint16, st.integers(1, 40), elements=st.integers(0, 19))
latents = arrays.arrays(
    st.sampled_from([np.float16, np.float32]),
    st.tuples(st.integers(1, 9), st.integers(1, 5)),
    elements=st.floats(-9, 9, width=16),
)
spans = st.lists(
    st.one_of(
        st.builds(Span, st.sampled_from(["text", "image", "audio"]), ids), st.builds(Span, st.just("latents"), latents)
    ),
    max_size=5,
)


def equal(a, b):
    assert a.id == b.id
    assert [s.modality for s in a.spans] == [s.modality for s in b.spans]
    for x, y in zip(a.spans, b.spans, strict=True):
        assert x.data.dtype == y.data.dtype
        np.testing.assert_array_equal(x.data, y.data)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), spans)
def test_a_record_comes_back_as_it_was(name, some):
    record = Record(name, tuple(some))
    equal(decode(encode(record)), record)
    assert encode(record) == encode(decode(encode(record)))


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_the_reader_raises_nothing_but_value_errors_for_any_bytes(content):
    with pytest.raises(ValueError):  # noqa: PT011 -- whatever it says, no other error
        decode(content)


@settings(max_examples=600, deadline=None)
@given(spans, st.data())
def test_the_reader_survives_damaged_records(some, data):
    content = bytearray(encode(Record("a", tuple(some))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = decode(content)
    except ValueError:
        return
    assert sum(span.data.nbytes for span in found.spans) <= len(content), "more than was there"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"id": "a"}, "keys id and spans"),
        ({"id": 3, "spans": []}, "id is text"),
        ({"id": "a", "spans": [{"modality": "text"}]}, "keys modality and data"),
        ({"id": "a", "spans": [{"modality": "text", "data": [1, 2]}]}, "its data an array"),
        ({"id": "a", "spans": [{"modality": "text", "data": np.zeros((2, 2), int)}]}, r"must be integers, \[n\]"),
        ({"id": "a", "spans": [{"modality": "text", "data": np.zeros(0, int)}]}, "a span is empty"),
        ({"id": "a", "spans": [{"modality": "x", "data": np.zeros((2, 0), "f")}]}, "a span is empty"),
        ({"id": "a", "spans": [{"modality": "x", "data": np.full((2, 2), np.nan, "f")}]}, "finite"),
        ({"id": "a", "spans": [{"modality": "x", "data": np.zeros(3, "f")}]}, r"must be float32 \[n, P\]"),
        (
            {"id": "a", "spans": [{"modality": "x", "data": np.full((2, 2), 1e99)}]},
            r"vectors float64 \[2, 2\]; they must",
        ),
    ],
)
def test_what_is_no_record_is_refused_with_the_reason(found, why):
    from flax import serialization

    with pytest.raises(ValueError, match=why):
        decode(serialization.msgpack_serialize(found))


def test_a_document_is_rendered_with_its_markers():
    record = Record("a", (Span("text", np.array([9, 10])), Span("image", np.arange(3)), Span("audio", np.array([4]))))
    d = render(record, LAYOUT, 2, 5)
    bos, eos, boi, eoi = (SPECIAL[t] for t in ("<bos>", "<eos>", "<boi>", "<eoi>"))
    begin, end = SPECIAL["<audio>"], SPECIAL["</audio>"]
    assert d.token.tolist() == [bos, 9, 10, boi, 50, 51, 52, eoi, begin, 74, end, eos]
    assert d.stream.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0, 2, 0, 0]
    assert d.unit.tolist() == [0, 0, 0, 0, 2, 2, 2, 0, 0, 3, 0, 0]
    # An image's length is fixed, so its end is no news; a sound's is.
    assert d.weight.tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1]
    assert (d.source, d.doc_id) == (2, 5)
    cut = atoms(record, ("text", "image", "audio"), [np.array([1]), np.array([], int), np.array([], int)])
    assert cut.tolist() == [[0, 1], [0, 1], [1, 3], [2, 1]]
    assert lengths(cut, 3).tolist() == np.bincount(d.stream).tolist()


def test_vectors_are_rendered_with_their_values_and_without_ids():
    def vectors(*n, dtype="f"):
        return Span("latents", np.array([[i, -i] for i in n], dtype))

    record = Record("a", (vectors(1, 2), Span("text", np.array([9])), vectors(3, dtype=np.float16)))
    d = render(record, LAYOUT, 0, 0)
    bos, eos, begin, end = (SPECIAL[t] for t in ("<bos>", "<eos>", "<latents>", "</latents>"))
    assert d.token.tolist() == [bos, begin, 0, 0, end, 9, begin, 0, end, eos]
    assert d.stream.tolist() == [0, 0, 3, 3, 0, 0, 0, 3, 0, 0]
    assert d.unit.tolist() == [0, 0, 1, 1, 0, 0, 0, 3, 0, 0]
    # A vector's weight is that of its own loss; it predicts no end.
    assert d.weight.tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 0, 1]
    assert (d.span.any(), d.private.any(), list(d.values)) == (False, False, [3])
    assert d.values[3].dtype == np.float32
    assert d.values[3].tolist() == [[1, -1], [2, -2], [3, -3]]
    assert render(Record("a", record.spans[1:2]), LAYOUT, 0, 0).values == {}


@pytest.mark.parametrize(
    ("span", "why"),
    [
        (Span("image", np.array([20])), "image tokens must be ids from 0 to 19"),
        (Span("text", np.array([-1])), "text tokens must be ids from 0 to 49"),
        (Span("image", np.zeros((2, 2), "f")), "image tokens must be ids"),
        (Span("latents", np.array([1])), "latents tokens must be vectors of 2 features"),
        (Span("latents", np.zeros((2, 3), "f")), "latents tokens must be vectors of 2 features"),
        (Span("smell", np.array([1])), "a span of smell, for which there is no stream"),
    ],
)
def test_tokens_out_of_range_are_refused(span, why):
    with pytest.raises(ValueError, match=why):
        render(Record("a", (span,)), LAYOUT, 0, 0)


def reword(folder, change):
    """Changes dataset.json."""
    file = folder / "dataset.json"
    about = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(change(about) or about), encoding="utf-8")


def put(*path, to):
    """A change of one value of dataset.json, which `path` leads to."""

    def change(about):
        for key in path[:-1]:
            about = about[key]
        about[path[-1]] = to

    return change


def test_a_dataset_is_read_at_random_and_travels_to_another_process(tmp_path):
    import pickle  # as multiprocessing does, among our own processes

    made = dataset(tmp_path / "d")
    for train in (Dataset(tmp_path / "d", "train"), pickle.loads(pickle.dumps(Dataset(tmp_path / "d", "train")))):
        assert train.count == 6
        for i in (4, 0, 5, 1, 3, 2):
            equal(train[i], made[i])
            assert train.lengths[i].tolist() == [i + 3 + i % 2 * 2, i % 2 * 4]
            assert train.atoms_of(i).tolist() == [[0, i + 1], [1, 4]][: 1 + i % 2]


def test_a_dataset_may_have_an_empty_split(tmp_path):
    dataset(tmp_path / "d", 1)
    train = Dataset(tmp_path / "d", "train")
    assert (train.count, train.totals().tolist(), Dataset(tmp_path / "d", "held_out").count) == (0, [0, 0], 1)


def test_damaged_missing_and_foreign_files_are_named(tmp_path):
    folder = tmp_path / "d"
    dataset(folder)
    shard = folder / "train" / "shard-1.array_record"
    content = shard.read_bytes()
    shard.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(ValueError, match=r"shard-1.array_record is damaged: its digest is .*; copy it again"):
        Dataset(folder, "train")
    assert Dataset(folder, "train", verify=False).count == 6
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"shard-1.array_record has \d+ bytes, dataset.json says \d+"):
        Dataset(folder, "train", verify=False)
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-1.array_record is missing; copy it again"):
        Dataset(folder, "train")
    with pytest.raises(ValueError, match=r"nowhere is no dataset: it has no dataset.json; `mot data prepare`"):
        Dataset(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("name", ["tokenizers/text_bytes.npy", "train/atoms.npy"])
def test_every_file_is_looked_at(tmp_path, name):
    folder = tmp_path / "d"
    dataset(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    assert Dataset(folder, "train", verify=False).count == 6
    with pytest.raises(UserError, match=rf"{name} is damaged: its digest is"):
        Dataset(folder, "train")
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"{name} has \d+ bytes"):
        Dataset(folder, "train", verify=False)


TRAIN, TEXT = ("splits", "train"), ("tokenizers", "text")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda a: a | {"format": 2}, "format is 2; this version reads 1"),
        (lambda a: {k: v for k, v in a.items() if k != "splits"}, "it lacks 'splits'"),
        (lambda a: [a], "damaged or foreign"),
        (put("modalities", to=["image", "text"]), "text must come first"),
        (put("modalities", to=["text", "text"]), "text must come first, and none twice"),
        (put("modalities", to=["text", ""]), "a modality is ''; letters"),
        (put("modalities", to=["text", "[red]"]), r"a modality is '\[red\]'"),
        (put("modalities", to=["text", 3]), "a modality is 3; letters"),
        (put("modalities", to={"text": 1}), "text must come first"),
        (put("modalities", to=["text"]), r"tokenizers are of \['text', 'image'\]; they must be of its modalities"),
        (put("modalities", to=["text", "image", "smell"]), "they must be of its modalities"),
        (put("modalities", to=["text", "image", "latents"]), "how many features its latents have: an earlier version"),
        (put("tokenizers", "image", "width", to=5), "entry has .*; it needs ids, or the width of its vectors"),
        (put("tokenizers", "image", to={"digest": "d", "files": []}), "it needs ids, or the width of its vectors"),
        (
            put("tokenizers", "image", to={"digest": "d", "width": 0}),
            "image tokenizer's width: 0 is no whole number from 1",
        ),
        (put("tokenizers", "text", to={"digest": "d", "width": 4, "special": {}}), "it lacks 'ids'"),
        (put("tokenizers", to=[]), "damaged or foreign"),
        (put(*TEXT, "special", to={}), "tokenizer lacks <boi>, <bos>"),
        (put(*TEXT, "special", "<bos>", to=50), "'<bos>': 50 is no whole number from 0 to 49"),
        (put(*TEXT, "special", "<bos>", to=True), "'<bos>': True is no whole number"),
        (put(*TEXT, "special", "<bos>", to=2), "an id for two special tokens"),
        (put(*TEXT, "tokens", to=5), "says how long a text is"),
        (put(*TEXT, "ids", to="7"), "text tokenizer's ids: '7' is no whole number from 1"),
        (put(*TEXT, "ids", to=2**31 + 1), "text tokenizer's ids: 2147483649 is no whole number from 1"),
        (
            put("tokenizers", "image", "tokens", to=0),
            "image tokenizer's tokens: 0 is no whole number from 1 to 1048576",
        ),
        (put("tokenizers", "image", "tokens", to=2**20 + 1), "image tokenizer's tokens: 1048577"),
        (put("tokenizers", "image", "digest", to=5), "image tokenizer's digest is 5"),
        (put("tokenizers", "image", "digest", to="[/x]"), "image tokenizer's digest is"),
        (put(*TEXT, "files", 0, "digest", to=None), "damaged or foreign"),
        (put(*TEXT, "files", 0, "bytes", to=-1), "text_bytes.npy: -1 is no whole number"),
        (put(*TEXT, "files", 0, "file", to=7), "damaged or foreign"),
        (put("splits", "more", to={}), "it needs train, held_out"),
        (put(*TRAIN, "documents", to=5), "a split has 5 documents and its shards have 6"),
        (put(*TRAIN, "documents", to=6.0), "documents: 6.0 is no whole number"),
        (put(*TRAIN, "shards", 0, "documents", to=-3), "a shard's documents: -3 is no whole number from 0"),
        (put(*TRAIN, "shards", 0, "bytes", to="1"), "'1' is no whole number"),
        (put(*TRAIN, "shards", 0, "file", to="shard-1.array_record"), "it lists a file twice"),
        (put(*TRAIN, "index", 0, "file", to="other.npy"), "index must be lengths.npy, atoms.npy, firsts.npy"),
        (put(*TRAIN, "tokens", to={"text": 1}), "must be those of its modalities"),
        (put(*TRAIN, "tokens", "text", to=-1), "tokens or spans of a split: -1"),
        (put(*TRAIN, "spans", to={"smell": 1}), "must be those of its modalities"),
        (put(*TRAIN, "spans", to={"image": None}), "tokens or spans of a split: None"),
        (put("left_out", to=[1]), "damaged or foreign"),
        (put("left_out", to={"it was bad": "1"}), "left out because 'it was bad': '1'"),
    ],
)
def test_a_foreign_dataset_json_is_refused_with_the_reason(tmp_path, change, why):
    folder = tmp_path / "d"
    dataset(folder)
    read_json(folder)
    reword(folder, change)
    with pytest.raises(UserError, match=why):
        read_json(folder)


def with_(array, at, value):
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("lengths.npy", lambda x: x.astype(np.int64), r"int64 \[6, 2\] and must be int32 \[6, 2\]"),
        ("lengths.npy", lambda x: x[:5], "as the shards have 6 documents"),
        ("lengths.npy", lambda x: x[:, :1], r"int32 \[6, 1\] and must be int32 \[6, 2\]"),
        ("lengths.npy", lambda x: with_(x, (1, 1), -1), "less than no tokens"),
        ("lengths.npy", lambda x: x * 0, "less than 2 of text"),
        ("atoms.npy", lambda x: x.astype(">i4"), "must be int32"),
        ("atoms.npy", lambda x: x[:, 0], "must be int32"),
        ("atoms.npy", lambda x: x[0, 0], "must be int32"),
        ("atoms.npy", lambda x: x[:-1], "it must rise from 0 to 8, the atoms"),
        ("firsts.npy", lambda x: x[:-1], r"int64 \[6\] and must be int64 \[7\]"),
        ("firsts.npy", lambda x: x.astype(np.float64), "float64"),
        ("firsts.npy", lambda x: x + 1, "it must rise from 0 to 9, the atoms"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_an_index_of_another_shape_is_refused(tmp_path, name, change, why, verify):
    refused(tmp_path / "d", name, change, why, verify)


@pytest.mark.parametrize(
    ("name", "change", "why", "document"),
    [
        ("lengths.npy", lambda x: with_(x, (3, 0), 99), r"document 3 has \[99, 4\] tokens .* its atoms \[8, 4\]", 3),
        ("lengths.npy", lambda x: x[:, ::-1] + np.int32(2), "document 0 has", 0),
        ("atoms.npy", lambda x: with_(x, (0, 0), 2), "modalities outside 0 to 1", 0),
        ("atoms.npy", lambda x: with_(x, (0, 0), -1), "modalities outside 0 to 1", 0),
        ("atoms.npy", lambda x: with_(x, (0, 1), 0), "atoms of less than 1 token", 0),
        ("atoms.npy", lambda x: with_(x, (2, 1), 3), "images of another length", 1),
        ("atoms.npy", lambda x: with_(x, (0, 1), 2**31 - 1), "document 0 has .* its atoms", 0),
        ("firsts.npy", lambda x: with_(x, 1, x[2]), "it does not rise", 1),
        ("firsts.npy", lambda x: with_(x, 1, -1), "it does not rise", 0),
        ("firsts.npy", lambda x: with_(x, 1, 2**40), "it does not rise", 0),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(tmp_path, monkeypatch, name, change, why, document):
    monkeypatch.setattr(records, "CHUNK", 2)
    refused(tmp_path / "d", name, change, why, verify=True)
    unverified = Dataset(tmp_path / "d", "train", verify=False)
    with pytest.raises(UserError, match=why):
        unverified.atoms_of(document)


def refused(folder, name, change, why, verify):
    """Of a dataset that is whole but for an array of its index."""
    dataset(folder)
    Dataset(folder, "train", verify)
    array = change(np.load(folder / "train" / name))
    reword(folder, put(*TRAIN, "index", manifest.INDEX.index(name), to=saved(folder / "train", {name: array})[name]))
    with pytest.raises(UserError, match=rf"train/\w+.npy is damaged or foreign \(.*{why}"):
        Dataset(folder, "train", verify)


@pytest.mark.filterwarnings("ignore")  # numpy's, of what headers may say
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_array_is_read_or_refused_with_a_message(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("d") / "atoms.npy"
    np.save(file, np.arange(8))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 80))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content))
    with contextlib.suppress(UserError):
        records.load_array(file)


@pytest.mark.parametrize(
    ("span", "why"),
    [
        (Span("smell", np.array([1])), "its 'smell' are 1"),
        (Span("text", np.array([50])), "its 'text' are 1 of int64, no 1 of 50 ids"),
        (Span("text", np.array([-1])), "its 'text' are"),
        (Span("text", np.zeros((2, 2), np.float32)), "its 'text' are"),
        (Span("image", np.array([0, 1, 2])), "its 'image' are 3 of int64, no 4 of 4 ids"),
        (Span("latents", np.array([1])), "its 'latents' are"),
        (Span("sound", np.zeros((3, 5), "f")), "its 'sound' are 3 vectors of 5 features, no 3 of 0 ids"),
        (
            Span("latents", np.zeros((3, 5), "f")),
            "its 'latents' are 3 vectors of 5 features, no 2 vectors of 4 features",
        ),
        (
            Span("latents", np.zeros((2, 5), "f")),
            "its 'latents' are 2 vectors of 5 features, no 2 vectors of 4 features",
        ),
        (
            Span("latents", np.zeros((1, 4), "f")),
            "its 'latents' are 1 vectors of 4 features, no 2 vectors of 4 features",
        ),
        (Span("latents", np.array([1, 0])), "its 'latents' are 2 of int64, no 2 vectors of 4 features"),
    ],
)
def test_a_record_that_is_not_of_its_dataset_is_unreadable(tmp_path, span, why):
    folder = tmp_path / "d"
    dataset(folder)
    shard = records.write_shard(folder / "train" / "shard-0.array_record", [Record("a", (span,))] * 3)
    reword(folder, put(*TRAIN, "shards", 0, to=shard._asdict()))
    if span.modality == "latents":
        with_latents(folder)
    train = Dataset(folder, "train")
    with pytest.raises(ValueError, match=why):
        train[1]
    assert train[3].id == "d3"


def with_latents(folder):
    """As if the dataset had a third modality, of which no document has any, 2 vectors of 4 features at a time."""
    latents = {"width": 4, "tokens": 2, "digest": "d", "files": []}

    def change(found):
        found["modalities"].append("latents")
        found["tokenizers"]["latents"] = latents
        more = {f"{side}latents{end}": 40 + bool(end) for side, end in (("<", ">"), ("</", ">"))}
        special = found["tokenizers"]["text"]["special"]
        special |= {name: len(special) + i for i, name in enumerate(more)}
        for split, about_split in found["splits"].items():
            about_split["tokens"]["latents"] = 0
            n = np.load(folder / split / "lengths.npy")
            saved_ = saved(folder / split, {"lengths.npy": np.pad(n, ((0, 0), (0, 1)))})
            about_split["index"][0] = saved_["lengths.npy"]

    reword(folder, change)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "..", ".hidden", "$(touch x)"])
def test_a_dataset_names_no_file_outside_of_its_folder(tmp_path, name):
    folder = tmp_path / "d"
    dataset(folder)
    file = folder / "dataset.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    told["splits"]["train"]["shards"][0]["file"] = name
    file.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ValueError, match=r"is no file of a dataset"):
        read_json(folder)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_dataset_json_is_read_or_refused_with_a_message(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("d") / "d"
    dataset(folder, 3)
    file = folder / "dataset.json"
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content))
    with contextlib.suppress(UserError):
        read_json(folder)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([2**31, 2**63, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def paths(tree, path=()):
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from ((*path, key), *paths(value, (*path, key)))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_with_any_value_in_dataset_json_all_that_is_read_is_shown_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("d") / "d"
    dataset(folder, 3)
    path = data.draw(st.sampled_from(list(paths(json.loads((folder / "dataset.json").read_text(encoding="utf-8"))))))
    reword(folder, put(*path, to=data.draw(anything)))
    with contextlib.suppress(UserError):
        command._print_summary(folder, read_json(folder))
        for split in manifest.SPLITS:
            found = Dataset(folder, split, verify=False)
            with contextlib.suppress(ValueError):  # a document that is left out
                assert [found[i].id for i in range(found.count)] == [["d0", "d1"], ["d2"]][split == "held_out"]
        sources.bytes_of_ids(folder, found.about)


@pytest.mark.parametrize("name", ["chosen.json", "text.json", "image.npz", "audio.npz"])
@pytest.mark.parametrize("content", [b"", b"junk", b"\xff\xfe", b"[]", b"{}", b"[" * 10**5, None])
def test_junk_in_place_of_a_tokenizer_is_named(tmp_path, name, content):
    folder = tmp_path / "tokenizers"
    tokenizers_of(folder, ["text", "image", "audio"])
    assert dataset_tokenizers.load(folder).media["audio"].ids == 1
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*; copy it again, or prepare the dataset anew"):
        dataset_tokenizers.load(folder)


@pytest.mark.parametrize(
    "chosen",
    [
        {"modalities": ["image"], "latents": 0},
        {"modalities": ["text", "smell"], "latents": 0},
        {"modalities": ["text", ["image"]], "latents": 0},
        {"modalities": 3, "latents": 0},
        {"modalities": ["text"], "latents": "3"},
        {"modalities": ["text"], "latents": -1},
        {"modalities": ["text"]},
        {"modalities": ["text"], "latents": 0, "vectors": ["image"]},
        {"modalities": ["text", "image"], "latents": 0, "vectors": ["text"]},
        {"modalities": ["text", "image"], "latents": 0, "vectors": 3},
        {"modalities": ["text", "image"], "latents": 0, "vectors": [["image"]]},
        {"modalities": ["text", "action"], "latents": 0},
        ["text"],
    ],
)
def test_a_foreign_choice_of_tokenizers_is_refused(tmp_path, chosen):
    tokenizers_of(tmp_path / "tokenizers", ["text"])
    (tmp_path / "tokenizers" / "chosen.json").write_text(json.dumps(chosen), encoding="utf-8")
    with pytest.raises(UserError, match=r"chosen.json is missing or damaged"):
        dataset_tokenizers.load(tmp_path / "tokenizers")


def test_every_file_of_the_tokenizers_is_listed(tmp_path):
    folder = tmp_path / "tokenizers"
    tokenizers_of(folder, ["text", "image", "audio"])
    np.save(folder / manifest.BYTES, np.ones(3))
    listed = [file["file"] for tokenizer in dataset_tokenizers.about(folder).values() for file in tokenizer["files"]]
    assert sorted(listed) == sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "found",
    [
        np.ones(49, int),
        np.ones((50, 1), int),
        np.ones(50),
        -np.ones(50, int),
        np.full(50, 2**63, np.uint64),
        np.ones(()),
    ],
)
def test_bytes_of_ids_are_whole_numbers_of_0_or_more(tmp_path, found):
    folder = tmp_path / "d"
    dataset(folder)
    assert sources.bytes_of_ids(folder, read_json(folder)).tolist() == [1] * 50
    saved(folder / "tokenizers", {manifest.BYTES: found})
    with pytest.raises(UserError, match=r"text_bytes.npy is no list of 50 integers"):
        sources.bytes_of_ids(folder, read_json(folder))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("foo://bucket/d", "Protocol not known: foo"),
        ("absent://bucket/d", "ImportError: Install absentfs"),
        ("dir://bucket/d", "package for its protocol is installed"),
        ("memory://records/nothing", "is no dataset: it has no dataset.json"),
        ("memory://records/d", "FileNotFoundError: .*train/shard-0.array_record"),
    ],
)
def test_an_address_that_cannot_be_read_is_told_with_the_remedy(tmp_path, monkeypatch, address, why):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fsspec.register_implementation("absent", "absentfs.FileSystem", clobber=True, errtxt="Install absentfs")
    dataset(tmp_path / "d")
    fsspec.filesystem("memory").pipe("/records/d/dataset.json", (tmp_path / "d" / "dataset.json").read_bytes())
    with pytest.raises(UserError, match=rf"{address}.*{why}"):
        remote.local(address)


def test_inspect_tells_of_a_damaged_document_and_draws_the_others(tmp_path, capsys):
    folder = tmp_path / "d"
    dataset(folder)
    damaged = records.write_shard(
        folder / "train" / "shard-0.array_record", [Record("a", (Span("x", np.ones(1)),))] * 3
    )
    reword(folder, put(*TRAIN, "shards", 0, to=damaged._asdict()))

    def inspect(*more):
        return guarded(command.main, ["inspect", str(folder), *more])

    assert inspect("--document=3", f"--out={tmp_path}/three.png") == 0
    assert "document d3" in capsys.readouterr().out
    assert inspect("--document=1") == 2
    told = capsys.readouterr().err
    assert "--document=1: it is damaged (" in told
    assert "; copy the dataset again" in told
    assert "Traceback" not in told
    assert inspect(f"--out={tmp_path}/all.png") == 0
    assert (tmp_path / "all.png").stat().st_size > (tmp_path / "three.png").stat().st_size
    (folder / "tokenizers" / "chosen.json").write_text(
        json.dumps({"modalities": ["text"], "latents": 0}), encoding="utf-8"
    )
    capsys.readouterr()
    assert inspect() == 2
    assert "tokenizers is for text, and the dataset has text, image; copy it again" in capsys.readouterr().err
