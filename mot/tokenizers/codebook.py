"""A codebook of bytes: K codes found by k-means, and the nearest code of a row.

Rows and codes are whole numbers from 0 to 255, or from -255 to 255 where they are what another codebook left, so every
distance is exact in floating point in whatever order it is added up: ids depend neither on the machine, nor on its
threads, nor on what is looked up together.
"""

import warnings
from collections.abc import Iterable

import numpy as np
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

IDS = 1 << 16  # the most codes
CODES = 1 << 23  # and the most bytes of all of them
SAMPLE = 1 << 17  # the most rows that k-means sees,
SAMPLED = 1 << 25  # and the most bytes of them
_EXACT = (1 << 24) // 255**2  # so many products of two bytes add up exactly in float32
_SIGNED = _EXACT // 3  # and of -2 x c + c^2, where both may be negative


def sample(rows: Iterable[np.ndarray], features: int) -> np.ndarray:
    """`[R, P]`: some rows of many uint8 `[n, P]`, each as likely as any other; the same from the same rows."""
    most = min(SAMPLE, SAMPLED // features)
    # Each row draws a number and those with the least stay: memory is bounded, and how many come need not be known.
    bits = np.random.Philox(seed=np.random.SeedSequence(0))
    kept = []
    keys = []
    limit = np.uint64(2**64 - 1)
    held = 0
    for x_RP in rows:
        key_R = bits.random_raw(len(x_RP))
        chosen = key_R <= limit
        kept.append(x_RP[chosen])
        keys.append(key_R[chosen])
        held += len(keys[-1])
        if held > 2 * most:
            kept, keys = _least(kept, keys, most)
            held = most
            limit = keys[0].max()
    return _least(kept, keys, most)[0][0] if kept else np.zeros((0, features), np.uint8)


def _least(kept, keys, most):
    keys = np.concatenate(keys)
    order = keys.argsort(kind="stable")[:most]
    return [np.concatenate(kept)[order]], [keys[order]]


def fit(x_RP: np.ndarray, ids: int, what: str, fewer: bool = False) -> np.ndarray:
    """`ids` different codes, uint8 `[K, P]`, for rows uint8 `[R, P]`, in canonical order; or both int16, signed.

    `what` names the rows in the `ValueError` that is raised where fewer of them differ than codes are asked for, unless
    `fewer` will do.
    """
    distinct_UP, counts_U = np.unique(x_RP, axis=0, return_counts=True)
    if fewer:
        ids = max(1, min(ids, len(distinct_UP)))
    if len(distinct_UP) < ids:
        raise ValueError(
            f"{ids} ids were asked for and only {len(distinct_UP)} different {what} were seen (in a sample of "
            f"{len(x_RP)}); ask for at most {len(distinct_UP)} ids, or give more varied data"
        )
    if len(distinct_UP) == ids:
        return ordered(distinct_UP)
    x_UP, weights_U = distinct_UP.astype(np.float32), counts_U.astype(np.float32)
    some = slice(None, None, max(1, len(x_UP) // max(8192, 4 * ids)))
    # One thread: with more, sums are added up in another order each time, and near-ties fall differently.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        first_KP, _ = kmeans_plusplus(x_UP[some], ids, sample_weight=weights_U[some], random_state=0)
        # Lloyd's rounds: 20 came within 0.05 dB of 50. MiniBatchKMeans lost from 0.1 to 4 dB on emoji's patches.
        kmeans = KMeans(ids, init=first_KP, n_init=1, max_iter=20, random_state=0).fit(x_UP, sample_weight=weights_U)
    least = 0 if x_RP.dtype == np.uint8 else -255
    codes_KP = np.unique(np.rint(kmeans.cluster_centers_).clip(least, 255).astype(x_RP.dtype), axis=0)
    # Codes that rounding made equal give way to the rows that the others serve worst.
    error_U = ((distinct_UP.astype(np.int32) - codes_KP[nearest(distinct_UP, codes_KP)]) ** 2).sum(1)
    worst = (-error_U).argsort(kind="stable")[: ids - len(codes_KP)]
    return ordered(np.concatenate([codes_KP, distinct_UP[worst]]))


def check_ids(ids: int, features: int) -> None:
    """Raises `ValueError` unless there may be so many codes of so many features."""
    most = min(IDS, CODES // features)
    if not 1 <= ids <= most:
        raise ValueError(f"ids={ids}; must be from 1 to {most} where a code is {features} numbers")


def ordered(codes_KP: np.ndarray) -> np.ndarray:
    """Dark or quiet codes first, by their sum; of equal sums the one with the lesser first number."""
    return codes_KP[np.lexsort((*codes_KP.T[::-1], codes_KP.sum(1, dtype=np.int64)))]


def nearest(x_RP: np.ndarray, codes_KP: np.ndarray) -> np.ndarray:
    """int32 `[R]`: the code with the least squared distance to each row, of equally near ones the lowest id."""
    exact = _EXACT if codes_KP.dtype == np.uint8 else _SIGNED
    dtype = np.float32 if codes_KP.shape[1] <= exact else np.float64
    codes_PK = codes_KP.T.astype(dtype)
    square_1K = (codes_PK**2).sum(0, keepdims=True)
    codes_PK = -2 * codes_PK
    ids_R = np.empty(len(x_RP), np.int32)
    step = max(1, (1 << 22) // len(codes_KP))
    for i in range(0, len(x_RP), step):
        distance_RK = x_RP[i : i + step].astype(dtype) @ codes_PK
        distance_RK += square_1K
        ids_R[i : i + step] = distance_RK.argmin(1)
    return ids_R


def check(codes_KP: np.ndarray, features: int) -> None:
    """Raises `ValueError` unless these are different codes of so many features in canonical order."""
    if codes_KP.dtype != np.uint8 or codes_KP.ndim != 2 or codes_KP.shape[1] != features:
        raise ValueError(f"codes are {codes_KP.dtype} {list(codes_KP.shape)}; they must be uint8 [ids, {features}]")
    check_ids(len(codes_KP), features)
    _check_order(codes_KP)


def check_signed(codes_KP: np.ndarray, features: int) -> None:
    """As `check`, of int16 codes from -255 to 255."""
    if codes_KP.shape[1] != features or np.abs(codes_KP).max(initial=0) > 255:
        raise ValueError(f"codes are {list(codes_KP.shape)}; they must be [ids, {features}], from -255 to 255")
    check_ids(len(codes_KP), features)
    _check_order(codes_KP)


def _check_order(codes_KP: np.ndarray) -> None:
    if not np.array_equal(ordered(np.unique(codes_KP, axis=0)), codes_KP):
        raise ValueError("codes are not all different and in canonical order, by sum and then by number; order them")


def look_up(ids, codes_KP: np.ndarray) -> np.ndarray:
    """The codes `[R, P]` of ids `[R]`; raises `ValueError` where an id has none."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"ids are {ids.dtype} {list(ids.shape)}; they must be whole numbers [tokens]")
    if len(odd := ids[(ids < 0) | (ids >= len(codes_KP))]):
        raise ValueError(f"id {odd[0]} has no code; ids are from 0 to {len(codes_KP) - 1}")
    return codes_KP[ids]
