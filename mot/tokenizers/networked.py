"""Networks as a dataset's tokenizers: what is kept of one, and opening it again where something is to be encoded.

Nothing of the network is copied. It is opened in the process that runs it, once, and must be what it was.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import numpy as np
from scipy.signal import resample_poly

from mot.config.modalities import FRAMES, LAYERS
from mot.errors import UserError
from mot.tokenizers import image, networks
from mot.tokenizers.networks import Network
from mot.tokenizers.waveform import Sound

LONGEST = 120  # seconds of a sound, which a network takes whole
PIXELS = 1 << 21  # of a batch of pictures at most, but for one larger picture: eight of 512 x 512
SAMPLES = 1 << 20  # of a batch of sounds at most, but for one longer sound


class Known(NamedTuple):
    """What a dataset keeps of a network."""

    folder: str  # as it was named
    digest: str
    medium: str
    size: int
    is_of_ids: bool
    shape: tuple[int, ...]
    layers: int
    rate: int
    side: int
    options: dict[str, int]  # with which it is opened
    order: str  # of LAYERS and FRAMES
    decodes: bool  # has it a way back?


def known(folder: str, order: str = LAYERS, **options: int) -> Known:
    """Of the network in a folder, which is opened with `options` of it; raises `UserError` where it cannot be."""
    network = _opened(folder, tuple(sorted(options.items())))
    told = {name: getattr(network, name) for name in Known._fields if hasattr(network, name)}
    return Known(**told, folder=folder, options=options, order=order, decodes=network.decode is not None)


def read(told: dict) -> Known:
    """What was kept of one as JSON; raises `ValueError` or `TypeError` for anything else."""
    found = Known(**told | {"shape": tuple(told.get("shape", ()))})
    kinds = {name: type(value) for name, value in found._asdict().items()}
    if kinds != Known.__annotations__ | {"shape": tuple, "options": dict}:
        raise ValueError(f"a network {told!r:.200}")
    numbers = (found.size, found.layers, found.rate, found.side, *found.shape, *found.options.values())
    if not all(type(n) is int and n >= 0 for n in numbers) or found.order not in (LAYERS, FRAMES):
        raise ValueError(f"a network {told!r:.200}")
    return found


@lru_cache
def _opened(folder: str, options: tuple[tuple[str, int], ...]) -> Network:
    return networks.opened(folder, **dict(options))


class Networked:
    """The tokenizer of a dataset that a network is; opened when it is first used."""

    def __init__(self, known: Known):
        self.known = known

    @property
    def shape(self) -> tuple[int, ...]:
        return self.known.shape

    @property
    def tokens(self) -> int:
        """Of a unit, where each has so many; else 0."""
        return math.prod(self.known.shape) if self.known.shape else 0

    @property
    def rate(self) -> int:
        return self.known.rate

    @property
    def digest(self) -> str:
        """Of the network and how it is used."""
        used = [self.known.digest, self.known.side, self.known.layers, self.known.order]
        return hashlib.sha256(repr(used).encode()).hexdigest()[:16]

    def open(self) -> Network:
        """Raises `UserError` where it is missing, or is another than the one that the dataset was made with."""
        network = _opened(self.known.folder, tuple(sorted(self.known.options.items())))
        if network.digest != self.known.digest:
            raise UserError(
                f"{self.known.folder} is another network than the dataset was made with: its digest is "
                f"{network.digest[:16]}, that was {self.known.digest[:16]}; put the same one there again"
            )
        return network

    def prepared(self, content: np.ndarray, rate: int = 0) -> np.ndarray:
        """A picture or a sound of `rate` samples a second, as the network takes it; `ValueError` where it does not."""
        if self.known.medium == "audio":
            return _sound(content, rate, self.known.rate)
        return image.square(content, self.known.side) if self.known.side else content

    def encode_all(self, prepared: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Ids `[tokens]` or float32 `[tokens, width]` of each; the network runs on bounded batches."""
        network = self.open()
        found: list[np.ndarray] = [np.zeros(0)] * len(prepared)
        most = SAMPLES if self.known.medium == "audio" else PIXELS
        for batch in _batches([x.shape for x in prepared], most):
            for i, made in zip(batch, network.encode([prepared[i] for i in batch]), strict=True):
                found[i] = _by_frame(made, self.known.layers) if self.known.order == FRAMES else made
        return found

    def encode(self, *content: Any) -> np.ndarray:
        """Of one picture, or one sound and its samples a second."""
        return self.encode_all([self.prepared(*content)])[0]

    def decode(self, data: np.ndarray) -> Any:
        """The picture uint8 `[H, W, 3]`, or the sound; the data themselves where the network has no way back.

        Raises `ValueError` where they are none of this network.
        """
        data = np.asarray(data)
        if not self.known.decodes:
            return data
        if self.known.order == FRAMES:
            data = _by_layer(data, self.known.layers)
        content = self.open().decode(data)
        return Sound(content, self.known.rate) if self.known.medium == "audio" else content


class NetworkIds(Networked):
    @property
    def ids(self) -> int:
        """Of all layers; those of a layer follow those of the one before it."""
        return self.known.size


class NetworkVectors(Networked):
    @property
    def width(self) -> int:
        return self.known.size


def tokenizer(known: Known) -> Networked:
    return NetworkIds(known) if known.is_of_ids else NetworkVectors(known)


def has_no_way_back(tokenizer: Any) -> bool:
    """Is what it gives back no picture and no sound, but its tokens?"""
    return isinstance(tokenizer, Networked) and not tokenizer.known.decodes


def _sound(wave: np.ndarray, of: int, rate: int) -> np.ndarray:
    """float32 `[samples]` at `rate`, -1 to 1."""
    if len(wave) > LONGEST * of:
        raise ValueError(f"a sound of {len(wave) / of:.0f} seconds; a network takes {LONGEST} at most; cut it")
    common = gcd(of, rate)
    found = wave if of == rate else resample_poly(wave, rate // common, of // common)
    return found.clip(-1, 1).astype(np.float32)


def _batches(shapes: Sequence[tuple[int, ...]], most: int) -> list[list[int]]:
    """Which go together: those of one shape, in order, of so many pixels or samples at most."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(i)
    batches = []
    for shape, alike in by_shape.items():
        size = max(1, most // max(1, math.prod(shape[:2])))
        batches += [alike[i : i + size] for i in range(0, len(alike), size)]
    return batches


def _by_frame(ids: np.ndarray, layers: int) -> np.ndarray:
    return ids.reshape(layers, -1).T.reshape(-1)


def _by_layer(ids: np.ndarray, layers: int) -> np.ndarray:
    """Of frames that are whole: a last one that lacks layers is left out."""
    return ids[: len(ids) // layers * layers].reshape(-1, layers).T.reshape(-1)
