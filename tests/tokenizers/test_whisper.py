"""Whisper's frames: how many, where a tone lies, and what is refused (parity holds the numbers)."""

import numpy as np
import pytest

from mot.tokenizers import whisper


def tone(hertz, seconds, rate=whisper.RATE):
    return np.sin(np.arange(round(seconds * rate)) * 2 * np.pi * hertz / rate)


@pytest.mark.parametrize(("seconds", "frames"), [(1.0, 100), (0.305, 31), (0.001, 1)])
def test_a_frame_stands_for_10_ms(seconds, frames):
    assert whisper.log_mel(tone(300, seconds), whisper.RATE).shape == (frames, 80)
    assert whisper.log_mel(tone(300, seconds), whisper.RATE, seconds=30).shape == (3000, 80)


def test_a_tone_lies_in_its_band_whatever_its_rate():
    middle = np.array([whisper._hertz(np.array(m)) for m in np.linspace(0, whisper._mel(8000), 82)[1:-1]])
    for rate in (8000, 16_000, 44_100):
        x = whisper.log_mel(tone(1000, 0.5, rate), rate)
        assert abs(middle[x[20].argmax()] - 1000) < 60
    np.testing.assert_allclose(x.max() - x.min(), whisper.RANGE / 4, atol=1e-6)


@pytest.mark.parametrize("wave", [np.zeros(0), np.zeros((4, 2)), np.array([np.nan]), np.zeros(4, int)])
def test_what_is_no_clip_is_refused(wave):
    with pytest.raises(ValueError, match="finite floats"):
        whisper.log_mel(wave, 16_000)
