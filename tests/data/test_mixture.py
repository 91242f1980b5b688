"""The endless stream of documents: shares, stages, epochs; and on any number of hosts the same batches."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mot import batches
from mot.config import Stage, resolve
from mot.data.mixture import PERIOD, InMemory, Mixture, Sources, argsort
from mot.data.packing import document
from mot.data.pipeline import Batches
from tests.support import examples

NAMES = ("books", "photos", "talks")
UNITS = np.array([1, 6])


def sources(sizes=(41, 23, 7), seed=0):
    """Text alone, captions and images, and longer text, each token unlike any other of its document."""
    rng, made = np.random.default_rng(seed), []
    for s, size in enumerate(sizes):
        documents = []
        for i in range(size):
            text, image = int(rng.integers(2, 9)), 6 * (s == 1)
            stream = np.repeat([0, 1], [text, image])
            token = np.where(stream == 0, np.arange(len(stream)) % 12, 12 + i % 12)
            documents.append(document(s, i, token, stream, unit=stream))
        made.append(InMemory(NAMES[s], s, tuple(documents), UNITS))
    return Sources(tuple(made), np.zeros(24, int), "digest")


def data(**changes):
    tree = examples.tree()
    tree.data.update(batch=8, lookahead=24)
    tree.data.sources = {name: "embedded" for name in NAMES}
    tree.data.shares = {"books": 3.0, "photos": 2.0, "talks": 1.0}
    c = resolve(tree)
    return dataclasses.replace(c, data=dataclasses.replace(c.data, **changes))


def stream(**changes):
    return Mixture(sources(), data(**changes).data, 5, ("text", "image"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=3, max_size=3), st.integers(0, 10**6))
def test_shares_are_honoured_within_one_percent_in_any_ten_thousand_documents(shares, first):
    mixture = stream(shares=dict(zip(NAMES, shares, strict=True)))
    counts = np.bincount([mixture.place(g)[0] for g in range(first, first + 10_000)], minlength=3)
    assert np.abs(counts / 10_000 - np.array(shares) / sum(shares)).max() < 0.01
    assert len(mixture.periods[0].source) <= PERIOD + 3


def test_shares_may_count_a_modalitys_tokens():
    for per, streams in (("text", [0]), ("tokens", [0, 1]), ("image", [1])):
        shares = {"books": 1.0, "photos": 1.0} if per != "image" else {"photos": 1.0}
        mixture = stream(shares=shares, per=per)
        taken = np.zeros(3)
        for g in range(5000):
            taken[mixture.place(g)[0]] += mixture.lengths(g)[streams].sum()
        expected = np.array([shares.get(name, 0) for name in NAMES]) / sum(shares.values())
        assert np.abs(taken / taken.sum() - expected).max() < 0.01
    with pytest.raises(ValueError, match=r"source books has a share and no image tokens; remove it from data.shares"):
        stream(shares={"books": 1.0, "photos": 1.0}, per="image")


def test_each_epoch_holds_each_document_once_also_across_stages():
    mixture = stream(stages=(Stage(2, {"photos": 1.0, "talks": 1.0}), Stage(5, {"books": 1.0, "talks": 2.0})))
    mixture.enter(0, 0)
    mixture.enter(2, 100)
    mixture.enter(3, 150)
    mixture.enter(7, 333)
    assert mixture.starts == [0, 100, 333]
    places = [mixture.place(g) for g in range(900)]
    for s, size in enumerate((41, 23, 7)):
        mine = [i for source, i in places if source == s]
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))
        assert mine[:size] != mine[size : 2 * size], "another order in each epoch"

    def in_stage(a, b):
        return np.bincount([s for s, _ in places[a:b]], minlength=3) / (b - a)

    assert np.abs(in_stage(0, 100) - np.array([3, 2, 1]) / 6).max() < 0.02
    assert np.abs(in_stage(100, 333) - np.array([0, 1, 1]) / 2).max() < 0.02
    assert np.abs(in_stage(333, 900) - np.array([1, 0, 2]) / 3).max() < 0.02


def test_a_stage_begins_with_the_first_row_of_its_step():
    c = data(stages=(Stage(3, {"talks": 1.0}),), lookahead=1)
    made = Batches(sources(), c, 0, 10)
    seen = [{source for source, _ in documents_of(made[n].batch)} for n in range(6)]
    assert seen[0] == {0, 1, 2}
    assert seen[4] == seen[5] == {2}
    before, after = made[2].state, made[3].state
    assert before["starts"] == [0]
    assert after["starts"] == [0, before["position"]]


def documents_of(batch):
    """Source and number of each document of each row."""
    found = {}
    for tokens in batch.values():
        for b, i in zip(*np.nonzero(tokens.segment), strict=True):
            found[b, tokens.segment[b, i]] = int(tokens.source[b, i]), int(tokens.doc_id[b, i])
    return list(found.values())


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_any_number_of_hosts_makes_the_same_global_batches_and_resumes_anywhere(hosts):
    c = data(stages=(Stage(4, {"books": 1.0, "photos": 5.0}),))
    whole = Batches(sources(), c, 0, 30)
    reference = [whole[n] for n in range(14)]
    rng = np.random.default_rng(hosts)
    state, n, ids = None, 0, []
    while n < 14:  # some batches, then every process is started anew, as many as there are now
        count = int(rng.choice([h for h in (1, 2, 4, 8) if h <= hosts]))
        processes = [Batches(sources(), c, 0, 30, state, p, count) for p in range(count)]
        for _ in range(int(rng.integers(1, 5))):
            if n == 14:
                break
            parts = [process[n] for process in processes]
            joined = jax.tree.map(lambda *rows: np.concatenate(rows), *(part.batch for part in parts))
            jax.tree.map(np.testing.assert_array_equal, joined, reference[n].batch)
            assert all(part.state == reference[n].state for part in parts)
            state, n = json.loads(json.dumps(parts[0].state)), n + 1
            assert len(json.dumps(state)) < 10_000
            ids += documents_of(joined)
    # What was placed or waits is the stream's beginning: none twice, none missing.
    mixture = Mixture(sources(), c.data, 0, ("text", "image"))
    mixture.starts = state["starts"]
    waiting = [mixture.place(g) for g, _ in state["waiting"]]
    assert sorted(ids + waiting) == sorted(mixture.place(g) for g in range(state["position"]))


def test_batches_of_several_processes_must_divide():
    with pytest.raises(ValueError, match=r"data.batch: 8 rows do not divide among 3 processes; make it a multiple"):
        Batches(sources(), data(), 0, 9, None, 0, 3)


def test_a_state_of_the_longest_lookahead_is_under_ten_kilobytes():
    c = data(lookahead=512)
    made = Batches(sources((1000, 900, 800)), c, 0, 5)
    made.plan.position = made.state["position"] = 10**9
    made._begin()
    made.plan.position = 10**9
    made.plan.next_row()
    state = made.plan.state | {"starts": [0]}
    assert len(state["waiting"]) > 480
    assert len(json.dumps(state)) < 10_000


def test_every_batch_keeps_the_invariants():
    made = Batches(sources(), data(), 0, 6)
    for n in range(6):
        batches.check(made[n].batch)


@pytest.mark.parametrize("shift", [0, 50])  # numbers that differ in their low bits alone
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=300))
@settings(max_examples=60, deadline=None)
def test_numbers_are_sorted_as_numpy_sorts_them(shift, numbers):
    values = np.array(numbers, np.uint64) >> np.uint64(shift)
    order = argsort(values)
    assert order.dtype == np.uint32
    np.testing.assert_array_equal(order, values.argsort(kind="stable"))
