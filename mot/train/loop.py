"""Training, top to bottom: a run is opened, its state restored, and the loop takes its steps."""

import errno
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from mot import checkpoint, optim, sharding
from mot.config import Config
from mot.console import phase
from mot.data import budgets, pipeline, sources
from mot.data.mixture import Sources
from mot.errors import Hung, UserError
from mot.model import kernels, params
from mot.runs import goodput, metrics, peak, probed, profile, rundir, trackers
from mot.runs.log import Dispatched, Diverged, Log, Pending, counted
from mot.runs.writer import Live, Writer
from mot.train import probe, restore
from mot.train.agreement import Agreement, Wish, any_process
from mot.train.evaluate import make_evaluate
from mot.train.memory import refuse_too_large
from mot.train.replicas import refuse_corrupt
from mot.train.saves import Saves
from mot.train.signals import Interrupted, Signals, Stopped
from mot.train.state import State, trees
from mot.train.step import Step, jitted
from mot.train.watchdog import Watchdog

OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE}  # full, or gone


def run(
    config: Config,
    until: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    profiled: bool = False,
    accept: Collection[str] = (),
) -> Path:
    """Trains to `run.steps` (or to step `until`), saved, resuming what the run directory holds; returns the directory.

    The batch's rows are split over `devices`, by default all there are. `profiled`: with a trace of a few steps.
    `accept` are kinds of differences (`options.ACCEPTED`) from the checkpoint in spite of which the run goes on.

    Raises `UserError` (`ConfigError`, `Damaged`) before anything is written, `Diverged` when optim.patience is up, and
    `Stopped` after SIGINT or SIGTERM.
    """
    began = time.monotonic()
    trackers.refuse_absent(config.run.trackers)
    config, training, held_out = restore.open_data(config)
    mesh = sharding.make_mesh(config, devices)
    refuse_too_large(config, mesh)
    # `state_shardings` checks this again: here it is refused before anything is written.
    sharding.check_arrays(params.table(config), config.mesh.rules, mesh)
    kernels.refuse_absent(config, mesh.devices.flat[0].platform)
    checkpoint.refuse_odd(rundir.folder(config))
    first = None
    begins = ""
    if config.init.run and not checkpoint.steps(rundir.folder(config) / "checkpoints"):
        if restore.is_branch(config):
            restore.accepted(config, training, restore.origin_of(config), accept)  # before anything is written
        else:
            first = restore.upcycled(config)
        begins = f"begins with the {restore.beginning(config)}"
    with _opened(config, training, accept) as origin, jax.set_mesh(mesh):
        _train(config, origin, mesh, training, held_out, first, begins, until, profiled, began, accept)
    return rundir.folder(config)


@contextmanager
def _opened(config: Config, training: Sources, accept: Collection[str]) -> Iterator[tuple[Path, int]]:
    """The run's folder, for this run alone as long as this lasts; gives `restore.origin_of` the run.

    The first process makes it and has its lock. Each compares what is there with its own configuration and data.
    """
    path = rundir.folder(config)
    with ExitStack() as locked:
        if sharding.is_first_process():
            locked.enter_context(rundir.locked(config))
        sharding.barrier("run directory")
        origin = restore.origin_of(config)
        found = restore.accepted(config, training, origin, accept)
        checkpoint.refuse_unwritable(path / "checkpoints")
        if sharding.is_first_process():
            restore.go_on(config, origin, found)
        yield origin


def _train(
    config: Config,
    origin: tuple[Path, int],
    mesh: jax.sharding.Mesh,
    training: Sources,
    held_out: Sources,
    first: dict | None,
    begins: str,
    until: int | None,
    profiled: bool,
    began: float,
    accept: Collection[str],
) -> None:
    """Trains a run from its `origin`, a checkpoint, or from `first` parameters; `begins` tells of these."""
    path = rundir.folder(config)
    is_first = sharding.is_first_process()
    with phase("the first state: initial values, or a checkpoint's", is_first):
        source, step = origin
        state, position = restore.start(config, source, mesh, step, first, accept, verified=True)
    del first  # the state has its own copy
    restore.take_up(position, config, training, accept)
    end = min(config.run.steps, until or config.run.steps)
    watched = Watchdog(path, config.run.hang_timeout, config.run.peer_timeout)
    with Live(config.run.name, position.step, config.run.steps, is_first) as live, Signals() as signals, watched:
        if position.step >= end:
            live.say(f"{path}: already at step {position.step}")
            if is_first:
                trackers.catch_up(path, live.say)
            return
        if begins or position.step:
            live.say(begins or f"{path}: resuming at step {position.step}{_moved(path, mesh)}")
        best = peak.of(mesh, config.model.dtype, end - position.step, live.say)
        with unwritable(path):
            writer = Writer(path, position.step, is_first, live.say)
            keep_said(writer, position.step)
            if is_first:
                probed.forget_after(path, position.step)
            clock = goodput.resumed(position.wall, writer.found, began)
            log = Log(config, training.names, position, writer, live.say, best, clock, training.name_of)
            try:
                job = _job(config, mesh, path, training, held_out, log, live, end, signals, watched)
                recorded = profile.Trace(path, position, writer, live) if profiled else nullcontext()
                with job.saves, recorded as trace:
                    loop(job, state, signals, trace)
            finally:
                writer.close()


def keep_said(writer: Writer, step: int) -> None:
    """What was changed stays said where a run goes on from a step before that at which it was."""
    for row in writer.found:
        if row["step"] > step and row.get("event") in ("accepted", "changed"):
            writer.write("event", step, {key: row[key] for key in row.keys() - {"schema", "kind", "step", "time"}})


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """`UserError`, with the step that was saved last, in place of an `OSError` of the disk on which a run lies."""
    try:
        yield
    except OSError as error:
        if error.errno not in OF_DISKS:
            raise
        remedy = checkpoint.goes_on(checkpoint.steps(path / "checkpoints"))
        raise UserError(f"{error.strerror}: {error.filename or path}; {remedy}") from error


class Logged(Protocol):
    """What the loop needs of a `Log`, or of what stands for several."""

    position: checkpoint.Position
    clock: goodput.Clock
    diverged: Diverged | None

    def start(self, about: Mapping) -> None: ...
    def left_out(self, documents: Sequence[pipeline.LeftOut]) -> None: ...
    def advance(self, plan: dict, idle: float, waited: float) -> Any: ...
    def write(self, step: Dispatched, seconds: float) -> dict: ...
    def lacks_evaluation(self) -> bool: ...
    def evaluation(self, measured: Any) -> None: ...


class Job(NamedTuple):
    """What the loop needs, of a run or of several in one program (`ensemble.py`)."""

    config: Config  # of several runs the first's: they share all that the loop reads
    mesh: jax.sharding.Mesh
    training: Sources
    held_out: Sources
    step: Step  # jitted
    evaluate: Callable[[State], Any]  # gives what `log.evaluation` takes
    probe: Callable[[State, int], None]  # of a step, into the run's folder; does nothing where it was probed
    saves: Saves
    log: Logged
    live: Live
    watchdog: Watchdog
    end: int  # the step after which the loop ends


def _job(
    config: Config,
    mesh: jax.sharding.Mesh,
    path: Path,
    training: Sources,
    held_out: Sources,
    log: Log,
    live: Live,
    end: int,
    signals: Signals,
    watchdog: Watchdog,
) -> Job:
    step = jitted(config, len(training.names), mesh)

    def between() -> None:
        watchdog.moved("a batch of an evaluation")
        signals.interrupt()

    evaluate = make_evaluate(config, held_out, mesh, live.say, between)

    def evaluate_state(state: State) -> dict:
        return evaluate(state.ema or state.params)

    made = probe.make_probe(config, held_out, len(training.names), mesh, live.say, between)
    measure = probe.in_training(made, config, path, live.say)
    keep = checkpoint.Keep(config.run.keep, config.run.keep_every, log.best)
    saver = checkpoint.Saver(path / "checkpoints", keep)
    saves = Saves(config, [(saver, log)], lambda state, _: trees(state), [rundir.accepted(path)])
    return Job(config, mesh, training, held_out, step, evaluate_state, measure, saves, log, live, watchdog, end)


def loop(job: Job, state: State, signals: Signals, trace: profile.Trace | None = None) -> None:
    """From the step at which `job.log.position` is to step `job.end`, saved."""
    config, log, live = job.config, job.log, job.live
    position = log.position
    incoming = _batches(job, signals)
    log.clock.settle("start")
    log.start(_about(job))
    packed, step = _first_batch_and_step(job, state, incoming, signals)
    pending = _pending(job)
    agreement = Agreement(job.mesh)
    waited = 0.0  # before the clock of steps runs
    while True:
        if trace:
            trace.before(step, pending)
        log.left_out(packed.left_out)
        batch = sharding.to_global(packed.batch, config, job.mesh)
        counts = sharding.sum_over_processes(counted(packed.batch, config), config, job.mesh)
        idle = pending.idle()
        signals.unsaved = True
        state, measured = step(state, batch)  # dispatched; the device is busy while the host goes on
        row = log.advance(packed.state, idle, waited)
        # And here it reads what the step before measured.
        pending.add(Dispatched(position.step, measured, counts, row, batch))
        job.watchdog.moved(f"step {position.step}")
        if _is_evaluated(config, position.step):
            pending.finish()
            _evaluate(job, state)
        if _is_probed(config, position.step):
            pending.finish()
            _probe(job, state)
        if _is_checked(config, position.step):
            pending.finish()
            refuse_corrupt(trees(state), position.step)
        stop = _save(job, state, pending, agreement, signals)
        if stop or position.step == job.end:
            break
        if pending.step is None:
            pending.resume()
        job.watchdog.moved(f"step {position.step + 1} or its batch")
        start = time.perf_counter()
        try:
            packed = next(incoming)
        except Interrupted:
            pending.finish()
            job.saves.finish(state)
            stop = signals.code
            break
        except Hung:
            _rescue(job, state, pending)
            raise
        waited = time.perf_counter() - start
    if stop:
        live.say(f"stopped at step {position.step}, saved; the same command resumes")
        raise Stopped(stop)


def _rescue(job: Job, state: State, pending: Pending) -> None:
    """Saves a healthy state whose data do not come. Several processes could do so only together, and do not."""
    if jax.process_count() == 1:
        pending.finish()
        job.saves.finish(state)


def _first_batch_and_step(
    job: Job, state: State, incoming: Iterator[pipeline.Packed], signals: Signals
) -> tuple[pipeline.Packed, Step]:
    """The batch, the compiled step, and before both have met the first evaluation; `Stopped` after a signal."""
    config, live, clock = job.config, job.live, job.log.clock
    try:
        live.phase("reading and packing the first batch")
        with clock.of("data"):
            packed = next(incoming)
        for line in _remarks(job):
            live.say(line)
        live.phase(f"compiling the step, about {compiling(config)} s the first time; a cache keeps it")
        with clock.of("compile"):
            step = job.step.lower(state, sharding.to_global(packed.batch, config, job.mesh))
            step = step.compile(compiler_options=sharding.compiler_options(job.mesh))
            job.saves.prepare(state)
        is_due = _is_evaluated(config, job.log.position.step)
        if is_due and any_process(job.log.lacks_evaluation()):
            live.phase("the first evaluation; its program is compiled, too")
            _evaluate(job, state)
        if _is_probed(config, job.log.position.step):
            live.phase("the first probes; their programs are compiled, too")
            _probe(job, state)
        signals.interrupt()
    except Interrupted:
        live.say("stopped before a step was taken; the same command resumes")
        raise Stopped(signals.code) from None
    return packed, step


def _is_evaluated(config: Config, step: int) -> bool:
    return step % config.run.eval_every == 0 or step == config.run.steps


def _is_probed(config: Config, step: int) -> bool:
    return config.run.probe_every > 0 and step % config.run.probe_every == 0


def _is_checked(config: Config, step: int) -> bool:
    return config.run.check_every > 0 and step % config.run.check_every == 0


def _evaluate(job: Job, state: State) -> None:
    """Evaluates, unless a signal comes meanwhile: then it is left to the command that resumes."""
    with suppress(Interrupted), job.log.clock.of("evaluation"):
        job.log.evaluation(job.evaluate(state))


def _probe(job: Job, state: State) -> None:
    """Probes, unless a signal comes meanwhile: then it is left to the command that resumes."""
    job.watchdog.moved("a probe")
    with suppress(Interrupted), job.log.clock.of("probe"):
        job.probe(state, job.log.position.step)


def _save(job: Job, state: State, pending: Pending, agreement: Agreement, signals: Signals) -> int:
    """Saves the state where that is due; returns the exit code where the run is to stop, else 0.

    `Diverged` where the run's patience is at an end: the state is saved as it stands.
    """
    saves, step = job.saves, job.log.position.step
    wish = Wish(signals.code or 0, saves.wants(), saves.is_busy())
    agreed = agreement.of(wish)  # asked once: all processes do the same after it
    saves.hear()
    if agreed.stop or step == job.end or job.log.diverged:  # of which each process knows: all read the same figures
        pending.finish()
        saves.finish(state)
    elif saves.due(step, bool(agreed.save), bool(agreed.busy)):
        pending.finish()
        saves.begin(state)
    if job.log.diverged:
        raise job.log.diverged
    return agreed.stop


def _batches(job: Job, signals: Signals) -> Iterator[pipeline.Packed]:
    """This process's batches, from the run's position on."""
    data = job.config.data
    position = job.log.position
    rows = sharding.rows_of_process(job.config, job.mesh)
    batches = pipeline.Batches(job.training, job.config, data.seed, job.config.run.steps, position.plan or None, *rows)
    return pipeline.iterate(batches, position.step, data.workers, data.timeout, signals.interrupt)


def _about(job: Job) -> dict:
    """What a start event says of the data and the devices."""
    modalities = [stream.modality for stream in job.config.streams.values()]
    return {
        "data": job.training.digest,
        "size": {"training": job.training.size(modalities), "held_out": job.held_out.size(modalities)},
        "reachable_fill": budgets.reachable(job.config, job.training),
    } | _placed(job.mesh)


def _placed(mesh: jax.sharding.Mesh) -> dict:
    """What a start event says of where the run computes."""
    axes = {axis: n for axis, n in mesh.shape.items() if n > 1}
    return {"devices": mesh.size, "processes": jax.process_count(), "mesh": axes}


def _moved(path: Path, mesh: jax.sharding.Mesh) -> str:
    """How the mesh and the processes differ from those of the process that trained a run before, for a message."""
    now = _placed(mesh)
    start = next((row for row in reversed(rundir.read_metrics(path)) if row.get("event") == "start"), {})
    then = {key: start.get(key, now[key]) for key in now}  # an earlier version wrote fewer

    def told(placed: dict) -> str:
        axes = ", ".join(f"{axis} {n}" for axis, n in placed["mesh"].items())
        return f"{placed['devices']} devices ({axes or 'no axis is split'}) of {placed['processes']} processes"

    return "" if then == now else f", on {told(now)}; before on {told(then)}"


def _remarks(job: Job) -> list[str]:
    """What a person should know before the run trains: what is frozen, and what of the data is odd."""
    warnings = [*budgets.advice(job.config, job.training), *sources.remarks(job.config, job.held_out)]
    return [*optim.told(job.config), *(f"warning: {line}" for line in warnings)]


def _pending(job: Job) -> Pending:
    """Steps that are done go to the log, and the line shows their losses."""

    def write(step: Dispatched, seconds: float) -> None:
        row = job.log.write(step, seconds)
        job.live.update(step.number, metrics.line(row, job.config.modalities))

    return Pending(write)


def compiling(config: Config) -> int:
    """Seconds that a step's program takes to compile on two cores, roughly: each unrolled layer's, for each tower."""
    towers = len({*config.component("attn").towers, *config.component("ffn").towers})
    layers = len(dict.fromkeys(config.stacks)) if config.model.scan else config.model.layers
    return round(4 + 1.5 * layers * towers)
