import lzma
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mot.errors import UserError
from mot.prepare import raw, readers
from mot.prepare.inputs import printable
from mot.prepare.raw import Part
from tests.support.files import bad, good, png, read, table, tar, write, write_lines

SHARED = Path(__file__).parents[3] / "shared" / "data"


def shared(name):
    return pytest.mark.skipif(not (SHARED / name).exists(), reason=f"../shared/data/{name} is not there")


def test_interleaved_documents(tmp_path):
    image, clip = write(tmp_path / "media" / "cat.png", png()), write(tmp_path / "x.wav", b"sound")
    vectors = write(tmp_path / "x.npy", b"floats")
    file = write_lines(
        tmp_path / "docs.jsonl",
        {"content": [{"text": "A cat: "}, {"image": "media/cat.png"}, {"text": ""}, {"audio": "x.wav"}], "id": "cat"},
        b"",
        {"content": [{"latents": "./x.npy"}], "split": "test"},
        {"text": "plain", "split": "train", "id": 7},
    )
    found = read(file)
    assert [(r.id, r.held_out) for r in found] == [
        ("docs.jsonl:1:cat", None),
        ("docs.jsonl:3", True),
        ("docs.jsonl:4:7", False),
    ]
    assert good(file) == [
        [("text", "A cat: "), ("image", image), ("audio", clip)],
        [("latents", vectors)],
        [("text", "plain")],
    ]


def test_bad_lines_are_told_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "MAX_LINE", 30_000)
    (tmp_path / "folder").mkdir()
    write(tmp_path / "outside.png", png())
    os.symlink(tmp_path / "outside.png", tmp_path / "folder" / "link.png")
    os.symlink(tmp_path, tmp_path / "folder" / "up")
    bads = [
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": ', "not JSON"),
        (b"[1]", "an object is needed"),
        (b'"text"', "an object is needed"),
        (b"[" * 25_000, "nested too deeply"),
        (b'{"text": "%s"}' % (b"x" * 50_000), "more than 30000 bytes"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
        ({"content": []}, "an empty document"),
        ({"text": " \n"}, "an empty document"),
        ({"content": [{"text": " "}, {"text": ""}]}, "an empty document"),
        ({"content": [{"film": "x.mp4"}]}, "'film': 'x.mp4'}; an object with one of the keys text, image"),
        ({"content": [{"text": "x", "image": "y"}]}, "one of the keys"),
        ({"content": [{"text": 7}]}, "a string is needed"),
        ({"content": "words"}, "no list named 'content'"),
        ({"title": "x"}, "content templates"),
        ({"text": None}, "a string is needed"),
        ({"text": "x", "split": "later"}, "split 'later'; train, val"),
        ({"text": "x", "split": [1]}, r"split [1]"),
        ({"content": [{"image": "/etc/hostname"}]}, "only paths inside"),
        ({"content": [{"image": "../outside.png"}]}, "only paths inside"),
        ({"content": [{"image": "a/../../outside.png"}]}, "only paths inside"),
        ({"content": [{"image": ""}]}, "only paths inside"),
        ({"content": [{"image": "link.png"}]}, "a link that leaves"),
        ({"content": [{"audio": "up/outside.png"}]}, "a link that leaves"),
        ({"content": [{"image": "none.png"}]}, "No such file"),
        ({"content": [{"image": "a\0b"}]}, "null"),
        ({"content": [{"image": "x" * 2000}]}, "too long"),
    ]
    mixed = [row for row, _ in bads for row in (row, {"text": "good"})]
    file = write_lines(tmp_path / "folder" / "docs.jsonl", *mixed)
    reasons = bad(file)
    assert list(reasons) == [f"docs.jsonl:{1 + 2 * i}" for i in range(len(bads))]
    for reason, (_, expected) in zip(reasons.values(), bads, strict=True):
        assert expected in reason
        assert len(reason) < 300
    assert len(read(file)) == 2 * len(bads)


def test_links_that_leave_a_folder_and_pipes_are_not_opened(tmp_path):
    outside = {
        "jsonl": write_lines(tmp_path / "out" / "0.jsonl", {"text": "secret"}),
        "text": write(tmp_path / "out" / "0.txt", "secret"),
        "webdataset": tar(tmp_path / "out" / "0.tar", ("0.txt", b"secret")),
        "parquet": table(tmp_path / "out" / "0.parquet", {"text": ["secret"]}),
        "npz": tmp_path / "out" / "0.npz",
    }
    np.savez(outside["npz"], text=np.array(["secret"]), latents=np.ones((1, 2)))
    for form, file in outside.items():
        folder = tmp_path / form
        good_one = write(folder / "real" / f"good{file.suffix}", file.read_bytes())
        os.symlink(good_one, folder / f"inner{file.suffix}")
        os.symlink(file, folder / f"link{file.suffix}")
        os.symlink("/dev/zero", folder / f"device{file.suffix}")
        os.mkfifo(folder / f"pipe{file.suffix}")
        reasons = bad(folder)
        assert {name.partition(".")[0] for name in reasons} == {"link", "device", "pipe"}, form
        assert "a link that leaves" in reasons[f"link{file.suffix}"]
        assert "no regular file" in reasons[f"pipe{file.suffix}"]
        assert len(read(folder)) == 5
        with pytest.raises(UserError, match="a pipe or device; only files and folders are read"):
            read(folder / f"pipe{file.suffix}")


def test_a_pipe_that_a_row_names_is_bad(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    file = write_lines(tmp_path / "x.jsonl", {"content": [{"image": "a.png"}]})
    assert "no regular file" in bad(file)["x.jsonl:1"]


def test_a_document_of_too_much_text_is_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "MAX_TEXT", 1000)
    part = {"text": "é" * 250}
    file = write_lines(tmp_path / "x.jsonl", {"content": [part, part]}, {"content": [part, part, {"text": "x"}]})
    assert list(bad(file)) == ["x.jsonl:2"]
    assert "1,001 bytes of text; at most 1,000" in bad(file)["x.jsonl:2"]


def test_a_long_line_is_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "MAX_LINE", 2**20)
    file = write(tmp_path / "x.jsonl", b'{"text": "a"}\n')
    with open(file, "r+b") as f:
        f.truncate(2**28)  # zeros without an end of line
    import tracemalloc

    tracemalloc.start()
    assert list(bad(file)) == ["x.jsonl:2"]
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_templates_on_json_rows(tmp_path):
    write(tmp_path / "a.png", png())
    rows = [{"title": "T", "body": f"B{i}", "n": i, "tags": ["x", "y"], "file": "a.png"} for i in range(3)]
    file = write_lines(tmp_path / "x.jsonl", *rows, {"title": "T"})
    found = read(file, format="jsonl", content=["text:{title} {n}: {body} {tags}|image:file", "image:file|text:body"])
    a = tmp_path / "a.png"
    assert [r.parts for r in found] == [
        (Part("text", "T 0: B0 x, y"), Part("image", a)),
        (Part("image", a), Part("text", "B1")),
        (Part("text", "T 2: B2 x, y"), Part("image", a)),
        (),
    ]
    assert "no field 'file'; it has title" in found[3].bad


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    file = write(tmp_path / "x.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert good(file) == [[("text", "a")], [("text", "b")]]


def test_a_template_substitutes_names_alone(tmp_path):
    """`str.format` would reach into objects."""
    file = write_lines(tmp_path / "x.jsonl", {"a": "{b}", "b": "B", "a.__class__": "dotted"})
    assert good(file, content=["text:{a} {b} {a.__class__} %s"]) == [[("text", "{b} B dotted %s")]]


@pytest.mark.parametrize(
    "template",
    [
        "caption",
        "words:x",
        "text:",
        "text:a|",
        "image:{x}",
        "text:{x",
        "text:x}{y}",
        "",
        "text:{}",
        ":x",
        "action:x+",
        "action:{x}",
    ],
)
def test_a_template_that_cannot_be_meant_is_refused(template, tmp_path):
    file = write_lines(tmp_path / "x.jsonl", {"text": "a"})
    with pytest.raises(UserError, match=r"write kind:field, the kind one of text, image, audio, action, latents"):
        read(file, content=[template])


def test_inputs_that_are_not_there_or_not_clear(tmp_path):
    write(tmp_path / "a.parquet", b"")
    write(tmp_path / "b.tar", b"")
    write(tmp_path / "c.docx", b"")
    write(tmp_path / ".hidden" / "a.jsonl", b"")
    write(tmp_path / "empty" / ".a.jsonl", b"")
    (tmp_path / ".dangling").mkdir()
    os.symlink(tmp_path / "none", tmp_path / ".dangling" / "a.jsonl")
    file = write_lines(tmp_path / "f" / "a.jsonl", {"text": "a"})
    allowed = "jsonl, folder, parquet, webdataset, text, npz"
    for inputs, options, message in (
        ([tmp_path / "none"], {}, "no such file or folder; name one"),
        ([], {}, "no input; name"),
        ([tmp_path], {}, rf"look like parquet \(a.parquet\) and webdataset \(b.tar\).*one of {allowed}"),
        ([tmp_path / "c.docx"], {}, f"c.docx: not clear what it is; give its format: one of {allowed}"),
        ([tmp_path / "empty"], {}, "none that is known"),
        ([tmp_path / "empty"], {"format": "jsonl"}, "no .jsonl or .ndjson or .json file in it"),
        ([tmp_path / "empty"], {"format": "folder"}, "no image"),
        ([file], {"format": "csv"}, f"format 'csv': allowed are auto, {allowed}"),
        ([file], {"separator": "--"}, "read as jsonl; only text has one"),
        ([file], {"format": "text", "content": ["text:x"]}, "plain text has no fields"),
        ([file, file.parent], {}, "given twice"),
        (
            [tmp_path / ".dangling"],
            {},
            "looks like jsonl, and none of 1 files may be opened; .*a.jsonl.: No such file or directory",
        ),
        ([file], {"format": "npz"}, "JSON lines without arrays"),
    ):
        with pytest.raises(UserError, match=message):
            read(*inputs, **options)


def test_the_format_is_seen_from_the_files(tmp_path):
    names = {
        "jsonl": ["a.jsonl", "b.png", "c.wav", "README.txt"],
        "folder": ["a.png", "a.txt"],
        "parquet": ["data/a.parquet", "notes.txt"],
        "webdataset": ["a.tar", "b.tar.gz"],
        "text": ["a.txt", "b/c.txt"],
        "npz": ["a.npz", "a.jsonl"],
    }
    for form, files in names.items():
        for name in files:
            row = {"content": [{"image": "b.png"}]}
            write_lines(tmp_path / form / name, row)
        assert readers.detect([tmp_path / form]) == form
    write_lines(tmp_path / "captions" / "x.jsonl", {"file_name": "a.png", "text": "A"})
    write(tmp_path / "captions" / "a.png", png())
    assert readers.detect([tmp_path / "captions"]) == "folder"
    write_lines(tmp_path / "code.jsonl", {"file": "a.py", "text": "A"})
    assert readers.detect([tmp_path / "code.jsonl"]) == "jsonl"


def test_folders_are_read_in_a_fixed_order_and_hidden_files_left_out(tmp_path):
    for name in ("b/2.jsonl", "b/10.jsonl", "a/x.jsonl", "z.jsonl", ".git/x.jsonl", "b/.x.jsonl", "b/x.json~"):
        write_lines(tmp_path / "in" / name, {"text": name})
    ids = [r.id for r in read(tmp_path / "in")]
    assert ids == ["z.jsonl:1", "a/x.jsonl:1", "b/10.jsonl:1", "b/2.jsonl:1"]
    both = [r.id for r in read(tmp_path / "in" / "b", tmp_path / "in" / "a" / "x.jsonl")]
    assert both == ["b/10.jsonl:1", "b/2.jsonl:1", "a/x.jsonl:1"]


def test_reading_is_lazy(tmp_path):
    file = write_lines(tmp_path / "x.jsonl", *({"text": str(i)} for i in range(100_000)))
    stream = readers.read([file])
    assert next(stream).parts == (Part("text", "0"),)
    stream.close()


def test_a_text_is_one_document_or_what_separates_it(tmp_path):
    file = write(tmp_path / "in" / "a.txt", "\ufeffone\n---\ntwo · zwei\n---\n\n---\nthree\n")
    assert good(file) == [[("text", "one\n---\ntwo · zwei\n---\n\n---\nthree\n")]]
    found = read(file, separator="\n---\n")
    assert [r.parts[0].content for r in found] == ["one", "two · zwei", "three\n"]
    data = file.read_bytes()
    for r in found[1:]:
        assert data[int(r.id.removeprefix("a.txt:")) :].startswith(r.parts[0].content.encode())
    write(tmp_path / "in" / "b.txt", "")
    write(tmp_path / "in" / "c.md", "not named .txt")
    assert bad(tmp_path / "in") == {"b.txt:0": "an empty document"}
    assert good(tmp_path / "in" / "c.md", format="text") == [[("text", "not named .txt")]]


def test_wrong_utf8_makes_one_document_bad(tmp_path):
    file = write(tmp_path / "a.txt", b"good--\xff\xfe--also good")
    assert [r.id for r in read(file, separator="--")] == ["a.txt:0", "a.txt:6", "a.txt:10"]
    assert bad(file, separator="--") == {"a.txt:6": "text is not UTF-8: invalid start byte at byte 0"}


@pytest.mark.parametrize(
    ("unit", "ends"),
    [
        ("A sentence. Another one!\n\n", "\n\n"),
        ("A sentence.\nAnother one, longer\n", "\n"),
        ("A sentence. ", ". "),
        ("word ", " "),
        ("漢字", ""),  # 65,536 bytes end one, two and three bytes into a character
        ("漢🙂", ""),
        ("🙂🙂漢", ""),
        ("é", ""),
    ],
)
def test_a_long_text_is_cut_where_it_may_be(tmp_path, unit, ends):
    whole = unit * (2_000_000 // len(unit.encode()))
    file = write(tmp_path / "a.txt", whole)
    found = read(file)
    pieces = [r.parts[0].content for r in found]
    assert "".join(pieces) == whole
    sizes = [len(piece.encode()) for piece in pieces]
    assert max(sizes) <= 64 * 2**10
    assert min(sizes[:-1]) >= 32 * 2**10
    assert all(piece.endswith(ends) for piece in pieces)
    assert [r.id for r in found] == [f"a.txt:{offset}" for offset in np.cumsum([0, *sizes[:-1]])]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_separated_texts_equal_a_split_of_the_whole(data, tmp_path_factory):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    separator = data.draw(st.sampled_from(["\n\n", "<|end|>", "aab", "·"]))
    size = data.draw(st.sampled_from([10, 1000, 40_000]))
    letters = np.array(list("ab \n·"))
    words = ["".join(letters[rng.integers(0, 5, rng.integers(0, size))]) for _ in range(data.draw(st.integers(1, 20)))]
    whole = separator.join(words)
    file = write(tmp_path_factory.mktemp("texts") / "a.txt", whole)
    expected = [piece for piece in whole.split(separator) if piece.strip() and len(piece.encode()) <= 64 * 2**10]
    got = [r.parts[0].content for r in read(file, separator=separator) if r.parts]
    long = sum(len(piece.encode()) > 64 * 2**10 for piece in whole.split(separator))
    assert got == expected if not long else set(expected) <= set(got)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_changed_archive_or_table_never_crashes(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make = data.draw(st.sampled_from(["tar", "gz", "jsonl", "csv", "parquet", "lists", "array", "xz"]))
    if make in ("tar", "gz"):
        path = tar(
            folder / "a.tar",
            ("0.txt", b"a"),
            ("0.jpg", b"b"),
            ("x" * 150 + ".txt", b"c"),
            mode="w:gz" if make == "gz" else "w",
        )
    elif make == "jsonl":
        path = write_lines(folder / "a.jsonl", {"text": "a"}, {"content": [{"text": "b"}, {"image": "a.png"}]})
    elif make == "lists":
        path = table(folder / "a.parquet", {"texts": [["a", None]], "images": [[None, {"bytes": png(), "path": "x"}]]})
    elif make == "array":
        path = write(folder / "a.json", '[{"text": "a"}, {"texts": ["a", null], "images": [null, "a.png"]}]')
    elif make == "xz":
        path = write(folder / "a.jsonl.xz", lzma.compress(b'{"text": "a"}\n' * 9))
    elif make == "csv":
        path = write(folder / "captions.csv", 'file,caption\na.png,"x"\nb.png,y\n')
    else:
        path = table(folder / "a.parquet", {"text": ["a", "b"], "image": [png(), png()]})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    try:
        found = read(path)
    except UserError:
        return
    assert all(bool(r.bad) != bool(r.parts) for r in found)


@shared("books.val.txt")
def test_shared_books():
    found = read(SHARED / "books.val.txt")
    whole = (SHARED / "books.val.txt").read_text("utf-8")
    assert "".join(r.parts[0].content for r in found) == whole
    assert all(r.parts[0].content.endswith("\n\n") for r in found[:-1])


def test_a_name_is_written_as_it_is_but_for_what_commands_a_terminal():
    """The same under every version of Unicode: an emoji of 2024 and a Persian joiner stay."""
    assert printable("\U0001fae9 \u0645\u06cc\u200c\u062e \u00ad") == "\U0001fae9 \u0645\u06cc\u200c\u062e \u00ad"
    assert printable("a\x1b[2J\x9b\n\udce9") == r"a\x1b[2J\x9b\n\udce9"
