"""Real data that every installation already holds: scikit-learn's handwritten digits and Python's English manual.

1,797 digits of 8x8 pixels in 17 grey levels, each captioned, and the manual text of `pydoc_data.topics`. Nothing is
downloaded. Three sources: `manual` (text), `drawn` (caption, then image), `read` (image, then caption).
"""

import hashlib
import re
from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer

from mot.config import Config, reads
from mot.data.captions import CAPTIONS, NAMES, all_captions
from mot.data.mixture import InMemory, Sources
from mot.data.packing import Document, document
from mot.data.positions import places
from mot.tokenizers import text
from mot.tokenizers.text import BOI, BOS, EOI, EOS

SOURCES = ("manual", "drawn", "read")
TEXT_IDS, LEVELS, PIXELS = 1024, 17, 64
SIDE, PATCH = 8, 2  # pixels of a side; of a patch's, where digits are vectors
PATCHES, FEATURES = PIXELS // PATCH**2, PATCH**2
MEAN, DEVIATION = 5.0, 6.0  # of grey levels, about: diffusion wants values around 0 and of size 1
HELD_OUT = 10  # one document of ten, by the hash of its content


@reads("streams", "data")
def faults(config):
    """A check for `config.build`: what this data needs of the configuration."""
    shapes = {"text": (0, TEXT_IDS), "image": (TEXT_IDS, LEVELS)}
    if set(config.streams) != set(shapes):
        yield f"streams: {', '.join(config.streams)}; the embedded data has {', '.join(shapes)}; name them so"
        return
    image = config.streams["image"]
    if image.latent not in (0, FEATURES):
        yield f"streams.image.latent: {image.latent}; patches of an embedded digit have {FEATURES} features; write that"
    if image.latent:
        del shapes["image"]
    for name, (first, ids) in shapes.items():
        stream = config.streams[name]
        if (stream.first_id, stream.ids) != (first, ids):
            yield (
                f"streams.{name}.first_id, ids: {stream.first_id}, {stream.ids}; the embedded data has ids {first}.."
                f"{first + ids - 1}; write {first}, {ids}"
            )
    tokens = PATCHES * image.copies if image.latent else PIXELS
    if image.max_tokens != tokens:
        yield f"streams.image.max_tokens: {image.max_tokens}; an embedded digit has {tokens} tokens; write that"
    if config.streams["text"].max_tokens < 32:
        yield f"streams.text.max_tokens: {config.streams['text'].max_tokens}; captions need up to 32; raise it"
    for source in config.data.sources:
        if source not in SOURCES:
            yield f"data.sources.{source}: no such source; the embedded data has {', '.join(SOURCES)}; remove it"


def load(config: Config) -> tuple[Sources, Sources]:
    """The training and the held-out documents."""
    sections, images, labels = _manual(), *_digits()
    tokenizer = _tokenizer(sections)
    vectors = config.streams["image"].latent > 0
    lengths = np.concatenate([text.byte_lengths(tokenizer), np.zeros(0 if vectors else LEVELS, int)])
    splits = []
    for held_out in (False, True):
        texts = [s for s in sections if _held_out(s.encode()) == held_out]
        pieces = [piece for s in texts for piece in text.split(tokenizer, s, config.streams["text"].max_tokens - 2)]
        manual = [_text(i, ids) for i, ids in enumerate(pieces)]
        chosen = [i for i in range(len(images)) if _held_out(images[i].tobytes()) == held_out]
        captions = [tokenizer.encode(_caption(i, labels[i])).ids for i in chosen]
        image = _vectors if vectors else _ids
        drawn = [image(1, i, caption, images[i], False) for i, caption in zip(chosen, captions, strict=True)]
        read = [image(2, i, caption, images[i], True) for i, caption in zip(chosen, captions, strict=True)]
        documents = tuple(map(tuple, (manual, drawn, read)))
        digest = _digest(d for source in documents for d in source)
        units = np.array([1, PATCHES if vectors else PIXELS])
        sources = (InMemory(name, i, documents[i], units) for i, name in enumerate(SOURCES))
        splits.append(Sources(tuple(sources), lengths, digest, {"text": text.digest(tokenizer)}))
    return splits[0], splits[1]


def _digest(documents: Iterable[Document]) -> str:
    content = hashlib.sha256()
    for d in documents:
        content.update(d.token.tobytes() + b"".join(x.tobytes() for x in d.values.values()))
    return content.hexdigest()[:16]


def load_tokenizer() -> Tokenizer:
    """The tokenizer of the documents that `load` gives."""
    return _tokenizer(_manual())


def _tokenizer(sections: list[str]) -> Tokenizer:
    return text.load_or_train([s for s in sections if not _held_out(s.encode())] + all_captions(), TEXT_IDS)


def labelled(sources: Sources) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split: grey levels `[n, 64]`, and which digits they are, `[n]`."""
    drawn = sources.all[SOURCES.index("drawn")].documents
    pixels = np.stack([levels(d.values[1]) if d.values else d.token[d.token >= TEXT_IDS] - TEXT_IDS for d in drawn])
    return pixels, _digits()[1][[d.doc_id for d in drawn]]


def named(words: str) -> int | None:
    """The digit that a text names, if it names one and no other."""
    digits = [i for i, name in enumerate(NAMES) if re.search(rf"\b{name}\b", words)]
    return digits[0] if len(digits) == 1 else None


def _manual() -> list[str]:
    """The manual's sections, which blank lines separate."""
    from pydoc_data.topics import topics

    sections = (s.strip("\n") for name in sorted(topics) for s in topics[name].split("\n\n"))
    return [section + "\n\n" for section in sections if section.strip()]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.data.astype(np.uint8), digits.target


def _held_out(content: bytes) -> bool:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") % HELD_OUT == 0


def _caption(i: int, label: int) -> str:
    return CAPTIONS[i % len(CAPTIONS)].format(NAMES[label])


def _text(doc_id: int, ids: list[int]) -> Document:
    token = [BOS, *ids, EOS]
    return document(0, doc_id, token, np.zeros(len(token)))


def patches(pixels: np.ndarray) -> np.ndarray:
    """float32 `[16, 4]` of grey levels `[64]`: patches row by row, around 0 and of size 1."""
    n = SIDE // PATCH
    by_patch = pixels.reshape(n, PATCH, n, PATCH).swapaxes(1, 2).reshape(PATCHES, FEATURES)
    return ((by_patch - MEAN) / DEVIATION).astype(np.float32)


def levels(vectors: np.ndarray) -> np.ndarray:
    """Grey levels `[64]` of patches, those of `patches` or of a model; undoes it."""
    n = SIDE // PATCH
    by_row = (vectors * DEVIATION + MEAN).reshape(n, n, PATCH, PATCH).swapaxes(1, 2).reshape(PIXELS)
    return by_row.round().clip(0, LEVELS - 1).astype(int)


def shape(config: Config) -> tuple[int, int]:
    """Rows and columns of a digit's tokens: its pixels, or its patches where they are vectors."""
    return (SIDE // PATCH,) * 2 if config.streams["image"].latent else (SIDE, SIDE)


def _place(is_image: np.ndarray, side: int) -> np.ndarray:
    """int32 `[n, 3]`: frame, row and column of the tokens of a document with one digit."""
    place = np.zeros((len(is_image), 3), np.int32)
    place[is_image] = places((side, side), side**2)
    return place


def _vectors(source: int, doc_id: int, caption: list[int], pixels: np.ndarray, image_first: bool) -> Document:
    """Like `_ids`, with the image in vectors."""
    image = np.array([BOI, *[0] * PATCHES, EOI])
    token = np.concatenate([[BOS], *([image, caption] if image_first else [caption, image]), [EOS]])
    begin = int(np.argmax(token == BOI)) + 1
    is_image = (np.arange(len(token)) >= begin) & (np.arange(len(token)) < begin + PATCHES)
    values = {1: patches(pixels)}
    place = _place(is_image, SIDE // PATCH)
    return document(source, doc_id, token, is_image, values, weight=token != EOI, unit=is_image, place=place)


def _ids(source: int, doc_id: int, caption: list[int], pixels: np.ndarray, image_first: bool) -> Document:
    """<bos> caption <boi> image <eoi> <eos>, or <bos> <boi> image <eoi> caption <eos>."""
    image = np.array([BOI, *(TEXT_IDS + pixels.astype(int)), EOI])
    parts = [image, caption] if image_first else [caption, image]
    token = np.concatenate([[BOS], *parts, [EOS]])
    is_pixel = token >= TEXT_IDS
    # An image's length is fixed, so the format forces <eoi>: nothing is learned from it.
    place = _place(is_pixel, SIDE)
    return document(source, doc_id, token, is_pixel, weight=token != EOI, unit=is_pixel, place=place)
