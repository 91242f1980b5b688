"""Spectrograms to sound: what is heard is what the spectrogram says."""

import numpy as np
import pytest

from mot.tokenizers import audio, vectors, waveform
from tests.support.media import clips, tone


def spectrogram(wave, rate, of=None, hop=None):
    """In dB, as a tokenizer of `rate` that loses nothing would give it."""
    return (audio.levels(wave, of or rate, rate, hop or rate // 50).T - 1) * audio.RANGE


def error(sound, decibels, rate, hop=None):
    """Root mean square, dB, of all bands and tokens."""
    again = spectrogram(sound, rate, hop=hop)
    assert again.shape == decibels.shape
    return np.sqrt(np.mean((again - decibels) ** 2))


def peak(sound, rate):
    """Of its spectrum, in hertz."""
    return np.abs(np.fft.rfft(sound)).argmax() * rate / len(sound)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
def test_a_tone_has_its_pitch(rate):
    """440 Hz comes back within the mel band it lies in, in ids' whole levels too."""
    decibels = spectrogram(tone(440, 1, rate), rate)
    sound = waveform.wave(decibels, rate, rate // 50)
    assert (sound.dtype, len(sound)) == (np.float32, rate)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), 42) / 2595) - 1)
    band = np.searchsorted(edges, 440)
    assert edges[band - 1] < peak(sound, rate) < edges[band]
    assert error(sound, decibels, rate) < 4


@pytest.mark.parametrize(("rate", "hop"), [(8000, 160), (16000, 320), (22050, 441), (16000, 1600), (16000, 80)])
def test_sliding_tones_in_noise_come_back_within_decibels(rate, hop):
    for wave, of in clips():
        decibels = spectrogram(wave, rate, of, hop)
        sound = waveform.wave(decibels, rate, hop)
        assert error(sound, decibels, rate, hop) < 3
        assert np.abs(sound).max() == pytest.approx(waveform.LOUDEST)


def test_sound_is_where_the_spectrogram_has_it():
    """A click in the middle of silence, and silence around it."""
    wave = np.zeros(8000, np.float32)
    wave[4000:4080] = tone(1000, 0.01, 8000)
    sound = waveform.wave(spectrogram(wave, 8000), 8000, 160)
    assert 3800 <= np.abs(sound).argmax() <= 4280
    assert np.abs(np.concatenate([sound[:3600], sound[4500:]])).max() < 1e-3


def test_silence_stays_silence_and_what_is_faint_stays_faint():
    silent = np.full((audio.BANDS, 7), -audio.RANGE, np.float32)
    assert not waveform.wave(silent, 8000, 160).any()
    assert not waveform.wave(spectrogram(np.zeros(900, np.float32), 8000), 8000, 160).any()
    faint = waveform.wave(spectrogram(tone(440, 0.2, 8000), 8000) - 40, 8000, 160)
    assert np.abs(faint).max() == pytest.approx(waveform.LOUDEST / 100)


def test_the_seed_decides_and_nothing_else():
    decibels = spectrogram(next(clips())[0], 16000)
    first, again, other = (waveform.wave(decibels, 16000, 320, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_a_long_sound_is_made_in_pieces_without_a_seam(monkeypatch):
    monkeypatch.setattr(waveform, "AT_ONCE", 20)
    decibels = spectrogram(tone(np.linspace(300, 600, 16000), 1), 16000)
    sound = waveform.wave(decibels, 16000, 320)
    assert len(sound) == 16000
    loud = np.abs(sound).reshape(-1, 160).max(1)[3:-3]
    assert loud.min() > 0.3 * loud.max()
    assert error(sound, decibels, 16000) < 4


def test_what_a_tokenizer_gives_back_becomes_sound():
    """Ids and vectors; encoded again, the sound has about the bands that it was made of."""
    wave, rate = next(clips())
    ids, frames = audio.fit_audio(clips(), ids=64), vectors.fit_audio(clips(), 16000)
    for tokenizer in (ids, frames):
        decibels = tokenizer.decode(tokenizer.encode(wave, rate))
        sound = waveform.wave(decibels, tokenizer.rate, tokenizer.hop)
        assert len(tokenizer.encode(sound, tokenizer.rate)) == decibels.shape[1]
        loudest = decibels.max()  # of ids a little below 0, from which levels are counted anew
        assert error(sound, decibels - loudest, 16000) < 3


@pytest.mark.parametrize("shape", [(40,), (39, 5), (40, 0)])
def test_what_is_no_spectrogram_is_refused(shape):
    with pytest.raises(ValueError, match=r"a spectrogram \[.*\]; finite \[40, tokens\], one or more, is needed"):
        waveform.wave(np.zeros(shape), 8000, 160)
    with pytest.raises(ValueError, match="finite"):
        waveform.wave(np.full((40, 2), np.nan), 8000, 160)
