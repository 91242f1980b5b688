"""Batches of an endless stream. Batch n is a pure function of (sources, configuration, seed, n) on every host."""

import copy
import dataclasses
import faulthandler
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, NoReturn

import grain
import numpy as np
from absl import flags

from mot.batches import Batch
from mot.config import Config
from mot.console import unheard_by_workers
from mot.data import positions, roles
from mot.data.mixture import Mixture, Sources
from mot.data.packing import Document, Piece, RowPlan, cut, pack
from mot.errors import Hung, UserError
from mot.files import digest_of


class LeftOut(NamedTuple):
    """A document, or a part of one, that padding replaces."""

    source: str
    document: str  # its own id
    why: str


class Packed(NamedTuple):
    batch: Batch  # this process's rows
    state: dict  # the next batch is made from it
    left_out: tuple[LeftOut, ...]  # from this process's rows; and pieces that fit no row


class Batches:
    """Random access to batches 0 .. `count - 1`, as grain wants its sources; cheap in order.

    The plan begins at `state`, of an earlier `Packed`, without planning earlier batches again. Each process plans all
    rows, and reads only its own.
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
        self.latents = [s.features for s in config.streams.values()]
        paired = config.objective.contrastive.pools
        self.apart = [self.names.index(name) for name in paired] if len(paired) > 1 else []
        modalities = [s.modality for s in config.streams.values()]
        self.mixture = Mixture(sources, config.data, seed, modalities)
        self.rows = config.data.batch
        if self.rows % processes:
            raise UserError(
                f"data.batch: {self.rows} rows do not divide among {processes} processes; make it a multiple of them"
            )
        own = self.rows // processes
        self.own_rows = slice(process * own, (process + 1) * own)
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
        try:
            return self._made(n)
        except Exception as error:
            if multiprocessing.parent_process() is None or _is_sendable(error):
                raise
            raise RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__) from None

    def _made(self, n: int) -> Packed:
        if n * self.rows < self.plan.number:
            self._begin()
        if n * self.rows < self.plan.number:
            raise IndexError(f"batch {n} lies before the state that this began from")
        while True:
            self.plan.dropped.clear()
            rows = [self.plan.next_row() for _ in range(self.rows)]
            if self.plan.number > n * self.rows:
                break
        dropped = self.plan.dropped if self.own_rows.start == 0 else []  # every process knows them; one reports
        left_out = [self._left_out(piece.g, "a part is longer than its stream's longest") for piece in dropped]
        documents = []
        for row in rows[self.own_rows]:
            documents.append([])
            for piece in row:
                try:
                    documents[-1].append(self._read(piece))
                except ValueError as error:
                    left_out.append(self._left_out(piece.g, str(error)))
        batch = pack(documents, self.names, self.budgets, self.latents, positions.rule(self.config))
        return Packed(batch, self.plan.state | {"starts": list(self.mixture.starts)}, tuple(left_out))

    def _read(self, piece: Piece) -> Document:
        source, i = self.mixture.place(piece.g)
        tokens = cut(self.mixture.sources[source].read(i), piece.begin, piece.end)
        d = roles.assign(tokens, list(self.config.streams.values()), self.config.data.blocks, piece.g)
        return roles.apart(d, self.apart) if self.apart else d

    def _left_out(self, g: int, why: str) -> LeftOut:
        source, i = self.mixture.place(g)
        return LeftOut(self.mixture.sources[source].name, self.mixture.sources[source].name_of(i), why)


def _is_sendable(error: Exception) -> bool:
    """Can a worker send it? One that cannot be written, or made again from its `args`, is lost, and waited for."""
    try:
        ForkingPickler.dumps(error)
        copy.copy(error)
        return True
    except Exception:  # its class's own
        return False


def packing(config: Config) -> str:
    """A digest of what, besides the documents, decides how they are packed: of a plan made otherwise, none may wait."""
    data, streams = config.data, config.streams.items()
    shares = [[0, data.shares], *([stage.step, stage.shares] for stage in data.stages)]
    content = {"shares": shares, "sources": [*data.sources], "per": data.per, "seed": data.seed}
    content |= {"rows": data.batch, "lookahead": data.lookahead}
    content |= {"streams": [[name, s.modality, s.budget, s.max_tokens, s.copies] for name, s in streams]}
    if data.roles or any(s.representation for _, s in streams):
        content |= {"roles": [dataclasses.astuple(role) for role in data.roles], "holds": [s.holds for _, s in streams]}
    return digest_of(content)


def moved(plan: dict, row: int, same_packing: bool) -> dict:
    """A plan that goes on from a row in other documents, or packs them otherwise: it takes in the next ones.

    Documents that were waiting for their row are passed over, as they may be cut nowhere, or be others, now.
    """
    return {"row": row, "position": plan["position"], "waiting": [], "starts": plan["starts"] if same_packing else [0]}


def nothing() -> None:
    """What is done while others wait, where nobody asks for more."""


def iterate(
    batches: Batches,
    start: int,
    workers: int = 0,
    timeout: float = 600.0,
    while_waiting: Callable[[], None] = nothing,
) -> Iterator[Packed]:
    """Batches from `start` on. A thread of grain's makes them ahead, or so many worker processes do.

    `while_waiting` is called twice a second as long as the next batch has not come, and ends the wait by raising.

    Raises `Hung` if the next batch has not come after `timeout` seconds, or if a worker has died. Then the stacks of
    all threads and workers go to stderr.
    """
    # One thread: the plan is sequential.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    dataset = grain.MapDataset.source(batches)[start:].to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's processes read absl's flags: the defaults
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_begins)
    return (_in_order(packed, batches.names) for packed in _watched(dataset, timeout, while_waiting))


def _in_order(packed: Packed, names: Sequence[str]) -> Packed:
    """Its streams as the configuration has them: what comes from a worker is sorted by name."""
    return packed._replace(batch={name: packed.batch[name] for name in names})


def _begins(worker: int, workers: int) -> None:
    """In a worker: it tells its stacks when it is asked, and ends with its parent, also where that is killed."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    threading.Thread(target=_ends_with_its_parent, name="parent", daemon=True).start()


def _ends_with_its_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


_END = object()
OFTEN = 0.5  # seconds


def _watched(dataset: grain.IterDataset, timeout: float, while_waiting: Callable[[], None]) -> Iterator[Packed]:
    """The elements of a dataset. A thread reads them, so that one that hangs can be given up."""
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
            with unheard_by_workers():  # all the while: grain starts workers when it is read
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
    workers: dict[int | None, Any] = {}  # the processes that the dataset has started
    threading.Thread(target=ask, name="data", daemon=True).start()
    try:
        while True:
            item, why = _next(ready, timeout, while_waiting, workers, others)
            if why:
                _give_up(why, others)
            if item is _END:
                return
            if isinstance(item, RuntimeError) and "Worker process" in str(item):  # grain's word of a death
                _give_up(f"a data worker died ({str(item).splitlines()[0]})", others)
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        gone.set()


def _next(
    ready: queue.Queue,
    timeout: float,
    while_waiting: Callable[[], None],
    workers: dict[int | None, Any],
    others: set[int | None],
) -> tuple[Any, str]:
    """The next item, or why none will come. `workers`, all children but `others`, are kept up to date.

    grain notices no death amid a message: its reader waits for the rest. So we look ourselves, and know each worker
    from its first batch on at the latest, as nobody lists one that is dead.
    """
    end = time.monotonic() + timeout
    item = None
    while item is None and (left := end - time.monotonic()) > 0:
        try:
            item = ready.get(timeout=min(left, OFTEN))
        except queue.Empty:
            while_waiting()
            if dead := [worker for worker in workers.values() if worker.exitcode]:
                return None, f"a data worker died (exit code {dead[0].exitcode})"
        workers |= {child.pid: child for child in multiprocessing.active_children() if child.pid not in others}
    if item is None:
        return None, f"no batch came in {timeout:g} s (data.timeout)"
    return item, ""


def _give_up(what: str, others: set[int | None]) -> NoReturn:
    """Writes the stacks of this process and of the workers, and ends them: all its children but `others`."""
    workers = [child for child in multiprocessing.active_children() if child.pid not in others]
    for child in workers:
        os.kill(child.pid, signal.SIGUSR1)
    faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
    time.sleep(0.5)  # for the workers to write
    for child in workers:
        child.kill()
    raise Hung(f"{what}; the stacks are above; the run's newest checkpoint is whole: the same command resumes, exactly")


def refuse_too_many(counts: dict[str, int], last: LeftOut, limit: int) -> None:
    """Raises `UserError` if more documents than `limit` were left out; `counts` are by source."""
    if (total := sum(counts.values())) > limit:
        by_source = ", ".join(f"{n} of {source}" for source, n in counts.items())
        raise UserError(
            f"{total} documents were left out ({by_source}; the last was {last.document}: {last.why}); "
            f"data.max_skipped allows {limit}; mend the data, or raise it"
        )


def fill(batch: Batch) -> dict[str, float]:
    """The fraction of each stream's budget that tokens fill."""
    return {name: float((np.asarray(tokens.segment) != 0).mean()) for name, tokens in batch.items()}
