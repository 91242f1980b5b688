"""Networks as datasets' tokenizers without torch: a fake one through the seam, and a folder that it is opened from."""

import hashlib
import json
from pathlib import Path

import numpy as np

from mot.tokenizers.networks import Network

RATE = 1000  # samples a second of the fake's sounds
HOP, CODES = 10, 4


def folder(path: Path, medium: str = "image", is_of_ids: bool = True, decodes: bool = True) -> str:
    """A folder of a fake network, as `opened` takes it."""
    path.mkdir()
    about = {"medium": medium, "is_of_ids": is_of_ids, "decodes": decodes}
    (path / "fake.json").write_text(json.dumps(about), encoding="utf-8")
    return str(path)


def opened(path: str | Path, side: int = 0, layers: int = 0) -> Network:
    """A picture's tokens are the brightness of its quarters, a sound's the levels of its frames, in each layer one
    more."""
    content = (Path(path) / "fake.json").read_bytes()
    about = json.loads(content)
    made = _pictures(side or 4, about) if about["medium"] == "image" else _sounds(layers or 2)
    digest = hashlib.sha256(content).hexdigest()
    return made._replace(digest=digest, decode=made.decode if about["decodes"] else None)


def _pictures(side: int, about: dict) -> Network:
    half = side // 2

    def encode(pictures):
        assert {x.shape for x in pictures} == {(side, side, 3)}
        means = [x.reshape(2, half, 2, half, 3).mean((1, 3, 4)).reshape(-1) for x in pictures]
        if about["is_of_ids"]:
            return [(x // 64).astype(np.int32) for x in means]
        return [np.stack([x / 255, 1 - x / 255], 1).astype(np.float32) for x in means]

    def decode(data):
        grey = np.asarray(data) * 64 if about["is_of_ids"] else np.asarray(data)[:, 0] * 255
        levels = np.rint(grey).astype(np.uint8).reshape(2, 2).repeat(half, 0).repeat(half, 1)
        return np.repeat(levels[..., None], 3, 2)

    size = 4 if about["is_of_ids"] else 2
    return Network("image", "", size, about["is_of_ids"], (2, 2), 1, 0, encode, decode, side)


def _sounds(layers: int) -> Network:
    def encode(sounds):
        frames = [np.abs(x[: len(x) // HOP * HOP].reshape(-1, HOP)).max(1) for x in sounds]
        ids = [np.minimum(x * CODES, CODES - 1).astype(np.int32) for x in frames]
        return [np.concatenate([(x + layer) % CODES + layer * CODES for layer in range(layers)]) for x in ids]

    def decode(ids):
        first = np.asarray(ids)[: len(ids) // layers]
        return (first / CODES).repeat(HOP).astype(np.float32)

    return Network("audio", "", layers * CODES, True, (), layers, RATE, encode, decode)
