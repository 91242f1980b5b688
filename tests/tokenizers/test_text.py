"""Bytes that ids stand for, whatever decodes them, and what a lossy tokenizer costs."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from launch import cli
from mot.data.manifest import read_json
from mot.tokenizers import text as texts
from tests.support.files import write_lines

CORPUS = [f"Gr\u00f6\u00dfe {i}, caf\u00e9 \u6f22\u5b57. It's \U0001f600 here\n  and  there." for i in range(60)]


def learned(model, trainer, decoder, pre=None, normalizer=None) -> Tokenizer:
    made = Tokenizer(model)
    made.decoder = decoder
    if pre:
        made.pre_tokenizer = pre
    if normalizer:
        made.normalizer = normalizer
    made.train_from_iterator(CORPUS, trainer)
    return made


def by_bytes(decoder, added=()):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made = learned(models.BPE(), trainer, decoder, pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.add_tokens([AddedToken(token, special=False) for token in added])
    return made


def falling_back(decoder, normalizer=None, pre=None):
    """As Llama's: pieces, and bytes for what has none."""
    entries = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *"\u2581abcdefghijklmnopqrstuvwxyzGI,.'0123456789"]
    entries += ["\u2581h", "he", "re", "\u2581\u2581"]
    merges = [("\u2581", "h"), ("h", "e"), ("r", "e"), ("\u2581", "\u2581")]
    vocab = {entry: i for i, entry in enumerate(entries)}
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.decoder = decoder
    if normalizer:
        made.normalizer = normalizer
    if pre:
        made.pre_tokenizer = pre
    return made


def sentencepiece():
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    return learned(models.Unigram(), trainer, decoders.Metaspace(), pre_tokenizers.Metaspace())


def ended_words():
    trainer = trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", show_progress=False)
    return learned(
        models.BPE(end_of_word_suffix="</w>"), trainer, decoders.BPEDecoder(), pre_tokenizers.WhitespaceSplit()
    )


def wordpiece(**normal):
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False)
    pre = pre_tokenizers.BertPreTokenizer()
    return learned(
        models.WordPiece(unk_token="[UNK]"), trainer, decoders.WordPiece(), pre, normalizers.BertNormalizer(**normal)
    )


LLAMA = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
SPACES = normalizers.Replace(" ", "\u2581")
PREFIXED = normalizers.Sequence([normalizers.Prepend("\u2581"), SPACES])
KINDS = {
    "bytes": lambda: by_bytes(decoders.ByteLevel()),
    "bytes in a sequence": lambda: by_bytes(decoders.Sequence([decoders.ByteLevel()])),
    "bytes before another": lambda: by_bytes(decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])),
    "bytes and added entries": lambda: by_bytes(decoders.ByteLevel(), ["<\uff5cx\uff5c>", "<think>", "\u00f6\u00df"]),
    "pieces and bytes": lambda: falling_back(decoders.Sequence(LLAMA), SPACES),
    "pieces after a space": lambda: falling_back(decoders.Sequence([*LLAMA, decoders.Strip(" ", 1, 0)]), PREFIXED),
    "sentencepiece": sentencepiece,
    "words that end": ended_words,
    "wordpiece": lambda: wordpiece(lowercase=False, strip_accents=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_ids_are_bytes_of_the_text_that_comes_back(kind):
    made = texts.load(KINDS[kind]().to_str(), texts.SPECIAL)
    sizes = texts.byte_lengths(made)
    assert (sizes[[made.token_to_id(name) for name in texts.SPECIAL]] == 0).all()
    rng = np.random.default_rng(0)
    words = [*["Größe", "café", "5", "here", "and", "there", "It's"], "\u6f22\u5b57", "\U0001f600", "<think>", "x."]
    words += ["<\uff5cx\uff5c>", "\u00f6\u00df"]
    for _ in range(50):
        text = " ".join(rng.choice(words, rng.integers(1, 12)))
        ids = made.encode(text, add_special_tokens=False).ids
        back = made.decode(ids, skip_special_tokens=True)
        at_an_end = 0 if kind.startswith("bytes") or kind == "pieces and bytes" else 1  # a space that is shown or not
        # An entry that was added is its own text, also where the decoder takes it for bytes.
        whole = text if kind == "bytes and added entries" else back
        assert abs(int(sizes[ids].sum()) - len(whole.encode())) <= at_an_end, (text, back)


LOSSY = {
    "lower case": lambda: wordpiece(lowercase=True, strip_accents=True),
    "no accents": lambda: learned(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
        decoders.ByteLevel(),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()]),
    ),
    "unknown": lambda: sentencepiece(),
    "white space": ended_words,
}


@pytest.mark.parametrize("kind", LOSSY)
def test_a_lossy_tokenizer_counts_the_original_bytes(kind):
    made = texts.load(LOSSY[kind]().to_str(), texts.SPECIAL)
    other = [text.replace("there", "\u017elu\u0165 THERE") for text in CORPUS]
    found = texts.loss(made, other)
    assert found["documents"] > 0.9
    assert 0.005 < found["bytes"] < 0.6
    assert found["text"] != found["back"]
    sizes = texts.measured(made, other, texts.byte_lengths(made))
    assert texts.counted(made, other, sizes) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("kind", ["bytes", "bytes in a sequence", "pieces and bytes"])
def test_a_tokenizer_that_loses_nothing_says_so(kind):
    assert texts.loss(texts.load(KINDS[kind]().to_str(), texts.SPECIAL), CORPUS) == {}


def test_a_lossy_tokenizer_is_taken_with_a_warning(tmp_path, capsys):
    (tmp_path / "bert.json").write_text(LOSSY["lower case"]().to_str(), encoding="utf-8")
    file = write_lines(tmp_path / "a.jsonl", *({"text": text} for text in CORPUS))
    options = [f"--tokenizer={tmp_path / 'bert.json'}", "--workers=1", "--format=jsonl"]
    assert cli.main(["data", "prepare", str(file), f"--out={tmp_path / 'out'}", *options]) == 0
    told = capsys.readouterr()
    lossy = read_json(tmp_path / "out")["tokenizers"]["text"]["lossy"]
    assert lossy["documents"] == 1
    for stream in (told.err, told.out):
        assert "warning: the text tokenizer is lossy: 100.0 % of the first documents do not come back" in stream
        assert f'{100 * lossy["bytes"]:.2f} % of their bytes are lost ("Gr\u00f6\u00dfe 0' in stream
        assert "bits per byte are of the original text" in stream
    like = [f"--like={tmp_path / 'out'}", "--workers=1", "--format=jsonl"]
    assert cli.main(["data", "prepare", str(file), f"--out={tmp_path / 'like'}", *like]) == 0
    assert read_json(tmp_path / "like")["tokenizers"]["text"]["lossy"] == lossy
    about = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    about["tokenizers"]["text"]["lossy"]["documents"] = "all"
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    assert cli.main(["data", "inspect", str(tmp_path / "out")]) == 2
    assert "what its text tokenizer loses is" in capsys.readouterr().err
