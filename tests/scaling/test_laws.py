"""Known answers: planted laws come back, and scipy finds no lower Huber loss."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from scaling import laws
from scaling.laws import Law, Points
from tests.support import laws as planted

MODALITIES = {"text": planted.TEXT, "image": planted.IMAGE}


def loss_of(points, law):
    return laws.huber(np.log(law.loss(points.n, points.d) / points.loss), laws.DELTA).sum()


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("width", [2, 4, 16])
def test_planted_exponents_come_back_from_noisy_curves(width, modality):
    """Every run is off by 0.05 %; the sizes lie about the best one of text, whatever is best for the modality."""
    law = MODALITIES[modality]
    for seed in range(10):
        points, *_ = planted.grid(law, width, seed=seed, about=planted.TEXT)
        found = laws.fit(points)
        for name in ("alpha", "beta", "a"):
            assert getattr(found, name) == pytest.approx(getattr(law, name), rel=0.02), name


@pytest.mark.parametrize(
    "law", [planted.TEXT, planted.IMAGE, Law(0.0, 50.0, 900.0, 0.15, 0.3), Law(1, 2e4, 9, 0.9, 0.1)]
)
def test_a_law_without_noise_comes_back_exactly(law):
    points, *_ = planted.grid(law, 8, seeds=1, noise=0)
    found = laws.fit(points)
    assert loss_of(points, found) < 1e-12
    assert found.loss(points.n, points.d) == pytest.approx(points.loss, rel=1e-5)
    assert found[3:] == pytest.approx(law[3:], rel=1e-3)


def test_starts_have_the_best_numbers_for_their_exponents():
    """Variable projection: where a pair of the grid is the law's own, its start is the law."""
    law = Law(1.5, 300.0, 900.0, laws.GRID[9], laws.GRID[10])
    points, *_ = planted.grid(law, 8, noise=0, seeds=1)
    problem, n0, d0 = laws._problem(points, laws.BOTH, laws.DELTA)
    assert laws._law(laws.starts(problem)[0], n0, d0) == pytest.approx(law, rel=1e-6)
    assert (laws.starts(problem) >= problem.low_5).all()


@pytest.mark.parametrize("noise", [3e-4, 3e-3, 2e-2])
def test_scipy_finds_nothing_lower(noise):
    points, *_ = planted.grid(planted.TEXT, 4, noise=noise, seed=7)
    mine = loss_of(points, laws.fit(points))

    def errors(theta):
        e, a, b, alpha, beta = theta
        told = np.exp(e) + np.exp(a - alpha * np.log(points.n)) + np.exp(b - beta * np.log(points.d))
        return np.log(told) - np.log(points.loss)

    start = [*np.log(planted.TEXT[:3]), *planted.TEXT[3:]]
    theirs = least_squares(errors, start, loss="huber", f_scale=laws.DELTA, x_scale="jac", max_nfev=2000, xtol=1e-12)
    assert mine <= theirs.cost * (1 + 1e-4)


def test_outliers_pull_little():
    points, *_ = planted.grid(planted.TEXT, 4, noise=2e-4)
    spoiled = points.loss.copy()
    spoiled[::10] *= 1.05
    found = laws.fit(points._replace(loss=spoiled))
    assert found.alpha == pytest.approx(planted.TEXT.alpha, rel=0.02)
    assert found.beta == pytest.approx(planted.TEXT.beta, rel=0.02)


def test_resamples_are_fitted_as_if_alone():
    points, *_ = planted.grid(planted.TEXT, 4, noise=2e-3, sizes=5)
    weight_RP = np.random.default_rng(0).multinomial(3, [1 / 3] * 3, size=(4, len(points.loss) // 3)).reshape(4, -1)
    found = laws.refit(points, laws.fit(points), weight_RP.astype(float))
    for i, weight_P in enumerate(weight_RP):
        repeated = Points(*(np.repeat(x, weight_P) for x in points[:3]))
        alone = laws.fit(repeated)
        assert found.alpha[i, 0] == pytest.approx(alone.alpha, rel=1e-2)
        assert loss_of(repeated, Law(*(x[i, 0] for x in found))) <= loss_of(repeated, alone) * (1 + 1e-3)


def test_a_law_of_size_alone():
    n = np.geomspace(1e6, 1e9, 6)
    found = laws.fit(Points(n, np.full(6, 1e9), 2 + 100 * n**-0.3), laws.SIZE)
    assert found[:4] == pytest.approx((2, 100, 0, 0.3), rel=1e-3)


def test_a_loss_that_does_not_fall_with_tokens_has_no_term_of_them():
    points, *_ = planted.grid(planted.TEXT, 4, noise=0)
    found = laws.fit(points._replace(loss=2 + 100 * points.n**-0.3))
    assert found.loss(points.n, 1e30) == pytest.approx(found.loss(points.n, points.d), rel=1e-4)


def test_an_interaction_may_have_either_sign():
    points, *_ = planted.grid(planted.TEXT, 8, noise=0, seeds=1)
    for C in (0.3, -0.2):
        added = Law(-C, 80.0, 60.0, 0.3, 0.25)
        joint = points._replace(base=points.loss, loss=points.loss + added.loss(points.n, points.d))
        assert laws.fit(joint, laws.INTERACTION) == pytest.approx(added, rel=1e-2)


def test_the_best_size_grows_as_the_exponents_say():
    assert planted.TEXT.a == pytest.approx(0.28 / 0.62)
    assert planted.TEXT.a + planted.TEXT.b == pytest.approx(1)
