"""Where RoPE takes a document's tokens to lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mot import batches
from mot.config import ConfigError
from mot.data import packing, positions
from mot.data.positions import ONE_AXIS, Rule
from tests.oracles import reference
from tests.support import vectors

THREE = Rule(3, (True, True, True), steps=(1.0, 1.0, 1.0), gaps=(0, 0, 0))


def written(*parts):
    """A document of stretches (stream, shape, private): (n,) is text, or a unit without rows."""
    token, stream, unit, private, place = [], [], [], [], []
    number = 0
    for s, shape, is_private in parts:
        n = int(np.prod(shape))
        number += bool(s) and not (private and private[-1])  # a clean copy has its noised one's number
        token += [0] * n
        stream += [s] * n
        unit += [number * bool(s)] * n
        private += [is_private] * n
        place.append(positions.places(shape, n))
    return packing.document(0, 0, token, stream, unit=unit, private=private, place=np.concatenate(place))


def test_a_document_worked_by_hand():
    """Two words, a picture of 2 x 3, a word, a clip of 2 frames of 1 x 2, a word."""
    d = written((0, (2,), False), (1, (2, 3), False), (0, (1,), False), (1, (2, 1, 2), False), (0, (1,), False))
    time, row, column = positions.of(d, THREE).T.tolist()
    assert time == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 7, 7, 8]
    assert row == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 6, 6, 8]
    assert column == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 6, 7, 8]
    np.testing.assert_array_equal(positions.of(d, ONE_AXIS)[:, 0], np.arange(14))


def test_a_unit_lies_in_one_place_where_pairs_turn_by_time_alone():
    """BAGEL's: all tokens of an image have one position, and text goes on at the next."""
    d = written((0, (2,), False), (1, (2, 3), False), (0, (2,), False))
    time = positions.of(d, THREE._replace(used=(True, False, False)))[:, 0]
    assert time.tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 3, 4]


def test_a_gap_and_rows_from_0_before_what_is_generated():
    """Cosmos 3's: 100 positions of time are left free, rows and columns count from 0."""
    d = written((0, (2,), False), (1, (2, 2), False), (0, (1,), False))
    found = positions.of(d, THREE._replace(gaps=(0, 100, 0), reset=True)).tolist()
    assert found == [[0] * 3, [1] * 3, [102, 0, 0], [102, 0, 1], [102, 1, 0], [102, 1, 1], [103] * 3]
    one = positions.of(d, ONE_AXIS._replace(gaps=(0, 100, 0)))[:, 0]
    assert one.tolist() == [0, 1, 102, 103, 104, 105, 106]


def test_seconds_make_streams_of_other_rates_meet():
    """25 positions a second: sound of 50 tokens a second takes half of one each, frames of 5 a second five."""
    c = vectors.tree(rope_sections=(2, 1, 1), rope_per_second=25.0)
    c.streams.sound.rope_seconds, c.streams.image.rope_seconds = 1 / 50, 1 / 5
    rule = positions.rule(vectors.resolve(c))
    sound = positions.of(written((0, (1,), False), (2, (5,), False), (0, (1,), False)), rule)
    np.testing.assert_array_equal(sound.T, [[0, 1, 1, 2, 2, 3, 4]] * 3)
    clip = positions.of(written((0, (1,), False), (1, (3, 1, 1), False), (0, (1,), False)), rule)
    np.testing.assert_array_equal(clip[:, 0], [0, 1, 6, 11, 12])


PARTS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.one_of(
            st.tuples(st.integers(1, 5)),
            st.tuples(st.integers(1, 3), st.integers(1, 4)),
            st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3)),
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(
    PARTS,
    st.tuples(st.sampled_from([1.0, 0.5, 0.04, 2.5]), st.integers(0, 9)),
    st.booleans(),
    st.lists(st.booleans(), min_size=2, max_size=2),
)
def test_positions_are_those_of_the_oracle(parts, how, reset, used):
    whole = []
    for s, shape, both in parts:
        shape = shape if s else (int(np.prod(shape)),)
        whole += [(s, shape, True)] * (s > 0 and both) + [(s, shape, False)]
    d = written(*whole)
    step, gap = how
    rule = THREE._replace(steps=(1.0, step, 1.0), gaps=(0, gap, 2), reset=reset, used=(True, *used))
    found = positions.of(d, rule)
    by_token = [np.array(x)[d.stream] for x in (rule.gaps, rule.steps)]
    want = reference.rope_positions(d.unit, d.private, d.place, *by_token, reset, rule.used)
    np.testing.assert_array_equal(found, want)
    assert found.dtype == np.int32
    for copy in np.flatnonzero(np.diff(d.private.astype(int), append=0) == -1):  # the last token of each noised copy
        n = (d.private & (d.unit == d.unit[copy])).sum()
        np.testing.assert_array_equal(found[copy + 1 - n : copy + 1], found[copy + 1 : copy + 1 + n])
    text = found[d.unit == 0]
    assert (text == text[:, :1]).all(), "a word has one integer on all axes"
    assert (np.diff(text[:, 0]) > 0).all()


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.tuples(*[st.integers(2, 4)] * 3)))
def test_places_tell_the_shape(shape):
    place = positions.places(shape, int(np.prod(shape)))
    assert len(np.unique(place, axis=0)) == len(place)
    assert positions.shape_of(place) == (shape if np.prod(shape) > 1 else (1,))
    assert positions.shape_of(positions.places((), 5)) == (5,)


def test_a_batch_has_an_integer_for_each_axis_and_places_where_tables_read_them():
    plain, placed = vectors.make(), vectors.make(table=2, rope_sections=(2, 1, 1))
    for c, A, columns in ((plain, 1, 0), (placed, 3, 2)):
        batch = vectors.batch(c)
        batches.check(batch)
        for name, tokens in batches.abstract(c).items():
            mine = {f: x.shape[2:] for f, x in vars(batch[name]).items()}
            assert mine == {f: x.shape[2:] for f, x in vars(tokens).items()}
            assert (mine["rope_position"], mine["place"]) == ((A,), (columns,))
    image = vectors.batch(placed)["image"]
    real = image.segment[0] != 0
    want = positions.places((2, 2), 4)[:, 1:]
    np.testing.assert_array_equal(image.place[0][real].reshape(-1, 4, 2), np.tile(want, (real.sum() // 4, 1, 1)))


def changed(**streams):
    return lambda c: [c.streams[name].update(fields) for name, fields in streams.items()]


@pytest.mark.parametrize(
    ("model", "change", "says"),
    [
        (dict(rope_sections=(2, 1)), {}, r"model.rope_sections: \(2, 1\); must be \(\) or three numbers"),
        (dict(rope_sections=(2, 2, 2)), {}, r"fill half of model.head_size = 8: 4 in all"),
        (dict(rope_sections=(5, -1, 0)), {}, "three numbers of 0 or more"),
        (dict(rope_interleaved=True), {}, "model.rope_interleaved: True, but model.rope_sections is"),
        (dict(rope_reset=True, rope_sections=(0, 2, 2)), {}, "has no time"),
        (dict(rope_per_second=2.0), {}, "model.rope_per_second: 2.0, but no stream has rope_seconds"),
        ({}, dict(sound=dict(rope_seconds=0.5)), "streams.sound.rope_seconds: 0.5, but model.rope_per_second is 0"),
        ({}, dict(text=dict(place_table=4)), "streams.text.place_table: 4, but its tokens are ids"),
        (dict(rope_sections=(2, "a", 1)), {}, r"model.rope_sections\[1\]: 'a' is str; must be of type int"),
        (dict(rope_sections=3), {}, "model.rope_sections: 3 is int; must be a tuple of int"),
    ],
)
def test_what_cannot_be_is_told(model, change, says):
    tree = vectors.tree().unlock()
    for key, value in model.items():
        del tree.model[key]
        tree.model[key] = value
    changed(**change)(tree)
    with pytest.raises(ConfigError, match=says):
        vectors.resolve(tree)


def test_a_batch_of_some_streams_keeps_their_own_steps():
    rule = THREE._replace(steps=(1.0, 0.5, 2.0), gaps=(0, 3, 4))
    assert positions.of_streams(rule, [0, 2]) == rule._replace(steps=(1.0, 2.0), gaps=(0, 4))
