"""Sounds that a run has made, all in a row."""

import io
from collections.abc import Sequence

import numpy as np

from mot.tokenizers import waveform

PAUSE = 0.5  # seconds between two


def joined(wavs: Sequence[bytes]) -> bytes:
    """One WAV of several of one rate, with a pause between."""
    import soundfile

    sounds = [soundfile.read(io.BytesIO(wav), dtype="int16") for wav in wavs]
    rate = sounds[0][1]
    pause = np.zeros(int(PAUSE * rate), np.int16)
    parts = [part for sound, _ in sounds for part in (pause, sound)]
    return waveform.wav(np.concatenate(parts[1:]), rate)
