"""Nearest codes are exact, and samples fair."""

import numpy as np
import pytest

from mot.tokenizers import codebook
from tests.support.codes import random_codes


@pytest.mark.parametrize("features", [3, 258, 259, 3072])  # 258 is the last that float32 adds up exactly
def test_the_nearest_code_is_the_nearest_of_whole_numbers(features):
    rng = np.random.default_rng(0)
    bright = rng.integers(250, 256, (40, features), np.uint8)
    codes, rows = codebook.ordered(np.unique(bright, axis=0)), rng.integers(250, 256, (300, features), np.uint8)
    slow = [((row.astype(int) - codes.astype(int)) ** 2).sum(1).argmin() for row in rows]
    got = codebook.nearest(rows, codes)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, slow)


def test_of_equally_near_codes_the_lowest_id_is_taken():
    codes = np.array([[10], [12], [14]], np.uint8)
    rows = np.array([[0], [11], [13], [255]], np.uint8)
    np.testing.assert_array_equal(codebook.nearest(rows, codes), [0, 0, 1, 2])


def test_ids_do_not_depend_on_what_is_looked_up_together():
    rng = np.random.default_rng(1)
    codes, rows = random_codes(4096, 40), rng.integers(0, 256, (2500, 40), np.uint8)  # in chunks of 1,024
    together = codebook.nearest(rows, codes)
    for step, upto in ((1, 20), (7, 140), (1024, 2500)):
        parts = [codebook.nearest(rows[i : i + step], codes) for i in range(0, upto, step)]
        np.testing.assert_array_equal(np.concatenate(parts), together[:upto])
    assert len(codebook.nearest(rows[:0], codes)) == 0


def test_a_sample_is_bounded_fair_and_the_same_again(monkeypatch):
    monkeypatch.setattr(codebook, "SAMPLE", 1000)
    rows = [np.full((50, 2), i, np.uint8) for i in range(200)]
    kept = codebook.sample(iter(rows), 2)
    assert kept.shape == (1000, 2)
    np.testing.assert_array_equal(kept, codebook.sample(iter(rows), 2))
    early = (kept[:, 0] < 100).mean()
    assert 0.45 < early < 0.55
    assert codebook.sample(iter(rows[:3]), 2).shape == (150, 2)  # all of few
    assert codebook.sample(iter(()), 2).shape == (0, 2)
    monkeypatch.setattr(codebook, "SAMPLED", 200)
    assert codebook.sample(iter(rows), 2).shape == (100, 2)


def test_as_many_ids_as_rows_differ_give_those_rows_and_more_are_refused():
    rows = np.repeat(np.array([[9, 1], [3, 3], [3, 2], [0, 200]], np.uint8), 5, axis=0)
    np.testing.assert_array_equal(codebook.fit(rows, 4, "rows"), [[3, 2], [3, 3], [9, 1], [0, 200]])
    with pytest.raises(ValueError, match=r"5 ids were asked for and only 4 different rows .* ask for at most 4"):
        codebook.fit(rows, 5, "rows")


def test_codes_that_rounding_makes_equal_give_way_to_the_rows_served_worst(monkeypatch):
    class Rounded(codebook.KMeans):
        def fit(self, x, sample_weight):
            self.cluster_centers_ = np.linspace([1, 1], [1.4, 1.4], self.n_clusters)
            return self

    monkeypatch.setattr(codebook, "KMeans", Rounded)
    rows = np.array([[x, y] for x in range(5) for y in range(5)], np.uint8)
    for ids in range(1, 26):
        codes = codebook.fit(rows, ids, "rows")
        codebook.check(codes, 2)
        assert len(codes) == ids
    np.testing.assert_array_equal(codebook.fit(rows, 2, "rows"), [[1, 1], [4, 4]])


def test_k_means_finds_groups():
    rng = np.random.default_rng(2)
    middles = np.array([[20, 20], [200, 30], [90, 240]])
    rows = np.concatenate([rng.integers(m - 5, m + 6, (400, 2)) for m in middles]).astype(np.uint8)
    codes = codebook.fit(rows, 3, "rows")
    assert np.abs(codes.astype(int) - middles).max() <= 1  # in canonical order: by their sums
