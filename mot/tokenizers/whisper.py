"""Whisper's own log-mel frames (2212.04356, 2.2): 80 bands of 16 kHz sound, 25 ms every 10 ms.

As OpenAI's code computes them: a Hann window, power, bands even in Slaney's mel and of equal area, the logarithm,
what is 80 dB below the loudest raised to there, and (x + 4) / 4. Parity tests hold it against transformers.
"""

from functools import lru_cache
from math import gcd

import numpy as np
from scipy.signal import resample_poly

RATE, POINTS, HOP, BANDS = 16_000, 400, 160, 80
FLOOR = 1e-10
RANGE = 8  # powers of ten below the loudest


def log_mel(wave: np.ndarray, rate: int, seconds: float = 0) -> np.ndarray:
    """float32 `[frames, 80]` of a clip, float `[samples]` within -1 to 1, `rate` a second: one for every 10 ms.

    With `seconds` the clip is first cut, or filled with silence, to so many: Whisper's own 30. Raises `ValueError`
    where the clip is no such array, or not finite.
    """
    if wave.ndim != 1 or wave.dtype.kind != "f" or not len(wave) or not np.isfinite(wave).all():
        raise ValueError(f"a clip is {wave.dtype} {list(wave.shape)}; finite floats [samples], one or more, are needed")
    common = gcd(rate, RATE)
    wave = wave if rate == RATE else resample_poly(wave, RATE // common, rate // common)
    samples = round(seconds * RATE) or -(-len(wave) // HOP) * HOP
    wave = np.pad(wave[:samples], (0, max(samples - len(wave), 0))).astype(np.float64)
    wave = np.pad(wave, POINTS // 2, mode="reflect" if len(wave) > POINTS // 2 else "constant")
    frames = np.lib.stride_tricks.sliding_window_view(wave, POINTS)[::HOP][: samples // HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(POINTS + 1)[:-1])) ** 2
    log = np.log10(np.maximum(power @ bands(), FLOOR))
    return ((np.maximum(log, log.max() - RANGE) + 4) / 4).astype(np.float32)


@lru_cache
def bands() -> np.ndarray:
    """float64 `[201, 80]`: triangles even in Slaney's mel from 0 to 8 kHz, each of area 1 in Hz."""
    edges = _hertz(np.linspace(0, _mel(RATE / 2), BANDS + 2))
    frequency = np.linspace(0, RATE / 2, POINTS // 2 + 1)[:, None]
    steps = np.diff(edges)
    rising, falling = (frequency - edges[:-2]) / steps[:-1], (edges[2:] - frequency) / steps[1:]
    return np.minimum(rising, falling).clip(0) * (2 / (edges[2:] - edges[:-2]))


LINEAR, KNEE = 200 / 3, 1000.0  # Hz of a mel below the knee, and where it lies
STEP = np.log(6.4) / 27  # of the logarithm, from mel to mel above


def _mel(hertz: float) -> float:
    return hertz / LINEAR if hertz < KNEE else KNEE / LINEAR + float(np.log(hertz / KNEE)) / STEP


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < KNEE / LINEAR, mel * LINEAR, KNEE * np.exp(STEP * (mel - KNEE / LINEAR)))
