"""Distances whose value is known, and the definitions by other means: scipy's matrix root, a loop over pairs."""

import numpy as np
import pytest
from scipy import linalg

from mot.measures import distances
from mot.measures.distances import Features


def gaussian(mean, root, n, seed):
    """Samples with exactly this mean and the covariance root @ root.T."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ root.T + mean


def test_two_gaussians_lie_as_far_apart_as_the_closed_form_says():
    """Of variances along the same axes: |m1 - m2|^2 + sum (s1 - s2)^2."""
    s1, s2, m = np.array([1.0, 2, 3]), np.array([2.0, 0.5, 3]), np.array([1.0, -2, 0])
    features = Features(gaussian(0 * m, np.diag(s1), 50, 0), gaussian(m, np.diag(s2), 70, 1))
    assert distances.frechet(features) == pytest.approx(5 + 1 + 2.25, rel=1e-9)
    assert distances.frechet(Features(features.real, features.real)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n", [40, 8])  # and of fewer samples than features, whose covariances are singular
def test_frechets_distance_is_that_of_a_matrix_root(n):
    rng = np.random.default_rng(n)
    mix = rng.standard_normal((12, 12))
    x, y = rng.standard_normal((n, 12)) @ mix, rng.standard_normal((n + 5, 12)) + 0.3
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    eps = 1e-10 * np.eye(12)
    root = np.real(linalg.sqrtm((s1 + eps) @ (s2 + eps)))
    want = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    assert distances.frechet(Features(x, y)) == pytest.approx(want, rel=1e-4)


def test_one_feature_is_enough():
    assert distances.frechet(Features(np.array([[0.0], [2]]), np.array([[1.0], [3]]))) == pytest.approx(1)


def test_the_kernel_distance_is_a_sum_over_pairs():
    x, y = np.random.default_rng(0).standard_normal((2, 6, 4))

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 4 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    want = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / 30
    want -= 2 * sum(k(x[i], y[j]) for i, j in pairs) / 36
    assert distances.kernel(Features(x, y), subsets=1, size=6)[0] == pytest.approx(want)


def test_equal_distributions_have_no_kernel_distance_in_the_mean():
    rng = np.random.default_rng(0)
    estimates = [distances.kernel(Features(*rng.standard_normal((2, 60, 5))), 1, 60)[0] for _ in range(200)]
    error = np.std(estimates) / 200**0.5
    assert abs(np.mean(estimates)) < 3 * error
    assert min(estimates) < 0
    far = Features(*(rng.standard_normal((2, 60, 5)) + np.array([0, 1])[:, None, None]))
    assert distances.kernel(far, 1, 60)[0] > 20 * np.std(estimates)


def test_subsets_are_of_half_the_smaller_set_where_it_is_small():
    rng = np.random.default_rng(0)
    features = Features(rng.standard_normal((30, 3)), rng.standard_normal((50, 3)))
    np.testing.assert_array_equal(distances.kernel(features), distances.kernel(features, 100, 15))
    found = distances.figures(features)
    assert found["kernel"].low < found["kernel"].value < found["kernel"].high
    assert found["frechet"].n == found["kernel"].n == 30


@pytest.mark.parametrize(
    ("real", "generated", "says"),
    [
        (np.zeros(4), np.zeros((4, 2)), r"real is float64 \[4\]; numbers \[N, D\] are needed"),
        (np.zeros((4, 2)), np.full((4, 2), "a"), "generated is <U1"),
        (np.zeros((4, 2)), np.zeros((1, 2)), "generated has 1 rows; at least 2"),
        (np.full((4, 2), np.nan), np.zeros((4, 2)), "real holds what is not finite"),
        (np.zeros((4, 0)), np.zeros((4, 0)), r"real is \[4, 0\]; a sample needs one feature or more"),
        (np.zeros((4, 2)), np.full((4, 2), -1e200), "generated holds 1e\\+200; at most 1e\\+40 is allowed"),
        (np.zeros((4, 2)), np.zeros((4, 3)), "have 2 and 3 features"),
    ],
)
def test_what_is_no_features_is_told(real, generated, says):
    with pytest.raises(ValueError, match=f"a.npz: .*{says}"):
        distances.checked(real, generated, "a.npz")
