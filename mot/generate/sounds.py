"""Sound that a run has made, as WAVs of 16-bit samples: one by one, or all in a row."""

import io
from collections.abc import Sequence

import numpy as np

from mot.tokenizers import waveform
from mot.tokenizers.audio import AudioTokenizer
from mot.tokenizers.vectors import AudioVectors

PAUSE = 0.5  # seconds between two


def of(tokenizer: AudioTokenizer | AudioVectors, decibels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, int]:
    """float32 samples `[n]` of a spectrogram that a tokenizer decoded, and how many of them are a second."""
    return waveform.wave(decibels, tokenizer.rate, tokenizer.hop, seed), tokenizer.rate


def wav(sound: np.ndarray, rate: int) -> bytes:
    """Of float samples `[n]` within -1 to 1, `rate` a second."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, sound, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def joined(sounds: Sequence[np.ndarray], rate: int) -> bytes:
    """One WAV of several, with a pause between."""
    pause = np.zeros(int(PAUSE * rate), np.float32)
    parts = [part for sound in sounds for part in (pause, sound)]
    return wav(np.concatenate(parts[1:]), rate)
