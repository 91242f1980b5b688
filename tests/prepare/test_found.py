"""What people have as it lies in their folders: nothing that is there becomes a poorer dataset without a word."""

import bz2
import gzip
import json
import lzma
import os
import re
import tarfile
import tracemalloc

import numpy as np
import pyarrow
import pytest
import soundfile
from PIL import Image

from launch import data
from launch.cli import guarded
from mot.errors import UserError
from mot.prepare import asked
from mot.prepare.inputs import held_out
from tests.support.files import bad, good, png, read, table, tar, write, write_lines

OPTIONS = ["--text-ids=300", "--image-side=4", "--image-patch=2", "--image-ids=2", "--audio-ids=2", "--workers=1"]


def zstandard(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


PACKS = {"gz": gzip.compress, "zst": zstandard, "bz2": bz2.compress, "xz": lzma.compress}


def picture(path, i=0):
    """4 x 4 pixels, all different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)
    return path


def sound(path, i=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(np.arange(4000) * (i + 1) / 9) / 3, 16000)
    return path


def prepare(capsys, *arguments, held_out="--held-out=0"):
    """Exit code, what was told, and dataset.json."""
    *inputs, out = arguments
    options = [a for a in inputs if str(a).startswith("--")]
    inputs = [a for a in inputs if a not in options]
    code = guarded(data.main, ["prepare", *map(str, inputs), f"--out={out}", *OPTIONS, held_out, *options])
    told = capsys.readouterr()
    about = out / "dataset.json"
    return code, told.out + told.err, json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}


def test_media_of_every_kind_go_with_the_text_of_their_name(tmp_path):
    folder = tmp_path / "in" / "deep"
    for i in range(2):
        for name in (f"{i}.png", f"{i}.flac", f"{i}.action.npy", f"{i}.npy"):
            write(folder / name, name)
        write(folder / f"{i}.txt", f"\ufeffwords {i}\r\nof two lines\n")
    write(folder / "only.WAV", "sound")
    write(folder / "only.json", json.dumps({"caption": "from JSON", "url": "http://x/y"}))
    write(folder / "v1.2.jpg", "image")
    write(folder / "v1.2.txt", "a dotted name")
    assert good(tmp_path / "in") == [
        *(
            [
                ("text", f"words {i}\nof two lines"),
                ("image", folder / f"{i}.png"),
                ("audio", folder / f"{i}.flac"),
                ("action", folder / f"{i}.action.npy"),
                ("latents", folder / f"{i}.npy"),
            ]
            for i in range(2)
        ),
        [("text", "from JSON"), ("audio", folder / "only.WAV")],
        [("text", "a dotted name"), ("image", folder / "v1.2.jpg")],
    ]
    assert [r.id for r in read(tmp_path / "in")] == ["deep/0.png", "deep/1.png", "deep/only.WAV", "deep/v1.2.jpg"]
    several = tmp_path / "several"
    for name in ("x.png", "x.jpg", "x.wav"):
        write(several / name, name)
    write(several / "x.txt", "two pictures of one sound")
    assert [[c.name for k, c in d if k != "text"] for d in good(several)] == [["x.jpg", "x.wav"], ["x.png", "x.wav"]]
    folders = ["text:a {folder}|image:image"]
    assert good(write(tmp_path / "cls" / "cat" / "0.png", "x").parent.parent, content=folders)[0][0] == (
        "text",
        "a cat",
    )


def test_a_template_may_ask_for_a_file_of_a_longer_name(tmp_path):
    codes = write(tmp_path / "0.depth.npy", "codes")
    write(tmp_path / "0.txt", "a chair")
    found = read(tmp_path, content=["text:text|depth:depth.npy"], ids=["depth"])
    assert [[part.content for part in r.parts] for r in found] == [["a chair", codes]]


@pytest.mark.parametrize(
    ("name", "rows", "kinds"),
    [
        ("metadata.csv", "file_name,transcription\n0.wav,a\n0.png,b\n", [["audio"], ["image"]]),
        (
            "metadata.csv",
            "image_file_name,audio_file_name,text\n0.png,0.wav,a\n,0.wav,b\n",
            [["image", "audio"], ["audio"]],
        ),
        ("captions.csv", "file,caption\n0.npy,a\n0.action.npy,b\n", [["latents"], ["action"]]),
        ("manifest.jsonl", '{"audio_filepath": "0.wav", "text": "a", "duration": 1.5}\n', [["audio"]]),
        ("any.jsonl", '{"audio": "0.wav", "text": "a"}\n{"text": "b", "image": "0.png"}\n', [["audio"], ["image"]]),
        ("any.jsonl", '{"text": "a", "images": ["0.png", "0.png"]}\n', [["image", "image"]]),
        ("any.jsonl.gz", '{"file_name": "0.wav", "text": "a"}\n', [["audio"]]),
    ],
    ids=["transcription", "two columns", "vectors", "NeMo", "rows", "lists", "packed"],
)
def test_captions_files_name_media_of_every_kind(tmp_path, name, rows, kinds):
    for medium in ("0.wav", "0.png", "0.npy", "0.action.npy"):
        write(tmp_path / medium, medium)
    write(tmp_path / name, gzip.compress(rows.encode()) if name.endswith("gz") else rows)
    assert [[kind for kind, _ in document] for document in good(tmp_path)] == [["text", *of] for of in kinds]


def test_rows_with_media_are_no_texts_whatever_comes_first(tmp_path):
    write(tmp_path / "a.png", "x")
    rows = [{"text": "a"}, {"text": "b", "image": "a.png"}, {"text": "c", "path": "a.py", "action": "walk"}]
    assert [[k for k, _ in d] for d in good(write_lines(tmp_path / "x.jsonl", *rows))] == [
        ["text"],
        ["text", "image"],
        ["text"],
    ]
    address = write_lines(tmp_path / "y.jsonl", {"text": "b", "image": "https://x.org/a.jpg"})
    assert "an address, and only files are read; download it" in bad(address)["y.jsonl:1"]


def of_links(folder, target, names, **texts):
    folder.mkdir()
    for name in names:
        os.symlink(target, folder / name)
    for name, words in texts.items():
        write(folder / f"{name}.txt", words)
    return folder


def test_what_would_become_a_poorer_dataset_is_refused(tmp_path, capsys):
    image, archive = write(tmp_path / "out.png", png()), tar(tmp_path / "out.tar", ("0.txt", b"x"))
    films, apart = tmp_path / "films", tmp_path / "apart"
    for i in range(3):
        write(films / f"{i}.mp4", "film")
        write(films / f"{i}.txt", f"film {i}")
        write(apart / f"{i}.wav", "sound")
    write(apart / "transcripts.txt", "0 a\n1 b")
    links = [special for i in range(3) for special in (link(f"{i}.jpg"), (f"{i}.txt", b"words"))]
    lines = write_lines(of_links(tmp_path / "rows", image, ["a.png"]) / "x.jsonl", {"text": "a", "image": "a.png"})
    for given, why in (
        (
            of_links(tmp_path / "pictures", image, ["0.png", "1.png"], **{"0": "a", "1": "b"}),
            "none of 2 files .*0.png.*leaves",
        ),
        (of_links(tmp_path / "tars", archive, ["a.tar"], README="read me"), "none of 1 files .*a.tar.*leaves"),
        (of_links(tmp_path / "linked", tmp_path, ["images"]), r"none that is known \(1 linked folder\)"),
        (
            tar(tmp_path / "links.tar", *links, ("README.txt", b"read me")),
            "3 of the first 4 documents have image.*'0.jpg'",
        ),
        (films, "3 .mp4 have a text of their name beside them, and cannot be read"),
        (apart, r"media \(0.wav, ...\) and texts, and no text has a medium's name"),
        (lines, "no document to train on .*a link that leaves"),
    ):
        code, told, about = prepare(capsys, given, tmp_path / "made")
        assert (code, about) == (2, {})
        assert re.search(why, told, re.DOTALL), told
    assert prepare(capsys, films, "--format=text", tmp_path / "texts")[0] == 0
    for ending in ("heic", "svg"):  # beside pictures that are read, too
        folder = tmp_path / ending
        for i, name in enumerate(("0.png", "1.tiff", f"2.{ending}")):
            picture(folder / name, i) if i < 2 else write(folder / name, "x")
            write(folder / f"{i}.txt", f"picture {i}")
        code, told, about = prepare(capsys, folder, tmp_path / "made")
        assert (code, about) == (2, {})
        assert f"1 .{ending} have a text of their name beside them, and cannot be read" in told
        code, told, about = prepare(capsys, folder, "--format=folder", tmp_path / f"without {ending}")
        assert (code, about["splits"]["train"]["spans"], about["not_read"][f".{ending}"]) == (0, {"image": 2}, 1)
    write(films / "note.txt", "of no film")
    assert "3 .mp4 have a text" in prepare(capsys, films, tmp_path / "made")[1]


def link(name):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
    return info


def test_what_is_seen_and_not_read_is_told_by_suffix_and_number(tmp_path, capsys):
    folder = tmp_path / "in"
    for i in range(8):
        picture(folder / "deep" / f"{i}.png", i)
        write(folder / "deep" / f"{i}.txt", f"picture {i}")
        sound(folder / f"{i}.wav", i)
        write(folder / f"{i}.txt", f"sound {i}")
    for name in ("a.mp4", "b.MP4", "a.pdf", "LICENSE", "x.tar.gz~", "notes.txt", ".hidden.mp4"):
        write(folder / name, "x")
    os.symlink(picture(tmp_path / "out.png"), folder / "link.png")
    write(folder / "link.txt", "a link")
    os.symlink(tmp_path / "nowhere", folder / "dangling.gif")
    os.symlink(tmp_path, folder / "up")
    code, told, about = prepare(capsys, folder, tmp_path / "out")
    assert code == 0
    assert about["splits"]["train"]["spans"] == {"audio": 8, "image": 8}
    assert about["not_read"] == {
        ".gz~": 1,
        ".mp4": 2,
        ".pdf": 1,
        ".txt": 1,
        "linked folders": 1,
        "links that leave the folder": 1,
        "links to nothing": 1,
        "without a suffix": 1,
    }
    assert "not read: 1 .gz~, 2 .mp4, 1 .pdf, 1 .txt, 1 linked folder, 1 link that leaves the folder" in told
    assert "warning: media, or what may hold them, were seen and not read: 2 .mp4, 1 linked folder, 1 link" in told
    again = prepare(capsys, folder, tmp_path / "out")
    assert again[2] == about
    assert "not read: 1 .gz~" in again[1]


def test_media_of_an_archive_or_of_rows_that_are_not_read_are_told(tmp_path, capsys):
    films = tar(tmp_path / "a.tar", *[(f"{i}.{end}", b"words") for i in range(4) for end in ("txt", "mp4", "cls")])
    code, told, about = prepare(capsys, films, tmp_path / "films")
    assert (code, about["not_read"]) == (0, {".cls in archives": 4, ".mp4 in archives": 4})
    assert "warning: media, or what may hold them, were seen and not read: 4 .mp4 in archives" in told
    rows = [{"text": f"words {i}"} for i in range(6)] + [{"text": "x", "image": "none.png"}]
    code, told, about = prepare(capsys, write_lines(tmp_path / "x.jsonl", *rows), tmp_path / "rows")
    assert (code, about["modalities"]) == (0, ["text"])
    assert "no image is in the dataset: all 1 documents that have one were left out, the first x.jsonl:7: path" in told


def test_links_of_hugging_faces_cache_lead_to_its_blobs_and_nowhere_else(tmp_path):
    repository = tmp_path / "hub" / "datasets--me--it"
    snapshot = repository / "snapshots" / "0a1b" / "deep"
    snapshot.mkdir(parents=True)
    other = write(tmp_path / "hub" / "datasets--me--other" / "blobs" / "h", "secret")

    def linked(name, content):
        blob = write(repository / "blobs" / f"hash-of-{name}", content)
        os.symlink(os.path.relpath(blob, snapshot), snapshot / name)

    linked("0.png", "image")
    linked("0.txt", "a cat")
    assert good(snapshot.parent) == [[("text", "a cat"), ("image", repository / "blobs" / "hash-of-0.png")]]
    for name, target in (
        ("1.png", other),
        ("2.png", "/etc/hostname"),
        ("3.png", repository / "refs"),
        ("4.png", repository),
    ):
        os.symlink(target, snapshot / name)
        write(snapshot / f"{name[0]}.txt", "secret")
    reasons = bad(snapshot.parent)
    assert list(reasons) == [f"deep/{i}.png" for i in range(1, 4)]  # the last is a folder, and told as one
    linked("x.jsonl", '{"content": [{"text": "a"}, {"image": "0.png"}]}\n{"content": [{"image": "1.png"}]}\n')
    found = read(snapshot, format="jsonl")
    assert [bool(r.bad) for r in found] == [False, True]
    assert found[0].parts[1].content == repository / "blobs" / "hash-of-0.png"
    linked("x.parquet", table(tmp_path / "x.parquet", {"text": ["a"]}).read_bytes())
    assert good(snapshot, format="parquet") == [[("text", "a")]]
    stray = tmp_path / "snapshots" / "0a1b"  # no repository's
    write(tmp_path / "blobs" / "h", "secret")
    stray.mkdir(parents=True)
    os.symlink("../../blobs/h", stray / "0.txt")
    with pytest.raises(UserError, match="none of 1 files may be opened"):
        read(stray)


@pytest.mark.parametrize("pack", PACKS)
def test_packed_lines_texts_and_archives_are_read_as_they_are(tmp_path, pack):
    lines = b"".join(b'{"text": "line %d"}\n' % i for i in range(3000))
    packed = PACKS[pack](lines[:30000]) + PACKS[pack](lines[30000:])  # two in one file, as pigz and pzstd write them
    file = write(tmp_path / "in" / f"a.jsonl.{pack}", packed)
    expected = [[("text", f"line {i}")] for i in range(3000)]
    assert good(tmp_path / "in") == good(file) == expected
    assert good(write(tmp_path / f"b.json.{pack}", packed)) == expected
    archive = tar(tmp_path / "a.tar", *[(f"{i}.txt", b"words %d" % i) for i in range(9)]).read_bytes()
    assert len(good(write(tmp_path / f"c.tar.{pack}", PACKS[pack](archive)))) == 9
    words = "paragraph one\n\nparagraph two"
    found = good(write(tmp_path / f"d.txt.{pack}", PACKS[pack](words.encode())), separator="\n\n")
    assert found == [[("text", "paragraph one")], [("text", "paragraph two")]]
    for end in (11, len(packed) // 2, len(packed) - 1):
        *before, last = read(write(tmp_path / f"cut.jsonl.{pack}", packed[:end]))
        assert f"the rest of the file, after {len(before)} lines, cannot be read: it is damaged or cut off" in last.bad
        assert [r.parts[0].content for r in before] == [f"line {i}" for i in range(len(before))]
        *_, last = read(write(tmp_path / f"cut.txt.{pack}", packed[:end]))
        assert "cannot be read: it is damaged or cut off" in last.bad


def test_a_packed_line_without_an_end_is_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("mot.prepare.raw.MAX_LINE", 2**20)
    file = write(tmp_path / "x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' + bytes(2**27)))
    tracemalloc.start()
    assert list(bad(file)) == ["x.jsonl.gz:2"]
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_archives_one_after_the_other_are_read_as_one(tmp_path):
    def one(names, words="sample"):
        return tar(tmp_path / "one.tar", *[(f"{n}.txt", f"{words} {n}".encode()) for n in names]).read_bytes()

    expected = [[("text", f"sample {n}")] for n in "123456"]
    plain = one("123") + one("456")
    files = {"a.tar": plain, "b.tar": one("123") + bytes(1001) + one("456") + bytes(7)}
    files |= {f"c.tar.{pack}": made(one("123")) + made(one("456")) for pack, made in PACKS.items()}
    files |= {"d.tgz": gzip.compress(plain), "e.tar": one("") + plain}
    for name, content in files.items():
        assert good(write(tmp_path / name, content)) == expected, name
    twice = read(write(tmp_path / "twice.tar", one("12") + one("21", "another")))
    assert [r.id for r in twice] == ["twice.tar:1", "twice.tar:2", "twice.tar#2:2", "twice.tar#2:1"]
    assert [r.parts[0].content for r in twice] == ["sample 1", "sample 2", "another 2", "another 1"]
    for rest, why in (
        (b"no archive" * 99, "what follows its end mark, from byte 10,240 on"),
        (one("4")[:600], "cut off|damaged|end"),
    ):
        *found, last = read(write(tmp_path / "bad.tar", one("123") + rest))
        assert [r.parts[0].content for r in found if not r.bad][:3] == ["sample 1", "sample 2", "sample 3"]
        assert re.search(why, last.bad), last.bad


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_end_as_python_has_them(tmp_path, ending):
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghi \n"))
    words = ["".join(letters[rng.integers(0, 11, n)]) for n in rng.integers(0, 40_000, 90)]
    write(tmp_path / "a.txt", "\n\n".join(words).replace("\n", ending))
    whole = (tmp_path / "a.txt").read_text(encoding="utf-8")
    expected = [piece for piece in whole.split("\n\n") if piece.strip()]
    assert len(whole) > 2**20  # more than is read at a time
    for separator in ("\n\n", "\r\n\r\n", "\r\r"):
        assert [r.parts[0].content for r in read(tmp_path / "a.txt", separator=separator)] == expected
    assert "".join(r.parts[0].content for r in read(tmp_path / "a.txt")) == whole


def test_a_separator_is_written_with_escapes_and_told_where_it_never_occurs(tmp_path, capsys):
    assert asked.unescaped(r"\r\n\t\f\\n\x1e\u2028\0\d|") == "\r\n\t\f\\n\x1e\u2028\0\\d|"
    write(tmp_path / "in" / "a.txt", "page 1\fpage 2\fpage 3" * 9)
    write(tmp_path / "in" / "b.txt", "no page")
    code, told, about = prepare(capsys, tmp_path / "in", r"--separator=\f", tmp_path / "pages")
    assert (code, about["splits"]["train"]["documents"]) == (0, 20)
    assert r"warning: separator '\x0c' occurs 18 times, but not in 1 of the 2 text files" in told
    code, told, about = prepare(capsys, tmp_path / "in", "--separator=<end>", tmp_path / "whole")
    assert about["splits"]["train"]["documents"] == 2
    assert "warning: separator '<end>' occurs in none of the 2 text files" in told


def test_texts_and_images_in_parallel_lists(tmp_path):
    """As OBELICS has them."""
    struct = [{"bytes": b"1", "path": None}, None, {"bytes": None, "path": "2.png"}]
    second = write(tmp_path / "2.png", "x")
    columns = {"images": [struct, [None]], "texts": [[None, "one", None], ["alone"]], "metadata": ["{}", "{}"]}
    expected = [[("image", b"1"), ("text", "one"), ("image", second)], [("text", "alone")]]
    assert good(table(tmp_path / "a.parquet", columns)) == expected
    renamed = table(tmp_path / "b.parquet", {"words": columns["texts"], "pictures": columns["images"]})
    assert good(renamed, content=["interleaved:words+pictures"]) == expected
    lines = [
        {"texts": [None, "one"], "images": ["2.png", None]},
        {"texts": ["a"], "images": [None, None]},
        {"texts": "a", "images": []},
    ]
    found = read(write_lines(tmp_path / "c.jsonl", *lines))
    assert [tuple(part)[:3] for part in found[0].parts] == [("image", second, 0), ("text", "one", 0)]
    assert "1 texts and 2 images; lists of one length" in found[1].bad
    assert "its texts are 'a'; a list is needed" in found[2].bad
    urls = table(tmp_path / "d.parquet", {"images": [[None, "http://x/y.jpg"]], "texts": [["a", None]]})
    assert "an address, and only files are read" in bad(urls)["d.parquet:0"]
    matched = [[{"image_name": "2.png", "matched_text_index": 1}]]
    mmc4 = table(tmp_path / "f.parquet", {"text_list": [["a", "b"]], "image_info": matched})
    assert good(mmc4) == [[("text", "a"), ("image", second), ("text", "b")]]
    with pytest.raises(UserError, match=r"column 'texts' is .*; texts needs lists of strings"):
        read(table(tmp_path / "e.parquet", {"images": [[None]], "texts": [[1]]}))


def test_images_stand_before_the_text_that_they_match(tmp_path):
    """As mmc4 has them."""
    a, b = write(tmp_path / "a.jpg", "x"), write(tmp_path / "b.jpg", "x")

    def info(name, place, **more):
        return {"image_name": name, "raw_url": "http://x", "matched_text_index": place, "matched_sim": 0.3} | more

    rows = [
        {"text_list": ["one", "two"], "image_info": [info("b.jpg", 1), info("a.jpg", 0), info("a.jpg", 1)]},
        {"text_list": ["one"], "image_info": [info("", 0, image_base64="aW1hZ2U=")]},
        {"text_list": ["one"], "image_info": [info("a.jpg", 1)]},
        {"text_list": ["one"], "image_info": []},
    ]
    found = read(write_lines(tmp_path / "x.jsonl", *rows))
    contents = [[part.content for part in r.parts] for r in found]
    assert contents == [[a, "one", b, a, "two"], [b"image", "one"], [], ["one"]]
    assert "matched_text_index must be 0 to 0" in found[2].bad


def test_a_field_may_be_a_list_of_images(tmp_path):
    struct = [[{"bytes": b"1", "path": "x"}, {"bytes": b"2", "path": None}], [{"bytes": b"3", "path": None}], [], None]
    file = table(tmp_path / "a.parquet", {"images": struct, "text": ["a", "b", "c", "d"]})
    found = read(file)
    assert [[part.content for part in r.parts] for r in found] == [["a", b"1", b"2"], ["b", b"3"], [], []]
    assert "an empty list" in found[2].bad
    binary = table(tmp_path / "b.parquet", {"images": [[b"1", b"2"]], "text": ["a"]})
    assert good(binary, content=["image:images|text:text"]) == [[("image", b"1"), ("image", b"2"), ("text", "a")]]
    with pytest.raises(UserError, match="or lists of these or of paths"):
        read(table(tmp_path / "c.parquet", {"images": [[1, 2]], "text": ["a"]}))


def test_splits_as_people_call_them(tmp_path):
    trained = ["train", "training", "restval", "trainval", "Train", "train-00003-of-00010", "train2017", 0]
    held = ["val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation", "held_out", "VAL", "dev_1", 1]
    held += ["validation-00000-of-00001", "val2014", "test-00000"]
    assert [held_out(split) for split in trained] == [False] * len(trained)
    assert [held_out(split) for split in held] == [True] * len(held)
    for split in ("later", "", "training set", "-", "0", 2, 1.5, ["val"]):
        with pytest.raises(ValueError, match=r"split .*; train, val, validation, test, .*dev.* are allowed"):
            held_out(split)
    for i, name in enumerate(["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "other"]):
        table(tmp_path / "hub" / "data" / f"{name}.parquet", {"text": [f"{i}"]})
    assert [r.held_out for r in read(tmp_path / "hub")] == [None, False, False, True]
    for name in ("train.txt", "valid.txt"):
        write(tmp_path / "wiki" / name, "words")
    assert [r.held_out for r in read(tmp_path / "wiki")] == [False, True]
    for name in ("train/0.png", "train/0.txt", "val/0.png", "val/0.txt"):
        write(tmp_path / "images" / name, "x")
    assert [r.held_out for r in read(tmp_path / "images")] == [False, True]
    assert [r.held_out for r in read(tmp_path / "images" / "val")] == [None]  # all of one name: nothing to go by


def test_where_all_documents_are_bad_the_first_three_reasons_are_told(tmp_path, capsys):
    file = write_lines(tmp_path / "x.jsonl", b'{"text": "\xff"}', b'{"text": ', b"[1]", {"text": ""})
    code, told, about = prepare(capsys, file, tmp_path / "out")
    assert (code, about) == (2, {})
    reasons = ["x.jsonl:1: the line is not UTF-8", "x.jsonl:2: not JSON: Expecting", "x.jsonl:3: [1]; an object is"]
    assert "(4 are bad)" in told
    assert all(f"\n  {reason}" in told for reason in reasons)
    assert "x.jsonl:4" not in told
    listed = (tmp_path / "out" / "left_out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in listed] == [f"x.jsonl:{i}" for i in range(1, 5)]
    write_lines(file, *({"text": f"words {i}"} for i in range(4)))  # mended: the same command goes on
    assert prepare(capsys, file, tmp_path / "out")[0] == 0


@pytest.mark.parametrize("suffix", ["png", "wav", "npy"])
def test_where_no_medium_can_be_decoded_the_first_reasons_are_told(tmp_path, capsys, suffix):
    for i in range(4):
        write(tmp_path / "in" / f"{i}.{suffix}", "not what it says")
        write(tmp_path / "in" / f"{i}.txt", f"words {i}")
    code, told, _ = prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert code == 2
    assert all(f"\n  {i}.{suffix}: not a " in told for i in range(3))
    assert len((tmp_path / "out" / "left_out.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_a_json_file_is_lines_or_one_array(tmp_path, monkeypatch):
    monkeypatch.setattr("mot.prepare.raw.MAX_LINE", 2**22)
    rows = [{"text": f"{{row}} {i} ]", "n": [i]} for i in range(9000)] + [{"text": "x" * 2**21}]
    expected = [[("text", row["text"])] for row in rows]
    assert good(write(tmp_path / "a.json", json.dumps(rows, indent=1))) == expected
    assert good(write(tmp_path / "b.json.gz", gzip.compress(b"\xef\xbb\xbf" + json.dumps(rows).encode()))) == expected
    assert good(write_lines(tmp_path / "c.json", *rows)) == expected
    for broken, reason in (
        ('[{"text": "a"}, {"text": ', "the rest of the array, after 1 objects, is not JSON"),
        ('[{"text": "a"}', "the rest of the array, after 1 objects, is not JSON"),
        ('[{"text": "a"}, 7, {"text": "b"}]', "7; an object is needed"),
        ('[{"text": "a"}, ' + "[" * 100_000, "nested too deeply|not JSON"),
        ("[" + " " * 2**24, "ends before|Expecting"),
        ('{\n "images": []\n}', "one object over several lines"),
    ):
        reasons = [r.bad for r in read(write(tmp_path / "d.json", broken)) if r.bad]
        assert len(reasons) == 1
        assert re.search(reason, reasons[0]), reasons[0]
    write(tmp_path / "in" / "data.json.gz", gzip.compress(b'{"text": "a"}\n'))
    write(tmp_path / "in" / "dataset_infos.json", '{"size": 3}')
    assert good(tmp_path / "in") == [[("text", "a")]]
