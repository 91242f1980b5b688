"""Best-of-n is exact: it equals an enumeration of all draws."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling import best


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=9))
def test_it_equals_all_draws(losses):
    found = best.best_of(losses)
    for n in range(1, len(losses) + 1):
        drawn = np.sort([min(draw) for draw in itertools.combinations(losses, n)])
        assert found.n[n - 1] == n
        assert found.mean[n - 1] == pytest.approx(drawn.mean(), abs=1e-9)
        for q, value in zip(best.QUANTILES, (found.low[n - 1], found.high[n - 1]), strict=True):
            assert value == drawn[int(np.ceil(q * len(drawn) - 1e-9)) - 1]


def test_chances_of_a_long_search_sum_to_one():
    for total, n in ((1024, 1), (1024, 512), (1024, 1024), (1, 1)):
        assert best.chances(total, n).sum() == pytest.approx(1, abs=1e-9)
    assert best.chances(4, 4).tolist() == [1, 0, 0, 0]


def test_a_run_that_diverged_counts_as_the_worst_that_did_not():
    assert best.best_of([1.0, np.inf, 2.0]).mean[0] == pytest.approx(5 / 3)
    assert best.best_of([1.0, np.nan, 2.0]).mean[2] == 1
    with pytest.raises(ValueError, match="no loss is finite"):
        best.best_of([np.inf])
