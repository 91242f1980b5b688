"""Sound to ids: each frame of a log-mel spectrogram is the nearest of K frames found by k-means.

Discrete units as in HuBERT (Hsu et al. 2021), whose first round clusters spectral features, too. What is lost is the
phase: ids give the spectrogram back, and `waveform.wave` makes a sound of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd
from typing import ClassVar

import numpy as np
from scipy.signal import resample_poly

from mot.config.modalities import AUDIO_RATES
from mot.tokenizers import codebook
from mot.tokenizers.archive import STORED

BANDS = 40
RANGE = 80  # dB: what is fainter than a clip's loudest by more is silence, as in Whisper (Radford et al. 2022)
READ = (1000, 768000)  # and of a clip: what is far outside would be resampled to any size


@dataclass(frozen=True, eq=False)
class AudioTokenizer:
    """Sound of `rate` samples a second, a token for every `hop` of them."""

    FORMAT: ClassVar[str] = "mot audio tokenizer 1"
    rate: int
    hop: int
    # uint8 [K, BANDS], from RANGE dB below the clip's loudest (0) to it (255); quiet ones first
    codes_KP: np.ndarray = field(metadata={STORED: "codes"})

    def __post_init__(self):
        check(self.rate, self.hop)
        codebook.check(self.codes_KP, BANDS)

    @property
    def ids(self) -> int:
        return len(self.codes_KP)

    def encode(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """int32 `[ceil(n / hop)]` of a clip, float `[samples]`, that has n samples at the tokenizer's rate.

        How loud a clip is makes no difference. Raises `ValueError` where it is empty or not finite.
        """
        return codebook.nearest(_frames(wave, rate, self.rate, self.hop), self.codes_KP)

    def decode(self, ids) -> np.ndarray:
        """The spectrogram float32 `[BANDS, tokens]`, low bands first, in dB below the clip's loudest."""
        return codebook.look_up(ids, self.codes_KP).T.astype(np.float32) * (RANGE / 255) - RANGE


def fit_audio(
    clips: Iterable[tuple[np.ndarray, int]],
    rate: int = 16000,
    hop: int | None = None,
    ids: int = 512,
    fewer: bool = False,
) -> AudioTokenizer:
    """A tokenizer for clips like these (float `[samples]`, samples a second); the same from the same clips.

    `hop` is 20 ms unless told another. Raises `ValueError` where fewer frames differ than ids are asked for,
    unless `fewer` will do.
    """
    hop = rate // 50 if hop is None else hop
    check(rate, hop)
    codebook.check_ids(ids, BANDS)
    frames = codebook.sample((_frames(wave, of, rate, hop) for wave, of in clips), BANDS)
    return AudioTokenizer(rate, hop, codebook.fit(frames, ids, f"frames of {hop} samples", fewer))


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
