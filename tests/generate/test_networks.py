"""A run whose pictures and sounds a network makes: prompts go through it, and what is drawn comes back through it."""

import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mot.data import preview
from mot.errors import UserError
from mot.generate import codecs
from mot.prepare import codecs as shown
from mot.prepare import job
from mot.prepare.raw import Part
from mot.tokenizers import image, networked, networks
from mot.tokenizers.waveform import Sound
from tests.support import tokens
from tests.support.datasets import SMALL, write_inputs
from tests.support.files import write_lines
from tests.support.media import sound

OWN = dict(image_side=0, image_patch=4, image_ids=None)


@pytest.fixture(autouse=True)
def _openers(monkeypatch):
    monkeypatch.setattr(networks, "OPENERS", {"fake.json": tokens.opened})
    networked._opened.cache_clear()
    yield
    networked._opened.cache_clear()


def run_of(folder):
    return SimpleNamespace(data=SimpleNamespace(sources={"all": str(folder)}))


def prepared(tmp_path, **changes):
    recipe = dataclasses.replace(write_inputs(tmp_path / "in"), **OWN | changes)
    job.prepare(recipe, tmp_path / "out", 1, 0)
    return run_of(tmp_path / "out")


def test_a_prompts_picture_is_encoded_and_a_drawn_one_decoded(tmp_path):
    folder = tokens.folder(tmp_path / "vq")
    codec = codecs.of(prepared(tmp_path, image_tokens=folder))
    network = tokens.opened(folder)
    file = tmp_path / "in" / "0.png"
    (own,) = network.encode([image.square(np.asarray(Image.open(file)), 4)])
    ((modality, ids),) = codec.forms(Part("image", file.read_bytes()))
    assert modality == "image"
    assert np.array_equal(ids, own)
    drawn = codec.decode("image", ids)
    assert np.array_equal(drawn, network.decode(own))
    written = shown.files("image", codec.tokenizers["image"], drawn, 0)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(written["png"]))), drawn)


def test_the_other_form_of_a_drawn_picture_is_made_of_it(tmp_path):
    folders = dict(image_tokens=tokens.folder(tmp_path / "vq"))
    folders |= dict(image_latents=tokens.folder(tmp_path / "vae", is_of_ids=False))
    codec = codecs.of(prepared(tmp_path, also=("image=vectors",), **folders))
    made = codec.others("image", np.array([0, 1, 2, 3]), ["image_vectors"])["image_vectors"]
    assert np.allclose(made[:, 0] * 255, [0, 64, 128, 192])


def test_a_network_that_changed_is_refused_before_anything_is_drawn(tmp_path):
    config = prepared(tmp_path, image_tokens=tokens.folder(tmp_path / "vq"))
    about = tmp_path / "vq" / "fake.json"
    about.write_text(about.read_text(encoding="utf-8") + " ", encoding="utf-8")
    networked._opened.cache_clear()
    codec = codecs.of(config)  # which alone needs no network
    with pytest.raises(UserError, match="another network than the dataset was made with"):
        codecs.open_networks(codec)


@pytest.mark.parametrize(("option", "is_of_ids"), [("image_tokens", True), ("image_latents", False)])
def test_what_has_no_way_back_is_kept_and_told_once(tmp_path, capsys, option, is_of_ids):
    folder = tokens.folder(tmp_path / "net", is_of_ids=is_of_ids, decodes=False)
    vectors = () if is_of_ids else ("image",)
    codec = codecs.of(prepared(tmp_path, vectors=vectors, **{option: folder}))
    data = np.arange(4) if is_of_ids else np.ones((4, 2), np.float32)
    for _ in range(2):
        kept = codec.decode("image", data)
    assert np.array_equal(kept, data)
    assert capsys.readouterr().err.count("has no way back from what it makes") == 1
    tokenizer = codec.tokenizers["image"]
    files = shown.files("image", tokenizer, kept, 0)
    assert np.array_equal(np.load(io.BytesIO(files["npy"])), data)
    assert shown.box("image", tokenizer, kept, preview.Room()).pixels.size
    assert codec.others("image", data, ["image_vectors"]) == {}


def test_a_drawn_sound_is_the_networks_own(tmp_path):
    wave = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    (tmp_path / "a.wav").write_bytes(sound(wave, "WAV", "FLOAT", tokens.RATE))
    write_lines(tmp_path / "all.jsonl", {"text": "a", "audio": "a.wav"})
    own = dict(audio_rate=16000, audio_ids=None, audio_layers=0, audio_tokens=tokens.folder(tmp_path / "net", "audio"))
    recipe = dataclasses.replace(SMALL, inputs=(str(tmp_path / "all.jsonl"),), held_out=0.0, **own)
    job.prepare(recipe, tmp_path / "out", 1, 0)
    codec = codecs.of(run_of(tmp_path / "out"))
    ((_, ids),) = codec.forms(Part("audio", (tmp_path / "a.wav").read_bytes()))
    drawn = codec.decode("audio", ids)
    assert isinstance(drawn, Sound)
    files = shown.files("audio", codec.tokenizers["audio"], drawn, 0)
    assert files["wav"] == sound(drawn.wave, "WAV", "PCM_16", tokens.RATE)
    assert files["png"][:4] == b"\x89PNG"
    box = shown.box("audio", codec.tokenizers["audio"], drawn, preview.Room())
    assert box.caption == "audio, 1.00 s"
