"""Features of pictures, made by a fixed encoder without weights from elsewhere, for `configs/recipes/rae.py`.

python -m bench.features PICTURES.npz FEATURES.npz   of `images` uint8 [n, H, W]; adds `features` and a `name` of each
mot evaluate RUN --what distances --features bench/features.py:pooled   in the folder with encoder.npz

The encoder is PCA, whitened, of what surrounds each patch: WINDOW x WINDOW pixels around PATCH x PATCH of them. It
keeps the WIDTH directions of greatest variance: features say less of a patch's noise and more of its surroundings. It
is kept beside its features, in encoder.npz, so that what a run drew as pixels is compared in the same space.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

PATCH, WINDOW, WIDTH = 4, 12, 32
LEARNT_OF = 2000  # pictures


def windows(images: np.ndarray) -> np.ndarray:
    """float32 `[n, tokens, WINDOW^2]` of `[n, H, W]`: what surrounds each patch, row by row; 0 beyond the edges."""
    margin = (WINDOW - PATCH) // 2
    padded = np.pad(images.astype(np.float32) / 255, ((0, 0), (margin, margin), (margin, margin)))
    every = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW), axis=(1, 2))
    return every[:, ::PATCH, ::PATCH].reshape(len(images), -1, WINDOW * WINDOW)


def learnt(images: np.ndarray) -> dict[str, np.ndarray]:
    """The encoder of pictures `[n, H, W]`: features have mean 0 and variance 1 over those that it is learnt of."""
    x = windows(images[:LEARNT_OF]).reshape(-1, WINDOW * WINDOW)
    mean = x.mean(0)
    values, vectors = np.linalg.eigh(np.cov(x - mean, rowvar=False))
    return {"mean": mean, "directions": vectors[:, -WIDTH:] / np.sqrt(values[-WIDTH:])}


def features(images: np.ndarray, encoder: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 `[n, tokens, WIDTH]` of pictures `[n, H, W]`."""
    return ((windows(images) - encoder["mean"]) @ encoder["directions"]).astype(np.float32)


def pooled(media: list[np.ndarray]) -> np.ndarray:
    """`[n, WIDTH]`: the mean over a picture's tokens of its features, of pictures `[H, W, 1 or 3]` or of features as
    drawn."""
    x = np.stack(media)
    if x.shape[-1] != WIDTH:
        with np.load("encoder.npz", allow_pickle=False) as encoder:
            x = features(x.mean(-1), encoder)
    return x.mean(1)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    given = np.load(sys.argv[1], allow_pickle=False)
    arrays = {name: given[name] for name in given.files if len(given[name]) == len(given["images"])}
    if "label_names" in given.files:
        arrays["name"] = given["label_names"][given["labels"]]
    file = Path(sys.argv[2])
    file.parent.mkdir(parents=True, exist_ok=True)
    encoder = learnt(given["images"])
    np.savez(file, **arrays, features=features(given["images"], encoder))
    np.savez(file.with_name("encoder.npz"), **encoder)


if __name__ == "__main__":
    main()
