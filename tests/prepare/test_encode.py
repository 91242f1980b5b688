import os
import types

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from mot.data.manifest import special_tokens
from mot.errors import UserError
from mot.prepare import encode, fit, readers
from mot.prepare.codecs import text as codec
from mot.prepare.dataset_tokenizers import Tokenizers
from mot.prepare.raw import Part, Raw, weight_of
from mot.prepare.sides import Sides, is_held_out
from mot.tokenizers import text as texts
from mot.tokenizers.given import GivenVectors
from tests.support.files import png, write, write_lines

TEXT = texts.train(["the cat sat on the mat, and the dog did not. " * 50], 300, special_tokens(["text"]))
RECIPE = types.SimpleNamespace(sample=100, inputs=("x",), tokenizer="", text_ids=300, missing="drop-document")
HALF = Sides(2**63)  # of all hashes


def tools(text=TEXT, **media):
    return Tokenizers(text, media)


def span(text, tools):
    return encode.span("text", text, tools)


def document(*parts) -> Raw:
    return Raw("x", tuple(Part(*part) for part in parts))


def test_a_file_too_large_to_decode_is_not_digested(tmp_path):
    huge = write(tmp_path / "huge.png", png())
    os.truncate(huge, 300 * 10**9)  # sparse
    raw = document(("text", "a"), ("image", huge))
    with pytest.raises(ValueError, match=r"huge.png has 300,000,000,000 bytes; at most"):
        is_held_out(raw, HALF)
    assert is_held_out(raw, Sides(0)) is False
    assert is_held_out(raw._replace(held_out=True), Sides(0)) is True
    with pytest.raises(ValueError, match=r"no file none.png"):
        is_held_out(document(("image", tmp_path / "none.png")), HALF)


def test_the_first_documents_are_looked_at_without_those_that_cannot_be_read(tmp_path):
    huge = write(tmp_path / "huge.png", png())
    os.truncate(huge, 300 * 10**9)
    raws = [document(("text", "bad"), ("image", huge))] + [document(("text", f"{i}")) for i in range(20)]
    kinds, corpus, *_ = fit.look(RECIPE, lambda: iter(raws), HALF, {}, tmp_path / "left_out.jsonl")
    assert kinds == {"text"}
    assert "bad" not in corpus
    assert 0 < len(corpus) < 20


def test_what_lies_in_a_file_weighs_what_the_file_does(tmp_path):
    file = write(tmp_path / "a.png", b"12345")
    assert weight_of(Part("image", file)) == 5
    assert weight_of(Part("image", tmp_path / "none.png")) == 0
    assert weight_of(Part("text", "abc")) == 3
    assert weight_of(Part("audio", np.zeros(3, np.int16), 8000)) == 6


def test_a_document_that_names_one_file_often_is_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "LARGEST", 10 * 8)
    np.save(tmp_path / "a.npy", np.ones((1, 2), np.float32))

    def line(times):
        return {"content": [{"latents": "a.npy"}] * times}

    ten, eleven = readers.read([write_lines(tmp_path / "x.jsonl", line(10), line(11))])
    assert len(encode.records(ten, tools(latents=GivenVectors(2)), 10**9).records) == 1
    with pytest.raises(ValueError, match="more than 80 bytes when it is decoded"):
        encode.records(eleven, tools(latents=GivenVectors(2)), 10**9)


@pytest.mark.parametrize("unit", ["the cat sat. On the mat,\n", "abc", "\u6f22\u5b57\u3002", " "])
def test_a_long_text_is_encoded_in_stretches(unit, monkeypatch):
    text = "a" + unit * 400
    whole, cuts = span(text, tools())
    monkeypatch.setattr(codec, "STRETCH", len(text))
    for got, expected in zip(span(text, tools()), (whole, cuts), strict=True):
        np.testing.assert_array_equal(got, expected)
    max_tokens = []
    counted = types.SimpleNamespace(
        encode=lambda words, **options: (max_tokens.append(len(words)), TEXT.encode(words, **options))[1],
        get_vocab_size=TEXT.get_vocab_size,
    )
    monkeypatch.setattr(codec, "STRETCH", 100)
    ids, cuts = span(text, tools(counted))
    assert max(max_tokens) <= 100
    assert len(max_tokens) >= len(text) / 100
    assert TEXT.decode(ids.tolist()) == text
    assert (np.diff(cuts) > 0).all()
    assert cuts[0] > 0
    assert cuts[-1] < len(ids)
    assert (ids.dtype, cuts.dtype) == (np.uint16, np.int64)
    if unit.startswith("the"):
        np.testing.assert_array_equal(ids, whole)  # words are whole


def test_a_word_of_a_megabyte_does_not_stop_the_training(tmp_path):
    text = "abcdefghij" * 100_000 + "\nthe cat sat. " * 1000
    assert "".join(codec._WORD.findall(text)) == text
    assert codec._WORD.findall("ordinary text.\n\n" * 1000) == ["ordinary text.\n\n" * 1000]
    made, *_ = codec.fit([text], RECIPE, special_tokens(["text"]))
    assert made.get_vocab_size() == 300


def word_level(path, words: dict, unk="<unk>"):
    made = Tokenizer(models.WordLevel(words, unk_token=unk))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return write(path, made.to_str())


@pytest.mark.parametrize("last", [400, 70_000])
def test_a_tokenizer_whose_ids_leave_gaps_is_refused(tmp_path, last):
    words = {f"w{i}": i for i in range(399)}
    good = word_level(tmp_path / "good.json", words | {"last": 399})
    gap = word_level(tmp_path / "gap.json", words | {"last": last})

    def choose(path):
        return codec.fit([], types.SimpleNamespace(tokenizer=str(path)), special_tokens(["text"]))

    choose(good)
    with pytest.raises(UserError, match=r"gap.json: .* each id from 0 on must belong to one entry; number them anew"):
        choose(gap)


def test_what_the_tokenizer_cannot_encode_is_left_out(tmp_path):
    content = word_level(tmp_path / "a.json", {"cat": 0}).read_text(encoding="utf-8")
    found = texts.load(content, special_tokens(["text"]))
    assert span("cat", tools(found))[0].tolist() == [0]
    with pytest.raises(ValueError, match=r"cannot be encoded by the tokenizer: .*Missing .UNK. token"):
        span("dog", tools(found))
