"""Films: animated GIF, WEBP and PNG files or arrays of frames to some frames in time, as ids of a codebook, and back.

A file's header is judged as a picture's is, and its frames are counted before any is decoded.
"""

import io
import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from mot.config.modalities import IDS, MODALITIES
from mot.data import preview
from mot.data.preview import Box, Room
from mot.errors import reason
from mot.prepare import columns
from mot.prepare.codecs import image
from mot.prepare.media import Content, bytes_of
from mot.prepare.raw import Part
from mot.tokenizers.video import VideoTokenizer, fit_video

TOKENIZERS = {IDS: VideoTokenizer}
ARRAYS = "uint8 [n, frames, H, W] or [n, frames, H, W, 3]"
IS_RAGGED = False
COLUMNS = columns.ENCODED
CROPPED = "films are not square: the square in the middle is kept, and their edges are lost"
FORMATS = ("GIF", "WEBP", "PNG")
MAX_FRAMES = 4096
MILLISECONDS = 250  # that a frame of a sample is seen


def read(part: Part, remarks: Counter) -> np.ndarray:
    found = frames(part.content)
    if found.shape[1] != found.shape[2]:
        remarks[CROPPED] += 1
    return found


def frames(content: Content) -> np.ndarray:
    """uint8 [N, H, W, 3] at equal distances in time: of an animated file of FORMATS, whose frames may last longer or
    shorter, or of an array uint8 [N, H, W] or [N, H, W, 3].
    """
    if isinstance(content, np.ndarray):
        if not fits_array(content.dtype, content.shape):
            raise ValueError(
                f"video array {content.dtype} {list(content.shape)}; uint8 [N, H, W] or [N, H, W, 3] is allowed"
            )
        _check(len(content), content.shape[1:3])
        return np.stack([image.pixels(frame) for frame in content])
    from PIL import Image, ImageSequence

    encoded = bytes_of(content, MODALITIES["video"].max_bytes)
    still = image.pixels(encoded)  # which judges the header, and decodes the first frame
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as film:
            _check(getattr(film, "n_frames", 1), still.shape[:2])
            found = [(image.pixels(np.asarray(x.convert("RGBA"))), _shown(x)) for x in ImageSequence.Iterator(film)]
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise of every kind
        raise ValueError(f"the film does not decode: {reason(error)}") from None
    pictures, durations = zip(*found, strict=True)
    times = np.array(durations) // math.gcd(*durations)
    _check(times.sum(), still.shape[:2])
    return np.stack(pictures).repeat(times, axis=0)


def _shown(frame) -> int:
    """Milliseconds that a frame is seen; files keep equal frames in a row as one, which is seen longer."""
    return max(1, round(frame.info.get("duration", 1)))


def _check(count: int, size: tuple[int, ...]) -> None:
    if not 1 <= count <= MAX_FRAMES or count * math.prod(size) > image.MAX_PIXELS:
        raise ValueError(
            f"a film of {count} frames of {size[1]}x{size[0]} pixels; 1 to {MAX_FRAMES} frames and at most "
            f"{image.MAX_PIXELS} pixels in all are allowed"
        )


def fits_array(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return dtype == np.uint8 and (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3))


def fits_column(column) -> bool:
    return columns.is_encoded(column)


def fit(form: str, films: Iterable[np.ndarray], recipe) -> VideoTokenizer:
    asked = recipe.video_ids
    ids = asked or MODALITIES["video"].usual_ids
    return fit_video(films, recipe.video_frames, recipe.video_side, recipe.video_patch, ids, fewer=not asked)


def box(content: np.ndarray, tokenizer: VideoTokenizer, room: Room) -> Box:
    return Box(f", {len(content)} frames", (), picture(content, room))


def picture(content: np.ndarray, room: Room) -> np.ndarray:
    """The frames beside each other, a line of grey between."""
    edge = np.full((*content.shape[:2], 1, 3), 128, np.uint8)
    strip = np.concatenate([content, edge], 2).transpose(1, 0, 2, 3).reshape(content.shape[1], -1, 3)
    return preview.scaled(strip[:, :-1], room.width)


def files(content: np.ndarray, tokenizer: VideoTokenizer, seed: int) -> dict[str, bytes]:
    """The film, which plays again and again, and its frames beside each other."""
    from PIL import Image

    out = io.BytesIO()
    first, *others = [Image.fromarray(frame) for frame in content]
    first.save(out, "GIF", save_all=True, append_images=others, duration=MILLISECONDS, loop=0)
    return {"gif": out.getvalue(), "png": preview.png(picture(content, Room()))}
