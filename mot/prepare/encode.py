"""A document to records: its media opened, everything tokenised, its places to be cut noted."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mot.config.modalities import TEXT, row_of
from mot.config.options import DROP_DOCUMENT, DROP_MEDIUM
from mot.data.records import Record, Span, atoms, units
from mot.prepare import codecs
from mot.prepare.codecs import image, text
from mot.prepare.dataset_tokenizers import Tokenizers
from mot.prepare.left_out import Bad
from mot.prepare.raw import Part, Raw, parts_of
from mot.prepare.templates import READY, modality_of
from mot.tokenizers.given import GivenIds, GivenVectors
from mot.tokenizers.networked import Networked

LARGEST = 256 << 20  # bytes of a document, decoded and tokenised


AT_ONCE = 128 << 20  # bytes of media that wait for networks, which run on many at a time


class Begun(NamedTuple):
    """A document whose parts are opened and tokenised, but those that wait for a network."""

    raw: Raw
    spans: list[Span]  # of what waits, the picture or sound as the network takes it
    cuts: list[np.ndarray]
    missing: list[Bad]
    seen: Counter[str]

    def waiting(self, tokenizers: Tokenizers) -> list[int]:
        """The places of spans that wait, or waited."""
        media = tokenizers.media
        return [i for i, span in enumerate(self.spans) if isinstance(media.get(span.modality), Networked)]


class Made(NamedTuple):
    """A document's records."""

    records: list[tuple[Record, np.ndarray]]  # with their atoms; several where it is longer than a record may be
    missing: list[Bad]  # media of it that are missing, and were dropped
    seen: Counter[str]  # media by modality, and "modality: remark" of what is lost of them


def records(raw: Raw, tokenizers: Tokenizers, max_tokens: int, missing: str = DROP_DOCUMENT) -> Made:
    """Records of at most `max_tokens` tokens; raises `ValueError` with what is wrong with the document."""
    ((_, document),) = begun([raw], tokenizers, missing)
    if isinstance(document, ValueError):
        raise document
    return ended(document, tokenizers, max_tokens)


def begun(raws: Iterable[Raw], tokenizers: Tokenizers, missing: str) -> Iterator[tuple[Raw, Begun | ValueError]]:
    """Each document, tokenised by networks, too, or what is wrong with it; of media AT_ONCE are held, and little more.

    Raises `UserError` where a network is no longer what it was.
    """
    held: list[tuple[Raw, Begun | ValueError]] = []
    size = 0
    for raw in raws:
        try:
            document = _begun(raw, tokenizers, missing)
            size += sum(document.spans[i].data.nbytes for i in document.waiting(tokenizers))
            held.append((raw, document))
        except ValueError as error:
            held.append((raw, error))
        if not 0 < size < AT_ONCE:
            yield from _by_networks(held, tokenizers)
            held, size = [], 0
    yield from _by_networks(held, tokenizers)


def _by_networks(held: Sequence[tuple[Raw, Begun | ValueError]], tokenizers: Tokenizers) -> Sequence[tuple]:
    """The same, with what waited tokenised."""
    waiting: dict[str, list[tuple[Begun, int]]] = {}
    for _, document in held:
        for i in document.waiting(tokenizers) if isinstance(document, Begun) else ():
            waiting.setdefault(document.spans[i].modality, []).append((document, i))
    for modality, places in waiting.items():
        tokenizer = tokenizers.media[modality]
        made = tokenizer.encode_all([document.spans[i].data for document, i in places])
        for (document, i), data in zip(places, made, strict=True):
            document.spans[i] = Span(modality, _narrow(data, tokenizer))
    return held


def _begun(raw: Raw, tokenizers: Tokenizers, missing: str) -> Begun:
    """A document whose media wait for networks; raises `ValueError` with what is wrong with it."""
    if raw.bad and not (raw.rest and missing == DROP_MEDIUM):
        raise ValueError(raw.bad)
    spans = []
    cuts = []
    size = 0
    dropped = []
    seen = Counter()
    for part in parts_of(raw, missing):
        modality = modality_of(part.kind)
        remarks = Counter()
        try:
            content = opened(part, remarks)
        except ValueError as error:
            if part.kind == TEXT or missing == DROP_DOCUMENT:
                raise
            dropped.append(Bad(raw.id, str(error), modality))
            continue
        if part.is_same and modality not in tokenizers.further:
            raise ValueError(f"its {modality} are given as another form of a part; say so: --also MEDIUM={modality}")
        if getattr(tokenizers.media.get(modality), "native", False):
            del remarks[image.CROPPED]  # a picture is kept whole
        seen[modality] += 1
        seen.update({f"{modality}: {remark}": n for remark, n in remarks.items()})
        made, inner = spans_of(part.kind, content, tokenizers)
        if (size := size + sum(span.data.nbytes for span in made)) > LARGEST:
            raise ValueError(
                f"more than {LARGEST:,} bytes when it is decoded, which is the most; make several documents of it"
            )
        if made[0].data.size:
            spans += made
            cuts += [inner, *[np.zeros(0, np.int64)] * (len(made) - 1)]
    if not spans:
        raise ValueError(f"an empty document: {dropped[0].why}" if dropped else "an empty document")
    units([span.modality for span in spans], tokenizers.further)  # of which none lacks its first representation
    return Begun(raw, spans, cuts, dropped, seen)


def ended(document: Begun, tokenizers: Tokenizers, max_tokens: int) -> Made:
    """Records of at most `max_tokens` tokens; raises `ValueError` where a network made no numbers of a part."""
    for span in (document.spans[i] for i in document.waiting(tokenizers)):
        if not np.isfinite(span.data).all():
            raise ValueError(f"its {span.modality} has features that are not finite as {span.data.dtype}")
    record = Record(document.raw.id, tuple(document.spans))
    cuts_ = cut(record, document.cuts, tokenizers.modalities, max_tokens, tokenizers.further)
    return Made(cuts_, document.missing, document.seen)


def opened(part: Part, remarks: Counter | None = None) -> Any:
    """A part's content as its codec reads it: text, a picture, ...; raises `ValueError` where it cannot be read."""
    if isinstance(part.content, ValueError):
        raise part.content
    return codecs.of(part.kind).read(part, Counter() if remarks is None else remarks)


def spans_of(kind: str, content: Any, tokenizers: Tokenizers) -> tuple[list[Span], np.ndarray]:
    """A part that was opened in its own form, then in the other one where that is kept too; where it may be cut."""
    modality = modality_of(kind)
    data, inner = span(kind, content, tokenizers)
    others = [name for name in tokenizers.further if name != modality and row_of(name) == modality]
    return [Span(modality, data), *(Span(name, _data(tokenizers.media[name], content)) for name in others)], inner


def tokenised(kind: str, content: Any, tokenizers: Tokenizers) -> list[Span]:
    """A part that was opened, in each of its forms; raises `ValueError` where it cannot be."""
    document = Begun(Raw("", ()), spans_of(kind, content, tokenizers)[0], [], [], Counter())
    _by_networks([(document.raw, document)], tokenizers)
    return document.spans


def _data(tokenizer: Any, content: Any) -> np.ndarray:
    """What a tokenizer makes of an opened medium, or that medium as a network takes it."""
    if isinstance(tokenizer, Networked):
        return tokenizer.prepared(*content) if isinstance(content, tuple) else tokenizer.prepared(content)
    return _narrow(encoded(tokenizer, content), tokenizer)


def encoded(tokenizer: Any, content: Any) -> np.ndarray:
    """What a medium's tokenizer makes of what its codec has read."""
    return tokenizer.encode(*content) if isinstance(content, tuple) else tokenizer.encode(content)


def span(kind: str, content: Any, tokenizers: Tokenizers) -> tuple[np.ndarray, np.ndarray]:
    """The data of a part that was opened, and the places where it may be cut."""
    modality = modality_of(kind)
    if modality not in tokenizers.modalities:
        unseen = "and the first documents had none; raise --sample, or move one that has it to the front"
        raise ValueError(f"it has {'ids of ' * kind.endswith(READY)}{modality}, {unseen}")
    if modality == TEXT:
        ids, cuts = text.encode(content if content.strip() else "", tokenizers.text)
        return _ids(ids, tokenizers.text.get_vocab_size()), cuts
    tokenizer = tokenizers.media[modality]
    if isinstance(tokenizer, GivenIds) != kind.endswith(READY):
        has = "ids of one's own" if isinstance(tokenizer, GivenIds) else "what a tokenizer of mot takes"
        raise ValueError(f"its {modality} is not like that of other documents, which is {has} (--ids)")
    try:
        data = _data(tokenizer, content)
    except ValueError as error:
        raise ValueError(f"{modality}: {error}" if isinstance(tokenizer, GivenIds) else str(error)) from None
    return data, np.zeros(0, np.int64)


def _narrow(tokens: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Ids in two or four bytes, given vectors as they are; features of ours in two, which moves a pixel by a thirtieth
    of one of its 256 levels."""
    if isinstance(tokenizer, GivenVectors):
        return tokens
    return _ids(tokens, tokenizer.ids) if hasattr(tokenizer, "ids") else tokens.astype(np.float16)


def _ids(ids: np.ndarray, count: int) -> np.ndarray:
    return np.asarray(ids, np.uint16 if count <= 2**16 else np.uint32)


def cut(
    record: Record,
    cuts: Sequence[np.ndarray],
    modalities: Sequence[str],
    max_tokens: int,
    further: Collection[str] = (),
) -> list[tuple[Record, np.ndarray]]:
    """The record with its atoms, or several of at most `max_tokens` tokens, if an atom alone is not longer.

    `further` representations of a unit stay with those before them.
    """
    whole = atoms(record, modalities, cuts)
    if whole[:, 1].sum() <= max_tokens:
        return [(record, whole)]
    span_of = np.repeat(np.arange(len(cuts)), [len(inner) + 1 for inner in cuts])
    begins = np.concatenate([np.append(0, inner) for inner in cuts])  # of each atom, in its span
    pieces, first, size = [], 0, 0
    for a, (modality, tokens) in enumerate(whole):
        if size and size + tokens > max_tokens and modalities[modality] not in further:
            pieces.append((first, a))
            first, size = a, 0
        size += tokens
    pieces.append((first, len(whole)))
    shorter = []
    for number, (a, b) in enumerate(pieces):
        spans = []
        for s in np.unique(span_of[a:b]):
            inner = np.flatnonzero(span_of[a:b] == s) + a
            begin = begins[inner[0]]
            end = begins[inner[-1]] + whole[inner[-1], 1]
            spans.append(Span(record.spans[s].modality, record.spans[s].data[begin:end]))
        shorter.append((Record(f"{record.id}#{number}", tuple(spans)), whole[a:b]))
    return shorter
