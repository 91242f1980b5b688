"""MIO in small: what its stages take, that any modality is asked for from any other, and two steps."""

import json

import numpy as np
import pytest

from mot.config.options import EVALUATIONS
from mot.data import budgets as row_budgets
from mot.data import layout, pipeline, sources
from mot.measures import conditioning
from tests.support import commands, recipes
from tests.support.recipes import prepared

WORDS = ("zero", "one", "two")
PAIRED = {
    "text/image",
    "image/text",
    "text/audio",
    "audio/text",
    "image/audio",
    "audio/image",
    "text/video",
    "video/text",
}


def write_sets(folder):
    """Pictures and sounds of three digits, films with captions, and a text."""
    rng = np.random.default_rng(0)
    names = dict(label_names=np.array(WORDS))
    labels, split = np.arange(24) % 3, np.arange(24) // 12
    images = rng.integers(0, 256, (24, 10, 10), np.uint8)
    np.savez(folder / "drawn.npz", images=images, labels=labels, split=split, **names)
    audio = (rng.normal(size=24 * 800) * 3000).astype(np.int16)
    offsets = 800 * np.arange(25)
    np.savez(folder / "spoken.npz", audio=audio, offsets=offsets, labels=labels, split=split, sample_rate=8000, **names)
    np.savez(folder / "films.npz", bits=rng.integers(0, 256, (24, 4, 8, 1), np.uint8))
    lines = [json.dumps({"caption": f"{WORDS[i % 3]} strokes", "split": int(split[i])}) for i in range(24)]
    (folder / "films.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "book.txt").write_text("\n\n".join(f"A line of {word}." for word in WORDS * 9), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The six datasets, as the recipe's commands make them, of small files."""
    given, out = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp("mio")
    write_sets(given)
    drawn, spoken = given / "drawn.npz", given / "spoken.npz"
    small = dict(image_side=6, image_patch=3, image_ids=8, audio_layers=2, audio_ids=4)
    small |= dict(video_frames=2, video_side=8, video_patch=4, video_ids=8)
    markers = ("image", "audio", "video")
    prepared(out / "books", given / "book.txt", format="text", separator="\n\n", markers=markers)
    both = dict(join=("labels",), like=str(out / "books"), **small)
    content = ("image:images|audio:2.audio", "audio:2.audio|text:{labels}|image:images", "audio:2.audio|image:images")
    prepared(out / "interleaved", drawn, spoken, content=content, **both)
    like = dict(like=str(out / "interleaved"))
    prepared(out / "pictures", drawn, content=("text:{labels}|image:images", "image:images|text:{labels}"), **like)
    prepared(out / "speech", spoken, content=("text:{labels}|audio:audio", "audio:audio|text:{labels}"), **like)
    films = ("text:caption|video:bits", "video:bits|text:caption")
    prepared(out / "films", given / "films.npz", content=films, like=str(out / "books"), **small)
    thoughts = ("audio:2.audio|image:images|text:{labels}",)
    prepared(out / "thoughts", drawn, spoken, content=thoughts, join=("labels",), join_seed=1, **like)
    return out


def test_two_steps_as_a_command_and_what_each_direction_is_worth(data, tmp_path):
    run = recipes.as_command("mio", tmp_path, f"data={data}")
    assert "conditioning" in EVALUATIONS
    commands.succeeds("evaluate", run, "--what=conditioning", "--documents=4", f"--out={tmp_path / 'found.json'}")
    figures = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["conditioning"]["figures"]
    assert {name.rsplit("/", 2)[0] for name in figures} == PAIRED | {"audio+text/image", "audio+image/text"}


def test_stages_are_mixtures_and_chains_of_visual_thought_come_last(data, tmp_path):
    c = recipes.config("mio", tmp_path, f"data={data}", run__steps=5)
    training, held_out = sources.open_(c)
    c = row_budgets.resolve(c, training)
    batches = pipeline.Batches(training, c, 0, 5)
    names = [source.name for source in training.all]

    def seen(n):
        of_row = {(int(s), int(source)) for t in batches[n].batch.values() for s, source in zip(
            t.segment.ravel(), t.source.ravel(), strict=True) if s}  # fmt: skip
        return {names[source] for _, source in of_row}

    assert seen(0) == {"books", "pictures", "speech", "films"}
    assert "interleaved" in seen(1) | seen(2)
    assert "thoughts" not in seen(0) | seen(1) | seen(2)
    assert "thoughts" in seen(3) | seen(4)
    format = layout.of(c)
    thoughts = next(source for source in held_out.all if source.name == "thoughts")
    assert list(conditioning.by_direction(thoughts, 4, c, format)) == [(("audio", "image"), ("text",))]
