"""What a learned tokenizer is to those who use it, whoever trained it: a network opened from a folder."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Network(NamedTuple):
    """Pictures or sounds to ids or vectors, and back.

    A picture is uint8 `[H, W, 3]`, a sound float32 `[samples]` in -1..1 at `rate` samples a second.
    """

    medium: str  # image or audio
    digest: str  # of all files that decide what it gives
    size: int  # ids of its codebook (of all layers together), or features of a vector
    is_of_ids: bool
    shape: tuple[int, ...]  # of a unit's tokens: rows and columns of a picture; () for sounds, which have any number
    layers: int  # of codes; 1 but for residual codebooks, whose ids are flattened
    rate: int  # of sounds; 0 for pictures
    encode: Callable[[Sequence[np.ndarray]], list[np.ndarray]]  # of a batch: int32 [tokens], or float32 [tokens, P]
    decode: Callable[[np.ndarray], Any] | None  # of one unit; None where the network has no way back
