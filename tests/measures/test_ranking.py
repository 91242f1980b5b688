"""Accuracies whose value is known: a planted answer, a model that knows nothing, lengths and priors that mislead."""

import numpy as np
import pytest

from mot.data.layout import Format, Stretch
from mot.measures import ranking
from mot.measures.ranking import Question
from tests.support import examples

FORMAT = Format("text", 0, 1, (0, 1, 2, 3), ())
C = examples.make()
BYTES = np.full(C.vocab, 2)


def words(*ids):
    return (Stretch("text", np.array(ids)),)


def questions(n=40, candidates=4, length=3, seed=0):
    """Of random words, the answers anywhere."""
    rng = np.random.default_rng(seed)

    def draw():
        return words(*rng.integers(4, 12, length))

    made = [tuple(draw() for _ in range(candidates)) for _ in range(n)]
    return [Question(draw(), c, int(rng.integers(candidates)), "ab"[i % 2]) for i, c in enumerate(made)]


def accuracies(found, score, sizes=BYTES):
    return ranking.accuracies(found, score, C, FORMAT, sizes)


def test_a_model_that_knows_nothing_ranks_at_chance():
    found = accuracies(questions(), lambda documents: np.array([-d.weight.sum() * np.log(24) for d in documents]))
    assert set(found) == {
        f"{group}/{name}" for group in ("text", "text/a", "text/b") for name in ("sum", "token", "byte", "pmi")
    }
    assert all(figure.value == figure.chance == 0.25 for figure in found.values())
    assert found["text/sum"].n == 40
    assert found["text/a/sum"].n == 20


def test_a_planted_answer_is_found_and_counted_by_source():
    asked = questions(length=6)
    right = {q.candidates[q.answer][0].data.tobytes() for q in asked if q.source == "a"}

    def score(documents):
        return np.array([0.0 if d.token[-6:].astype(int).tobytes() in right else -5.0 for d in documents])

    found = accuracies(asked, score)
    assert found["text/a/sum"].value == 1
    assert found["text/b/sum"].value == 0.25
    assert found["text/sum"].value == pytest.approx(0.625)


def test_a_candidates_length_misleads_the_sum_alone():
    """Every token has -1 nat, but the right candidates' -0.9, which are longer."""
    long, short = words(5, 6, 7, 8), words(4, 4)

    def score(documents):
        return np.array([-d.weight.sum() * (0.9 if 5 in d.token[-4:] else 1.0) for d in documents])

    found = accuracies([Question((), (short, long), 1, "a")], score)
    assert {name: figure.value for name, figure in found.items() if "/a/" in name} == {
        "text/a/sum": 0,
        "text/a/token": 1,
        "text/a/byte": 1,
    }  # without a prompt there is nothing that it tells of a candidate


def test_bytes_are_those_of_the_candidates_text():
    """Both have -2 nats in 2 tokens; one of them stands for 6 bytes, the other for 4."""
    sizes = BYTES.copy()
    sizes[9] = 4
    found = accuracies(
        [Question(words(9, 9), (words(4, 4), words(4, 9)), 1, "a")], lambda d: np.full(len(d), -2.0), sizes
    )
    assert (found["text/token"].value, found["text/byte"].value) == (0.5, 1)


def test_what_is_likely_in_itself_wins_the_sum_and_not_the_information():
    """log p of the wrong candidate is -1 with and without its prompt; of the right one -2, and -6 without."""

    def score(documents):
        return np.array([-1.0 if 4 in d.token else -2.0 if 11 in d.token else -6.0 for d in documents])

    found = accuracies([Question(words(11), (words(4), words(5)), 1, "a")], score)
    assert (found["text/sum"].value, found["text/pmi"].value) == (0, 1)


def test_candidates_without_text_have_no_bytes():
    picture = (Stretch("image", np.array([1, 2])),)
    format = FORMAT._replace(media=(ranking.layout.Medium("image", 2, 3, 0),))
    sizes = np.where(np.arange(C.vocab) < 12, 0, 0)
    asked = [Question(words(5), (picture, (Stretch("image", np.array([3, 4])),)), 0, "a")]
    found = ranking.accuracies(asked, lambda d: np.zeros(len(d)), C, format, sizes)
    assert set(found) == {f"{group}/{name}" for group in ("image", "image/a") for name in ("sum", "token", "pmi")}


def test_a_question_without_a_prompt_is_left_out_of_the_information_alone():
    asked = questions(4)
    asked[0] = asked[0]._replace(prompt=())
    found = accuracies(asked, lambda d: np.zeros(len(d)))
    assert (found["text/sum"].n, found["text/pmi"].n) == (4, 3)


def test_ties_count_as_a_guess_among_them():
    assert ranking.first(np.array([-1.0, -1.0 - 1e-9, -2]), 0) == 0.5
    assert ranking.first(np.array([-1.0, -1.0, -2]), 2) == 0
    assert ranking.first(np.array([-1.0, -1.001, -2]), 0) == 1
