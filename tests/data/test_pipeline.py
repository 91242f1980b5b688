import threading

import numpy as np
import pytest

from configs import digits
from mot import batches
from mot.config import ConfigError, resolve
from mot.data import embedded, mixture, pipeline
from mot.errors import UserError
from mot.tokenizers import text as texts
from mot.tokenizers.text import BOI, BOS, EOI, EOS
from tests.support.media import same


@pytest.fixture(scope="module")
def c():
    return resolve(digits.get_config("size=smoke"), embedded.faults)


@pytest.fixture(scope="module")
def splits(c):
    return embedded.load(c)


def test_the_embedded_documents_are_what_they_say(c, splits):
    from sklearn.datasets import load_digits

    training, held_out = splits
    pixels = load_digits().data.astype(int)
    seen = {split: set() for split in ("training", "held_out")}
    read_in = {split: set() for split in seen}
    for name, split in zip(seen, splits, strict=True):
        manual, drawn, read = (s.documents for s in split.all)
        assert len(drawn) == len(read)
        for d in manual:
            assert (d.token[0], d.token[-1]) == (BOS, EOS)
            assert (d.stream == 0).all()
            read_in[name].add(d.token.tobytes())
            assert len(d.token) <= c.streams["text"].max_tokens
        for d in (*drawn, *read):
            image = d.token[d.stream == 1] - embedded.TEXT_IDS
            np.testing.assert_array_equal(image, pixels[d.doc_id])
            text = list(d.token[d.stream == 0])
            assert text.count(BOI) == text.count(EOI) == 1
            assert d.weight[d.token == EOI] == 0
            assert (d.weight[d.token != EOI] == 1).all()
            seen[name].add(image.tobytes())

        def boi(d):
            return list(d.token).index(BOI)

        assert all(boi(d) > 1 for d in drawn)
        assert all(boi(d) == 1 for d in read)
    assert not seen["training"] & seen["held_out"]
    assert not read_in["training"] & read_in["held_out"]
    assert len(seen["training"] | seen["held_out"]) == 1797
    assert 0.05 < len(held_out.all[1].documents) / 1797 < 0.15
    assert training.digest != held_out.digest


def test_batch_n_is_a_pure_function_of_seed_and_n(c, splits):
    one, two = (pipeline.Batches(splits[0], c, seed=3, count=50) for _ in range(2))
    same(one[7], two[7])  # without having seen 0 to 6
    one[20]
    same(one[2], two[2])
    other = pipeline.Batches(splits[0], c, seed=4, count=50)[7].batch
    assert not np.array_equal(other["text"].token, one[7].batch["text"].token)


def test_grain_starts_anywhere(c, splits):
    batches_ = pipeline.Batches(splits[0], c, seed=0, count=9)
    late = list(pipeline.iterate(batches_, 5))
    assert len(late) == 4
    same(late[0], batches_[5])
    same(late[-1], batches_[8])


def test_batches_keep_every_invariant_and_fill_95_percent(c, splits):
    for split, count in ((splits[0], 300), (splits[1], 8)):
        made = pipeline.Batches(split, c, seed=0, count=count)
        fills = []
        for n in range(count):
            batch = made[n].batch
            batches.check(batch)
            fills.append(list(pipeline.fill(batch).values()))
        assert (np.mean(fills, axis=0) >= 0.95).all(), np.mean(fills, axis=0)


def test_each_epoch_holds_each_document_once_in_proportion(c, splits):
    stream = mixture.Mixture(splits[0], c.data, 0, ("text", "image"))
    counts = [source.count for source in splits[0].all]
    places = [stream.place(g) for g in range(4000)]
    for source, n in enumerate(counts):
        mine = [i for s, i in places if s == source]
        for epoch in range(len(mine) // n):
            assert sorted(mine[epoch * n : (epoch + 1) * n]) == list(range(n))
    shares = np.array(list(c.data.shares[name] for name in splits[0].names))
    for upto in (27, 100, 1000, 4000):
        got = np.bincount([s for s, _ in places[:upto]], minlength=3)
        assert (np.abs(got - upto * shares / shares.sum()) <= 2).all()


def test_a_source_without_documents_is_refused(c, splits):
    manual, *others = splits[0].all
    empty = splits[0]._replace(all=(manual._replace(documents=()), *others))
    with pytest.raises(ValueError, match=r"source manual has a share of 13.0 and no documents"):
        mixture.Mixture(empty, c.data, 0, ("text", "image"))


def test_configurations_that_the_data_cannot_serve_are_refused():
    tree = digits.get_config("size=smoke")
    tree.unlock()
    tree.streams.image.max_tokens = 49
    tree.streams.text.max_tokens = 8
    tree.data.sources.films = "embedded"
    with pytest.raises(ConfigError) as caught:
        resolve(tree, embedded.faults)
    assert [f.split(":")[0] for f in caught.value.faults] == [
        "streams.image.max_tokens",
        "streams.text.max_tokens",
        "data.sources.films",
    ]


def test_the_tokenizer_round_trips_and_counts_bytes(splits):
    tokenizer = texts.train(["some text to learn merges from, again and again and again"] * 9, 280)
    for text in ("plain", " spaces  and\n\nlines", "naïve — 漢字 🙂"):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert texts.byte_lengths(tokenizer)[ids].sum() == len(text.encode())


def test_the_tokenizer_is_cached_and_a_damaged_cache_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    corpus = ["the cat and the dog and the bird"] * 5
    first = texts.load_or_train(corpus, 270)
    (file,) = (tmp_path / "mot").iterdir()
    monkeypatch.setattr(texts, "train", lambda *_: pytest.fail("trained again although cached"))
    assert texts.digest(texts.load_or_train(corpus, 270)) == texts.digest(first)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    content = file.read_bytes()
    file.write_bytes(content.replace(b"<eos>", b"<eot>"))
    assert texts.load_or_train(corpus, 270).token_to_id("<eos>") == EOS
    assert file.read_bytes() == content


def test_long_text_is_split_at_a_boundary():
    tokenizer = texts.train(["words and sentences. more words? yes! so it goes on and on"] * 9, 290)
    text = " ".join(f"Sentence number {i} is here. It goes on." for i in range(40))
    pieces = texts.split(tokenizer, text, 50)
    assert max(map(len, pieces)) <= 50
    assert [i for piece in pieces for i in piece] == tokenizer.encode(text).ids
    assert all(tokenizer.decode(piece).rstrip().endswith(".") for piece in pieces)
    assert texts.split(tokenizer, "x" * 200, 50)[0] == tokenizer.encode("x" * 200).ids[:50]


class Odd(Exception):
    """It is made of something else than it keeps, so that no other process can make it again."""

    def __init__(self, file, line):
        super().__init__(f"{file} is odd in line {line}")


class OfOddDocuments(pipeline.Batches):
    def _read(self, piece):
        raise Odd("some.bin", 3)


def test_an_odd_error_of_a_worker_is_told_and_not_waited_for(c, splits):
    with pytest.raises(RuntimeError, match=r"^Odd: some.bin is odd in line 3"):
        next(pipeline.iterate(OfOddDocuments(splits[0], c, 0, 3), 0, workers=1, timeout=120))
    with pytest.raises(Odd):  # without workers it is itself
        next(pipeline.iterate(OfOddDocuments(splits[0], c, 0, 3), 0))


def test_what_a_worker_can_send():
    assert pipeline._is_sendable(UserError("data.batch: 3; must be 4"))
    assert not pipeline._is_sendable(Odd("some.bin", 3))
    assert not pipeline._is_sendable(ValueError("a lock", threading.Lock()))
