"""Text as pictures of its lines, as a model of pixels reads it (2207.06991)."""

import textwrap
from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np

from mot.config.modalities import LETTER, TEXT
from mot.prepare.raw import Part, Raw

WIDTH, HEIGHT = LETTER  # of Pillow's default bitmap font, with a row of paper below


def documents(raws: Iterable[Raw], columns: int) -> Iterator[Raw]:
    """Documents whose text is a picture for each line of at most `columns` letters; 0: as they are."""
    for raw in raws:
        yield raw._replace(parts=_parts(raw.parts, columns), rest=_parts(raw.rest, columns)) if columns else raw


def _parts(parts: Iterable[Part], columns: int) -> tuple[Part, ...]:
    found: list[Part] = []
    for part in parts:
        is_text = part.kind == TEXT and isinstance(part.content, str)
        found += [Part("image", picture(line)) for line in lines(part.content, columns)] if is_text else [part]
    return tuple(found)


def lines(text: str, columns: int) -> list[str]:
    """Its lines, those that are longer wrapped between words; without blank ones."""
    wrapped = (line for whole in text.splitlines() for line in textwrap.wrap(whole, columns))
    return [line for line in wrapped if line.strip()]


def picture(line: str) -> np.ndarray:
    """uint8 `[HEIGHT, WIDTH * letters]`, black on white. A letter that the font lacks (it has Latin-1) is a ?."""
    letters = line.encode("latin-1", "replace")
    return np.concatenate([_glyph(letter) for letter in letters], axis=1)


@cache
def _glyph(letter: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    cell = Image.new("L", (WIDTH, HEIGHT), 255)
    ImageDraw.Draw(cell).text((0, 0), chr(letter), fill=0, font=ImageFont.load_default_imagefont())
    return np.array(cell)
