"""What a run has drawn, as PNGs: one by one, many in a grid, each under its title."""

import io
import math
import textwrap
from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

from mot.data import preview

DPI, GAP, WIDEST = 100, 8, 2400  # WIDEST: pixels of a page
GREY = 216  # around pictures, so that one on white paper has an edge
# A titled picture's width and a title's line, pixels, and a title's letters: three cells are read on a phone.
CELL, LINE, POINTS = 160, 18, 11
TITLE = 30  # letters of a line at most
FONT = "DejaVu Sans"  # comes with matplotlib


def grid(pictures: Sequence[np.ndarray]) -> bytes:
    """One PNG of many pictures uint8 `[height, width, 3]`, as many rows as columns where they are square."""
    height, width = (max(p.shape[axis] for p in pictures) + GAP for axis in (0, 1))
    columns = math.ceil(math.sqrt(len(pictures) * height / width))
    columns = max(1, min(columns, len(pictures), WIDEST // width))
    rows = -(-len(pictures) // columns)
    page = np.full((rows * height + GAP, columns * width + GAP, 3), GREY, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = GAP + i // columns * height, GAP + i % columns * width
        page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return preview.png(page)


def titled(pictures: Sequence[np.ndarray], titles: Sequence[str], columns: int) -> bytes:
    """One PNG of pictures of one size, no wider than CELL, in rows of `columns`, each under its title."""
    columns = min(columns, len(pictures))
    lines = [_wrapped(title) for title in titles]
    heads = [LINE * max(len(x) for x in lines[i : i + columns]) for i in range(0, len(lines), columns)]
    pictures = [np.pad(p, ((1, 1), (1, 1), (0, 0)), constant_values=GREY) for p in pictures]
    side = pictures[0].shape[0]
    height = sum(heads) + len(heads) * (side + 2 * GAP)
    figure = Figure(figsize=(columns * CELL / DPI, height / DPI), dpi=DPI, facecolor="white")
    top = GAP // 2
    for i, (picture, title) in enumerate(zip(pictures, lines, strict=True)):
        row, column = divmod(i, columns)
        middle, base = (column + 0.5) * CELL, top + heads[row]
        for k, line in enumerate(title):  # the last one stands on the picture
            y = height - (base - LINE * (len(title) - k))
            figure.text(middle, y, line, transform=None, va="top", ha="center", fontsize=POINTS, parse_math=False)
        figure.figimage(picture, middle - picture.shape[1] // 2, height - base - GAP // 2 - side, origin="upper")
        top += (heads[row] + side + 2 * GAP) * (column == columns - 1)
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, format="png")
    return file.getvalue()


def _wrapped(text: str) -> list[str]:
    """What a model wrote, as a title can show it: dots for what is not printable, in three lines at most."""
    font = font_manager.get_font(font_manager.findfont(FONT))
    font.set_size(POINTS, DPI)
    known = font.get_charmap()
    shown = preview.legible(text, partial(_has, known))
    for letters in range(TITLE, 5, -1):
        lines = textwrap.wrap(shown, letters, max_lines=3, placeholder=" ...")
        if all(_width(font, line) <= CELL - 4 for line in lines):
            break
    return lines


def _has(known, c: str) -> bool:
    return c.isprintable() and ord(c) < 0x250 and ord(c) in known


def _width(font, line: str) -> int:
    """Pixels at most: each letter is drawn a whole number of them wide."""
    return sum(math.ceil(font.load_char(ord(c)).linearHoriAdvance / 2**16) for c in line)
