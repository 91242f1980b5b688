"""A log-mel spectrogram back to sound. Its phase is made up: one that agrees with itself where windows overlap.

A power spectrum that gives the bands is found by multiplicative updates, which keep it positive (Lee and Seung 2001,
the divergence), then a phase by Griffin and Lim's method (1984) with momentum (Perraudin et al. 2013). On recorded
digits the bands come back within 1.3 dB, root mean square; with the filterbank's pseudo-inverse, cut off at 0, 2.3.
"""

import io
from typing import NamedTuple

import numpy as np

from mot.tokenizers import audio

OVERLAP = 4  # windows over each sample, whatever the tokenizer's own hop
UPDATES, ROUNDS, MOMENTUM = 50, 60, 0.99
AT_ONCE = 1500  # tokens, so that memory does not grow with a sound's length
LOUDEST = 0.9  # of full scale, where the spectrogram says 0 dB
TINY = 1e-30


class Sound(NamedTuple):
    """What needs no phase made up: a network has given the samples themselves."""

    wave: np.ndarray  # float32 [samples], -1 to 1
    rate: int  # samples a second


def wave(decibels: np.ndarray, rate: int, hop: int, seed: int = 0) -> np.ndarray:
    """float32 `[n * hop]`, within -LOUDEST to LOUDEST, of a spectrogram in dB `[audio.BANDS, n]`, 0 a clip's loudest.

    It is what a tokenizer of this `rate` and `hop` decodes; -audio.RANGE dB and less is silence. The same seed gives
    the same sound. Raises `ValueError` where it has another shape, or is not finite.
    """
    decibels = np.asarray(decibels, np.float64)
    if decibels.ndim != 2 or len(decibels) != audio.BANDS or not decibels.size or not np.isfinite(decibels).all():
        raise ValueError(
            f"a spectrogram {list(decibels.shape)}; finite [{audio.BANDS}, tokens], one or more, is needed"
        )
    decibels = decibels.T.clip(-audio.RANGE, 0)
    tokens = len(decibels)
    sound = np.zeros(tokens * hop)
    fade = np.linspace(0, 1, hop)
    rng = np.random.default_rng(seed)
    for first in range(0, tokens, AT_ONCE):
        piece = _griffin_lim(decibels[first : first + AT_ONCE + 1], rate, hop, rng)
        if first:
            piece[:hop] *= fade
        if first + AT_ONCE < tokens:  # the token that the next piece begins with
            piece[-hop:] *= 1 - fade
        sound[first * hop : first * hop + len(piece)] += piece
    loudest = LOUDEST * 10 ** (decibels.max() / 20)
    return (sound * (loudest / (np.abs(sound).max() or 1))).astype(np.float32)


def wav(sound: np.ndarray, rate: int) -> bytes:
    """A WAV of 16-bit samples, of float samples `[n]` within -1 to 1, `rate` a second."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, sound, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _griffin_lim(decibels: np.ndarray, rate: int, hop: int, rng: np.random.Generator) -> np.ndarray:
    """float64 `[tokens * hop]` of `[tokens, BANDS]`."""
    taper, size = audio.window(rate, hop)
    taper = np.pad(taper, (0, -len(taper) % OVERLAP))
    step = len(taper) // OVERLAP
    samples = len(decibels) * hop
    middles = np.arange(samples // step + 2) * step
    magnitude = np.sqrt(_power(_at(decibels, middles / hop - 0.5), audio.bands(rate, size // 2 + 1)))
    phase = np.exp(2j * np.pi * rng.random(magnitude.shape))
    before = 0
    for _ in range(ROUNDS):
        spectrum = _analysed(_synthesised(magnitude * phase, taper, size, samples), taper, size, len(middles))
        towards = spectrum - MOMENTUM / (1 + MOMENTUM) * before
        phase = towards / np.maximum(np.abs(towards), TINY)
        before = spectrum
    return _synthesised(magnitude * phase, taper, size, samples)


def _at(decibels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """float64 `[places, BANDS]`: between the rows, linear in decibels; outside of them as the nearest."""
    rows = np.arange(len(decibels))
    return np.stack([np.interp(places, rows, band) for band in decibels.T], axis=1)


def _power(decibels: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """float64 `[n, bins]`, 0 or more, whose bands `[bins, BANDS]` have these levels `[n, BANDS]`."""
    wanted = np.where(decibels > -audio.RANGE, 10 ** (decibels / 10), 0)
    power = wanted @ (bands / np.maximum(bands.sum(0), TINY)).T
    weight = np.maximum(bands.sum(1), TINY)
    for _ in range(UPDATES):
        power *= (wanted / np.maximum(power @ bands, TINY)) @ bands.T / weight
    return power


def _analysed(sound: np.ndarray, taper: np.ndarray, size: int, frames: int) -> np.ndarray:
    """complex `[frames, size // 2 + 1]`: the first window's middle lies on the first sample."""
    step = len(taper) // OVERLAP
    half = len(taper) // 2
    whole = np.zeros(len(taper) + (frames - 1) * step)
    whole[half : half + len(sound)] = sound
    return np.fft.rfft(np.lib.stride_tricks.sliding_window_view(whole, len(taper))[::step] * taper, size)


def _synthesised(spectrum: np.ndarray, taper: np.ndarray, size: int, samples: int) -> np.ndarray:
    """float64 `[samples]`: the sound whose windows come nearest to a spectrum, by least squares."""
    parts = (np.fft.irfft(spectrum, size)[:, : len(taper)] * taper).reshape(len(spectrum), OVERLAP, -1)
    squares = (taper**2).reshape(OVERLAP, -1)
    total = np.zeros((len(spectrum) + OVERLAP - 1, parts.shape[-1]))
    weight = np.zeros_like(total)
    for k in range(OVERLAP):
        total[k : k + len(spectrum)] += parts[:, k]
        weight[k : k + len(spectrum)] += squares[k]
    half = len(taper) // 2
    return (total / np.maximum(weight, TINY)).reshape(-1)[half : half + samples]
