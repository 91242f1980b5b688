"""Training, top to bottom: the state, one step, the loop."""

import errno
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mot import batches, checkpoint, optim, sharding
from mot.config import Config, ConfigError
from mot.console import phase
from mot.data import budgets, pipeline, sources
from mot.errors import Damaged, UserError
from mot.model import kernels, params, transformer
from mot.objectives import losses
from mot.runs import metrics, peak, profile, provenance, rundir, written
from mot.runs.log import Log, Position, counted
from mot.train import upcycle
from mot.train.evaluate import make_evaluate
from mot.train.state import State, init_state, refuse_too_large, running_means, state_shardings, trees

OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE}  # full, or gone


class Stopped(SystemExit):
    """Training ended by a signal, its state saved. Uncaught, it ends the process with 130 (SIGINT) or 75 (SIGTERM)."""


def make_step(config: Config, sources: int):
    """`(state, batch) -> (state, measurements)`: gradients over all microbatches; an update if all is finite."""
    optimiser, schedule, is_trained = optim.make(config), optim.schedule(config), optim.trainable(config)
    jitters = any(sets.jitter for sets in (*config.attn.values(), *config.ffn.values()))

    def loss(trained, frozen, microbatch, Z_M, routed, key, state):
        weights = params.merge(trained, frozen)
        given = losses.noised(microbatch, config, state.updates)
        output = transformer.forward(weights, given.batch, config, key)
        total, sums = losses.loss(weights, output, given, Z_M, config, sources, state.means)
        routers = losses.routing(output.routing, routed, config) if output.routing else 0.0
        return total + routers, sums | {"routing": {name: _over_rows(x) for name, x in output.routing.items()}}

    def step(state: State, batch: batches.Batch):
        trained, frozen = params.split(state.params, is_trained)
        # Of the whole batch: a microbatch is divided by what all weigh.
        Z_M, routed = losses.totals(batch, config), losses.routed_tokens(batch, config)
        key = jax.random.fold_in(jax.random.key(config.model.seed), state.updates) if jitters else None
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if config.optim.accumulate == 1:
            (total, sums), grads = value_and_grad(trained, frozen, batch, Z_M, routed, key, state)
        else:
            keys = jax.random.split(key, config.optim.accumulate) if jitters else None

            def one(x):
                return value_and_grad(trained, frozen, x[0], Z_M, routed, x[1], state)

            (total, sums), grads = _accumulate(one, (_microbatches(batch, config.optim.accumulate), keys))
        of_model = params.split(grads, params.is_causal)[1]  # without routers that only imitate
        norms, norm = _norms_by_tower(of_model), optax.tree.norm(of_model)
        # NaN > 0 is false: a weight that is NaN would count as none, and the step as one of loss 0.
        broken = batches.not_finite(batch) | {"sum of weights": (~jnp.isfinite(Z_M)).sum(dtype=jnp.int32)}
        total = jnp.where(sum(broken.values()) > 0, jnp.nan, total)
        ok = jnp.isfinite(optax.tree.norm(grads)) & jnp.isfinite(total)

        def update():
            updates, opt = optimiser.update(grads, state.opt, trained)
            weights = params.merge(optax.apply_updates(trained, updates), frozen)
            d = config.optim.ema
            weights = _balanced(weights, sums["routing"], config)
            # What does not move has itself as its average, to the bit.
            ema = jax.tree.map(lambda e, w: jnp.where(e == w, e, d * e + (1 - d) * w), state.ema, weights) if d else {}
            return State(weights, opt, ema, state.updates + 1, running_means(state.means, sums["streams"]))

        # A branch, not a `where` on every leaf, which reads and writes all of the state once more.
        after = jax.lax.cond(ok, update, lambda: state)
        measured = {"loss": total, "sums": sums, "grad_norm": norm, "grad_norms": norms, "ok": ok, "broken": broken}
        measured["lr"] = schedule(state.updates)
        return after, measured

    return step


def _over_rows(report):
    """A report's sums over rows, `[L, ...]`."""
    return jax.tree.map(lambda x: x.sum(1), report)


def _balanced(weights, routing, config):
    """Routers' biases a step towards even loads (2408.15664): up where an expert has less than the mean, else down."""
    flat = params.paths(weights)
    for path in [path for path, rule in optim.rules(config).items() if params.is_bias(path) and rule.lr > 0]:
        _, _, component, tower, _ = path.split("/")
        load_LE = routing[f"{component}/{tower}"].load_BME.sum(1)
        under_LE = jnp.sign(load_LE.mean(-1, keepdims=True) - load_LE)
        flat[path] += getattr(config, component)[tower].balance_rate * under_LE
    return params.nest(flat)


def _microbatches(batch, n):
    """`[B, ...]` to `[n, B/n, ...]`; microbatch i takes rows i, i + n, ..., so that every device keeps its own."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1), batch)


def _accumulate(f, microbatches):
    """The sum of f over microbatches, one at a time."""
    first = jax.tree.map(lambda x: x[0], microbatches)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, first))

    def add(total, microbatch):
        return (jax.tree.map(jnp.add, total, f(microbatch)), None)

    return jax.lax.scan(add, zeros, microbatches)[0]


def _norms_by_tower(grads):
    by_tower: dict[str, list] = {}
    for path, grad in params.paths(grads).items():
        by_tower.setdefault(params.tower(path), []).append(grad)
    return {tower: optax.tree.norm(leaves) for tower, leaves in by_tower.items()}


def run(
    config: Config, until: int | None = None, devices: Sequence[jax.Device] | None = None, profiled: bool = False
) -> Path:
    """Trains to `run.steps` (or to step `until`), saved, resuming what the run directory holds; returns the directory.

    The batch's rows are split over `devices`, by default all there are. `profiled`: with a trace of a few steps.

    Raises `UserError` (`ConfigError`, `Damaged`) before anything is written, `Diverged` when optim.patience is up, and
    `Stopped` after SIGINT or SIGTERM.
    """
    config, training, held_out = opened(config)
    mesh = sharding.make_mesh(config, devices)
    refuse_too_large(config, mesh)
    sharding.check_arrays(params.table(config), config.mesh.rules, mesh)
    kernels.refuse_absent(config, mesh.devices.flat[0].platform)
    checkpoint.refuse_odd(rundir.folder(config))
    first, begins = None, ""
    if config.init.run and not checkpoint.steps(rundir.folder(config) / "checkpoints"):
        first = upcycled(config)
        begins = f"begins with the {beginning(config)}"
    if sharding.is_first_process():
        rundir.open_run(config)
    sharding.barrier("run directory")
    path = rundir.open_run(config)
    checkpoint.refuse_unwritable(path / "checkpoints")
    with jax.set_mesh(mesh):
        with phase("the first state: initial values, or a checkpoint's", sharding.is_first_process()):
            state, position = start(config, path, mesh, first=first)
        del first  # the state has its own copy
        refuse_other_data(path, position, training)
        end = min(config.run.steps, until or config.run.steps)
        is_first = sharding.is_first_process()
        with metrics.Live(config.run.name, position.step, config.run.steps, is_first) as live, Signals() as signals:
            if position.step >= end:
                live.say(f"{path}: already at step {position.step}")
                return path
            if begins or position.step:
                live.say(begins or f"{path}: resuming at step {position.step}")
            best = peak.of(mesh, config.model.dtype, end - position.step, live.say)
            with unwritable(path):
                log = Log(config, training.names, position, metrics.Writer(path, position.step, is_first), live, best)
                try:
                    parts = _parts(config, path, mesh, training, held_out, log)
                    with profile.Trace(path, log) if profiled else nullcontext() as trace:
                        loop(config, mesh, state, training, held_out, parts, log, signals, end, trace)
                finally:
                    log.writer.close()
    return path


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """`UserError`, with the step that was saved last, in place of an `OSError` of the disk on which a run lies."""
    try:
        yield
    except OSError as error:
        if error.errno not in OF_DISKS:
            raise
        told = checkpoint.goes_on(checkpoint.steps(path / "checkpoints"))
        raise UserError(f"{error.strerror}: {error.filename or path}; {told}") from error


def opened(config: Config):
    """The configuration with every budget, and its sources for training and held out."""
    if faults := [*sources.faults(config), *optim.uncovered(config)]:
        raise ConfigError(faults)
    with phase("opening the data", sharding.is_first_process()):
        training, held_out = sources.open_(config)
        return budgets.resolve(config, training), training, held_out


def beginning(config: Config) -> str:
    """What a run begins from, in words; raises `UserError` where `init.run` is no run, or has no such step."""
    written.read_config(Path(config.init.run))
    step = config.init.step or written.saved(Path(config.init.run))[-1]
    return f"weights of {config.init.run}, step {step}"


def upcycled(config: Config) -> dict:
    """The parameters that `init.run` gives a run."""
    with phase(f"the {beginning(config)}", sharding.is_first_process()):
        source, _, trained = load(Path(config.init.run), config.init.step or None)
        return upcycle.weights(source, trained, config)


def refuse_other_data(path: Path, position: Position, training) -> None:
    if position.data not in ("", training.digest):
        raise UserError(
            f"{path} was trained on other data: its digest is {position.data}, now {training.digest} (another "
            "Python has another manual); resume it where it began, or choose another run.name"
        )
    position.data = training.digest


def evaluate(
    config: Config, step: int | None = None, devices: Sequence[jax.Device] | None = None
) -> tuple[int, dict[str, float]]:
    """The step of a run's checkpoint, the newest by default, and its held-out losses; the run must have this model."""
    path = rundir.folder(config)
    with phase("opening the data"):
        training, held_out = sources.open_(config)
        config = budgets.resolve(config, training)
    different = rundir.changes(rundir.plain(rundir.config_of(path)), rundir.plain(config))
    if different := [d for d in different if not d.startswith(("run.", "init."))]:
        told = "\n  ".join(different)
        raise UserError(
            f"{path} was trained with another configuration (its -> yours):\n  {told}\ngive it its own back"
        )
    written.saved(path, step)
    mesh = sharding.make_mesh(config, devices)
    with jax.set_mesh(mesh):
        with phase("reading the checkpoint"):
            state, position = start(config, path, mesh, step)
        with phase(f"evaluating {config.run.eval_batches} batches; their program is compiled the first time"):
            row = make_evaluate(config, held_out, mesh)(state.ema or state.params)
    return position.step, row


def load(path: Path, step: int | None = None) -> tuple[Config, Position, dict]:
    """A run's configuration and what its checkpoint, by default the newest, holds: the position and the parameters.

    The parameters are the averaged ones where the run keeps an average. Raises `UserError` where there is no run, or no
    such checkpoint.
    """
    config = rundir.config_of(path)
    written.saved(path, step)
    state, position = start(config, path, sharding.one_device(), step)
    return config, position, state.ema or state.params


def start(config, path, mesh, step=None, first=None) -> tuple[State, Position]:
    """Fresh, with the parameters `first` where they are given, or what a checkpoint (by default the newest) holds."""
    shardings = state_shardings(config, mesh)
    make = jax.jit(lambda: init_state(config), out_shardings=shardings)
    saved = checkpoint.steps(path / "checkpoints")
    if not saved:
        state = make()
        if first is not None:
            ema = sharding.copied(first, shardings.ema) if config.optim.ema else {}
            state = state.replace(params=sharding.copied(first, shardings.params), ema=ema)
        return state, Position()

    def place(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    like = jax.tree.map(place, trees(jax.eval_shape(make)), trees(shardings))
    found, data = checkpoint.restore(path / "checkpoints", step or saved[-1], like)
    opt = found["opt"]
    state = State(found["params"], opt["optax"], found.get("ema", {}), opt["updates"], opt.get("means", {}))
    if unknown := data.keys() ^ vars(Position()).keys():
        raise Damaged(f"{path}: the position in its checkpoint differs in {', '.join(sorted(unknown))}; move it away")
    return state, Position(**data)


class Parts(NamedTuple):
    """What the loop calls: a run's, or those of several runs in one program (`ensemble.py`)."""

    step: Callable  # jitted: (state, batch) -> (state, measured)
    evaluate: Callable  # state -> what `log.evaluation` takes
    save: Callable  # state, after the step at which `log.position` is


def _parts(config, path, mesh, training, held_out, log) -> Parts:
    # Outputs stay where inputs must be: a compiled step takes its own result without moving it.
    placed = (state_shardings(config, mesh), None)
    step = jax.jit(make_step(config, len(training.names)), donate_argnums=0, out_shardings=placed)
    evaluate = make_evaluate(config, held_out, mesh, log.live.say)
    folder = path / "checkpoints"
    keep = config.run.keep

    def save(state):
        position = log.position
        checkpoint.save(folder, position.step, trees(state), vars(position), keep, provenance.made_by())

    return Parts(step, lambda state: evaluate(state.ema or state.params), save)


def loop(config, mesh, state, training, held_out, parts: Parts, log, signals, end, trace=None) -> None:
    """From `log.position` to step `end`, saved."""
    position, live = log.position, log.live
    part, parts_of_rows = sharding.rows_of_process(config, mesh)
    stream = pipeline.Batches(
        training, config, config.data.seed, config.run.steps, position.plan or None, part, parts_of_rows
    )
    incoming = pipeline.iterate(stream, position.step, config.data.workers, config.data.timeout)
    fill = budgets.reachable(config, training)
    modalities = [s.modality for s in config.streams.values()]
    size = {"training": training.size(modalities), "held_out": held_out.size(modalities)}
    log.start({"data": training.digest, "size": size, "reachable_fill": fill, "devices": mesh.size})
    live.phase("reading and packing the first batch")
    packed = next(incoming)
    waited = 0.0  # before the clock of steps runs
    for line in optim.told(config):
        live.say(line)
    for line in [*budgets.advice(config, training), *sources.remarks(config, held_out)]:
        live.say(f"warning: {line}")
    live.phase(f"compiling the step, about {compiling(config)} s the first time; a cache keeps it")
    step = parts.step.lower(state, sharding.to_global(packed.batch, config, mesh))
    step = step.compile(compiler_options=sharding.compiler_options(mesh))
    if position.step == 0:
        live.phase("the first evaluation; its program is compiled, too")
        log.evaluation(parts.evaluate(state))
    log.resume()
    while True:
        if trace:
            trace.before(step)
        log.left_out(packed.left_out)
        batch = sharding.to_global(packed.batch, config, mesh)
        counts = sharding.sum_over_processes(counted(packed.batch), config, mesh)
        idle = log.idle()
        state, measured = step(state, batch)  # dispatched; the device is busy while the host goes on
        log.dispatched(measured, counts, packed, idle, waited)  # and here reads what the step before measured
        done, stop = position.step == end, signals.code is not None  # asked once: what follows saves
        if position.step % config.run.eval_every == 0 or position.step == config.run.steps:
            log.finish()
            log.evaluation(parts.evaluate(state))
        if position.step % config.run.save_every == 0 or done or stop:
            log.finish()
            parts.save(state)
        if stop:
            live.say(f"stopped at step {position.step}, saved; the same command resumes")
            raise Stopped(signals.code)
        if done:
            return
        if log.pending is None:
            log.resume()
        packed, waited = _timed(incoming)


def compiling(config: Config) -> int:
    """Seconds that a step's program takes to compile on two cores, roughly: each unrolled layer's, for each tower."""
    towers = len({*config.towers.attn.values(), *config.towers.ffn.values()})
    layers = len(dict.fromkeys(config.stacks)) if config.model.scan else config.model.layers
    return round(4 + 1.5 * layers * towers)


def _timed(incoming):  # the next element, and the seconds that it took to come
    start = time.perf_counter()
    return next(incoming), time.perf_counter() - start


class Signals:
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
