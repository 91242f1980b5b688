"""Several small runs in one program: one configuration but for some numbers, every run on the same batches.

A small model leaves an accelerator idle (published: 14 % of its peak at 84M parameters), and a sweep has many. Runs are
one more axis of every array, and devices share them, whole runs each, without a word to each other. An accelerator
steps its runs at once (`vmap`), and nothing branches on what a run's numbers are; a core steps them in turn. Each run's
folder is what `loop.run` would have written.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.table import Table

from mot import checkpoint, sharding
from mot.checkpoint import Position
from mot.config import Config, Sections
from mot.config.axes import MESH_AXES
from mot.config.options import VARIED
from mot.config.varied import differing, put, varies
from mot.console import phase, say_once
from mot.data.mixture import Sources
from mot.data.pipeline import LeftOut
from mot.errors import UserError
from mot.model import kernels
from mot.runs import goodput, metrics, peak, probed, profile, rundir, trackers
from mot.runs.log import Dispatched, Diverged, Log
from mot.runs.writer import Live, Writer
from mot.train import evaluate, loop, probe, restore
from mot.train.memory import refuse_too_large
from mot.train.saves import Saves
from mot.train.signals import Signals
from mot.train.state import State, init_state, trees
from mot.train.step import make_step
from mot.train.watchdog import Watchdog

WHOLE = ("model.seed", "optim.warmup", "optim.decay_steps")  # of what may differ; all else is float32


class Runs(NamedTuple):
    """Several runs in one program."""

    configs: Sequence[Config]
    paths: Sequence[Path]
    mesh: jax.sharding.Mesh
    each: Callable  # of `for_each`


def run(
    configs: Sequence[Config],
    until: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    profiled: bool = False,
    accept: Collection[str] = (),
) -> list[Path]:
    """`loop.run` of all, which differ in `run.name` and in VARIED alone; returns their directories.

    A run that diverges stops by itself. Raises `UserError` before anything is written, also where the runs' checkpoints
    are of different steps; `Diverged` when all have; and `Stopped` after SIGINT or SIGTERM, every run saved.
    """
    began = time.monotonic()
    refuse_others(configs)
    trackers.refuse_absent(configs[0].run.trackers)
    first, training, held_out = restore.open_data(configs[0])
    configs = _with_budgets(first, configs)
    mesh = make_mesh(first, len(configs), devices)
    refuse_too_large(first, mesh, len(configs) // mesh.size)
    kernels.refuse_absent(first, mesh.devices.flat[0].platform)
    done = _same_step(configs)
    upcycled = [restore.upcycled(c) if c.init.run and not done else None for c in configs]
    with ExitStack() as locked:
        # Each is asked for what may be refused, before any is made or changed.
        found = [restore.accepted(c, training, (rundir.folder(c), done), accept) for c in configs]
        paths = [locked.enter_context(rundir.locked(c)) for c in configs]
        checkpoint.refuse_unwritable(paths[0] / "checkpoints")
        for c, path, accepted in zip(configs, paths, found, strict=True):
            restore.go_on(c, (path, done), accepted)
        with jax.set_mesh(mesh):
            runs = Runs(configs, paths, mesh, for_each(configs, mesh))
            _train(runs, training, held_out, done, upcycled, until, profiled, began, accept)
    return paths


def _train(
    runs: Runs,
    training: Sources,
    held_out: Sources,
    done: int,
    upcycled: Sequence[dict | None],
    until: int | None,
    profiled: bool,
    began: float,
    accept: Collection[str],
) -> None:
    """Trains all runs from step `done`, at which they are."""
    first = runs.configs[0]
    paths = runs.paths
    with phase("the first states: initial values, or checkpoints'"):
        state, positions = _start(runs, done, upcycled, accept)
    for position in positions:
        restore.take_up(position, first, training, accept)
    end = min(first.run.steps, until or first.run.steps)
    title = f"{first.run.name} and {len(paths) - 1} more"
    watched = Watchdog(paths[0], first.run.hang_timeout, 0.0)
    with Live(title, done, first.run.steps) as live, Signals() as signals, watched:
        if done >= end:
            live.say(f"{', '.join(map(str, paths))}: already at step {done}")
            for path in paths:
                trackers.catch_up(path, live.say)
            return
        if done:
            live.say(f"{', '.join(map(str, paths))}: resuming at step {done}")
        best = peak.of(runs.mesh, first.model.dtype, end - done, live.say)
        with loop.unwritable(paths[0]):
            logs = _logs(runs, positions, training, live, best, began)
            try:
                job = _job(runs, training, held_out, logs, end, signals, watched)
                writer = logs.all[0].writer  # a profile is of all, and is told by the first
                recorded = profile.Trace(paths[0], positions[0], writer, live) if profiled else nullcontext()
                with job.saves, recorded as trace:
                    loop.loop(job, state, signals, trace)
            finally:
                logs.close()


def refuse_others(configs: Sequence[Config]) -> None:
    """`UserError` where configurations differ in what one program has only once."""
    for key, (first, *others) in differing(configs).items():
        if not varies(key) and key != "run.name":
            other = next(value for value in others if value != first)
            why = f"share everything but {', '.join(VARIED)}"
            if key == "data.seed":
                why = "train on the same batches"
            raise UserError(f"{key}: {first!r} -> {other!r}: runs in one program {why}; start separate runs")
    if restore.is_branch(configs[0]):
        raise UserError("init.state: all; runs in one program begin at step 0; start each alone, or write weights")
    names = [c.run.name for c in configs]
    if len(set(names)) < len(names):
        raise UserError(f"run.name: {', '.join(names)}; every run needs its own; rename the runs")


def make_mesh(config: Config, runs: int, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """As many devices as runs, or all, each with as many runs; the model's own axes all have size one."""
    if jax.process_count() > 1:
        raise UserError(
            f"{jax.process_count()} processes: runs in one program have one; start one such program on each machine"
        )
    if split := [axis for axis in (*MESH_AXES, "slices") if getattr(config.mesh, axis) > 1]:
        axis = split[0]
        raise UserError(
            f"mesh.{axis}: {getattr(config.mesh, axis)}; of runs in one program each stands whole on one device; make "
            f"mesh.{axis} 1, or start separate runs"
        )
    devices = jax.devices() if devices is None else list(devices)
    used = min(runs, len(devices))
    if runs % used:
        raise UserError(
            f"{runs} runs do not divide among {used} devices; run a multiple of {used}, or fewer than there are devices"
        )
    types = (AxisType.Auto,) * (1 + len(MESH_AXES))
    return jax.make_mesh(
        (used, *(1 for _ in MESH_AXES)), ("runs", *MESH_AXES), axis_types=types, devices=devices[:used]
    )


def _with_budgets(first: Config, configs: Sequence[Config]) -> list[Config]:
    """Each with what `first` has since its data were opened: they share all that data decide."""
    varied = differing(configs)
    return [
        Config(**vars(with_values(first, {key: of_runs[i] for key, of_runs in varied.items()})))
        for i in range(len(configs))
    ]


def with_values(config: Sections, values: Mapping[str, Any]) -> Sections:
    """`config` with other values by dotted key: numbers that are traced, at which no check can look."""
    sections = Sections(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    for key, value in values.items():
        sections = put(sections, key, value)
    return sections


def for_each(configs: Sequence[Config], mesh: jax.sharding.Mesh, at_once: bool | None = None) -> Callable:
    """`each(f)` is f(config, of_one, *shared) of every run: (of_all, *shared) -> results of all, runs first.

    `at_once`: a device computes all of its runs together, as one that a single run leaves idle should. By default a CPU
    does not: a core is busy with one, and what several hold at once does not fit its caches (16 runs of 0.3M parameters
    on two cores take 1.2 times as long at once as in turn).
    """
    if at_once is None:
        at_once = mesh.devices.flat[0].platform != "cpu"
    values = {
        key: np.array(of_runs, jnp.int32 if key in WHOLE else jnp.float32)
        for key, of_runs in differing(configs).items()
        if varies(key)
    }
    config = configs[0]
    if (
        at_once and config.model.dispatch == "blocked"
    ):  # its loop would run as long as any run has rows, and copy those of all
        config = with_values(config, {"model.dispatch": "ragged"})

    def each(f):
        def one(values, of_one, *shared):
            return f(with_values(config, values), of_one, *shared)

        def some(values, of_some, *shared):
            if at_once:
                return jax.vmap(one, in_axes=(0, 0, *(None for _ in shared)))(values, of_some, *shared)

            def one_of_them(run):
                return one(*run, *shared)

            return jax.lax.map(one_of_them, (values, of_some))

        def all_runs(of_all, *shared):
            if mesh.size == 1:
                return some(values, of_all, *shared)
            inputs = (P("runs"), P("runs"), *(P() for _ in shared))
            return jax.shard_map(some, in_specs=inputs, out_specs=P("runs"), check_vma=False)(values, of_all, *shared)

        return all_runs

    return each


def _same_step(configs: Sequence[Config]) -> int:
    """The step that all runs are at."""
    folders = [rundir.folder(c) for c in configs]
    done = {path: checkpoint.newest(path / "checkpoints", say_once) or 0 for path in folders}
    if len(set(done.values())) > 1:
        listed = ", ".join(f"{path} at {step}" for path, step in done.items())
        raise UserError(
            f"the runs are at different steps: {listed}; leave out those that differ (each resumes alone, as a run "
            f"of its own name and value), or move their checkpoints after step {min(done.values())} away"
        )
    return done[folders[0]]


def _start(
    runs: Runs, done: int, upcycled: Sequence[dict | None], accept: Collection[str]
) -> tuple[State, list[Position]]:
    """The state of all, runs first, and each run's position."""
    by_run = NamedSharding(runs.mesh, P("runs"))
    if not done and upcycled[0] is None:
        init = runs.each(lambda config, _: init_state(config))
        state = jax.jit(init, out_shardings=by_run)(np.arange(len(runs.configs)))
        return state, [Position() for _ in runs.configs]
    alone = sharding.one_device(runs.mesh.devices.flat)
    with jax.set_mesh(alone):
        started = [
            restore.start(c, path, alone, done, weights, accept, verified=True)
            for c, path, weights in zip(runs.configs, runs.paths, upcycled, strict=True)
        ]
        states = jax.device_get([state for state, _ in started])

    def stack(*x):
        return jax.device_put(np.stack(x), by_run)

    return jax.tree.map(stack, *states), [position for _, position in started]


def _logs(
    runs: Runs, positions: Sequence[Position], training: Sources, live: Live, best: peak.Peak, began: float
) -> "Logs":
    def say(name: str) -> Callable[[str], None]:
        return lambda text: live.say(f"{name}: {text}")

    writers = [
        Writer(path, position.step, say=say(c.run.name))
        for c, path, position in zip(runs.configs, runs.paths, positions, strict=True)
    ]
    for writer, position in zip(writers, positions, strict=True):
        loop.keep_said(writer, position.step)
    for path, position in zip(runs.paths, positions, strict=True):
        probed.forget_after(path, position.step)
    clock = goodput.resumed(positions[0].wall, writers[0].found, began)
    logs = []
    for c, position, writer in zip(runs.configs, positions, writers, strict=True):
        position.wall = clock.seconds  # all runs have one clock
        logs.append(Log(c, training.names, position, writer, say(c.run.name), best, clock, training.name_of))
    return Logs(logs, live)


def _job(
    runs: Runs, training: Sources, held_out: Sources, logs: "Logs", end: int, signals: Signals, watchdog: Watchdog
) -> loop.Job:
    first = runs.configs[0]
    step = runs.each(lambda config, state, batch: make_step(config, len(training.names))(state, batch))
    step = jax.jit(step, donate_argnums=0, out_shardings=(NamedSharding(runs.mesh, P("runs")), None))

    def between() -> None:
        watchdog.moved("a batch of an evaluation")
        signals.interrupt()

    evaluate_all = _make_evaluate(runs, held_out, logs.live, between)
    take = jax.jit(_of_run)

    savers = [
        checkpoint.Saver(path / "checkpoints", checkpoint.Keep(c.run.keep, c.run.keep_every, log.best))
        for c, path, log in zip(runs.configs, runs.paths, logs.all, strict=True)
    ]

    histories = [rundir.accepted(path) for path in runs.paths]

    def trees_of(state: State, i: int) -> dict:
        return take(trees(state), i)

    measure = _make_probe(runs, held_out, len(training.names), logs, between)
    saves = Saves(first, list(zip(savers, logs.all, strict=True)), trees_of, histories)
    rest = (saves, logs, logs.live, watchdog, end)
    return loop.Job(first, runs.mesh, training, held_out, step, evaluate_all, measure, *rest)


def _make_evaluate(
    runs: Runs, held_out: Sources, live: Live, between: Callable[[], None]
) -> Callable[[State], list[dict]]:
    """`state -> ` each run's row, as `evaluate.make_evaluate` makes it."""
    first = runs.configs[0]
    batches, bytes_O = evaluate.held_out(first, held_out, runs.mesh, live.say)

    @partial(jax.jit, static_argnames="causal")
    def sums(params, batch, causal):
        def of_batch(config, params, batch):
            return evaluate.make_sums(config, len(held_out.names))(params, batch, causal)

        return runs.each(of_batch)(params, batch)

    def evaluate_all(state: State) -> list[dict]:
        params = state.ema or state.params
        total = {False: evaluate.total(sums, params, batches, causal=False, between=between)}
        if not first.causal:
            total[True] = evaluate.total(sums, params, batches, causal=True, between=between)

        def report(i: int) -> dict:
            return evaluate.report(runs.configs[i], held_out, bytes_O, lambda causal: _of_run(total[causal], i))

        return [report(i) for i in range(len(runs.configs))]

    return evaluate_all


def _make_probe(
    runs: Runs, held_out: Sources, sources: int, logs: "Logs", between: Callable[[], None]
) -> Callable[[State, int], None]:
    """`(state, step)`: measures one run after another, each by itself on one device."""
    alone = sharding.one_device(runs.mesh.devices.flat)
    each = []
    for config, path, log in zip(runs.configs, runs.paths, logs.all, strict=True):
        made = probe.make_probe(config, held_out, sources, alone, log.say, between)
        each.append(probe.in_training(made, config, path, log.say))

    def measure(state: State, step: int) -> None:
        of_all = jax.device_get(state)
        with jax.set_mesh(alone):
            for i, _ in logs.present():
                each[i](jax.device_put(_of_run(of_all, i), sharding.replicated(alone)), step)

    return measure


def _of_run(tree: Any, i: int) -> Any:
    """Run i's leaves of a tree whose leaves have runs first."""
    return jax.tree.map(lambda x: x[i], tree)


class Logs:
    """The logs of all runs, in place of the one that the loop has of a single run.

    A run's seconds are its share, so its speed and MFU are all runs'. A run that diverged writes nothing more,
    but that it was saved.
    """

    def __init__(self, logs: Sequence[Log], live: Live):
        self.all = logs
        self.live = live
        self.position = logs[0].position  # all are at one step
        self.clock = logs[0].clock  # and share their time
        self.modalities = logs[0].config.modalities
        self.ended: dict[int, int] = {}  # runs that diverged, and the step
        self.diverged: Diverged | None = None  # once all have
        self.held_out: list[dict] = [{} for _ in logs]  # each run's last evaluation

    def present(self) -> list[tuple[int, Log]]:
        """The runs that have not diverged, and their numbers."""
        return [(i, log) for i, log in enumerate(self.all) if i not in self.ended]

    def start(self, about: Mapping) -> None:
        names = [log.config.run.name for log in self.all]
        for log in self.all:
            log.start(about | {"together": names})

    def left_out(self, documents: Sequence[LeftOut]) -> None:
        for _, log in self.present():
            log.left_out(documents)

    def advance(self, plan: dict, idle: float, waited: float) -> list[dict]:
        return [log.advance(plan, idle, waited) for log in self.all]

    def write(self, step: Dispatched, seconds: float) -> dict:
        """Each run's row; returns their mean. Once all have diverged, so has the whole."""
        rows = []
        for i, log in self.present():
            own = step._replace(measured=_of_run(step.measured, i), row=step.row[i])
            rows.append(log.write(own, seconds / len(self.all)))
            if log.diverged:
                self.ended[i] = step.number
                log.say(str(log.diverged))
        if not self.present():
            self.diverged = self.all[-1].diverged
        return _mean(rows)

    def lacks_evaluation(self) -> bool:
        return any(log.lacks_evaluation() for log in self.all)

    def evaluation(self, rows: Sequence[dict]) -> None:
        present = self.present()
        for i, log in present:
            log.write_evaluation(rows[i])
            self.held_out[i] = rows[i]
        line = metrics.line(_mean([rows[i] for i, _ in present]), self.modalities)
        self.live.say(f"{len(present)} runs, step {self.position.step}: held-out {line} in the mean")

    def close(self) -> None:
        """Ends the files, with a table of the runs' last held-out losses."""
        for log in self.all:
            log.writer.end()
        for log in self.all:
            log.writer.close()
        named = [m for m in self.modalities if any(f"loss/{m}" in row for row in self.held_out)]
        table = Table("run", *(f"held-out {m}" for m in named), "step")
        for i, (log, row) in enumerate(zip(self.all, self.held_out, strict=True)):
            step = f"diverged at {self.ended[i]}" if i in self.ended else f"{log.position.step}"
            losses = [f"{row[f'loss/{m}']:.4f}" if f"loss/{m}" in row else "" for m in named]
            table.add_row(log.config.run.name, *losses, step)
        self.live.console.print(table)


def _mean(rows: Sequence[dict]) -> dict[str, float]:
    """The mean of each number that all rows have; of no row there is none."""
    first = rows[0] if rows else {}
    common = [key for key, x in first.items() if isinstance(x, float) and all(key in row for row in rows)]
    return {key: float(np.mean([row[key] for row in rows])) for key in common}
