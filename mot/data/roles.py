"""What tokens of a document are to each other: noised and clean copies, inputs, blocks that see themselves both ways.

All of it is written into the integers that every token carries; neither the model nor its attention knows of roles.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from mot.config import Stream
from mot.data.packing import Document, take


def assign(d: Document, streams: Sequence[Stream], blocks: str, number: int) -> Document:
    """A document as its data has it, units of vectors once and clean, as it is trained on.

    A unit of a stream that diffuses is noised, in place (Transfusion, 2408.11039), or in a private copy before its
    clean one (BAGEL, 2505.14683). Units of other streams of vectors, and ids of streams without an objective, are
    inputs. `blocks`: every unit of vectors sees itself both ways; `prefix` joins all that precedes the last noised unit
    (pi0, 2410.24164), `document` everything (LLM2Vec, 2404.05961); ids inside a block are inputs. `number` is the
    document's place in the stream of documents: with it, which units are trained alone (2207.12598) changes.
    """
    latent = np.array([bool(s.latent) for s in streams])[d.stream]
    silent = np.array([s.objective == "none" for s in streams])[d.stream]
    begins = np.flatnonzero(latent & (np.diff(d.unit * latent, prepend=0) != 0))
    noised = [int(b) for b in begins if not silent[b]]
    prefix = noised[-1] if blocks == "prefix" and noised else 0
    d = d._replace(
        weight=np.where(silent | (np.arange(len(latent)) < prefix), 0, d.weight).astype(np.float32),
        span=np.where(latent, d.unit, d.span),
        noise=np.zeros(len(latent), np.float32),
    )
    if blocks != "units":
        inside = np.arange(len(latent)) < (prefix if blocks == "prefix" else len(latent))
        d = d._replace(
            span=np.where(inside, 1 + max(d.unit.max(), d.span.max()), d.span),
            weight=np.where(inside & ~latent, 0, d.weight),
        )
    return _noised(d, [b for b in noised if b >= prefix], streams, number) if noised else d


SINGLE, PRIVATE, CLEAN = 0, 1, 2  # a token as it is; its noised copy, seen by its unit alone; the clean one after it


def _noised(d: Document, begins: Sequence[int], streams: Sequence[Stream], number: int) -> Document:
    """The document with the units of vectors that begin at these tokens noised."""
    noise = d.noise.copy()
    alone = d.alone.copy()
    runs: list[tuple[int, int, int]] = []  # of the result: tokens begin .. end - 1 of the document, and which copy
    done = 0
    for begin in begins:
        end = begin + int(np.argmin(np.append(d.unit[begin:] == d.unit[begin], False)))
        stream = streams[d.stream[begin]]
        has_copies = stream.copies == 2
        text_follows = _text_follows(d, end)
        noise[begin:end] = stream.diffusion.max_noise if text_follows and not has_copies else 1
        if has_copies or not text_follows:
            unit = int(d.unit[begin])
            alone[begin:end] = unit * (_chance(d, number, unit) < stream.diffusion.drop_rate)
        runs.append((done, begin, SINGLE))
        runs += [(begin, end, PRIVATE), (begin, end, CLEAN)] if has_copies else [(begin, end, SINGLE)]
        done = end
    runs.append((done, len(d.token), SINGLE))
    index = np.concatenate([np.arange(begin, end) for begin, end, _ in runs])
    copy = np.concatenate([np.full(end - begin, which) for begin, end, which in runs])
    result = take(d._replace(noise=noise, alone=alone), index)
    private, clean = copy == PRIVATE, copy == CLEAN
    own_span = result.unit + max(d.unit.max(), d.span.max()) + 1
    return result._replace(
        private=private,
        span=np.where(private, own_span, result.span),
        noise=np.where(clean, 0, result.noise).astype(np.float32),
        weight=np.where(clean, 0, result.weight).astype(np.float32),
        alone=np.where(clean, 0, result.alone).astype(np.int32),
    )


def apart(d: Document, streams: Sequence[int]) -> Document:
    """A document, as `assign` gives it, whose parts in these streams see nothing of the rest of it, nor it of them.

    A part is all units of one stream together. No id is predicted across its borders. Text, which is no unit, stays
    with the rest.
    """
    alone = d.alone.copy()
    for stream in streams:
        mine = (d.stream == stream) & (d.unit > 0)
        alone[mine] = d.unit[mine].min(initial=np.iinfo(np.int32).max)
    crossed = np.append(False, alone[1:] != alone[:-1])  # a token whose forerunner is of another segment
    is_id = ~np.isin(d.stream, list(d.values))
    return d._replace(alone=alone, weight=np.where(crossed & is_id, 0, d.weight).astype(np.float32))


def _text_follows(d: Document, end: int) -> bool:
    """Is some id learnt after token `end`, other than <eos>?"""
    rest = slice(end, -1)
    is_id = ~np.isin(d.stream[rest], list(d.values))
    return bool(d.weight[rest][is_id].any())


def _chance(d: Document, number: int, unit: int) -> float:
    # Not a CRC: those of two units of a document differ by the same bits whatever the number.
    name = f"{number}/{d.source}/{d.doc_id}/{unit}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "big") / 2**32
