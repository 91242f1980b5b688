"""Sound to ids: each frame of a log-mel spectrogram is the nearest of K frames found by k-means.

Discrete units as in HuBERT (Hsu et al. 2021), whose first round clusters spectral features, too. Further layers are
codebooks of what those before leave (residual vector quantisation, as SoundStream, 2107.03312, and SpeechTokenizer,
2308.16692): a frame's codes add up. A clip is the ids of all its frames in the first layer, then those in the second,
..., the order that MIO (2409.17692) found easier to learn than frame by frame. What is lost is the phase: ids give the
spectrogram back, and `waveform.wave` makes a sound of it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd
from typing import ClassVar

import numpy as np
from scipy.signal import resample_poly

from mot.config.modalities import AUDIO_LAYERS, AUDIO_RATES
from mot.tokenizers import codebook
from mot.tokenizers.archive import STORED

BANDS = 40
RANGE = 80  # dB: what is fainter than a clip's loudest by more is silence, as in Whisper (Radford et al. 2022)
READ = (1000, 768000)  # and of a clip: what is far outside would be resampled to any size


@dataclass(frozen=True, eq=False)
class AudioTokenizer:
    """Sound of `rate` samples a second, a frame for every `hop` of them, and for each layer a token of a frame."""

    FORMAT: ClassVar[str] = "mot audio tokenizer 1"
    rate: int
    hop: int
    # uint8 [K, BANDS], from RANGE dB below the clip's loudest (0) to it (255); quiet ones first. Of several layers
    # int16 [layers, K, BANDS], the first as before, and then what a code adds to those of the layers before it.
    codes: np.ndarray = field(metadata={STORED: "codes"})

    def __post_init__(self):
        check(self.rate, self.hop)
        if self.codes.ndim == 2:
            codebook.check(self.codes, BANDS)
            return
        if self.codes.dtype != np.int16 or self.codes.ndim != 3 or not 2 <= len(self.codes) <= AUDIO_LAYERS:
            shape = f"{self.codes.dtype} {list(self.codes.shape)}"
            raise ValueError(f"codes are {shape}; they must be int16 [2 to {AUDIO_LAYERS} layers, ids, {BANDS}]")
        codebook.check(self.codes[0].clip(0, 255).astype(np.uint8), BANDS)
        for layer_KP in self.codes:
            codebook.check_signed(layer_KP, BANDS)

    @property
    def layers(self) -> np.ndarray:
        """`[layers, K, BANDS]`."""
        return self.codes[None] if self.codes.ndim == 2 else self.codes

    @property
    def ids(self) -> int:
        """Of all layers; those of a layer follow those of the one before it."""
        return math.prod(self.layers.shape[:2])

    def encode(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """int32 `[layers * ceil(n / hop)]`, layer by layer, of a clip, float `[samples]`, that has n samples at the
        tokenizer's rate.

        How loud a clip is makes no difference. Raises `ValueError` where it is empty or not finite.
        """
        left_RP = _frames(wave, rate, self.rate, self.hop)
        found = []
        for layer_KP in self.layers:
            ids_R = codebook.nearest(left_RP, layer_KP)
            found.append(ids_R + len(found) * np.int32(len(layer_KP)))
            left_RP = _left(left_RP, layer_KP[ids_R])
        return np.concatenate(found)

    def decode(self, ids) -> np.ndarray:
        """The spectrogram float32 `[BANDS, frames]`, low bands first, in dB below the clip's loudest.

        The i-th id of each layer is of frame i; there are as many frames as ids of the first layer, and what other
        layers have beyond these is not heard. Raises `ValueError` where there is no frame.
        """
        codes_RP = codebook.look_up(ids, self.layers.reshape(-1, BANDS))
        layer_R = np.asarray(ids) // self.layers.shape[1]
        frames = int((layer_R == 0).sum())
        if len(codes_RP) and not frames:
            raise ValueError(f"{len(codes_RP)} ids and none of the first layer, 0 to {self.layers.shape[1] - 1}")
        levels = np.zeros((frames, BANDS), np.int32)
        for layer in range(len(self.layers)):
            of_layer = codes_RP[layer_R == layer][:frames]
            levels[: len(of_layer)] += of_layer
        return levels.clip(0, 255).T.astype(np.float32) * (RANGE / 255) - RANGE


def fit_audio(
    clips: Iterable[tuple[np.ndarray, int]],
    rate: int = 16000,
    hop: int | None = None,
    ids: int = 512,
    fewer: bool = False,
    layers: int = 1,
) -> AudioTokenizer:
    """A tokenizer for clips like these (float `[samples]`, samples a second); the same from the same clips.

    `hop` is 20 ms unless told another; each layer has `ids`. Raises `ValueError` where fewer frames, or fewer of what a
    layer leaves, differ than ids are asked for, unless `fewer` will do.
    """
    hop = rate // 50 if hop is None else hop
    check(rate, hop)
    codebook.check_ids(ids, BANDS)
    frames = codebook.sample((_frames(wave, of, rate, hop) for wave, of in clips), BANDS)
    if layers == 1:
        return AudioTokenizer(rate, hop, codebook.fit(frames, ids, f"frames of {hop} samples", fewer))
    return AudioTokenizer(rate, hop, _layers(frames, ids, hop, fewer, layers))


def _layers(frames: np.ndarray, ids: int, hop: int, fewer: bool, layers: int) -> np.ndarray:
    """int16 `[layers, K, BANDS]`: a codebook of frames, and codebooks of what the ones before leave of them."""
    if ids * layers * BANDS * 2 > codebook.CODES:
        raise ValueError(f"{layers} layers of {ids} ids; at most {codebook.CODES // (2 * BANDS)} ids in all")
    found: list[np.ndarray] = []
    left_RP = frames
    while len(found) < layers:
        what = f"frames of {hop} samples" if not found else f"rests of frames after {len(found)} layers"
        codes_KP = codebook.fit(left_RP, ids, what, fewer)
        if len(codes_KP) < ids:  # all layers have as many, so begin again with fewer
            ids, found, left_RP = len(codes_KP), [], frames
            continue
        found.append(codes_KP.astype(np.int16))
        left_RP = _left(left_RP, codes_KP[codebook.nearest(left_RP, codes_KP)])
    return np.stack(found)


def _left(x_RP: np.ndarray, codes_RP: np.ndarray) -> np.ndarray:
    """int16: what codes leave of rows."""
    return (x_RP.astype(np.int16) - codes_RP).clip(-255, 255)


def check(rate: int, hop: int) -> None:
    """Raises `ValueError` unless sound of this rate may have frames of so many samples."""
    if not AUDIO_RATES[0] <= rate <= AUDIO_RATES[1]:
        raise ValueError(
            f"rate={rate}; must be from {AUDIO_RATES[0]} to {AUDIO_RATES[1]} samples a second; 16000 suits speech"
        )
    if not rate // 200 <= hop <= rate // 10:
        raise ValueError(
            f"hop={hop}; must be from {rate // 200} to {rate // 10} samples at rate={rate}, 5 to 100 ms; "
            f"{rate // 50} gives 50 tokens a second"
        )


def _frames(wave: np.ndarray, of: int, rate: int, hop: int) -> np.ndarray:
    """uint8 `[tokens, BANDS]` of a clip of `of` samples a second."""
    return np.rint(levels(wave, of, rate, hop) * 255).astype(np.uint8)


def levels(wave: np.ndarray, of: int, rate: int, hop: int) -> np.ndarray:
    """float64 `[tokens, BANDS]` of a clip of `of` samples a second: 1 is its loudest, 0 RANGE dB below and fainter.

    Raises `ValueError` where it is empty or not finite.
    """
    power = _power(_resampled(wave, of, rate), rate, hop)
    decibels = 10 * np.log10(np.maximum(power / (power.max() or 1), 10 ** (-RANGE / 10)))
    return decibels / RANGE + 1


def _resampled(wave: np.ndarray, of: int, rate: int) -> np.ndarray:
    """float32 `[samples]` at `rate`, around 0 and within -1 to 1 before it is resampled."""
    if wave.ndim != 1 or wave.dtype.kind != "f":
        raise ValueError(f"a clip is {wave.dtype} {list(wave.shape)}; it must be float [samples], one channel")
    if not len(wave):
        raise ValueError("a clip is empty: 0 samples; leave it out")
    if not READ[0] <= of <= READ[1]:
        raise ValueError(f"a clip has {of} samples a second; allowed are {READ[0]} to {READ[1]}; resample it")
    if not np.isfinite(wave).all():
        raise ValueError(f"sample {np.isfinite(wave).argmin()} of a clip is not finite; repair it or leave it out")
    wave = wave / (np.abs(wave).max() or 1)  # first, so that nothing below overflows
    wave = (wave - wave.mean(dtype=np.float64)).astype(np.float32)
    common = gcd(of, rate)
    return wave if of == rate else resample_poly(wave, rate // common, of // common)


def _power(wave: np.ndarray, rate: int, hop: int) -> np.ndarray:
    """float64 `[tokens, BANDS]`: the power in each band, in windows centred on each hop, some thousands at a time."""
    taper, size = window(rate, hop)
    tokens = -(-len(wave) // hop)
    more = len(taper) - hop
    padded = np.pad(wave, (more // 2, tokens * hop - len(wave) + more - more // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, len(taper))[::hop]
    filters = bands(rate, size // 2 + 1)

    def spectrum(i):
        return np.abs(np.fft.rfft(frames[i : i + 4096] * taper, size)) ** 2

    return np.concatenate([spectrum(i) @ filters for i in range(0, tokens, 4096)])


def window(rate: int, hop: int) -> tuple[np.ndarray, int]:
    """A token's window, float64 `[samples]`, and the points of its Fourier transform."""
    samples = max(rate // 40, hop)  # 25 ms, and no sample unheard
    return np.hanning(samples + 2)[1:-1], 1 << (samples - 1).bit_length()


@lru_cache
def bands(rate: int, bins: int) -> np.ndarray:
    """float64 `[bins, BANDS]`: triangles evenly spaced in mel (HTK's), each from its neighbours' middles to its own."""
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, BANDS + 2) / 2595) - 1)
    frequency = np.linspace(0, rate / 2, bins)[:, None]
    steps = np.diff(edges)
    rising, falling = (frequency - edges[:-2]) / steps[:-1], (edges[2:] - frequency) / steps[1:]
    return np.minimum(rising, falling).clip(0)
