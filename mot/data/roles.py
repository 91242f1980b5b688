"""What tokens of a document are to each other: noised and clean copies, inputs, blocks that see themselves both ways.

And in which streams a unit appears that has several representations, as patches to be read and latents to be drawn.
All of it is written into the integers that every token carries; neither the model nor its attention knows of roles.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mot.config import Role, Stream
from mot.data.packing import Document, take

PLACES = ("only", "first", "last", "middle")  # of a unit in its document, numbered as `places` does


class Placement(NamedTuple):
    """Where the tokens of a representation go. One that has no others is called by its modality."""

    modality: str
    stream: int
    first_id: int
    ids: int  # 0: they are vectors
    width: int = 0  # P, features of these


class Appearance(NamedTuple):
    """A unit in one stream, whose placement has this number."""

    placement: int
    is_input: bool = False  # clean and without a loss there, whatever the stream learns


class Rule(NamedTuple):
    """Where a unit appears that lies so and has the representations of these placements; of `data.roles`."""

    place: str  # "" = anywhere
    appearances: tuple[Appearance, ...]


def placements(streams: Mapping[str, Stream], there: Sequence[str]) -> tuple[Placement, ...]:
    """A placement for every stream that holds one of the representations which are there; what learns comes first."""
    found = [
        (s.objective == "none", Placement(s.holds, number, s.first_id, s.ids, s.latent))
        for number, s in enumerate(streams.values())
        if s.holds in there
    ]
    return tuple(placement for _, placement in sorted(found, key=lambda one: one[0]))


def rules(
    roles: Sequence[Role], source: str | None, streams: Mapping[str, Stream], placed: Sequence[Placement]
) -> tuple[Rule, ...]:
    """The rules of one source, or of all (None), whose streams hold what its dataset has: others match nothing."""
    number_of = {placement.stream: i for i, placement in enumerate(placed)}
    names = list(streams)
    found = []
    for role in roles:
        wanted = [(names.index(name), is_input) for name, is_input in role.named]
        if (source is None or role.source in ("", source)) and all(stream in number_of for stream, _ in wanted):
            found.append(Rule(role.place, tuple(Appearance(number_of[s], is_input) for s, is_input in wanted)))
    return tuple(found)


def appearances(
    representations: Sequence[str], place: str, placed: Sequence[Placement], rules: Sequence[Rule] = ()
) -> tuple[Appearance, ...]:
    """Where a unit of these representations appears, in document order: as the first rule that matches says.

    Where none does, each representation appears once, in the first of the placements that hold it.
    """
    for rule in rules:
        held = [placed[one.placement].modality in representations for one in rule.appearances]
        if rule.place in ("", place) and all(held):
            return rule.appearances
    first: dict[str, Appearance] = {}
    for number, placement in enumerate(placed):
        if placement.modality in representations:
            first.setdefault(placement.modality, Appearance(number))
    return tuple(first.values())


def places(modality: np.ndarray, document: np.ndarray) -> np.ndarray:
    """The number, in PLACES, of the place of each unit `[U]` of some documents: is it first, or last, or both?

    Nothing but units of its own modality comes before a first one. `modality` and `document` are numbers, by unit;
    stretches of text count as units.
    """

    def before(modality, document):
        """Does anything else come before a unit? Whether modalities have changed since its document began."""
        begins = np.diff(document, prepend=-1) != 0
        changes = np.cumsum((np.diff(modality, prepend=-1) != 0) & ~begins)
        return changes != changes[np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))]

    after = before(modality[::-1], document[::-1])[::-1]
    has_before = before(modality, document)
    return np.where(has_before & after, 3, np.where(has_before, 2, np.where(after, 1, 0)))


def assign(d: Document, streams: Sequence[Stream], blocks: str, number: int) -> Document:
    """A document as its data has it, units of vectors once and clean, as it is trained on.

    A unit of a stream that diffuses is noised, in place (Transfusion, 2408.11039), or in a private copy before its
    clean one (BAGEL, 2505.14683), unless it is `given`. Units of other streams of vectors, and ids of streams without
    an objective, are inputs. `blocks`: every unit of vectors sees itself both ways; `prefix` joins all that precedes
    the last noised unit (pi0, 2410.24164) and a stream that `ends_prefix`, `document` everything (LLM2Vec, 2404.05961);
    ids inside a block are inputs, but for those that may be hidden: a unit of ids that are masked (Show-o, 2408.12528)
    has the role of one of vectors that is noised in place, and a document's (LLaDA, 2502.09992) lie in its block.
    `number` is the document's place in the stream of documents: with it, which units are trained alone (2207.12598)
    changes.
    """
    weight = d.weight
    of_units = np.array([bool(s.latent) or s.masks == "unit" for s in streams])[d.stream]
    silent = np.array([s.objective == "none" for s in streams])[d.stream] | d.given
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
        inside = np.arange(len(of_units)) < (prefix_of(d, streams, prefix) if blocks == "prefix" else len(of_units))
        d = d._replace(
            span=np.where(inside, 1 + max(d.unit.max(), d.span.max()), d.span),
            weight=np.where(inside & ~of_units, 0, d.weight),
        )
    d = _documents_masked(d, weight, streams)
    return _noised(d, [b for b in noised if b >= prefix], streams, number) if noised else d


def prefix_of(d: Document, streams: Sequence[Stream], end: int) -> int:
    """Where the block ends that precedes token `end`: there, or before the first unit that ends it."""
    ends = np.array([s.ends_prefix for s in streams])[d.stream[:end]]
    return int(ends.argmax()) if ends.any() else end


def _documents_masked(d: Document, weight: np.ndarray, streams: Sequence[Stream]) -> Document:
    """The document with its ids of streams that are masked by document as such that may be hidden.

    `weight` is what the data says. What the format forces, and the first token, <bos>, are always seen.
    """
    if not any(s.masks == "document" for s in streams):
        return d
    hides = np.array([s.masks == "document" for s in streams])[d.stream] & (weight > 0) & ~d.given
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
    alone = d.alone.copy()
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
            unit = int(d.unit[begin])
            alone[begin:end] = unit * (_chance(d, number, unit) < stream.drop_rate)
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
        alone=np.where(clean, 0, result.alone).astype(np.int32),
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
