"""What a search gains from one program: points of a search at a rung, together and one after another."""

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from configs import chameleon
from launch import cores
from mot import sharding
from mot.config import Config, resolve
from mot.config.varied import put
from mot.data import budgets, embedded, pipeline, sources
from mot.train import ensemble
from mot.train.state import init_state, state_shardings
from mot.train.step import make_step

RUNG = "arch=mot,size=0.3m"
ROUNDS = 3


def steps_of(tree: ConfigDict, values: dict[str, list]) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step of several runs in one program, and of the same runs one after another; each waits for its end.

    `values` are those of each run by dotted key.
    """
    c = resolve(tree, embedded.faults)
    training, _ = sources.open_(c)
    c = budgets.resolve(c, training)
    host = pipeline.Batches(training, c, 0, 1)[0].batch
    count = len(next(iter(values.values())))
    configs = [c] * count
    for key, of_runs in values.items():
        configs = [put(config, key, value) for config, value in zip(configs, of_runs, strict=True)]
    alone = _alone(c, host, len(training.names))
    return _together(configs, host, len(training.names)), lambda: [alone() for _ in configs]


def _together(configs: list[Config], host: dict, of: int) -> Callable[[], None]:
    mesh = ensemble.make_mesh(configs[0], len(configs), jax.devices())
    each = ensemble.vmapped(configs, mesh)
    place = NamedSharding(mesh, PartitionSpec("runs"))

    def take_one(config, state, batch):
        return make_step(config, of)(state, batch)

    with jax.set_mesh(mesh):
        state = jax.jit(each(lambda config, _: init_state(config)), out_shardings=place)(np.arange(len(configs)))
        step = jax.jit(each(take_one), donate_argnums=0, out_shardings=(place, None))
        batch = sharding.to_global(host, configs[0], mesh)

    def once() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, measured = step(state, batch)
        jax.block_until_ready(measured)

    return once


def _alone(c: Config, host: dict, of: int) -> Callable[[], None]:
    """As `mot train` steps one run: its rows are split over the cores."""
    mesh = sharding.make_mesh(c, jax.devices()[: cores.serving([c], len(jax.devices()))])
    place = state_shardings(c, mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(c), out_shardings=place)()
        step = jax.jit(make_step(c, of), donate_argnums=0, out_shardings=(place, None))
        batch = sharding.to_global(host, c, mesh)

    def once() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, measured = step(state, batch)
        jax.block_until_ready(measured)

    return once


def seconds_of(once: Callable[[], None]) -> float:
    begun = time.perf_counter()
    once()
    return time.perf_counter() - begun


def points(count: int) -> dict[str, list]:
    return {"optim.lr": [1e-3 + 1e-5 * i for i in range(count)], "optim.beta2": [0.9 + 1e-4 * i for i in range(count)]}


def main() -> None:
    cores.make(cores.cores())
    for count in (16, 64):
        together, in_turn = steps_of(chameleon.get_config(RUNG), points(count))
        first = [seconds_of(together), seconds_of(in_turn)]
        rounds = [(seconds_of(together), seconds_of(in_turn)) for _ in range(ROUNDS)]
        print(count, first, rounds, statistics.median(b / a for a, b in rounds), flush=True)


if __name__ == "__main__":
    main()
