"""FAST: the transform, the order of its coefficients, what comes back, and what cannot be inverted."""

import dataclasses

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.tokenizers import archive, fast
from mot.tokenizers.fast import FastTokenizer, fit_fast

T, P, SCALE = 12, 3, 10


def chunks(n, seed=0, dtype=np.float32):
    """Smooth paths of three joints of unlike ranges."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((n, T, P)).cumsum(1) * [1.0, 20.0, 0.01] + [0, 100, 0]
    return list(steps.astype(dtype))


@pytest.fixture(scope="module")
def fitted():
    return fit_fast(chunks(300), 0, SCALE, 400, False)


def by_hand(chunk, tokenizer):
    """The paper's steps one by one, the transform as its sum: the coefficients [T, P]."""
    unit = (np.asarray(chunk, np.float64) - tokenizer.low_P) / (tokenizer.high_P - tokenizer.low_P) * 2 - 1
    found = np.zeros((T, P))
    for k in range(T):
        for t in range(T):
            found[k] += unit[t] * np.cos(np.pi * (2 * t + 1) * k / (2 * T)) * np.sqrt((1 if k == 0 else 2) / T)
    return found * tokenizer.scale


def test_coefficients_are_the_orthonormal_cosine_transform(fitted):
    chunk = chunks(1, 5)[0]
    exact = by_hand(chunk, fitted)
    unit = (chunk - fitted.low_P) / (fitted.high_P - fitted.low_P) * 2 - 1
    np.testing.assert_allclose(exact, scipy.fft.dct(unit, axis=0, norm="ortho") * SCALE, atol=1e-9)
    assert (fitted.coefficients(chunk) == np.rint(exact)).all()


def test_quantiles_become_minus_1_and_1(fitted):
    every = np.concatenate(chunks(300)).astype(np.float64)
    np.testing.assert_allclose(fitted.low_P, np.quantile(every, 0.01, axis=0))
    np.testing.assert_allclose(fitted.high_P, np.quantile(every, 0.99, axis=0))


def test_slow_coefficients_of_all_dimensions_come_first(fitted):
    """As the published processor flattens [time, dimension]: a chunk that stands still is its first P letters."""
    still = np.tile(fitted.high_P, (T, 1))
    letters = [letter for i in fitted.encode(still) for letter in fitted._letters[i]]
    assert len(letters) == T * P
    assert (np.array(letters[:P]) + fitted.least == round(np.sqrt(T) * SCALE)).all()
    assert (np.array(letters[P:]) + fitted.least == 0).all()


def test_what_comes_back_is_as_far_off_as_rounding(fitted):
    for chunk in chunks(20, 7):
        ids = fitted.encode(chunk)
        assert ids.dtype == np.int32
        assert 0 < len(ids) < T * P, "pairs are joined"
        off = (fitted.decode(ids) - chunk) / (fitted.high_P - fitted.low_P) * 2
        assert np.sqrt((off**2).sum(0)).max() <= 0.5 / SCALE * np.sqrt(T)  # the transform keeps lengths
        again = fitted.coefficients(fitted.decode(ids))
        assert (again == fitted.coefficients(chunk)).all()


@given(data=st.data(), scale=st.sampled_from([1, 3, 25]), ids=st.integers(300, 500))
@settings(max_examples=15, deadline=None)
def test_ids_give_every_coefficient_back(data, scale, ids):
    seed = data.draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    t, p = data.draw(st.integers(2, 9)), data.draw(st.integers(1, 4))
    found = list(rng.uniform(-1, 1, (20, t, p)))
    tokenizer = fit_fast(found, 0, scale, ids, False, fewer=True)
    assert tokenizer.ids <= ids
    for chunk in found:
        got = tokenizer.coefficients(tokenizer.decode(tokenizer.encode(chunk)))
        assert (got == tokenizer.coefficients(chunk)).all()


def test_ids_that_are_no_whole_chunk_are_completed_with_zeros(fitted):
    chunk = chunks(1, 3)[0]
    wanted = fitted.coefficients(chunk).ravel()
    letters = (wanted - fitted.least).astype(int)

    def coefficients(ids):
        return fitted.coefficients(fitted.decode(np.array(ids, int))).ravel()

    assert (coefficients(letters[:7]) == np.append(wanted[:7], np.zeros(T * P - 7))).all()
    assert (coefficients([*letters, *letters]) == wanted).all()
    assert (coefficients([]) == 0).all()


@pytest.mark.parametrize(
    ("chunk", "why"),
    [
        (np.zeros((T + 1, P)), r"float64 \[13, 3\], and FAST needs numbers \[12, P\]: chunks of one length"),
        (np.zeros((T, P + 1)), "of 4 features, where the first ones had 3"),
        (np.full((T, P), 1e4), "has the coefficient .*, and FAST has ids for -.* times as far; bring all to one unit"),
        (np.full((T, P), np.nan), "not finite"),
    ],
)
def test_chunks_that_cannot_be_inverted_are_refused(fitted, chunk, why):
    with pytest.raises(ValueError, match=why):
        fitted.encode(chunk)


@pytest.mark.parametrize("ids", [[-1], [400], [0.5]])
def test_ids_that_stand_for_nothing_are_refused(fitted, ids):
    with pytest.raises(ValueError, match="ids"):
        fitted.decode(ids)


def test_too_few_ids_for_the_coefficients_are_refused():
    with pytest.raises(ValueError, match="different coefficients, which need an id each, and 20 ids; ask for more"):
        fit_fast(chunks(50), 0, SCALE, 20, False)


def test_a_dimension_that_never_moves_is_kept():
    still = [np.column_stack([chunk[:, :2], np.full(T, 7.0)]) for chunk in chunks(40)]
    tokenizer = fit_fast(still, 0, SCALE, 400, False, fewer=True)
    np.testing.assert_allclose(tokenizer.decode(tokenizer.encode(still[0]))[:, 2], 7.0, atol=0.1)


def test_a_file_gives_the_same_tokenizer(fitted):
    again = archive.from_bytes(FastTokenizer, archive.to_bytes(fitted))
    for chunk in chunks(5, 11):
        assert (again.encode(chunk) == fitted.encode(chunk)).all()
    with pytest.raises(ValueError, match="joins ids that come after"):
        dataclasses.replace(fitted, merges=fitted.merges + 400)


def test_equal_chunks_give_equal_bytes(fitted):
    assert archive.to_bytes(fit_fast(chunks(300), 0, SCALE, 400, False)) == archive.to_bytes(fitted)


def test_a_pens_path_comes_back_as_strokes():
    rng = np.random.default_rng(0)

    def path():
        line = np.linspace(0, 1, 30)[:, None] * rng.uniform(-50, 50, (1, 2)) + rng.uniform(0, 100, (1, 2))
        return np.column_stack([line, np.arange(30) % 15 == 14])

    tokenizer = fit_fast([path() for _ in range(50)], 16, SCALE, 600, True, fewer=True)
    drawn = path()
    strokes = tokenizer.decode(tokenizer.encode(drawn))
    assert len(strokes) == 2
    assert np.abs(strokes[0][0] - drawn[0, :2]).max() < 15
    assert fast.WIDTH >= tokenizer.width == 3
