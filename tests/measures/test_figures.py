"""Intervals against published ones, and against how often they hold what they should."""

import numpy as np
import pytest

from mot.measures import figures


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_newcombes_table(hits, n, low, high):
    """Newcombe (1998), table I, method 3."""
    found = figures.share([1] * hits + [0] * (n - hits), 0.5)
    np.testing.assert_allclose((found.value, found.low, found.high), (hits / n, low, high), atol=6e-5)
    assert (found.chance, found.n) == (0.5, n)


def test_a_bootstrap_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = figures.resampled(rng.exponential(size=80), np.median)
        held += found.low <= np.log(2) <= found.high
    assert 0.9 <= held / 200 <= 0.99
