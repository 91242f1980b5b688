"""What a prompt is worth: of planted scores, whose answer is known, and of a model that was taught one pairing."""

import itertools

import numpy as np
import pytest
from scipy import stats

from mot.data import layout, mixture
from mot.data.layout import Format, Medium, Stretch
from mot.measures import conditioning
from tests.support import examples

FORMAT = Format("text", 0, 1, (0, 1, 2, 3), (Medium("image", 2, 3, 4),))
C = examples.make()


def stretch(stream, number):
    base = 8 if stream == "text" else 12
    ids = [number // base, number % base]
    return Stretch(stream, np.array([4 + i for i in ids]) if stream == "text" else np.array([*ids, 0, 0]))


def source(*documents):
    """Documents of (stream, number) pairs."""
    made = [layout.document([stretch(*one) for one in parts], C, FORMAT, scored=0, ends=True) for parts in documents]
    return mixture.InMemory("s", 0, tuple(made), np.ones(2))


def numbers(d):
    """The numbers of a document's stretches, in order."""
    found = []
    for s in layout.stretches(d, C, FORMAT):
        a, b = (int(x) for x in s.data[:2])
        found.append(8 * (a - 4) + b - 4 if s.stream == "text" else 12 * a + b)
    return found


def test_documents_are_sorted_by_what_follows_what():
    text, image = (("text", 3), ("image", 3))
    made = source(*[(text, image)] * 5, *[(image, text)] * 4, (text,), (image, image), *[(text, image, text)] * 2)
    found = conditioning.by_direction(made, 4, C, FORMAT)
    counts = {direction: len(documents) for direction, documents in found.items()}
    assert counts == {
        (("image",), "image"): 1,
        (("image",), "text"): 4,
        (("text",), "image"): 4,
        (("text", "image"), "text"): 2,
    }
    assert [len(d.prompt) for d in found[("text", "image"), "text"]] == [2, 2]


def test_every_control_has_the_unit_and_a_prompt_that_differs():
    made = source(*((("text", i % 3), ("image", i)) for i in range(12)))
    documents = conditioning.by_direction(made, 12, C, FORMAT)[("text",), "image"]
    pairs = conditioning.crossed(documents, C)
    assert len(pairs) == 12
    for own, other in pairs:
        assert other.unit is own.unit
        assert other.prompt[0].data.tolist() != own.prompt[0].data.tolist()
    assert len({tuple(other.prompt[0].data) for _, other in pairs}) == 3
    again = conditioning.crossed(documents, C)
    for (_, other), (_, same) in itertools.zip_longest(pairs, again):
        assert other.prompt[0] is same.prompt[0]
    assert not conditioning.crossed(documents[:1], C)


def test_a_prompt_that_tells_all_and_one_that_tells_nothing():
    made = source(*((("text", i), ("image", i)) for i in range(40)))
    documents = conditioning.by_direction(made, 40, C, FORMAT)[("text",), "image"]
    pairs = conditioning.crossed(documents, C)

    def knows(documents):  # a unit costs how far its number lies from its prompt's
        return np.array([-abs(a - b) - 1.0 for a, b in map(numbers, documents)])

    found = conditioning.figures(pairs, knows, C, FORMAT)
    far = [abs(numbers_of(own) - numbers_of(other)) for own, other in pairs]
    assert (found["own"].value, found["gain"].value) == (1.0, pytest.approx(np.mean(far)))
    assert found["other"].value == pytest.approx(1 + np.mean(far))
    assert (found["better"].value, found["better"].chance, found["gain"].n) == (1.0, 0.5, 40)
    assert found["p"].value == pytest.approx(0.5**40)

    def guesses(documents):  # it costs what it costs, and its prompt a little at random
        rng = np.random.default_rng(0)
        return np.array([-numbers(d)[1] - rng.normal() for d in documents])

    blind = conditioning.figures(pairs, guesses, C, FORMAT)
    assert 0.05 < blind["p"].value < 0.95
    assert abs(blind["better"].value - 0.5) < 0.25
    assert blind["gain"].low < 0 < blind["gain"].high
    ties = conditioning.figures(pairs, lambda documents: np.zeros(len(documents)), C, FORMAT)
    assert (ties["p"].value, ties["better"].value, ties["p"].n) == (1.0, 0.5, 0)


def numbers_of(d):
    return numbers(layout.document(d.prompt, C, FORMAT))[0]


def test_p_is_that_of_the_exact_sign_test():
    made = source(*((("text", i), ("image", i)) for i in range(20)))
    pairs = conditioning.crossed(conditioning.by_direction(made, 20, C, FORMAT)[("text",), "image"], C)
    wins = np.arange(20) < 15

    def score(documents):
        own = np.zeros(20)
        return np.stack([own, np.where(wins, -1.0, 1.0)], 1).reshape(-1)

    found = conditioning.figures(pairs, score, C, FORMAT)
    count = sum(stats.binom.pmf(k, 20, 0.5) for k in range(15, 21))
    assert found["p"].value == pytest.approx(count)
    assert found["better"].value == 0.75
