import os

import numpy as np
import pyarrow
import pytest

from mot.errors import UserError
from mot.prepare import raw, readers, tables
from mot.prepare.codecs import action, latents
from mot.prepare.raw import Part
from tests.support.files import bad, good, png, read, table, write, write_lines


def test_images_with_texts_beside_them(tmp_path):
    folder = tmp_path / "in"
    a, b = write(folder / "a.png", png()), write(folder / "deep" / "b.jpeg", png())
    write(folder / "a.txt", "\ufeffa cat\n")
    write(folder / "deep" / "b.txt", "a dog")
    write(folder / "deep" / "notes.txt", "of no image")
    assert good(folder) == [[("text", "a cat"), ("image", a)], [("text", "a dog"), ("image", b)]]
    assert [r.id for r in read(folder)] == ["a.png", "deep/b.jpeg"]
    swapped = ["image:image|text:caption", "text:see {caption}!"]
    assert good(folder, content=swapped) == [[("image", a), ("text", "a cat")], [("text", "see a dog!")]]
    write(folder / "c.png", png())
    write(folder / "d.png", png())
    write(folder / "d.txt", b"\xff\xfe")
    write(folder / "e.png", png())
    write(folder / "e.txt", " \n")
    write(tmp_path / "out.png", png())
    os.symlink(tmp_path / "out.png", folder / "f.png")
    write(folder / "f.txt", "a link")
    reasons = bad(folder)
    assert list(reasons) == ["c.png", "d.png", "f.png"]
    for reason, expected in zip(
        reasons.values(), ("no caption: no c.txt beside it", "d.txt is not UTF-8", "link that"), strict=True
    ):
        assert expected in reason
    assert len(good(folder / "deep", content=["image:image"])) == 1


def test_captions_that_are_links_or_pipes(tmp_path):
    folder = tmp_path / "in"
    for name in "abc":
        write(folder / f"{name}.png", png())
    write(tmp_path / "secret.txt", "secret")
    os.symlink(tmp_path / "secret.txt", folder / "a.txt")
    os.mkfifo(folder / "b.txt")
    os.symlink("/dev/zero", folder / "c.txt")
    os.mkfifo(folder / "d.png")
    write(folder / "d.txt", "of a pipe")
    write(tmp_path / "secret.csv", "file,caption\na.png,secret\n")
    (folder / "deep").mkdir()
    os.symlink(tmp_path / "secret.csv", folder / "deep" / "captions.csv")
    expected = {
        "a.png": "a link that leaves",
        "b.png": "no regular file",
        "c.png": "a link that leaves",
        "d.png": "no regular file",
        "deep/captions.csv": "a link that leaves",
    }
    reasons = bad(folder)
    assert list(reasons) == list(expected)
    assert all(words in reasons[name] for name, words in expected.items())


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_small_table_of_long_texts_stays_small_in_memory(tmp_path, dictionary):
    words = pyarrow.array(["a" * 2**20]).dictionary_encode().take(pyarrow.array([0] * 700))
    words = words if dictionary else words.dictionary_decode()
    file = table(tmp_path / "a.parquet", {"text": words}, compression="zstd")
    del words
    assert file.stat().st_size < 5000
    before = pyarrow.total_allocated_bytes()
    for count, row in enumerate(readers.read([file]), 1):  # noqa: B007
        assert len(row.parts[0].content) == 2**20
        assert pyarrow.total_allocated_bytes() - before < 2 * tables.BATCH
    assert count == 700


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_row_of_too_much_text_is_bad(tmp_path, monkeypatch, dictionary):
    for module in (raw, tables):
        monkeypatch.setattr(module, "MAX_TEXT", 1000)
    words = pyarrow.array(["x" * 1000, "x" * 1001, None, "y"])
    words = words.dictionary_encode() if dictionary else words
    reasons = bad(table(tmp_path / "a.parquet", {"text": words}))
    assert list(reasons) == ["a.parquet:1", "a.parquet:2"]
    assert "1,001 bytes of text; at most 1,000" in reasons["a.parquet:1"]


@pytest.mark.parametrize("name", ["captions.csv", "metadata.csv", "any.jsonl"])
def test_images_with_a_captions_file(tmp_path, name):
    folder = tmp_path / "in"
    images = [write(folder / "train" / "img" / f"{i}.png", png(i)) for i in range(3)]
    rows = [("img/0.png", 'a "cat", big', "train"), ("img/1.png", "two\nlines", "val"), ("img/2.png", "c", "")]
    if name.endswith("csv"):
        quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
        write(folder / "train" / name, "\r\n".join(["file_name,text,split", *quoted]))
    else:
        keyed = [{"file_name": file, "text": words} | ({"split": s} if s else {}) for file, words, s in rows]
        write_lines(folder / "train" / name, *keyed)
    found = read(folder)
    assert [r.parts for r in found] == [
        (Part("text", words), Part("image", image)) for image, (_, words, _) in zip(images, rows, strict=True)
    ]
    assert [r.held_out for r in found] == [False, True, None]
    lines = (2, 3, 5) if name.endswith("csv") else (1, 2, 3)
    assert [r.id for r in found] == [f"train/{name}:{line}" for line in lines]
    first = read(folder / "train" / name, format="folder", content=["text:{text}, {split}|image:image"])[0]
    assert first.parts[0].content == 'a "cat", big, train'


def test_a_split_of_0_is_trained_on(tmp_path):
    image = write(tmp_path / "in" / "a.png", png())
    write_lines(tmp_path / "in" / "any.jsonl", *({"file_name": image.name, "text": "a", "split": s} for s in (0, 1)))
    assert [r.held_out for r in read(tmp_path / "in")] == [False, True]


def test_columns_of_a_csv(tmp_path):
    write(tmp_path / "a.png", png())
    file = write(tmp_path / "captions.csv", "path,title\na.png,A\n")
    with pytest.raises(
        UserError, match=r"its columns are path, title; name one file_name or filename or file or path and one cap"
    ):
        read(file)
    assert good(file, content=["text:title|image:path"])[0][1] == ("image", tmp_path / "a.png")
    with pytest.raises(
        UserError, match=r"content names 'name'; its fields are path, title; say which to use, e.g. --con"
    ):
        read(file, content=["text:name|image:path"])
    write(file, "")
    with pytest.raises(UserError, match=r"its columns are none"):
        read(file)


def test_a_broken_quote_stops_at_its_line_and_bad_rows_do_not(tmp_path):
    write(tmp_path / "a.png", png())
    head = "file,caption\na.png,good\n"
    file = write(
        tmp_path / "captions.csv", head.encode() + b"a.png\na.png,1,2\na.png,\xff\n../a.png,x\n/a.png,x\na.png,\n"
    )
    reasons = list(bad(file).values())
    for reason, expected in zip(
        reasons, ("1 values; the header has 2", "3 values", "surrogate", "only paths", "only paths"), strict=True
    ):
        assert expected in reason
    for broken, line in ((f'{head}a.png,"open\na.png,x\n', 3), (f'{head}\n"a.png","he said "hi" there"\n', 4)):
        write(file, broken)
        with pytest.raises(UserError, match=rf"captions.csv:{line}: .*close its quotes"):
            read(file)
    write(file, head + 'a.png,"open\n' + "a.png,x\n" * 50_000)
    with pytest.raises(UserError, match=r"captions.csv:3: .*field larger"):
        read(file)


def test_parquet_as_hugging_face_stores_it(tmp_path):
    beside = write(tmp_path / "in" / "beside.png", png(9))
    struct = [
        {"bytes": png(1), "path": "1.png"},
        {"bytes": png(2), "path": None},
        {"bytes": None, "path": "beside.png"},
    ]
    table(
        tmp_path / "in" / "a.parquet",
        {"image": struct, "text": ["one", "two", "three"], "split": ["train", "test", None], "width": [1, 2, 3]},
        row_group_size=2,
    )
    table(
        tmp_path / "in" / "b.parquet",
        {"image": [png(4)], "text": pyarrow.array(["four"]).dictionary_encode(), "split": [1]},
    )
    found = read(tmp_path / "in")
    assert [r.id for r in found] == ["a.parquet:0", "a.parquet:1", "a.parquet:2", "b.parquet:0"]
    images = [png(1), png(2), beside, png(4)]
    words = ["one", "two", "three", "four"]
    assert good(tmp_path / "in") == [[("text", t), ("image", i)] for t, i in zip(words, images, strict=True)]
    assert [r.held_out for r in found] == [False, True, None, True]
    alternating = ["image:image|text:text", "text:{text}, {text}"]
    assert [[kind for kind, _ in d] for d in good(tmp_path / "in", content=alternating)] == [
        ["image", "text"],
        ["text"],
    ] * 2


def test_parquet_of_text_audio_and_latents(tmp_path):
    file = table(
        tmp_path / "a.parquet",
        {"text": ["a", "b"], "audio": [{"bytes": b"1", "path": "x"}] * 2, "latents": [[[1.0, 2.0]], [[3.0, 4.0]]]},
    )
    first, second = good(file)
    assert first[:2] == [("text", "a"), ("audio", b"1")]
    np.testing.assert_array_equal(second[2][1], np.float32([[3, 4]]))
    assert latents.vectors(second[2][1]).shape == (1, 2)
    many = table(tmp_path / "b.parquet", {"text": [str(i) for i in range(3000)]})
    assert [d[0][1] for d in good(many)] == [str(i) for i in range(3000)]


def test_parquet_of_paths_in_one_column_or_several(tmp_path):
    columns = {"text": ["a"], "action": [[[1, 2], [3, 4]]], "x": [[1, 3]], "y": [[2.0, 4.0]], "up": [[False, True]]}
    file = table(tmp_path / "a.parquet", columns)
    assert action.path(good(file)[0][1][1]).tolist() == [[1, 2, 0], [3, 4, 0]]
    ((_, (kind, path)),) = good(file, content=["text:text|action:x+y+up"])
    assert (kind, action.path(path).tolist()) == ("action", [[1, 2, 0], [3, 4, 1]])
    with pytest.raises(
        UserError, match=r"column 'text' is string; action needs .npy files \(binary\) or lists of numbers"
    ):
        read(file, content=["action:text"])


def test_columns_of_parquet_that_do_not_fit(tmp_path):
    columns = {"image": ["a.png"], "text": [1], "caption": [["a", "b"]], "pixels": [[1.0]], "words": [{"bytes": "x"}]}
    file = table(tmp_path / "a.parquet", columns)
    for content, message in (
        (["text:text"], r"column 'text' is int64; text needs a string"),
        (["text:n {text}"], r"column 'text' is int64; text needs a string"),
        (["text:caption"], r"column 'caption' is list<.*string>; text needs a string"),
        (["image:image"], r"column 'image' is string; image needs binary or a struct of bytes"),
        (["audio:pixels"], r"column 'pixels' is list<.*double>; audio needs binary"),
        (["image:words"], r"column 'words' is struct<bytes: string>; image needs binary or a struct"),
        (["latents:text"], r"column 'text' is int64; latents needs .npy files"),
        (
            ["text:title"],
            r"a.parquet: content names 'title'; its fields are image, text, caption, pixels, words; say which",
        ),
        (["text:pixels|image:pixels"], r"uses the field 'pixels' as image and as text|as text and as image"),
    ):
        with pytest.raises(UserError, match=message):
            read(file, content=content)
    with pytest.raises(
        UserError, match=r"no field's name says that it is text; its fields are a; .*'text:a\|image:image'"
    ):
        read(table(tmp_path / "b.parquet", {"a": ["x"]}))


def test_bad_rows_and_bad_files_of_parquet(tmp_path):
    words = pyarrow.array([b"good", b"\xff", None, b"", b"last"], pyarrow.binary()).view(pyarrow.string())
    paths = ["a", "b", "c", "d", "../x.png"]
    image = [{"bytes": None if p == "../x.png" else png(), "path": p} for p in paths]
    image[0] = None
    file = table(tmp_path / "a.parquet", {"text": words, "image": image})
    reasons = bad(file, content=["text:text|image:image"])
    for row, expected in {0: "image field", 1: "text is not UTF-8", 2: "text is null", 4: "only paths inside"}.items():
        assert expected in reasons[f"a.parquet:{row}"]
    assert list(bad(file, content=["text:text"]))[-1] == "a.parquet:3"  # empty
    whole = table(tmp_path / "in" / "b.parquet", {"text": ["x" * 999 + str(i) for i in range(99)]}, compression=None)
    data = whole.read_bytes()
    write(tmp_path / "in" / "a.parquet", data[:-9])
    write(tmp_path / "in" / "c.parquet", b"")
    write(tmp_path / "in" / "d.parquet", data.replace(b"text", b"te\xff\xff"))  # the column's name
    assert list(bad(tmp_path / "in")) == ["a.parquet", "c.parquet", "d.parquet"]
    assert "the rest of the table, after 0 rows" in bad(tmp_path / "in")["a.parquet"]
    assert len(read(tmp_path / "in")) == 102
