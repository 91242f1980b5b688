"""Units that are kept in several representations."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from configs import records as records_config
from configs import transfusion
from mot.config import ConfigError, resolve
from mot.data import manifest, sources
from mot.data.records import Dataset
from mot.errors import UserError
from mot.generate import codecs
from mot.prepare import dataset_tokenizers, encode, fit
from mot.prepare.dataset_tokenizers import Tokenizers
from mot.prepare.job import prepare
from mot.tokenizers import audio, vectors
from mot.tokenizers.given import GivenVectors
from tests.support.datasets import SMALL, write_inputs


def test_a_picture_is_kept_as_ids_and_as_patches(tmp_path):
    """And with somebody's latents: three spans of one unit, which share its markers and are never cut apart."""
    folder = tmp_path / "in"
    recipe = write_inputs(folder, 30)
    lines = [json.loads(line) for line in (folder / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    for i, line in enumerate(lines):
        np.save(folder / f"{i}.npy", np.full((5, 3), i, np.float32))
        for part in line["content"]:
            part |= {"latents": f"{i}.npy"} if "image" in part else {}
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    recipe = dataclasses.replace(recipe, also=("image=vectors", "image=latents"), image_ids=8)
    about = prepare(recipe, tmp_path / "out", 1, 0).about
    assert about["modalities"] == ["text", "image", "latents", "image_vectors"]
    assert manifest.representations(about) == {"image_vectors": "image", "latents": "image"}
    dataset = Dataset(tmp_path / "out", "train")
    tokenizers = dataset_tokenizers.load(tmp_path / "out" / "tokenizers")
    seen = 0
    for i in range(dataset.count):
        spans = {span.modality: span.data for span in dataset[i].spans}
        if "image" in spans:
            seen += 1
            number = int(dataset[i].id.split(":doc")[1].partition("#")[0])
            assert (spans["latents"] == number).all()
            picture = tokenizers.media["image_vectors"].decode(spans["image_vectors"].astype(np.float32))
            np.testing.assert_array_equal(tokenizers.media["image"].encode(picture), spans["image"])
            words = sum(len(s.data) for s in dataset[i].spans if s.modality == "text")
            assert dataset.lengths_of(i)[0] == 2 + 2 + words, "one pair of markers"
    assert seen
    c = records_config.get_config(f"data={tmp_path / 'out'},size=smoke,length=256")
    held = {name: (s.modality, s.representation) for name, s in c.streams.items()}
    assert held["image_vectors"] == ("image", "image_vectors")
    assert held["latents"] == ("image", "latents")
    c.data.roles = (dict(streams="latents,image_vectors", place="", source=""),)
    config = resolve(c, sources.faults)
    source, _ = sources.open_(config)
    for i in range(source.all[0].count):
        d = source.all[0].read(i)
        assert not (d.stream == list(config.streams).index("image")).any()


def test_fewer_ids_than_usual_name_the_option_of_the_medium(capsys):
    fit._tell_fewer("image_ids", dataclasses.replace(SMALL, image_ids=None), 3, Console(stderr=True))
    assert "(--image-ids)" in capsys.readouterr().err


def test_a_form_of_nothing_is_told(tmp_path):
    recipe = write_inputs(tmp_path / "in", 12)
    for also, says in (
        ("image=ids", "image are ids as it is; write --also image=vectors"),
        ("image=latents", "the first documents have no latents"),
        ("action=vectors", "action has one form"),
        ("image=vidoe", "'vidoe' is no modality; allowed: .*; did you mean 'video'"),
        ("imaeg=vectors", "'imaeg' is no modality; allowed: .*; did you mean 'image'"),
        ("image", "write MEDIUM=WHAT"),
    ):
        with pytest.raises(UserError, match=says):  # also where it is said twice
            prepare(dataclasses.replace(recipe, also=(also, also)), tmp_path / "out", 1, 0)
        assert not (tmp_path / "out").exists()
    np.save(tmp_path / "in" / "a.npy", np.zeros((2, 3), np.float32))
    content = [{"text": "a"}, {"latents": "a.npy"}]
    lines = [json.dumps({"content": [*content, {"image": "0.png"}]})] + [
        json.dumps({"content": [{"text": str(i)}, {"image": "1.png", "latents": "a.npy"}]}) for i in range(9)
    ]
    (tmp_path / "in" / "all.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="latents that follow no image, of which they are a representation"):
        prepare(dataclasses.replace(recipe, also=("image=latents",), held_out=0.0), tmp_path / "out", 1, 0)
    with pytest.raises(UserError, match="say so: --also MEDIUM=latents"):
        prepare(dataclasses.replace(recipe, held_out=0.0), tmp_path / "other", 1, 0)


def test_a_sound_is_kept_and_drawn_as_ids_and_as_vectors():
    rate = 8000
    wave = np.sin(np.arange(rate // 4) * 0.3 + np.cumsum(np.linspace(0, 0.5, rate // 4)))
    media = {"audio": audio.fit_audio([(wave, rate)], rate, ids=4)}
    media["audio_vectors"] = vectors.fit_audio([(wave, rate)], rate)
    tokenizers = Tokenizers(None, media, {"audio_vectors": "audio"})
    spans, _ = encode.spans_of("audio", (wave, rate), tokenizers)
    assert [(span.modality, len(span.data)) for span in spans] == [("audio", 13), ("audio_vectors", 13)]
    made = codecs._records(tokenizers).others("audio", spans[0].data, ["audio_vectors"])
    assert {name: data.shape for name, data in made.items()} == {"audio_vectors": spans[1].data.shape}


def test_a_learned_table_has_an_entry_for_every_row():
    c = transfusion.get_config("arch=mot,size=smoke")
    c.unlock().streams.image.place_table = 3
    with pytest.raises(ConfigError, match="place_table: 3; its units have up to 4 rows or columns"):
        resolve(c, sources.faults)
    c.streams.image.place_table = 4
    resolve(c, sources.faults)


def test_latents_keep_their_rows_and_columns(tmp_path):
    """As an autoencoder's have them: RoPE and tables of places read them, and others than the first ones are bad."""
    rng = np.random.default_rng(0)
    wanted = [rng.standard_normal((*shape, 5)).astype(np.float32) for shape in [(2, 3), (3, 2), (1, 1), (2, 3)]]
    for i, x in enumerate([*wanted, np.zeros((4, 5), np.float32)]):
        np.save(tmp_path / f"{i}.npy", x)
    rows = [{"content": [{"text": "a"}, {"latents": f"{i}.npy"}]} for i in range(5)]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = dataclasses.replace(SMALL, inputs=(str(tmp_path / "all.jsonl"),), held_out=0.0)
    about = prepare(recipe, tmp_path / "out", 1, 1).about
    entry = about["tokenizers"]["latents"]
    assert (entry["width"], entry["shape"], entry.get("tokens")) == (5, [3, 3], None)
    bad = (tmp_path / "out" / "left_out.jsonl").read_text(encoding="utf-8")
    assert "latents [4, 5], where the first ones were [rows, columns, P]" in bad
    assert dataset_tokenizers.load(tmp_path / "out" / "tokenizers").media["latents"].shape == (3, 3)
    dataset = Dataset(tmp_path / "out", "train")
    found = [dataset[i].spans[1].data for i in range(dataset.count)]
    assert sorted(x.tobytes() for x in found) == sorted(x.tobytes() for x in wanted)
    assert {x.shape for x in found} == {x.shape for x in wanted}
    c = records_config.get_config(f"data={tmp_path / 'out'},size=smoke,length=64").unlock()
    c.data.sources.out, c.streams.latents.place_table = str(tmp_path / "out"), 2
    with pytest.raises(ConfigError, match="place_table: 2; its units have up to 3 rows or columns"):
        resolve(c, sources.faults)
    with pytest.raises(ValueError, match="3 x 3 at most"):
        GivenVectors(5, (3, 3)).encode(np.zeros((4, 1, 5), np.float32))
