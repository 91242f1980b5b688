"""What saving costs a run, and what restoring takes: at the ladder's rung of 10M parameters, and of whole runs."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from bench.rows import filled
from configs import digits, ladder
from launch import flags, process
from mot import checkpoint, sharding
from mot.checkpoint import digests
from mot.config import Config
from mot.train import loop, saves
from mot.train.state import State, abstract, init_state, state_shardings, trees
from mot.train.step import make_step

ROUNDS = 5
EVERY = 20  # steps between the saves of a run


def rung() -> Config:
    tree = ladder.get_config("rung=10m,arch=dense,device=cpu")
    tree.data.batch = 4  # a step of all its rows takes minutes here; its state is what is saved
    tree.run.update(steps=1000, eval_every=1000, save_every=1000)
    return flags.judged(tree)


def stalls() -> dict[str, list[float]]:
    """Seconds, in each of some rounds: of a step, of a copy of the state, of the loop's stall, of digests, of a save,
    and of restoring it verified."""
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
    return found


def _stepper(config: Config, mesh: jax.sharding.Mesh) -> Callable[[State], State]:
    batch = sharding.to_global(filled(config), config, mesh)
    outputs = (state_shardings(config, mesh), None)
    step = jax.jit(make_step(config, 1), donate_argnums=0, out_shardings=outputs)
    return lambda state: step(state, batch)[0]


def _timed(f: Callable) -> tuple:
    began = time.perf_counter()
    result = jax.block_until_ready(f())
    return result, time.perf_counter() - began


def of_a_run() -> tuple[list[float], list[float]]:
    """Two save intervals of a run over two without a save, pair after pair of one run: by the clock, and of CPUs.

    A save begins in the middle of an interval, so that it has ended before those of the other kind begin. What CPUs
    spend tells it also where other work has the machine, too.
    """
    block = 2 * EVERY
    due = saves.Saves.due
    spent = {}

    def in_every_second_block(self, step: int, wanted: bool, busy: bool) -> bool:
        spent[step] = time.monotonic(), time.process_time()
        is_in = step % EVERY == EVERY // 2 and step // block % 2 == 1
        return is_in and due(self, step, wanted, busy)

    tree = digits.get_config("arch=mot,size=demo")
    steps = block * (1 + 2 * ROUNDS) + 1  # the first ones warm up
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(saves.Saves, "due", in_every_second_block):
        tree.run.update(root=folder, steps=steps, eval_every=steps, eval_batches=1, save_every=EVERY // 2)
        loop.run(flags.build(tree))
    at = np.array([spent[n] for n in range(block, steps, block)])
    of_blocks = np.diff(at, axis=0)
    return tuple((of_blocks[::2] / of_blocks[1::2]).T.tolist())


def restart() -> tuple[float, float]:
    """Seconds from the command to the first step of a run of the demo's model that resumes, by the clock and of CPUs.

    The medians of some restarts. The command before has compiled all; each is killed once it has taken its step.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        values = {"root": folder, "name": "restarted", "steps": 10_000, "save_every": 5, "eval_every": 10_000}
        command = [sys.executable, "-m", "mot", "train", "--config=configs/digits.py:arch=mot,size=demo"]
        command += [f"--config.run.{key}={value}" for key, value in values.items()]
        file = Path(folder) / "restarted" / "metrics.jsonl"
        for n in range(4):
            began = time.monotonic()
            running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            started = n + 1  # events of this kind, once it has resumed
            while not _has_stepped(file, started):
                if running.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended with {running.returncode}")
                time.sleep(0.01)
            seconds = time.monotonic() - began
            while not n and not checkpoint.steps(file.parent / "checkpoints"):
                time.sleep(0.1)
            running.send_signal(signal.SIGKILL)
            _, _, used = os.wait4(running.pid, 0)
            found.append((seconds, used.ru_utime + used.ru_stime))
    return tuple(map(statistics.median, zip(*found[1:], strict=True)))


def _has_stepped(file: Path, started: int) -> bool:
    """Is there a row of a step after the start of this number?"""
    parts = file.read_text(encoding="utf-8").split('"event": "start"') if file.exists() else []
    return len(parts) > started and '"kind": "train"' in parts[started]


def figures() -> dict[str, tuple[str, str]]:
    """Each figure's value and bar."""
    found = stalls()
    of_step = [stall / step for stall, step in zip(found["stall"], found["step"], strict=True)]
    beyond = [1e3 * (stall - copied) for stall, copied in zip(found["stall"], found["copy"], strict=True)]
    of_save = [own / save for own, save in zip(found["digests"], found["save"], strict=True)]
    wall, cpu = restart()
    times, works = of_a_run()
    with_saves = f"a run with saves every {EVERY} steps / without"
    percent = "{:.1%}".format
    return {
        "a save's stall / a step of 4 rows, 10M": (_spread(of_step, percent), "at most 5 %"),
        "  beyond the copy of the state": (_spread(beyond, "{:.0f} ms".format), "at most 200 ms"),
        "digests / a save, 10M": (_spread(of_save, percent), "at most 10 %"),
        "restoring and verifying, 10M": (_spread(found["restore"], "{:.2f} s".format), "at most 3 s"),
        with_saves: (_spread(times, "{:.3f}".format), "at most 1.03"),
        "  seconds of CPU": (_spread(works, "{:.3f}".format), "at most 1.03"),
        "from the command to a resumed run's first step": (f"{wall:.1f} s, {cpu:.1f} s of CPU", "at most 15 s"),
    }


def _spread(values: Sequence[float], told: Callable[[float], str]) -> str:
    return f"{told(statistics.median(values))} ({told(min(values))} to {told(max(values))})"


def main() -> None:
    for name, (value, bar) in figures().items():
        print(f"{name}: {value}; {bar}", flush=True)


if __name__ == "__main__":
    process.with_environment()  # as `mot` has it
    main()
