"""Films to ids and back."""

import numpy as np
import pytest

from mot.prepare.codecs import video as codec
from mot.prepare.raw import Part
from mot.tokenizers import archive, image, video
from tests.support.media import npy


def film(seed=0, frames=6, side=8):
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), np.uint8)


@pytest.fixture(scope="module")
def fitted():
    return video.fit_video((film(i) for i in range(4)), frames=3, side=8, patch=4, ids=48)


def test_the_frames_that_are_seen_are_the_last_of_equal_stretches():
    assert video.chosen(16, 4).tolist() == [3, 7, 11, 15]
    assert video.chosen(6, 3).tolist() == [1, 3, 5]
    assert video.chosen(5, 2).tolist() == [2, 4]
    assert video.chosen(1, 3).tolist() == [0, 0, 0]
    assert video.chosen(2, 4).tolist() == [0, 0, 1, 1]


def test_ids_are_those_of_the_frames_as_pictures_one_after_another(fitted):
    assert (fitted.ids, fitted.tokens, fitted.shape) == (48, 12, (3, 2, 2))
    pictures = image.ImageTokenizer(8, 4, fitted.codes_KP)
    ids = fitted.encode(film(1))
    np.testing.assert_array_equal(ids, np.concatenate([pictures.encode(film(1)[i]) for i in (1, 3, 5)]))
    np.testing.assert_array_equal(fitted.decode(ids), np.stack([pictures.decode(x) for x in ids.reshape(3, 4)]))
    np.testing.assert_array_equal(fitted.decode(ids.reshape(fitted.shape)), fitted.decode(ids))
    # As many codes as patches: nothing is lost.
    np.testing.assert_array_equal(fitted.decode(ids), film(1)[[1, 3, 5]])


def test_it_is_kept_and_what_is_none_is_told(fitted, tmp_path):
    archive.save(fitted, tmp_path / "video.npz")
    loaded = archive.load(video.VideoTokenizer, tmp_path / "video.npz")
    assert archive.to_bytes(loaded) == archive.to_bytes(fitted)
    with pytest.raises(ValueError, match="11 ids are no film: it has 12"):
        fitted.decode(np.zeros(11, int))
    with pytest.raises(ValueError, match=r"a film is uint8 \[8, 8, 3\]"):
        fitted.encode(film()[0])
    with pytest.raises(ValueError, match="frames=0; must be 1"):
        video.fit_video([film()], 0, 8, 4, 4)
    with pytest.raises(ValueError, match="patch=3; must divide side=8"):
        video.fit_video([film()], 2, 8, 3, 4)


def test_a_sample_s_file_is_read_again_with_all_its_frames_though_some_are_equal(fitted):
    grey = np.repeat(np.array([0, 0, 90, 90, 255], np.uint8)[:, None, None, None], 8, 1).repeat(8, 2).repeat(3, 3)
    made = codec.files(grey, fitted, 0)
    assert list(made) == ["gif", "png"]
    np.testing.assert_array_equal(codec.frames(made["gif"]), grey)
    assert codec.box(grey, fitted, codec.Room()).caption == ", 5 frames"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (np.zeros((2, 4, 4), np.float32), r"video array float32 \[2, 4, 4\]; uint8 \[N, H, W\]"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"video array uint8 \[2, 4, 4, 4\]"),
        (np.zeros((5000, 1, 1), np.uint8), "a film of 5000 frames of 1x1 pixels; 1 to 4096 frames"),
        (np.zeros((0, 4, 4), np.uint8), "a film of 0 frames"),
        (b"GIF89a", "header is cut off"),
        (npy(np.zeros(3)), "not a PNG"),
    ],
)
def test_what_is_no_film_is_a_value_error(content, why):
    with pytest.raises(ValueError, match=why):
        codec.read(Part("video", content), {})
