"""Pictures to ids and back."""

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from mot.tokenizers import archive, image
from tests.support.codes import random_codes


def pictures(n=40, height=16, width=16):
    """Squares of one colour on a gradient."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, width).astype(np.uint8)
    out = np.broadcast_to(slope[None, None, :, None], (n, height, width, 3)).copy()
    for picture in out:
        y, x = rng.integers(0, 10, 2)
        picture[y : y + 6, x : x + 6] = rng.integers(0, 256, 3)
    return out


@pytest.fixture(scope="module")
def fitted():
    return image.fit_image(pictures(), side=16, patch=4, ids=50)


def test_a_picture_of_codes_comes_back_as_it_was(fitted):
    assert (fitted.ids, fitted.tokens) == (50, 16)
    ids = np.random.default_rng(0).integers(0, 50, 16)
    picture = fitted.decode(ids)
    assert (picture.dtype, picture.shape) == (np.uint8, (16, 16, 3))
    got = fitted.encode(picture)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, ids)
    np.testing.assert_array_equal(picture[4:8, 8:12].ravel(), fitted.codes_KP[ids[6]])  # second row, third patch


def test_single_pixels_are_reduced_to_the_nearest_colour():
    colours = np.array([[0, 0, 0], [200, 10, 10], [255, 255, 255]], np.uint8)
    tokenizer = image.ImageTokenizer(2, 1, colours)
    picture = np.array([[[3, 2, 1], [255, 250, 255]], [[180, 30, 0], [10, 10, 10]]], np.uint8)
    np.testing.assert_array_equal(tokenizer.encode(picture), [0, 2, 1, 0])


def test_more_ids_lose_less():
    seen = pictures()
    errors = []
    for ids in (4, 16, 48):
        tokenizer = image.fit_image(seen, 16, 1, ids)
        errors.append(np.mean([(tokenizer.decode(tokenizer.encode(x)) - x.astype(float)) ** 2 for x in seen]))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 20


def test_the_square_in_the_middle_is_seen_at_any_size(fitted):
    wide = np.zeros((64, 200, 3), np.uint8)
    wide[:, 68:132] = np.array(Image.fromarray(pictures()[3]).resize((64, 64), Image.Resampling.NEAREST))
    edges = wide.copy()
    edges[:, :68] = 255
    edges[:, 132:] = 90
    ids = fitted.encode(wide)
    np.testing.assert_array_equal(fitted.encode(edges), ids)
    np.testing.assert_array_equal(fitted.encode(wide.transpose(1, 0, 2)), fitted.encode(edges.transpose(1, 0, 2)))
    assert len(np.unique(ids)) > 4
    for size in ((1, 1), (1, 3000), (17, 5)):
        assert fitted.encode(np.full((*size, 3), 7, np.uint8)).shape == (16,)


def test_fitting_again_gives_the_same_tokenizer_on_any_number_of_threads(fitted):
    for threads in (1, 2):
        with threadpool_limits(threads):
            again = image.fit_image(iter(pictures()), 16, 4, 50)
        assert archive.to_bytes(again) == archive.to_bytes(fitted)
    assert archive.to_bytes(image.fit_image(pictures()[:30], 16, 4, 50)) != archive.to_bytes(fitted)


def test_dark_codes_come_first(fitted):
    sums = fitted.codes_KP.sum(1, dtype=int)
    assert (np.diff(sums) >= 0).all()
    assert sums[0] < sums[-1]


def test_saved_is_loaded_byte_for_byte(fitted, tmp_path):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    archive.save(fitted, one)
    loaded = archive.load(image.ImageTokenizer, one)
    archive.save(loaded, two)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(tmp_path.iterdir()) == [one, two]
    np.testing.assert_array_equal(loaded.encode(pictures()[0]), fitted.encode(pictures()[0]))


@pytest.mark.parametrize(
    ("numbers", "codes", "reason"),
    [
        ({"side": 0, "patch": 2}, random_codes(5, 12), "side=0; must be from 1 to 1024"),
        ({"side": 9, "patch": 2}, random_codes(5, 12), r"patch=2; must divide side=9; choose one of 1, 3, 9"),
        ({"side": 4, "patch": 1}, random_codes(5, 12), r"codes are uint8 \[5, 12\]; they must be uint8 \[ids, 3\]"),
        ({"side": 4, "patch": 2}, random_codes(5, 12)[::-1], "canonical order"),
        ({"side": 4, "patch": 2}, random_codes(5, 12)[[0, 0, 1]], "not all different"),
        ({"side": 4, "patch": 2}, random_codes(5, 12)[:0], "ids=0; must be from 1"),
    ],
)
def test_a_file_with_other_content_is_refused(numbers, codes, reason, tmp_path):
    file = tmp_path / "odd.npz"
    file.write_bytes(archive.pack(image.ImageTokenizer.FORMAT, numbers | {"codes": codes}))
    with pytest.raises(ValueError, match=f"odd.npz: .*{reason}"):
        archive.load(image.ImageTokenizer, file)


def test_a_missing_file_and_one_too_large_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        archive.load(image.ImageTokenizer, tmp_path / "none.npz")
    with pytest.raises(ValueError, match="cannot be read"):
        archive.load(image.ImageTokenizer, tmp_path)
    large = tmp_path / "large.npz"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="more than"):
        archive.load(image.ImageTokenizer, large)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"side": 2000}, "side=2000; must be from 1 to 1024"),
        ({"patch": 5}, "patch=5; must divide side=16; choose one of 1, 2, 4, 8, 16"),
        ({"patch": 0}, "patch=0; must divide"),
        ({"ids": 0}, "ids=0; must be from 1 to 65536"),
        ({"ids": 1 << 17}, "ids=131072; must be from 1 to 65536"),
        ({"patch": 16, "ids": 60000}, "ids=60000; must be from 1 to 10922"),
        ({"ids": 60000}, r"60000 ids were asked for and only \d+ different patches of 4 x 4 pixels .* at most \d+ ids"),
        ({"images": ()}, "only 0 different patches"),
    ],
)
def test_what_cannot_be_fitted_is_told_with_the_remedy(options, reason):
    with pytest.raises(ValueError, match=reason):
        image.fit_image(**{"images": pictures(), "side": 16, "patch": 4, "ids": 8} | options)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (4, 0, 3)])
def test_what_is_no_picture_is_a_value_error(fitted, shape):
    with pytest.raises(ValueError, match="a picture is"):
        fitted.encode(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="a picture is float32"):
        fitted.encode(np.zeros((4, 4, 3), np.float32))


def test_ids_without_a_code_or_of_no_picture_are_refused(fitted):
    for ids, reason in (([0] * 15, "15 ids are no picture"), ([50] * 16, "id 50 has no code"), ([-1] * 16, "id -1")):
        with pytest.raises(ValueError, match=reason):
            fitted.decode(ids)
    with pytest.raises(ValueError, match="ids are float64"):
        fitted.decode(np.zeros(16))
