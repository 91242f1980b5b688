"""What `mot tokenizer train` is asked for, and what is wrong with it; light, as it is judged before JAX is there."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from mot.config.modalities import AUDIO_RATES, IMAGE_SIDE, MAX_IDS


class Kind(NamedTuple):
    medium: str
    about: str
    sizes: tuple[str, ...]  # settings that it has beside those of its medium and of its network


KINDS = {
    "fsq": Kind("image", "pictures as ids: features rounded to levels", ("levels",)),
    "vq": Kind("image", "pictures as ids: the nearest codes of a codebook", ("ids",)),
    "kl": Kind("image", "pictures as vectors: the latents of a KL autoencoder", ("features",)),
    "rvq": Kind("audio", "sounds as ids: codebooks of what those before them leave", ("ids", "layers")),
}
OF_MEDIUM = {"image": ("side", "patch"), "audio": ("rate", "hop")}
LEVELS = (8, 5, 5, 5)  # 1,000 codes, as 2309.15505, table 1, has for about 1,024


class Settings(NamedTuple):
    """All that decides what a tokenizer's weights are, beside what it is trained on."""

    kind: str
    side: int = 32  # pixels to which pictures are brought
    patch: int = 4  # pixels of a token's side
    rate: int = 16000  # samples a second
    hop: int = 0  # samples of a token; 0: 20 ms
    levels: tuple[int, ...] = LEVELS  # of each feature of a code
    ids: int = 1024  # codes of a codebook
    layers: int = 4  # codebooks
    features: int = 16  # of a latent
    width: int = 96  # channels of the convolutions
    blocks: int = 3  # residual blocks of the encoder, and of the decoder
    steps: int = 3000
    batch: int = 64
    lr: float = 2e-3
    patience: int = 8  # evaluations without a gain, of EVALUATIONS, before training ends
    seed: int = 0

    @property
    def medium(self) -> str:
        return KINDS[self.kind].medium

    @property
    def frame(self) -> int:
        """Samples of a token."""
        return self.hop or self.rate // 50


EVALUATIONS = 20  # of a training at most
RANGES = {
    "features": (1, 512),
    "width": (8, 1024),
    "blocks": (0, 32),
    "steps": (1, 10_000_000),
    "batch": (1, 4096),
    "patience": (1, EVALUATIONS),
    "seed": (0, 2**31 - 1),
    "lr": (1e-6, 1.0),
    "layers": (1, 16),
    "ids": (2, 1 << 16),
}
MOST_LEVELS = 256  # of one feature


def faults(settings: Settings) -> Iterator[str]:
    """What is wrong with settings, as an option of the command and its remedy."""
    for name, (least, most) in RANGES.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            yield f"--{name}={value}; must be from {least:g} to {most:g}; give a number of that range"
    if settings.medium == "image":
        yield from _of_pictures(settings)
    else:
        yield from _of_sounds(settings)
    if settings.kind == "fsq":
        yield from _of_levels(settings.levels)


def _of_pictures(settings: Settings) -> Iterator[str]:
    side, patch = settings.side, settings.patch
    if not 2 <= side <= IMAGE_SIDE:
        yield f"--side={side}; must be from 2 to {IMAGE_SIDE} pixels; give a number of that range"
    elif patch < 1 or side % patch:
        fitting = [p for p in range(1, side + 1) if side % p == 0]
        yield f"--patch={patch}: must divide --side={side}; choose one of {', '.join(map(str, fitting))}"
    elif (side // patch) ** 2 > 4096:
        yield f"--side={side}, --patch={patch}: {(side // patch) ** 2} tokens a picture; at most 4096; raise --patch"


def _of_sounds(settings: Settings) -> Iterator[str]:
    rate, hop = settings.rate, settings.frame
    if not AUDIO_RATES[0] <= rate <= AUDIO_RATES[1]:
        yield f"--rate={rate}; must be from {AUDIO_RATES[0]} to {AUDIO_RATES[1]} samples a second; 16000 suits speech"
    elif not rate // 200 <= hop <= rate // 10:
        yield f"--hop={hop}; must be from {rate // 200} to {rate // 10} samples at --rate={rate}, 5 to 100 ms"


def _of_levels(levels: tuple[int, ...]) -> Iterator[str]:
    said = f"--levels={','.join(map(str, levels))}"
    if not levels or not all(2 <= n <= MOST_LEVELS for n in levels):
        yield f"{said}: each must be from 2 to {MOST_LEVELS}; write them with commas between, as 8,5,5,5"
    elif math.prod(levels) > MAX_IDS:
        yield f"{said}: {math.prod(levels)} ids; at most {MAX_IDS}; give fewer, or lower ones"
