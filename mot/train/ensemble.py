"""Several small runs in one program: one configuration but for a few numbers, every run on the same batches.

A small model leaves an accelerator idle (published: 14 % of its peak at 84M parameters), and a sweep has many. Runs are
one more axis of every array: `vmap` on a device, and devices share them, whole runs each, without a word to each other.
Nothing branches on what a run's numbers are. Each run's folder is what `train.run` would have written.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.table import Table

from mot import checkpoint, sharding
from mot.config import Config, differences
from mot.config.axes import MESH_AXES
from mot.config.options import VARIED
from mot.console import phase
from mot.errors import UserError
from mot.model import kernels
from mot.runs import metrics, peak, profile, provenance, rundir
from mot.runs.log import Diverged, Log
from mot.train import evaluate, loop
from mot.train.state import init_state, refuse_too_large, trees

DTYPES = {"model.seed": jnp.int32}  # of what may differ; the others are float32


def run(
    configs: Sequence[Config],
    until: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    profiled: bool = False,
) -> list[Path]:
    """`train.run` of all, which differ in `run.name` and in VARIED alone; returns their directories.

    A run that diverges stops by itself. Raises `UserError` before anything is written, also where the runs' checkpoints
    are of different steps; `Diverged` when all have; and `Stopped` after SIGINT or SIGTERM, every run saved.
    """
    refuse_others(configs)
    first, training, held_out = loop.opened(configs[0])
    configs = [dataclasses.replace(first, run=c.run, model=c.model, optim=c.optim) for c in configs]
    mesh = make_mesh(first, len(configs), devices)
    refuse_too_large(first, mesh, len(configs) // mesh.size)
    kernels.refuse_absent(first, mesh.devices.flat[0].platform)
    at = _same_step(configs)
    upcycled = [loop.upcycled(c) if c.init.run and not at else None for c in configs]
    for c in configs:  # what may be refused comes first
        rundir.changed(c)
    for c in configs:
        rundir.open_run(c)
    paths = [rundir.folder(c) for c in configs]
    checkpoint.refuse_unwritable(paths[0] / "checkpoints")
    each = vmapped(configs, mesh)
    with jax.set_mesh(mesh):
        with phase("the first states: initial values, or checkpoints'"):
            state, positions = _start(configs, paths, mesh, each, at, upcycled)
        for path, position in zip(paths, positions, strict=True):
            loop.refuse_other_data(path, position, training)
        end = min(first.run.steps, until or first.run.steps)
        title = f"{first.run.name} and {len(configs) - 1} more"
        with metrics.Live(title, at, first.run.steps) as live, loop.Signals() as signals:
            if at >= end:
                live.say(f"{', '.join(map(str, paths))}: already at step {at}")
                return paths
            if at:
                live.say(f"{', '.join(map(str, paths))}: resuming at step {at}")
            best = peak.of(mesh, first.model.dtype, end - at, live.say)
            with loop.unwritable(paths[0]):
                logs = [
                    Log(c, training.names, position, metrics.Writer(path, at), _Voice(live, c.run.name), best)
                    for c, path, position in zip(configs, paths, positions, strict=True)
                ]
                log = Logs(logs, live)
                try:
                    parts = _parts(configs, paths, mesh, each, training, held_out, log)
                    with profile.Trace(paths[0], log) if profiled else nullcontext() as trace:
                        loop.loop(first, mesh, state, training, held_out, parts, log, signals, end, trace)
                finally:
                    log.close()
    return paths


def refuse_others(configs: Sequence[Config]) -> None:
    """`UserError` where configurations differ in what one program has only once."""
    plain = [rundir.plain(c) for c in configs]
    for one in plain[1:]:
        for difference in differences(plain[0], one):
            key = difference.partition(":")[0]
            if key not in VARIED and key != "run.name":
                raise UserError(
                    f"{difference}: runs in one program share everything but {', '.join(VARIED)}; start separate runs"
                )
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


def _at(config: Config, values: dict) -> Config:
    """`config` with traced numbers in place of its own, at which no check can look."""
    view = object.__new__(Config)
    vars(view).update(vars(config))
    for key, value in values.items():
        section, name = key.split(".")
        vars(view)[section] = dataclasses.replace(getattr(view, section), **{name: value})
    return view


def vmapped(configs: Sequence[Config], mesh) -> Callable:
    """`each(f)` is f(config, of_one, *shared) of every run at once: (of_all, *shared) -> results of all, runs first."""

    def value(c, key):
        return getattr(getattr(c, key.split(".")[0]), key.split(".")[1])

    given = {key: [value(c, key) for c in configs] for key in VARIED}
    values = {key: np.array(x, DTYPES.get(key, jnp.float32)) for key, x in given.items() if len(set(x)) > 1}
    # `blocked` loops over the rows that experts have: of several runs, as long as any has some, and copying them all.
    dispatch = {"blocked": "ragged"}.get(configs[0].model.dispatch, configs[0].model.dispatch)
    config = _at(configs[0], {"model.dispatch": dispatch})

    def each(f):
        def one(values, of_one, *shared):
            return f(_at(config, values), of_one, *shared)

        def some(values, of_some, *shared):
            return jax.vmap(one, in_axes=(0, 0, *(None for _ in shared)))(values, of_some, *shared)

        def all_runs(of_all, *shared):
            if mesh.size == 1:
                return some(values, of_all, *shared)
            inputs = (P("runs"), P("runs"), *(P() for _ in shared))
            return jax.shard_map(some, in_specs=inputs, out_specs=P("runs"), check_vma=False)(values, of_all, *shared)

        return all_runs

    return each


def _same_step(configs) -> int:
    """The step that all runs are at."""
    saved = {rundir.folder(c): checkpoint.steps(rundir.folder(c) / "checkpoints") for c in configs}
    at = {path: steps[-1] if steps else 0 for path, steps in saved.items()}
    if len(set(at.values())) > 1:
        told = ", ".join(f"{path} at {step}" for path, step in at.items())
        raise UserError(
            f"the runs are at different steps: {told}; leave out those that differ (each resumes alone, as a run "
            f"of its own name and value), or move their checkpoints after step {min(at.values())} away"
        )
    return next(iter(at.values()))


def _start(configs, paths, mesh, each, at, upcycled):
    """The state of all, runs first, and each run's position."""
    runs = NamedSharding(mesh, P("runs"))
    if not at and upcycled[0] is None:
        init = each(lambda config, _: init_state(config))
        state = jax.jit(init, out_shardings=runs)(np.arange(len(configs)))
        return state, [loop.Position() for _ in configs]
    alone = sharding.one_device(mesh.devices.flat)
    with jax.set_mesh(alone):
        started = [loop.start(c, path, alone, first=x) for c, path, x in zip(configs, paths, upcycled, strict=True)]
        states = jax.device_get([state for state, _ in started])

    def stack(*x):
        return jax.device_put(np.stack(x), runs)

    return jax.tree.map(stack, *states), [position for _, position in started]


def _parts(configs, paths, mesh, each, training, held_out, log) -> loop.Parts:
    runs = NamedSharding(mesh, P("runs"))
    step = each(lambda config, state, batch: loop.make_step(config, len(training.names))(state, batch))
    batches, bytes_O = evaluate.held_out(configs[0], held_out, mesh, log.live.say)

    @partial(jax.jit, static_argnames="causal")
    def sums(params, batch, causal):
        def of_batch(config, params, batch):
            return evaluate.sums(config, len(held_out.names))(params, batch, causal)

        return each(of_batch)(params, batch)

    def evaluated(state):
        """Each run's row."""
        params = state.ema or state.params
        total = {False: evaluate.total(sums, params, batches, causal=False)}
        if not configs[0].causal:
            total[True] = evaluate.total(sums, params, batches, causal=True)
        rows = []
        for i, c in enumerate(configs):

            def of_run(causal, i=i):
                return jax.tree.map(lambda x: x[i], total[causal])

            rows.append(evaluate.report(c, held_out, bytes_O, of_run))
        return rows

    take = jax.jit(lambda tree, i: jax.tree.map(lambda x: x[i], tree))

    def save(state):
        for i, (c, path, of_run) in enumerate(zip(configs, paths, log.logs, strict=True)):
            if i not in log.gone:
                folder = path / "checkpoints"
                position = of_run.position
                made_by = provenance.made_by()
                checkpoint.save(folder, position.step, take(trees(state), i), vars(position), c.run.keep, made_by)

    return loop.Parts(jax.jit(step, donate_argnums=0, out_shardings=(runs, None)), evaluated, save)


class _Voice:
    """What a run says among several: events with its name; the line is all runs' mean."""

    def __init__(self, live, name):
        self.live, self.name = live, name

    def say(self, text: str) -> None:
        self.live.say(f"{self.name}: {text}")

    def update(self, step: int, line: str) -> None:
        pass


class Logs(Log):
    """The logs of all runs, as the loop sees them. A run's seconds are its share, so its speed and MFU are all runs'.

    `gone`: the runs that diverged, and when; they write nothing more.
    """

    def __init__(self, logs: Sequence[Log], live):
        one = logs[0]
        super().__init__(one.config, one.sources, one.position, one.writer, live, one.peak)
        self.logs, self.gone, self.held_out = logs, {}, [{} for _ in logs]

    def present(self) -> list[tuple[int, Log]]:
        return [(i, log) for i, log in enumerate(self.logs) if i not in self.gone]

    def start(self, about):
        for log in self.logs:
            log.start(about | {"together": [x.config.run.name for x in self.logs]})

    def left_out(self, documents):
        for _, log in self.present():
            log.left_out(documents)

    def dispatched(self, measured, counts, packed, idle, waited):
        for log in self.logs[1:]:
            log.position.step, log.position.plan = self.position.step + 1, packed.state
        super().dispatched(measured, counts, packed, idle, waited)

    def write(self, measured, row, seconds):
        counts = measured.pop("counts")
        step = row["step"]
        rows = []
        for i, log in self.present():
            of_run = jax.tree.map(lambda x, i=i: x[i], measured) | {"counts": counts}
            try:
                rows.append(log.write(of_run, dict(row), seconds / len(self.logs)))
            except Diverged as error:
                self.gone[i] = step
                log.live.say(str(error))
                if len(self.gone) == len(self.logs):
                    raise
        self.live.update(step, self._mean(rows))
        return row

    def _mean(self, rows) -> str:
        common = {key for key, value in rows[0].items() if isinstance(value, float) and all(key in row for row in rows)}
        return metrics.line({key: np.mean([row[key] for row in rows]) for key in common}, self.config.modalities)

    def evaluation(self, rows):
        for i, log in self.present():
            log.write_evaluation(rows[i])
            self.held_out[i] = rows[i]
        line = self._mean([rows[i] for i, _ in self.present()])
        self.live.say(f"{len(self.present())} runs, step {self.position.step}: held-out {line} in the mean")

    def close(self):
        """Ends the files, with a table of the runs' last held-out losses."""
        for log in self.logs:
            log.writer.close()
        named = [m for m in self.config.modalities if any(f"loss/{m}" in row for row in self.held_out)]
        table = Table("run", *(f"held-out {m}" for m in named), "step")
        for i, (log, row) in enumerate(zip(self.logs, self.held_out, strict=True)):
            step = f"diverged at {self.gone[i]}" if i in self.gone else f"{log.position.step}"
            losses = [f"{row[f'loss/{m}']:.4f}" if f"loss/{m}" in row else "" for m in named]
            table.add_row(log.config.run.name, *losses, step)
        self.live.console.print(table)
