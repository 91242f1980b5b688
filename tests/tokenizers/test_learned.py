"""Learned tokenizers: quantisers against what is slow and plain, small trainings, folders, and what is refused."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from launch import tokenizer
from mot.config.tokenizer import Settings, faults
from mot.errors import UserError
from mot.files import digest_of
from mot.prepare import readers
from mot.tokenizers import audio, image
from mot.tokenizers.learned import folder, open_, quantisers, training
from mot.tokenizers.learned.nets import begun
from tests.support.media import clips, encoded

SMALL = dict(width=8, blocks=1, steps=8, batch=8, side=16)
KINDS = {
    "fsq": Settings("fsq", levels=(4, 3), **SMALL),
    "vq": Settings("vq", ids=8, **SMALL),
    "kl": Settings("kl", features=3, **SMALL),
    "rvq": Settings("rvq", ids=8, layers=3, rate=8000, **SMALL | {"side": 32}),
}


def pictures(n=24):
    """Squares of one colour on others."""
    rng = np.random.default_rng(0)
    return list(np.kron(rng.integers(0, 256, (n, 4, 4, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8))


@cache
def sounds():
    return [wave[: len(wave) - 500 * i] for i, (wave, _) in enumerate(clips(8000))]


@cache
def examples(kind):
    settings = KINDS[kind]
    if settings.medium == "audio":
        return training.windows([training.frames(x, settings.rate, settings) for x in sounds()])
    return training.pictures([image.patches(x, settings.side, settings.patch) for x in pictures()], settings)


@cache
def fitted(kind):
    """What a small training gives, and the qualities that it told."""
    told = []
    found = training.fit(KINDS[kind], examples(kind), examples(kind), lambda step, quality: told.append(quality))
    return found, [quality for quality in told if quality]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The network of a kind, opened from a folder; each is written once."""
    root = tmp_path_factory.mktemp("tokenizers")

    @cache
    def of(kind):
        found, _ = fitted(kind)
        return root / kind, folder.save(root / kind, KINDS[kind], found, {}, lambda network: b"")

    return of


# --- finite scalars --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (4,)])
def test_every_id_is_a_code_of_its_own_and_comes_back(levels):
    scalars = quantisers.Scalars(levels)
    ids = np.arange(np.prod(levels))[:, None]
    codes = np.asarray(scalars.decode(jnp.asarray(ids)))
    assert len(np.unique(codes, axis=0)) == scalars.ids == len(ids)
    assert np.abs(codes).max() == 1
    # The features that are bounded to these codes exactly, by the inverse of the tanh.
    reach = np.array(levels) / 2 - quantisers.SHORT
    shift = np.where(np.array(levels) % 2, 0, 0.5)
    z = np.arctanh((codes * (np.array(levels) // 2) + shift) / reach) - np.arctanh(shift / reach)
    np.testing.assert_array_equal(scalars.encode(jnp.asarray(z)), ids)
    np.testing.assert_allclose(scalars.train(jnp.asarray(z), None)[0], codes, atol=1e-6)


def test_any_feature_has_a_level():
    scalars = quantisers.Scalars((8, 5))
    z = jnp.asarray(np.random.default_rng(0).normal(0, 30, (500, 2)))
    ids = np.asarray(scalars.encode(z))
    assert 0 <= ids.min() < ids.max() < 40
    np.testing.assert_array_equal(scalars.encode(jnp.zeros((1, 2))), [[4 + 8 * 2]])  # the middle of both


def test_gradients_pass_the_rounding_straight_through():
    scalars = quantisers.Scalars((8, 5))
    z = jnp.asarray(np.random.default_rng(0).normal(0, 1, (20, 2)), jnp.float32)
    weight = jnp.asarray(np.random.default_rng(1).normal(0, 1, (20, 2)), jnp.float32)
    got = jax.grad(lambda z: (scalars.train(z, None)[0] * weight).sum())(z)
    wanted = jax.grad(lambda z: (scalars.bounded(z) / jnp.array([[4.0, 2.0]]) * weight).sum())(z)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert np.abs(got).min() > 0


# --- codebooks -------------------------------------------------------------------------------------------------------


def random_codebooks(layers=2, ids=5, width=3):
    return quantisers.Codebooks(np.random.default_rng(0).normal(0, 1, (layers, ids, width)).astype(np.float32))


def test_codes_move_as_the_slow_average_does():
    """Two layers, row by row; rows with weight 0 count for nothing, and dead codes become rows of the batch."""
    books = random_codebooks()
    z = np.random.default_rng(1).normal(0, 1, (4, 6, 3)).astype(np.float32)
    mask = np.ones((4, 6, 1), np.float32)
    mask[3, 2:] = 0
    books.counts_LK[...] = books.counts_LK[...].at[1, 4].set(0)  # dead, unless it is chosen
    codes, counts, sums = (np.array(x[...], np.float64) for x in (books.codes_LKP, books.counts_LK, books.sums_LKP))
    books.learn(jnp.asarray(z), books.encode(jnp.asarray(z)), jnp.asarray(mask), jax.random.key(0))
    left = [row.astype(np.float64) for row in z.reshape(-1, 3)]
    real = mask.reshape(-1) > 0
    for layer in range(2):
        chosen = [int(((codes[layer] - row) ** 2).sum(1).argmin()) for row in left]
        for k in range(5):
            rows = [row for row, c, there in zip(left, chosen, real, strict=True) if c == k and there]
            count = 0.99 * counts[layer, k] + 0.01 * len(rows)
            total = 0.99 * sums[layer, k] + 0.01 * np.sum(rows, axis=0) if rows else 0.99 * sums[layer, k]
            got = np.asarray(books.codes_LKP[layer, k])
            if count < quantisers.DEAD * real.sum() / 5:
                assert (layer, k) == (1, 4)
                assert min(np.abs(got - row).max() for row, there in zip(left, real, strict=True) if there) < 1e-5
            else:
                np.testing.assert_allclose(got, total / count, rtol=1e-4, atol=1e-5)
        left = [row - codes[layer, c] for row, c in zip(left, chosen, strict=True)]
    assert float(books.counts_LK[1, 4]) == pytest.approx(real.sum() / 5)


def test_codebooks_pass_gradients_and_draw_the_encoder_to_its_codes():
    books = random_codebooks()
    z = jnp.asarray(np.random.default_rng(1).normal(0, 1, (7, 3)), jnp.float32)
    seen, loss, ids = books.train(z, None)
    np.testing.assert_array_equal(ids, books.encode(z))
    np.testing.assert_allclose(seen, books.decode(ids), atol=1e-6)
    assert float(loss) == pytest.approx(0.25 * float(jnp.square(z - seen).mean()))
    np.testing.assert_allclose(jax.grad(lambda z: books.train(z, None)[0].sum())(z), 1)


def test_each_layer_of_codebooks_leaves_less():
    settings = KINDS["rvq"]
    given = examples("rvq")
    codes = training.beginnings(settings, given)
    assert codes.shape == (3, 8, audio.BANDS)
    books = quantisers.Codebooks(codes)
    x = jnp.asarray(given.bytes[given.mask[..., 0] > 0] / 127.5 - 1, jnp.float32)
    ids = books.encode(x)
    left = [float(jnp.square(x - books.decode(ids.at[:, n:].set(-1))).mean()) for n in range(1, 4)]
    assert left[0] > 1.2 * left[1] > 1.2 * 1.2 * left[2]


# --- training --------------------------------------------------------------------------------------------------------


def test_pictures_vary_by_a_mirror_and_a_move():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (6, 32, 32, 3)).astype(np.float32)

    def apart(x):
        return x.reshape(len(x), 8, 4, 8, 4, 3).swapaxes(2, 3).reshape(len(x), 8, 8, 48)

    for key in range(3):
        varied = np.asarray(training.varied(jnp.asarray(apart(x)), 4, jax.random.key(key)))
        wide = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), "edge")
        mirrored = np.pad(x[:, :, ::-1], ((0, 0), (2, 2), (2, 2), (0, 0)), "edge")
        moves = [
            [
                np.array_equal(varied[i : i + 1], apart(of[i : i + 1, down : down + 32, right : right + 32]))
                for of in (wide, mirrored)
                for down in range(5)
                for right in range(5)
            ]
            for i in range(6)
        ]
        assert all(sum(of_picture) == 1 for of_picture in moves)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_network_is_opened_as_it_was(kind, opened):
    settings = KINDS[kind]
    path, network = opened(kind)
    again = open_(path)
    units = sounds() if kind == "rvq" else pictures()
    tokens = network.encode(units)
    for i in (0, len(units) - 1):  # alone, and by another reading of the file: the same to the bit
        np.testing.assert_array_equal(again.encode(units[i : i + 1])[0], tokens[i])
    assert network.digest == again.digest
    assert network.medium == settings.medium
    size = {"fsq": 12, "vq": 8, "kl": 3, "rvq": 24}[kind]
    assert (network.size, network.is_of_ids, network.layers) == (size, kind != "kl", 3 if kind == "rvq" else 1)
    back = network.decode(tokens[0])
    if kind == "rvq":
        count = -(-len(units[0]) // 160)
        assert (tokens[0].shape, network.rate, network.shape, network.side) == ((3 * count,), 8000, (), 0)
        np.testing.assert_array_equal(tokens[0].reshape(3, -1) // 8, np.arange(3)[:, None].repeat(count, 1))
        assert (back.shape, back.dtype) == ((160 * count,), np.float32)
        assert 0.1 < np.abs(back).max() <= 1
    else:
        assert (network.shape, network.rate, network.side) == ((4, 4), 0, 16)
        assert tokens[0].shape == ((16, 3) if kind == "kl" else (16,))
        assert (back.shape, back.dtype) == ((16, 16, 3), np.uint8)
        error = np.mean([(network.decode(t).astype(float) - x) ** 2 for t, x in zip(tokens, units, strict=True)])
        assert 10 * np.log10(255**2 / error) == pytest.approx(fitted(kind)[0].held_out.decibels, abs=0.01)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others():
    made, _ = fitted("fsq")
    again = training.fit(KINDS["fsq"], examples("fsq"), examples("fsq"), lambda *_: None)
    assert made.arrays.keys() == again.arrays.keys()
    assert all(made.arrays[name].tobytes() == again.arrays[name].tobytes() for name in made.arrays)
    assert (made.held_out, made.step) == (again.held_out, again.step)
    first, other = (training.arrays_of(begun(KINDS["fsq"]._replace(seed=seed))[1]) for seed in (0, 1))
    assert any(first[name].tobytes() != other[name].tobytes() for name in first)


@pytest.mark.parametrize("kind", ["vq", "rvq"])
def test_codebooks_begin_as_k_means(kind):
    """So a tokenizer that is trained for no time at all loses as much as k-means."""
    settings, given = KINDS[kind], examples(kind)
    graph, state = begun(settings, training.beginnings(settings, given))
    found = training.quality(training.coding.coder(graph), (state,), given, settings)
    if kind == "vq":
        k_means = image.fit_image(pictures(), settings.side, settings.patch, settings.ids)
        error = np.mean([(k_means.decode(k_means.encode(x)).astype(float) - x) ** 2 for x in pictures()])
        assert found.decibels == pytest.approx(10 * np.log10(255**2 / error), abs=0.05)
    else:
        codes = sounds()
        k_means = audio.fit_audio([(x, 8000) for x in codes], 8000, ids=8, layers=3)
        levels = [(k_means.decode(k_means.encode(x, 8000)).T / audio.RANGE + 1) * 255 for x in codes]
        rows = [training.frames(x, 8000, settings) for x in codes]
        error = np.square(np.concatenate(levels) - np.concatenate(rows)).mean()
        assert found.decibels == pytest.approx(audio.RANGE / 255 * np.sqrt(error), abs=0.05)


def test_the_best_weights_are_kept_and_training_ends_where_nothing_is_gained(monkeypatch):
    """A rate of almost 0 gains nothing: patience ends it, and what is kept is the first of equals."""
    settings = KINDS["vq"]._replace(steps=200, lr=1e-6, patience=2)
    monkeypatch.setattr(training, "GAIN", 1.0)
    told = []
    found = training.fit(settings, examples("vq"), examples("vq"), lambda step, quality: told.append((step, quality)))
    measured = [(step, quality.decibels) for step, quality in told if quality]
    assert found.steps == measured[-1][0] == 30
    assert found.held_out.decibels == max(decibels for _, decibels in measured)


def test_a_training_that_diverges_says_so():
    diverging = KINDS["kl"]._replace(lr=float("inf"), steps=2)
    with pytest.raises(UserError, match="--lr=inf: training diverged before step 1; lower it"):
        training.fit(diverging, examples("kl"), examples("kl"), lambda *_: None)


def test_what_lies_beyond_the_end_of_a_sound_changes_nothing():
    settings = KINDS["rvq"]
    graph, state = begun(settings, training.beginnings(settings, examples("rvq")))
    encode, decode = training.coding.coder(graph)
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (1, 20, audio.BANDS)).astype(np.uint8)
    filled = np.concatenate([clip, rng.integers(0, 256, (1, 12, audio.BANDS)).astype(np.uint8)], axis=1)
    mask = np.ones((1, 20, 1), np.float32)
    mask_filled = np.pad(mask, ((0, 0), (0, 12), (0, 0)))
    ids = np.asarray(encode((state,), clip, mask))
    ids_filled = np.asarray(encode((state,), filled, mask_filled))
    np.testing.assert_array_equal(ids, ids_filled[:, :20])
    back = decode((state,), ids, mask)
    np.testing.assert_allclose(back, decode((state,), ids_filled, mask_filled)[:, :20], atol=1e-3)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_tokens_that_are_none_are_refused(opened):
    _, network = opened("fsq")
    with pytest.raises(ValueError, match="id 12 has no code; ids are from 0 to 11"):
        network.decode(np.full(16, 12))
    with pytest.raises(ValueError, match="15 ids are no picture: it has 16"):
        network.decode(np.zeros(15, int))
    with pytest.raises(ValueError, match="whole numbers"):
        network.decode(np.zeros(16))
    _, network = opened("kl")
    with pytest.raises(ValueError, match="no picture: finite"):
        network.decode(np.full((16, 3), np.nan))
    _, network = opened("rvq")
    with pytest.raises(ValueError, match="none of the first layer, 0 to 7"):
        network.decode(np.full(4, 9))
    assert network.decode(np.array([3, 3, 9])).shape == (320,)  # what further layers lack adds nothing


def resealed(about, **changes):
    """What a folder says of itself, with changes, and a digest that fits."""
    changed = json.loads(about) | changes
    return json.dumps(changed | {"digest": digest_of(changed)}).encode()


def test_a_damaged_folder_is_refused(opened, tmp_path):
    path, _ = opened("fsq")
    about = (path / folder.ABOUT).read_text(encoding="utf-8")
    weights = (path / folder.WEIGHTS).read_bytes()
    changed = json.dumps(json.loads(about) | {"medium": "audio"})
    for name, content, says in [
        (folder.ABOUT, about.encode()[:-9], "damaged or foreign"),
        (folder.ABOUT, changed.encode(), "is not as 'mot learned tokenizer 1' was written"),
        (folder.ABOUT, b"[]", "damaged or foreign"),
        (folder.ABOUT, b"[" * 100_000, "damaged or foreign"),
        (folder.ABOUT, b" " * 2**21, "it has more than 1048576 bytes"),
        (folder.ABOUT, resealed(about, settings=[]), "is not as 'mot learned tokenizer 1' was written"),
        (folder.ABOUT, resealed(about, weights=None), "is not as 'mot learned tokenizer 1' was written"),
        (folder.ABOUT, resealed(about, settings={"kind": "fsq", "width": 10**9}), "--width=1000000000; must be from 8"),
        (folder.WEIGHTS, weights[:-1], "its digest is another one"),
        (folder.WEIGHTS, None, "No such file"),
        (folder.ABOUT, None, "name a folder that `mot tokenizer train` has written"),
    ]:
        (tmp_path / folder.ABOUT).write_text(about, encoding="utf-8")
        (tmp_path / folder.WEIGHTS).write_bytes(weights)
        open_(tmp_path)
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            open_(tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings("fsq", patch=5), "--patch=5: must divide --side=32; choose one of 1, 2, 4, 8, 16, 32"),
        (Settings("fsq", side=0), "--side=0; must be from 2"),
        (Settings("fsq", levels=(8, 1)), "--levels=8,1: each must be from 2 to 256"),
        (Settings("kl", features=0), "--features=0; must be from 1 to 512"),
        (Settings("rvq", rate=10), "--rate=10; must be from"),
        (Settings("rvq", hop=10), "--hop=10; must be from 80 to 1600 samples"),
    ],
)
def test_settings_that_cannot_be_are_told(settings, says):
    assert [fault for fault in faults(settings) if says in fault]


def run(*words):
    return tokenizer.main(["train", *map(str, words)])


QUICK = ("--kind=fsq", "--side=16", "--width=8", "--blocks=0", "--steps=2", "--levels=4,3")


def written(root, n):
    root.mkdir()
    for i, picture in enumerate(pictures(n)):
        (root / f"{i}.png").write_bytes(encoded(picture, "PNG"))
    return root


def test_the_command_writes_a_folder_whole(tmp_path, capsys):
    root = written(tmp_path / "pictures", 12)
    assert run(root, *QUICK, "--out", tmp_path / "made") == 0
    assert sorted(x.name for x in (tmp_path / "made").iterdir()) == sorted(
        [folder.ABOUT, folder.PICTURE, folder.WEIGHTS]
    )
    assert sorted(x.name for x in tmp_path.iterdir()) == ["made", "pictures"]
    about = json.loads((tmp_path / "made" / folder.ABOUT).read_text(encoding="utf-8"))
    figures = about["figures"]
    assert figures["train"] + figures["held_out"] == 12
    assert 1 <= figures["held_out"] <= 3
    shown = np.asarray(Image.open(tmp_path / "made" / folder.PICTURE))
    assert shown.shape == (2 * 68, 68 * figures["held_out"], 3)
    network = open_(tmp_path / "made")
    originals = [shown[2:64:4, 68 * i + 2 : 68 * i + 64 : 4] for i in range(figures["held_out"])]
    assert all(any(np.array_equal(x, y) for y in pictures(12)) for x in originals)
    below = shown[68 + 2 : 68 + 64 : 4, 2:64:4]
    np.testing.assert_array_equal(below, network.decode(network.encode(originals[:1])[0]))
    assert f"held out: PSNR {figures['psnr']:.2f} dB" in capsys.readouterr().out


def test_a_folder_is_read_as_a_dataset_reads_it_where_it_has_captions(tmp_path):
    alone = written(tmp_path / "alone", 2)
    captioned = written(tmp_path / "captioned", 2)
    for file in list(captioned.iterdir()):
        file.with_suffix(".txt").write_text("a caption", encoding="utf-8")
    for folder_, templates, kinds in ((alone, ["image:image"], ["image"]), (captioned, [], ["text", "image"])):
        assert tokenizer._usual([folder_], "folder", "image") == templates
        assert [part.kind for part in next(readers.read([folder_], "folder", templates)).parts] == kinds


def test_inputs_that_do_not_serve_are_told_and_nothing_is_written(tmp_path):
    alone = written(tmp_path / "alone", 1)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text\n", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    for path, says in [
        (alone, "1 image to train on and 0 held out among its first"),
        (tmp_path / "texts", "0 image to train on and 0 held out"),
    ]:
        with pytest.raises(UserError, match=says):
            run(path, *QUICK, "--out", tmp_path / "made")
    with pytest.raises(UserError, match="exists; nothing was overwritten"):
        run(alone, *QUICK, "--out", alone)
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(4):
        (flat / f"{i}.png").write_bytes(encoded(np.full((16, 16, 3), i, np.uint8), "PNG"))
    with pytest.raises(UserError, match=r"--ids=8: .*only .* different"):
        run(flat, "--kind=vq", "--ids=8", "--side=16", "--steps=2", "--out", tmp_path / "made")
    assert not (tmp_path / "made").exists()
    assert set(before) <= {*tmp_path.rglob("*")}
    assert not list(tmp_path.glob(".*"))
