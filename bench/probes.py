"""What probes cost: the gradients' against a training step of the demo's model, and all of one checkpoint.

`python -m bench.probes`.
"""

import statistics
import tempfile
import time

import jax

from configs import digits
from launch import cores, process
from mot import sharding
from mot.config import Config, resolve
from mot.data import embedded, pipeline
from mot.train import evaluate, loop, probe, restore
from mot.train.state import init_state, state_shardings
from mot.train.step import jitted

ROUNDS = 5
ARCHS = ("dense", "mot")


def of_steps(arch: str, rounds: int = ROUNDS) -> tuple[float, float]:
    """Seconds of the gradients' probe and of a training step, medians in turn; both are compiled before."""
    config, training, held_out = restore.open_data(_demo(arch))
    mesh = sharding.make_mesh(config, jax.devices()[: cores.serving([config], len(jax.devices()))])
    sources = len(training.names)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(config), out_shardings=state_shardings(config, mesh))()
        batch = sharding.to_global(pipeline.Batches(training, config, 0, 1)[0].batch, config, mesh)
        step = jitted(config, sources, mesh)
        batches, _ = evaluate.held_out(config, held_out, mesh)
        measure = probe.make_gradients_probe(config, sources, mesh)
        seconds = []
        for _ in range(1 + rounds):
            began = time.perf_counter()
            measure(state, batches[0], pipeline.nothing)
            measured = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, batch))
            seconds.append((measured - began, time.perf_counter() - measured))
    probed, trained = zip(*seconds[1:], strict=True)  # the first compiles
    return statistics.median(probed), statistics.median(trained)


def of_checkpoint(arch: str) -> float:
    """Seconds of all probes of a checkpoint of the demo's size, with reading and compiling; no cache helps."""
    with tempfile.TemporaryDirectory() as root:
        path = loop.run(_demo(arch, root=root, steps=1, eval_every=1, save_every=1))
        jax.config.update("jax_enable_compilation_cache", False)
        began = time.perf_counter()
        probe.run(path, [], [])
        jax.config.update("jax_enable_compilation_cache", True)
        return time.perf_counter() - began


def _demo(arch: str, **run) -> Config:
    tree = digits.get_config(f"arch={arch},size=demo").unlock()
    tree.run.update(run)
    tree.optim.warmup = 1
    return resolve(tree, embedded.faults)


def figures() -> dict[str, tuple[str, str]]:
    """By figure: what was measured, and the bar."""
    found = {}
    for arch in ARCHS:
        probed, trained = of_steps(arch)
        found[f"gradients' probe / a step, {arch} of demo size"] = (f"{probed / trained:.2f}", "at most 3")
    for arch in (*ARCHS, "moe_fine"):
        found[f"seconds of all probes of a checkpoint, {arch}"] = (f"{of_checkpoint(arch):.0f}", "at most 60")
    return found


def main() -> None:
    cores.take(_demo("dense"))
    for figure, (value, bar) in figures().items():
        print(f"{figure}: {value} ({bar})", flush=True)


if __name__ == "__main__":
    process.with_environment()
    main()
