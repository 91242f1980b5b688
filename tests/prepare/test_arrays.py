import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mot.errors import UserError
from mot.prepare import arrays, media
from mot.prepare.codecs import action, audio, image, latents
from mot.prepare.raw import Part
from tests.support.files import bad, npz_of_strokes, read, write, write_lines

SHARED = Path(__file__).parents[3] / "shared" / "data"


def shared(name):
    return pytest.mark.skipif(not (SHARED / name).exists(), reason=f"../shared/data/{name} is not there")


def npz(path: Path, **fields) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **fields)
    return path


RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (4, 2, 3, 3), dtype=np.uint8)


def test_arrays_and_the_lines_beside_them(tmp_path):
    file = npz(tmp_path / "set_32.npz", images=PICTURES, split=np.array([0, 1, 0, 1], np.uint8))
    rows = [{"name": f"n{i}", "keywords": ["a", "b"][: i + 1], "split": "train"} for i in range(4)]
    lines = write_lines(tmp_path / "set.jsonl", *rows)
    write_lines(tmp_path / "other.jsonl", {"name": "x"})
    for inputs in ([file], [file, lines], [lines, file]):
        found = read(*inputs)
        assert [r.id for r in found] == [f"set_32.npz:{i}" for i in range(4)]
        assert [r.held_out for r in found] == [False, True, False, True]  # the array's, not the lines'
        assert [r.parts[0] for r in found] == [Part("text", f"n{i}") for i in range(4)]
        for r, picture in zip(found, PICTURES, strict=True):
            np.testing.assert_array_equal(r.parts[1].content, picture)
    content = ["text:{name}: {keywords}|image:images", "image:images|text:name"]
    found = read(file, content=content)
    assert found[2].parts[0] == Part("text", "n2: a, b")
    assert [part.kind for part in found[3].parts] == ["image", "text"]
    write_lines(lines, rows[0], b"{", {"name": "\ud800", "split": 1}, rows[3])
    assert list(bad(file)) == ["set_32.npz:1", "set_32.npz:2"]
    assert "its line of set.jsonl: not JSON" in bad(file)["set_32.npz:1"]
    write_lines(lines, *rows[:3])
    with pytest.raises(UserError, match=r"different numbers of rows: 'images' 4, 'split' 4, set.jsonl 3; name fields"):
        read(file)


def test_clips_by_offsets_and_labels_by_their_names(tmp_path):
    file = npz(
        tmp_path / "clips.npz",
        audio=np.arange(10, dtype=np.int16),
        offsets=np.array([0, 3, 3, 10]),
        labels=np.array([1, 0, 2], np.uint8),
        label_names=np.array(["zero", "one"]),
        speaker=np.array([0, 0, 0]),
        speaker_names=np.array(["ann"]),
        sample_rate=8000,
    )
    found = read(file)
    assert found[0].parts[0] == Part("text", "one")
    assert found[0].parts[1].rate == 8000
    np.testing.assert_array_equal(found[0].parts[1].content, [0, 1, 2])
    assert len(found[1].parts[1].content) == 0  # for mot.prepare.media to refuse
    assert bad(file) == {"clips.npz:2": "labels 2; label_names has 0 to 1"}
    spoken = read(file, content=["audio:audio|text:{speaker} says {labels}"])
    assert spoken[1].parts[1] == Part("text", "ann says zero")


def test_pixels_that_are_packed_eight_to_a_byte(tmp_path):
    films = RNG.integers(0, 2, (3, 4, 8, 16), dtype=np.uint8)
    name = np.array(["a", "b", "c"])
    file = npz(tmp_path / "x.npz", bits=np.packbits(films, -1), name=name, ink_bits=np.packbits(films[:, 0], -1))
    found = read(file, content=["text:name|video:bits|image:ink_bits"])
    for i, raw in enumerate(found):
        np.testing.assert_array_equal(raw.parts[1].content, 255 * films[i])
        np.testing.assert_array_equal(raw.parts[2].content, 255 * films[i, 0])
    with pytest.raises(UserError, match=r"'bits' is uint8 \[3, 4, 8, 16\]; image needs uint8"):
        read(file, content=["image:bits"])


def test_latents_and_strings_in_arrays(tmp_path):
    fields = {"text": np.array(["a", "b"]), "latents": RNG.normal(size=(5, 4)), "latents_offsets": np.array([0, 2, 5])}
    found = read(npz(tmp_path / "a.npz", **fields))
    assert [latents.vectors(r.parts[1].content).shape for r in found] == [(2, 4), (3, 4)]
    fields = {"caption": np.array([b"a", b"b"]), "latents": RNG.normal(size=(2, 3, 4)).astype(np.float16)}
    found = read(npz(tmp_path / "b.npz", **fields))
    assert [r.parts[0].content for r in found] == ["a", "b"]
    assert latents.vectors(found[0].parts[1].content).shape == (3, 4)
    fields = {"caption": np.array([b"a", b"b"]), "latents": RNG.normal(size=(2, 3, 5, 4)).astype(np.float16)}
    found = read(npz(tmp_path / "c.npz", **fields))
    assert latents.vectors(found[0].parts[1].content).shape == (3, 5, 4), "rows and columns"
    fields = {"text": np.array(["a", "b"]), "pose": RNG.normal(size=(2, 7)), "acts": RNG.normal(size=(2, 5, 3))}
    found = read(npz(tmp_path / "d.npz", **fields), content=["text:text|state:pose|chunk:acts"])
    assert [(part.kind, latents.vectors(part.content).shape) for part in found[0].parts[1:]] == [
        ("state", (1, 7)),
        ("chunk", (5, 3)),
    ]


def test_paths_whose_columns_lie_in_several_arrays(tmp_path):
    file = npz_of_strokes(tmp_path / "pen_strokes.npz", 4)
    with np.load(file) as held:
        xy, pen_up, offsets = (held[name] for name in ("xy", "pen_up", "offsets"))
    found = read(file, content=["text:caption|action:xy+pen_up"])
    assert [r.parts[0].content for r in found] == [f"drawing {i}" for i in range(4)]
    for i, r in enumerate(found):
        row = slice(offsets[i], offsets[i + 1])
        path = action.path(r.parts[1].content)
        np.testing.assert_array_equal(path, np.column_stack([xy[row], pen_up[row]]))
    assert action.path(read(file, content=["action:xy"])[1].parts[0].content).shape == (offsets[2] - offsets[1], 3)
    assert "an action uint8" in told(read(file, content=["action:pen_up"])[0])
    why = set(bad(file, content=["action:xy+caption"]).values())
    assert "field 'caption' of 'xy+caption' is 'drawing 0'; arrays of one length, [n] or [n, P], are joined" in why
    for content, message in (
        ("action:xy+pen", "content names 'pen'; its fields are xy, pen_up, offsets, caption"),
        ("action:xy|latents:xy", "content uses the field 'xy' as"),
    ):
        with pytest.raises(UserError, match=message):
            read(file, content=[content])
    paths = dict(caption=np.array(["a", "b"]), xy=RNG.normal(size=(2, 5, 2)), up=np.zeros((2, 5), bool))
    file = npz(tmp_path / "even.npz", **paths)
    assert action.path(read(file, content=["text:caption|action:xy+up"])[1].parts[1].content).shape == (5, 3)
    file = npz(tmp_path / "odd.npz", **paths | {"up": np.zeros((2, 4))})
    assert r"field 'up' of 'xy+up' is float64 [4]; arrays of one length" in str(bad(file, content=["action:xy+up"]))
    file = npz(tmp_path / "words.npz", **paths)
    with pytest.raises(UserError, match=r"'caption' is <U1 \[2\]; action needs numbers \[n, points\] or"):
        read(file, content=["action:caption"])


def told(document) -> str:
    """Why the document's last part is none."""
    with pytest.raises(ValueError, match=" ") as caught:
        action.path(document.parts[-1].content)
    return str(caught.value)


def test_arrays_that_do_not_fit(tmp_path, monkeypatch):
    clips = dict(labels=np.arange(2), audio=np.zeros(9, np.int16), sample_rate=8000)
    for fields, content, message in (
        (dict(images=PICTURES, tags=np.arange(4)), [], r"no field's name says that it is text; its fields are images, "
         r"tags; say which to use, e.g. --content 'text:tags\|image:images'"),
        (dict(labels=np.arange(4), pixels=PICTURES), [], r"is image or audio; .*'text:labels\|image:pixels'"),
        (dict(labels=np.arange(4)), ["text:label"], "content names 'label'; its fields are labels"),
        (dict(labels=np.arange(4), images=PICTURES / 255), [], r"'images' is float64 \[4, 2, 3, 3\]; image needs"),
        (dict(labels=np.ones(4), images=PICTURES), [], r"'labels' is float64 \[4\]; text needs integers"),
        (dict(labels=np.arange(3), images=PICTURES), [], "different numbers of rows: 'labels' 3, 'images' 4"),
        (dict(labels=np.arange(4), label_names=4, images=PICTURES), [], r"'label_names' is int64 \[\]; strings"),
        (dict(labels=np.array([{}] * 4), images=PICTURES), [], r"'labels' is object"),
        (dict(labels=np.arange(4), images=PICTURES, split=np.array([None] * 4)), [], "array 'split' cannot be read"),
        (clips, [], r"'audio' is int16 \[9\]; audio needs .* with offsets"),
        (clips | dict(offsets=np.array([0, 9, 8])), [], "offsets must rise from 0 to the 9 rows of 'audio'"),
        (clips | dict(offsets=np.array([0., 5, 9])), [], "offsets is float64"),
        (dict(labels=np.arange(2), audio=np.zeros((2, 5))), [], "audio without its rate; add an array sample_rate"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read(npz(tmp_path / "a.npz", **fields), content=content)
    for rate, shown in (
        (np.nan, "float64 nan"),
        (np.inf, "float64 inf"),
        (8000.7, "float64 8000.7"),
        (8000 + 1j, r"complex128 '\(8000\+1j\)'"),
        ("x", "<U1 'x'"),
        (True, "bool True"),
        (np.datetime64("2020-01-01"), r"datetime64\[D\] '2020-01-01'"),
    ):
        with pytest.raises(UserError, match=f"a.npz: sample_rate is {shown}; one integer is needed; make it again"):
            read(npz(tmp_path / "a.npz", **clips | dict(offsets=[0, 4, 9], sample_rate=rate)))
    monkeypatch.setattr(arrays, "MAX_ARRAY", 50)
    with pytest.raises(UserError, match=r"array 'images' cannot be read: uint8 \[4, 2, 3, 3\]; at most 50 bytes"):
        read(npz(tmp_path / "a.npz", images=PICTURES, labels=np.arange(4)))
    monkeypatch.undo()
    data = npz(tmp_path / "a.npz", images=PICTURES, labels=np.arange(4)).read_bytes()
    at = data.index(PICTURES.tobytes())
    for broken in (b"", data[:100], data[:at] + b"\0\0" + data[at + 2 :]):
        with pytest.raises(UserError, match=r"cannot be read: .*make it again with numpy.savez"):
            read(write(tmp_path / "a.npz", broken))
    two = [npz(tmp_path / f"{name}.npz", images=PICTURES, labels=np.arange(4)) for name in "ab"]
    with pytest.raises(UserError, match=r"c.jsonl: belongs to no .npz given"):
        read(*two, write_lines(tmp_path / "c.jsonl", {}))


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("labels.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 100)
    with pytest.raises(UserError, match="a header of 2,147,483,648 bytes; at most 65,536 are allowed"):
        read(tmp_path / "a.npz")

    class Counted(io.BytesIO):
        def read(self, size=-1):
            assert 0 <= size < 100
            return super().read(size)

    with pytest.raises(ValueError, match="a header of 65,537 bytes"):
        media.npy_header(Counted(b"\x93NUMPY\x02\x00" + struct.pack("<I", 65537) + bytes(70000)))


def test_lines_beside_arrays_that_are_a_link_elsewhere(tmp_path):
    file = npz(tmp_path / "in" / "a.npz", images=PICTURES)
    os.symlink(write_lines(tmp_path / "a.jsonl", *[{"name": "x"}] * 4), tmp_path / "in" / "a.jsonl")
    assert "a link that leaves" in bad(file)["a.npz"]


def decoded(found, of):
    """Every part of some documents goes through its decoder."""
    for r in found[:: max(1, len(found) // 50)]:
        assert [part.kind for part in r.parts] == of
        for part in r.parts:
            if part.kind == "image":
                assert image.pixels(part.content).shape[2] == 3
            elif part.kind == "action":
                path = action.path(part.content)
                assert 0 < np.ptp(path[:, :2], axis=0).max() < 12000
                assert path[-1, 2] == 1
            elif part.kind == "audio":
                wave, rate = audio.sound(part.content, part.rate)
                assert rate == 8000
                assert 0.1 < len(wave) / rate < 2.5


@shared("emoji_32.npz")
def test_shared_emoji():
    found = read(SHARED / "emoji_32.npz", SHARED / "emoji.jsonl")
    assert len(found) == 3887
    assert sum(r.held_out for r in found) == 448
    assert found[0].parts[0].content == "keycap: #"
    decoded(found, ["text", "image"])


@shared("fsdd_8k.npz")
def test_shared_spoken_digits():
    found = read(SHARED / "fsdd_8k.npz", content=["audio:audio|text:{speaker} says {labels}"])
    assert len(found) == 3000
    assert sum(r.held_out for r in found) == 300
    decoded(found, ["audio", "text"])


@shared("mnist10k_28.npz")
def test_shared_handwritten_digits():
    found = read(SHARED / "mnist10k_28.npz", content=["text:a handwritten {labels}|image:images"])
    assert len(found) == 10000
    assert sum(r.held_out for r in found) == 945
    assert found[0].parts[0].content == "a handwritten seven"
    decoded(found, ["text", "image"])


@shared("omniglot_strokes.npz")
def test_shared_strokes():
    found = read(SHARED / "omniglot_strokes.npz", content=["text:caption|action:xy_centi+pen_up"])
    assert len(found) == 4840
    assert sum(r.held_out for r in found) == 484
    assert found[0].parts[0].content == "Balinese character 1, 1 strokes"
    decoded(found, ["text", "action"])
