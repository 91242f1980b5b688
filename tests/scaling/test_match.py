"""Known answers: planted slopes come back, and intervals cover the truth."""

import numpy as np
import pytest

from scaling import match
from scaling.match import Curve

T = 400
STEPS = np.arange(1, T + 1)


def LOSS(t):
    return 2 + 4 * (t + 5.0) ** -0.5


def planted(slope, noise=0.0, rng=None, cost=1.0):
    """A run that reaches at step slope * t what the reference reaches at step t."""
    loss = LOSS(STEPS / slope)
    if noise:
        loss = loss + noise * rng.standard_normal(T)
    return Curve(STEPS, cost * STEPS, loss)


@pytest.mark.parametrize("slope", [0.2, 0.35, 0.6, 0.9, 1.0])
@pytest.mark.parametrize(("half_life", "within"), [(0.01, 0.01), (0.02, 0.01), (0.04, 0.02)])
def test_planted_slopes_come_back(slope, half_life, within):
    found = match.slope(planted(1.0), planted(slope), half_life)
    assert found.value == pytest.approx(slope, rel=within)
    assert not found.bound


@pytest.mark.parametrize("slope", [0.5, 0.8])
def test_cost_is_what_counts(slope):
    found = match.slope(planted(1.0, cost=3.0), planted(slope, cost=6.0))
    assert found.value == pytest.approx(2 * slope, rel=0.01)


def test_a_run_that_never_gets_there_yields_a_bound():
    found = match.slope(planted(1.0), planted(2.0))
    assert found.bound == ">"
    assert 0.5 < found.value < 2.0
    both = match.over_seeds([(planted(1.0), planted(0.5)), (planted(1.0), planted(2.0))])
    assert both.bound == ">"
    assert both.low == pytest.approx(0.5, rel=0.01)
    assert both.high == np.inf


def test_a_run_below_from_its_first_measurement_on_yields_a_bound_above_zero():
    at = slice(59, None, 60)  # measured every 60 steps, and at the start, where it is below already
    low = Curve(np.array([0, 60, 120]), np.array([0.0, 60, 120]), np.array([2.0, 1.9, 1.8]))
    reference = planted(1.0)
    found = match.slope(reference, low)
    assert found.bound == "<"
    assert 0 < found.value < 1
    late = Curve(*(column[at] for column in planted(0.1)))  # exact in truth, but nobody looked before step 60
    assert match.slope(reference, late).bound == "<"
    assert match.slope(reference, late).value > 0.1
    both = match.over_seeds([(reference, low), (reference, planted(0.5))])
    assert (both.bound, both.low) == ("<", 0)
    assert match.over_seeds([(reference, low), (reference, planted(2.0))]).bound == "?"


def test_intervals_stay_above_zero():
    """Of two seeds that differ threefold, an interval over the slopes themselves reaches from -4 to 6."""
    found = match.over_seeds([(planted(1.0), planted(s)) for s in (0.3, 0.9)])
    assert 0 < found.low < 0.3 < found.value < 0.9 < found.high
    assert found.value == pytest.approx((0.3 * 0.9) ** 0.5, rel=0.01)


def test_a_level_is_reached_between_measurements():
    curve = Curve(np.array([1, 2, 3]), np.array([0.0, 10.0, 30.0]), np.array([3.0, 2.0, 1.0]))
    reached = [match.first_at_or_below(curve, level) for level in (4.0, 3.0, 2.5, 2.0, 1.25, 0.5)]
    assert reached == [0, 0, 5, 10, 25, np.inf]


def test_one_seed_has_no_interval():
    assert np.isnan(match.over_seeds([(planted(1.0), planted(0.5))]).low)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_the_truth(seeds):
    """200 cases: slopes vary with the seed, noise is in every step. The nominal 95 % must be at least 90 %."""
    rng, truth, covered = np.random.default_rng(seeds), 0.5, 0
    for _ in range(200):
        own = truth + 0.05 * rng.standard_normal(seeds)
        pairs = [(planted(1.0, 0.01, rng), planted(s, 0.01, rng)) for s in own]
        found = match.over_seeds(pairs)
        covered += found.low <= truth <= found.high
    assert covered >= 180, covered


def test_smoothing_halves_a_value_s_weight_in_a_half_life_of_the_step():
    curve = Curve(np.array([100, 110, 121]), np.zeros(3), np.array([0.0, 0.0, 1.0]))
    assert match.smooth(curve, 0.1).loss == pytest.approx([0.25 / 1.75, 0.5 / 2, 1 / 1.75])
