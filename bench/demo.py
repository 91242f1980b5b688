"""What the demo's small step reaches: against the matmul peak, and MoT against dense.

`python -m bench.demo`. In CPU-seconds of all threads, which other work on the machine changes little.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bench import timing
from configs import digits
from launch import cores, process
from mot.config import Config, resolve
from mot.data import budgets, embedded, pipeline, sources
from mot.data.mixture import Sources
from mot.model import flops

ROUNDS = 20
N = 2048  # rows and columns of the matrices that show the peak


def opened(arch: str) -> tuple[Config, Sources]:
    config = resolve(digits.get_config(f"arch={arch},size=demo"), embedded.faults)
    training, _ = sources.open_(config)
    return budgets.resolve(config, training), training


def step_and_work(arch: str) -> tuple[Callable[[], None], float]:
    """A function that takes one training step and waits for it; and the step's model FLOPs."""
    config, training = opened(arch)
    host = pipeline.Batches(training, config, 0, 1)[0].batch
    tokens = {name: int((x.segment != 0).sum()) for name, x in host.items()}
    work = flops.train_step(config, tokens, flops.visible_pairs(host))
    return timing.stepper(config, host, len(training.names)), work


def figures() -> dict[str, tuple[str, str]]:
    """`{figure: (value, bar)}` of `make bench`."""
    (mot, of_mot), (dense, of_dense) = step_and_work("mot"), step_and_work("dense")
    a = jnp.full((N, N), 0.5)
    multiply = jax.jit(jnp.matmul).lower(a, a).compile()

    def product():
        multiply(a, a).block_until_ready()

    seconds = timing.in_turn(mot, dense, product, clock=time.process_time, rounds=ROUNDS)
    peak = 2 * N**3 / seconds[:, 2].min()
    reached = [work / seconds[:, i].min() / peak for i, work in enumerate((of_mot, of_dense))]
    told = "{:.0f}, {:.0f} ms".format(*1e3 * seconds[:, :2].min(0))
    return {
        "demo's step, mot and dense: model FLOPs of matmul peak, CPU-seconds": (
            "{:.2f}, {:.2f}".format(*reached),
            "at least 0.50",
        ),
        "  mot step / dense step, CPU-seconds": (f"{timing.ratio(seconds):.3f}", "at most 1.03"),
        "  CPU-time of a step, mot and dense": (told, ""),
    }


if __name__ == "__main__":
    process.with_environment()
    cores.take(opened("mot")[0])
    for figure, (value, bar) in figures().items():
        print(f"{figure}: {value}" + (f" ({bar})" if bar else ""))
