"""A codebook of bytes: K codes found by k-means, the nearest code of a row, and the file that keeps them.

Rows and codes are whole numbers from 0 to 255, so every distance is exact in floating point in whatever order it is
added up: ids depend neither on the machine, nor on its threads, nor on what is looked up together.
"""

import io
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

IDS = 1 << 16  # the most codes
CODES = 1 << 23  # and the most bytes of all of them
SAMPLE = 1 << 17  # the most rows that k-means sees,
SAMPLED = 1 << 25  # and the most bytes of them
LARGEST = CODES + 4096  # bytes of a file
_EXACT = (1 << 24) // 255**2  # so many products of two bytes add up exactly in float32
_OTHERWISE = "it is not as it was written; fit it anew, or copy it again"


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
    """`ids` different codes, uint8 `[K, P]`, for rows uint8 `[R, P]`, in canonical order.

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
    codes_KP = np.unique(np.rint(kmeans.cluster_centers_).clip(0, 255).astype(np.uint8), axis=0)
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
    dtype = np.float32 if codes_KP.shape[1] <= _EXACT else np.float64
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
    if not np.array_equal(ordered(np.unique(codes_KP, axis=0)), codes_KP):
        raise ValueError("codes are not all different and in canonical order, by sum and then by number; order them")


def look_up(ids, codes_KP: np.ndarray) -> np.ndarray:
    """The codes uint8 `[R, P]` of ids `[R]`; raises `ValueError` where an id has none."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"ids are {ids.dtype} {list(ids.shape)}; they must be whole numbers [tokens]")
    if len(odd := ids[(ids < 0) | (ids >= len(codes_KP))]):
        raise ValueError(f"id {odd[0]} has no code; ids are from 0 to {len(codes_KP) - 1}")
    return codes_KP[ids]


def to_bytes(format: str, numbers: dict[str, int], codes_KP: np.ndarray) -> bytes:
    """What `pack` makes of whole numbers and codes."""
    return pack(format, {name: np.array(n, "<i8") for name, n in numbers.items()} | {"codes": codes_KP})


def pack(format: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz file without pickle: the same content gives the same bytes, on any machine and in any version."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in ({"format": np.array(format)} | arrays).items():
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array, order="C"), (1, 0), allow_pickle=False)
            archive.writestr(entry, member.getvalue())
    return out.getvalue()


def from_bytes(content: bytes, format: str, names: Sequence[str]) -> tuple[dict[str, int], np.ndarray]:
    """What `to_bytes` wrote; raises `ValueError` for anything else, also where a single bit differs."""
    arrays = unpack(content, format, (*names, "codes"))
    codes_KP = arrays.pop("codes")
    if codes_KP.ndim != 2 or any(array.shape or array.dtype != "<i8" for array in arrays.values()):
        raise ValueError(_OTHERWISE)
    return {name: int(array) for name, array in arrays.items()}, codes_KP


def unpack(content: bytes, format: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What `pack` wrote; raises `ValueError` for anything else, also where a single bit differs."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")  # and might unfold to any size

            def read(name):
                return np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)

            found = str(read("format"))
            arrays = {name: read(name) for name in names if found == format}
    except Exception as error:  # a damaged archive or header raises any of a dozen kinds
        raise ValueError(f"it is no tokenizer of this project: {type(error).__name__}: {error}") from error
    if found != format:
        raise ValueError(f"it holds {found[:60]!r} and {format!r} is needed; give another file, or fit one anew")
    if pack(format, arrays) != content:
        raise ValueError(_OTHERWISE)
    return arrays


def read(path: Path) -> bytes:
    """A file's bytes; raises `ValueError` where there is none, or one too large to be ours."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes, which no tokenizer has")
    return content
