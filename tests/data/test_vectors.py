"""Datasets that keep pictures, sound, strokes and latents as vectors: from files to batches."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from configs import archs, base
from configs import records as records_config
from launch import data as command
from launch.process import guarded
from mot import batches
from mot.config import ConfigError, resolve
from mot.data import budgets, sources
from mot.data.manifest import SPLITS
from mot.data.pipeline import Batches
from mot.data.records import Dataset
from mot.errors import UserError
from mot.prepare import dataset_tokenizers, job
from mot.prepare.codecs import audio
from mot.tokenizers.given import GivenVectors
from mot.tokenizers.vectors import ActionVectors, AudioVectors, ImageVectors
from tests.support.datasets import SMALL, contents, write_inputs
from tests.support.files import npz_of_strokes

WIDTHS = {"image": 12, "audio": 40, "action": 3, "latents": 5}


def write(folder, documents=40):
    """Interleaved documents of text and everything that is kept as vectors."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(documents):
        Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).save(folder / f"{i}.png")
        np.save(folder / f"{i}.path.npy", rng.normal(size=(9 + i, 2)).cumsum(0))
        np.save(folder / f"{i}.latents.npy", rng.normal(size=(1 + i % 4, 5)))
        wave = (rng.normal(size=800 + 40 * i) * 3000).astype(np.int16)
        (folder / f"{i}.wav").write_bytes(wav(wave))
        media = [{"image": f"{i}.png"}, {"action": f"{i}.path.npy"}, {"audio": f"{i}.wav"}]
        content = [{"text": f"Number {i} is drawn."}, *media, {"latents": f"{i}.latents.npy"}, {"text": "It ends."}]
        lines.append(json.dumps({"id": f"doc{i}", "content": content}))
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n")
    return dataclasses.replace(SMALL, inputs=(str(folder / "all.jsonl"),), vectors=("audio", "image"))


def wav(wave, rate=8000):
    size = 2 * len(wave)
    fields = [b"RIFF", 36 + size, b"WAVEfmt ", 16, 1 | 1 << 16, rate, 2 * rate, 2 | 16 << 16, b"data", size]
    return b"".join(x if isinstance(x, bytes) else x.to_bytes(4, "little") for x in fields) + wave.tobytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset, its recipe and where it lies."""
    folder = tmp_path_factory.mktemp("vectors")
    recipe = write(folder / "in")
    return recipe, folder / "all", job.prepare(recipe, folder / "all", 1, 0).about


def test_every_kind_comes_out_as_it_went_in(made):
    _, out, about = made
    assert about["modalities"] == ["text", *WIDTHS]
    assert {m: t.get("width") for m, t in about["tokenizers"].items()} == {"text": None} | WIDTHS
    assert {m: t.get("tokens") for m, t in about["tokenizers"].items() if "tokens" in t} == {"image": 16, "action": 16}
    assert {"<action>", "</action>", "<audio>", "</latents>", "<boi>"} < about["tokenizers"]["text"]["special"].keys()
    tools = dataset_tokenizers.load(out / "tokenizers")
    assert [type(t) for t in tools.media.values()] == [ImageVectors, AudioVectors, ActionVectors, GivenVectors]
    seen, folder = set(), out.parent / "in"
    for split in SPLITS:
        dataset = Dataset(out, split)
        for i in range(dataset.count):
            record = dataset[i]
            number = int(record.id.rpartition("doc")[2])
            seen.add(number)
            found = {span.modality: span.data for span in record.spans if span.modality != "text"}
            assert {m: x.shape[1] for m, x in found.items()} == WIDTHS
            assert {str(x.dtype) for m, x in found.items()} == {"float16", "float32"}
            np.testing.assert_array_equal(found["latents"], np.load(folder / f"{number}.latents.npy").astype("f"))
            path = np.load(folder / f"{number}.path.npy")
            (stroke,) = tools.media["action"].decode(found["action"])
            np.testing.assert_allclose(stroke[[0, -1]], path[[0, -1]], atol=2e-2)
            picture = np.asarray(
                Image.open(folder / f"{number}.png").resize((8, 8), Image.Resampling.LANCZOS, (1, 0, 10, 9))
            )
            np.testing.assert_array_equal(tools.media["image"].decode(found["image"]), picture)
            assert tools.media["audio"].decode(found["audio"]).shape == (40, -(-(800 + 40 * number) // 160))
    assert seen == set(range(40))


def test_any_number_of_processes_gives_the_same_bytes(made, tmp_path):
    recipe, out, _ = made
    job.prepare(recipe, tmp_path / "two", 2, 0)
    assert contents(tmp_path / "two") == contents(out)


def test_a_dataset_like_another_keeps_vectors_as_that_does(made, tmp_path):
    _, out, about = made
    plain = write_inputs(tmp_path / "in")
    found = job.prepare(dataclasses.replace(plain, like=str(out)), tmp_path / "like", 1, 0).about
    assert found["modalities"] == ["text", "image"]

    def known(about):
        return {k: v for k, v in about["tokenizers"]["image"].items() if k != "files"}

    assert known(found) == known(about)
    job.prepare(plain, tmp_path / "ids", 1, 0)
    found = job.prepare(
        dataclasses.replace(plain, vectors=("image",), like=str(tmp_path / "ids")), tmp_path / "of_ids", 1, 0
    ).about
    assert found["tokenizers"]["image"]["ids"] == 12


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (dict(vectors=("audio",)), "--vectors=audio: the first documents have no audio; leave it out"),
        (dict(action_points=1), "--action-points=1; must be 2 or more"),
        (dict(action_points=5000), "--action-points=5000; at most 4096; lower it"),
        (dict(vectors=("image",), image_side=9), "--image-side=9 is no multiple of --image-patch=2"),
    ],
)
def test_a_bad_recipe_gets_a_message(tmp_path, change, why):
    recipe = write_inputs(tmp_path / "in", 9)
    with pytest.raises(UserError, match=why):
        job.prepare(dataclasses.replace(recipe, **change), tmp_path / "out", 1, 0)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_documents_whose_vectors_do_not_fit_are_left_out(made, tmp_path):
    recipe = write(tmp_path / "in", 20)
    for name, array in {
        "2.latents": np.zeros((2, 6)),
        "3.latents": np.full((2, 5), np.nan),
        "4.path": np.zeros((3, 4)),
        "5.path": np.array([[0, np.inf]]),
        "6.path": np.pad(np.ones((40, 1)), ((0, 0), (2, 0))),
    }.items():
        np.save(tmp_path / "in" / f"{name}.npy", array)
    recipe = dataclasses.replace(recipe, like=str(made[1]))
    told = job.prepare(recipe, tmp_path / "out", 1, 5).about["left_out"]
    for why in (
        "latents of 6 features, where the first ones had 5",
        "latents hold NaN or infinity (in float32)",
        "an action float64 [3, 4]; numbers [n, 2] (x, y) or [n, 3] (and pen up) are allowed; give other columns as "
        "latents",
        "the action holds NaN or infinity (in float32)",
        "a drawing of 40 strokes; 16 points hold 8; take more (--action-points)",
    ):
        assert told.pop(why) == 1, told
    assert not told


def tree(folder, streams=None, **data):
    """A configuration of all streams that the dataset has."""
    c = base.get_config()

    def latent(m, **more):
        return base.stream(m, 32, 64, objective="flow", latent=WIDTHS[m], **more)

    about = json.loads((folder / "dataset.json").read_text())
    ids = about["tokenizers"]["text"]["ids"]
    c.streams = {"text": base.stream("text", 32, 64, ids=ids)} | {m: latent(m) for m in about["modalities"][1:]}
    for name, changes in (streams or {}).items():
        c.streams[name].update(changes)
    c.model.update(layers=2, heads=2, kv_heads=2, head_size=16)
    archs.choose(c, "mot")
    c.data.update(dict(batch=2, sources={"all": str(folder)}, shares={"all": 1.0}, length=1024) | data)
    return c


def test_documents_of_vectors_make_valid_batches(made):
    _, out, _ = made
    c = resolve(tree(out), sources.faults)
    training, held_out = sources.open_(c)
    units = dict(zip(c.streams, training.all[0].units.tolist(), strict=True))
    assert units == {"text": 1, "image": 16, "audio": 1, "action": 16, "latents": 1}
    c = budgets.resolve(c, training)
    packed = Batches(training, c, 0, 20)
    dataset, index = training.all[0].dataset, list(c.streams)
    for n in range(20):
        made_batch = packed[n].batch
        batches.check(made_batch)
        assert not packed[n].left_out
        for name, width in WIDTHS.items():
            tokens = made_batch[name]
            assert tokens.value.shape == (2, c.streams[name].budget, width)
            # Each unit's vectors are those of its record.
            for b in range(2):
                for unit in set(tokens.unit[b].tolist()) - {0}:
                    of = tokens.unit[b] == unit
                    record = dataset[int(tokens.doc_id[b][of][0])]
                    (span,) = [s for s in record.spans if s.modality == name]
                    np.testing.assert_array_equal(tokens.value[b][of], span.data.astype(np.float32))
    document = training.all[0].read(0)
    assert {index[s]: x.shape[1] for s, x in document.values.items()} == WIDTHS
    assert held_out.all[0].count == Dataset(out, "held_out").count > 0


@pytest.mark.parametrize(
    ("streams", "why"),
    [
        (
            {"image": dict(latent=0, ids=7, first_id=9000, objective="next_token")},
            "streams.image: it has 7 ids; image of all are vectors of 12 features; write latent=12, ids=0, first_id=0, "
            "objective='flow' (or x, ddpm, latent, none)",
        ),
        ({"action": dict(latent=4)}, "streams.action.latent: 4; action of all have 3 features; write 3"),
        ({"latents": dict(latent=4)}, "streams.latents.latent: 4; latents of all have 5 features; write 5"),
        ({"image": dict(max_tokens=9, budget=9)}, "streams.image.max_tokens: 9; image of all has 16 tokens; raise it"),
    ],
)
def test_streams_that_do_not_suit_vectors_are_told(made, streams, why):
    _, out, _ = made
    with pytest.raises(ConfigError) as caught:
        resolve(tree(out, streams), sources.faults)
    assert why in "\n".join(caught.value.faults)


def test_a_stream_of_vectors_does_not_take_ids(tmp_path):
    job.prepare(write_inputs(tmp_path / "in"), tmp_path / "ids", 1, 0)
    c = records_config.get_config(f"data={tmp_path / 'ids'},size=smoke,length=1024").unlock()
    c.streams.image.update(latent=12, ids=0, first_id=0, objective="flow")
    with pytest.raises(ConfigError) as caught:
        resolve(c, sources.faults)
    assert (
        "streams.image: its tokens are vectors of 12 features (latent); image of ids are 12 ids; write latent=0, "
        "ids=12, objective='next_token', or prepare it with --vectors=image"
    ) in "\n".join(caught.value.faults)


def test_datasets_whose_latents_differ_do_not_mix(made, tmp_path):
    _, out, _ = made
    recipe = write(tmp_path / "in", 9)
    for i in range(9):
        np.save(tmp_path / "in" / f"{i}.latents.npy", np.zeros((2, 6), np.float32))
    job.prepare(dataclasses.replace(recipe, like=str(out)), tmp_path / "six", 1, 0)
    c = tree(out, sources={"all": str(out), "six": str(tmp_path / "six")}, shares={"all": 1.0, "six": 1.0})
    with pytest.raises(ConfigError, match=r"its latents tokenizer is width-6, that of all is width-5"):
        resolve(c, sources.faults)


def test_a_damaged_tokenizer_of_vectors_is_named(made, tmp_path):
    _, out, _ = made
    for name in ("image.npz", "audio.npz", "action.npz"):
        copy = tmp_path / name.removesuffix(".npz")
        copy.mkdir()
        for path in (out / "tokenizers").iterdir():
            (copy / path.name).write_bytes(path.read_bytes() if path.name != name else b"junk")
        with pytest.raises(UserError, match=rf"{name}: .*; copy it again, or prepare the dataset anew"):
            dataset_tokenizers.load(copy)


def call(*arguments):
    return guarded(command.main, [str(a) for a in arguments])


def test_the_command_prepares_and_shows_strokes(tmp_path, capsys):
    file = npz_of_strokes(tmp_path / "pen_strokes.npz", 30)
    content = "--content=text:caption|action:xy + pen_up"
    options = ["--out", tmp_path / "pen", "--workers=1", "--held-out=0.2", "--action-as=offsets", "--action-points=32"]
    assert call("prepare", file, content, *options, "--preview") == 0
    told = capsys.readouterr().out
    assert "action: vectors of 3 features, 32 tokens each, tokenizer" in told
    assert Image.open(tmp_path / "pen" / "preview.png").width > 600
    assert call("inspect", tmp_path / "pen", "--document", 2, "--out", tmp_path / "two.png") == 0
    assert "  action      32 tokens  [" in capsys.readouterr().out


def test_the_sounds_of_documents_that_are_shown_are_heard(made, tmp_path, capsys):
    _, out, _ = made
    number = next(i for i in range(9) if any(m == "audio" for m, _ in Dataset(out, "train")[i].spans))
    place, data = next((i, x) for i, (m, x) in enumerate(Dataset(out, "train")[number].spans, 1) if m == "audio")
    assert call("inspect", out, "--document", number, "--out", tmp_path / "page.png") == 0
    file = tmp_path / f"page-{number}-{place}.wav"
    assert f"sound: {file}" in capsys.readouterr().out
    wave, rate = audio.sound(file)
    assert (rate, len(wave)) == (8000, len(data) * 160)
    assert {p.name for p in tmp_path.iterdir()} == {"page.png", file.name}


def test_a_batch_of_vectors_is_shown(made, tmp_path, capsys):
    _, out, _ = made
    file = tmp_path / "of_vectors.py"
    content = tree(out).to_json()
    file.write_text(
        f"import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config(arg=''):\n    return ConfigDict(json.loads({content!r})).lock()\n"
    )
    assert call("inspect", f"--config={file}", "--out", tmp_path / "batch.png") == 0
    told = capsys.readouterr().out
    assert "image, unit" in told
    assert "noised: vectors of 12 features, -1.00 to 1.00" in told
    assert Image.open(tmp_path / "batch.png").width > 600
