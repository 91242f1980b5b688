"""Networks as a dataset's tokenizers, through the seam: a fake one takes the place of any that somebody trained."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from launch import arguments
from mot.data.manifest import read_json
from mot.data.records import Dataset
from mot.errors import UserError
from mot.prepare import asked, dataset_tokenizers, encode, job
from mot.tokenizers import image, networked, networks
from tests.support import tokens
from tests.support.datasets import SMALL, contents, write_inputs
from tests.support.files import write_lines
from tests.support.media import sound

IMAGE = dict(image_side=0, image_patch=4, image_ids=None)
AUDIO = dict(audio_rate=16000, audio_ids=None, audio_layers=0)


@pytest.fixture(autouse=True)
def batches(monkeypatch):
    """How many each call of a network was given; folders of fake networks can be opened."""
    sizes = []

    def opened(folder, **options):
        network = tokens.opened(folder, **options)

        def counted(batch):
            sizes.append(len(batch))
            return network.encode(batch)

        return network._replace(encode=counted)

    monkeypatch.setattr(networks, "OPENERS", {"fake.json": opened})
    networked._opened.cache_clear()
    yield sizes
    networked._opened.cache_clear()


def recipe_of(tmp_path, **changes):
    """Of documents with pictures, and a network for them."""
    return dataclasses.replace(
        write_inputs(tmp_path / "in"), **IMAGE | {"image_tokens": tokens.folder(tmp_path / "vq")} | changes
    )


def spans(out, modality, split="train"):
    """Number and data of each document's part of a modality."""
    dataset = Dataset(out, split)
    for record in map(dataset.__getitem__, range(dataset.count)):
        number = int(record.id.partition("#")[0].rpartition("doc")[2])
        yield from ((number, span.data) for span in record.spans if span.modality == modality)


def picture(tmp_path, number, side=4):
    return image.square(np.asarray(Image.open(tmp_path / "in" / f"{number}.png")), side)


def test_a_picture_has_the_networks_ids(tmp_path, batches):
    recipe = recipe_of(tmp_path)
    about = job.prepare(recipe, tmp_path / "out", 1, 0).about
    network = tokens.opened(recipe.image_tokens)
    entry = about["tokenizers"]["image"]
    assert entry["network"] == {"folder": recipe.image_tokens, "digest": network.digest}
    assert (entry["ids"], entry["tokens"], entry["shape"], entry["files"]) == (4, 4, [2, 2], [])
    found = list(spans(tmp_path / "out", "image"))
    for number, data in found:
        assert np.array_equal(data, network.encode([picture(tmp_path, number)])[0])
    assert len(found) > 10
    assert max(batches) > 1
    back = dataset_tokenizers.load(tmp_path / "out" / "tokenizers").decode("image", found[0][1])
    assert np.array_equal(back, network.decode(found[0][1]))


def test_memory_is_bounded_and_batches_change_nothing(tmp_path, batches, monkeypatch):
    recipe = recipe_of(tmp_path)
    job.prepare(recipe, tmp_path / "one", 1, 0)
    whole = max(batches)
    batches.clear()
    monkeypatch.setattr(encode, "AT_ONCE", 100)
    job.prepare(recipe, tmp_path / "three", 1, 0)
    assert max(batches) == 3 < whole  # of 48 bytes each
    batches.clear()
    monkeypatch.setattr(networked, "PIXELS", 32)
    job.prepare(recipe, tmp_path / "two", 1, 0)
    assert max(batches) == 2
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_what_was_interrupted_goes_on_to_the_same_bytes(tmp_path, batches, monkeypatch):
    recipe = recipe_of(tmp_path)
    job.prepare(recipe, tmp_path / "whole", 1, 0)
    calls = len(batches)
    batches.clear()
    run = networked.Networked.encode_all

    def interrupted(self, prepared):
        if len(batches) == 2:
            raise MemoryError
        return run(self, prepared)

    with monkeypatch.context() as m:
        m.setattr(networked.Networked, "encode_all", interrupted)
        with pytest.raises(MemoryError):
            job.prepare(recipe, tmp_path / "out", 1, 0)
    job.prepare(recipe, tmp_path / "out", 1, 0)
    assert len(batches) == calls, "a finished block is not encoded again"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_bad_picture_costs_its_own_document_alone(tmp_path):
    recipe = dataclasses.replace(
        write_inputs(tmp_path / "in", bad=(4,)), **IMAGE, image_tokens=tokens.folder(tmp_path / "vq")
    )
    about = job.prepare(recipe, tmp_path / "out", 1, 1).about
    assert sum(about["left_out"].values()) == 1
    network = tokens.opened(recipe.image_tokens)
    for number, data in spans(tmp_path / "out", "image"):
        assert np.array_equal(data, network.encode([picture(tmp_path, number)])[0])


def test_a_picture_has_ids_of_one_network_and_vectors_of_another(tmp_path):
    latents = tokens.folder(tmp_path / "vae", is_of_ids=False)
    recipe = recipe_of(tmp_path, image_latents=latents, also=("image=vectors",), image_side=8)
    about = job.prepare(recipe, tmp_path / "out", 1, 0).about
    assert about["modalities"] == ["text", "image", "image_vectors"]
    assert about["tokenizers"]["image_vectors"]["network"]["folder"] == latents
    for name, folder in (("image", recipe.image_tokens), ("image_vectors", latents)):
        network = tokens.opened(folder, side=8)
        for number, data in spans(tmp_path / "out", name):
            (own,) = network.encode([picture(tmp_path, number, 8)])
            assert np.array_equal(data, own.astype(data.dtype))


def test_a_picture_has_ids_of_a_network_and_patches_of_mots_own(tmp_path):
    recipe = recipe_of(tmp_path, also=("image=vectors",), image_side=8, image_patch=2)
    about = job.prepare(recipe, tmp_path / "out", 1, 0).about
    assert about["tokenizers"]["image_vectors"]["width"] == 12
    assert about["tokenizers"]["image"]["network"]["folder"] == recipe.image_tokens


@pytest.mark.parametrize("order", ["layers", "frames"])
def test_a_sound_has_the_networks_ids_in_either_order(tmp_path, order):
    waves = [np.random.default_rng(n).uniform(-1, 1, 900 + 10 * n).astype(np.float32) for n in range(9)]
    for n, wave in enumerate(waves):
        (tmp_path / f"{n}.wav").write_bytes(sound(wave, "WAV", "FLOAT", tokens.RATE))
    (tmp_path / "9.wav").write_bytes(sound(np.zeros(8000 * 121, np.float32), "WAV", rate=8000))
    lines = [{"id": f"doc{n}", "text": f"sound {n}", "audio": f"{n}.wav"} for n in range(10)]
    write_lines(tmp_path / "all.jsonl", *lines)
    folder = tokens.folder(tmp_path / "codec", "audio")
    own = AUDIO | dict(audio_tokens=folder, audio_order=order, held_out=0.0)
    recipe = dataclasses.replace(SMALL, inputs=(str(tmp_path / "all.jsonl"),), **own)
    about = job.prepare(recipe, tmp_path / "out", 1, 1).about
    assert about["left_out"] == {"a sound of 121 seconds; a network takes 120 at most; cut it": 1}
    network = tokens.opened(folder)
    tokenizers = dataset_tokenizers.load(tmp_path / "out" / "tokenizers")
    for number, data in spans(tmp_path / "out", "audio"):
        ids = network.encode([waves[number]])[0]
        assert np.array_equal(data, ids if order == "layers" else ids.reshape(2, -1).T.reshape(-1))
        back = tokenizers.decode("audio", data)
        assert np.array_equal(back.wave, network.decode(ids))
    assert about["tokenizers"]["audio"]["ids"] == 8


def test_a_sound_of_another_rate_is_resampled(tmp_path):
    folder = tokens.folder(tmp_path / "codec", "audio")
    found = networked.tokenizer(networked.known(folder))
    time = np.arange(4000) / (4 * tokens.RATE)
    prepared = found.prepared(np.sin(2 * np.pi * 50 * time).astype(np.float32), 4 * tokens.RATE)
    assert (prepared.shape, prepared.dtype) == ((1000,), np.float32)
    assert np.abs(prepared - np.sin(2 * np.pi * 50 * time[::4]))[50:-50].max() < 0.01


def test_another_dataset_takes_the_network_over(tmp_path):
    recipe = recipe_of(tmp_path)
    first = job.prepare(recipe, tmp_path / "out", 1, 0).about
    like = dataclasses.replace(recipe, image_tokens="", image_side=8, image_patch=2, like=str(tmp_path / "out"))
    about = job.prepare(like, tmp_path / "like", 1, 0).about
    assert about["tokenizers"] == first["tokenizers"]


def test_another_network_than_before_is_refused(tmp_path):
    recipe = recipe_of(tmp_path)
    job.prepare(recipe, tmp_path / "out", 1, 0)
    tokenizer = dataset_tokenizers.load(tmp_path / "out" / "tokenizers").of("image")
    about = tmp_path / "vq" / "fake.json"
    about.write_text(about.read_text(encoding="utf-8") + " ", encoding="utf-8")
    networked._opened.cache_clear()
    with pytest.raises(UserError, match="another network than the dataset was made with: its digest is"):
        tokenizer.decode(np.zeros(4, int))
    with pytest.raises(UserError, match="was begun otherwise"):
        job.prepare(recipe, tmp_path / "out", 1, 0)


def test_what_is_kept_of_a_network_is_judged(tmp_path):
    recipe = recipe_of(tmp_path)
    job.prepare(recipe, tmp_path / "out", 1, 0)
    file = tmp_path / "out" / "tokenizers" / "chosen.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    for changed in ({"size": -1}, {"medium": "audio"}, {"is_of_ids": False}, {"shape": ["x"]}, {"more": 1}):
        damaged = whole | {"networks": {"image": whole["networks"]["image"] | changed}}
        file.write_text(json.dumps(damaged), encoding="utf-8")
        with pytest.raises(UserError, match="is missing or damaged"):
            dataset_tokenizers.load(tmp_path / "out" / "tokenizers")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (dict(image_ids=12), "--image-ids=12: --image-tokens decides this; leave it out"),
        (dict(image_patch=2), "--image-patch=2: --image-tokens decides this"),
        (dict(image_aspect="native"), "--image-aspect=native: --image-tokens decides this"),
        (dict(image_latents="vae"), "--image-latents=vae: image are kept as ids; write --also image=vectors, or leave"),
        (
            dict(image_tokens="", image_latents="vae"),
            "--image-latents=vae: image are kept as ids; write --vectors image",
        ),
        (dict(also=("image=vectors",)), "--image-side=0: patches of mot's own need a side"),
        (dict(vectors=("image",)), "--image-tokens=vq: image are kept as vectors; write --vectors image, or leave it"),
        (dict(audio_order="frames"), "--audio-order=frames: is for --audio-tokens alone"),
        (dict(audio_layers=17), "--audio-layers=17; must be from 1 to 16; lower it"),
        (dict(audio_tokens="vq", audio_rate=8000), "--audio-rate=8000: --audio-tokens decides this"),
    ],
)
def test_options_that_do_not_fit_are_told(tmp_path, monkeypatch, changes, why):
    monkeypatch.chdir(tmp_path)
    for name in ("vq", "vae"):
        tokens.folder(tmp_path / name)
    recipe = dataclasses.replace(SMALL, **IMAGE | {"image_tokens": "vq"} | changes)
    faults = list(asked.faults(recipe, tmp_path / "out", 1, 0))
    assert len([fault for fault in faults if why in fault]) == 1, faults


def test_what_nobody_says_follows_from_the_networks():
    def judged(*options):
        p = arguments.prepare()
        return arguments.judged_data(p, p.parse_args(["photos", "--out", "out", *options]))

    plain, ids, latents = judged(), judged("--image-tokens", "vq"), judged("--image-latents", "vae")
    assert (plain.image_side, plain.audio_layers, plain.vectors) == (32, 1, [])
    assert (ids.image_side, ids.workers, ids.vectors) == (0, 1, [])
    assert (latents.image_side, latents.vectors) == (0, ["image"])
    both = judged("--image-latents", "vae", "--also", "image=vectors", "--image-side", "64")
    assert both.vectors == []
    p = arguments.prepare()
    of_a_task = p.parse_args(["--seqio", "task", "--out", "out", "--image-tokens", "vq"])
    with pytest.raises(UserError, match="--image-tokens is for files; --seqio=task brings its own"):
        arguments.judged_data(p, of_a_task)


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        (dict(medium="audio"), "makes ids of audio, not ids of image; --audio-tokens takes it"),
        (dict(is_of_ids=False), "makes vectors of image, not ids of image; --image-latents takes it"),
    ],
)
def test_a_network_of_something_else_is_told(tmp_path, folder, why):
    recipe = recipe_of(tmp_path, image_tokens=tokens.folder(tmp_path / "other", **folder))
    if folder.get("medium"):  # which takes no side
        networks.OPENERS["fake.json"] = lambda folder, **options: tokens.opened(folder)
    with pytest.raises(UserError, match=why):
        job.prepare(recipe, tmp_path / "out", 1, 0)
    assert not (tmp_path / "out").exists()


def test_folders_of_nothing_that_is_known_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no fake\.json; name a folder as save_pretrained writes it"):
        networks.opened(tmp_path / "empty")
    (tmp_path / "empty" / "model_index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"holds a whole pipeline; name the folder of its network alone"):
        networks.opened(tmp_path / "empty")
    recipe = dataclasses.replace(write_inputs(tmp_path / "in"), **IMAGE, image_tokens=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere is no folder; name the folder of a network"):
        job.prepare(recipe, tmp_path / "out", 1, 0)
    assert not (tmp_path / "out").exists()


def test_datasets_of_other_networks_differ_in_their_digest(tmp_path):
    recipe = recipe_of(tmp_path)
    job.prepare(recipe, tmp_path / "a", 1, 0)
    job.prepare(dataclasses.replace(recipe, image_side=8), tmp_path / "b", 1, 0)
    assert len({read_json(tmp_path / name)["tokenizers"]["image"]["digest"] for name in "ab"}) == 2
