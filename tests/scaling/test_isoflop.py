"""Best sizes: those of a planted law come back where a parabola's do not, and none is told outside the grid."""

import numpy as np
import pytest

from scaling import bootstrap, isoflop, laws
from scaling.laws import Law, Points
from tests.support import laws as planted

UNLIKE = Law(1.0, 120.0, 40_000.0, 0.3, 0.55)


def of(law, width, about=None, noise=5e-4, seeds=3, **more):
    points, C, _ = planted.grid(law, width, noise=noise, seeds=seeds, about=about, **more)
    return isoflop.budgets(points, C, laws.fit(points))


@pytest.mark.parametrize("law", [planted.TEXT, planted.IMAGE, UNLIKE])
@pytest.mark.parametrize("width", [2, 4, 16])
def test_planted_best_sizes_come_back(law, width):
    found = of(law, width)
    assert len(found) == len(planted.BUDGETS)
    assert isoflop.growth(found) == pytest.approx(law.a, rel=0.02)
    if width > 2:
        for one, C in zip(found, planted.BUDGETS, strict=True):
            assert one.n == pytest.approx(isoflop.best(law, C / 6, 1.0), rel=0.05)
            assert 6 * one.n * one.d == pytest.approx(C, rel=1e-6)
            assert one.loss == pytest.approx(law.loss(one.n, one.d), rel=2e-3)


def test_the_best_size_is_the_least_loss_along_the_budget():
    n = np.geomspace(1e6, 1e10, 100_001)
    for fall in (1.0, 0.8):
        least = n[np.argmin(UNLIKE.loss(n, 1e17 * n**-fall))]
        assert isoflop.best(UNLIKE, 1e17, fall) == pytest.approx(least, rel=1e-3)


def test_a_parabola_is_biased_where_the_exponents_differ():
    """2603.22339: without any noise, on sizes that lie evenly about the best one; the law's sizes are not."""
    found = of(UNLIKE, 16, noise=0, seeds=1)
    law, parabola = (np.array([getattr(one, which) for one in found]) for which in ("n", "parabola"))
    best = isoflop.best(UNLIKE, planted.BUDGETS / 6, 1.0)
    assert law == pytest.approx(best, rel=1e-3)
    assert (np.abs(parabola / best - 1) > 0.1).all()


def test_a_best_size_outside_the_grid_is_not_told():
    for away, side in ((100, "below"), (0.01, "above")):
        about = UNLIKE._replace(A=UNLIKE.A * away)  # whose best size is larger, or smaller
        for one in of(UNLIKE, 2, about=about):
            assert np.isnan(one.n)
            assert np.isnan(one.parabola)
            assert f"the best size lies {side} those trained" in one.why
            assert one.parabola_why


def test_a_line_of_losses_has_no_parabola():
    n = np.geomspace(1e6, 1e8, 5)
    assert isoflop.by_parabola(Points(n, 1e15 / n, 5 - 0.1 * np.log(n)))[1]


def test_budgets_are_told_apart_and_few_sizes_are_none():
    points, C, _ = planted.grid(planted.TEXT, 4, sizes=2)
    assert isoflop.budgets(points, C, planted.TEXT) == []
    points, C, _ = planted.grid(planted.TEXT, 4, sizes=3)
    almost = C * np.random.default_rng(0).uniform(0.98, 1.02, len(C))
    found = isoflop.budgets(points, almost, planted.TEXT)
    assert [one.flops for one in found] == pytest.approx(planted.BUDGETS, rel=0.02)
    assert np.isnan(isoflop.growth(found[:1]))


def test_best_sizes_have_intervals():
    points, C, cell = planted.grid(planted.TEXT, 4, noise=2e-3)
    draws = bootstrap.draws(cell, points.loss)
    law = laws.fit(points)
    for one in isoflop.budgets(points, C, law, laws.refit(points, law, draws.weight_RP), draws):
        assert one.interval.low < one.n < one.interval.high < 3 * one.interval.low
