"""Pictures of data: of a sane size, nothing overlaps, and no content stops them."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mot.data import preview
from mot.data.packing import document, pack
from mot.generate import documents, pictures
from mot.prepare import codecs

ODD = "$\\frac{$ x_$ % \x00\x1b[31m \u202e 漢字 🙂 שלום e\u0301 \ud800 \t\n W"


def part(modality, content, seconds=0.02, rate=16000):
    """As a document's part is drawn; sounds of so many seconds a token."""
    return partial(codecs.box, modality, SimpleNamespace(rate=rate, hop=round(seconds * rate)), content)


def size(file):
    with Image.open(file) as image:
        assert image.format == "PNG"
        return image.size


def test_a_page_holds_every_kind_of_part_with_odd_and_long_content(tmp_path):
    rng = np.random.default_rng(0)

    def picture(*shape):
        return rng.integers(0, 256, (*shape, 3), np.uint8)

    parts = [
        ("text", ODD * 30),
        ("text", ""),
        ("image", picture(32, 32)),
        ("image", picture(1, 3000)),
        ("image", picture(700, 9)),
        ("audio", rng.normal(size=(40, 1))),
        ("audio", rng.normal(size=(40, 4000))),
        ("action", [rng.normal(size=(30, 2)) * 1e30, np.zeros((1, 2))]),
        ("action", [np.zeros((1, 2))]),
        ("latents", rng.normal(size=(16, 8)).astype(np.float32)),
        ("latents", np.zeros((3, 2000))),
        ("latents", np.zeros((0, 4))),
    ]
    file = tmp_path / "page.png"
    drawn = [part(*one) for one in parts]
    preview.documents([(ODD * 40, drawn), ("none", []), ("many", drawn * 9)], file, ODD * 9)
    width, height = size(file)
    assert width == 1200
    assert 800 < height < 6000
    preview.documents([("short", [part("text", "a few words")])], file, "one")
    assert size(file)[1] < 250
    preview.documents([], file, "none")
    assert size(file)[1] < 200


def test_a_picture_is_drawn_in_whole_pixels_where_it_lies(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    file = tmp_path / "page.png"
    preview.documents([("a", [part("text", "words"), part("image", picture)])], file, "title")
    page = np.asarray(Image.open(file).convert("RGB"))
    drawn = preview.scaled(picture, 256)  # there is room for it
    assert drawn.shape == (256, 256, 3)
    windows = np.lib.stride_tricks.sliding_window_view(page, (9, 256, 3))[:, :, 0]
    assert (windows == drawn[:9]).all((2, 3, 4)).sum() == 1


def test_a_page_ends_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    said = []
    text = preview._Page.text

    def listen(self, x, y, words, *rest, **options):
        said.append(words)
        text(self, x, y, words, *rest, **options)

    monkeypatch.setattr(preview._Page, "text", listen)
    monkeypatch.setattr(preview, "LONGEST", 1000)
    file = tmp_path / "page.png"
    black = part("image", np.zeros((9, 9, 3), np.uint8))
    preview.documents([(f"d{i}", [black]) for i in range(50)], file, "fifty")
    assert size(file)[1] <= 1000
    drawn = sum(x.startswith("d") for x in said)
    assert 1 < drawn < 50
    assert said[-1] == f"... and {50 - drawn} more documents"


def test_strokes_are_drawn_where_the_pen_went():
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]])
    ink = preview.drawing([square[:2], square[2:]]).mean(-1) < 128
    middle = preview.PICTURE // 2
    assert ink[: middle // 2, middle].any()
    assert ink[-middle // 2 :, middle].any()
    assert not ink[middle].any(), "the pen left the paper between the two strokes"
    assert not ink[middle - 9 : middle + 9].any()
    low = preview.drawing([square[:2], np.array([[5, 10]])]).mean(-1) < 128  # y points down
    assert low[:middle].sum() > 5 * low[middle:].sum() > 0
    assert not ink[:, :4].any()


@given(
    st.lists(
        st.tuples(st.sampled_from(["text", "image", "audio", "action", "latents"]), st.integers(1, 1500)), max_size=20
    ),
    st.sampled_from([preview.WIDTH, 420]),
    st.sampled_from([(0.02, 16000), (0.1, 8000)]),
)
@settings(max_examples=40, deadline=None)
def test_parts_neither_overlap_nor_leave_the_page(kinds, wide, sound):
    content = {
        "text": lambda n: "word " * n,
        "image": lambda n: np.zeros((n, 1 + 7 * n % 1500, 3), np.uint8),
        "audio": lambda n: np.zeros((40, n)),
        "action": lambda n: [np.zeros((n, 2)), np.ones((1, 2)) * n],
        "latents": lambda n: np.zeros((n, 1 + 7 * n % 1500)),
    }
    room = wide - 2 * preview.MARGIN
    placed, height = preview._arranged([part(kind, content[kind](n), *sound) for kind, n in kinds], room)
    areas = [(x, y, x + box.size[0], y + box.size[1]) for box, x, y in placed]
    for i, (left, top, right, bottom) in enumerate(areas):
        assert 0 <= left < right <= room
        assert 0 <= top < bottom <= height
        assert all(right <= a[0] or a[2] <= left or bottom <= a[1] or a[3] <= top for a in areas[:i])


@pytest.mark.parametrize("points", [7, 9, 12])
@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_text_is_as_wide_as_was_reckoned(points, weight):
    figure = Figure(dpi=preview.DPI)
    line = preview.legible("Wide words, naïve Ωμέγα Привет 漢字 " * 3)
    text = figure.text(0, 0, line, family=preview.FONT, fontsize=points, weight=weight)
    extent = text.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    width, height = preview.extent([line], points)
    assert abs(extent.width - width) < 12
    assert extent.height <= height


def packed(rows, budgets=(60, 40)):
    """Rows of documents of 12 text and 16 image tokens."""
    stream, unit = np.repeat([0, 1, 0], [8, 16, 4]), np.repeat([0, 1, 0], [8, 16, 4])
    documents = [[document(0, 10 * r + i, np.arange(28), stream, unit=unit) for i in range(2)] for r in range(rows)]
    return pack(documents, ["text", ODD], budgets)


def test_a_batch_is_drawn_with_odd_names_and_its_first_rows(tmp_path):
    heights = []
    for rows in (1, 8, 20):
        file = tmp_path / f"{rows}.png"
        preview.batch(packed(rows), file, ["text", ODD], ODD * 20)
        width, height = size(file)
        assert width == 1200
        heights.append(height)
    assert 200 < heights[0] < heights[1] == heights[2] < 1500
    preview.batch(pack([[]], ["text"], [30]), file, ["text"], "an empty row")
    assert size(file)[0] == 1200


def test_a_batch_shows_each_document_in_its_colour(tmp_path):
    file = tmp_path / "batch.png"
    preview.batch(packed(1), file, ["text", ODD], "two documents")
    seen = {tuple(c) for c in np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3)}
    for segment in (1, 2):
        for stream in (0, 1):
            colour = preview._colour([segment], [stream], 2)[0] * 255
            assert any(np.abs(np.array(c) - colour).max() <= 1 for c in seen)
    third = preview._colour([3], [0], 2)[0] * 255
    assert not any(np.abs(np.array(c) - third).max() <= 1 for c in seen)


def listened(monkeypatch):
    """What is written on pages: (x, y, words)."""
    said = []
    text = preview._Page.text

    def listen(self, x, y, words, *rest, **options):
        said.append((x, y, words))
        text(self, x, y, words, *rest, **options)

    monkeypatch.setattr(preview._Page, "text", listen)
    return said


def test_a_spectrogram_s_axes_tell_seconds_and_kilohertz(tmp_path, monkeypatch):
    said = listened(monkeypatch)
    parts = [part("audio", np.zeros((40, 100)))]
    preview.documents([("a", parts)], tmp_path / "page.png", "title")
    words = [word for _, _, word in said]
    assert "0.0 s" in words
    assert "2.0" in words  # 100 tokens of 20 ms
    x_of = {word: x for x, _, word in said}
    y_of = {word: y for _, y, word in said}
    assert x_of["2.0"] - x_of["0.0 s"] == pytest.approx(2 * (x_of["1.0"] - x_of["0.0 s"]))
    assert y_of["0"] > y_of["1.8"] > y_of["8 kHz"]  # of 8 kHz in mel, the half is 1.8
    assert words.count("8 kHz") == 1


def test_a_documents_name_goes_on_in_a_further_line(tmp_path, monkeypatch):
    said = listened(monkeypatch)
    name = "d: 1 part given; as asked: no further text (--max-text=0), media 1 at most (--max-media=1)"
    file = tmp_path / "page.png"
    sizes = []
    for wide in (preview.WIDTH, 400):
        said.clear()
        preview.documents([(name, [part("text", "a word")])], file, "title", wide)
        sizes.append(size(file)[1])
        assert name in " ".join(words for _, _, words in said)
    assert sizes[1] > sizes[0]


def test_what_the_font_lacks_is_a_dot_and_no_box():
    assert preview.legible("a\ufffd\x00\u6f22b") == "a\u00b7\u00b7\u00b7b"


def test_pictures_use_the_width_and_a_page_is_as_wide_as_asked(tmp_path):
    dark = np.zeros((32, 32, 3), np.uint8)
    for wide, columns, side in ((1200, 1152, 256), (420, 372, 192)):
        placed, _ = preview._arranged([part("text", "words"), part("image", dark)], columns)
        assert placed[1][0].pixels.shape == (side, side, 3)
        placed, _ = preview._arranged([part("image", dark)] * 9, columns)
        assert placed[0][0].pixels.shape[0] in (128, 192)
        preview.documents([("a", [part("text", "words " * 99)])], tmp_path / "page.png", "a long title " * 5, wide)
        assert size(tmp_path / "page.png")[0] == wide


def test_a_title_shows_stray_bytes_as_dots_and_no_parts_of_a_prompt_that_was_none():
    assert pictures._wrapped("a\x00\ufffdb c") == ["a\u00b7\u00b7b c"]
    parts = [("text", "words")]
    assert documents._title(documents.Continuation("document-0", 0, parts, True)) == "document-0"
    assert documents._title(documents.Continuation("document-0", 1, parts, True)) == "document-0: 1 part given"
