"""Taxes and trends: planted ones come back, and intervals cover the truth as often as they promise."""

import numpy as np
import pytest
from scipy import stats

from configs import digits
from scaling import competition, runs
from tests.support.reports import page, planted, prose

SOURCES = ("a", "b", "c", "d", "e")


def test_a_mean_has_students_interval():
    values = [0.1, 0.2, 0.4]
    found = competition.mean(values)
    assert found.value == pytest.approx(np.mean(values))
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(interval))
    assert np.isnan(competition.mean([0.1]).low)


def test_a_trend_that_was_planted_comes_back():
    counts = np.array([10, 100, 1000, 10_000, 100_000])
    noise = 0.01 * np.array([1, -1, 0, 1, -1])
    found = competition.trend(counts, 3 - 0.25 * np.log10(counts) + noise)
    assert found.low < -0.25 < found.high
    assert found.slope == pytest.approx(-0.25, abs=0.01)
    assert found.spearman == found.kendall == pytest.approx(-1)
    assert found.p == pytest.approx(2 / 120)  # exact: 2 of 5! orders are as extreme
    scaled = competition.trend(counts / counts.sum(), 3 - 0.25 * np.log10(counts) + noise)
    assert scaled.slope == pytest.approx(found.slope)  # shares may stand for counts


def test_intervals_of_a_trend_cover_the_truth():
    rng = np.random.default_rng(0)
    counts = 10 ** rng.uniform(1, 5, 12)
    covered = 0
    for _ in range(200):
        found = competition.trend(counts, 0.1 * np.log10(counts) + 0.05 * rng.standard_normal(12))
        covered += found.low <= 0.1 <= found.high
    assert covered >= 180


@pytest.mark.parametrize(
    ("counts", "values", "says"),
    [
        ([1, 10], [1, 2], "2 concepts with a value"),
        ([1, 10, 100], [1, 2, np.nan], "2 concepts with a value"),
        ([5, 5, 5], [1, 2, 3], "all concepts were seen equally often"),
        ([0, 10, 100], [1, 2, 3], "never seen in training"),
    ],
)
def test_no_line_is_drawn_through_nothing(counts, values, says):
    with pytest.raises(ValueError, match=says):
        competition.trend(counts, values)


def mixed(root, seed=0, stages=()):
    """A run whose five sources have shares of 1, 2, 4, 8 and 16, and whose text losses fall by 0.3 a tenfold."""
    amounts = dict(zip(SOURCES, (1.0, 2.0, 4.0, 8.0, 16.0), strict=True))
    keys = {"data.sources": dict.fromkeys(SOURCES, "embedded"), "data.shares": amounts, "data.stages": stages}
    losses = {source: -0.3 * np.log10(share) for source, share in amounts.items()}
    return planted(root, "dense", seed, keys=keys, sources={"text": losses})


def test_a_page_tells_how_losses_follow_planted_shares(tmp_path):
    for seed in range(2):
        mixed(tmp_path, seed)
    shown = prose(page(tmp_path)[1])
    assert "Rare and common sources" in shown
    assert "dense text -0.300 [-0.300, -0.300] -1.00 0.017 -1.00 5" in shown
    assert (tmp_path / "frequency.png").read_bytes().startswith(b"\x89PNG")


def test_shares_are_of_all_stages(tmp_path):
    second = dict(step=30, shares=dict.fromkeys(SOURCES, 1.0))
    found = competition.shares(runs.read(mixed(tmp_path, stages=(second,))))
    assert sum(found.values()) == pytest.approx(1)
    assert found["a"] == pytest.approx((1 / 31 + 1 / 5) / 2)


def test_equal_or_few_sources_have_no_trend(tmp_path):
    planted(tmp_path, setting=digits, sources={"text": {"manual": 1, "drawn": 2, "read": 3}})
    assert "Rare and common sources" not in prose(page(tmp_path)[1])
