"""Sources of documents, and the endless stream that mixes them."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from mot.config import Data
from mot.data.packing import Document
from mot.errors import UserError

PERIOD = 2**14  # a mixture repeats after so many slots, if its shares are no small integers


class Source(Protocol):
    """Documents 0 .. count - 1, read at random."""

    name: str
    count: int | None  # None: endless, each document once, in order
    units: np.ndarray  # [M] tokens of every image or clip of a stream, if all have the same; else 1

    def lengths(self, i: int) -> np.ndarray:
        """`[M]` tokens of document i by stream."""

    def cuts(self, i: int) -> np.ndarray:
        """`[k, 1 + M]` where document i may be cut: how many tokens come before, in all and by stream.

        The first row counts <bos>, with which every piece begins. The last row counts the whole document.
        """

    def read(self, i: int) -> Document:
        """Document i. Raises `ValueError` if it is damaged, or has not the tokens that `lengths` says."""

    def name_of(self, doc_id: int) -> str:
        """The own id of the document whose tokens carry this number, for messages."""

    def totals(self) -> np.ndarray:
        """`[M]` tokens of all documents by stream."""


class InMemory(NamedTuple):
    """A source whose documents are all in memory; none of them is cut."""

    name: str
    index: int  # among the sources
    documents: tuple[Document, ...]
    units: np.ndarray  # [M]

    @property
    def count(self) -> int:
        return len(self.documents)

    def lengths(self, i: int) -> np.ndarray:
        return np.bincount(self.documents[i].stream, minlength=len(self.units))

    def cuts(self, i: int) -> np.ndarray:
        lengths = self.lengths(i)
        bos = np.arange(len(self.units)) == self.documents[i].stream[0]
        return np.array([[1, *bos], [lengths.sum(), *lengths]])

    def read(self, i: int) -> Document:
        return self.documents[i]

    def name_of(self, doc_id: int) -> str:
        return str(doc_id)  # numbers of training and held-out documents together: no index of `documents`

    def totals(self) -> np.ndarray:
        return sum((self.lengths(i) for i in range(self.count)), np.zeros(len(self.units), int))


class Sources(NamedTuple):
    """The sources of a run, and what its losses are judged by."""

    all: tuple[Source, ...]
    byte_lengths: np.ndarray  # [V], bytes of text of each id; 0 for other modalities and special tokens
    digest: str  # of all ids, in order
    tokenizers: Mapping[str, str] = {}  # their digests, by modality

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(source.name for source in self.all)

    def read_by(self, data: Data) -> list[Source]:
        """Those of which a run reads documents, in any of its stages."""
        shares = [data.shares, *(stage.shares for stage in data.stages)]
        return [source for source in self.all if any(of_stage.get(source.name) for of_stage in shares)]

    def name_of(self, source: int, doc_id: int) -> str:
        """The own id of a document of the source of that number, for messages."""
        return self.all[source].name_of(doc_id)

    def size(self, modalities: Sequence[str]) -> dict:
        """The number of documents, and of tokens by modality; None if one of the sources is endless.

        `modalities` has each stream's modality; two streams may share one.
        """
        if any(source.count is None for source in self.all):
            return {"documents": None, "tokens": None}
        tokens = dict.fromkeys(modalities, 0)
        for source in self.all:
            for modality, n in zip(modalities, source.totals(), strict=True):
                tokens[modality] += int(n)
        return {"documents": sum(int(source.count) for source in self.all), "tokens": tokens}


class Mixture:
    """An endless stream of documents: each source has its share, and is shuffled anew every epoch.

    Shares may change with the step (stages). The document with which a stage begins depends on how earlier documents
    were packed, so `starts` is part of the state. All else follows from g.
    """

    def __init__(self, sources: Sources, data: Data, seed: int, modalities: Sequence[str]):
        """`modalities` has each stream's modality: shares may count the tokens of one."""
        self.sources, self.seed = sources.all, seed
        counted = [m for m, modality in enumerate(modalities) if data.per in ("tokens", modality)]
        self.stages = [(0, data.shares), *((stage.step, stage.shares) for stage in data.stages)]
        self.periods = [_period(self._documents(shares, data.per, counted)) for _, shares in self.stages]
        self.starts = [0]  # the first document of each stage that has begun
        self._order = lru_cache(maxsize=4 * len(self.sources))(self._shuffled)

    def __getstate__(self):
        return {k: v for k, v in vars(self).items() if k != "_order"}

    def __setstate__(self, state):
        vars(self).update(state)
        self._order = lru_cache(maxsize=4 * len(self.sources))(self._shuffled)

    def _documents(self, shares, per, counted) -> np.ndarray:
        """Shares in documents: a share in tokens is divided by the tokens of an average document of the source."""
        weights = np.array([shares.get(source.name, 0.0) for source in self.sources])
        for n, source in enumerate(self.sources):
            if not weights[n]:
                continue
            if source.count == 0:
                raise UserError(f"source {source.name} has a share of {weights[n]} and no documents; remove its share")
            if per == "documents":
                continue
            if source.count is None:
                raise UserError(
                    f"source {source.name} is a stream, whose tokens nobody has counted; set data.per=documents"
                )
            mean = source.totals()[counted].sum() / source.count
            if not mean:
                raise UserError(f"source {source.name} has a share and no {per} tokens; remove it from data.shares")
            weights[n] /= mean
        return weights

    def enter(self, step: int, g: int) -> None:
        """Called before document g joins the queue in this step; begins the stages that are due."""
        while len(self.starts) < len(self.stages) and step >= self.stages[len(self.starts)][0]:
            self.starts.append(g)

    def place(self, g: int) -> tuple[int, int]:
        """The source of document g, and its index there."""
        before = 0  # documents of this source in earlier stages
        stage = bisect_right(self.starts, g) - 1
        cycle, slot = divmod(g - self.starts[stage], len(self.periods[stage].source))
        source = self.periods[stage].source[slot]
        for earlier in range(stage):
            before += self.periods[earlier].taken(source, self.starts[earlier + 1] - self.starts[earlier])
        period = self.periods[stage]
        nth = before + cycle * int(period.total[source]) + period.nth[slot]
        n = self.sources[source].count
        if n is None:
            return source, nth
        epoch, i = divmod(nth, n)
        return source, int(self._order(source, epoch)[i])

    def _shuffled(self, source: int, epoch: int) -> np.ndarray:
        # Raw Philox output is sorted: numpy promises never to change it, and does not promise that of
        # Generator.permutation.
        bits = np.random.Philox(seed=np.random.SeedSequence([self.seed, source, epoch]))
        return argsort(bits.random_raw(self.sources[source].count))

    def lengths(self, g: int) -> np.ndarray:
        source, i = self.place(g)
        return self.sources[source].lengths(i)

    def cuts(self, g: int) -> np.ndarray:
        source, i = self.place(g)
        return self.sources[source].cuts(i)


def argsort(values: np.ndarray) -> np.ndarray:
    """`values.argsort(kind="stable")` of uint64 `[n]`, as uint32 where that does; takes 21 bytes a number for a moment.

    numpy sorts numbers many times faster than their places. So a number's low bits make room for its place, and those
    that are alike in what is left are sorted once more.
    """
    n = len(values)
    place = np.uint32 if n < 2**32 else np.uint64
    low = np.uint64(max(n - 1, 1).bit_length())
    keys = values >> low
    keys <<= low
    keys |= np.arange(n, dtype=place)
    keys.sort()
    order = keys.astype(place)
    order &= place(2 ** int(low) - 1)
    keys >>= low
    alike = np.flatnonzero(keys[1:] == keys[:-1])
    unsure = np.union1d(alike, alike + 1)
    places = order[unsure]
    order[unsure] = places[np.lexsort((places, values[places]))]
    return order


class _Period(NamedTuple):
    """One period of a mixture: the source of each slot."""

    source: list[int]  # [slots]
    nth: list[int]  # [slots] how many documents of that source came before, in the period
    total: np.ndarray  # [sources]

    def taken(self, source: int, slots: int) -> int:
        """How many documents of a source the first `slots` slots hold, if the period repeats for ever."""
        cycles, rest = divmod(slots, len(self.source))
        return cycles * int(self.total[source]) + self.source[:rest].count(source)


def _period(shares: np.ndarray) -> _Period:
    """Each slot has the source that is furthest behind its share."""
    if not (shares == shares.astype(int)).all() or shares.sum() > PERIOD:
        exact = shares / shares.sum() * PERIOD
        whole = np.where(shares > 0, np.maximum(np.floor(exact), 1), 0)
        for n in np.argsort(whole - exact, kind="stable")[: max(int(PERIOD - whole.sum()), 0)]:
            whole[n] += 1  # the largest remainders
        shares = whole
    shares = shares.astype(int)
    taken = np.zeros(len(shares), int)
    source = []
    nth = []
    for slot in range(1, shares.sum() + 1):
        n = int((shares * slot / shares.sum() - taken).argmax())
        source.append(n)
        nth.append(int(taken[n]))
        taken[n] += 1
    return _Period(source, nth, shares)
