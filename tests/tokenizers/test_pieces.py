"""SentencePiece models are read without sentencepiece; parity tests hold their ids against it."""

import dataclasses
import json

import pytest

from mot.data.manifest import read_json
from mot.errors import UserError
from mot.prepare import dataset_tokenizers, job
from mot.tokenizers import pieces, text
from tests.support.datasets import SMALL
from tests.support.files import write_lines
from tests.support.pieces import BYTES, CONTROL, SPECIAL, USER_DEFINED, field, model

WORDS = [("\u2581", -3.0), ("a", -4.0), ("b", -4.0), ("c", -4.5), ("ab", -5.0), ("\u2581ab", -5.5), ("<", -6.0)]
WORDS += [("s", -6.1), (">", -6.2), ("s>", -6.3)]


def tokenizer(*more, **options):
    return text.load(pieces.to_json(model([*SPECIAL, *WORDS, *more], **options)), ["<pad>", "<bos>", "<eos>"])


def found(tokenizer, words):
    return [tokenizer.id_to_token(i) for i in tokenizer.encode(words, add_special_tokens=False).ids]


def test_a_piece_keeps_its_id_and_its_kind():
    made = tokenizer(("[X]", 0.0, USER_DEFINED))
    for i, (name, *_) in enumerate([*SPECIAL, *WORDS, ("[X]",)]):
        assert made.token_to_id(name) == i
    assert {"<unk>", "<s>", "</s>"} <= dataset_tokenizers.special(made).keys()
    assert "[X]" not in dataset_tokenizers.special(made)


def test_a_unigram_model_takes_the_likeliest_pieces():
    assert found(tokenizer(), "ab  abc ") == ["\u2581ab", "\u2581ab", "c"]
    assert found(tokenizer(), "") == []
    assert found(tokenizer(joins=False), "ab ") == ["\u2581ab", "\u2581"]
    assert found(tokenizer(prefix=False), "ab") == ["ab"]
    assert found(tokenizer(("[X]", 0.0, USER_DEFINED)), "a[X]b") == ["\u2581", "a", "[X]", "b"]


def test_a_bpe_model_merges_the_best_pair_first():
    made = tokenizer(("bc", -1.0), kind=2)
    assert found(made, "abc") == ["\u2581", "a", "bc"]  # bc before ab
    assert found(tokenizer(kind=2), "abc") == ["\u2581ab", "c"]
    given = tokenizer(("[X]", 0.0, USER_DEFINED), kind=2)
    assert found(given, "ab[X]ab") == ["\u2581ab", "[X]", "ab"]
    assert found(given, "[X]ab") == ["\u2581", "[X]", "ab"]


@pytest.mark.parametrize("kind", [1, 2])
def test_text_that_spells_a_control_piece_is_text(kind):
    made = tokenizer(kind=kind)
    assert "<s>" not in found(made, "<s>")
    assert found(made, "<s>")[-3:] in (["<", "s>"], ["\u2581", "<", "s>"], ["<", "s", ">"])


@pytest.mark.parametrize("kind", [1, 2])
def test_what_no_piece_has_falls_back_to_bytes_and_comes_back(kind):
    made = tokenizer(*BYTES, kind=kind, bytes_=True)
    assert found(made, "aé") == ["\u2581", "a", "<0xC3>", "<0xA9>"]
    assert made.decode(made.encode("ab é☃\n").ids).rstrip() == "ab é☃"
    assert found(tokenizer(kind=kind), "aé☃b") == ["\u2581", "a", "<unk>", "b"]
    assert "<0xC3>" not in found(made, "<0xC3>")


def test_it_becomes_the_datasets_tokenizer_json(tmp_path):
    (tmp_path / "words.model").write_bytes(model([*SPECIAL, *WORDS, *BYTES], kind=2, bytes_=True, joins=False))
    write_lines(tmp_path / "all.jsonl", *({"text": f"ab {n} abc"} for n in range(9)))
    recipe = dataclasses.replace(
        SMALL, inputs=(str(tmp_path / "all.jsonl"),), tokenizer=str(tmp_path / "words.model"), held_out=0.0
    )
    job.prepare(recipe, tmp_path / "out", 1, 0)
    about = read_json(tmp_path / "out")["tokenizers"]["text"]
    assert about["special"]["<s>"] == 1
    assert "lossy" not in about
    assert json.loads((tmp_path / "out" / "tokenizers" / "text.json").read_text(encoding="utf-8"))["model"]["vocab"]
    made = dataset_tokenizers.load(tmp_path / "out" / "tokenizers").text
    assert found(made, "abc") == ["\u2581ab", "c"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "a SentencePiece model of 0 pieces"),
        (b"\x80\x04\x95 pickle", "no SentencePiece model"),
        (model([*SPECIAL, *WORDS])[:50], "no SentencePiece model"),
        (model(WORDS), "0 of them for what is unknown"),
        (model([*SPECIAL, ("a", 0.0), ("a", 0.0)]), "a SentencePiece model of 5 pieces"),
        (model([*SPECIAL, *WORDS], kind=3), "of the kind word; unigram and bpe are known"),
        (model([*SPECIAL, *WORDS], bytes_=True), "falls back to bytes and has no piece for some"),
        (model([*SPECIAL, *WORDS], suffix=True), "whose spaces end words"),
        (field(1, b"\xff\xff"), "no SentencePiece model"),
        (field(1, field(3, 1)), "no SentencePiece model"),
        (b"\xff" * 2**23, "no SentencePiece model"),
        (model([*SPECIAL, *WORDS]) + field(3, field(2, b"a")), "that the tokenizers library does not take"),
        (model([*SPECIAL, *WORDS]) + field(3, field(2, 5)), "that the tokenizers library does not take"),
    ],
)
def test_files_that_are_no_model_are_told(tmp_path, content, why):
    (tmp_path / "bad.model").write_bytes(content)
    write_lines(tmp_path / "all.jsonl", {"text": "a"})
    recipe = dataclasses.replace(SMALL, inputs=(str(tmp_path / "all.jsonl"),), tokenizer=str(tmp_path / "bad.model"))
    with pytest.raises(UserError, match=why):
        job.prepare(recipe, tmp_path / "out", 1, 0)
    assert not (tmp_path / "out").exists()


def test_control_pieces_are_cut_where_no_piece_goes_across():
    read = pieces.read(model([*SPECIAL, *WORDS, ("<x", -1.0), ("<sx>", 0.0, CONTROL)]))
    assert "(?<=<)(?=s>)" in pieces._apart(read)  # `s>` is a piece, `<s` is none
