"""Training, top to bottom: the state, one step, the loop."""

import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from mot import batch as batches
from mot import checkpoint, flops, metrics, model, objectives, optim, params, rundir, sharding
from mot.config import Config, ConfigError, differences
from mot.data import embedded, pipeline
from mot.errors import Damaged, UserError
from mot.evaluate import make_evaluate


@struct.dataclass
class State:
    params: dict  # float32
    opt: Any  # of the parameters that train
    ema: dict  # of the parameters; {} where optim.ema is 0
    updates: jax.Array  # steps applied; skipped ones are not


class Stopped(SystemExit):
    """Training ended by a signal, its state saved. Uncaught, it ends the process with 130 (SIGINT) or 75 (SIGTERM)."""


class Diverged(UserError):
    """Too many steps in a row were not finite."""


def init_state(config: Config) -> State:
    """Call under `jit`."""
    weights = params.init(params.table(config), config.model.seed)
    trained, _ = params.split(weights, optim.trainable(config))
    ema = weights if config.optim.ema else {}
    return State(weights, optim.make(config).init(trained), ema, jnp.zeros((), jnp.int32))


def make_step(config: Config, sources: int):
    """`(state, batch) -> (state, measurements)`: gradients over all microbatches, and an update if they are finite."""
    optimiser, schedule, is_trained = optim.make(config), optim.schedule(config), optim.trainable(config)

    def loss(trained, frozen, microbatch, Z_M):
        weights = params.merge(trained, frozen)
        hidden = model.forward(weights, microbatch, config)
        return objectives.next_token(hidden, model.head(weights, config), Z_M, config, sources)

    def step(state: State, batch: batches.Batch):
        trained, frozen = params.split(state.params, is_trained)
        Z_M = objectives.totals(batch, config)  # of the whole batch: a microbatch is divided by what all weigh
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if config.optim.accumulate == 1:
            (total, sums), grads = value_and_grad(trained, frozen, batch, Z_M)
        else:
            one = lambda microbatch: value_and_grad(trained, frozen, microbatch, Z_M)
            (total, sums), grads = _accumulate(one, _microbatches(batch, config.optim.accumulate))
        norms = _norms_by_tower(grads)
        norm = optax.tree.norm(grads)
        ok = jnp.isfinite(norm) & jnp.isfinite(total)

        def update():
            updates, opt = optimiser.update(grads, state.opt, trained)
            weights, d = params.merge(optax.apply_updates(trained, updates), frozen), config.optim.ema
            ema = jax.tree.map(lambda e, w: d * e + (1 - d) * w, state.ema, weights) if d else {}
            return State(weights, opt, ema, state.updates + 1)

        # A branch, not a `where` on every leaf, which reads and writes all of the state once more.
        after = jax.lax.cond(ok, update, lambda: state)
        measured = {"loss": total, "sums": sums, "grad_norm": norm, "grad_norms": norms, "ok": ok}
        measured["lr"] = schedule(state.updates)
        return after, measured

    return step


def _microbatches(batch, n):
    """`[B, ...]` to `[n, B/n, ...]`; microbatch i takes rows i, i + n, ..., so that every device keeps its own."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1), batch)


def _accumulate(f, microbatches):
    """The sum of f over microbatches, one at a time."""
    first = jax.tree.map(lambda x: x[0], microbatches)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, first))
    add = lambda total, microbatch: (jax.tree.map(jnp.add, total, f(microbatch)), None)
    return jax.lax.scan(add, zeros, microbatches)[0]


def _norms_by_tower(grads):
    by_tower: dict[str, list] = {}
    for path, grad in params.paths(grads).items():
        by_tower.setdefault(params.tower(path), []).append(grad)
    return {tower: optax.tree.norm(leaves) for tower, leaves in by_tower.items()}


@dataclass
class Position:
    """Where a run is: kept with each checkpoint, so that what is cumulative goes on."""

    step: int = 0  # batches consumed, the next batch's number
    tokens: dict[str, int] = field(default_factory=dict)  # trained on, by modality
    flops: int = 0  # model FLOPs
    seconds: float = 0.0  # in steps; compiling, evaluating and saving are not counted
    skipped: int = 0  # steps in a row
    data: str = ""  # digest of the documents

    def advance(self, batch: Mapping, config: Config) -> None:
        """Counts a host batch."""
        real = {name: int((tokens.segment != 0).sum()) for name, tokens in batch.items()}
        for name, n in real.items():
            modality = config.streams[name].modality
            self.tokens[modality] = self.tokens.get(modality, 0) + n
        self.flops += flops.train_step(config, real, flops.visible_pairs(batch))
        self.step += 1


def run(config: Config, until: int | None = None, devices: Sequence[jax.Device] | None = None) -> Path:
    """Trains to `run.steps` (or to step `until`), saved, resuming what the run directory holds; returns the directory.

    The batch's rows are split over `devices`, by default all there are.

    Raises `UserError` (`ConfigError`, `Damaged`) before anything is written, `Diverged` when optim.patience is up, and
    `Stopped` after SIGINT or SIGTERM.
    """
    if faults := [*embedded.faults(config), *optim.uncovered(config)]:
        raise ConfigError(faults)
    mesh = sharding.make_mesh(config.data.batch // config.optim.accumulate, devices)
    _refuse_too_large(config, mesh)
    training, held_out = embedded.load(config)
    path = rundir.open_run(config)
    with jax.set_mesh(mesh):
        state, position = _start(config, path, mesh)
        if position.data not in ("", training.digest):
            raise UserError(
                f"{path} was trained on other data: its digest is {position.data}, now {training.digest} (another "
                "Python has another manual); resume it where it began, or choose another run.name"
            )
        position.data = training.digest
        with metrics.Live(config.run.name, position.step, config.run.steps) as live, _Signals() as signals:
            writer = metrics.Writer(path, position.step)
            try:
                _loop(config, path, mesh, state, position, training, held_out, writer, live, signals, until)
            finally:
                writer.close()
    return path


def _refuse_too_large(config, mesh) -> None:
    """`UserError` where what a step cannot do without is more than there is memory: better now than in the middle."""
    table, is_trained = params.table(config), optim.trainable(config)
    every = params.count(table)
    trained = params.count({path: spec for path, spec in table.items() if is_trained(path)})
    copies = mesh.size  # parameters are on every device
    state = 4 * copies * (every * (2 if config.optim.ema else 1) + 3 * trained)  # with gradients and Adam's moments
    rows = config.data.batch // config.optim.accumulate
    width = max(s.width for s in config.streams.values())
    residual = 2 * rows * config.length * width * config.model.layers
    if (have := sharding.memory(mesh)) < state + residual:
        raise UserError(
            f"{every:,} parameters, their gradients and optimiser state take {state / 1e9:,.1f} GB, the residual "
            f"stream of {rows:,} rows of {config.length:,} tokens at least {residual / 1e9:,.1f} GB, and there are "
            f"{have / 1e9:,.1f} GB; lower streams.*.width or ffn, model.layers or heads, data.batch or the budgets"
        )


def evaluate(
    config: Config, step: int | None = None, devices: Sequence[jax.Device] | None = None
) -> tuple[int, dict[str, float]]:
    """The step of a run's checkpoint, the newest by default, and its held-out losses; the run must have this model."""
    path = rundir.folder(config)
    known, mine = rundir.plain(rundir.config_of(path)), rundir.plain(config)
    sections = ("streams", "towers", "model", "objective", "data", "optim")
    if different := [d for s in sections for d in differences(known[s], mine[s], s)]:
        raise UserError(f"{path} was trained with another configuration (its -> yours):\n  " + "\n  ".join(different))
    _saved(path, step)
    mesh = sharding.make_mesh(config.data.batch, devices)
    _, held_out = embedded.load(config)
    with jax.set_mesh(mesh):
        state, position = _start(config, path, mesh, step)
        row = make_evaluate(config, held_out, sharding.by_rows(mesh))(state.ema or state.params)
    return position.step, row


def load(path: Path, step: int | None = None) -> tuple[Config, Position, dict]:
    """A run's configuration and what its checkpoint, by default the newest, holds: the position and the parameters.

    The parameters are the averaged ones where the run keeps an average. Raises `UserError` where there is no run, or no
    such checkpoint.
    """
    config = rundir.config_of(path)
    _saved(path, step)
    state, position = _start(config, path, sharding.make_mesh(1, jax.devices()[:1]), step)
    return config, position, state.ema or state.params


def _saved(path, step) -> list[int]:
    """The steps of a run's checkpoints, `step` among them."""
    saved = checkpoint.steps(path / "checkpoints")
    if not saved or (step is not None and step not in saved):
        raise UserError(
            f"{path} has no checkpoint{'' if step is None else f' of step {step}'}; it has {saved or 'none'}"
        )
    return saved


def _start(config, path, mesh, step=None) -> tuple[State, Position]:
    """Fresh, or what a checkpoint (by default the newest) holds."""
    make = jax.jit(lambda: init_state(config), out_shardings=sharding.replicated(mesh))
    saved = checkpoint.steps(path / "checkpoints")
    if not saved:
        return make(), Position()
    shapes = jax.eval_shape(make)
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh))
    trees, data = checkpoint.restore(path / "checkpoints", step or saved[-1], jax.tree.map(place, _trees(shapes)))
    state = State(trees["params"], trees["opt"]["optax"], trees.get("ema", {}), trees["opt"]["updates"])
    if unknown := data.keys() ^ vars(Position()).keys():
        raise Damaged(f"{path}: the position in its checkpoint differs in {', '.join(sorted(unknown))}; move it away")
    return state, Position(**data)


def _trees(state: State) -> dict:
    """The state as checkpoint items."""
    items = {"params": state.params, "opt": {"optax": state.opt, "updates": state.updates}}
    return items | ({"ema": state.ema} if state.ema else {})


def _loop(config, path, mesh, state, position, training, held_out, writer, live, signals, until):
    end = min(config.run.steps, until or config.run.steps)
    if position.step >= end:
        live.say(f"{path}: already at step {position.step}")
        return
    rows = sharding.by_rows(mesh)
    evaluate = make_evaluate(config, held_out, rows)
    incoming = pipeline.iterate(pipeline.Batches(training, config, config.data.seed, config.run.steps), position.step)
    peak = metrics.matmul_peak(mesh, config.model.dtype)
    writer.write("event", position.step, {"event": "start", "matmul_peak": peak, "data": training.digest})
    host = next(incoming)
    # Outputs stay where inputs must be: a compiled step takes its own result without moving it.
    placed = (sharding.replicated(mesh), None)
    step = jax.jit(make_step(config, len(training.names)), donate_argnums=0, out_shardings=placed)
    step = step.lower(state, jax.device_put(host, rows)).compile()
    log = _Log(config, training.names, position, writer, live, peak)
    if position.step == 0:
        log.evaluation(evaluate(state.ema or state.params))
    log.resume()
    while True:
        batch = jax.device_put(host, rows)
        idle = log.idle()
        state, measured = step(state, batch)  # dispatched; the device is busy while the host goes on
        log.dispatched(measured, host, idle)  # and here reads what the step before measured
        done, stop = position.step == end, signals.code is not None  # asked once: what follows saves
        if position.step % config.run.eval_every == 0 or position.step == config.run.steps:
            log.finish()
            log.evaluation(evaluate(state.ema or state.params))
        if position.step % config.run.save_every == 0 or done or stop:
            log.finish()
            checkpoint.save(path / "checkpoints", position.step, _trees(state), vars(position), config.run.keep)
        if stop:
            live.say(f"stopped at step {position.step}, saved; the same command resumes")
            raise Stopped(signals.code)
        if done:
            return
        if log.pending is None:
            log.resume()
        host = next(incoming)


class _Log:
    """Writes each step's row once the next step is on its way, so that the device never waits for the host to read."""

    def __init__(self, config, sources, position, writer, live, peak):
        self.config, self.sources, self.position = config, sources, position
        self.writer, self.live, self.peak = writer, live, peak
        self.pending = None  # a dispatched step whose measurements are not read yet
        self.clock = time.perf_counter()  # when the device was last known to be done

    def idle(self) -> float:
        """Seconds that the device may have waited for the host before this dispatch; 0 if it is still busy."""
        busy = self.pending is not None and not self.pending[0]["ok"].is_ready()
        return 0.0 if busy else time.perf_counter() - self.clock

    def dispatched(self, measured, host, idle) -> None:
        """Takes a step just dispatched on a host batch; finishes the one before."""
        position, before = self.position, (self.position.flops, sum(self.position.tokens.values()))
        position.advance(host, self.config)
        row = {"step": position.step, "flops": position.flops, "idle_seconds": idle}
        row |= {f"tokens/{m}": n for m, n in position.tokens.items()}
        row |= {f"fill/{stream}": x for stream, x in pipeline.fill(host).items()}
        work = position.flops - before[0], sum(position.tokens.values()) - before[1]
        earlier, self.pending = self.pending, (measured, row, work)
        self._finish(earlier)

    def finish(self) -> None:
        """Waits for the last step and writes its row."""
        earlier, self.pending = self.pending, None
        self._finish(earlier)

    def resume(self) -> None:
        """What passed since the last step (an evaluation, a checkpoint) is no step's time."""
        self.clock = time.perf_counter()

    def _finish(self, pending) -> None:
        if pending is None:
            return
        measured, row, (step_flops, step_tokens) = pending
        measured = jax.device_get(measured)  # waits for the device
        seconds, self.clock = time.perf_counter() - self.clock, time.perf_counter()
        self.position.seconds += seconds
        row |= {"seconds": self.position.seconds, "step_seconds": seconds}
        row |= {"tokens_per_s": step_tokens / seconds, "mfu": step_flops / seconds / self.peak}
        row |= {"objective": float(measured["loss"]), "lr": float(measured["lr"])}
        row |= {"grad_norm": float(measured["grad_norm"])}
        row |= {f"grad_norm/{tower}": float(x) for tower, x in measured["grad_norms"].items()}
        sums = measured["sums"]
        row |= metrics.losses(sums["nats"], sums["weight"], self.config.modalities, self.sources)
        step = row.pop("step")
        self.writer.write("train", step, row)
        self.live.update(step, metrics.line(row, self.config.modalities))
        self.position.skipped = 0 if measured["ok"] else self.position.skipped + 1
        if not measured["ok"]:
            self._skipped(step, measured)

    def _skipped(self, step, measured) -> None:
        bad = ", ".join(tower for tower, x in measured["grad_norms"].items() if not np.isfinite(x)) or "none"
        what = f"step {step} skipped: loss {measured['loss']}, gradient norm {measured['grad_norm']}"
        what += f", not finite in towers: {bad}"
        self.writer.write("event", step, {"event": "skipped", "towers": bad})
        self.live.say(what)
        if self.position.skipped >= self.config.optim.patience:
            self.writer.write("event", step, {"event": "diverged"})
            raise Diverged(
                f"{what}; {self.position.skipped} in a row, optim.patience is {self.config.optim.patience}; look at "
                "these steps' data, or start a run of another run.name with a lower optim.lr; checkpoints are untouched"
            )

    def evaluation(self, row) -> None:
        position = self.position
        self.writer.write("eval", position.step, row | {"flops": position.flops, "seconds": position.seconds})
        line = metrics.line(row, self.config.modalities)
        self.live.say(f"{self.config.run.name} step {position.step}: held-out {line}")


class _Signals:
    """The first SIGINT or SIGTERM asks the loop to stop after its step; a second SIGINT ends at once."""

    def __enter__(self):
        self.code = None
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody set handlers
            for s in (signal.SIGINT, signal.SIGTERM):
                self.before[s] = signal.signal(s, self._ask)
        return self

    def _ask(self, number, _):
        if self.code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = 75 if number == signal.SIGTERM else 130

    def __exit__(self, *_):
        for s, handler in self.before.items():
            signal.signal(s, handler)
