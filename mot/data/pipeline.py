"""Batches of an endless stream: batch n is a pure function of (sources, configuration, seed, n), on any host."""

import faulthandler
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import grain
import numpy as np
from absl import flags

from mot.batches import Batch
from mot.config import Config
from mot.console import unheard_by_workers
from mot.data import roles
from mot.data.mixture import Mixture, Sources
from mot.data.packing import Document, RowPlan, cut, pack
from mot.errors import Hung, UserError


class LeftOut(NamedTuple):
    """A document, or a part of one, with padding in its place."""

    source: str
    document: str  # its own id
    why: str


class Packed(NamedTuple):
    batch: Batch  # this process's rows
    state: dict  # from which the batch after this one is made
    left_out: tuple[LeftOut, ...]  # of this process's rows, and what fits no row at all


class Batches:
    """Random access to batch 0, 1, ... `count - 1`, as grain wants its sources; cheap in order.

    `state`, of an earlier `Packed`, is where to begin without planning anew what came before. Of several processes each
    plans all rows and reads only its own.
    """

    def __init__(
        self,
        sources: Sources,
        config: Config,
        seed: int,
        count: int,
        state: dict | None = None,
        process: int = 0,
        processes: int = 1,
    ):
        self.config, self.count = config, count
        self.names = list(config.streams)
        self.budgets = [s.budget for s in config.streams.values()]
        self.max_tokens = [s.max_tokens for s in config.streams.values()]
        self.latents = [s.latent for s in config.streams.values()]
        modalities = [s.modality for s in config.streams.values()]
        self.mixture = Mixture(sources, config.data, seed, modalities)
        self.rows = config.data.batch
        if self.rows % processes:
            raise UserError(
                f"data.batch: {self.rows} rows do not divide among {processes} processes; make it a multiple of them"
            )
        mine = self.rows // processes
        self.mine = slice(process * mine, (process + 1) * mine)
        self.state = state or {"row": 0, "position": 0, "waiting": [], "starts": [0]}
        self._begin()

    def _begin(self) -> None:
        self.mixture.starts = list(self.state["starts"])
        copies = [s.copies for s in self.config.streams.values()]
        self.plan = RowPlan(self.mixture, self.budgets, self.max_tokens, self.config.data.lookahead, self.rows, copies)
        self.plan.resume(self.state)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, n: int) -> Packed:
        if n * self.rows < self.plan.number:
            self._begin()
        if n * self.rows < self.plan.number:
            raise IndexError(f"batch {n} lies before the state that this began from")
        while True:
            self.plan.dropped.clear()
            rows = [self.plan.next_row() for _ in range(self.rows)]
            if self.plan.number > n * self.rows:
                break
        dropped = self.plan.dropped if self.mine.start == 0 else []  # every process knows of them; one tells
        left_out = [self._left_out(piece.g, "a part is longer than its stream's longest") for piece in dropped]
        documents = []
        for row in rows[self.mine]:
            documents.append([])
            for piece in row:
                try:
                    documents[-1].append(self._read(piece))
                except ValueError as error:
                    left_out.append(self._left_out(piece.g, str(error)))
        batch = pack(documents, self.names, self.budgets, self.latents)
        return Packed(batch, self.plan.state | {"starts": list(self.mixture.starts)}, tuple(left_out))

    def _read(self, piece) -> Document:
        source, i = self.mixture.place(piece.g)
        found = cut(self.mixture.sources[source].read(i), piece.begin, piece.end)
        return roles.assign(found, list(self.config.streams.values()), self.config.data.blocks, piece.g)

    def _left_out(self, g: int, why: str) -> LeftOut:
        source, i = self.mixture.place(g)
        return LeftOut(self.mixture.sources[source].name, self.mixture.sources[source].name_of(i), why)


def iterate(batches: Batches, start: int, workers: int = 0, timeout: float = 600.0) -> Iterator[Packed]:
    """Batches from `start` on, made ahead by a thread of grain's, or by so many worker processes.

    Raises `Hung` when the next batch is not there after `timeout` seconds, or as soon as a worker has died; the stacks
    of all threads and workers then go to stderr.
    """
    # One thread: the plan is sequential.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    dataset = grain.MapDataset.source(batches)[start:].to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's processes ask for absl's flags; the defaults are meant
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_tells_its_stacks)
    return _watched(dataset, timeout)


def _tells_its_stacks(worker: int, workers: int) -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)


_END = object()


def _watched(dataset: grain.IterDataset, timeout: float) -> Iterator[Packed]:
    """The elements of a dataset, asked for in a thread so that one that hangs can be given up."""
    ready: queue.Queue = queue.Queue(maxsize=1)
    gone = threading.Event()

    def hand_over(item) -> bool:
        while not gone.is_set():
            try:
                ready.put(item, timeout=1)
                return True
            except queue.Full:
                pass
        return False

    def ask():
        try:
            with unheard_by_workers():  # all the while, as grain begins them when it is asked
                iterator = iter(dataset)
                for item in iterator:
                    if not hand_over(item):
                        break
                if hasattr(iterator, "close"):
                    iterator.close()
            hand_over(_END)
        except BaseException as error:
            hand_over(error)

    others = {child.pid for child in multiprocessing.active_children()}
    threading.Thread(target=ask, name="data", daemon=True).start()
    try:
        while True:
            try:
                item = ready.get(timeout=timeout)
            except queue.Empty:
                _give_up(f"no batch came in {timeout:g} s (data.timeout)", others)
            if item is _END:
                return
            if isinstance(item, RuntimeError) and "Worker process" in str(item):  # grain's word of a death
                _give_up(f"a data worker died ({str(item).splitlines()[0]})", others)
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        gone.set()


def _give_up(what: str, others: set[int | None]) -> NoReturn:
    """Writes the stacks of this process and of the workers, its children but those `others`, and ends these."""
    workers = [child for child in multiprocessing.active_children() if child.pid not in others]
    for child in workers:
        os.kill(child.pid, signal.SIGUSR1)
    faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
    time.sleep(0.5)  # for the workers to write
    for child in workers:
        child.kill()
    raise Hung(f"{what}; the stacks are above; the run's newest checkpoint is whole: the same command resumes, exactly")


def refuse_too_many(counts: dict[str, int], last: LeftOut, most: int) -> None:
    """Raises `UserError` when more documents than `most` were left out, by source."""
    if (total := sum(counts.values())) > most:
        told = ", ".join(f"{n} of {source}" for source, n in counts.items())
        raise UserError(
            f"{total} documents were left out ({told}; the last was {last.document}: {last.why}); data.max_skipped "
            f"allows {most}; mend the data, or raise it"
        )


def fill(batch: Batch) -> dict[str, float]:
    """The fraction of each stream's budget that holds tokens."""
    return {name: float((np.asarray(tokens.segment) != 0).mean()) for name, tokens in batch.items()}
