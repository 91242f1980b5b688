"""Ids of SentencePiece models as mot reads them against sentencepiece's own, on texts that are meant to be hard."""

import io
import random

import pytest
import sentencepiece

from mot.tokenizers import pieces, text
from tests.support.sources import ROOT

EXACT = dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
MODELS = {
    "t5": dict(model_type="unigram"),
    "unigram, bytes": dict(model_type="unigram", byte_fallback=True, control_symbols=["<c>"]),
    "unigram, given": dict(model_type="unigram", user_defined_symbols=["<sep>", "<h1>"], **EXACT),
    "bpe": dict(model_type="bpe", control_symbols=["<c>"]),
    "llama": dict(model_type="bpe", byte_fallback=True, **EXACT),
    "gemma": dict(
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        user_defined_symbols=["<h1>", "\n\n", "\u2581\u2581", "\u2581\u2581\u2581", "<mask>"],
        **EXACT,
    ),
}
# Of a text that changes, as a page of ours, scores may one day be exactly equal.
CORPUS = (ROOT / "LICENSE").read_text(encoding="utf-8")
LETTERS = list("abcdefg   \t\n.,<>/[]s0x41AZéÜ日本語☃😀\u00a0\u200b\u2581ﬁ①Å\u3000")
HARD = ["", " ", "  a  b  ", "\n", "<h1>a", "a<h1>", "<s>", "<s> a</s>", "<0x41>", "\u2581a", "日本語 ☃ 😀", "e\u0301"]
HARD += ["ﬁ\u0301 \u3000\u0301", "\u00a0\u0301", "   indented\n\n\tcode()", "<unk><c><pad>", "a\u0000b", "\ufffd"]


def texts():
    rng = random.Random(0)
    words = CORPUS.split() + HARD
    yield from HARD
    for _ in range(500):
        yield "".join(rng.choice(LETTERS) for _ in range(rng.randrange(1, 40)))
        yield rng.choice(["", " ", "  "]).join(rng.choice(words) for _ in range(rng.randrange(1, 20)))


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_sentencepieces_own(name):
    lines = [line for line in CORPUS.split("\n") if line]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, vocab_size=550, minloglevel=2, **MODELS[name]
    )
    own = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    ours = text.load(pieces.to_json(written.getvalue()), ["<pad>", "<bos>", "<eos>", "<boi>", "<eoi>"])
    assert [ours.id_to_token(i) for i in range(len(own))] == [own.id_to_piece(i) for i in range(len(own))]
    for words in texts():
        ids = own.encode(words)
        assert ours.encode(words, add_special_tokens=False).ids == ids, words
        if own.unk_id() not in ids:
            assert ours.decode(ids) == own.decode(ids)
