"""Points of a search: within their ranges, the same each time, and the first of a longer search."""

import math

import pytest

from configs import search
from mot.config import load, resolve
from mot.config.varied import flat, varies

RANGES = {"optim.lr": search.log(1e-4, 1e-2), "optim.beta2": search.linear(0.9, 0.99)}


@pytest.mark.parametrize("how", search.HOW)
def test_points_lie_in_their_ranges_and_a_longer_search_begins_with_them(how):
    found = search.points(RANGES, 64, how, seed=3)
    assert found == search.points(RANGES, 64, how, seed=3) != search.points(RANGES, 64, how, seed=4)
    assert search.points(RANGES, 5, how, seed=3) == found[:5]
    assert len({tuple(point.values()) for point in found}) == 64
    for point in found:
        assert list(point) == list(RANGES)
        assert all(one.low <= point[key] <= one.high for key, one in RANGES.items())
    below = sum(point["optim.lr"] < 1e-3 for point in found)  # the middle of a logarithmic range
    assert below == 32 if how == "sobol" else 16 < below < 48


def test_sobol_points_fill_each_range_evenly():
    found = search.points(RANGES, 16)
    rates = sorted(math.log(point["optim.lr"] / 1e-4, 100) for point in found)
    assert [math.floor(16 * share) for share in rates] == list(range(16))


def test_values_have_four_digits():
    assert all(
        len(f"{x:.10g}".replace(".", "").lstrip("0").partition("e")[0]) <= 4
        for point in search.points(RANGES, 16)
        for x in point.values()
    )


def test_every_range_that_is_given_is_of_what_one_program_computes_with():
    overrides = {key: str(value) for key, value in search.points(search.RANGES, 1)[0].items()}
    found = flat(resolve(load.read("configs/digits.py:size=smoke", overrides | {"optim.end_lr": "0"})))
    assert all(varies(key) and found[key] == float(value) for key, value in overrides.items())


@pytest.mark.parametrize(
    ("ranges", "count", "how", "says"),
    [
        (RANGES, 0, "sobol", "points=0: must be 1 to 1024"),
        (RANGES, 2000, "sobol", "points=2000: must be 1 to 1024"),
        (RANGES, 4, "grid", "how=grid: no such how; allowed: sobol, random"),
        ({}, 4, "sobol", "no range; give one"),
        ({"optim.lr": search.linear(2, 1)}, 4, "sobol", r"optim.lr: linear\(2, 1\): must go from a lower to a higher"),
        ({"optim.lr": search.log(0, 1)}, 4, "random", r"optim.lr: log\(0, 1\): a logarithmic range begins above 0"),
        ({"optim.lr": search.Range(0, 1, "cubic")}, 4, "random", "scale=cubic: no such scale; allowed: linear, log"),
    ],
)
def test_what_is_no_search_gets_one_message(ranges, count, how, says):
    with pytest.raises(ValueError, match=says):
        search.points(ranges, count, how)
