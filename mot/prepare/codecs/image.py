"""Pictures: PNG, JPEG and other files to patches, as ids of a codebook or as vectors, and back.

What a file claims to be is read from its header and judged before anything is decoded.
"""

import contextlib
import io
import math
import re
import struct
import warnings
from collections import Counter
from collections.abc import Iterable

import numpy as np

from mot.config.modalities import IDS, MODALITIES, VECTORS
from mot.data import preview
from mot.data.preview import Box, Room
from mot.errors import reason
from mot.prepare import columns
from mot.prepare.media import Content, bytes_of
from mot.prepare.raw import Part
from mot.tokenizers.image import ImageTokenizer, fit_image
from mot.tokenizers.vectors import ImageVectors

TOKENIZERS = {IDS: ImageTokenizer, VECTORS: ImageVectors}
ARRAYS = "uint8 [n, H, W], [n, H, W, 3] or [n, H, W, 4]"
IS_RAGGED = False
COLUMNS = columns.ENCODED
CROPPED = "images are not square: the square in the middle is kept, and their edges are lost"
ANIMATED = "images have several frames: the first is kept, and the others are lost"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
MAX_SIDE = 16384
MAX_PIXELS = 64 * 2**20


def read(part: Part, remarks: Counter) -> np.ndarray:
    found = pixels(part.content, remarks)
    if found.shape[0] != found.shape[1]:
        remarks[CROPPED] += 1
    return found


def pixels(content: Content, remarks: Counter | None = None) -> np.ndarray:
    """uint8 [H, W, 3]: upright by its EXIF orientation, alpha composited on white, the first frame of several.

    Encoded as one of FORMATS, or an array uint8 [H, W], [H, W, 3] or [H, W, 4].
    """
    if isinstance(content, np.ndarray):
        return _pixels(content)
    from PIL import Image, ImageOps

    encoded = bytes_of(content, MODALITIES["image"].max_bytes)
    try:
        form, *told = _header(encoded)
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
                    found = _rgb(ImageOps.exif_transpose(picture))
                    if remarks is not None and _has_frames(picture):
                        remarks[ANIMATED] += 1
                    return found
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


def _check_size(width: int, height: int) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise ValueError(
            f"an image of {width}x{height} pixels; sides of 1 to {MAX_SIDE} and at most {MAX_PIXELS} pixels are allowed"
        )


def _header(encoded: bytes) -> tuple[str, int, int] | tuple[str]:
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
    raise ValueError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image")


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


def fits_array(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return dtype == np.uint8 and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4)))


def fits_column(column) -> bool:
    return columns.is_encoded(column)


def fit(form: str, pictures: Iterable[np.ndarray], recipe) -> ImageTokenizer | ImageVectors:
    native = recipe.image_aspect == "native"
    if form == VECTORS:
        return ImageVectors(recipe.image_side, recipe.image_patch, native)
    asked = recipe.image_ids
    ids = asked or MODALITIES["image"].usual_ids
    return fit_image(pictures, recipe.image_side, recipe.image_patch, ids, not asked, native)


def box(content: np.ndarray, tokenizer: ImageTokenizer | ImageVectors | None, room: Room) -> Box:
    return Box(f" {content.shape[1]} x {content.shape[0]}", (), picture(content, room))


def picture(content: np.ndarray, room: Room) -> np.ndarray:
    return preview.scaled(content, room.longest)


def files(content: np.ndarray, tokenizer: ImageTokenizer | ImageVectors | None, seed: int) -> dict[str, bytes]:
    return {"png": preview.png(content)}
