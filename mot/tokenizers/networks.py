"""What a learned tokenizer is to those who use it, whoever trained it: a network opened from a folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mot.errors import UserError


class Network(NamedTuple):
    """Pictures or sounds to ids or vectors, and back.

    A picture is uint8 `[H, W, 3]`, a sound float32 `[samples]` in -1..1 at `rate` samples a second.
    """

    medium: str  # image or audio
    digest: str  # of all files that decide what it gives
    size: int  # ids of its codebook (of all layers together), or features of a vector
    is_of_ids: bool
    shape: tuple[int, ...]  # of a unit's tokens: rows and columns of a picture; () for sounds, which have any number
    layers: int  # of codes; 1 but for residual codebooks, whose ids are flattened: those of a layer after another
    rate: int  # of sounds; 0 for pictures
    encode: Callable[[Sequence[np.ndarray]], list[np.ndarray]]  # of a batch: int32 [tokens], or float32 [tokens, P]
    decode: Callable[[np.ndarray], Any] | None  # of one unit; None where the network has no way back
    side: int = 0  # pixels of the square to which pictures are brought before `encode`; 0 = it takes any, or sounds


def _published(folder: Path, **options: int) -> Network:
    from mot.tokenizers import published

    return published.open_(folder, **options)


def _learned(folder: Path, **options: int) -> Network:
    from mot.tokenizers import learned

    if asked := {name: value for name, value in options.items() if value}:
        told = ", ".join(f"{name} {value}" for name, value in asked.items())
        raise UserError(f"{folder} was asked for {told}; what `mot tokenizer train` wrote has its own; leave that out")
    return learned.open_(folder)


# By the file of a folder that tells whose it is, the first that is there: what opens it.
OPENERS: dict[str, Callable[..., Network]] = {"mot-tokenizer.json": _learned, "config.json": _published}


def opened(folder: str | Path, **options: int) -> Network:
    """The network of a folder; `options`: `side` of pictures, pixels, or `layers` of codes; 0 = as it says itself.

    Raises `UserError` where there is none, or it cannot be opened so.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the folder of a network, with its {' or '.join(OPENERS)}")
    for file, opener in OPENERS.items():
        if (folder / file).is_file():
            return opener(folder, **options)
    if (folder / "model_index.json").is_file():
        raise UserError(f"{folder} holds a whole pipeline; name the folder of its network alone, as {folder / 'vae'}")
    raise UserError(f"{folder} has no {' or '.join(OPENERS)}; name a folder as save_pretrained writes it")
