"""Why a document is left out: in plain words and values, the same every time."""

import json
import re

import numpy as np
import pytest

from mot.errors import reason
from mot.prepare import inputs, readers
from mot.prepare.codecs import audio, image, latents
from tests.support.files import bad, good, tar, write, write_lines
from tests.support.media import encoded, npy, sound

RNG = np.random.default_rng(0)
INTERNAL = r"0x[0-9a-f]{4}|object at|sys\.|np\.|codec|Error|Exception|<[\w.]+>"
PICTURE = encoded(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8), "PNG")
NO_CHANNEL = bytearray(sound(np.zeros(100), "WAV"))
NO_CHANNEL[22:24] = b"\0\0"


@pytest.mark.parametrize(
    ("decode", "content", "why"),
    [
        (audio.sound, bytes(NO_CHANNEL), "the WAV audio does not decode: Channel count is zero"),
        (audio.sound, b"fLaC" + bytes(50), "the FLAC audio does not decode: File contains data in"),
        (audio.sound, b"ID3" + bytes(50), "the MP3 audio does not decode: Format not recognised"),
        (image.pixels, PICTURE[:40], "the PNG image does not decode: cannot identify image file"),
        (image.pixels, PICTURE[:200], "the PNG image does not decode: "),
        (image.pixels, b"GIF89a\3\0\3\0" + bytes(6), "the GIF image does not decode: cannot identify image file"),
        (latents.vectors, b"\x93NUMPY\1\0\x08\0print(1)", "not a .npy file: malformed node or string on line 1"),
        (latents.vectors, b"\x93NUMPY\1\0\x02\0{(", "EOF in multi-line statement"),
    ],
)
def test_a_decoder_says_why_without_its_objects(decode, content, why):
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        decode(content)
    assert not re.search(INTERNAL, str(caught.value))


def test_what_a_library_says_becomes_words():
    for error, told in (
        (OSError(28, "No space left on device"), "No space left on device"),
        (AssertionError(), "the library that reads it does not say why"),
        (RuntimeError("Error opening <_io.BytesIO object at 0x7f66>: Bad.\nMore"), "Bad"),
        (ValueError("cannot read <PIL.Image.Image image object mode=L size=1x1 at 0x7f66> now"), "cannot read now"),
    ):
        assert reason(error) == told


def test_numbers_too_long_for_python_are_a_fault_of_the_document(tmp_path):
    long = b'{"text": "a", "n": ' + b"1" * 6000 + b"}"
    found = bad(write_lines(tmp_path / "a.jsonl", long, {"text": "b"}))
    found |= bad(write(tmp_path / "b.json", b"[" + long + b"]"))
    found |= bad(tar(tmp_path / "c.tar", ("0.txt", b"a"), ("0.json", long)))
    assert len(found) == 3
    for why in found.values():
        assert why.endswith("not JSON: a number of more than 4,300 digits")


def test_json_that_is_not_utf8_says_where(tmp_path):
    found = bad(tar(tmp_path / "c.tar", ("0.txt", b"a"), ("0.json", b'{"text": "\xff"}')))
    assert list(found.values()) == ["its .json is not UTF-8: invalid start byte at byte 10"]


@pytest.mark.parametrize("kind", [str, bytes])
def test_splits_of_an_npz_are_words(tmp_path, kind):
    split = np.array(["train", "val", "weird"]).astype(kind)
    np.savez(tmp_path / "a.npz", labels=["a", "b", "c"], images=np.zeros((3, 4, 4), np.uint8), split=split)
    first, second, third = readers.read([tmp_path / "a.npz"], content=["text:labels|image:images"])
    assert (first.held_out, second.held_out) == (False, True)
    assert third.bad.startswith("split 'weird'; train, val, ")


def test_values_are_shown_as_their_files_hold_them():
    shown = {np.str_("a"): "'a'", np.int64(3): "3", np.float32(0.5): "0.5", None: "null", 1.5: "1.5"}
    assert {value: inputs.short(value) for value in shown} == shown
    assert inputs.short(np.zeros((3, 2), np.int8)) == "int8 [3, 2]"
    assert len(inputs.short("a" * 500)) == 80


def test_a_line_may_be_a_list_of_parts(tmp_path):
    """As `mot sample` writes documents, and reads them with --prompt-file."""
    parts = [{"text": "a"}, {"ids": [3, 1], "modality": "depth"}]
    (first, second) = good(write_lines(tmp_path / "a.jsonl", parts, {"content": parts}))
    assert first[0] == second[0] == ("text", "a")
    assert first[1][0] == "depth ids"
    assert first[1][1].tolist() == second[1][1].tolist() == [3, 1]
    assert len(good(write(tmp_path / "document-0.json", json.dumps(parts, indent=1)))[0]) == 2
    assert len(good(write(tmp_path / "many.json", json.dumps([parts, parts])))) == 2
    assert good(write(tmp_path / "texts.json", json.dumps([{"text": "a"}, {"text": "b"}]))) == [
        [("text", "a")],
        [("text", "b")],
    ]
    found = bad(write_lines(tmp_path / "b.jsonl", [1], [], 3))
    assert [why.partition(";")[0] for why in found.values()] == ["[1]", "[]", "3"]


def test_ids_may_stand_beside_a_text(tmp_path):
    flat = {"text": "a chair", "ids": [3, 1], "modality": "depth"}
    write(tmp_path / "ids.npy", npy(np.array([3, 1])))
    for row in (flat, flat | {"ids": "ids.npy"}):
        ((text, ids),) = good(write_lines(tmp_path / "a.jsonl", row))
        assert text == ("text", "a chair")
        assert ids[0] == "depth ids"
    write(tmp_path / "a.png", PICTURE)
    (parts,) = good(write_lines(tmp_path / "a.jsonl", flat | {"image": "a.png"}))
    assert [kind for kind, _ in parts] == ["text", "image", "depth ids"]
    (((kind, ids),),) = good(write_lines(tmp_path / "a.jsonl", {"ids": [5], "modality": "depth"}))
    assert (kind, ids.tolist()) == ("depth ids", [5])
    ((why),) = bad(write_lines(tmp_path / "a.jsonl", flat | {"modality": 3})).values()
    assert 'ids are written {"ids": [3, 5], "modality": "depth"}' in why
    ((kind, words),) = good(write_lines(tmp_path / "a.jsonl", {"text": "a", "ids": 7}))[0]
    assert (kind, words) == ("text", "a")
