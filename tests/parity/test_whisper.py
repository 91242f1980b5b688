"""Log-mel frames against transformers' extractor of Whisper."""

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from mot.tokenizers import whisper


@pytest.mark.parametrize("seconds", [0.3, 2.0, 31.0])
def test_log_mel_is_whispers(seconds):
    rng = np.random.default_rng(int(seconds))
    n = np.arange(round(seconds * whisper.RATE))
    wave = (0.3 * np.sin(n * 2 * np.pi * 440 / whisper.RATE) + 0.05 * rng.standard_normal(len(n))).astype("f")
    theirs = WhisperFeatureExtractor()(wave, sampling_rate=whisper.RATE, return_tensors="np").input_features[0]
    ours = whisper.log_mel(wave, whisper.RATE, seconds=30).T
    np.testing.assert_allclose(ours, theirs, atol=5e-5)  # theirs are of float32 throughout
