"""What a search gains from one program: points of a search at a rung, together and one after another.

`python -m bench.search`. Steps alone are compared, and first steps, which compile: together there is one program, and
one after another each run has a program of its own, since a rate is a constant of it.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from configs import chameleon, search
from launch import cores, process
from mot import sharding
from mot.config import Config, resolve
from mot.config.varied import put
from mot.data import budgets, embedded, pipeline, sources
from mot.train import ensemble
from mot.train.state import init_state, state_shardings
from mot.train.step import make_step

RUNG = "arch=mot,size=0.3m"
RANGES = {"optim.lr": search.log(1e-3, 1e-2), "optim.beta2": search.linear(0.9, 0.99)}
ROUNDS = 3
Step = Callable[[], None]  # takes one step and waits for its end


class Gain(NamedTuple):
    """Seconds of so many points one after another over seconds of all in one program."""

    steps: list[float]  # by round
    first: float  # of first steps, which compile: one after another as often as there are points
    whole: float  # of the rung's steps with the first one; its start and its evaluations are not in it


def gain(count: int, rounds: int = ROUNDS) -> Gain:
    configs, host, of = _configs(count)
    together, alone = _together(configs, host, of), _alone(configs[0], host, of)
    first = _seconds(alone) * count, _seconds(together)
    found = []
    for _ in range(rounds):
        of_all = _seconds(together)
        found.append((sum(_seconds(alone) for _ in configs), of_all))
    rest = configs[0].run.steps - 1
    one_by_one, at_once = (x + rest * y for x, y in zip(first, np.median(found, axis=0), strict=True))
    return Gain([a / b for a, b in found], first[0] / first[1], one_by_one / at_once)


def _configs(count: int) -> tuple[list[Config], dict, int]:
    """The points' configurations, a batch that all read, and how many sources it is of."""
    c = resolve(chameleon.get_config(RUNG), embedded.faults)
    training, _ = sources.open_(c)
    c = budgets.resolve(c, training)
    configs = []
    for point in search.points(RANGES, count):
        changed = c
        for key, value in point.items():
            changed = put(changed, key, value)
        configs.append(changed)
    return configs, pipeline.Batches(training, c, 0, 1)[0].batch, len(training.names)


def _together(configs: list[Config], host: dict, of: int) -> Step:
    mesh = ensemble.make_mesh(configs[0], len(configs), jax.devices())
    each = ensemble.for_each(configs, mesh)
    place = NamedSharding(mesh, PartitionSpec("runs"))

    def take_one(config, state, batch):
        return make_step(config, of)(state, batch)

    with jax.set_mesh(mesh):
        state = jax.jit(each(lambda config, _: init_state(config)), out_shardings=place)(np.arange(len(configs)))
        step = jax.jit(each(take_one), donate_argnums=0, out_shardings=(place, None))
        batch = sharding.to_global(host, configs[0], mesh)
    return _stepper(mesh, state, step, batch)


def _alone(c: Config, host: dict, of: int) -> Step:
    """As `mot train` steps one run: its rows are split over the cores."""
    mesh = sharding.make_mesh(c, jax.devices()[: cores.serving([c], len(jax.devices()))])
    place = state_shardings(c, mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(c), out_shardings=place)()
        step = jax.jit(make_step(c, of), donate_argnums=0, out_shardings=(place, None))
        batch = sharding.to_global(host, c, mesh)
    return _stepper(mesh, state, step, batch)


def _stepper(mesh: jax.sharding.Mesh, state, step: Callable, batch) -> Step:
    def once() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, measured = step(state, batch)
        jax.block_until_ready(measured)

    return once


def _seconds(once: Step) -> float:
    begun = time.perf_counter()
    once()
    return time.perf_counter() - begun


def figures(counts: tuple[int, ...] = (16, 64)) -> dict[str, tuple[str, str]]:
    """By figure, what was measured and its bar."""
    result = {}
    for count in counts:
        found = gain(count)
        name = f"{count} points of a search at 0.3M one after another / in one program"
        rounds = ", ".join(f"{ratio:.2f}" for ratio in found.steps)
        bar = "at least 1.3" if count == 16 else "reported"
        result[f"{name}, steps"] = (f"{statistics.median(found.steps):.2f} ({rounds})", bar)
        result[f"{name}, first step with compiling"] = (f"{found.first:.2f}", "reported")
        result[f"{name}, all steps of the rung with compiling"] = (f"{found.whole:.2f}", "reported")
    return result


def main() -> None:
    cores.make(cores.cores())
    for figure, (value, bar) in figures().items():
        print(f"{figure}: {value}; {bar}", flush=True)


if __name__ == "__main__":
    process.with_environment()  # as `mot` has it
    main()
