"""Batches of an endless stream: batch n is a pure function of (sources, configuration, seed, n)."""

from collections.abc import Iterator
from functools import lru_cache

import grain
import numpy as np

from mot.batch import Batch
from mot.config import Config
from mot.data.embedded import Sources
from mot.data.packing import Document, Plan, pack
from mot.errors import UserError


class Stream:
    """Document g of an endless mixture: sources in proportion to their shares, each shuffled anew every epoch."""

    def __init__(self, sources: Sources, shares: dict[str, int], seed: int):
        self.sources, self.seed = sources, seed
        self.shares = np.array([shares.get(name, 0) for name in sources.names])
        for name, documents, share in zip(sources.names, sources.documents, self.shares, strict=True):
            if share and not documents:
                raise UserError(f"source {name} has a share of {share} and no documents; set data.shares.{name} to 0")
        # One period of the mixture: at each slot the source that is furthest behind its share.
        self.period, taken = [], np.zeros(len(self.shares), int)
        for slot in range(1, self.shares.sum() + 1):
            behind = self.shares * slot / self.shares.sum() - taken
            source = int(behind.argmax())
            self.period.append((source, int(taken[source])))
            taken[source] += 1
        self._order = lru_cache(maxsize=4 * len(self.shares))(self._order)
        self._lengths = [
            np.array([np.bincount(d.stream, minlength=256) for d in documents]) for documents in sources.documents
        ]

    def place(self, g: int) -> tuple[int, int]:
        """Source and index of document g."""
        cycle, slot = divmod(g, len(self.period))
        source, before = self.period[slot]
        n = len(self.sources.documents[source])
        epoch, i = divmod(cycle * int(self.shares[source]) + before, n)
        return source, int(self._order(source, epoch)[i])

    def _order(self, source: int, epoch: int) -> np.ndarray:
        # By sorting raw Philox output, which numpy promises never to change (Generator.permutation it does not).
        bits = np.random.Philox(seed=np.random.SeedSequence([self.seed, source, epoch]))
        return bits.random_raw(len(self.sources.documents[source])).argsort(kind="stable")

    def lengths(self, g: int, streams: int) -> np.ndarray:
        source, i = self.place(g)
        return self._lengths[source][i][:streams]

    def __getitem__(self, g: int) -> Document:
        source, i = self.place(g)
        return self.sources.documents[source][i]


class Batches:
    """Random access to batch 0, 1, ... `count - 1`, as grain wants its sources."""

    def __init__(self, sources: Sources, config: Config, seed: int, count: int):
        self.stream = Stream(sources, config.data.shares, seed)
        self.names = list(config.streams)
        self.budgets = [s.budget for s in config.streams.values()]
        lengths = lambda g: self.stream.lengths(g, len(self.names))
        self.plan = Plan(lengths, self.budgets, config.data.lookahead)
        self.rows, self.count = config.data.batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, n: int) -> Batch:
        rows = [self.plan.row(n * self.rows + b) for b in range(self.rows)]
        return pack([[self.stream[g] for g in row] for row in rows], self.names, self.budgets)


def iterate(batches: Batches, start: int) -> Iterator[Batch]:
    """Batches from `start` on, made ahead by a thread of grain's."""
    # One thread: the plan is sequential. It keeps ahead of a step by orders of magnitude.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(batches)[start:].to_iter_dataset(options))


def fill(batch: Batch) -> dict[str, float]:
    """The fraction of each stream's budget that holds tokens."""
    return {name: float((tokens.segment != 0).mean()) for name, tokens in batch.items()}
