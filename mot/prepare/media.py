"""Encoded media to arrays. What a file claims to be is read from its header and judged before anything is decoded.

Every fault of a file is a `ValueError` that says why; nothing here unpickles.
"""

import contextlib
import io
import math
import re
import struct
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from mot.errors import reason

IMAGES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
MAX_SIDE = 16384
MAX_PIXELS = 64 * 2**20
MAX_IMAGE_BYTES = 256 * 2**20
RATES = (1000, 384_000)
MAX_SECONDS = 3600
MAX_AUDIO_BYTES = 512 * 2**20
MAX_LATENT_BYTES = 256 * 2**20
MAX_ACTION_BYTES = 16 * 2**20
MAX_HEADER = 64 * 2**10  # bytes of a .npy's
MAX_FILE = {  # bytes
    "image": MAX_IMAGE_BYTES,
    "audio": MAX_AUDIO_BYTES,
    "action": MAX_ACTION_BYTES + MAX_HEADER,
    "latents": MAX_LATENT_BYTES + MAX_HEADER,
    "ids": MAX_LATENT_BYTES + MAX_HEADER,
}
UNKNOWN = 2**62  # samples, and more: what libsndfile says of a FLAC whose header leaves its length open
PIPED = 0x7FFFF000  # bytes, and more: what writers to a pipe say of a WAV, whose length they do not know
PEAK = 4.0  # decoders overshoot 1 a little; a float wave beyond this was not scaled to -1..1


def image(content: bytes | Path | np.ndarray, seen: Counter | None = None) -> np.ndarray:
    """uint8 [H, W, 3]: upright by its EXIF orientation, alpha composited on white, the first frame of several, which
    `seen` counts as "animated".

    Encoded as one of IMAGES, or an array uint8 [H, W], [H, W, 3] or [H, W, 4].
    """
    if isinstance(content, np.ndarray):
        return _pixels(content)
    from PIL import Image, ImageOps

    encoded = _bytes(content, MAX_FILE["image"])
    try:
        form, *told = _image_header(encoded)
    except struct.error:
        raise ValueError("the image's header is cut off") from None
    if told:
        _check_size(*told)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # of frames larger than the header says
            with Image.open(io.BytesIO(encoded), formats=[form]) as picture:
                size = picture.size
                if math.prod(size) <= MAX_PIXELS and (told or max(size) <= MAX_SIDE):
                    pixels = _rgb(ImageOps.exif_transpose(picture))
                    if seen is not None and _has_frames(picture):
                        seen["animated"] += 1
                    return pixels
    except Exception as error:  # Pillow's decoders raise of every kind: SyntaxError, struct.error, zlib.error, ...
        raise ValueError(f"the {form} image does not decode: {reason(error)}") from None
    if not told:
        _check_size(*size)
    raise ValueError(f"the {form} header says {told[0]}x{told[1]} pixels, the image has {size[0]}x{size[1]}")


def _has_frames(picture) -> bool:
    """Is a picture that was read the first of several? Not where the others are broken, or a JPEG's other views."""
    with contextlib.suppress(Exception):  # Pillow's decoders raise of every kind
        return getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO"
    return False


def audio(content: bytes | Path | np.ndarray, rate: int = 0) -> tuple[np.ndarray, int]:
    """float32 [n] in -1..1, the mean of all channels, and the samples a second.

    Encoded as WAV, FLAC, OGG or MP3 (which name their rate), or a 1-d array of samples and its `rate`: floats in -1..1
    or full-scale int16, int32 or uint8 around 128.
    """
    if isinstance(content, np.ndarray):
        if content.ndim != 1 or (content.dtype not in (np.int16, np.int32, np.uint8) and content.dtype.kind != "f"):
            raise ValueError(
                f"audio array {content.dtype} {list(content.shape)}; float, int16, int32 or uint8 [n] is allowed"
            )
        _check_length(len(content), 1, rate)
        if content.dtype.kind == "f":
            return _wave(content.astype(np.float32)), rate
        bits = 8 * content.dtype.itemsize
        centre = 128 if content.dtype == np.uint8 else 0
        return _wave(((content.astype(np.float64) - centre) / 2 ** (bits - 1)).astype(np.float32)), rate
    import soundfile

    kind, encoded = _audio_header(_bytes(content, MAX_FILE["audio"]))
    try:
        with soundfile.SoundFile(io.BytesIO(encoded)) as file:
            frames, channels, rate = file.frames, file.channels, file.samplerate
            if frames < UNKNOWN:
                _check_length(frames, channels, rate)
                samples = file.read(dtype="float32", always_2d=True)
            else:
                samples = _to_the_end(encoded)
    except ValueError:
        raise
    except Exception as error:  # soundfile's own errors are RuntimeErrors, of which it exports no common class
        raise ValueError(f"the {kind} audio does not decode: {reason(error)}") from None
    return _wave(samples.mean(1)), rate


def _to_the_end(encoded: bytes) -> np.ndarray:
    """float32 [n, channels] of a file whose header leaves its length open, under the same limits as any other."""
    import soundfile

    class Unsought(soundfile.SoundFile):
        """`read` seeks to where it stopped reading, which libsndfile cannot do at the end of such a file."""

        def seekable(self) -> bool:
            return False

    with Unsought(io.BytesIO(encoded)) as file:
        blocks, count = [], 0
        while len(block := file.read(2**16, dtype="float32", always_2d=True)):
            blocks.append(block)
            count += len(block)
            _check_length(count, file.channels, file.samplerate)
        _check_length(count, file.channels, file.samplerate)
    return np.concatenate(blocks)


def latents(content: bytes | Path | np.ndarray) -> np.ndarray:
    """float32 [n, P], finite: a .npy file or an array of floats, [n, P], or [P] for one."""
    return _finite(_array(content, "latents", _check_latents), "latents")


def ids(content: bytes | Path | np.ndarray) -> np.ndarray:
    """Integers `[n]`, of somebody's own tokenizer: a .npy file or an array."""
    return _array(content, "ids", _check_ids)


def action(content: bytes | Path | np.ndarray) -> np.ndarray:
    """float32 [n, 3], finite: a path's x, y, and above 0 where the pen leaves the paper after the point.

    A .npy file or an array of numbers, [n, 3], or [n, 2] for one stroke.
    """
    path = _finite(_array(content, "action", _check_action), "the action")
    return path if path.shape[1] == 3 else np.pad(path, ((0, 0), (0, 1)))


def _array(content: bytes | Path | np.ndarray, kind: str, check) -> np.ndarray:
    """An array, or that of a .npy file, whose shape and dtype are checked before it is read."""
    if isinstance(content, np.ndarray):
        check(content.shape, content.dtype)
        return content
    file = io.BytesIO(_bytes(content, MAX_FILE[kind]))
    shape, fortran, dtype = npy_header(file)
    check(shape, dtype)
    have = len(file.getbuffer()) - file.tell()
    count = math.prod(shape)
    if have < count * dtype.itemsize:
        raise ValueError(f"the .npy file is cut off: {have} of {count * dtype.itemsize} bytes")
    return np.frombuffer(file.getbuffer(), dtype, count, file.tell()).reshape(shape, order="FC"[not fortran])


def _finite(array: np.ndarray, what: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.array(array, np.float32, order="C", ndmin=2)
    if not np.isfinite(finite).all():
        verb = "hold" if what == "latents" else "holds"
        raise ValueError(f"{what} {verb} NaN or infinity (in float32)")
    return finite


def npy_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype of the .npy that an open file stands at; the data come next."""
    read = {
        (1, 0): ("<H", np.lib.format.read_array_header_1_0),
        (2, 0): ("<I", np.lib.format.read_array_header_2_0),
    }
    try:
        version = np.lib.format.read_magic(file)
        if version not in read:
            raise ValueError(f"version {version}; 1.0 and 2.0 are allowed")
        form, parsed = read[version]
        length = file.read(struct.calcsize(form))
        (size,) = struct.unpack(form, length)
        if size > MAX_HEADER:
            raise ValueError(f"a header of {size:,} bytes; at most {MAX_HEADER:,} are allowed")
        shape, fortran, dtype = parsed(io.BytesIO(length + file.read(size)))
    except Exception as error:  # the header is a Python literal, whose parser raises of many kinds
        raise ValueError(f"not a .npy file: {reason(error)}") from None
    if min(shape, default=0) < 0:
        raise ValueError(f"not a .npy file: shape {shape}")
    return shape, fortran, dtype


def check_file(path: Path, limit: int) -> None:
    """Raises `ValueError` for what is no regular file, or has more than `limit` bytes; `OSError` as the system does."""
    if not path.is_file():  # a pipe or a device would never end
        raise ValueError(f"{path.name} is not a file" if path.exists() else f"no file {path.name}")
    if path.stat().st_size > limit:
        raise ValueError(
            f"{path.name} has {path.stat().st_size:,} bytes; at most {limit:,} are allowed; make it smaller"
        )


def _bytes(content: bytes | Path, limit: int) -> bytes:
    if isinstance(content, Path):
        try:
            check_file(content, limit)
            content = content.read_bytes()
        except OSError as error:
            raise ValueError(f"{content.name} cannot be read: {error.strerror}") from None
    if not content:
        raise ValueError("no bytes in it")
    if len(content) > limit:
        raise ValueError(f"{len(content):,} bytes; at most {limit:,} are allowed")
    return content


def _check_size(width: int, height: int) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise ValueError(
            f"an image of {width}x{height} pixels; sides of 1 to {MAX_SIDE} and at most {MAX_PIXELS} pixels are allowed"
        )


def _image_header(encoded: bytes) -> tuple[str, int, int] | tuple[str]:
    """Format, width and height; `struct.error` where the bytes end too early.

    Not left to Pillow, which refuses an empty image without its numbers and decodes a WEBP while opening it. Of a TIFF,
    AVIF or PPM, which it opens without decoding, the format alone.
    """

    def at(code, offset):
        return struct.unpack_from(code, encoded, offset)

    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", *at(">II", 16)
    if encoded[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF", *at("<HH", 6)
    if encoded.startswith(b"BM"):
        width, height = at("<HH", 18) if at("<I", 14) == (12,) else at("<ii", 18)
        return "BMP", width, abs(height)  # negative: rows from the top
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        match encoded[12:16]:
            case b"VP8X":
                return "WEBP", *(int.from_bytes(encoded[i : i + 3], "little") + 1 for i in (24, 27))
            case b"VP8L":
                (bits,) = at("<I", 21)
                return "WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            case b"VP8 ":
                return "WEBP", *(side & 0x3FFF for side in at("<HH", 26))
        raise ValueError("the WEBP's header names no size")
    if encoded.startswith(b"\xff\xd8\xff"):
        place = 2
        while True:
            flag, marker, length = at(">BBH", place)
            if flag != 0xFF or marker in (0xD9, 0xDA):
                raise ValueError("the JPEG's header names no size")
            if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
                place += 1 if marker == 0xFF else 2
            elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                height, width = at(">HH", place + 5)
                return "JPEG", width, height
            else:
                place += 2 + length
    if encoded[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return ("TIFF",)
    if encoded[4:8] == b"ftyp" and b"avif" in encoded[8:40]:
        return ("AVIF",)
    if re.match(rb"P[1-6]\s", encoded):
        return ("PPM",)
    raise ValueError(f"not a {', '.join(IMAGES[:-1])} or {IMAGES[-1]} image")


def _rgb(picture) -> np.ndarray:
    if picture.mode == "F":
        raise ValueError("its pixels are floats, of which nobody says what is white; store them as 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        grey = np.clip(np.asarray(picture).astype(np.int32) // 257, 0, 255)
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if picture.has_transparency_data:
        from PIL import Image

        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def _pixels(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(
            f"image array {array.dtype} {list(array.shape)}; uint8 [H, W], [H, W, 3] or [H, W, 4] is allowed"
        )
    _check_size(array.shape[1], array.shape[0])
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=-1)
    if array.shape[2] == 3:
        return np.array(array)
    alpha = array[..., 3:].astype(np.uint16)
    return ((array[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _audio_header(encoded: bytes) -> tuple[str, bytes]:
    """The kind of file, by its first bytes, so that no other of the library's many parsers is ever reached; and it.

    Of a WAV or OGG that is cut off the library would return what is there (of an MP3 it does); both are refused here.
    """
    if encoded[:4] in (b"RIFF", b"RF64", b"BW64") and encoded[8:12] == b"WAVE":
        return "WAV", _wav(encoded)
    if encoded.startswith(b"fLaC"):
        return "FLAC", encoded
    if encoded.startswith(b"OggS"):
        page = encoded[encoded.rindex(b"OggS") :]
        ends = len(page) > 26 and page[5] & 4  # the flag of a stream's last page
        if not ends or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
            raise ValueError("the OGG audio is cut off")
        return "OGG", encoded
    if encoded.startswith(b"ID3") or (len(encoded) > 1 and encoded[0] == 0xFF and encoded[1] & 0xE0 == 0xE0):
        return "MP3", encoded
    raise ValueError("not a WAV, FLAC, OGG or MP3 file")


def _wav(encoded: bytes) -> bytes:
    """A WAV whose header says how long it is: as it was, or mended where its writer could not know.

    Writers to a pipe put the largest number there, or 0, and never come back to it. An RF64 (EBU Tech 3306) keeps its
    sizes, of 64 bits, in a chunk ds64; whatever is read here fits the 32 bits of a plain WAV.
    """
    place, large = 12, 0
    while place + 8 <= len(encoded):
        name, size = struct.unpack_from("<4sI", encoded, place)
        if name == b"data":
            break
        if name == b"ds64" and place + 24 <= len(encoded):
            (large,) = struct.unpack_from("<Q", encoded, place + 16)
        place += 8 + size + size % 2
    else:
        raise ValueError("the WAV audio is cut off: no samples")
    have = len(encoded) - place - 8
    is_plain = encoded.startswith(b"RIFF")
    closed = struct.unpack_from("<I", encoded, 4)[0] + 8 == len(encoded)  # by a writer that knew its length
    size = size if is_plain or size < PIPED else large
    if size >= PIPED or (size == 0 and not (is_plain and closed)):
        size = have
    elif have < size:
        raise ValueError(f"the WAV audio is cut off: {have} of {size} bytes")
    elif is_plain:
        return encoded
    header = bytearray(encoded[: place + 8])
    header[:4] = b"RIFF"
    struct.pack_into("<I", header, 4, len(encoded) - 8)
    struct.pack_into("<I", header, place + 4, size)
    return bytes(header).replace(b"ds64", b"JUNK", 1) + encoded[place + 8 :]


def _check_length(samples: int, channels: int, rate: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"audio of {rate} samples a second; {RATES[0]} to {RATES[1]} are allowed")
    if not 1 <= samples <= MAX_SECONDS * rate:
        raise ValueError(
            f"audio of {samples} samples at {rate} a second; at least one and at most {MAX_SECONDS} seconds are allowed"
        )
    if samples * channels * 4 > MAX_AUDIO_BYTES:
        raise ValueError(
            f"audio of {samples} samples by {channels} channels; at most {MAX_AUDIO_BYTES // 4} together are allowed"
        )


def _wave(wave: np.ndarray) -> np.ndarray:
    if not len(wave):
        raise ValueError("audio without samples")
    peak = np.abs(wave).max()
    if not peak <= PEAK:  # also NaN
        raise ValueError(f"audio samples reach {peak}; floats in -1..1 are allowed")
    return np.clip(wave, -1, 1)


def _check_ids(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "iu" or len(shape) != 1 or not shape[0]:
        flat = "; write those of one unit one after the other (x.reshape(-1))" * (len(shape) > 1)
        raise ValueError(f"ids are {dtype} {list(shape)}; integers [n] are needed, n of 1 or more{flat}")
    if shape[0] * dtype.itemsize > MAX_LATENT_BYTES:
        raise ValueError(f"{shape[0]:,} ids of {dtype}; at most {MAX_LATENT_BYTES:,} bytes are allowed")


def _check_latents(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind != "f" or dtype.itemsize > 8 or len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"latents {dtype} {list(shape)}; float16, float32 or float64 [n, P] or [P] are allowed")
    if math.prod(shape) * dtype.itemsize > MAX_LATENT_BYTES:
        raise ValueError(f"latents {dtype} {list(shape)}; at most {MAX_LATENT_BYTES} bytes are allowed")


def _check_action(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.kind not in "iufb" or dtype.itemsize > 8 or len(shape) != 2 or shape[1] not in (2, 3) or not shape[0]:
        raise ValueError(
            f"an action {dtype} {list(shape)}; numbers [n, 2] (x, y) or [n, 3] (and pen up) are allowed; give other "
            "columns as latents"
        )
    if math.prod(shape) * dtype.itemsize > MAX_ACTION_BYTES:
        raise ValueError(f"an action {dtype} {list(shape)}; at most {MAX_ACTION_BYTES} bytes are allowed")
