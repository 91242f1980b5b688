"""What saving costs a run, and what restoring takes: at the ladder's rung of 10M parameters, and of whole runs."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits, ladder
from launch import flags
from mot import checkpoint, sharding
from mot.batches import Batch
from mot.checkpoint import digests
from mot.config import Config
from mot.data.packing import document, pack
from mot.runs import rundir
from mot.train import loop
from mot.train.state import State, abstract, init_state, state_shardings, trees
from mot.train.step import make_step

ROUNDS = 5


def rung() -> Config:
    tree = ladder.get_config("rung=10m,arch=dense,device=cpu")
    tree.data.batch = 4  # a step of all its rows takes minutes here; its state is what is saved
    tree.run.update(steps=1000, eval_every=1000, save_every=1000)
    return flags.judged(tree)


def stalls() -> dict[str, float]:
    """Seconds, in the middle of some rounds: of a step, of a copy of the state, of the loop's stall, of digests, of a
    save, and of restoring it verified."""
    config = rung()
    mesh = sharding.make_mesh(config)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(config), out_shardings=state_shardings(config, mesh))()
        like = trees(abstract(config, mesh))
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        take = _stepper(config, mesh)
        saver = checkpoint.Saver(Path(folder), checkpoint.Keep(1))
        for n in range(ROUNDS + 1):
            state, step = _timed(lambda state=state: take(state))
            of_round = {"step": step, "copy": _timed(lambda state=state: copy(trees(state)))[1]}
            of_round["digests"] = _timed(lambda state=state: [digests.of_tree(x) for x in trees(state).values()])[1]
            saver.begin(n, trees(state), {})
            outcome = saver.wait()
            of_round |= {"stall": outcome.stall, "save": outcome.seconds}
            of_round["restore"] = _timed(lambda n=n: checkpoint.restore(Path(folder), n, like)[0])[1]
            for name, seconds in of_round.items() if n else ():  # the first round compiles
                found.setdefault(name, []).append(seconds)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def _stepper(config: Config, mesh: jax.sharding.Mesh) -> Callable[[State], State]:
    batch = sharding.to_global(_batch(config), config, mesh)
    outputs = (state_shardings(config, mesh), None)
    step = jax.jit(make_step(config, 1), donate_argnums=0, out_shardings=outputs)
    return lambda state: step(state, batch)[0]


def _batch(config: Config) -> Batch:
    """Rows of one document that fills them: random ids, stream after stream."""
    rng = np.random.default_rng(0)
    streams = list(config.streams.values())
    budgets = [stream.budget for stream in streams]
    of_token = np.repeat(np.arange(len(streams)), budgets)
    ids = np.concatenate([rng.integers(s.first_id, s.first_id + s.ids, s.budget) for s in streams])
    rows = [[document(0, row, ids, of_token)] for row in range(config.data.batch)]
    return pack(rows, list(config.streams), budgets, [0] * len(streams))


def _timed(f: Callable) -> tuple:
    began = time.perf_counter()
    result = jax.block_until_ready(f())
    return result, time.perf_counter() - began


def of_a_run() -> float:
    """A run's time with a save every 20 steps over its time with none, medians of rounds in turn."""
    seconds: dict[int, list[float]] = {20: [], 0: []}
    with tempfile.TemporaryDirectory() as folder:
        for n in range(ROUNDS):
            for every, measured in seconds.items():
                tree = digits.get_config("arch=mot,size=demo")
                tree.run.update(root=folder, name=f"{n}-{every}", steps=100, eval_every=100, eval_batches=1)
                tree.run.save_every = every or 1000
                rows = rundir.read_metrics(loop.run(flags.build(tree)))
                times = [row["wall_seconds"] for row in rows if row["kind"] == "train"]
                measured.append(times[-1] - times[1])
    return statistics.median(seconds[20]) / statistics.median(seconds[0])


def main() -> None:
    for name, value in stalls().items():
        print(f"{name}: {value:.3f} s")
    print(f"a run with saves every 20 steps / without: {of_a_run():.3f}")


if __name__ == "__main__":
    main()
