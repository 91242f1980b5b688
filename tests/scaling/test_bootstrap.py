"""Intervals cover the truth, in laws and in means, and say why there is none."""

import numpy as np
import pytest

from scaling import bootstrap, fit
from scaling.fit import Measured
from tests.support import laws as planted

CELLS = np.repeat(["a", "b", "c"], 4)


def test_runs_are_drawn_within_their_cells():
    draws = bootstrap.draws(CELLS, np.ones(12), 50)
    assert draws.weight_RP.shape == (50, 12)
    for cell in "abc":
        assert np.allclose(draws.weight_RP[:, cell == CELLS].sum(1), 4)
    assert len(np.unique(draws.weight_RP, axis=0)) == 50


def test_the_spread_of_a_mean_is_its_standard_error():
    """Of n runs the mean's variance is s^2 / n with s^2 over n - 1, for two runs as for many."""
    for n in (2, 3, 10):
        loss = np.exp(np.random.default_rng(n).standard_normal(n))
        draws = bootstrap.draws(np.zeros(n), loss, 20_000)
        assert draws.mean_RC.std() == pytest.approx(np.log(loss).std(ddof=1) / n**0.5, rel=0.02)


def test_a_number_is_as_free_as_the_runs_that_it_hangs_on():
    loss = np.exp(0.01 * np.random.default_rng(0).standard_normal(12))
    draws = bootstrap.draws(CELLS, loss)
    assert bootstrap.freedom(draws.mean_RC[:, 0], draws) == pytest.approx(3, rel=0.01)
    alike = draws.mean_RC / draws.mean_RC.std(0)
    assert bootstrap.freedom(alike.sum(1), draws) == pytest.approx(9, rel=0.05)


def test_one_seed_has_no_interval():
    assert bootstrap.lacking(CELLS) == ""
    assert bootstrap.lacking(np.arange(3)).startswith("one seed: no interval")
    assert bootstrap.lacking(np.array([0, 0, 1])).startswith("one seed in 1 of 2 cells: no interval")


def test_noise_is_pooled_over_cells():
    rng = np.random.default_rng(0)
    cell = np.repeat(np.arange(2000), 2)
    assert bootstrap.noise(cell, np.exp(cell / 1000 + 0.02 * rng.standard_normal(4000))) == pytest.approx(
        0.02, rel=0.05
    )
    assert np.isnan(bootstrap.noise(np.arange(3), np.ones(3)))


def covered(cases, sizes=5, seeds=3, noise=2e-3, first=0):
    """How often intervals of alpha, beta, a and of a predicted run hold the truth."""
    law, hits = planted.TEXT, dict.fromkeys(("alpha", "beta", "a", "run"), 0)
    for case in range(first, first + cases):
        points, C, cell = planted.grid(law, 4, sizes, seeds, noise, case, budgets=planted.BUDGETS[:4])
        names = np.array([str(i) for i in range(len(C))])
        found = fit.fitted(Measured(points, C, cell, names, np.full(len(C), "fit")))
        for name in ("alpha", "beta", "a"):
            low, high = found.intervals[name]
            hits[name] += low <= getattr(law, name) <= high
        n, d = points.n.max() * 4, points.d.max() * 4
        run = law.loss(n, d) * np.exp(noise * np.random.default_rng(10**6 + case).standard_normal())
        low, high = fit.predict(found, n, d).interval
        hits["run"] += low <= run <= high
    return hits


def test_intervals_of_exponents_cover_the_truth():
    """As below, in 30 cases, of which a nominal 95 % misses 5 or more once in fifty times."""
    assert min(covered(30).values()) >= 26


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "noise"), [(2, 1e-3), (3, 2e-3), (5, 5e-3)])
def test_intervals_of_exponents_cover_the_truth_in_200_cases(seeds, noise):
    hits = covered(200, seeds=seeds, noise=noise)
    print(seeds, noise, hits)
    assert min(hits.values()) >= 180, hits
