"""Between what people have (text, pictures, sound, pen strokes) and the tokens that a run was trained on."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mot.config import Config, modalities
from mot.config.modalities import TEXT
from mot.config.options import EXAMPLE
from mot.console import say_once
from mot.data import embedded, sources
from mot.data.manifest import check_files, files, read_json
from mot.errors import UserError
from mot.prepare import dataset_tokenizers, media
from mot.prepare.codecs import files as files_of
from mot.prepare.codecs import image
from mot.prepare.dataset_tokenizers import Tokenizers
from mot.prepare.encode import encoded, opened, tokenised
from mot.prepare.inputs import inside, short
from mot.prepare.raw import MAX_LINE, Part, filled, ids_part, kind_and_value, parsed, representations, text
from mot.prepare.templates import READY, modality_of
from mot.tokenizers.given import GivenIds
from mot.tokenizers.networked import Networked, has_no_way_back


class Codec(NamedTuple):
    """By modality: a part of a document to ids from 0, or float32 `[n, P]`; and back.

    What comes back is text, or what the tokenizer's `decode` gives: ids of one's own as they are. `encode` raises
    `ValueError` with what is wrong.
    """

    modalities: tuple[str, ...]
    encode: Callable[[Part], np.ndarray]
    decode: Callable[[str, np.ndarray], Any]
    tokenizers: Mapping[str, Any]  # with which `mot.prepare.codecs` shows and gives back; None where it needs none
    forms: Callable[[Part], list[tuple[str, np.ndarray]]]  # of a part: each representation that it has
    others: Callable[[str, np.ndarray, Sequence[str]], dict[str, np.ndarray]]  # that can be made of one's data

    def is_given(self, modality: str) -> bool:
        """Do its ids come from a tokenizer of the user's own?"""
        return isinstance(self.tokenizers.get(modality), GivenIds)


def of(config: Config) -> Codec:
    """That of a run's data; raises `UserError` where tokenizers are not as they were."""
    if sources.is_embedded(config):
        return _digits(config)
    media, further, abouts = {}, {}, []
    for address in config.data.sources.values():
        folder = sources.local(address)
        abouts.append(read_json(folder))
        listed = [file for file in files(abouts[-1]) if file[0].startswith("tokenizers/")]
        check_files(folder, listed, digests=True)
        tokenizers = dataset_tokenizers.load(folder / "tokenizers")
        media, further = tokenizers.media | media, tokenizers.further | further
    for modality, tokens in sources.unit_lengths(abouts).items():
        if isinstance(tokenizer := media.get(modality), GivenIds):
            media[modality] = GivenIds(tokenizer.ids, tokens)
    return _records(Tokenizers(tokenizers.text, media, further))


def open_networks(codec: Codec) -> None:
    """Raises `UserError` where a network that makes a modality's tokens is missing, or is not what it was.

    Else this would be told when something has been drawn. Who decodes nothing needs none of them.
    """
    for tokenizer in codec.tokenizers.values():
        if isinstance(tokenizer, Networked):
            tokenizer.open()


def _records(tokenizers: Tokenizers) -> Codec:
    def forms(part: Part) -> list[tuple[str, np.ndarray]]:
        spans = tokenised(part.kind, opened(part), tokenizers)
        return [(s.modality, s.data.astype(np.float32 if s.data.dtype.kind == "f" else np.int64)) for s in spans]

    def others(kind: str, data: np.ndarray, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        alike = [name for name in wanted if modalities.row_of(name) == modalities.row_of(kind)]
        if not alike or has_no_way_back(tokenizers.media[kind]):
            return {}
        # As its file would be read: a sound's tokens give a spectrogram, of which no tokenizer makes others.
        found = files_of(kind, tokenizers.media[kind], tokenizers.decode(kind, data), seed=0)
        row = modalities.row_of(kind)
        content = opened(Part(row, next(iter(found.values()))))
        return {name: encoded(tokenizers.media[name], content) for name in alike}

    def encode(part: Part) -> np.ndarray:
        return forms(part)[0][1]

    def decode(modality: str, data: np.ndarray) -> Any:
        if has_no_way_back(tokenizers.media.get(modality)):
            folder = tokenizers.media[modality].known.folder
            say_once(f"{modality}: {folder} has no way back from what it makes; what is drawn is kept as a .npy file")
        return tokenizers.decode(modality, data)

    named = {TEXT: tokenizers.text} | tokenizers.media
    return Codec(tokenizers.modalities, encode, decode, named, forms, others)


def _digits(config: Config) -> Codec:
    tokenizer = embedded.load_tokenizer()
    is_of_vectors = {s.holds: s.latent > 0 for s in config.streams.values() if s.modality != TEXT}
    tokenizer.encode_special_tokens = True  # text that spells a special token is text

    def encode(part: Part) -> np.ndarray:
        if part.kind == TEXT:
            return np.array(tokenizer.encode(part.content).ids, np.int64)
        return forms(part)[0][1]

    def form(kind: str, levels: np.ndarray) -> np.ndarray:
        return embedded.patches(levels) if is_of_vectors[kind] else levels

    def forms(part: Part) -> list[tuple[str, np.ndarray]]:
        if part.kind == TEXT:
            return [(TEXT, encode(part))]
        levels = grey(image.pixels(part.content))
        return [(kind, form(kind, levels)) for kind in is_of_vectors]

    def others(kind: str, data: np.ndarray, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: form(name, levels_of(data)) for name in wanted}

    def decode(kind: str, data: np.ndarray):
        return tokenizer.decode(data.tolist()) if kind == TEXT else paper(levels_of(data))

    return Codec((TEXT, "image"), encode, decode, {}, forms, others)


def grey(picture: np.ndarray) -> np.ndarray:
    """Grey levels `[64]` of the square in the middle of a picture uint8 `[H, W, 3]`, ink on white paper."""
    height, width, _ = picture.shape
    square = min(height, width)
    side = embedded.SIDE
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
        content = _parsed(text(file.read_bytes(), "the file").removeprefix("\ufeff"))  # a byte order mark
        if not isinstance(content, list):
            raise ValueError(f"{short(content)}; a list of parts is needed, as {EXAMPLE}")
        folder = os.path.realpath(file.parent)
        if not content:
            raise ValueError(f"an empty document, []; write its parts, as {EXAMPLE}, or use --prompt")
        return filled([part(i, one, folder) for i, all_ in enumerate(content, 1) for one in representations(all_)])
    except ValueError as error:
        raise UserError(f"--prompt-file={file}: {error}") from None
    except OSError as error:
        raise UserError(f"--prompt-file={file}: {error.strerror}; name a file that can be read") from None


def _parsed(words: str) -> Any:
    try:
        return parsed(words)
    except ValueError as error:
        raise ValueError(f"{error}; write {EXAMPLE}") from None


def part(number: int, given: Any, folder: str) -> Part:
    """A part of a document as JSON has it, media in the real path `folder`; raises `ValueError` that names it."""
    try:
        if isinstance(given, dict) and "ids" in given:
            return _there(ids_part(given, folder))
    except ValueError as error:
        raise ValueError(f"part {number}: {error}") from None
    pair = kind_and_value(given)
    if pair is None:
        keys = f"{', '.join(modalities.names())} is needed, or ids and modality"
        raise ValueError(f"part {number} is {short(given)}; an object with one of the keys {keys}")
    kind, value = pair
    if not isinstance(value, str):
        raise ValueError(f"part {number} is {short(given)}; its value must be text, or a file's name")
    try:
        return Part(kind, text(value) if kind == TEXT else inside(folder, value))
    except ValueError as error:
        raise ValueError(f"part {number}: {error}") from None


def _there(part: Part) -> Part:
    if isinstance(part.content, ValueError):
        raise part.content
    return part


def tokens(parts: Sequence[Part], codec: Codec) -> list[tuple[str, np.ndarray]]:
    """Modality and data of each part, without what is blank; raises `ValueError` that names the part."""
    found = []
    for number, part in enumerate(parts, 1):
        try:
            kind = modality_of(part.kind)
            if kind not in codec.modalities:
                raise ValueError(f"this run has no {kind}; it has {', '.join(codec.modalities)}; leave it out")
            if part.kind.endswith(READY) and not codec.is_given(kind):
                raise ValueError(
                    f"ids of {kind}, but this run has no ids of one's own for it: its tokenizer makes them of {kind}; "
                    f'give that, as {{"{kind}": "..."}}'
                )
            if part.kind != TEXT or part.content.strip():
                found += codec.forms(part)
        except ValueError as error:
            raise ValueError(f"part {number}: {error}") from None
    return found
