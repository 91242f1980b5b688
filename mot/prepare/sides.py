"""Which documents are held out: as the input says, or by the hash of their content; equal ones are on one side."""

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mot.config.modalities import MAX_IDS, TEXT
from mot.config.options import DROP_DOCUMENT, DROP_MEDIUM
from mot.data.manifest import file_digest
from mot.prepare import codecs, media
from mot.prepare.encode import opened
from mot.prepare.raw import Part, Raw, parts_of, weight_of
from mot.prepare.templates import READY, modality_of
from mot.tokenizers.given import GivenIds

HEAVIEST = 512 << 20  # bytes of documents that are held to learn from


class Sides(NamedTuple):
    """Which documents are held out, where the input does not say, by the hash of their content."""

    below: int  # those whose hash is less
    other: frozenset[int] = frozenset()  # hashes of documents that are on the other side than `below` says


def is_held_out(raw: Raw, sides: Sides, missing: str = DROP_DOCUMENT) -> bool:
    """As the input says, or as the hash of the content decides: equal documents are on one side.

    Raises `ValueError` where a file is too large or cannot be read, unless media may be `missing`.
    """
    return decided(raw, sides, missing)[0]


def decided(raw: Raw, sides: Sides, missing: str) -> tuple[bool, int | None]:
    """`is_held_out`, and the hash that decided it, if one did."""
    if raw.held_out is not None or sides.below == 0:
        return bool(raw.held_out), None
    hash_ = _hash(raw, missing)
    return (hash_ < sides.below) != (hash_ in sides.other), hash_


def _hash(raw: Raw, missing: str) -> int:
    """64 bits of a document's content."""
    content = hashlib.sha256()
    for part in parts_of(raw, missing):
        kind, x, rate, _ = part
        content.update(f"{kind} {rate} ".encode())
        try:
            content.update(_bytes(kind, x))
        except ValueError:
            if missing == DROP_DOCUMENT:
                raise
    return int.from_bytes(content.digest()[:8], "big")


def _bytes(kind: str, x) -> bytes:
    """What tells a part's content from others."""
    if isinstance(x, ValueError):
        raise x
    if isinstance(x, Path):
        try:
            media.check_file(x, codecs.max_bytes(kind))
            return file_digest(x).encode()
        except OSError as error:
            raise ValueError(f"{x.name} cannot be read: {error.strerror}") from None
    if isinstance(x, np.ndarray):
        return f"{x.dtype} {x.shape} ".encode() + x.tobytes()
    return x.encode(errors="surrogatepass") if isinstance(x, str) else x


def held_out_below(raws: Iterable[Raw], fraction: float, missing: str, ids: Mapping[str, int]) -> int:
    """Documents whose hash is less are held out: `fraction` of all hashes.

    It is moved where that would leave no document on one of the sides: the least hash alone is held out then, or the
    greatest alone trained on. One document, or several that are equal, are trained on. Documents that are bad do not
    count, as far as that shows without a tokenizer, and no more are looked at than it takes to find one on each side;
    none, where the input says itself which are held out.
    """
    if fraction == 0:
        return 0
    below = int(fraction * 2**64)
    hashes = set()
    for raw in raws:
        if raw.held_out is not None:
            return below
        try:
            hash_ = _hash(raw, missing)
            if hash_ not in range(min(hashes, default=1), max(hashes, default=0) + 1):
                kinds_of(raw, missing, ids)
                hashes = {min(hashes | {hash_}), max(hashes | {hash_})}
        except ValueError:  # told when its turn comes
            continue
        if min(hashes) < below <= max(hashes):
            return below
    if hashes and max(hashes) < below:
        return max(hashes)
    if len(hashes) == 2:
        return min(hashes) + 1
    return below


def sides_of(recipe, read: Callable[[], Iterator[Raw]], ids: Mapping[str, int]) -> Sides:
    """`held_out_below`, and what it takes that tokenizers, which learn from the first documents that are trained on,
    meet every modality that these documents have.

    Of a modality that is held out alone, the document of the greatest hash is trained on. Where nothing is held out
    then, another is, which is not the only one of a modality.
    """
    below = held_out_below(read(), recipe.held_out, recipe.missing, ids)
    if below == 0 or not _is_lost(recipe, read, below, ids):
        return Sides(below)
    kinds_by_hash = {}  # of each document
    trained = set()  # kinds that the input itself trains on
    says = False  # does the input say of any document?
    for raw in first_documents(recipe, read):
        says = says or raw.held_out is not None
        with contextlib.suppress(ValueError):  # told when its turn comes
            kinds = kinds_of(raw, recipe.missing, ids)
            if raw.held_out is None:
                kinds_by_hash[_hash(raw, recipe.missing)] = kinds
            elif not raw.held_out:
                trained |= kinds
    held_out = {hash_ for hash_ in kinds_by_hash if hash_ < below}
    other = set()
    for kind in sorted(set().union(*kinds_by_hash.values()) - trained):
        having = {hash_ for hash_, kinds in kinds_by_hash.items() if kind in kinds}
        if having <= held_out:
            other.add(max(having))
            held_out.remove(max(having))
    if other and not held_out and not says:
        other |= _spared(kinds_by_hash, other)
    return Sides(below, frozenset(other))


def _spared(kinds_by_hash: dict[int, set[str]], kept: set[int]) -> set[int]:
    """The least hash of a document that is not `kept` and all of whose modalities others have, too, if there is one."""
    have = Counter(kind for kinds in kinds_by_hash.values() for kind in kinds)
    spared = (h for h in sorted(kinds_by_hash.keys() - kept) if all(have[kind] > 1 for kind in kinds_by_hash[h]))
    return set(itertools.islice(spared, 1))


def _is_lost(recipe, read, below: int, ids: Mapping[str, int]) -> bool:
    """May there be a modality that the first documents have on the held-out side alone? Few are decoded to tell."""
    trained, held_out = set(), set()
    for raw in first_documents(recipe, read):
        with contextlib.suppress(ValueError):  # told when its turn comes
            kinds = kinds_named(parts_of(raw, recipe.missing))
            if kinds <= trained:
                continue
            if is_held_out(raw, Sides(below), recipe.missing):
                held_out |= kinds
            else:
                trained |= kinds_of(raw, recipe.missing, ids)
    return not held_out <= trained


def first_documents(recipe, read: Callable[[], Iterator[Raw]]) -> Iterator[Raw]:
    """Those from which tokenizers learn: as many as the recipe says, unless they are too heavy to be held."""
    heavy = 0
    for number, raw in enumerate(itertools.islice(read(), recipe.sample)):
        heavy += sum(weight_of(x) for x in parts_of(raw, recipe.missing) if not isinstance(x.content, Path))
        if heavy > HEAVIEST and number:
            return
        yield raw


def kinds_named(parts: Iterable[Part]) -> set[str]:
    """The kinds of parts that are there, before any is decoded."""
    return {part.kind for part in parts if not isinstance(part.content, ValueError)}


def kinds_of(raw: Raw, missing: str, ids: Mapping[str, int]) -> set[str]:
    """The kinds of a document's parts; raises `ValueError` where it will be bad, as far as that shows without a
    tokenizer."""
    if raw.bad and not (raw.rest and missing == DROP_MEDIUM):
        raise ValueError(raw.bad)
    found = set()
    for part in parts_of(raw, missing):
        try:
            x = opened(part)
        except ValueError:
            if part.kind == TEXT or missing == DROP_DOCUMENT:
                raise
            continue
        if part.kind.endswith(READY):
            GivenIds(ids.get(modality_of(part.kind), MAX_IDS)).encode(x)
        found.add(part.kind)
    return found
