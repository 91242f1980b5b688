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
    (pi0, 2410.24164), `document` everything (LLM2Vec, 2404.05961); ids inside a block are inputs, but for those that
    may be hidden: a unit of ids that are masked (Show-o, 2408.12528) has the role of one of vectors that is noised in
    place, and a document's (LLaDA, 2502.09992) lie in its block. `number` is the document's place in the stream of
    documents: with it, which units are trained alone (2207.12598) changes.
    """
    given = d.weight
    of_units = np.array([bool(s.latent) or s.masks == "unit" for s in streams])[d.stream]
    silent = np.array([s.objective == "none" for s in streams])[d.stream]
    begins = np.flatnonzero(of_units & (np.diff(d.unit * of_units, prepend=0) != 0))
    noised = [int(b) for b in begins if not silent[b]]
    is_masked = np.array([s.masks == "unit" for s in streams])[d.stream]
    ends = ~is_masked & np.append(False, is_masked[:-1])  # where a unit ends: its last id predicts itself, not that
    prefix = noised[-1] if blocks == "prefix" and noised else 0
    d = d._replace(
        weight=np.where(silent | ends | (np.arange(len(of_units)) < prefix), 0, d.weight).astype(np.float32),
        span=np.where(of_units, d.unit, d.span),
        noise=np.zeros(len(of_units), np.float32),
    )
    if blocks != "units":
        inside = np.arange(len(of_units)) < (prefix if blocks == "prefix" else len(of_units))
        d = d._replace(
            span=np.where(inside, 1 + max(d.unit.max(), d.span.max()), d.span),
            weight=np.where(inside & ~of_units, 0, d.weight),
        )
    d = _documents_masked(d, given, streams)
    return _noised(d, [b for b in noised if b >= prefix], streams, number) if noised else d


def _documents_masked(d: Document, weight: np.ndarray, streams: Sequence[Stream]) -> Document:
    """The document with its ids of streams that are masked by document as such that may be hidden.

    `weight` is what the data says. What the format forces, and the first token, <bos>, are always seen.
    """
    if not any(s.masks == "document" for s in streams):
        return d
    hides = np.array([s.masks == "document" for s in streams])[d.stream] & (weight > 0)
    hides[0] = False
    shifts = np.array([s.masking.shift for s in streams])[d.stream]
    return d._replace(
        noise=np.where(hides, 1, d.noise).astype(np.float32),
        weight=np.where(hides, weight, d.weight),
        own=hides & ~shifts,
    )


SINGLE, PRIVATE, CLEAN = 0, 1, 2  # a token as it is; its noised copy, seen by its unit alone; the clean one after it


def _noised(d: Document, begins: Sequence[int], streams: Sequence[Stream], number: int) -> Document:
    """The document with the units that begin at these tokens noised: of vectors, or of ids that are masked."""
    noise = d.noise.copy()
    alone = np.zeros(len(d.token), bool)
    runs: list[tuple[int, int, int]] = []  # of the result: tokens begin .. end - 1 of the document, and which copy
    done = 0
    for begin in begins:
        end = begin + int(np.argmin(np.append(d.unit[begin:] == d.unit[begin], False)))
        stream = streams[d.stream[begin]]
        has_copies = stream.copies == 2
        text_follows = _text_follows(d, end)
        most = stream.masking.before_text if stream.masks else stream.diffusion.max_noise
        noise[begin:end] = most if text_follows and not has_copies else 1
        if has_copies or not text_follows:
            alone[begin:end] = _chance(d, number, int(d.unit[begin])) < stream.drop_rate
        runs.append((done, begin, SINGLE))
        runs += [(begin, end, PRIVATE), (begin, end, CLEAN)] if has_copies else [(begin, end, SINGLE)]
        done = end
    runs.append((done, len(d.token), SINGLE))
    index = np.concatenate([np.arange(begin, end) for begin, end, _ in runs])
    copy = np.concatenate([np.full(end - begin, which) for begin, end, which in runs])
    result = take(_units_masked(d._replace(noise=noise, alone=alone), streams), index)
    private, clean = copy == PRIVATE, copy == CLEAN
    own_span = result.unit + max(d.unit.max(), d.span.max()) + 1
    return result._replace(
        private=private,
        span=np.where(private, own_span, result.span),
        noise=np.where(clean, 0, result.noise).astype(np.float32),
        weight=np.where(clean, 0, result.weight).astype(np.float32),
        alone=result.alone & ~clean,
    )


def _units_masked(d: Document, streams: Sequence[Stream]) -> Document:
    """With the ids of units that may be hidden as such that predict themselves; of other units they are inputs."""
    by_unit = np.array([s.masks == "unit" for s in streams])[d.stream]
    hides = by_unit & (d.noise > 0) & (d.weight > 0)
    shows = by_unit & ~hides
    return d._replace(
        noise=np.where(shows, 0, d.noise).astype(np.float32),
        weight=np.where(shows, 0, d.weight).astype(np.float32),
        own=d.own | hides,
    )


def _text_follows(d: Document, end: int) -> bool:
    """Is some id learnt after token `end`, other than <eos>?"""
    rest = slice(end, -1)
    is_id = ~np.isin(d.stream[rest], list(d.values))
    return bool(d.weight[rest][is_id].any())


def _chance(d: Document, number: int, unit: int) -> float:
    # Not a CRC: those of two units of a document differ by the same bits whatever the number.
    name = f"{number}/{d.source}/{d.doc_id}/{unit}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "big") / 2**32
