"""Between what people have (text, pictures, sound, pen strokes) and the tokens that a run was trained on."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from launch.arguments import EXAMPLE
from mot.config import Config
from mot.data import embedded, media, sources, tokenise
from mot.data.about import check_files, files, read_json
from mot.data.raw import KINDS, MAX_LINE, Part, Raw, filled, inside, short, text
from mot.data.tokenise import Tools
from mot.errors import UserError

WHOLE = SimpleNamespace(held_out=0.0, longest=2**62)  # a recipe that leaves a document as it is


class Codec(NamedTuple):
    """By modality: a part of a document to ids from 0, or float32 `[n, P]`; and back.

    What comes back is text, an image uint8 `[H, W, 3]`, an audio's spectrogram in dB `[bands, n]`, low bands first, an
    action's strokes, `[k, 2]` each, or latents as they are. `encode` raises `ValueError` with what is wrong.
    """

    modalities: tuple[str, ...]
    encode: Callable[[Part], np.ndarray]
    decode: Callable[[str, np.ndarray], Any]


def of(config: Config) -> Codec:
    """That of a run's data; raises `UserError` where tokenizers are not as they were."""
    if sources.is_embedded(config):
        return _digits(config)
    found: dict[str, Tools] = {}
    for address in config.data.sources.values():
        folder = sources.local(address)
        listed = [file for file in files(read_json(folder)) if file[0].startswith("tokenizers/")]
        check_files(folder, listed, digests=True)
        tools = tokenise.load(folder / "tokenizers")
        found = dict.fromkeys(tools.modalities, tools) | found
    one = lambda kind: getattr(found[kind], kind) if kind in found else None
    width = found["latents"].width if "latents" in found else 0
    return _records(Tools(tuple(found), found["text"].text, one("image"), one("audio"), one("action"), width))


def _records(tools: Tools) -> Codec:
    def encode(part: Part) -> np.ndarray:
        _, made = tokenise.records(Raw("", (part,)), tools, WHOLE)
        data = made[0][0].spans[0].data
        return data.astype(np.float32 if data.dtype.kind == "f" else np.int64)

    def decode(kind: str, data: np.ndarray):
        if kind == "text":
            return tools.text.decode(data.tolist())
        return data if kind == "latents" else getattr(tools, kind).decode(data)

    return Codec(tools.modalities, encode, decode)


def _digits(config: Config) -> Codec:
    tokenizer, vectors = embedded.load_tokenizer(), config.streams["image"].latent > 0
    tokenizer.encode_special_tokens = True  # text that spells a special token is text

    def encode(part: Part) -> np.ndarray:
        if part.kind == "text":
            return np.array(tokenizer.encode(part.content).ids, np.int64)
        levels = grey(media.image(part.content))
        return embedded.patches(levels) if vectors else levels

    def decode(kind: str, data: np.ndarray):
        return tokenizer.decode(data.tolist()) if kind == "text" else paper(levels_of(data))

    return Codec(("text", "image"), encode, decode)


def grey(picture: np.ndarray) -> np.ndarray:
    """Grey levels `[64]` of the square in the middle of a picture uint8 `[H, W, 3]`, ink on white paper."""
    height, width, _ = picture.shape
    square, side = min(height, width), embedded.SIDE
    left, top = (width - square) // 2, (height - square) // 2
    box = (left, top, left + square, top + square)
    small = np.asarray(Image.fromarray(picture).convert("L").resize((side, side), Image.Resampling.BOX, box))
    return np.rint((255 - small.astype(float)) * (embedded.LEVELS - 1) / 255).astype(int).reshape(-1)


def levels_of(data: np.ndarray) -> np.ndarray:
    """Grey levels `[64]` of a digit's ids or vectors."""
    return embedded.levels(data) if data.ndim == 2 else data


def paper(levels: np.ndarray) -> np.ndarray:
    """A digit's grey levels `[64]` as ink on white paper, uint8 `[8, 8, 3]`."""
    small = np.rint(255 - levels * 255 / (embedded.LEVELS - 1)).astype(np.uint8)
    return np.repeat(small.reshape(embedded.SIDE, embedded.SIDE, 1), 3, axis=2)


def read_document(file: Path) -> tuple[Part, ...]:
    """The parts of an interleaved document, a JSON list like EXAMPLE; media lie in its folder. Raises `UserError`."""
    try:
        media.check_file(file, MAX_LINE)
        content = json.loads(text(file.read_bytes(), "the file"))
        if not isinstance(content, list):
            raise ValueError(f"{short(content)}; a list of parts is needed, as {EXAMPLE}")
        folder = os.path.realpath(file.parent)
        return filled([_part(i, part, folder) for i, part in enumerate(content, 1)])
    except RecursionError:
        raise UserError(f"--prompt-file={file}: not JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise UserError(f"--prompt-file={file}: not JSON ({error}); write {EXAMPLE}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"--prompt-file={file}: {error}") from None


def _part(number: int, part, folder: str) -> Part:
    if not isinstance(part, dict) or len(part) != 1 or next(iter(part)) not in KINDS:
        raise ValueError(f"part {number} is {short(part)}; an object with one of the keys {', '.join(KINDS)} is needed")
    ((kind, value),) = part.items()
    if not isinstance(value, str):
        raise ValueError(f"part {number} is {short(part)}; its value must be text, or a file's name")
    try:
        return Part(kind, text(value) if kind == "text" else inside(folder, value))
    except ValueError as error:
        raise ValueError(f"part {number}: {error}") from None


def tokens(parts: Sequence[Part], codec: Codec) -> list[tuple[str, np.ndarray]]:
    """Modality and data of each part, without what is blank; raises `ValueError` that names the part."""
    found = []
    for number, part in enumerate(parts, 1):
        try:
            if part.kind not in codec.modalities:
                raise ValueError(f"this run has no {part.kind}; it has {', '.join(codec.modalities)}; leave it out")
            if part.kind != "text" or part.content.strip():
                found.append((part.kind, codec.encode(part)))
        except ValueError as error:
            raise ValueError(f"part {number}: {error}") from None
    return found
