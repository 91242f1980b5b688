"""A modality from files is one row and one file: with these alone it is prepared, shown and given back."""

import ast
import dataclasses
import io
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from mot.config import modalities
from mot.config.modalities import IDS, MODALITIES, TEXT, Modality
from mot.data import preview
from mot.data.records import Dataset
from mot.generate import codecs as prompts
from mot.generate import documents
from mot.prepare import codecs, columns, dataset_tokenizers, job, media
from mot.prepare.raw import Part
from tests.support.datasets import SMALL
from tests.support.files import good, table, write, write_lines
from tests.support.media import npy
from tests.support.sources import ROOT, SOURCES, name_of

ROW = Modality(
    suffixes=("heat.npy",), fields=("heat",), paths=("heat",), max_bytes=10**4, called="heat map", learns_from=9
)


@dataclass(frozen=True, eq=False)
class HeatTokenizer:
    """Of numbers `[n]`, as whole ones from the least of the first."""

    FORMAT: ClassVar[str] = "mot heat tokenizer 1"
    ids: int
    least: float

    def encode(self, heat):
        return (heat - self.least).clip(0, self.ids - 1).astype(np.int64)

    def decode(self, ids):
        return ids + self.least


def check(shape, dtype):
    if len(shape) != 1 or dtype.kind not in "iuf":
        raise ValueError(f"heat {dtype} {list(shape)}; numbers [n] are allowed")


def read(part: Part, remarks: Counter):
    heat = media.array(part.content, MODALITIES["heat"].max_bytes, check)
    if heat.max() > 90:
        remarks["heat maps are hotter than 90: the rest is lost"] += 1
    return heat


def fit(form, contents, recipe):
    seen = list(contents)
    assert len(seen) == ROW.learns_from
    return HeatTokenizer(32, float(min(x.min() for x in seen)))


def fits_array(dtype, shape):
    return len(shape) == 1


def fits_column(column):
    return columns.is_array(column, columns.is_number)


def picture(content, room):
    return preview.heat(content[None], "magma", room)


def box(content, tokenizer, room):
    return preview.Box(f", {len(content)} of", (), picture(content, room))


def files(content, tokenizer, seed):
    return {"npy": npy(content)}


@pytest.fixture
def heat(monkeypatch):
    """The row and the file of `heat`."""
    module = ModuleType("mot.prepare.codecs.heat")
    module.TOKENIZERS = {IDS: HeatTokenizer}
    module.ARRAYS = module.COLUMNS = "numbers"
    module.IS_RAGGED = True
    for function in (read, fits_array, fits_column, fit, box, picture, files):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(MODALITIES, "heat", ROW)


def maps(count=20):
    rng = np.random.default_rng(0)
    return [np.concatenate([[7], rng.integers(7, 39, 3 + i % 4)]) for i in range(count)]


def write_folder(folder):
    for i, x in enumerate(maps()):
        write(folder / f"{i}.heat.npy", npy(x))
        write(folder / f"{i}.txt", f"heat {i}")
    return folder


def test_a_folder_of_a_new_modality_is_prepared_shown_and_given_back(heat, tmp_path):
    folder = write_folder(tmp_path / "in")
    write(folder / "18.heat.npy", npy(np.array([7, 91])))
    write(folder / "19.heat.npy", npy(np.zeros((2, 2))))
    recipe = dataclasses.replace(SMALL, inputs=(str(folder),), format="auto")
    about = job.prepare(recipe, tmp_path / "out", 1, 1).about
    assert about["modalities"] == ["text", "heat"]
    assert about["tokenizers"]["heat"]["ids"] == 32
    assert {"<heat>", "</heat>"} <= about["tokenizers"]["text"]["special"].keys()
    assert about["left_out"] == {"heat float64 [2, 2]; numbers [n] are allowed": 1}
    assert about["warnings"] == ["1 of 19 heat maps are hotter than 90: the rest is lost"]
    tokenizers = dataset_tokenizers.load(tmp_path / "out" / "tokenizers")
    dataset, expected = Dataset(tmp_path / "out", "train"), maps()
    for record in map(dataset.__getitem__, range(dataset.count)):
        (data,) = [span.data for span in record.spans if span.modality == "heat"]
        if not record.id.startswith("18."):
            number = int(record.id.partition(".")[0])
            np.testing.assert_array_equal(tokenizers.decode("heat", data), expected[number])
    draw = partial(codecs.box, "heat", tokenizers.of("heat"), expected[0])
    assert draw(preview.Room()).caption == f"heat, {len(expected[0])} of"
    preview.documents([("a", [draw])], tmp_path / "page.png", "title")
    assert Image.open(tmp_path / "page.png").width == 1200
    found = documents.Continuation("document-0", 0, [("heat", expected[0]), ("heat", None)], True)
    codec = prompts._records(tokenizers)
    files = documents._with_files(codec, found, 0)
    np.testing.assert_array_equal(np.load(io.BytesIO(files.files[1]["npy"])), expected[0])
    content = documents._content(codec, files, are_written=True)
    assert content == [{"heat": "document-0-1.npy"}, {"heat": None}]
    np.testing.assert_array_equal(codec.encode(Part("heat", expected[0])), expected[0] - 7)


def test_every_reader_finds_a_new_modality(heat, tmp_path):
    write_folder(tmp_path / "in")
    rows = [{"caption": f"heat {i}", "heat": npy(x)} for i, x in enumerate(maps(3))]
    binary = table(tmp_path / "a.parquet", {key: [row[key] for row in rows] for key in rows[0]})
    assert [kind for kind, _ in good(binary)[0]] == ["text", "heat"]
    lists = table(tmp_path / "b.parquet", {"caption": ["a"], "heat": [maps(1)[0].tolist()]})
    np.testing.assert_array_equal(good(lists)[0][1][1], maps(1)[0])
    lines = write_lines(tmp_path / "x.jsonl", {"text": "a", "heat": "in/0.heat.npy"})
    named = write_lines(tmp_path / "y.jsonl", {"content": [{"text": "a"}, {"heat": "in/0.heat.npy"}]})
    for file in (lines, named):
        assert good(file, format="jsonl") == [[("text", "a"), ("heat", tmp_path / "in" / "0.heat.npy")]]
    np.savez(tmp_path / "a.npz", caption=np.array(["a", "b"]), heat=np.ones((2, 5)))
    assert [part[0] for part in good(tmp_path / "a.npz")[1]] == ["text", "heat"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image, .*, chunk of actions or heat map \(.*\.npy, \.heat\.npy\) and"):
        good(tmp_path / "empty", format="folder")
    with pytest.raises(
        ValueError,
        match="the kind one of text, image, audio, action, latents, state, chunk, video, fast, heat or a modality",
    ):
        good(lists, content=["warmth:heat"])


def test_the_modality_of_the_how_to_page_works(monkeypatch, tmp_path):
    page = (ROOT / "docs" / "howto" / "add-a-modality.md").read_text(encoding="utf-8")
    row, file = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for name, value in eval(f"{{{row}}}", vars(modalities)).items():
        monkeypatch.setitem(MODALITIES, name, value)
    module = ModuleType("mot.prepare.codecs.depth")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(file, vars(module))
    rng = np.random.default_rng(0)
    for i in range(12):
        depth = np.kron(rng.integers(0, 256, (8, 8)), np.ones((2, 3)))
        write(tmp_path / "in" / f"{i}.depth.npy", npy(depth.astype(np.uint8)))
        write(tmp_path / "in" / f"{i}.txt", f"room {i}")
    write(tmp_path / "in" / "11.depth.npy", npy(np.zeros(3)))
    recipe = dataclasses.replace(SMALL, inputs=(str(tmp_path / "in"),), format="auto")
    about = job.prepare(recipe, tmp_path / "out", 1, 1).about
    tokenizer = about["tokenizers"]["depth"]
    assert (tokenizer["ids"], tokenizer["tokens"]) == (64, 64)
    assert about["left_out"] == {"a depth map float64 [3]; numbers [H, W] are allowed": 1}
    depth = dataset_tokenizers.load(tmp_path / "out" / "tokenizers").media["depth"]
    seen = codecs.of("depth").read(Part("depth", tmp_path / "in" / "0.depth.npy"), Counter())
    back = depth.decode(depth.encode(seen))
    assert np.abs(back - seen[::2, ::3]).max() < 256 / 64 * 3
    files = codecs.files("depth", depth, back, 0)
    np.testing.assert_array_equal(np.load(io.BytesIO(files["npy"])), back)
    assert codecs.box("depth", depth, back, preview.Room()).pixels.shape == (128, 128, 3)


def test_every_row_has_a_file_with_all_that_is_called():
    for name in modalities.media():
        codec = codecs.of(name)
        assert tuple(codec.TOKENIZERS) == MODALITIES[name].forms
        assert all(callable(getattr(codec, f)) for f in ("read", "fit", "fits_array", "fits_column", "box", "picture"))
        assert isinstance(codec.IS_RAGGED, bool)
        assert codec.ARRAYS
        assert codec.COLUMNS


# Where a modality's name may stand as itself, and why.
BY_NAME = {
    "launch.tokenizer": "of a picture and of a sound other things are drawn and measured",
    "mot.data.embedded": "the embedded digits are images",
    "mot.data.manifest": "an earlier version did not keep the width of latents",
    "mot.prepare.reordered": "films alone have frames in time",
    "mot.prepare.seqio_export": "chosen.json keeps the width of latents, of which seqio has none",
}


def names_told_apart(tree: ast.AST) -> list[int]:
    """Lines where a name of MODALITIES but text is compared with, matched, looked up, or the key of a dict."""
    names = MODALITIES.keys() - {TEXT}
    found = []
    for node in ast.walk(tree):
        told = []
        if isinstance(node, ast.Compare):
            told = [inner for part in (node.left, *node.comparators) for inner in ast.walk(part)]
        elif isinstance(node, ast.MatchValue | ast.Subscript):
            told = [node.value if isinstance(node, ast.MatchValue) else node.slice]
        elif isinstance(node, ast.Dict):
            told = node.keys
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get":
            told = node.args[:1]
        found += [x.lineno for x in told if isinstance(x, ast.Constant) and x.value in names]
    return found


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if name_of(p).startswith(("mot.prepare", "mot.generate", "mot.data", "launch"))],
    ids=name_of,
)
def test_no_file_but_its_own_knows_a_modality_by_name(path):
    name = name_of(path)
    if not name.startswith(("mot.prepare.codecs.", "launch.targets.")):  # whose image is a container's
        lines = names_told_apart(ast.parse(path.read_text(encoding="utf-8")))
        assert bool(lines) == (name in BY_NAME), (str(path.relative_to(ROOT)), lines)


def test_names_that_are_told_apart_are_found():
    for line in ('k == "image"', 'k in ("audio", "image")', '{"image": 1}', 'x["audio"]', 'x.get("audio")'):
        assert names_told_apart(ast.parse(line)) != [], line
    assert names_told_apart(ast.parse('k == "text" or f("image")')) == []
