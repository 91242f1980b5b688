import contextlib
import io
import os
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import wavfile

from mot.config.modalities import MODALITIES
from mot.prepare import media
from mot.prepare.codecs import action, audio, image, latents
from tests.support.media import encoded, npy, sound

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)


def png(width: int, height: int) -> bytes:
    """A header that may lie, and no pixels."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def wav(samples, rate=8000) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return file.getvalue()


def test_a_file_is_judged_by_its_size_before_it_is_read(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(np.ones((1, 2))))
    media.check_file(path, 1000)
    os.truncate(path, 300 * 10**9)  # sparse
    with pytest.raises(ValueError, match=r"a.npy has 300,000,000,000 bytes; at most 268,500,992 are allowed"):
        media.check_file(path, MODALITIES["latents"].max_bytes)
    with pytest.raises(ValueError, match=r"no file b.npy"):
        media.check_file(tmp_path / "b.npy", 1000)


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "JPEG", "GIF"])
def test_every_image_format_gives_its_pixels(form, tmp_path):
    smooth = np.full((7, 5, 3), (200, 100, 50), np.uint8)
    exact = form in ("PNG", "BMP", "WEBP")
    options = {"lossless": True} if form == "WEBP" else {}
    picture = PHOTO if exact else smooth
    data = encoded(picture, form, **options)
    got = image.pixels(data)
    assert (got.shape, got.dtype) == ((7, 5, 3), np.uint8)
    np.testing.assert_allclose(got.astype(int), picture, atol=0 if exact else 3)
    path = tmp_path / "picture"  # the bytes say what it is, not the name
    path.write_bytes(data)
    np.testing.assert_array_equal(image.pixels(path), got)
    got[0, 0] = 0  # the caller's own


@pytest.mark.parametrize("form", ["WEBP", "JPEG"])
def test_other_headers_of_a_format(form):
    """Lossy and extended WEBP and progressive JPEG keep their size elsewhere."""
    picture = np.full((33, 20, 3), 90, np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 1
    for options in ({}, {"exif": exif}, {"progressive": True}):
        assert image.pixels(encoded(picture, form, **options)).shape == (33, 20, 3)


def test_transparency_is_composited_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 255, 128
    expected = np.repeat(np.array([[255, 0, 127]])[..., None], 3, -1)
    palette = Image.fromarray(np.zeros((1, 3), np.uint8), "L").convert("P")
    np.testing.assert_array_equal(image.pixels(encoded(rgba, "PNG")), expected)
    np.testing.assert_array_equal(image.pixels(rgba), expected)
    assert (image.pixels(encoded(palette, "PNG", transparency=palette.getpixel((0, 0)))) == 255).all()


def test_grey_palette_cmyk_and_sixteen_bits_become_rgb():
    grey = np.array([[0, 128, 255]], np.uint8)
    expected = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(image.pixels(encoded(grey, "PNG")), expected)
    np.testing.assert_array_equal(image.pixels(grey), expected)
    np.testing.assert_array_equal(image.pixels(encoded(grey.astype(np.uint16) * 257, "PNG")), expected)
    np.testing.assert_array_equal(image.pixels(encoded(grey > 100, "PNG")), np.where(expected > 100, 255, 0))
    assert image.pixels(encoded(Image.new("CMYK", (4, 4)), "JPEG")).min() > 250


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    got = image.pixels(encoded(PHOTO, "PNG", exif=exif))
    np.testing.assert_array_equal(got, np.rot90(PHOTO, -1))


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(image.pixels(data), np.broadcast_to([255, 0, 0], (4, 4, 3)))


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (100_000, 5), (5, 100_000), (16385, 1), (16384, 4097)])
def test_sizes_are_refused_from_the_header_with_their_numbers(width, height, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ValueError, match=f"{width}x{height} pixels; sides of 1 to 16384"):
        image.pixels(png(width, height))
    bmp = bytearray(encoded(PHOTO, "BMP"))
    bmp[18:26] = struct.pack("<ii", width, -height)
    with pytest.raises(ValueError, match=f"{width}x{height} pixels"):
        image.pixels(bytes(bmp))


def test_sizes_of_every_header_are_seen(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    gif = b"GIF89a" + struct.pack("<HH", 60000, 3) + bytes(20)
    jpeg = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xc2\x00\x11\x08" + struct.pack(">HH", 0, 4) + bytes(20)
    vp8x = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (99_999).to_bytes(3, "little") + bytes(3)
    for data, size in ((gif, "60000x3"), (jpeg, "4x0"), (vp8x, "100000x1")):
        with pytest.raises(ValueError, match=f"an image of {size} pixels"):
            image.pixels(data)
    with pytest.raises(ValueError, match="an image of 20000x2 pixels"):
        image.pixels(np.zeros((2, 20000), np.uint8))


@pytest.mark.parametrize(("form", "options"), [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {})])
def test_what_pillow_opens_without_decoding_is_read(form, options):
    np.testing.assert_array_equal(image.pixels(encoded(PHOTO, form, **options)), PHOTO)
    grey = np.array([[0, 65535]], np.uint16)
    np.testing.assert_array_equal(image.pixels(encoded(grey, form, **options))[..., 0], [[0, 255]])


def test_avif_is_read():
    got = image.pixels(encoded(np.full((9, 8, 3), 200, np.uint8), "AVIF"))
    assert got.shape == (9, 8, 3)
    assert abs(int(got.mean()) - 200) < 5


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_pictures_of_several_frames_are_counted(form):
    seen, frames = Counter(), [Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)]
    assert image.pixels(encoded(frames[0], form, save_all=True, append_images=frames[1:]), seen).shape == (7, 5, 3)
    assert image.pixels(encoded(frames[0], form), seen).shape == (7, 5, 3)
    assert seen == {image.ANIMATED: 1}


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "JPEG", "GIF", "TIFF", "AVIF", "PPM"])
def test_a_truncated_image_is_refused(form):
    data = encoded(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8), form)
    for end in (0, 1, 10, len(data) // 2):
        with pytest.raises(ValueError, match=r".+"):
            image.pixels(data[:end])


def test_what_is_no_image_is_refused(tmp_path):
    floats = encoded(np.full((4, 4), 0.5, np.float32), "TIFF")
    for content, message in (
        (encoded(PHOTO, "TGA"), "not a PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF or PPM image"),
        (floats, "its pixels are floats"),
        (b"P6 99999 3 255\n" + bytes(9), "sides of 1 to 16384"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a PNG"),
        (b"\xff\xd8\xff\xd9" + bytes(9), "names no size"),
        (b"", "no bytes"),
        (tmp_path / "none.png", "no file none.png"),
        (tmp_path, "is not a file"),
        (PHOTO.astype(np.float32), r"float32 \[7, 5, 3\]; uint8"),
        (PHOTO[..., :2], r"uint8 \[7, 5, 2\]; uint8"),
        (png(3, 3), "does not decode"),
    ):
        with pytest.raises(ValueError, match=message):
            image.pixels(content)


def test_a_file_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "large.png"
    with open(path, "wb") as file:
        file.truncate(MODALITIES["image"].max_bytes + 1)  # sparse
    with pytest.raises(ValueError, match=r"268,435,457 bytes; at most 268,435,456"):
        image.pixels(path)


def test_a_header_that_lies_about_a_jpeg_is_refused():
    """Of two frame headers Pillow believes the later one."""
    data = encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")
    at = data.index(b"\xff\xc0")
    frame = bytearray(data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4])])
    frame[5:9] = struct.pack(">HH", 60000, 60000)
    with pytest.raises(ValueError, match=r"JPEG"):
        image.pixels(data[: at + len(frame)] + bytes(frame) + data[at + len(frame) :])


WAVE = np.sin(np.arange(4000) / 9) / 2


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (wav((WAVE * 32767).astype(np.int16), 16000), 1e-4),
        (wav(WAVE.astype(np.float32), 16000), 1e-6),
        (sound(WAVE, "WAV", "PCM_24"), 1e-5),
        (sound(WAVE, "WAV", "PCM_U8"), 1e-2),
        (sound(WAVE, "FLAC"), 1e-4),
        (sound(WAVE, "OGG"), 0.1),
    ],
)
def test_every_audio_format_gives_its_samples(data, tolerance, tmp_path):
    wave, rate = audio.sound(data)
    assert (wave.dtype, rate) == (np.float32, 16000)
    np.testing.assert_allclose(wave, WAVE, atol=tolerance)
    path = tmp_path / "clip"
    path.write_bytes(data)
    np.testing.assert_array_equal(audio.sound(path)[0], wave)


def test_mp3_is_read():
    data = sound(np.tile(WAVE, 8), "MP3")
    wave, rate = audio.sound(data)
    assert rate == 16000
    assert abs(len(wave) - 32000) < 3000  # an encoder's padding
    assert 0.4 < np.abs(wave).max() < 0.6


def test_channels_are_averaged_and_arrays_scaled():
    stereo = np.stack([WAVE, 0 * WAVE], 1)
    np.testing.assert_allclose(audio.sound(sound(stereo, "FLAC"))[0], WAVE / 2, atol=1e-4)
    for array, expected in (
        (np.array([-32768, 0, 16384], np.int16), [-1, 0, 0.5]),
        (np.array([-(2**31), 0, 2**30], np.int32), [-1, 0, 0.5]),
        (np.array([0, 128, 192], np.uint8), [-1, 0, 0.5]),
        (np.array([-1.5, 0, 0.5]), [-1, 0, 0.5]),
    ):
        wave, rate = audio.sound(array, 8000)
        assert (wave.dtype, rate) == (np.float32, 8000)
        np.testing.assert_array_equal(wave, np.float32(expected))


def test_bad_audio_is_refused(monkeypatch):
    good = wav((WAVE * 32767).astype(np.int16))
    flac, ogg = sound(WAVE, "FLAC"), sound(RNG.normal(size=40000) / 10, "OGG")
    claims = bytearray(flac)
    claims[21:26] = bytes([claims[21] | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # samples in all: 2^36 - 1
    for content, rate, message in (
        (good[:-100], 0, "cut off: 7900 of 8000 bytes"),
        (good[:30], 0, "cut off"),
        (flac[: len(flac) // 2], 0, "does not decode"),
        (flac[:-1], 0, "does not decode"),
        *((ogg[:end], 0, "cut off") for end in (9, 200, len(ogg) // 2, len(ogg) - 1)),
        (bytes(claims), 0, "at most 3600 seconds"),
        (b"FORM\0\0\0\0AIFF" + bytes(50), 0, "not a WAV, FLAC, OGG or MP3"),
        (b"", 0, "no bytes"),
        (wav(np.zeros(0, np.int16)), 0, "audio of 0 samples"),
        (wav(np.zeros(9, np.int16), 50), 0, "audio of 50 samples a second; 1000 to 384000"),
        (wav(np.array([0, np.nan], np.float32)), 0, "samples reach nan"),
        (np.full(9, 3e4), 8000, "samples reach 30000"),
        (np.zeros((9, 2)), 8000, r"float64 \[9, 2\]; float"),
        (np.zeros(9, complex), 8000, "complex128"),
        (np.zeros(9), 0, "audio of 0 samples a second"),
        (np.zeros(3600 * 1000 + 1, np.int16), 1000, "at most 3600 seconds"),
    ):
        with pytest.raises(ValueError, match=message):
            audio.sound(content, rate)
    monkeypatch.setattr(audio, "MAX_BYTES", 4 * 7999)
    with pytest.raises(ValueError, match="4000 samples by 2 channels; at most 7999 together"):
        audio.sound(sound(np.stack([WAVE, WAVE], 1), "FLAC"))


def of_unknown_length(flac: bytes) -> bytes:
    """With STREAMINFO's number of samples 0, as the encoder writes it to a pipe."""
    data = bytearray(flac)
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


@pytest.mark.parametrize("samples", [1, 4000, 2**16, 2**17 + 7])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_flac_of_unknown_length_is_read_to_its_end(samples, channels):
    wave = np.stack([np.sin(np.arange(samples) / 9) / 2, np.zeros(samples)][:channels], 1)
    flac = sound(wave, "FLAC")
    got, rate = audio.sound(of_unknown_length(flac))
    np.testing.assert_array_equal(got, audio.sound(flac)[0])
    assert (len(got), rate) == (samples, 16000)


def test_a_length_that_is_unknown_is_no_way_round_the_limits(monkeypatch):
    endless = of_unknown_length(sound(WAVE, "FLAC"))
    monkeypatch.setattr(audio, "MAX_SECONDS", 0.2)
    with pytest.raises(ValueError, match="audio of 4000 samples at 16000 a second; at least one"):
        audio.sound(endless)
    header = bytearray(endless[:42])
    header[4] |= 0x80  # STREAMINFO is the last block before the sound, of which there is none
    with pytest.raises(ValueError, match=r"audio of 0 samples|does not decode"):
        audio.sound(bytes(header))
    with pytest.raises(ValueError, match="does not decode"):
        audio.sound(endless[:-9])
    monkeypatch.setattr(audio, "MAX_SECONDS", 3600)
    monkeypatch.setattr(audio, "MAX_BYTES", 4 * 7999)
    with pytest.raises(ValueError, match="4000 samples by 2 channels; at most 7999 together"):
        audio.sound(of_unknown_length(sound(np.stack([WAVE, WAVE], 1), "FLAC")))


def rf64(samples: np.ndarray, size: int | None = None, magic=b"RF64", rate=8000) -> bytes:
    """int16 [n] as EBU Tech 3306 has it; `size`: bytes of sound, as the header says."""
    data = samples.astype("<i2").tobytes()
    size = len(data) if size is None else size
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, min(size + 72, 2**64 - 1), size, len(samples), 0)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return (
        struct.pack("<4sI4s", magic, 2**32 - 1, b"WAVE") + ds64 + form + struct.pack("<4sI", b"data", 2**32 - 1) + data
    )


def test_a_wav_whose_writer_could_not_know_its_length_is_read():
    """ffmpeg, sox, espeak, GStreamer and a recorder that was killed each leave another number in the header."""
    samples = (WAVE * 32767).astype(np.int16)
    plain = wav(samples)
    expected, at = audio.sound(plain)[0], plain.index(b"data") + 4
    for size in (2**32 - 1, 2**31 - 1, 0x7FFFF000, 2**32 - 37, 0):
        for whole in (2**32 - 1, 0, 36):
            piped = bytearray(plain)
            struct.pack_into("<I", piped, at, size)
            struct.pack_into("<I", piped, 4, whole)
            np.testing.assert_array_equal(audio.sound(bytes(piped))[0], expected)
    for magic in (b"RF64", b"BW64"):
        for size in (None, 0, 2**64 - 1, 2**32 - 1):
            got, rate = audio.sound(rf64(samples, size, magic))
            np.testing.assert_array_equal(got, expected)
            assert rate == 8000


def test_a_wav_that_is_cut_off_or_empty_is_not_taken_for_one_of_unknown_length():
    samples = (WAVE * 32767).astype(np.int16)
    with pytest.raises(ValueError, match="cut off: 7900 of 8000 bytes"):
        audio.sound(rf64(samples)[:-100])
    with pytest.raises(ValueError, match="cut off: no samples"):
        audio.sound(rf64(samples)[:60])
    with pytest.raises(ValueError, match="audio of 0 samples"):
        audio.sound(rf64(samples[:0]))
    empty = wav(samples[:0]) + b"LIST\x04\0\0\0INFO"  # a chunk after no sound
    with pytest.raises(ValueError, match="audio of 0 samples"):
        audio.sound(empty[:4] + struct.pack("<I", len(empty) - 8) + empty[8:])


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_latents_are_read_as_they_are(dtype, tmp_path):
    array = RNG.normal(size=(3, 4)).astype(dtype)
    expected = array.astype(np.float32)
    path = tmp_path / "x.npy"
    path.write_bytes(npy(array))
    for content in (npy(array), path, array, npy(np.asfortranarray(array))):
        got = latents.vectors(content)
        assert (got.dtype, got.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_array_equal(got, expected)
    assert latents.vectors(npy(array[0])).shape == (1, 4)


def test_bad_latents_are_refused():
    def header(shape):
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "<f4"})
        return file.getvalue()

    for content, message in (
        (npy(np.array([[1, np.nan]])), "NaN or infinity"),
        (np.array([[1, np.inf]]), "NaN or infinity"),
        (npy(np.array([1e300])), "NaN or infinity"),  # in float32
        (npy(np.zeros((2, 3), int)), r"int64 \[2, 3\]; float16"),
        (npy(np.zeros((1, 2, 3, 4))), r"\[1, 2, 3, 4\]; float16"),
        (npy(np.zeros((0, 4))), r"\[0, 4\]"),
        (npy(np.float64(1)), r"float64 \[\]"),
        (npy(np.zeros((5, 4), np.float32))[:-1], "cut off: 79 of 80 bytes"),
        (npy(np.array([{"a": 1}]), allow_pickle=True), "latents object"),
        (header((2**40, 2**40)), f"at most {latents.MAX_BYTES} bytes"),
        (header((-1, 4)), "shape"),
        (b"\x93NUMPY\x01\x00\x05\x00((((\n", "not a .npy file"),
        (b"\x80\x04K\x01.", "not a .npy file"),  # a pickle
    ):
        with pytest.raises(ValueError, match=message):
            latents.vectors(content)


def test_actions_are_read_as_paths_with_a_pen(tmp_path):
    array = np.array([[1, 2, 0], [3, 4, 1]], np.int16)
    path = tmp_path / "x.npy"
    path.write_bytes(npy(array))
    for content in (npy(array), path, array, array.astype(">f8")):
        got = action.path(content)
        assert got.dtype == np.float32
        assert got.tolist() == array.tolist()
    assert action.path(array[:, :2]).tolist() == [[1, 2, 0], [3, 4, 0]]
    for content, message in (
        (np.zeros((2, 4)), r"an action float64 \[2, 4\]; numbers .* give other columns as latents"),
        (np.zeros(3), r"an action float64 \[3\]"),
        (np.zeros((0, 3)), r"an action float64 \[0, 3\]"),
        (np.zeros((2, 2), complex), "an action complex128"),
        (npy(np.array([[{}, 1]]), allow_pickle=True), "an action object"),
        (np.array([[1, np.nan]]), "the action holds NaN or infinity"),
        (npy(array)[:-1], "cut off: 11 of 12 bytes"),
        (np.broadcast_to(np.float32(0), (10**7, 2)), f"at most {action.MAX_BYTES} bytes"),
        (b"junk", "not a .npy file"),
    ):
        with pytest.raises(ValueError, match=message):
            action.path(content)


SEEDS = {
    image.pixels: [
        *(encoded(PHOTO, form) for form in image.FORMATS),
        encoded(np.zeros((9, 9, 4), np.uint8), "WEBP", lossless=True),
        png(3, 3),
    ],
    audio.sound: [
        wav(np.zeros(99, np.int16)),
        rf64(np.zeros(99)),
        of_unknown_length(sound(WAVE, "FLAC")),
        *(sound(WAVE, form) for form in ("FLAC", "OGG", "MP3")),
    ],
    action.path: [npy(np.ones((2, 3), np.int16)), npy(np.ones((4, 2)))],
    latents.vectors: [npy(np.ones((2, 3), np.float32)), npy(np.ones(3)), npy(np.array([None]), allow_pickle=True)],
}


@pytest.mark.parametrize("decode", SEEDS, ids=lambda f: f.__name__)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_only_a_value_error_comes_out_of_random_and_changed_bytes(decode, data):
    start = data.draw(st.sampled_from([b"", *SEEDS[decode]]))
    content = bytearray(start) if start else bytearray(data.draw(st.binary(max_size=200)))
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        # Most of what a decoder believes stands in the first bytes.
        at = data.draw(st.integers(0, len(content) - 1) | st.integers(0, min(60, len(content) - 1)))
        change = data.draw(st.binary(max_size=4))
        content[at : at + data.draw(st.integers(0, 4))] = change
        if not content:
            break
    content = bytes(content[: data.draw(st.none() | st.integers(0, len(content)))])
    with contextlib.suppress(ValueError):
        decode(content)
