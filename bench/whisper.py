"""Whisper's log-mel frames of sounds, as `latents` that `mot data prepare` reads, for `configs/recipes/whisper.py`.

python -m bench.whisper SOUNDS.npz FRAMES.npz   of `audio` integers, `offsets` [n + 1] and `sample_rate`

Each sound is cut, or filled with silence, to SECONDS (Whisper: 30). The other arrays of n rows are kept.
"""

import itertools
import sys
from pathlib import Path

import numpy as np

from mot.tokenizers import whisper

SECONDS = 0.6  # of a spoken digit: 60 frames


def frames(audio: np.ndarray, offsets: np.ndarray, rate: int) -> np.ndarray:
    """float32 `[n, frames, 80]` of sounds that lie end to end, sound i from `offsets[i]` on."""
    waves = [audio[a:b].astype(np.float32) / 2**15 for a, b in itertools.pairwise(offsets)]
    return np.stack([whisper.log_mel(wave, rate, SECONDS) for wave in waves])


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    given = np.load(sys.argv[1], allow_pickle=False)
    n = len(given["offsets"]) - 1
    arrays = {name: given[name] for name in given.files if given[name].shape[:1] == (n,) or name == "label_names"}
    made = frames(given["audio"], given["offsets"], int(given["sample_rate"]))
    file = Path(sys.argv[2])
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, latents=made, **arrays)


if __name__ == "__main__":
    main()
