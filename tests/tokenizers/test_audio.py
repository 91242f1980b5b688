"""Sound to ids and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.tokenizers import archive, audio, codebook, image
from tests.support.codes import random_codes
from tests.support.media import clips, tone


@pytest.fixture(scope="module")
def fitted():
    return audio.fit_audio(clips(), ids=64)


@given(n=st.integers(1, 5000), hop=st.integers(80, 1600), rate=st.sampled_from([8000, 16000, 22050]))
@settings(max_examples=60, deadline=None)
def test_a_token_for_every_hop_that_has_begun(n, hop, rate):
    tokenizer = audio.AudioTokenizer(16000, hop, random_codes(9, audio.BANDS))
    resampled = -(-n * 16000 // rate)
    ids = tokenizer.encode(np.ones(n, np.float32), rate)
    assert ids.dtype == np.int32
    assert len(ids) == -(-resampled // hop) >= 1


def test_a_tone_is_loudest_in_its_own_band_and_a_second_has_50_tokens(fitted):
    assert (fitted.rate, fitted.hop, fitted.ids) == (16000, 320, 64)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42) / 2595) - 1)
    for hertz in (200, 1000, 4000, 7000):
        frames = audio._frames(tone(hertz, 1), 16000, 16000, 320)
        assert frames.shape == (50, 40)
        band = frames[5:-5].argmax(1)
        assert (edges[band] < hertz).all()
        assert (hertz < edges[band + 2]).all()


def test_decoding_gives_the_spectrogram_in_decibels(fitted):
    wave, rate = next(clips())
    picture = fitted.decode(fitted.encode(wave, rate))
    assert (picture.dtype, picture.shape) == (np.float32, (40, 25))
    assert -80 <= picture.min() < -30 < -10 < picture.max() <= 0
    true = audio._frames(wave, rate, 16000, 320).T * (80 / 255) - 80
    assert np.sqrt(np.mean((picture - true) ** 2)) < 6
    np.testing.assert_array_equal(fitted.encode(wave, rate), fitted.encode(wave, rate))
    np.testing.assert_array_equal(codebook.nearest(fitted.codes, fitted.codes), np.arange(64))


def test_loudness_and_offset_make_no_difference(fitted):
    for wave, rate in clips():
        ids = fitted.encode(wave, rate)
        for gain in (2.0**-10, 2.0**100):
            np.testing.assert_array_equal(fitted.encode(wave * np.float32(gain), rate), ids)
        for other in (wave / 15, wave.astype(np.float64), wave * 0.5 + 0.25):
            frames = audio._frames(other, rate, 16000, 320).astype(int)
            assert np.abs(frames - audio._frames(wave, rate, 16000, 320)).max() <= 1


def test_another_sample_rate_sounds_the_same(fitted):
    low, high = tone(1000, 1, 8000), tone(1000, 1, 48000)
    for wave, rate in ((low, 8000), (high, 48000)):
        near = fitted.decode(fitted.encode(wave, rate)) - fitted.decode(fitted.encode(tone(1000, 1), 16000))
        assert np.abs(near[:, 3:-3]).mean() < 2


def test_a_long_clip_is_framed_in_pieces_without_a_seam():
    wave = np.random.default_rng(0).standard_normal(4200 * 100).astype(np.float32)  # 4,200 frames, 4,096 at a time
    power = audio._power(wave, 16000, 100)
    late = audio._power(wave[4000 * 100 :], 16000, 100)
    np.testing.assert_allclose(power[4002:], late[2:], rtol=1e-6)


@pytest.mark.parametrize("value", [0, 0.3, -1e-44, 3e38])
def test_silence_is_the_quietest(value):
    frames = audio._frames(np.full(3000, value, np.float32), 44100, 16000, 320)
    assert (frames == 0).all()


def test_fitting_again_gives_the_same_tokenizer(fitted, tmp_path):
    assert archive.to_bytes(audio.fit_audio(clips(), ids=64)) == archive.to_bytes(fitted)
    one = tmp_path / "one.npz"
    archive.save(fitted, one)
    loaded = archive.load(audio.AudioTokenizer, one)
    assert archive.to_bytes(loaded) == one.read_bytes()
    assert (loaded.rate, loaded.hop) == (16000, 320)


def test_a_tokenizer_of_pictures_is_none_of_sound(tmp_path):
    file = tmp_path / "image.npz"
    archive.save(image.ImageTokenizer(4, 2, random_codes(5, 12)), file)
    with pytest.raises(ValueError, match="it holds 'mot image tokenizer 1' and 'mot audio tokenizer 1' is needed"):
        archive.load(audio.AudioTokenizer, file)
    file.write_bytes(archive.pack(audio.AudioTokenizer.FORMAT, {"rate": 10, "hop": 1, "codes": random_codes(5, 40)}))
    with pytest.raises(ValueError, match=r"image.npz: rate=10; must be from 8000 to 48000"):
        archive.load(audio.AudioTokenizer, file)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rate": 4000}, "rate=4000; must be from 8000 to 48000"),
        ({"hop": 10}, "hop=10; must be from 80 to 1600 samples at rate=16000, 5 to 100 ms; 320 gives 50 tokens"),
        ({"hop": 0}, "hop=0; must be"),
        ({"ids": 0}, "ids=0; must be from 1 to 65536"),
        ({"ids": 5000}, r"5000 ids were asked for and only \d+ different frames of 320 samples"),
        ({"clips": ()}, "only 0 different frames"),
    ],
)
def test_what_cannot_be_fitted_is_told_with_the_remedy(options, reason):
    with pytest.raises(ValueError, match=reason):
        audio.fit_audio(**{"clips": clips(), "ids": 8} | options)


@pytest.mark.parametrize(
    ("wave", "rate", "reason"),
    [
        (np.zeros(0, np.float32), 16000, "a clip is empty"),
        (np.zeros((9, 2), np.float32), 16000, r"a clip is float32 \[9, 2\]; it must be float \[samples\]"),
        (np.zeros(9, np.int16), 16000, "a clip is int16"),
        (np.array([0, np.nan], np.float32), 16000, "sample 1 of a clip is not finite"),
        (np.array([0, np.inf], np.float32), 16000, "sample 1 of a clip is not finite"),
        (np.ones(9, np.float32), 1, "a clip has 1 samples a second; allowed are 1000 to 768000"),
        (np.ones(9, np.float32), 10**9, "a clip has 1000000000 samples a second"),
    ],
)
def test_what_is_no_clip_is_a_value_error(fitted, wave, rate, reason):
    with pytest.raises(ValueError, match=reason):
        fitted.encode(wave, rate)


@pytest.fixture(scope="module")
def layered():
    return audio.fit_audio(clips(), ids=16, layers=3)


def test_each_layer_quantises_what_the_ones_before_leave_and_codes_add_up(layered):
    one = audio.fit_audio(clips(), ids=16)
    assert (layered.ids, one.ids, layered.codes.dtype, one.codes.dtype) == (48, 16, np.int16, np.uint8)
    np.testing.assert_array_equal(layered.codes[0], one.codes)
    for wave, rate in clips():
        frames = audio._frames(wave, rate, 16000, 320).astype(int)
        ids = layered.encode(wave, rate).reshape(3, len(frames))
        np.testing.assert_array_equal(ids[0], one.encode(wave, rate))
        total = np.zeros_like(frames)
        for layer, codes in enumerate(layered.codes.astype(int)):
            left = np.clip(frames - total, -255, 255)
            nearest = ((left[:, None] - codes) ** 2).sum(-1).argmin(1)
            np.testing.assert_array_equal(ids[layer] - 16 * layer, nearest)
            total = total + codes[nearest]
        found = layered.decode(ids.reshape(-1))
        np.testing.assert_allclose(found, total.clip(0, 255).T * (80 / 255) - 80, atol=1e-5)


def test_every_layer_brings_a_sound_nearer():
    def lost(tokenizer):
        pairs = [(audio._frames(x, of, 16000, 320).T * (80 / 255) - 80, tokenizer.encode(x, of)) for x, of in clips()]
        return np.mean([((tokenizer.decode(ids) - true) ** 2).mean() for true, ids in pairs])

    one, two, three = (lost(audio.fit_audio(clips(), ids=16, layers=n)) for n in (1, 2, 3))
    assert three < 0.8 * two < 0.8 * 0.8 * one


def test_a_file_of_layers_is_read_as_it_was_written_and_others_are_refused(layered, tmp_path):
    file = tmp_path / "audio.npz"
    archive.save(layered, file)
    assert archive.to_bytes(archive.load(audio.AudioTokenizer, file)) == file.read_bytes()
    for codes, why in (
        (layered.codes[:1], "2 to 16 layers"),
        (layered.codes.astype(np.uint8), "must be int16"),
        (layered.codes[:, ::-1].copy(), "canonical order"),
        (layered.codes * 3, "from -255 to 255|canonical order"),
    ):
        with pytest.raises(ValueError, match=why):
            audio.AudioTokenizer(16000, 320, codes)


def test_ids_that_a_model_draws_in_any_order_are_heard(layered):
    begins = layered.decode([3, 4])
    np.testing.assert_array_equal(layered.decode([20, 3, 4, 20])[:, 1], layered.decode([4, 20])[:, 0])
    np.testing.assert_array_equal(layered.decode([3, 4, 20, 21, 22, 23])[:, 1:], layered.decode([4, 21]))
    assert begins.shape == (40, 2)
    assert layered.decode(np.zeros(0, int)).shape == (40, 0)
    with pytest.raises(ValueError, match="2 ids and none of the first layer, 0 to 15"):
        layered.decode([20, 40])
    with pytest.raises(ValueError, match="id 48 has no code"):
        layered.decode([48])


def test_layers_have_as_many_ids_as_the_rests_yield():
    clip = (np.concatenate([tone(400, 0.5), tone(3000, 0.5)]), 16000)
    with pytest.raises(ValueError, match=r"500 ids were asked for and only \d+ different frames"):
        audio.fit_audio([clip], ids=500, layers=2)
    found = audio.fit_audio([clip], ids=500, layers=2, fewer=True)
    assert found.codes.shape[0] == 2
    assert found.codes.shape[1] < 100
    with pytest.raises(ValueError, match="16 layers of 9000 ids; at most 104857 ids in all"):
        audio.fit_audio(clips(), ids=9000, layers=16)
