import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mot import batches
from mot.data.packing import RowPlan, cut, document, pack

STREAMS, BUDGETS = ("text", "image"), (40, 56)


@st.composite
def documents(draw):
    """Documents of runs of both streams that fit the budgets, with units and unweighted spans."""
    result = []
    for doc_id in range(draw(st.integers(1, 14))):
        runs = draw(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 8), st.booleans()), min_size=1, max_size=5))
        stream = np.concatenate([[m] * size for m, size, _ in runs])
        span = np.concatenate([[i * both] * size for i, (_, size, both) in enumerate(runs, 1)])
        unit = np.concatenate([[i * m] * size for i, (m, size, _) in enumerate(runs, 1)])
        private = np.concatenate([[both and i % 2 == 0] * size for i, (_, size, both) in enumerate(runs)])
        token = 1000 * doc_id + np.arange(len(stream))  # every token is unlike any other
        result.append(
            document(doc_id % 3, doc_id, token, stream, weight=span == 0, unit=unit, span=span, private=private)
        )
    return result


class Endless:
    """Documents again and again; `cuts` says after which of their tokens they may be cut."""

    def __init__(self, docs, cuts=lambda d: []):
        self.docs, self.places = docs, cuts

    def lengths(self, g):
        return np.bincount(self.docs[g % len(self.docs)].stream, minlength=2)

    def cuts(self, g):
        d = self.docs[g % len(self.docs)]
        ends = [1, *self.places(d), len(d.token)]
        return np.array([[n, *np.bincount(d.stream[:n], minlength=2)] for n in ends])

    def enter(self, step, g):
        pass


def plan_of(docs, lookahead=4, max_tokens=BUDGETS, cuts=lambda d: []):
    return RowPlan(Endless(docs, cuts), BUDGETS, max_tokens, lookahead)


def whole(rows):
    """The documents of rows in which none is cut."""
    rows = list(rows)
    assert all(piece.begin == 0 for row in rows for piece in row)
    return [[piece.g for piece in row] for row in rows]


@settings(max_examples=150, deadline=None)
@given(documents(), st.integers(1, 6))
def test_every_document_is_placed_once_whole_in_order_and_within_budgets(docs, lookahead):
    plan = plan_of(docs, lookahead)
    rows = whole(plan.next_row() for _ in range(6))
    placed = [g for row in rows for g in row]
    assert len(placed) == len(set(placed)), "a document was placed twice"
    missing = set(range(max(placed) + 1)) - set(placed)
    assert missing <= {w.piece.g for w in plan.waiting}, "a document was lost"
    assert len(plan.waiting) <= lookahead
    batch = pack([[docs[g % len(docs)] for g in row] for row in rows], STREAMS, BUDGETS)
    batches.check(batch)
    for b, row in enumerate(rows):
        assert row == sorted(row)
        tokens = {name: type(t)(**{f: x[b] for f, x in vars(t).items()}) for name, t in batch.items()}
        for m, name in enumerate(STREAMS):
            want = np.concatenate([docs[g % len(docs)].token[docs[g % len(docs)].stream == m] for g in row])
            real = tokens[name].segment != 0
            np.testing.assert_array_equal(tokens[name].token[real], want)
            assert real[: real.sum()].all(), "padding comes last in each stream"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(2, 150), min_size=1, max_size=9), st.integers(1, 5), st.integers(20, 40), st.data())
def test_long_documents_are_cut_where_they_may_be_and_nothing_is_lost(sizes, lookahead, max_tokens, data):
    """Text with sentences of 1 to 9 tokens and images of 7: each piece begins with <bos>, and all add up."""
    docs = []
    for i, size in enumerate(sizes):
        stream, ends = [0], []
        while len(stream) < size:
            image = data.draw(st.booleans())
            n = 7 if image else data.draw(st.integers(1, 9))
            stream += [int(image)] * n
            ends.append(len(stream))
        docs.append((document(0, i, 1000 * i + np.arange(len(stream)), stream), ends[:-1]))
    places = {d.doc_id: ends for d, ends in docs}
    docs = [d for d, _ in docs]
    plan = plan_of(docs, lookahead, (max_tokens, max_tokens), lambda d: places[d.doc_id])
    rows = [plan.next_row() for _ in range(8)]
    assert not plan.dropped
    taken: dict[int, int] = {}
    for row in rows:
        used = np.zeros(2, int)
        for g, begin, end in row:
            d = docs[g % len(docs)]
            assert begin == taken.get(g, 0), "pieces come in order, none lost, none twice"
            taken[g] = end
            assert {begin, end} <= {0, len(d.token), *places[d.doc_id]}, "cut where it may not be"
            piece = cut(d, begin, end)
            assert piece.token[0] == d.token[0]
            np.testing.assert_array_equal(piece.token[begin > 0 :], d.token[begin:end])
            lengths = np.bincount(piece.stream, minlength=2)
            assert (lengths <= max_tokens).all()
            used += lengths
        assert (used <= BUDGETS).all()
        assert row == sorted(row)
    waiting = {w.piece.g: w.piece.begin for w in plan.waiting}
    assert len(waiting) == len(plan.waiting)
    for g in range(plan.position):
        whole_length = len(docs[g % len(docs)].token)
        assert taken.get(g, 0) == waiting.get(g, whole_length), "what is not placed is waiting"


def test_what_can_be_cut_fills_rows_to_the_last_tokens():
    rng = np.random.default_rng(0)
    docs = [document(0, i, np.arange(n), np.zeros(n)) for i, n in enumerate(rng.integers(60, 4000, 50))]
    places = [np.sort(rng.choice(np.arange(2, len(d.token)), len(d.token) // 12, replace=False)) for d in docs]
    plan = RowPlan(Endless(docs, lambda d: places[d.doc_id]), (1000, 1), (1000, 1), 64)
    used = [sum(end - begin + (begin > 0) for _, begin, end in plan.next_row()) for _ in range(200)]
    assert np.mean(used) > 0.99 * 1000


def test_a_part_that_fits_no_row_is_dropped_and_the_rest_goes_on():
    """A sound of 50 tokens between sentences, where 40 are allowed."""
    d = document(0, 0, np.arange(80), np.repeat([0, 1, 0], [15, 50, 15]))
    plan = plan_of(
        [d, document(0, 1, np.arange(9), np.zeros(9))], 2, (40, 40), lambda d: [15, 65][: len(d.token) // 40]
    )
    rows = [plan.next_row() for _ in range(2)]
    assert (0, 15, 65) in plan.dropped
    pieces = [p for row in rows for p in row if p.g == 0]
    assert pieces == [(0, 0, 15), (0, 65, 80)]
    sounds = [document(0, 0, np.arange(51), np.repeat([0, 1], [1, 50]))]
    with pytest.raises(ValueError, match=r"fit no row, the last with \[ 0 50\] tokens by stream; .* allows \[40 40\]"):
        plan_of(sounds, 2, (40, 40)).next_row()


def positions(d):
    """Token by token: a private copy counts on from where it begins, as its other copy after it will."""
    found, place, ahead = [], 0, 0
    for i, private in enumerate(d.private):
        goes_on = i and d.private[i - 1] and d.unit[i] == d.unit[i - 1]
        ahead = (ahead + 1 if goes_on else 0) if private else 0
        found.append(place + ahead)
        place += not private
    return found


@settings(max_examples=150, deadline=None)
@given(documents())
def test_integers_and_targets_across_streams_are_right(docs):
    fitting, room = [], np.array(BUDGETS)
    for d in docs:
        used = np.bincount(d.stream, minlength=2)
        if (used <= room).all():
            fitting, room = [*fitting, d], room - used
    batch = pack([fitting], STREAMS, BUDGETS)
    every = {f: np.concatenate([getattr(t, f)[0] for t in batch.values()]) for f in vars(batch["text"])}
    by_position = {f: x[np.argsort(every["position"])] for f, x in every.items()}
    start = 0
    for number, d in enumerate(fitting, 1):
        mine = {f: x[start : start + len(d.token)] for f, x in by_position.items()}
        np.testing.assert_array_equal(mine["token"], d.token)
        assert (mine["segment"] == number).all()
        assert (mine["source"] == d.source).all()
        assert (mine["doc_id"] == d.doc_id).all()
        np.testing.assert_array_equal(mine["rope_position"][:, 0], positions(d))
        np.testing.assert_array_equal(mine["private"], d.private)
        np.testing.assert_array_equal(mine["target"][:-1], d.token[1:])
        np.testing.assert_array_equal(mine["weight"], np.append(d.weight[1:], 0))
        for field in ("unit", "span"):  # the same grouping, under numbers of the row
            ours, theirs = mine[field], getattr(d, field)
            assert ((ours == 0) == (theirs == 0)).all()
            pairs = {(int(a), int(b)) for a, b in zip(ours, theirs, strict=True)}
            assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
        start += len(d.token)
    assert (by_position["segment"][start:] == 0).all()
    for field in ("unit", "span"):
        owners = {}
        for number, segment in zip(by_position[field][:start], by_position["segment"][:start], strict=True):
            if number:
                assert owners.setdefault(int(number), int(segment)) == segment, "two documents share a number"


def test_unit_seeds_do_not_depend_on_packing():
    docs = [document(1, i, [3, 4, 5], [0, 1, 1], unit=[0, 1, 1]) for i in range(3)]
    alone = pack([[docs[2]]], STREAMS, BUDGETS)["image"]
    after = pack([docs], STREAMS, BUDGETS)["image"]
    assert alone.unit_seed[0, 0] == after.unit_seed[0, 4] != 0
    assert after.unit_seed[0, 0] != after.unit_seed[0, 4]
    assert alone.unit[0, 0] != after.unit[0, 4]


def test_a_target_inside_a_bidirectional_span_is_refused():
    bad = document(0, 7, [1, 2, 3], [0, 1, 1], span=[0, 1, 1])
    with pytest.raises(ValueError, match=r"document 7 of source 0 asks for a next-token target inside"):
        pack([[bad]], STREAMS, BUDGETS)


def test_documents_that_do_not_fit_are_refused_with_the_numbers():
    long = document(0, 0, np.arange(60), np.zeros(60))
    with pytest.raises(ValueError, match=r"\[60\s+0\] tokens by stream do not fit the budgets \[40, 56\]"):
        pack([[long]], STREAMS, BUDGETS)


def test_the_oldest_document_is_never_starved():
    """A document that nothing else fits beside still starts the next row."""
    full = document(0, 0, np.arange(96), np.repeat([0, 1], [40, 56]))
    small = [document(0, i, np.arange(9), np.zeros(9)) for i in range(1, 12)]
    plan = plan_of([small[0], full, *small[1:]], lookahead=8)
    rows = whole(plan.next_row() for _ in range(3))
    assert [1] in rows[:2]


def test_the_state_resumes_the_plan():
    rng = np.random.default_rng(0)
    docs = [document(0, i, np.arange(n), rng.integers(0, 2, n)) for i, n in enumerate(rng.integers(2, 30, 40))]
    one, two = plan_of(docs), plan_of(docs)
    for _ in range(5):
        one.next_row()
    two.resume(json.loads(json.dumps(one.state)))
    assert [one.next_row() for _ in range(7)] == [two.next_row() for _ in range(7)]
    assert one.state == two.state
