"""Pictures, sound and pen strokes to vectors and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mot.tokenizers import archive, audio, vectors
from mot.tokenizers.vectors import ActionVectors, AudioVectors, ImageVectors

RNG = np.random.default_rng(0)
PICTURES = ImageVectors(8, 2)


def tone(hertz, seconds, rate=8000):
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate).astype(np.float32)


@pytest.fixture(scope="module")
def sound():
    clips = [(tone(h, s) * RNG.uniform(0.1, 1), 8000) for h, s in ((300, 0.5), (900, 1), (2000, 0.3), (150, 0.7))]
    return vectors.fit_audio(clips, 8000), clips


def drawing(strokes=3, n=20, seed=0):
    """float32 `[strokes * n, 3]`: walks of a pen."""
    rng = np.random.default_rng(seed)
    path = np.column_stack([rng.normal(size=(strokes * n, 2)).cumsum(0) * 5 + 50, np.zeros(strokes * n)])
    path[n - 1 :: n, 2] = 1
    return path.astype(np.float32)


def strokes(offsets=False, points=64):
    return vectors.fit_action([drawing(seed=s) for s in range(20)], points, offsets)


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.uint8, (8, 8, 3)))
def test_a_picture_comes_back_as_it_was_also_from_two_bytes_a_feature(picture):
    x = PICTURES.encode(picture)
    assert (x.dtype, x.shape) == (np.float32, (PICTURES.tokens, PICTURES.width)) == (np.float32, (16, 12))
    assert np.abs(x).max() <= 1
    np.testing.assert_array_equal(PICTURES.decode(x), picture)
    np.testing.assert_array_equal(PICTURES.decode(x.astype(np.float16)), picture)
    np.testing.assert_allclose(x[5], picture[2:4, 2:4].ravel() / 127.5 - 1, atol=1e-6)  # second row, second patch


def test_what_a_model_overshoots_is_clipped():
    x = np.full((16, 12), 3.0, np.float32)
    x[3] = -7
    picture = PICTURES.decode(x)
    assert (picture[0, 6:].min(), picture[0, 6:].max(), picture[0, :6].min()) == (0, 0, 255)


def test_frames_of_sound_have_mean_0_and_deviation_1_and_give_its_spectrogram_back(sound):
    tokenizer, clips = sound
    x = np.concatenate([tokenizer.encode(wave, rate) for wave, rate in clips])
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-4)
    varies = tokenizer.scale_P > vectors.FAINTEST
    assert varies.sum() > 20
    np.testing.assert_allclose(x.std(0)[varies], 1, atol=1e-3)
    wave = clips[0][0]
    decibels = tokenizer.decode(tokenizer.encode(wave, 8000))
    assert decibels.shape == (audio.BANDS, 25)
    exact = (audio.levels(wave, 8000, 8000, 160).T - 1) * audio.RANGE
    np.testing.assert_allclose(decibels, exact, atol=1e-3)
    np.testing.assert_allclose(tokenizer.encode(wave / 9, 8000), tokenizer.encode(wave, 8000), atol=1e-3)
    assert tokenizer.decode(np.full((3, audio.BANDS), 99.0)).max() == 0


def test_fitting_again_gives_the_same(sound):
    tokenizer, clips = sound
    again = vectors.fit_audio(iter(clips), 8000)
    assert archive.to_bytes(again) == archive.to_bytes(tokenizer)


@pytest.mark.parametrize("offsets", [False, True])
def test_a_drawing_comes_back_within_a_point_s_distance(offsets):
    tokenizer = strokes(offsets)
    assert (tokenizer.tokens, tokenizer.width) == (64, 3)
    path = drawing(seed=3)
    x = tokenizer.encode(path)
    assert (x.dtype, x.shape) == (np.float32, (64, 3))
    assert set(x[:, 2]) == {-1, 1}
    if offsets:
        assert x[0, :2].tolist() == [0, 0]
        every = np.concatenate([tokenizer.encode(drawing(seed=s))[1:, :2] for s in range(20)])
        np.testing.assert_allclose(np.mean(every**2), 1, rtol=1e-4)
    else:
        assert np.abs(x[:, :2]).max() <= 1
    found = tokenizer.decode(x)
    assert len(found) == 3
    shift = found[0][0] - path[0, :2] if offsets else np.zeros(2)  # where a drawing lies is lost
    step = max(np.hypot(*np.diff(stroke, axis=0).T).max() for stroke in found)
    for stroke, whole in zip(found, np.split(path[:, :2].astype(float), 3), strict=True):
        np.testing.assert_allclose(stroke[[0, -1]] - shift, whole[[0, -1]], atol=1e-2)
        for point in whole:
            assert np.hypot(*(stroke - shift - point).T).min() < step


def test_points_are_spread_by_length_and_no_stroke_is_without():
    path = np.array([[0, 0, 0], [0, 90, 1], [5, 5, 1], [0, 0, 0], [0, 10, 1]])
    place, pen = vectors.resampled(path, 26)
    assert np.flatnonzero(pen == 1).tolist() == [19, 21, 25]
    np.testing.assert_allclose(place[:20, 1], np.linspace(0, 90, 20))
    assert place[20:22].tolist() == [[5, 5], [5, 5]]
    dots = np.array([[1, 2, 1], [3, 4, 1]])
    place, pen = vectors.resampled(dots, 7)
    assert np.unique(place, axis=0).tolist() == [[1, 2], [3, 4]]
    assert pen.tolist() in ([-1, -1, 1, -1, -1, -1, 1], [-1, -1, -1, 1, -1, -1, 1])


def test_a_path_without_a_pen_s_last_sign_is_the_same():
    path = drawing()
    other = path.copy()
    other[-1, 2] = 0
    np.testing.assert_array_equal(strokes().encode(path), strokes().encode(other))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_path_gives_finite_vectors_or_a_reason(data):
    n = data.draw(st.integers(1, 40))
    path = data.draw(arrays.arrays(np.float32, (n, 3), elements=st.floats(-1000, 1000, width=32)))
    tokenizer = vectors.fit_action([drawing()], 12, data.draw(st.booleans()))
    x, why = None, ""
    try:
        x = tokenizer.encode(path)
    except ValueError as error:
        why = str(error)
    if x is None:
        assert "strokes; 12 points hold 6" in why or "reaches" in why
        return
    assert x.shape == (12, 3)
    assert np.isfinite(x).all()
    assert sum(map(len, tokenizer.decode(x))) == 12


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (np.zeros((0, 3)), "a path is float64"),
        (np.zeros((4, 2)), r"a path is float64 \[4, 2\]; it must be numbers \[points, 3\]: x, y, pen up"),
        (np.zeros(3), "a path is float64"),
        (np.full((4, 3), np.nan), "a path is not finite"),
        (np.ones((33, 3)), "a drawing of 33 strokes; 64 points hold 32; take more"),
        (
            drawing() * 1e4,
            r"a drawing reaches [\d.e+]+ where the first ones were about .* large; bring all to one unit",
        ),
    ],
)
def test_a_path_that_cannot_be_kept_is_told(path, why):
    with pytest.raises(ValueError, match=why):
        strokes().encode(path)


def test_nothing_to_learn_from_is_told():
    with pytest.raises(ValueError, match="no clip to learn from"):
        vectors.fit_audio([], 8000)
    with pytest.raises(ValueError, match="no path to learn from: there is none"):
        vectors.fit_action([], 64, False)
    with pytest.raises(ValueError, match="no path to learn from: a drawing of 60 strokes; 64 points hold 32"):
        vectors.fit_action([np.ones((60, 3))], 64, False)
    with pytest.raises(ValueError, match="points=1; must be from 2 to 4096"):
        vectors.fit_action([drawing()], 1, False)
    one = vectors.fit_action([np.ones((1, 3))], 4, False)  # a dot, of no size
    assert one.encode(np.ones((1, 3)))[:, :2].tolist() == [[0, 0]] * 4


def tokenizers():
    return {
        ImageVectors: PICTURES,
        AudioVectors: vectors.fit_audio([(tone(300, 1), 8000)], 8000),
        ActionVectors: strokes(),
    }


@pytest.mark.parametrize("kind", [ImageVectors, AudioVectors, ActionVectors])
def test_vectors_that_do_not_fit_are_refused(kind):
    tokenizer = tokenizers()[kind]
    n, width = tokenizer.tokens or 5, tokenizer.width
    tokenizer.decode(np.zeros((n, width), np.float32))
    wrong = [np.zeros((n, width + 1)), np.zeros((n, width), int), np.zeros(width), np.zeros((0, width))]
    wrong += [np.zeros((n + 1, width))] * bool(tokenizer.tokens)
    for x in wrong:
        with pytest.raises(ValueError, match=rf"it must be floats \[{tokenizer.tokens or 'n'}, {width}\]"):
            tokenizer.decode(x)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="features that are not finite"):
            tokenizer.decode(np.full((n, width), bad))


@pytest.mark.parametrize("kind", [ImageVectors, AudioVectors, ActionVectors])
def test_saved_is_loaded_byte_for_byte_and_nothing_else_is(kind, tmp_path):
    tokenizer, file = tokenizers()[kind], tmp_path / "a.npz"
    archive.save(tokenizer, file)
    assert list(tmp_path.iterdir()) == [file]
    loaded = archive.load(kind, file)
    assert archive.to_bytes(loaded) == archive.to_bytes(tokenizer) == file.read_bytes()
    assert type(loaded) is kind
    for other in tokenizers().keys() - {kind}:
        with pytest.raises(ValueError, match=r"a.npz: it holds 'mot .* vectors 1' and 'mot .* is needed; give another"):
            archive.load(other, file)
    content = file.read_bytes()
    for at in range(0, len(content), 7):
        file.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        with pytest.raises(ValueError, match=r"a\.npz: "):
            archive.load(kind, file)
    for junk in (b"", b"junk", content[:-1], content + b"1"):
        file.write_bytes(junk)
        with pytest.raises(ValueError, match=r"a\.npz: "):
            archive.load(kind, file)
    file.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        archive.load(kind, file)


BANDS = np.ones(audio.BANDS)


@pytest.mark.parametrize(
    ("kind", "values", "why"),
    [
        (ImageVectors, {"side": 8, "patch": 3}, "patch=3; must divide side=8"),
        (ImageVectors, {"side": 8.0, "patch": 2}, "side is float64; int is needed"),
        (ImageVectors, {"side": [8], "patch": 2}, "side is int64; int is needed"),
        (AudioVectors, {"rate": 8000, "hop": 1, "mean_P": BANDS, "scale_P": BANDS}, "hop=1; must be from 40"),
        (AudioVectors, {"rate": 8000, "hop": 160, "mean_P": BANDS[1:], "scale_P": BANDS}, r"float64 \[40\] needed"),
        (AudioVectors, {"rate": 8000, "hop": 160, "mean_P": BANDS * np.nan, "scale_P": BANDS}, "a band's constants"),
        (AudioVectors, {"rate": 8000, "hop": 160, "mean_P": BANDS, "scale_P": 0 * BANDS}, "vary by 0.0; must be 0.001"),
        (ActionVectors, {"points": 1, "offsets": True, "centre": [0.0, 0], "scale": 1.0}, "points=1; must be from 2"),
        (ActionVectors, {"points": 9, "offsets": 1, "centre": [0.0, 0], "scale": 1.0}, "offsets is int64; bool is"),
        (ActionVectors, {"points": 9, "offsets": True, "centre": [0.0], "scale": 1.0}, r"the centre float64 \[1\]"),
        (ActionVectors, {"points": 9, "offsets": True, "centre": [0.0, 0], "scale": 0.0}, "the scale above 0"),
        (
            ActionVectors,
            {"points": 9, "offsets": True, "centre": [0.0, np.nan], "scale": 1.0},
            "nan., scale 1.0; at most",
        ),
    ],
)
def test_a_file_with_other_content_is_refused(kind, values, why, tmp_path):
    file = tmp_path / "odd.npz"
    file.write_bytes(archive.pack(kind.FORMAT, {name: np.asarray(x) for name, x in values.items()}))
    with pytest.raises(ValueError, match=f"odd.npz: .*{why}"):
        archive.load(kind, file)
