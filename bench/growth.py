"""How costs grow: compiling with depth, memory and time with a row's length, packing with documents, opening with data.

`python -m bench.growth`. Seconds are of CPU, so that other work on the machine counts little. A cost is told by its
exponent over all sizes, by that over the last two, and by the straight line through all of them.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console
from rich.table import Table

from bench import timing
from bench.rows import filled
from configs import ladder, records
from launch import process
from mot import batches, optim, sharding
from mot.config import Config, resolve
from mot.data import budgets, manifest, pipeline, sources
from mot.data.mixture import InMemory, Sources
from mot.data.packing import Document, document
from mot.train.state import init_state
from mot.train.step import make_step

LAYERS = (2, 4, 8, 16)
LENGTHS = (1024, 2048, 4096, 8192)  # tokens of a row
DOCUMENT = 256  # tokens: so that visible pairs grow as tokens do
DOCUMENTS = (4, 16, 64, 256)  # of a row
DATASETS = (10**4, 10**5, 10**6, 10**7, 10**8)  # documents
LINEAR = 1.15  # exponents above it are called more than linear


class Growth(NamedTuple):
    """What a cost was at some sizes; at least two, rising."""

    what: str
    of: str  # what the sizes count
    unit: str
    sizes: Sequence[float]
    costs: Sequence[float]

    @property
    def exponent(self) -> float:
        """Of a power law through all sizes, by least squares of logarithms."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.costs), 1)[0])

    @property
    def last(self) -> float:
        """The exponent between the last two sizes: what does not grow counts least there."""
        (a, b), (x, y) = self.sizes[-2:], self.costs[-2:]
        return float(np.log(y / x) / np.log(b / a))

    @property
    def line(self) -> tuple[float, float, float]:
        """A straight line's cost of one more, its cost of none, and r2."""
        slope, none = np.polyfit(self.sizes, self.costs, 1)
        off = np.square(np.polyval((slope, none), self.sizes) - self.costs).sum()
        spread = np.square(np.asarray(self.costs) - np.mean(self.costs)).sum()
        return float(slope), float(none), float(1 - off / spread) if spread else 1.0

    @property
    def told(self) -> str:
        slope, none, r2 = self.line
        verdict = "" if self.last <= LINEAR else "; MORE THAN LINEAR"
        return (
            f"exponent {self.exponent:.2f}, {self.last:.2f} at the end; {none:.3g} + {slope:.3g} {self.unit} for each "
            f"of {self.of}, r2 {r2:.3f}{verdict}"
        )


def configuration(length: int = 512, **model) -> Config:
    """MoT of the ladder's smallest rung, one row of so many tokens."""
    tree = ladder.get_config("rung=0.3m,arch=mot,device=cpu").unlock()
    for stream in tree.streams.values():
        stream.update(budget=length // 2, max_tokens=length // 2)
    tree.data.batch = 1
    tree.model.update(model)
    return resolve(tree, optim.uncovered)


def _spent(call: Callable) -> float:
    """CPU-seconds of this process."""
    began = time.process_time()
    call()
    return time.process_time() - began


# --- programs --------------------------------------------------------------------------------------------------------


def compiling(layers: Sequence[int] = LAYERS) -> Iterator[Growth]:
    """Tracing and compiling a training step, unrolled and with a scan."""
    for scan in (False, True):
        costs = [_spent(lambda n=n, scan=scan: _compiled(configuration(layers=n, scan=scan))) for n in layers]
        how = "with a scan" if scan else "unrolled"
        yield Growth(f"compiling a step, {how}", "layers", "s", layers, costs)


def _compiled(config: Config) -> jax.stages.Compiled:
    state = jax.eval_shape(lambda: init_state(config))
    step = jax.jit(make_step(config, 1), donate_argnums=0).lower(state, batches.abstract(config))
    with without_cache():
        return step.compile()


@contextmanager
def without_cache() -> Iterator[None]:
    """Programs are compiled, and not read. JAX asks once alone whether it may read them, unless it is reset."""
    kept = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)
        compilation_cache.reset_cache()


def memory(lengths: Sequence[int] = LENGTHS) -> Iterator[Growth]:
    """A training step's temporaries."""
    held = []
    for length in lengths:
        compiled = _compiled(configuration(length, scan=True, remat="block"))
        held.append(compiled.memory_analysis().temp_size_in_bytes / 2**20)
    yield Growth("temporaries of a step", "tokens of a row", "MiB", lengths, held)


def steps(lengths: Sequence[int] = LENGTHS, tokens: int = DOCUMENT, rounds: int = timing.ROUNDS) -> Iterator[Growth]:
    """A training step, in turn; and attention's share of it is linear, too, as documents stay as long as they are."""
    configs = [configuration(length, scan=True, remat="block") for length in lengths]
    mesh = sharding.one_device()
    taken = [timing.stepper(c, filled(c, c.length // tokens), mesh=mesh) for c in configs]
    spent = timing.in_turn(*taken, clock=time.process_time, rounds=rounds)
    what = f"a step, documents of {tokens} tokens"
    yield Growth(what, "tokens of a row", "s", lengths, np.median(spent, axis=0).tolist())


# --- data ------------------------------------------------------------------------------------------------------------


def packing(documents: Sequence[int] = DOCUMENTS, length: int = LENGTHS[-1], rows: int = 64) -> Iterator[Growth]:
    """Planning and packing rows of documents in memory; their lengths differ by up to a half."""
    counts, costs = [], []
    for number in documents:
        config = configuration(length)
        made = pipeline.Batches(_in_memory(config, length // number), config, 0, rows + 1)
        packed = [made[0]]
        cost = _spent(lambda made=made, packed=packed: packed.extend(made[n] for n in range(1, rows + 1)))
        segments = [max(int(t.segment.max()) for t in one.batch.values()) for one in packed[1:]]
        counts.append(float(np.mean(segments)))
        costs.append(1e3 * cost / rows)
    yield Growth(f"packing a row of {length} tokens", "documents of a row", "ms", counts, costs)


def _in_memory(config: Config, longest: int, number: int = 512) -> Sources:
    rng = np.random.default_rng(0)
    made = []
    for i, size in enumerate(rng.integers(longest // 2, longest + 1, number)):
        stream = np.arange(size) * len(config.streams) // size
        made.append(_document(config, i, stream))
    source = InMemory(next(iter(config.data.sources)), 0, tuple(made), np.ones(len(config.streams), int))
    return Sources((source,), np.zeros(config.vocab, int), "")


def _document(config: Config, i: int, stream: np.ndarray) -> Document:
    first = np.array([s.first_id for s in config.streams.values()])
    return document(0, i, first[stream], stream)


def opening(documents: Sequence[int] = DATASETS) -> Iterator[Growth]:
    """From a dataset's folder to the plan of its first batch: CPU-seconds, and memory beyond what imports take.

    Each is opened by a process of its own. Only the index is there, of random lengths; no record is read.
    """
    found = []
    for number in documents:
        with tempfile.TemporaryDirectory() as folder:
            write_index(Path(folder), number)
            command = [sys.executable, "-c", "import sys; from bench import growth; growth.open_index(sys.argv[1])"]
            done = subprocess.run([*command, folder], stdout=subprocess.PIPE, check=True, encoding="utf-8")
            found.append(json.loads(done.stdout))
    of = "documents"
    for phase in found[0]["seconds"]:
        yield Growth(f"opening: {phase}", of, "s", documents, [one["seconds"][phase] for one in found])
    yield Growth("opening: all", of, "s", documents, [sum(one["seconds"].values()) for one in found])
    yield Growth("opening: memory at most", of, "MiB", documents, [one["memory"] for one in found])


IDS = 1024
SPECIAL = {name: n for n, name in enumerate(manifest.special_tokens(["text"]))}


def write_index(folder: Path, documents: int) -> None:
    """A dataset of texts without its records; what is not read on the way is a hole in a file, and takes no disk."""
    splits = {}
    for split, number in (("train", documents), ("held_out", 1)):
        (folder / split).mkdir()
        shape = {"lengths.npy": ((number, 1), np.int32), "atoms.npy": ((number, 2), np.int32)}
        shape |= {"firsts.npy": ((number + 1,), np.int64)}
        arrays = {
            name: np.lib.format.open_memmap(folder / split / name, "w+", dtype, size)
            for name, (size, dtype) in shape.items()
        }
        rng = np.random.default_rng(0)
        total = 0
        for begin in range(0, number, 2**20):
            part = arrays["lengths.npy"][begin : begin + 2**20]
            part[:] = rng.integers(16, 512, part.shape, np.int32)
            total += int(part.sum(dtype=np.int64))
        arrays["firsts.npy"][-1] = number
        (folder / split / "shard").touch()
        listed = [_listed(folder / split / name) for name in arrays]
        shards = [_listed(folder / split / "shard") | {"documents": number}]
        counts = {"documents": number, "tokens": {"text": total}, "spans": {"text": number}}
        splits[split] = counts | {"shards": shards, "index": listed}
    (folder / "tokenizers").mkdir()
    np.save(folder / "tokenizers" / manifest.BYTES, np.ones(IDS, np.int32))
    text = {"ids": IDS, "digest": "none", "special": SPECIAL}
    text["files"] = [_listed(folder / "tokenizers" / manifest.BYTES)]
    about = {"format": manifest.FORMAT, "modalities": ["text"], "tokenizers": {"text": text}, "splits": splits}
    (folder / "dataset.json").write_text(json.dumps(about | {"left_out": {}}), encoding="utf-8")


def _listed(file: Path) -> dict:
    return {"file": file.name, "bytes": file.stat().st_size, "digest": "none"}


def open_index(folder: str) -> None:
    """Prints CPU-seconds of each phase and MiB, as JSON; as `mot train` opens its data, without looking at digests."""
    before = _most_memory()
    seconds = {}

    def timed(phase: str, call: Callable):
        result = []
        seconds[phase] = _spent(lambda: result.append(call()))
        return result[0]

    tree = records.get_config(f"data={folder},length=4096").unlock()
    tree.data.verify = False
    config = resolve(tree)
    training, _ = timed("its files", lambda: sources.open_(config))
    config = timed("the rows' budgets", lambda: budgets.resolve(config, training))
    made = timed("the mixture", lambda: pipeline.Batches(training, config, 0, 1))
    timed("the first plan", lambda: [made.plan.next_row() for _ in range(config.data.batch)])
    print(json.dumps({"seconds": seconds, "memory": _most_memory() - before}))


def _most_memory() -> float:
    """MiB that this process has had at most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (x for x in status.splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


# --- all of it -------------------------------------------------------------------------------------------------------


def measured() -> Iterator[Growth]:
    return itertools.chain(compiling(), memory(), steps(), packing(), opening())


def figures() -> dict[str, tuple[str, str]]:
    """Each figure's value and bar."""
    bar = f"at the end at most {LINEAR}"
    return {f"{g.what}, by {g.of}": (g.told, bar) for g in measured()}


def main() -> None:
    table = Table("cost", "by", "at sizes", "exponent", "at the end", "line", "r2")
    for g in measured():
        print(f"{g.what}, by {g.of}: {g.told}", file=sys.stderr, flush=True)
        slope, none, r2 = g.line
        sizes = "\n".join(f"{size:.6g}: {cost:.3g} {g.unit}" for size, cost in zip(g.sizes, g.costs, strict=True))
        line = f"{none:.3g} + {slope:.3g} {g.unit}"
        table.add_row(g.what, g.of, sizes, f"{g.exponent:.2f}", f"{g.last:.2f}", line, f"{r2:.3f}", end_section=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    process.with_environment()  # as `mot` has it
    main()
