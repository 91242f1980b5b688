"""A dataset of records that is written by hand, without `mot data prepare`."""

import json
from functools import cache

import numpy as np

from mot.data import manifest, records
from mot.data.records import Record, Span, atoms, lengths
from mot.prepare.dataset_tokenizers import CHOSEN
from mot.tokenizers import archive
from mot.tokenizers import audio as audios
from mot.tokenizers import text as texts
from mot.tokenizers.audio import AudioTokenizer
from mot.tokenizers.image import ImageTokenizer


def dataset(folder, documents=7):
    """A dataset written by hand, of text and, in every other document, an image of 4 tokens; returns its records."""
    image = Span("image", np.arange(4, dtype=np.uint16))
    made = [
        Record(f"d{i}", (Span("text", np.arange(i + 1, dtype=np.uint16)), *[image] * (i % 2))) for i in range(documents)
    ]
    modalities, splits = ("text", "image"), {}
    for split, some in zip(manifest.SPLITS, (made[:-1], made[-1:]), strict=True):
        (folder / split).mkdir(parents=True)
        halves = some[: len(some) // 2], some[len(some) // 2 :]
        shards = [records.write_shard(folder / split / f"shard-{n}.array_record", h) for n, h in enumerate(halves) if h]
        cut = [atoms(r, modalities, [np.zeros(0, int)] * len(r.spans)) for r in some]
        index = {
            "lengths.npy": np.array([lengths(a, 2) for a in cut], np.int32).reshape(-1, 2),
            "atoms.npy": np.concatenate([np.zeros((0, 2), np.int32), *cut]),
            "firsts.npy": np.cumsum([0, *map(len, cut)]),
        }
        splits[split] = {"documents": len(some), "tokens": {"text": 0, "image": 0}, "spans": {}, "index": []}
        splits[split] |= {
            "shards": [s._asdict() for s in shards],
            "index": [saved(folder / split, index)[n] for n in index],
        }
    special = {name: i for i, name in enumerate(manifest.special_tokens(modalities))}
    tokenizers_of(folder / "tokenizers", modalities)
    text = {"ids": 50, "digest": "d", "special": special, "files": []}
    text["files"] += saved(folder / "tokenizers", {manifest.BYTES: np.ones(50, np.int32)}).values()
    tokenizers = {"text": text, "image": {"ids": 4, "tokens": 4, "digest": "d", "files": []}}
    told = {"format": 1, "modalities": modalities, "tokenizers": tokenizers, "splits": splits, "left_out": {}}
    (folder / "dataset.json").write_text(json.dumps(told), encoding="utf-8")
    return made


@cache
def text_tokenizer():
    return texts.train(["So few words."], 300, manifest.special_tokens(["text", "image", "audio"])).to_str()


def tokenizers_of(folder, modalities):
    folder.mkdir()
    (folder / "text.json").write_text(text_tokenizer(), encoding="utf-8")
    if "image" in modalities:
        archive.save(
            ImageTokenizer(4, 2, np.repeat(np.arange(4, dtype=np.uint8)[:, None], 12, 1)), folder / "image.npz"
        )
    if "audio" in modalities:
        archive.save(AudioTokenizer(8000, 160, np.zeros((1, audios.BANDS), np.uint8)), folder / "audio.npz")
    (folder / CHOSEN).write_text(json.dumps({"modalities": modalities, "latents": 0}), encoding="utf-8")


def saved(folder, arrays):
    """What dataset.json says of these arrays, once written."""
    for name, array in arrays.items():
        np.save(folder / name, array)
    return {name: known(folder / name) for name in arrays}


def known(file):
    return {"file": file.name, "bytes": file.stat().st_size, "digest": manifest.file_digest(file)}
