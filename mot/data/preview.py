"""Pictures of data: example documents part by part, and packed batches token by token."""

import io
import math
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from PIL import Image, ImageDraw

from mot.batches import Batch

DPI = 100
WIDTH, MARGIN, GAP = 1200, 24, 16  # pixels of a page
PICTURE = 128  # pixels of a picture's longer side, or of a spectrogram's height, at least;
LARGER = (256, 192, PICTURE)  # the first of these at which a document takes no more lines than with PICTURE
LONGEST = 24000  # pixels of a page's height; what does not fit is counted
PARTS = 24  # of a document
FONT = "DejaVu Sans Mono"  # comes with matplotlib; of one width, so that a text's size is known before it is drawn
POINTS, SMALL = 9, 8
LEADING = 1.3  # from line to line, in ems
ROWS = 8  # of a batch
INK, FAINT = "#222222", "#777777"
UNSEEN = "\u00b7"  # a middle dot, in place of what the font has no letter for


class Room(NamedTuple):
    """What a part may take of a page."""

    width: int = WIDTH - 2 * MARGIN  # pixels
    longest: int = PICTURE  # pixels of a picture's longer side, or of a spectrogram's height
    columns: int = 140  # characters of a line of text


class Box(NamedTuple):
    """A part of a document as it is drawn: a caption over lines of text, or over a picture, perhaps with axes."""

    caption: str
    lines: tuple[str, ...]
    pixels: np.ndarray | None  # uint8 [height, width, 3]
    across: tuple[tuple[float, str], ...] = ()  # ticks below a picture: pixels from its left
    upwards: tuple[tuple[float, str], ...] = ()  # and beside it: pixels from its lower edge

    @property
    def left(self) -> int:
        """Pixels beside a picture for the longest tick."""
        return extent([f"{label} " for _, label in self.upwards], SMALL)[0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, the caption's and the ticks' included."""
        width, height = extent(self.lines, POINTS) if self.pixels is None else self.pixels.shape[1::-1]
        caption = extent([self.caption], SMALL)
        ends = [at + extent([label], SMALL)[0] for at, label in self.across]
        below = _line(SMALL) if self.across else 0
        return max(self.left + max([width, *map(math.ceil, ends)]), caption[0]), height + caption[1] + below


Draw = Callable[[Room], Box]  # a part of a document, as large as there is room for


def documents(rendered: Sequence[tuple[str, Sequence[Draw]]], file: Path, title: str, width: int = WIDTH) -> None:
    """A page of documents, PNG, `width` pixels wide: of each its name and its parts in order, from left to right.

    A page's length is bounded; its last line says how many documents it leaves out.
    """
    room = width - 2 * MARGIN
    heads = _wrapped(title, width - 2 * MARGIN, 12)
    drawn = []
    height = 2 * MARGIN + len(heads) * _line(12) + GAP
    for name, parts in rendered:
        lines = _wrapped(name, room, POINTS) or [""]
        placed, needed = _arranged(parts, room)
        needed += len(lines) * _line(POINTS) + 2 * GAP
        if height + needed + 2 * _line(POINTS) > LONGEST:
            break
        drawn.append((lines, placed, height))
        height += needed
    left_out = len(rendered) - len(drawn)
    note = "no documents" if not rendered else f"... and {left_out} more documents" if left_out else ""
    height += 2 * _line(POINTS) if note else 0

    page = _Page(width, height)
    for i, line in enumerate(heads):
        page.text(MARGIN, MARGIN + i * _line(12), line, 12, weight="bold")
    for lines, placed, top in drawn:
        page.rule(top - GAP // 2)
        for i, line in enumerate(lines):
            page.text(MARGIN, top + i * _line(POINTS), line, POINTS, weight="bold")
        for box, x, y in placed:
            page.box(box, MARGIN + x, top + len(lines) * _line(POINTS) + GAP // 2 + y)
    page.text(MARGIN, height - MARGIN - _line(POINTS), note, POINTS, color=FAINT)
    page.save(file)


def _arranged(parts: Sequence[Draw], room: int):
    """As `_flow`, of a document's parts, with pictures as large as they can be without taking more lines."""
    columns = min(44 if len(parts) > 1 else Room().columns, int(room / _advance(POINTS)))

    def flow(longest: int):
        boxes = [draw(Room(room, longest, columns)) for draw in parts[:PARTS]]
        if len(parts) > PARTS:
            boxes.append(Box("", (f"... and {len(parts) - PARTS} more parts",), None))
        return _flow(boxes, room)

    def lines(placed) -> int:
        return len({y for _, _, y in placed})

    fewest = lines(flow(PICTURE)[0])
    return next(found for longest in LARGER if lines((found := flow(longest))[0]) <= fewest)


class _Page:
    """A figure measured in pixels from its upper left corner."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

    def text(self, x, y, text, points, color=INK, weight="normal", ha="left"):
        font = dict(family=FONT, fontsize=points, color=color, weight=weight, parse_math=False)
        self.figure.text(x, self.height - y, text, transform=None, va="top", ha=ha, **font)

    def rule(self, y):
        self.figure.add_artist(
            Rectangle((MARGIN, self.height - y), self.width - 2 * MARGIN, 1, transform=None, fc="#dddddd")
        )

    def box(self, box, x, y):
        self.text(x, y, box.caption, SMALL, color=FAINT)
        y += _line(SMALL)
        if box.pixels is None:
            for i, line in enumerate(box.lines):  # by itself each, or matplotlib sets their distance
                self.text(x, y + i * _line(POINTS), line, POINTS)
            return
        height, width, _ = box.pixels.shape
        x += box.left
        for at, label in box.across:
            self.text(x + at, y + height + 2, label, SMALL, color=FAINT)
        for at, label in box.upwards:  # the highest one stands below the picture's upper edge
            middle = max(height - at, _line(SMALL) / 2)
            self.text(x - 5, y + middle - _line(SMALL) / 2, label, SMALL, color=FAINT, ha="right")
        self.figure.figimage(box.pixels, x, self.height - y - height, origin="upper")
        frame = Rectangle((x - 1, self.height - y - height - 1), width + 2, height + 2, transform=None)
        frame.set(fill=False, edgecolor="#bbbbbb", linewidth=0.72)
        self.figure.add_artist(frame)

    def save(self, file):
        self.figure.savefig(file, dpi=DPI, format="png")


def tiles(ids: np.ndarray, longest: int) -> np.ndarray:
    """uint8 `[height, width, 3]`: ids row by row, in a square where they fill one, each in a colour of its own.

    Numbers of ids mean nothing, so neighbours' colours are far apart.
    """
    side = math.isqrt(len(ids))
    columns = side if side * side == len(ids) else min(len(ids), 64)
    shade = (ids.astype(np.uint64) * 2654435761 % 2**32) / 2**32  # Knuth's multiplicative hash
    colour = (colormaps["hsv"](shade)[:, :3] * (0.55 + 0.45 * (shade * 7 % 1))[:, None] * 255).astype(np.uint8)
    squares = np.full((-(-len(ids) // columns) * columns, 3), 255, np.uint8)
    squares[: len(ids)] = colour
    return scaled(squares.reshape(-1, columns, 3), max(longest, columns))


def drawing(strokes: Sequence[np.ndarray], longest: int = PICTURE) -> np.ndarray:
    """uint8 `[longest, longest, 3]`: lines through the points `[n, 2]` of each stroke, x to the right and y down."""
    points = np.concatenate(strokes)
    fine = 4
    low, high = points.min(0), points.max(0)
    shift = (low + high) / 2
    size = (high - low).max() or 1
    sheet = Image.new("RGB", (fine * longest,) * 2, "white")
    pen = ImageDraw.Draw(sheet)
    for stroke in strokes:
        at = [(float(x), float(y)) for x, y in ((stroke - shift) / size * 0.88 + 0.5) * fine * longest]
        pen.line(at, fill=INK, width=2 * fine)
        for x, y in at:
            pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=INK)
    return np.asarray(sheet.resize((longest, longest), Image.Resampling.BOX))


def heat(values, colours: str, room: Room) -> np.ndarray:
    """uint8 `[height, width, 3]` of numbers `[rows, columns]`, from the least value to the greatest."""
    values = np.asarray(values, np.float64)
    if not values.size:
        return np.full((8, 8, 3), 255, np.uint8)
    low = values.min()
    high = values.max()
    shades = (values - low) / (high - low or 1)
    height, width = values.shape
    tall = max(1, room.longest // height) * height
    image = colormaps[colours](shades, bytes=True)[..., :3].repeat(tall // height, axis=0)
    image = image.repeat(max(1, min(6 * room.longest // PICTURE, min(room.width, 640) // width)), axis=1)
    wide, tall = min(image.shape[1], room.width), min(tall, 2 * room.longest)
    return np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BOX))


def scaled(image: np.ndarray, longest: int) -> np.ndarray:
    """Whole pixels where it is enlarged, averages where it is reduced."""
    height, width, _ = image.shape
    factor = longest // max(height, width)
    if factor:
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    reduced = [max(1, round(n * longest / max(height, width))) for n in (width, height)]
    return np.asarray(Image.fromarray(image).resize(reduced, Image.Resampling.BOX))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png")
    return file.getvalue()


def _flow(boxes: Sequence[Box], room: int) -> tuple[list[tuple[Box, int, int]], int]:
    """Where each box lies, from left to right and then below, and how high they are together."""
    placed, x, y, tallest = [], 0, 0, 0
    for box in boxes:
        width, height = box.size
        if x and x + width > room:
            x = 0
            y = y + tallest + GAP
            tallest = 0
        placed.append((box, x, y))
        x = x + width + GAP
        tallest = max(tallest, height)
    return placed, y + tallest


def _line(points: float) -> int:
    return int(np.ceil(points / 72 * DPI * LEADING))


@lru_cache
def _advance(points: float) -> float:
    """Pixels from one character to the next, as hinting rounds them."""
    font = font_manager.get_font(font_manager.findfont(FONT))
    font.set_size(points, DPI)
    font.set_text("M" * 64)
    return font.get_width_height()[0] / 64 / 64


def extent(lines: Sequence[str], points: float) -> tuple[int, int]:
    """Width and height of lines of text, pixels."""
    width = max(map(len, lines), default=0) * _advance(points)
    return int(np.ceil(width)), len(lines) * _line(points)


def _fit(text: str, width: float, points: float) -> str:
    """One line, cut off where it is wider."""
    shown = legible(text)
    characters = int(width / _advance(points))
    return shown if len(shown) <= characters else shown[: max(0, characters - 4)] + " ..."


def _wrapped(text: str, width: float, points: float) -> list[str]:
    """Three lines at most; what does not fit is cut off."""
    characters = int(width / _advance(points))
    return textwrap.wrap(legible(text), characters, max_lines=3, placeholder=" ...", break_on_hyphens=False)


def _is_in_font(character: str) -> bool:
    return ord(character) in _glyphs()


def legible(text: str, is_in_font: Callable[[str], bool] = _is_in_font) -> str:
    """What a font can show, on one line; in place of anything else a dot, but for marks that nobody sees."""
    seen = (c for c in text if unicodedata.category(c) != "Cf")
    return "".join(" " if c.isspace() else c if is_in_font(c) else UNSEEN for c in seen)


@lru_cache
def _glyphs() -> frozenset[int]:
    """The characters of the font whose script runs from left to right, unjoined."""
    font = font_manager.get_font(font_manager.findfont(FONT))
    visible = (c for c in font.get_charmap() if unicodedata.category(chr(c))[0] != "C")
    return frozenset(c for c in visible if c < 0x530 or 0x1E00 <= c < 0xFB00)


def batch(rows: Batch, file: Path, streams: Sequence[str], title: str) -> None:
    """A packed batch (numpy arrays), PNG: each row in document order, below it each stream as it is laid out.

    A colour is a document, its shade the stream; padding is hatched; thin lines are the bounds of images, clips and
    bidirectional spans. The first `ROWS` rows are drawn.
    """
    tokens = {name: rows[name] for name in streams}
    shown = min(ROWS, len(tokens[streams[0]].position))
    length = sum(t.position.shape[1] for t in tokens.values())
    strips = 1 + len(streams)
    height = 1.5 + 0.22 * shown * (strips + 0.9)
    figure = Figure(figsize=(WIDTH / DPI, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08))
    axis = figure.add_subplot()
    y, ticks = 0.0, []
    for b in range(shown):
        of = {name: np.full(t.position.shape[1], m) for m, (name, t) in enumerate(tokens.items())}

        def field(name, b=b):
            return np.concatenate([getattr(t, name)[b] for t in tokens.values()])

        order = field("position").argsort()
        stream = np.concatenate(list(of.values()))[order]
        segment, unit, span = (field(name)[order] for name in ("segment", "unit", "span"))
        _strip(axis, y, length, segment, stream, len(streams), unit, span)
        _numbers(axis, y, segment, field("source")[order], field("doc_id")[order], length)
        ticks.append((y + 0.5, f"row {b}, in order"))
        for name, t in tokens.items():
            y += 1
            _strip(axis, y, length, t.segment[b], of[name], len(streams), t.unit[b], t.span[b])
            ticks.append((y + 0.5, f"{_fit(name, 200, POINTS)} {100 * (t.segment[b] != 0).mean():.1f} %"))
        y += 1.9
    axis.set(xlim=(0, length), ylim=(y - 0.8, -0.1), xlabel="tokens; a number is source:document")
    axis.set_yticks([at for at, _ in ticks], [label for _, label in ticks], fontsize=8, parse_math=False)
    axis.tick_params("y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    left_out = len(tokens[streams[0]].position) - shown
    more = f"; {left_out} more rows are not drawn" if left_out else ""
    figure.suptitle(_fit(title, WIDTH - 2 * MARGIN - 8 * len(more), 12) + more, fontsize=11, parse_math=False)
    _legend(figure, streams)
    figure.savefig(file, dpi=DPI, format="png")


def _colour(segment, stream, streams: int) -> np.ndarray:
    """`[n, 3]`: of ten colours the document's, the whiter the later the stream; neighbours always differ."""
    base = np.array(colormaps["tab10"].colors)[[0, 1, 2, 3, 4, 5, 6, 8, 9]][(np.asarray(segment) - 1) % 9]
    white = 0.65 * np.asarray(stream)[:, None] / max(1, streams - 1)
    return base * (1 - white) + white


def _strip(axis, y, length, segment, stream, streams, unit, span) -> None:
    """One line of tokens from y to y + 1."""
    n = len(segment)
    colours = np.where(segment[:, None] == 0, 0.93, _colour(segment, stream, streams))
    axis.imshow(colours[None], extent=(0, n, y + 0.95, y + 0.05), aspect="auto", interpolation="nearest")
    for begin, end in _runs(segment == 0):
        axis.add_patch(Rectangle((begin, y + 0.05), end - begin, 0.9, fc="none", ec="#aaaaaa", hatch="////", lw=0))
    inside = ((np.diff(unit) != 0) | (np.diff(span) != 0)) & (np.diff(segment) == 0)
    for bounds, colour, width in ((inside, INK, 0.6), (np.diff(segment) != 0, "white", 1.2)):
        at = np.flatnonzero(bounds) + 1
        width = min(width, 0.08 * WIDTH * n / length / max(1, len(at)))  # many lines must not cover what they part
        lines = [[(x, y + 0.05), (x, y + 0.95)] for x in at]
        axis.add_collection(LineCollection(lines, colors=colour, linewidths=width))


def _runs(mask) -> Iterable[tuple[int, int]]:
    """Begin and end of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _numbers(axis, y, segment, source, doc_id, length) -> None:
    """Each document's source and number, where there is room."""
    for s in range(1, segment.max(initial=0) + 1):
        (where,) = np.nonzero(segment == s)
        if len(where) == 0:
            continue
        label = f"{source[where[0]]}:{doc_id[where[0]]}"
        if len(where) / length * (WIDTH - 160) > 6 * len(label):
            font = dict(fontsize=6.5, color="white", ha="center", va="center_baseline", weight="bold")
            text = axis.text(where.mean() + 0.5, y + 0.5, label, **font)
            text.set_bbox(dict(facecolor="#000000a0", edgecolor="none", pad=1))


def _legend(figure, streams) -> None:
    def shade(m):
        return _colour([1], [m], len(streams))[0]

    handles = [Patch(fc=shade(m), label=_fit(name, 160, POINTS)) for m, name in enumerate(streams)]
    handles += [
        Patch(fc="#ededed", ec="#aaaaaa", hatch="////", lw=0, label="padding"),
        Patch(fc="none", ec=INK, lw=0.6, label="image, clip or span"),
    ]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
