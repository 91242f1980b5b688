"""Ranks against counting, pools that hold no side twice, and recalls whose value is known."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from configs import base
from mot import batches
from mot.config import resolve
from mot.config.modalities import markers
from mot.data import layout, mixture
from mot.data.layout import Format, Medium, Stretch
from mot.data.manifest import special_tokens
from mot.errors import UserError
from mot.measures import retrieval
from mot.model import transformer
from mot.objectives import contrastive
from tests.support import examples, twofold, vectors

FORMAT = Format("text", 0, 1, (0, 1, 2, 3), (Medium("image", 2, 3, 4),))
C = examples.make()


def source(captions, images, image_first=False):
    """Documents of one caption and one image each, by number."""
    made = []
    for caption, image in zip(captions, images, strict=True):
        words = Stretch("text", np.array([4 + caption // 8, 4 + caption % 8]))
        picture = Stretch("image", np.array([image // 12, image % 12, 0, 0]))
        parts = [picture, words] if image_first else [words, picture]
        made.append(layout.document(parts, C, FORMAT, scored=0, ends=True))
    return mixture.InMemory("s", 0, tuple(made), np.ones(2))


def number_of(d):
    """Of a document of `source`'s kind: its caption and its image; None for what it has not."""
    words = [x for x in d.token if 4 <= x < 12]
    pixels = [x - 12 for x in d.token if x >= 12]
    caption = 8 * (words[0] - 4) + words[1] - 4 if words else None
    return caption, 12 * pixels[0] + pixels[1] if pixels else None


@pytest.mark.parametrize("image_first", [False, True])
def test_sides_are_taken_apart_whatever_their_order(image_first):
    found = list(retrieval.pairs(source(range(9), range(9), image_first), C, FORMAT))
    assert sorted(tuple(pair) for pair in found) == [("text", "image")] * 9
    assert sorted(pair["image"].data[1] for pair in found) == list(range(9))
    assert all(pair["text"].data[1] - 4 == pair["image"].data[1] % 8 for pair in found)


def test_documents_of_one_modality_or_more_stretches_are_passed_over():
    words, picture = Stretch("text", np.array([5])), Stretch("image", np.array([1, 2, 3, 4]))
    made = [[words], [picture], [words, picture, words], [picture, picture], [words, picture]]
    documents = tuple(layout.document(parts, C, FORMAT, ends=True) for parts in made)
    assert len(list(retrieval.pairs(mixture.InMemory("s", 0, documents, np.ones(2)), C, FORMAT))) == 1


def test_of_a_unit_in_two_streams_the_one_that_is_read_is_taken():
    c = twofold.make([twofold.rule("drawn,seen")], names=("seen", "drawn"))
    ids = {mark: i for i, mark in enumerate(special_tokens(twofold.MODALITIES))}
    media = tuple(Medium(name, *(ids[mark] for mark in markers("image")), 0) for name in ("drawn", "seen"))
    format = Format("text", ids["<bos>"], ids["<eos>"], tuple(ids.values()), media)
    records = [twofold.record(parts, i) for i, parts in enumerate(("tI", "It", "II"))]
    found = list(retrieval.pairs(twofold.source(c, records), c, format))
    assert [tuple(pair) for pair in found] == [("text", "seen")] * 2
    seen = {span.data.tobytes() for r in records[:2] for span in r.spans if span.modality == "image_vectors"}
    assert {pair["seen"].data.tobytes() for pair in found} == seen
    assert not any(pair["seen"].is_same for pair in found)


def test_no_pool_holds_a_side_twice():
    """Forty documents with ten captions and twenty images."""
    found = retrieval.pools(source([i % 10 for i in range(40)], [i % 20 for i in range(40)]), 8, 9, C, FORMAT)
    assert len(found) >= 2
    for pool in found:
        assert pool.streams == ("text", "image")
        assert all(len({x.data.tobytes() for x in side}) == 8 for side in pool.sides)
        captions = [8 * (x.data[0] - 4) + x.data[1] - 4 for x in pool.sides[0]]
        assert captions == [
            (12 * x.data[0] + x.data[1]) % 10 for x in pool.sides[1]
        ]  # those of a document stay together


def test_the_pools_asked_for_come_and_no_more():
    assert len(retrieval.pools(source(range(60), range(60)), 5, 3, C, FORMAT)) == 3
    assert retrieval.pools(mixture.InMemory("s", 0, (), np.ones(2)), 5, 3, C, FORMAT) == []


def test_a_pool_that_cannot_be_filled_is_told():
    with pytest.raises(
        UserError, match=r"--pool=12: the held-out documents of s make no pool of 12 .* write --pool=10"
    ):
        retrieval.pools(source([i % 10 for i in range(40)], range(40)), 12, 3, C, FORMAT)


def recalls(score, way, size=12):
    pools = retrieval.pools(source(range(60), range(60)), size, 4, C, FORMAT)
    return retrieval.recalls(pools, way, score, C, FORMAT)


def knows(d):
    """Nats by which a document's halves belong together; a prior that grows with the image's number."""
    caption, image = number_of(d)
    return -30.0 + (10 if caption == image else 0) + 0.5 * (image or 0)


@pytest.mark.parametrize("way", [(0, 1), (1, 0)])
def test_a_model_that_knows_retrieves_all_and_its_prior_is_no_matter_to_the_information(way):
    found = recalls(lambda documents: np.array([knows(d) for d in documents]), way)
    assert found["pmi_recall_1"].value == 1
    assert found["pmi_median_rank"].value == 1
    assert found["recall_10"].chance == pytest.approx(10 / 12)
    assert (found["recall_1"].value < 1) == (way == (0, 1))  # images have the prior


def test_a_model_that_knows_nothing_retrieves_by_chance():
    found = recalls(lambda documents: np.full(len(documents), -3.0), (0, 1))
    for figure in found.values():
        assert figure.value == pytest.approx(figure.chance)
    assert found["recall_5"].n == 48


def test_queries_see_what_they_ask_for_given_what_they_have():
    """Way (0, 1) asks for images given captions: the caption comes first, and the image's tokens alone weigh."""
    seen = []
    recalls(lambda documents: seen.extend(documents) or np.zeros(len(documents)), (0, 1))
    given, alone = seen[0], seen[-1]
    np.testing.assert_array_equal(given.stream, [0, 0, 0, 0, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(given.weight, [0, 0, 0, 1, 1, 1, 1, 1, 0, 1])  # its length is fixed: </eoi> is forced
    np.testing.assert_array_equal(alone.weight, [0, 1, 1, 1, 1, 1, 0, 1])


def test_places_are_those_that_counting_finds():
    scores = np.random.default_rng(0).integers(-9, 0, (3, 7, 7)).astype(float)
    better, ties = retrieval.places(scores)
    for p in range(3):
        for i in range(7):
            assert better[p, i] == sum(x > scores[p, i, i] for x in scores[p, i])
            assert ties[p, i] == sum(x == scores[p, i, i] for x in scores[p, i]) - 1


def test_a_way_to_what_is_diffused_is_none():
    c = vectors.make()
    ways = retrieval.ways(("text", "image"), c)
    assert ways[1, 0] == ""
    assert ways[0, 1] == "image is diffused (flow), and has no likelihood"


def contrasted(pool="mean"):
    c = vectors.tree(image=dict(copies="noised"), sound=dict(drop_rate=0.0))
    c.streams.image.objective = "none"
    c.objective.contrastive = base.contrastive("infonce", width=8, pool=pool)
    return resolve(c)


WORDS = Format("text", vectors.BOS, vectors.EOS, (0, 1, 2, 3), (Medium("image", 2, 3, 4), Medium("sound", 2, 3, 3)))


def in_memory(*parts):
    made = tuple(vectors.document(i, x) for i, x in enumerate(parts))
    return mixture.InMemory("s", 0, made, np.ones(3))


def test_parts_are_of_documents_that_have_both_and_see_nothing_of_each_other():
    c = contrasted()
    source = in_memory("tI", "t", "It", "tS", "ItI", "tIS")
    found = list(retrieval.parts(source, c, WORDS))
    assert sorted(p["text"].document.doc_id for p in found) == [0, 2, 4, 5]
    for pair in found:
        whole = source.documents[pair["text"].document.doc_id]
        np.testing.assert_array_equal(pair["image"].data, whole.values[1])
        assert not np.isin(pair["text"].data, WORDS.special).any()
        row = vectors.pack(c, [[pair["text"].document]])
        assert not batches.visible(row["text"].info, row["image"].info).any()
    has = {d.doc_id for d in source.documents if 11 in d.token and {0, 1} <= set(d.stream.tolist())}
    assert (
        {p["text"].document.doc_id for p in retrieval.parts(source, contrasted("11,mean"), WORDS)}
        == has
        != {0, 2, 4, 5}
    )


def test_parts_are_embedded_as_in_training():
    c = contrasted("last,mean")
    pairs = list(retrieval.parts(in_memory("tI", "It", "ItI", "tIS", "tI"), c, WORDS))
    weights = vectors.weights(c)
    documents = [p["text"].document for p in pairs]
    rows = vectors.pack(c, [documents[:3], documents[3:]])
    output = jax.jit(partial(transformer.forward, config=c))(weights, rows)
    sides = contrastive.sides(weights, (output, output), rows, c)
    there = np.asarray(sides.there_I)
    embed = retrieval.make_embed(weights, c)
    for stream, want in (("text", sides.query_IY), ("image", sides.key_IY)):
        np.testing.assert_allclose(embed([p[stream] for p in pairs]), np.asarray(want)[there], atol=2e-6)


def test_embeddings_that_know_retrieve_all_and_a_shift_closes_their_gap():
    pools = retrieval.pools(source(range(60), range(60)), 12, 4, C, FORMAT)

    def embed(stretches):
        """A direction for each number, and one that tells the side: it is what is nearest to all others."""
        is_text = stretches[0].stream == "text"
        x = np.zeros((len(stretches), 101), np.float32)
        for row, (a, b) in zip(x, (s.data[:2] for s in stretches), strict=True):
            row[8 * (a - 4) + b - 4 if is_text else 12 * a + b] = 1
        x[:, 100] = 1 if is_text else -1
        return x / np.sqrt(2)

    found = retrieval.by_embeddings(pools, embed, "s")
    assert found["gap/s"].value == pytest.approx(np.sqrt(2))
    for way in ("text/image", "image/text"):
        assert found[f"{way}/s/recall_1"].value == found[f"{way}/s/shifted_recall_1"].value == 1
        assert found[f"{way}/s/recall_1"].n == 48


def test_halves_of_a_passage_are_documents_of_their_own():
    c = contrasted()
    ids = np.random.default_rng(0).integers(4, 12, 40)
    long = layout.document([Stretch("text", ids)], c, WORDS, ends=True)
    c = dataclasses.replace(c, streams={n: dataclasses.replace(s, budget=99) for n, s in c.streams.items()})
    made = mixture.InMemory("s", 0, (long, vectors.document(1, "t"), vectors.document(2, "tI")), np.ones(3))
    (pair,) = retrieval.halves(made, c, WORDS)
    np.testing.assert_array_equal(np.concatenate([pair[end].data for end in ("first", "second")]), ids)
    assert all(pair[end].document.token[0] == WORDS.bos for end in pair)
