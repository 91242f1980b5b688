"""Real data that every installation already holds: scikit-learn's handwritten digits and Python's English manual.

1,797 digits of 8x8 pixels in 17 grey levels, each captioned, and the manual text of `pydoc_data.topics`. Nothing is
downloaded. Sources: `manual` (text), `drawn` (caption, then image), `read` (image, then caption), `summed` (a sum in
words, then the image of what it makes), `thought` (a sum, what it makes, and the image of that), `numbers` (what two
digits are, as "seven three", and both: one of a hundred numbers).
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer

from mot.config import Config, Stream, reads
from mot.data import roles
from mot.data.captions import CAPTIONS, NAMES, all_captions
from mot.data.mixture import InMemory, Sources
from mot.data.packing import Document
from mot.data.records import Record, Span, TokenLayout, render
from mot.tokenizers import text

SOURCES = ("manual", "drawn", "read", "summed", "thought", "numbers")
ALWAYS = 3  # of SOURCES that a run has opened, whatever it names
NUMBERS = (6000, 2000)  # pairs of digits, of training and held out
TEXT_IDS, LEVELS, PIXELS = 1024, 17, 64
SIDE, PATCH = 8, 2  # pixels of a side; of a patch's, where digits are vectors
PATCHES, FEATURES = PIXELS // PATCH**2, PATCH**2
MEAN, DEVIATION = 5.0, 6.0  # of grey levels, about: diffusion wants values around 0 and of size 1
# What a digit may be kept as, and whether a stream of it has latents: `image` is either, where it is alone.
FORMS = {"image": (False, True), "image_ids": (False,), "image_vectors": (True,)}
HELD_OUT = 10  # one document of ten, by the hash of its content


@reads("streams", "data")
def faults(config):
    """A check for `config.build`: what this data needs of the configuration."""
    media = {name: stream for name, stream in config.streams.items() if name != "text"}
    unknown = [name for name, s in media.items() if s.modality != "image" or s.holds not in FORMS]
    if "text" not in config.streams or not media or (unknown and unknown[0] not in ("image",)):
        yield f"streams: {', '.join(config.streams)}; the embedded data has text, image; name them so"
        return
    yield from _ids_faults("text", config.streams["text"], 0, TEXT_IDS)
    first = TEXT_IDS
    for name, stream in media.items():
        if stream.holds not in FORMS or bool(stream.latent) not in FORMS[stream.holds]:
            yield (
                f"streams.{name}.representation, latent: {stream.representation!r}, {stream.latent}; an embedded digit "
                f"is image, image_ids (ids) or image_vectors ({FEATURES} features); write one of these"
            )
        elif stream.latent not in (0, FEATURES):
            yield (
                f"streams.{name}.latent: {stream.latent}; patches of an embedded digit have {FEATURES} features; write "
                "that"
            )
        if not stream.latent:
            yield from _ids_faults(name, stream, first, LEVELS)
            first += LEVELS
        tokens = PATCHES * stream.copies // stream.entry.fold if stream.latent else PIXELS
        longest, what = (2 * tokens, "number") if "numbers" in config.data.sources else (tokens, "digit")
        if stream.max_tokens != longest:
            yield f"streams.{name}.max_tokens: {stream.max_tokens}; an embedded {what} has {longest} tokens; write that"
    if config.streams["text"].max_tokens < 32:
        yield f"streams.text.max_tokens: {config.streams['text'].max_tokens}; captions need up to 32; raise it"
    for source in config.data.sources:
        if source not in SOURCES:
            yield f"data.sources.{source}: no such source; the embedded data has {', '.join(SOURCES)}; remove it"


def _ids_faults(name: str, stream: Stream, first: int, ids: int):
    if (stream.first_id, stream.ids) != (first, ids):
        yield (
            f"streams.{name}.first_id, ids: {stream.first_id}, {stream.ids}; the embedded data has ids {first}.."
            f"{first + ids - 1}; write {first}, {ids}"
        )


def load(config: Config) -> tuple[Sources, Sources]:
    """The training and the held-out documents."""
    sections, images, labels = _manual(), *_digits()
    tokenizer = _tokenizer(sections)
    lengths = np.concatenate([text.byte_lengths(tokenizer), np.zeros(config.vocab - TEXT_IDS, int)])
    names = SOURCES if set(SOURCES[ALWAYS:]) & set(config.data.sources) else SOURCES[:ALWAYS]
    layouts = [_layout(config, source) for source in names]
    words = _spans(tokenizer)
    splits = []
    for held_out in (False, True):
        texts = [s for s in sections if _held_out(s.encode()) == held_out]
        pieces = [piece for s in texts for piece in text.split(tokenizer, s, config.streams["text"].max_tokens - 2)]
        chosen = [i for i in range(len(images)) if _held_out(images[i].tobytes()) == held_out]
        captions = [words(_caption(i, labels[i])) for i in chosen]
        digits = [_digit(images[i], layouts[1]) for i in chosen]
        spans = [[(Span("text", np.array(ids)),) for ids in pieces]]
        spans.append([(caption, *digit) for caption, digit in zip(captions, digits, strict=True)])
        spans.append([(*digit, caption) for caption, digit in zip(captions, digits, strict=True)])
        ids_of = [range(len(pieces)), chosen, chosen]
        if names != SOURCES[:ALWAYS]:
            pairs = np.random.default_rng(held_out).choice(chosen, (NUMBERS[held_out], 2)).tolist()
            spans += _further(words, dict(zip(chosen, digits, strict=True)), labels, pairs)
            ids_of += [chosen, chosen, range(len(pairs))]
        documents = [
            tuple(_document(s, i, one, layouts[s]) for i, one in zip(ids_of[s], spans[s], strict=True))
            for s in range(len(names))
        ]
        digest = _digest(d for source in documents for d in source)
        units = np.array([PATCHES if s.latent else 1 if s.modality == "text" else PIXELS for s in _streams(config)])
        sources = (InMemory(name, i, documents[i], units) for i, name in enumerate(names))
        splits.append(Sources(tuple(sources), lengths, digest, {"text": text.digest(tokenizer)}))
    return splits[0], splits[1]


def _further(
    words: Callable[[str], Span], digit_of: dict[int, list[Span]], labels: np.ndarray, pairs: list[list[int]]
) -> list[list[tuple[Span, ...]]]:
    """The documents of `summed`, `thought` and `numbers`, as spans."""
    sums, thoughts = (
        [(words(sum_of(i, labels[i], thinks)), *digit) for i, digit in digit_of.items()] for thinks in (False, True)
    )
    numbers = [(words(f"{NAMES[labels[i]]} {NAMES[labels[j]]}"), *digit_of[i], *digit_of[j]) for i, j in pairs]
    return [sums, thoughts, numbers]


def _spans(tokenizer: Tokenizer) -> Callable[[str], Span]:
    """Words as a span. Few captions and sums differ, of thousands: each is encoded once."""
    return functools.cache(lambda said: Span("text", np.array(tokenizer.encode(said).ids)))


def _streams(config: Config) -> list[Stream]:
    return list(config.streams.values())


def _layout(config: Config, source: str) -> TokenLayout:
    placed = roles.placements(config.streams, ("text", *FORMS))
    special = dict(zip(text.SPECIAL, range(len(text.SPECIAL)), strict=True))
    rules = roles.rules(config.data.roles, source, config.streams, placed)
    held = [form for form in FORMS if any(p.modality == form for p in placed)]
    shapes = {stream.holds: shape(stream) for stream in config.streams.values() if stream.holds in FORMS}
    return TokenLayout(placed, special, tuple(FORMS), dict.fromkeys(held[1:], held[0]), shapes, rules)


def shape(stream: Stream) -> tuple[int, int]:
    """Rows and columns of a digit's tokens: its pixels, or its patches where they are vectors."""
    return (SIDE // PATCH,) * 2 if stream.latent else (SIDE, SIDE)


def _digit(pixels: np.ndarray, layout: TokenLayout) -> tuple[Span, ...]:
    """A digit in the representations that streams hold."""
    form_of = {p.modality: patches(pixels) if p.width else pixels.astype(int) for p in layout.places}
    return tuple(Span(name, form_of[name]) for name in FORMS if name in form_of)


def _document(source: int, doc_id: int, spans: Sequence[Span], layout: TokenLayout) -> Document:
    """Units are numbered by themselves: text does not count, which datasets of records count."""
    d = render(Record("", tuple(spans)), layout, source, doc_id)
    return d._replace(unit=np.unique(d.unit, return_inverse=True)[1].astype(np.int32))


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
    chosen = [d.doc_id for d in sources.all[SOURCES.index("drawn")].documents]
    images, labels = _digits()
    return images[chosen].astype(int), labels[chosen]


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


def sum_of(i: int, label: int, thinks: bool) -> str:
    """Two digits in words, and where one `thinks`, the digit that they make; i chooses among the sums."""
    first = i % (label + 1)
    return f"{NAMES[first]} plus {NAMES[label - first]}" + f" makes {NAMES[label]}" * thinks


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
