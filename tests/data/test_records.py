import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mot.data import records
from mot.data.records import Dataset, Layout, Record, Span, atoms, decode, encode, lengths, read_json, render

SPECIAL = {name: i for i, name in enumerate(records.special_tokens(["text", "image", "audio"]))}
LAYOUT = Layout((("text", 0, 0, 50), ("image", 1, 50, 20), ("audio", 2, 70, 30)), SPECIAL, ("image",))

ids = arrays.arrays(np.uint16, st.integers(1, 40), elements=st.integers(0, 19))
latents = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=st.floats(-9, 9, width=32)
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
        ({"id": "a", "spans": [{"modality": "x", "data": np.full((2, 2), np.nan, "f")}]}, "finite"),
        ({"id": "a", "spans": [{"modality": "x", "data": np.zeros(3, "f")}]}, r"must be \[n, P\]"),
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


@pytest.mark.parametrize(
    ("span", "why"),
    [
        (Span("image", np.array([20])), "image tokens must be ids from 0 to 19"),
        (Span("text", np.array([-1])), "text tokens must be ids from 0 to 49"),
        (Span("image", np.zeros((2, 2), "f")), "image tokens must be ids"),
        (Span("smell", np.array([1])), "a span of smell, for which there is no stream"),
    ],
)
def test_tokens_out_of_range_are_refused(span, why):
    with pytest.raises(ValueError, match=why):
        render(Record("a", (span,)), LAYOUT, 0, 0)


def dataset(folder, documents=7):
    """A dataset of text alone, written by hand; returns its records."""
    made = [Record(f"d{i}", (Span("text", np.arange(i + 1, dtype=np.uint16)),)) for i in range(documents)]
    (folder / "tokenizers").mkdir(parents=True)
    (folder / "tokenizers" / records.BYTES).write_bytes(b"x")
    splits = {}
    for split, some in zip(records.SPLITS, (made[:-1], made[-1:]), strict=True):
        (folder / split).mkdir()
        halves = some[: len(some) // 2], some[len(some) // 2 :]
        shards = [records.write_shard(folder / split / f"shard-{n}.array_record", h) for n, h in enumerate(halves) if h]
        cut = [atoms(r, ("text",), [np.zeros(0, int)]) for r in some]
        index = (
            ("lengths.npy", np.array([lengths(a, 1) for a in cut], np.int32)),
            ("atoms.npy", np.concatenate(cut)),
            ("firsts.npy", np.arange(len(some) + 1)),
        )
        known = []
        for name, array in index:
            np.save(folder / split / name, array)
            file = folder / split / name
            known.append({"file": name, "bytes": file.stat().st_size, "digest": records.file_digest(file)})
        splits[split] = {"documents": len(some), "tokens": {"text": 0}, "spans": {}, "index": known}
        splits[split]["shards"] = [s._asdict() for s in shards]
    special = {name: i for i, name in enumerate(records.special_tokens(["text"]))}
    text = {"ids": 50, "digest": "d", "special": special}
    text["files"] = [{"file": records.BYTES, "bytes": 1, "digest": "x"}]
    about = {"format": 1, "modalities": ["text"], "tokenizers": {"text": text}, "splits": splits, "left_out": {}}
    (folder / "dataset.json").write_text(json.dumps(about))
    return made


def test_a_dataset_is_read_at_random_and_travels_to_another_process(tmp_path):
    import pickle  # as multiprocessing does, among our own processes

    made = dataset(tmp_path / "d")
    for train in (Dataset(tmp_path / "d", "train"), pickle.loads(pickle.dumps(Dataset(tmp_path / "d", "train")))):
        assert train.count == 6
        for i in (4, 0, 5, 1, 3, 2):
            equal(train[i], made[i])
            assert train.lengths[i].tolist() == [i + 3]
            assert train.atoms_of(i).tolist() == [[0, i + 1]]


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


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda a: a | {"format": 2}, "format is 2; this version reads 1"),
        (lambda a: {k: v for k, v in a.items() if k != "splits"}, "it lacks 'splits'"),
        (lambda a: a | {"modalities": ["image", "text"]}, "text must come first"),
        (lambda a: [a], "damaged or foreign"),
        (
            lambda a: a | {"tokenizers": {"text": a["tokenizers"]["text"] | {"special": {}}}},
            "tokenizer lacks <boi>, <bos>",
        ),
        (lambda a: a | {"tokenizers": {"text": a["tokenizers"]["text"] | {"ids": "7"}}}, "must be integers"),
    ],
)
def test_a_foreign_dataset_json_is_refused_with_the_reason(tmp_path, change, why):
    folder = tmp_path / "d"
    dataset(folder)
    file = folder / "dataset.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match=why):
        read_json(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "..", ".hidden", "$(touch x)"])
def test_a_dataset_names_no_file_outside_of_its_folder(tmp_path, name):
    folder = tmp_path / "d"
    dataset(folder)
    file = folder / "dataset.json"
    about = json.loads(file.read_text())
    about["splits"]["train"]["shards"][0]["file"] = name
    file.write_text(json.dumps(about))
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
    with contextlib.suppress(records.UserError):
        read_json(folder)
