"""Small datasets of text and pictures, from files that are written here."""

import dataclasses
import json

import numpy as np
from PIL import Image

from mot.prepare.job import Recipe

SMALL = Recipe(
    inputs=(),
    format="jsonl",
    content=(),
    separator="",
    like="",
    tokenizer="",
    text_ids=300,
    image_side=8,
    image_patch=2,
    image_aspect="square",
    image_render=0,
    ids=(),
    image_ids=12,
    image_tokens="",
    image_latents="",
    audio_rate=8000,
    audio_ids=8,
    audio_layers=1,
    audio_order="layers",
    audio_tokens="",
    video_frames=4,
    video_side=32,
    video_patch=8,
    video_ids=None,
    video_order="ordered",
    held_out=0.2,
    missing="drop-document",
    max_tokens=256,
    vectors=(),
    also=(),
    action_points=16,
    action_as="positions",
    fast_points=0,
    fast_scale=10,
    fast_ids=None,
    sample=1000,
    shard=8,
    join=(),
    join_documents=0,
    join_seed=0,
    markers=(),
)


def write_inputs(folder, documents=40, bad=()):
    """Interleaved documents of text and pictures; those that are `bad` have no picture where they say."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(documents):
        Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).save(folder / f"{i}.png")
        text = " ".join(f"Picture number {i}, said {word} times. It goes on." for word in range(rng.integers(1, 20)))
        image = "nowhere.png" if i in bad else f"{i}.png"
        content = [{"text": text}, {"image": image}, {"text": "And so it ends <eos>."}][: 1 + i % 3]
        lines.append(json.dumps({"id": f"doc{i}", "content": content}))
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return dataclasses.replace(SMALL, inputs=(str(folder / "all.jsonl"),))


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "recipe.json"
    }


OF_ANY_SIZE = [(8, 4), (2, 8), (4, 4), (6, 2), (3, 7), (20, 10)]  # height, width


def of_any_size(folder, documents=36):
    """The recipe of captioned pictures of any size, which are written into a new folder."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(documents):
        Image.fromarray(rng.integers(0, 256, (*OF_ANY_SIZE[i % 6], 3), np.uint8)).save(folder / f"{i}.png")
        lines.append(json.dumps({"id": f"{i}", "content": [{"text": f"Picture {i} is"}, {"image": f"{i}.png"}]}))
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return dataclasses.replace(SMALL, inputs=(str(folder / "all.jsonl"),), image_aspect="native")
