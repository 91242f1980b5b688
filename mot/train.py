"""Training, top to bottom: the state, one step, the loop."""

import signal
import time
from collections.abc import Mapping
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
from mot.config import Config, ConfigError
from mot.data import embedded, pipeline
from mot.evaluate import make_evaluate


@struct.dataclass
class State:
    params: dict  # float32
    opt: Any  # of the parameters that train
    ema: dict  # of the parameters; {} where optim.ema is 0
    updates: jax.Array  # steps applied; skipped ones are not


class Stopped(Exception):
    """Training ended by a signal, its state saved; `code` is the process's exit code."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def init_state(config: Config) -> State:
    """Call under `jit`."""
    weights = params.init(params.table(config), config.model.seed)
    trained, _ = params.split(weights, optim.trainable(config))
    ema = weights if config.optim.ema else {}
    return State(weights, optim.make(config).init(trained), ema, jnp.zeros((), jnp.int32))


def make_step(config: Config, sources: int):
    """`(state, batch) -> (state, measurements)`: gradients over all microbatches, one update unless they are not finite."""
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
        norm = optax.global_norm(grads)
        updates, opt = optimiser.update(grads, state.opt, trained)
        ok = jnp.isfinite(norm) & jnp.isfinite(total)
        trained, opt = optim.keep_if(ok, (optax.apply_updates(trained, updates), opt), (trained, state.opt))
        weights, d = params.merge(trained, frozen), config.optim.ema
        ema = jax.tree.map(lambda e, w: d * e + (1 - d) * w, state.ema, weights) if d else {}
        ema = optim.keep_if(ok, ema, state.ema)
        measured = {"loss": total, "sums": sums, "grad_norm": norm, "grad_norms": norms, "ok": ok}
        measured["lr"] = schedule(state.updates)
        return State(weights, opt, ema, state.updates + ok), measured

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
    return {tower: optax.global_norm(leaves) for tower, leaves in by_tower.items()}


@dataclass
class Position:
    """Where a run is: kept with each checkpoint, so that what is cumulative goes on."""

    step: int = 0  # batches consumed, the next batch's number
    tokens: dict[str, int] = field(default_factory=dict)  # trained on, by modality
    flops: int = 0  # model FLOPs
    seconds: float = 0.0  # in steps; compiling, evaluating and saving are not counted
    skipped: int = 0  # steps in a row

    def advance(self, batch: Mapping, config: Config) -> None:
        """Counts a host batch."""
        real = {name: int((tokens.segment != 0).sum()) for name, tokens in batch.items()}
        for name, n in real.items():
            modality = config.streams[name].modality
            self.tokens[modality] = self.tokens.get(modality, 0) + n
        self.flops += flops.train_step(config, real, flops.visible_pairs(batch))
        self.step += 1


def run(config: Config, until: int | None = None) -> Path:
    """Trains to `run.steps` (or stops at step `until`, saved), resuming what the run directory holds; returns the directory.

    Raises `ConfigError`, `Damaged` or `ValueError` before anything is written, `Stopped` after SIGINT or SIGTERM.
    """
    if faults := [*embedded.faults(config), *optim.uncovered(config)]:
        raise ConfigError(faults)
    mesh = sharding.make_mesh(config.data.batch // config.optim.accumulate)
    training, held_out = embedded.load(config)
    path = rundir.open_run(config)
    with jax.set_mesh(mesh):
        state, position = _start(config, path, mesh)
        with metrics.Live(config.run.name, position.step, config.run.steps) as live, _Signals() as signals:
            writer = metrics.Writer(path, position.step)
            try:
                _loop(config, path, mesh, state, position, training, held_out, writer, live, signals, until)
            finally:
                writer.close()
    return path


def _start(config, path, mesh) -> tuple[State, Position]:
    """Fresh, or what the newest checkpoint holds."""
    make = jax.jit(lambda: init_state(config), out_shardings=sharding.replicated(mesh))
    saved = checkpoint.steps(path / "checkpoints")
    if not saved:
        return make(), Position()
    trees = {k: v for k, v in _trees(jax.eval_shape(make)).items()}
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)), trees
    )
    trees, data = checkpoint.restore(path / "checkpoints", saved[-1], like)
    state = State(trees["params"], trees["opt"]["optax"], trees.get("ema", {}), trees["opt"]["updates"])
    return state, Position(**data)


def _trees(state: State) -> dict:
    """The state as checkpoint items."""
    items = {"params": state.params, "opt": {"optax": state.opt, "updates": state.updates}}
    return items | ({"ema": state.ema} if state.ema else {})


def _loop(config, path, mesh, state, position, training, held_out, writer, live, signals, until):
    steps = min(config.run.steps, until or config.run.steps)
    data = pipeline.Batches(training, config, config.data.seed, config.run.steps)
    if position.step >= steps:
        live.say(f"{path}: already at step {position.step}")
        return
    rows = sharding.by_rows(mesh)
    evaluate = make_evaluate(config, held_out, rows)
    incoming = pipeline.iterate(data, position.step)
    peak = metrics.matmul_peak(mesh, config.model.dtype)
    host = next(incoming)
    step = jax.jit(make_step(config, len(training.names)), donate_argnums=0)
    step = step.lower(state, jax.device_put(host, rows)).compile()
    writer.write("event", position.step, {"event": "start", "matmul_peak": peak, "data": training.digest})

    def finish(pending):
        """Reads a dispatched step's measurements (this waits for the device) and writes its row."""
        measured, at, started, waited = pending
        measured = jax.device_get(measured)
        now = time.perf_counter()
        seconds = now - max(started, finish.last)
        finish.last = now
        position.seconds += seconds
        row = _row(measured, at, config, training.names)
        row |= {"seconds": position.seconds, "step_seconds": seconds, "wait_seconds": waited}
        row |= {"tokens_per_s": at["batch_tokens"] / seconds, "mfu": at["step_flops"] / seconds / peak}
        writer.write("train", at["step"], row)
        live.update(at["step"], metrics.line(row, config.modalities))
        position.skipped = 0 if measured["ok"] else position.skipped + 1
        if not measured["ok"]:
            _report_skip(writer, live, at["step"], position, measured, config)

    def evaluate_and_write(state):
        row = evaluate(state.ema or state.params)
        writer.write("eval", position.step, row | {"flops": position.flops, "seconds": position.seconds})
        live.say(f"{config.run.name} step {position.step}: held-out {metrics.line(row, config.modalities)}")

    def save(state):
        checkpoint.save(path / "checkpoints", position.step, _trees(state), vars(position), config.run.keep)

    finish.last = 0.0
    pending = None
    if position.step == 0:
        evaluate_and_write(state)
    while position.step < steps:
        started = time.perf_counter()
        if host is None:
            host = next(incoming)
        batch = jax.device_put(host, rows)
        # What the device may have waited for the host: nothing, if the step before is still running.
        idle = 0.0 if pending is None or not pending[0]["ok"].is_ready() else time.perf_counter() - started
        state, measured = step(state, batch)
        before = position.flops, sum(position.tokens.values())
        position.advance(host, config)
        at = {"step": position.step, "flops": position.flops, "tokens": dict(position.tokens)}
        at |= {"fill": pipeline.fill(host), "step_flops": position.flops - before[0]}
        at |= {"batch_tokens": sum(position.tokens.values()) - before[1]}
        if pending is not None:
            finish(pending)
        pending, host = (measured, at, started, idle), None
        stopping = signals.code is not None or position.step == steps
        due = position.step % config.run.eval_every == 0 or position.step == config.run.steps
        saving = position.step % config.run.save_every == 0 or stopping
        if due or saving:
            finish(pending)
            pending = None
            if due:
                evaluate_and_write(state)
            if saving:
                save(state)
        if signals.code is not None:
            raise Stopped(signals.code, f"stopped at step {position.step}, saved; the same command resumes")


def _row(measured, at, config, sources) -> dict:
    row = {"loss": float(measured["loss"]), "lr": float(measured["lr"]), "flops": at["flops"]}
    row |= metrics.losses(measured["sums"]["nats"], measured["sums"]["weight"], config.modalities, sources)
    row |= {f"tokens/{m}": n for m, n in at["tokens"].items()}
    row |= {"grad_norm": float(measured["grad_norm"])}
    row |= {f"grad_norm/{tower}": float(x) for tower, x in measured["grad_norms"].items()}
    return row | {f"fill/{stream}": x for stream, x in at["fill"].items()}


def _report_skip(writer, live, step, position, measured, config):
    bad = [tower for tower, x in measured["grad_norms"].items() if not np.isfinite(x)]
    what = f"step {step} skipped: loss {measured['loss']}, gradient not finite in {', '.join(bad) or 'no tower'}"
    writer.write("event", step, {"event": "skipped", "towers": ", ".join(bad)})
    live.say(what)
    if position.skipped >= config.optim.patience:
        raise ValueError(
            f"{what}; {position.skipped} in a row is optim.patience; lower optim.lr or look at the data of these steps"
        )


class _Signals:
    """The first SIGINT or SIGTERM asks the loop to stop after its step; a second SIGINT ends at once."""

    def __enter__(self):
        self.code = None
        self.before = {}
        if __import__("threading").current_thread() is __import__("threading").main_thread():
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
