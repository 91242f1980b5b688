"""How far generated samples lie from real ones, by the features of both: Frechet's distance and the kernel distance."""

from typing import NamedTuple

import numpy as np

from mot.measures.figures import Figure

SUBSETS, SUBSET = 100, 1000  # of the kernel distance: as many, of so many samples each (1801.01401)
SEED = 2020
MOST = 1e40  # of a feature's size: the cubic kernel takes its sixth power, which a float64 must hold


class Features(NamedTuple):
    """float64 `[n, D]` and `[m, D]`."""

    real: np.ndarray
    generated: np.ndarray


def checked(real, generated, what: str) -> Features:
    """Both as float64; raises `ValueError` that says of `what` they are no features of two sets."""
    found = []
    for name, x in (("real", real), ("generated", generated)):
        x = np.asarray(x)
        if x.dtype.kind not in "fiu" or x.ndim != 2:
            raise ValueError(f"{what}: {name} is {x.dtype} {list(x.shape)}; numbers [N, D] are needed, a row a sample")
        if not x.shape[1]:
            raise ValueError(f"{what}: {name} is {list(x.shape)}; a sample needs one feature or more")
        if len(x) < 2:
            raise ValueError(f"{what}: {name} has {len(x)} rows; at least 2 are needed")
        if not np.isfinite(x).all():
            raise ValueError(f"{what}: {name} holds what is not finite; every feature must be a number")
        if (most := np.abs(x.astype(np.float64)).max()) > MOST:
            raise ValueError(f"{what}: {name} holds {most:.3g}; at most {MOST:g} is allowed; scale the features")
        found.append(x.astype(np.float64))
    if found[0].shape[1] != found[1].shape[1]:
        sizes = " and ".join(str(x.shape[1]) for x in found)
        raise ValueError(f"{what}: real and generated have {sizes} features; the same function must make both")
    return Features(*found)


def frechet(features: Features) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the means and covariances (1706.08500, equation 6).

    That is the squared 2-Wasserstein distance of two Gaussians. It falls with more samples, also of equal
    distributions, and of fewer samples than features the covariances are singular: compare at equal N alone.
    """
    means = [x.mean(0) for x in features]
    s1, s2 = (np.atleast_2d(np.cov(x, rowvar=False)) for x in features)
    # The eigenvalues of S1 S2 are those of R S2 R, R the root of S1, which is symmetric: none is complex.
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ s2 @ root), 0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * both)


def kernel(features: Features, subsets: int = SUBSETS, size: int = 0, seed: int = SEED) -> np.ndarray:
    """`[subsets]` unbiased estimates of the squared MMD, by the kernel (x . y / D + 1)^3 (1801.01401, section 4).

    Each is of `size` samples of both sets; 0: of SUBSET, or of half of the smaller set where that is less. Equal
    distributions give 0 in the mean, so estimates may be negative.
    """
    size = size or min(SUBSET, max(min(map(len, features)) // 2, 2))
    rng = np.random.RandomState(seed)  # numpy promises that its draws never change
    drawn = ([x[rng.choice(len(x), size, replace=False)] for x in features] for _ in range(subsets))
    return np.array([_mmd2(*pair) for pair in drawn])


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    def k(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(x)
    xx, yy = k(x, x), k(y, y)
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1))
    return within - 2 * k(x, y).mean()


def figures(features: Features) -> dict[str, Figure]:
    """Both distances; of the kernel's the mean over subsets, and where nineteen of twenty of them lie."""
    estimates = kernel(features)
    n = min(map(len, features))
    low, high = np.quantile(estimates, [0.025, 0.975])
    return {
        "frechet": Figure(frechet(features), n=n),
        "kernel": Figure(float(estimates.mean()), float(low), float(high), 0.0, n),
    }
