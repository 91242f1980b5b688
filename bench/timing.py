"""Times: of a training step, of functions in turn, of one call."""

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from launch import cores
from mot import sharding
from mot.batches import Batch
from mot.config import Config
from mot.train.state import init_state, state_shardings
from mot.train.step import jitted

ROUNDS, BUDGET = 5, 180  # of a figure; seconds after which no further round begins
MOST_CALLS = 50  # that wait for one another: each has results


def mesh_of(c: Config) -> jax.sharding.Mesh:
    """As `mot train` makes it: rows are split over the cores."""
    return sharding.make_mesh(c, jax.devices()[: cores.serving([c], len(jax.devices()))])


def stepper(c: Config, host: Batch, of: int = 1, mesh: jax.sharding.Mesh | None = None) -> Callable[[], None]:
    """A function that takes one training step and waits for it."""
    mesh = mesh or mesh_of(c)
    step = jitted(c, of, mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(c), out_shardings=state_shardings(c, mesh))()
        rows = jax.device_put(host, sharding.of_batch(c, mesh))

    def once():
        nonlocal state
        with jax.set_mesh(mesh):
            state, measured = step(state, rows)
        jax.block_until_ready(measured)

    return once


def in_turn(*functions: Callable, clock: Callable = time.perf_counter, rounds: int = ROUNDS) -> np.ndarray:
    """Seconds of each function by a clock, `[rounds, functions]`, after a warm-up; a clock may tell several at once."""
    begin = time.perf_counter()
    rows = []
    for f in functions:
        f()
    while len(rows) < rounds and (not rows or time.perf_counter() - begin < BUDGET):
        row = []
        for f in functions:
            start = clock()
            f()
            row.append(clock() - start)
        rows.append(row)
    return np.array(rows)


def ratio(seconds: np.ndarray, a: int = 0, b: int = 1) -> float:
    """Of the least seconds: other work adds to some rounds, and so does the heap while it grows."""
    return seconds[:, a].min() / seconds[:, b].min()


def of_a_call(call: Callable, seconds: float) -> float:
    """Seconds of a call, the median of `ROUNDS` rounds that take so many seconds together.

    Of a round only the last call is waited for: the device goes from one to the next, as in training.
    """
    jax.block_until_ready(call())
    once = _round(call, 1)
    calls = min(max(int(seconds / ROUNDS / once), 1), MOST_CALLS)
    return statistics.median(_round(call, calls) for _ in range(ROUNDS))


def _round(call: Callable, calls: int) -> float:
    """Seconds of one of so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        last = call()
    jax.block_until_ready(last)
    return (time.perf_counter() - start) / calls
