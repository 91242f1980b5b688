"""`mot sample` as a user meets it: pictures, text and documents of a run, whole or not at all, over nothing foreign."""

import dataclasses
import io
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image

from configs import digits as digits_config
from configs import records, transfusion
from launch import cli, sample
from launch.sample import Options
from mot.config import resolve
from mot.config.options import Settings
from mot.data import embedded, layout, sources
from mot.data.layout import Stretch
from mot.errors import UserError
from mot.generate import codecs, digits, documents, opened, pictures, results
from mot.generate.documents import Continuation
from mot.generate.judge import judge
from mot.generate.sampling import Generated
from mot.prepare import dataset_tokenizers
from mot.prepare.job import prepare
from mot.runs import rundir
from mot.tokenizers import waveform
from mot.tokenizers.audio import AudioTokenizer
from mot.tokenizers.given import GivenVectors
from mot.tokenizers.image import ImageTokenizer
from mot.tokenizers.vectors import ActionVectors
from mot.train import loop, restore
from tests.support.datasets import write_inputs

PNG = b"\x89PNG\r\n\x1a\n"
FAST = Options(steps=2)


def trained(tree, root, name, **image):
    tree = tree.unlock()
    tree.run.update(root=str(root), name=name)
    tree.streams.image.update(image)
    return loop.run(resolve(tree, sources.faults), devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(digits_config.get_config("arch=mot,size=smoke"), tmp_path_factory.mktemp("runs"), "ids")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Opened once: its programs are compiled once."""
    root = tmp_path_factory.mktemp("runs")
    return opened.opened(trained(transfusion.get_config("arch=mot,size=smoke"), root, "vectors"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run on a prepared dataset of text and pictures in ids."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(write_inputs(root / "in"), root / "data", 1, 0)
    return trained(records.get_config(f"data={root / 'data'},size=smoke,length=400"), root, "run")


def document(folder, *content, name="doc.json"):
    """A file for --prompt-file, beside a picture `a.png` of a held-out three."""
    levels = next(x for x, label in zip(*shown(), strict=True) if label == 3)
    Image.fromarray(codecs.paper(levels)).save(folder / "a.png")
    (folder / name).write_text(json.dumps(list(content)), encoding="utf-8")
    return folder / name, levels


def shown():
    return embedded.labelled(embedded.load(resolve(digits_config.get_config("size=smoke")))[1])


# --- what a run on digits draws and reads ----------------------------------------------------------------------------


def test_digits_are_drawn_read_and_recorded(run, capsys):
    command = ["sample", str(run), "--prompt=a picture of the number two", "--each=2", "--read=3", "--text=The"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    for words in ("digits drawn as asked: ", " of 2, by a classifier", "captions that name the digit: ", "text: 'The"):
        assert words in printed
    folder = run / "samples" / "2"
    record = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    assert record["drawn"]["prompts"] == ["a picture of the number two"]
    assert len(record["read"]["captions"]) == 3
    assert record["files"] == ["captions.png", "digits.png"]
    for name in record["files"]:
        assert (folder / name).read_bytes().startswith(PNG)


def test_further_samples_of_a_step_get_a_folder_of_their_own(run, capsys):
    """And may be prompted with earlier ones, which stay; only --out replaces, and not what it is prompted with."""
    first = results.fresh(run / "samples", 2)
    command = ["sample", str(run), "--max-text=3", "--max-media=0", "--draw=any", "--n=1"]
    assert cli.main([*command, "--prompt=So"]) == 0
    before = contents(first)
    second = results.fresh(run / "samples", 2)
    assert second != first
    assert second.name.startswith("2-")
    file = first / "document-0.json"
    assert cli.main([*command, f"--prompt-file={file}"]) == 0
    assert (second / "document-0.json").exists()
    assert contents(first) == before
    capsys.readouterr()
    assert cli.main([*command, f"--prompt-file={file}", f"--out={first}"]) == 2
    assert f"--prompt-file={file}: lies in --out {first}, whose earlier samples would be" in capsys.readouterr().err
    assert contents(first) == before
    assert cli.main([*command, f"--prompt-file={file}", f"--out={second}"]) == 0
    assert f"{second}: {len(before)} files of an earlier mot sample will be replaced" in capsys.readouterr().err


def test_what_ended_a_document_is_told(vectors, tmp_path):
    def sampler(prompts, settings, **how):
        return [Generated([], how["text"] == 7)] * len(prompts)

    model = vectors._replace(sampler=sampler)
    for options, limit in (
        (Options(prompts=("So",), max_text=5), "ended by --max-text=5"),
        (Options(prompts=("So",)), "as asked: no further text (--max-text=0), media 1 at most (--max-media=1)"),
        (Options(prompts=("So",), max_text=7), ""),
    ):
        record = sample.draw(model, None, options._replace(draw="image", out=tmp_path / "out"))
        assert [d["limit"] for d in record["documents"]] == [limit]


def test_what_is_drawn_is_judged_and_what_is_read_is_compared(vectors, monkeypatch, tmp_path):
    """A model that draws and reads perfectly, and one that always draws and reads a three."""
    pixels, labels = shown()

    def digit(label):
        return embedded.patches(pixels[list(labels).index(label)])

    def perfect(prompts, settings, opens="", **how):
        text = [vectors.codec.decode("text", p.data) for (p,) in prompts if p.stream == "text"]
        if opens:
            return [Generated([Stretch("image", digit(embedded.named(t)))], False) for t in text]
        called = [f"a {embedded.NAMES[labels[n]]}" for n in range(len(prompts))]
        ids = [vectors.codec.encode(codecs.Part("text", c)) for c in called]
        return [Generated([Stretch("text", x)], True) for x in ids]

    def threes(prompts, settings, opens="", **how):
        part = (
            Stretch("image", digit(3))
            if opens
            else Stretch("text", vectors.codec.encode(codecs.Part("text", "a three")))
        )
        return [Generated([part], True)] * len(prompts)

    for model, drawn, read in ((perfect, 10, 20), (threes, 1, (labels[:20] == 3).sum())):
        record = sample.draw(vectors._replace(sampler=model), None, Options(each=1, out=tmp_path))
        assert (record["drawn"]["right"], record["drawn"]["asked"]) == (drawn, 10)
        assert (record["read"]["right"], record["read"]["asked"]) == (read, 20)


@pytest.mark.parametrize(("text", "digit"), [("a handwritten seven", 7), ("a seven or two", None), ("someone", None)])
def test_a_caption_names_a_digit_or_none(text, digit):
    assert embedded.named(text) == digit
    assert embedded.named("the digit nine, written by hand") == 9


def test_the_judge_knows_real_digits():
    training, held_out = embedded.load(resolve(digits_config.get_config("size=smoke"), embedded.faults))
    classify, accuracy = judge(training, held_out)
    assert accuracy >= 0.97
    pixels, labels = embedded.labelled(held_out)
    assert (classify(pixels) == labels).mean() == accuracy


def test_n_digits_in_a_grid(vectors, tmp_path):
    options = FAST._replace(prompts=("a handwritten seven",), n=5, grid=True, out=tmp_path / "out")
    record = sample.draw(vectors, None, options)
    assert record["drawn"]["asked"] == 5
    assert record["read"]["asked"] == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["grid.png", "samples.json"]
    side, gap = 8 * digits.ENLARGED, pictures.GAP
    assert Image.open(tmp_path / "out" / "grid.png").size == (3 * (side + gap) + gap, 2 * (side + gap) + gap)


# --- documents that are gone on with ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ids", "vectors"])
def test_a_document_of_text_and_an_image_is_gone_on_with(run, vectors, tmp_path, kind):
    file, levels = document(tmp_path, {"text": "No caption at all:"}, {"image": "a.png"}, {"text": " and again"})
    model = vectors if kind == "vectors" else run
    options = Options(files=(file,), draw="image", max_text=6, max_media=1, out=tmp_path / "out")
    record = sample.draw(model, None, options._replace(steps=2 if kind == "vectors" else None))
    out = tmp_path / "out"
    (told,) = record["documents"]
    assert told["given"] == 3
    assert told["content"][0] == {"text": "No caption at all:"}
    assert [next(iter(part)) for part in told["content"][:4]] == ["text", "image", "text", "image"]
    # What is written is a document again, and the prompt's picture came through the tokens unharmed.
    parts = codecs.read_document(out / "document-0.json")
    assert [p.kind for p in parts] == [next(iter(part)) for part in told["content"]]
    np.testing.assert_array_equal(codecs.grey(np.asarray(Image.open(parts[1].content))), levels)
    assert np.asarray(Image.open(parts[3].content)).shape == (8, 8, 3)
    assert (out / "documents.png").read_bytes().startswith(PNG)
    text = (out / "document-0.txt").read_text(encoding="utf-8")
    assert text.startswith("No caption at all:\n[image: document-0-2.png]\n and again\n[image: document-0-4.png]\n")


def test_the_model_decides_unless_told_and_pictures_come_after_prompts(vectors, tmp_path):
    asked = []

    def sampler(prompts, settings, **how):
        asked.append((len(prompts), how["opens"], how["text"], how["media"]))
        return [Generated([], True)] * len(prompts)

    model, (file, _) = vectors._replace(sampler=sampler), document(tmp_path, {"text": "So"})
    for options, wanted in (
        (Options(prompts=("any words",), max_media=1), [(1, "image", 0, 1)]),
        (Options(files=(file,), n=3), [(3, "", sample.TEXT, sample.MEDIA)]),
        (Options(files=(file,), draw="image", max_text=5), [(1, "image", 5, 1)]),
        (Options(files=(file,), texts=("So",)), [(1, "", sample.TEXT, 0), (1, "", sample.TEXT, sample.MEDIA)]),
        (Options(max_text=7), [(sample.UNPROMPTED, "", 7, sample.MEDIA)]),
    ):
        asked.clear()
        sample.draw(model, None, options._replace(out=tmp_path / "out"))
        assert asked == wanted


def test_a_run_on_a_prepared_dataset_draws_with_its_tokenizers(prepared, tmp_path):
    command = ["sample", str(prepared), "--prompt=Picture number 3 <eos>", "--n=2", f"--out={tmp_path}"]
    assert cli.main(command) == 0
    first = json.loads((tmp_path / "document-0.json").read_text(encoding="utf-8"))
    assert first == [{"text": "Picture number 3 <eos>"}, {"image": "document-0-2.png"}]  # no end, but text
    pixels = np.asarray(Image.open(tmp_path / "document-0-2.png"))
    tools = dataset_tokenizers.load(prepared.parent / "data" / "tokenizers")
    np.testing.assert_array_equal(tools.media["image"].decode(tools.media["image"].encode(pixels)), pixels)
    assert (tmp_path / "document-1.txt").exists()


def test_a_dataset_that_was_prepared_anew_or_damaged_is_refused(prepared, tmp_path, capsys):
    there, aside = prepared.parent / "data", tmp_path / "data"
    shutil.copytree(there, aside)
    try:
        (there / "tokenizers" / "image.npz").write_bytes(b"other")
        assert cli.main(["sample", str(prepared), f"--out={tmp_path / 'out'}"]) == 2
        assert "image.npz has 5 bytes" in capsys.readouterr().err
        shutil.rmtree(there)
        prepare(write_inputs(tmp_path / "in", documents=30), there, 1, 0)
        assert cli.main(["sample", str(prepared), f"--out={tmp_path / 'out'}"]) == 2
        assert "was trained on other data: its digest is" in capsys.readouterr().err
    finally:
        shutil.rmtree(there)
        shutil.copytree(aside, there)
    assert not (tmp_path / "out").exists()


def test_every_kind_of_content_gets_its_files(tmp_path):
    """Sound and strokes; what is empty has none; files of sound and of strokes can be read again."""
    bands = np.full((2, 40), 120, np.uint8)
    bands[0, 3:5] = bands[1, 20:23] = 255  # low tones, and high ones
    codes = np.arange(24, dtype=np.uint8).reshape(2, 12)
    pen = ActionVectors(4, False, np.zeros(2), 10.0)
    tokenizer = embedded.load_tokenizer()
    media = {"image": ImageTokenizer(4, 2, codes), "audio": AudioTokenizer(8000, 160, bands), "action": pen}
    tools = dataset_tokenizers.Tokenizers(tokenizer, media | {"latents": GivenVectors(3)})
    codec, kinds = codecs._records(tools), tools.modalities
    data = {"image": np.array([0, 1, 1, 0]), "audio": np.array([1, 0, 1]), "latents": np.ones((2, 3), np.float32)}
    data["action"] = np.array([[-1, -1, -1], [1, -1, 1], [0, 1, -1], [0, 0.5, 1]], np.float32)
    parts = [(kind, codec.decode(kind, data[kind])) for kind in kinds[1:]]
    d = Continuation("document-7", 1, [("text", "a\x1b[2J"), *parts, ("audio", None)], True)
    model = SimpleNamespace(config=SimpleNamespace(run=SimpleNamespace(name="r")), step=1, codec=codec)
    files = documents._files(model, [documents._with_files(codec, d, 0)])
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    numbers = {"2.png", "3.png", "3.wav", "4.npy", "4.png", "5.npy"}
    assert set(files) == {f"document-7-{n}" for n in numbers} | {"document-7.json", "document-7.txt", "documents.png"}
    assert all(results.NAMES.fullmatch(name) for name in files)
    content = json.loads(files["document-7.json"])
    assert content[2] == {"audio": "document-7-3.wav"}
    assert content[5] == {"audio": None}
    assert "[audio: empty]" in files["document-7.txt"].decode()
    assert "\x1b" not in files["document-7.txt"].decode()
    again = codec.encode(codecs.Part("action", tmp_path / "document-7-4.npy"))
    np.testing.assert_allclose(again, data["action"], atol=1e-3)
    np.testing.assert_array_equal(np.load(tmp_path / "document-7-5.npy"), data["latents"])
    spectrogram = Image.open(tmp_path / "document-7-3.png")
    assert spectrogram.width > 2 < spectrogram.height
    heard = soundfile.info(tmp_path / "document-7-3.wav")
    assert (heard.samplerate, heard.frames, heard.channels, heard.subtype) == (8000, 3 * 160, 1, "PCM_16")
    (tmp_path / "again.json").write_text(json.dumps(content[:3]), encoding="utf-8")
    sound = codecs.read_document(tmp_path / "again.json")[2]
    np.testing.assert_array_equal(codec.encode(sound), data["audio"])


def test_a_grid_sounds_in_the_order_of_its_pictures(monkeypatch):
    """One WAV of all, with a pause between; what the prompt held is not in it."""
    rate, hop = 8000, 160

    def wave(decibels, rate, hop, seed):
        return np.full(decibels.shape[1] * hop, seed / 10)

    monkeypatch.setattr(waveform, "wave", wave)

    def spectrogram(tokens):
        return "audio", np.zeros((40, tokens), np.float32)

    codec = codecs.Codec(("text", "audio"), None, None, {"audio": SimpleNamespace(rate=rate, hop=hop)}, None, None)
    given = [Continuation("document-0", 1, [spectrogram(9), spectrogram(2), ("text", "and")], True)]
    given += [Continuation("document-1", 0, [spectrogram(3), ("audio", None)], False)]
    files = documents._grid(codec, [documents._with_files(codec, d, 5) for d in given])
    assert files.keys() == {"grid.png", "grid.wav"}
    assert all(results.NAMES.fullmatch(name) for name in files)
    heard, of = soundfile.read(io.BytesIO(files["grid.wav"]))
    assert of == rate
    assert [len(x) for x in np.split(heard, np.flatnonzero(np.diff(heard)) + 1)] == [2 * hop, rate // 2, 3 * hop]
    assert documents._grid(codec, []) == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[" * 100_000, "not JSON: nested too deeply; write [{"),
        (
            '[{"ids": [' + "9" * 5000 + '], "modality": "image"}]',
            "not JSON: a number of more than 4,300 digits; write [{",
        ),
        ('{"text": "a"}', "a list of parts is needed, as [{"),
        ('"\xe9"', "the file is not UTF-8"),
        ("[]", "an empty document, []; write its parts, as [{"),
        (
            '[{"text": "a"}, {"smell": "b.mp4"}]',
            "part 2 is {'smell': 'b.mp4'}; an object with one of the keys text, im",
        ),
        ('[{"text": "a", "image": "a.png"}]', "an object with one of the keys text"),
        ('[{"image": 3}]', "its value must be text, or a file's name"),
        ('[{"image": "../a.png"}]', "part 1: path '../a.png'; only paths inside the input's own folder"),
        ('[{"image": "/etc/passwd"}]', "only paths inside the input's own folder"),
        ('[{"image": "none.png"}]', "part 1: path 'none.png': No such file"),
        ('[{"text": "a"}, {"image": "doc.json"}]', "part 2: not a PNG, JPEG, WEBP, GIF, BMP"),
        ('[{"ids": [1, 2], "modality": "text"}]', "part 1: ids of text, but this run has no ids of one's own for it"),
        ('[{"ids": [1, 2], "modality": "image"}]', 'makes them of image; give that, as {"image": "..."}'),
        ('[{"audio": "doc.json"}]', "part 1: this run has no audio; it has text, image; leave it out"),
    ],
)
def test_a_document_that_is_none_gets_one_message_and_nothing_is_written(vectors, tmp_path, content, says):
    (tmp_path / "doc.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        sample.draw(vectors, None, Options(files=(tmp_path / "doc.json",), out=tmp_path / "out"))
    assert f"--prompt-file={tmp_path / 'doc.json'}: " in str(caught.value)
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


WORDS = {
    "Persian, joined by U+200C": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Hindi, joined by U+200D": "\u0915\u094d\u200d\u0937",
    "Hebrew and a mark of direction": "\u05e9\u05dc\u05d5\u05dd\u200f!",
    "Arabic in an isolate": "\u2067\u0645\u0631\u062d\u0628\u0627\u2069 world",
    "an override of direction": "\u202eright to left\u202c",
    "a family": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "a flag of tags": "\U0001f3f4\U000e0067\U000e0062\U000e007f",
    "emoji of 2022, 2024 and later": "\U0001fae8 \U0001fae9 \U0001faff",
    "composed and decomposed": "\u00e9 e\u0301 \u1e69 s\u0323\u0307",
    "byte-order mark": "\ufeffhello",
    "soft hyphen, private use, no character": "co\u00adoperate \ue000 \uffff \U0010ffff",
    "what separates": "a\u2028b\u2029c\u00a0d\u3000e\x0cf\tg\r\nh",
    "commands of a terminal": "a\x1b[2J\x07\x9b",
}


def test_what_a_document_may_hold_may_be_a_prompt(prepared, tmp_path):
    """From the command line and from a file; what is written down is what was given, and a prompt again."""
    (tmp_path / "doc.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([{"text": "a\0b"}]).encode())  # as Windows does
    given = [f"--{'prompt' if i % 2 else 'text'}={words}" for i, words in enumerate(WORDS.values())]
    file, short = f"--prompt-file={tmp_path / 'doc.json'}", ["--draw=any", "--max-text=2", "--max-media=0"]
    assert cli.main(["sample", str(prepared), *given, file, *short, f"--out={tmp_path / 'out'}"]) == 0
    record = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))
    found = {d["content"][0]["text"]: d["name"] for d in record["documents"]}
    # Of an argument, a byte order mark at the beginning is dropped.
    assert found.keys() == {*(words.removeprefix("\ufeff") for words in WORDS.values()), "a\0b"}
    for words, name in found.items():
        assert codecs.read_document(tmp_path / "out" / f"{name}.json")[0].content == words
        text = (tmp_path / "out" / f"{name}.txt").read_bytes().decode()
        assert text.startswith(re.sub("[\0\x07\x0c\r\x1b\x9b]", "\ufffd", words))
    assert (tmp_path / "out" / "documents.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("flag", ["prompt", "text", "prompt-file"])
def test_half_a_character_is_no_text_wherever_it_stands(prepared, tmp_path, capsys, flag):
    (tmp_path / "doc.json").write_text('[{"text": "a\\ud83d"}]', encoding="utf-8")
    value = str(tmp_path / "doc.json") if flag == "prompt-file" else "a\ud83d"
    assert cli.main(["sample", str(prepared), f"--{flag}={value}", f"--out={tmp_path / 'out'}"]) == 2
    assert "holds half a character (a lone surrogate)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_or_nothing_is_no_document(tmp_path):
    for file, says in ((tmp_path, "is not a file"), (tmp_path / "no.json", "no file no.json")):
        with pytest.raises(UserError, match=says):
            codecs.read_document(file)


def test_a_prompt_longer_than_the_rows_of_training_is_refused(vectors, tmp_path):
    file, _ = document(tmp_path, {"text": "word " * 2000})
    with pytest.raises(UserError, match=r"tokens of text, and the model's rows at most \d+ \(streams.text.budget\)"):
        sample.draw(vectors, None, Options(files=(file,), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["--prompt=a handwritten eleven"],
            "--prompt 'a handwritten eleven': eleven is in no caption; allowed words: a ",
        ),
        (["--prompt="], "it has no word; write a caption"),
        (["--prompt=!!!"], "it has no word; write a caption"),
        (["--prompt=" + "a handwritten seven " * 8], "tokens; there is room for 21; shorten it"),
        (["--text=" + "word " * 200], "tokens; there is room for 48; shorten it"),
        (["--text=a\udce9"], "holds half a character (a lone surrogate), which is no text; write UTF-8"),
        (["--temperature=inf"], "--temperature=inf; must be from 0 to 100"),
        (["--seed=4294967296"], "--seed=4294967296; must be from 0 to 2147483647"),
        (["--each=0"], "--each=0; must be from 1 to 1000; give a number of that range"),
        (["--temperature=-1"], "--temperature=-1.0; must be from 0 to 100"),
        (["--temperature=nan"], "--temperature=nan; must be from 0 to 100"),
        (["--top-k=-2"], "--top-k=-2; must be from 0"),
        (["--top-p=1.5"], "--top-p=1.5; must be from 1e-06 to 1"),
        (["--n=0"], "--n=0; must be from 1 to 10000"),
        (["--n=4", "--each=2"], "--n=4, --each=2: each says how many; give one"),
        (["--n=1", "--text=a", "--text=b"], "--n=1: there are 2 prompts; ask for as many rows at least"),
        (
            ["--guidance=3"],
            "--guidance=3.0: is for vectors and units of masked ids, and this run has none; leave it out",
        ),
        (["--solver=heun"], "--solver=heun: is for vectors"),
        (["--block=4"], "--block=4: is for text that is masked by document, and this run has none; leave it out"),
        (["--draw=audio"], "--draw=audio: this run draws image; write one of these, or any"),
        (["--draw=image", "--each=2"], "--each=2: is for digits that are drawn and read"),
        (["--length=9"], "--length=9: all units of this run have a fixed length; leave it out"),
        (["--draw=image", "--max-media=0", "--prompt=a"], "--max-media=0: and image is to be drawn first"),
        (["--prompt-file=nowhere.json"], "--prompt-file=nowhere.json: there is no such file; name one"),
        (["--step=7"], "has no checkpoint of step 7; it has 2"),
    ],
)
def test_bad_input_gets_one_message_and_nothing_written(run, tmp_path, capsys, args, says):
    assert cli.main(["sample", str(run), f"--out={tmp_path / 'out'}", *args]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_all_faults_come_at_once(run, capsys):
    assert cli.main(["sample", str(run), "--each=0", "--top-k=-1", "--prompt=a cat", "--steps=3"]) == 2
    err = capsys.readouterr().err
    assert all(x in err for x in ("--each=0", "--top-k=-1", "cat is in no caption", "--steps=3"))


def test_vectors_are_guided_where_a_run_was_trained_for_it():
    def built(tree, **drop_rate):
        return resolve(tree.unlock() if not drop_rate else changed(tree, **drop_rate), sources.faults)

    def changed(tree, drop_rate):
        tree = tree.unlock()
        tree.streams.image.diffusion.update(drop_rate=drop_rate, shift=2.0)
        return tree

    flow = transfusion.get_config("size=smoke")
    assert sample.settings(Options(), built(flow)) == Settings(temperature=0.7, guidance=sample.GUIDANCE)
    without = built(transfusion.get_config("size=smoke"), drop_rate=0.0)
    assert sample.settings(Options(), without) == Settings(temperature=0.7, guidance=1.0, shift=2.0)
    given = sample.settings(Options(guidance=3.0, solver="ddpm", steps=7, top_p=0.5), built(flow))
    assert (given.guidance, given.solver, given.steps, given.top_p) == (3.0, "ddpm", 7, 0.5)
    assert sample.settings(Options(), built(digits_config.get_config("size=smoke"))).guidance == 1


def test_units_of_no_fixed_length_get_the_data_s(prepared):
    c, format = rundir.config_of(prepared), layout.of(rundir.config_of(prepared))
    assert sample.usual_length(c, format) == 0
    loose = format._replace(media=tuple(m._replace(tokens=0) for m in format.media))
    for max_tokens, length in ((100, 32), (20, 20)):  # ids may be twice the mean, if a document may have as many
        streams = c.streams | {"image": dataclasses.replace(c.streams["image"], max_tokens=max_tokens, budget=100)}
        assert sample.usual_length(dataclasses.replace(c, streams=streams), loose) == length


def test_rows_come_in_equal_batches_and_keep_their_numbers(monkeypatch):
    monkeypatch.setattr(opened, "ROWS", 4)
    calls = []

    def sampler(prompts, settings, seed, first):
        calls.append((list(prompts), first))
        return [first + i for i in range(len(prompts))]

    model = SimpleNamespace(sampler=sampler)
    assert opened.rows(model, list("abcdefg"), Settings(), "", 0) == list(range(7))
    assert calls == [(list("abcd"), 0), (list("efgg"), 4)]
    assert opened.rows(model, [], Settings(), "", 0) == []


def test_another_step_takes_that_steps_weights(run, monkeypatch):
    loaded = {1: "one", None: "two"}
    monkeypatch.setattr(restore, "load", lambda path, step: (None, SimpleNamespace(step=step), loaded[step]))
    model = opened.LoadedModel(run, None, 2, None, None, None, None, SimpleNamespace(params="two"))
    assert opened.at(model, 1).step == 1
    assert model.sampler.params == "one"


def test_a_folder_that_is_no_run_and_one_without_checkpoints(run, tmp_path, capsys):
    assert cli.main(["sample", str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err
    shutil.copy(run / "config.json", tmp_path)
    assert cli.main(["sample", str(tmp_path)]) == 2
    assert "has no checkpoint yet; `mot train` with its configuration" in capsys.readouterr().err


def test_a_run_on_another_manual_is_refused(run, monkeypatch, capsys):
    here = embedded.load(rundir.config_of(run))
    monkeypatch.setattr(embedded, "load", lambda c: [split._replace(digest="other") for split in here])
    assert cli.main(["sample", str(run)]) == 2
    assert "was trained on other data" in capsys.readouterr().err


# --- what is written -------------------------------------------------------------------------------------------------


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_earlier_samples_are_replaced_and_nothing_else_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    results.write(tmp_path, {"digits.png": b"1", "captions.png": b"2"}, {"step": 1})
    results.write(tmp_path, {"grid.png": b"3"}, {"step": 2})
    assert contents(tmp_path).keys() == {"notes.txt", "grid.png", "samples.json"}
    assert json.loads((tmp_path / "samples.json").read_text(encoding="utf-8")) == {"step": 2, "files": ["grid.png"]}
    (tmp_path / "document-0.txt").write_text("mine", encoding="utf-8")
    for record in ('{"step": 2, "files": ["grid.png"]}', "mine", '{"files": "document-0.txt"}', "[" * 100_000):
        (tmp_path / "samples.json").write_text(record, encoding="utf-8")
        before = contents(tmp_path)
        with pytest.raises(
            UserError, match="was not written by mot sample and is not overwritten; choose another --out"
        ):
            results.write(tmp_path, {"document-0.txt": b"4"}, {"step": 3})
        assert contents(tmp_path) == before


def test_a_record_names_no_file_but_samples(tmp_path):
    """Whoever wrote it cannot have other files removed."""
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path.parent / "grid.png").write_text("mine", encoding="utf-8")
    (tmp_path / "samples.json").write_text('{"files": ["notes.txt", "../grid.png"]}', encoding="utf-8")
    results.write(tmp_path, {"grid.png": b"1"}, {})
    assert (
        (tmp_path / "notes.txt").read_text(encoding="utf-8")
        == (tmp_path.parent / "grid.png").read_text(encoding="utf-8")
        == "mine"
    )


def test_samples_of_an_earlier_version_are_ours(tmp_path):
    (tmp_path / "captions.png").write_bytes(b"old")
    (tmp_path / "samples.json").write_text('{"drawn": {}, "read": {}, "judge": 1.0}', encoding="utf-8")
    results.write(tmp_path, {"digits.png": b"new"}, {})
    assert contents(tmp_path).keys() == {"digits.png", "samples.json"}


def test_what_cannot_be_written_whole_leaves_the_earlier_samples(tmp_path):
    results.write(tmp_path, {"digits.png": b"1"}, {"step": 1})
    before = contents(tmp_path)
    with pytest.raises(TypeError):
        results.write(tmp_path, {"digits.png": b"2", "grid.png": None}, {"step": 2})
    assert contents(tmp_path) == before


def test_interrupted_between_two_files_it_says_so_and_the_next_call_replaces_all(tmp_path, monkeypatch):
    results.write(tmp_path, {"digits.png": b"1", "captions.png": b"1"}, {"step": 1})
    real, moved = os.replace, []

    def stops(source, target):
        if len(moved) == 2:  # the claim and a file
            raise KeyboardInterrupt
        if Path(target).parent == tmp_path:
            moved.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        results.write(tmp_path, {"digits.png": b"2", "grid.png": b"2"}, {"step": 2})
    monkeypatch.undo()
    assert json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))["interrupted"]
    results.write(tmp_path, {"grid.png": b"3"}, {"step": 3})
    assert contents(tmp_path).keys() == {"grid.png", "samples.json"}


def test_a_file_is_no_folder_for_results(run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert cli.main(["sample", str(run), f"--out={tmp_path / 'file'}"]) == 2
    assert "file is a file, not a folder; move it away, or name another folder" in capsys.readouterr().err


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_digit_on_paper_is_the_digit_again_also_enlarged():
    levels = np.arange(64) % embedded.LEVELS
    paper = codecs.paper(levels)
    assert paper[0, 0].tolist() == [255, 255, 255]
    for scale in (1, 16):
        large = paper.repeat(scale, axis=0).repeat(scale, axis=1)
        np.testing.assert_array_equal(codecs.grey(large), levels)


def test_text_that_spells_a_special_token_is_text(vectors):
    ids = vectors.codec.encode(codecs.Part("text", "<eos><boi>"))
    assert not set(ids) & set(vectors.format.special)
    assert vectors.codec.decode("text", ids) == "<eos><boi>"


def test_a_grid_holds_every_picture_where_it_belongs():
    tiles = [np.full((16, 8, 3), i * 40, np.uint8) for i in range(5)]
    page = np.asarray(Image.open(io.BytesIO(pictures.grid(tiles))))
    gap = pictures.GAP
    for i, tile in enumerate(tiles):
        row, column = divmod(i, 3)
        top, left = gap + row * (16 + gap), gap + column * (8 + gap)
        np.testing.assert_array_equal(page[top : top + 16, left : left + 8], tile)
    assert page.shape == (2 * (16 + gap) + gap, 3 * (8 + gap) + gap, 3)


def test_titles_stand_above_their_pictures_and_are_not_cut_off():
    """Ink outside of the pictures' squares stays within the cells."""
    blank = np.full((128, 128, 3), 255, np.uint8)
    titles = ["WRONG: " + "MMMMM WWWWWW " * 5, "a", "\x1b[2J$x$ \u4e2d", "WWWWWWWWWWWWWWWWWWWWWWWWWWWW"]
    page = np.asarray(Image.open(io.BytesIO(pictures.titled([blank] * 4, titles, 2))))[..., :3]
    assert page.shape[1] == 2 * pictures.CELL
    ink = page.min(-1) < 128
    assert ink.any()
    assert not ink[:, :2].any()
    assert not ink[:, -2:].any()
    assert not ink[:, pictures.CELL - 1 : pictures.CELL + 1].any()
    assert not ink[0].any()
    assert not ink[-1].any()
