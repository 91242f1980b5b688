"""How documents are written, read off the data that a run was trained on."""

import json
import math

import numpy as np
import pytest

from configs import digits, transfusion
from mot.config import resolve
from mot.data import embedded, layout
from mot.data.layout import Format, Medium, Stretch
from mot.data.manifest import special_tokens
from mot.errors import UserError
from tests.support import vectors


@pytest.mark.parametrize(("setting", "tokens"), [(digits, embedded.PIXELS), (transfusion, embedded.PATCHES)])
def test_embedded_documents_are_written_so(setting, tokens):
    c = resolve(setting.get_config("size=smoke"), embedded.faults)
    format = layout.of(c)
    side = math.isqrt(tokens)
    assert format == Format("text", 1, 2, (0, 1, 2, 3, 4), (Medium("image", 3, 4, tokens, (side, side)),))
    drawn, read = (source.documents for source in embedded.load(c)[0].all[1:])
    pixels = embedded.labelled(embedded.load(c)[0])[0][0]
    image = Stretch("image", embedded.patches(pixels) if tokens == embedded.PATCHES else pixels)
    caption = Stretch("text", drawn[0].token[1 : drawn[0].token.tolist().index(3)])
    for want, parts in ((drawn[0], [caption, image]), (read[0], [image, caption])):
        got = layout.document(parts, c, format, "")
        np.testing.assert_array_equal(got.place, want.place[:-1])
        np.testing.assert_array_equal(got.token, want.token[:-1])
        np.testing.assert_array_equal(got.stream, want.stream[:-1])
        np.testing.assert_array_equal(got.unit > 0, want.unit[:-1] > 0)
        for s, x in want.values.items():
            np.testing.assert_array_equal(got.values[s], x)


def dataset(folder, **tokenizers):
    """`dataset.json` of a dataset without documents."""
    modalities = ["text", *tokenizers]
    special = {name: i for i, name in enumerate(reversed(special_tokens(modalities)))}  # in no usual order
    tools = {"text": dict(ids=40, special=special)} | tokenizers
    tools = {name: dict(digest=name, files=[]) | tool for name, tool in tools.items()}
    index = [dict(file=name, bytes=1, digest="d") for name in ("lengths.npy", "atoms.npy", "firsts.npy")]
    split = dict(documents=0, shards=[], index=index, tokens=dict.fromkeys(modalities, 0), spans={})
    splits = dict(train=split, held_out=split)
    about = dict(format=1, modalities=modalities, tokenizers=tools, splits=splits, left_out={})
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    return special


def test_prepared_datasets_say_it_themselves(tmp_path):
    """All modalities that some source has and the model too; units of one length, or of any."""

    def vector(**more):
        return dict(width=3) | more

    folders = [str(tmp_path / name) for name in "ab"]
    dataset(tmp_path / "a", audio=dict(ids=9))
    special = dataset(tmp_path / "b", sound=vector(), image=vector(tokens=6))
    tree = vectors.tree()
    tree.data.sources, tree.data.shares = dict(zip("ab", folders, strict=True)), dict(a=1.0, b=1.0)
    format = layout.of(resolve(tree))
    assert (format.text, format.bos, format.eos) == ("text", special["<bos>"], special["<eos>"])
    assert set(format.special) == set(special.values())
    assert format.medium("image") == Medium("image", special["<boi>"], special["<eoi>"], 6)
    assert format.medium("sound") == Medium("sound", special["<sound>"], special["</sound>"], 0)
    assert format.medium("audio") is format.medium("text") is None


def test_what_cannot_be_decoded_is_told(tmp_path):
    tree = vectors.tree()
    tree.data.sources = {"a": "seqio:mixture"}
    with pytest.raises(UserError, match=r"seqio:mixture: generation needs a tokenizer that decodes; export it"):
        layout.of(resolve(tree))
    tree.data.sources = {"a": str(tmp_path / "gone")}
    with pytest.raises(UserError, match="gone"):
        layout.of(resolve(tree))


@pytest.mark.parametrize("setting", [digits, transfusion])
@pytest.mark.parametrize("source", embedded.SOURCES[: embedded.ALWAYS])
def test_a_document_is_taken_apart_and_made_again_and_what_is_scored_weighs_as_it_is_learnt(setting, source):
    c = resolve(setting.get_config("size=smoke"), embedded.faults)
    format = layout.of(c)
    want = embedded.load(c)[1].all[embedded.SOURCES.index(source)].documents[3]
    parts = layout.stretches(want, c, format)
    assert [part.stream for part in parts] == {
        "manual": ["text"], "drawn": ["text", "image"], "read": ["image", "text"]
    }[source]  # fmt: skip
    got = layout.document(parts, c, format, scored=0, ends=True)
    np.testing.assert_array_equal(got.token, want.token)
    np.testing.assert_array_equal(got.stream, want.stream)
    is_id = ~np.isin(want.stream, list(want.values))
    np.testing.assert_array_equal(got.weight[1:], np.where(is_id, want.weight, 0)[1:])  # nothing precedes <bos>
    for s, values in want.values.items():
        np.testing.assert_array_equal(got.values[s], values)
    later = layout.document(parts, c, format, scored=len(parts) - 1, ends=True)
    begins = len(layout.document(parts[:-1], c, format).token)
    np.testing.assert_array_equal(later.weight, np.where(np.arange(len(got.token)) < begins, 0, got.weight))


def test_units_that_follow_one_another_are_taken_apart():
    c = vectors.make()
    format = Format("text", 0, 1, (0, 1, 2, 3), (Medium("image", 2, 3, 4), Medium("sound", 2, 3, 0)))
    rng = np.random.default_rng(0)
    want = [
        Stretch(name, rng.standard_normal((n, c.streams[name].latent)).astype("f"))
        for name, n in (("image", 4), ("image", 4), ("sound", 2), ("sound", 5), ("image", 4))
    ]
    want.insert(2, Stretch("text", np.array([7, 8])))
    got = layout.stretches(layout.document(want, c, format, ends=True), c, format)
    assert [part.stream for part in got] == [part.stream for part in want]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
