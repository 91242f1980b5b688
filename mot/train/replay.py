"""One step of a run made again, from the checkpoint before it: the same figures, and what they are made of."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mot import checkpoint, optim, sharding
from mot.batches import Batch
from mot.config import Config
from mot.config.axes import MESH_AXES
from mot.data import pipeline, remote
from mot.data.mixture import Sources
from mot.errors import Damaged, UserError
from mot.model import params, transformer
from mot.objectives import losses
from mot.runs import metrics, provenance, rundir, written
from mot.train import guard, restore
from mot.train.state import State
from mot.train.step import dropout_key, jitted, jitter_key, make_gradients, microbatches


class Leaf(NamedTuple):
    """A parameter's gradient, before clipping."""

    path: str
    norm: float
    not_finite: int  # numbers that are NaN or infinite


class DocumentLoss(NamedTuple):
    """What a document of the batch lost in one modality."""

    source: str
    document: str  # its own name
    modality: str
    tokens: int  # that are predicted
    loss: float  # the mean over them: nats of ids, squared errors of vectors


class Replayed(NamedTuple):
    begun: int  # the checkpoint's step; 0 is the state before the first
    figures: dict[str, float]  # as in the step's row of metrics.jsonl
    applied: bool  # false: the step was skipped
    leaves: list[Leaf]  # first those that are not finite, then the longest
    documents: list[DocumentLoss]  # first those whose loss is not finite, then the greatest
    differences: list[str]  # of the first step whose figures are not those of its row; none: all are the same bits
    elsewhere: list[str]  # how this machine differs from the one that wrote the row


def run(path: Path, step: int, say: Callable[[str], None] = print, fetch: bool = False) -> Replayed:
    """Makes a run's steps again up to `step`, from the newest checkpoint before it that verifies; nothing is written.

    `fetch`: with data also from an address that only the run itself names.

    Raises `UserError` where the run has made no such step, `Damaged` where a file is not what was written.
    """
    events = rundir.read_metrics(path)
    rows = {row["step"]: row for row in events if row["kind"] == "train"}
    if step not in rows:
        made = f"made steps {min(rows)} to {max(rows)}; choose one of them" if rows else "made no step yet"
        raise UserError(f"step {step}: metrics.jsonl has no such row; {path} has {made}")
    if (last := max((row["step"] for row in events if row.get("event") == "accepted"), default=0)) >= step:
        raise UserError(
            f"step {step}: at step {last} this run went on in spite of differences (--accept), and {path} has what "
            f"steps {last + 1} and later were made with; choose one of these"
        )
    remote.refuse_unknown(path, written.config_as_written(path).data.sources, fetch)
    start = started(events, step)
    config, mesh = _as_trained(path, start)
    config, training, _ = restore.open_data(config)
    with jax.set_mesh(mesh):
        accept = {kind for row in events if row.get("event") == "accepted" for kind in row["kinds"]}
        state, position = _before(config, path, mesh, range(last, step), say, accept)
        begun = position.step
        if position.step > last or "data" not in accept:
            restore.refuse_other_data(path, position, training)
        restore.take_up(position, config, training, accept)
        say(f"making steps {begun + 1} to {step} again" if begun + 1 < step else f"making step {step} again")
        batches = pipeline.Batches(training, config, config.data.seed, config.run.steps, position.plan or None)
        program = None
        differences: list[str] = []
        for n in range(begun, step):
            batch = sharding.to_global(batches[n].batch, config, mesh)
            if program is None:
                lowered = jitted(config, len(training.names), mesh).lower(state, batch)
                program = lowered.compile(compiler_options=sharding.compiler_options(mesh))
            if n + 1 == step:  # first, as the step gives up its state
                parts = jax.device_get(jax.jit(_make_parts(config, len(training.names)))(state, batch))
            state, measured = program(state, batch)
            measured = jax.device_get(measured)
            figures = metrics.of_step(measured, config.modalities, training.names)
            differences = differences or _differences(n + 1, figures, rows.get(n + 1, {}))
    leaves, tokens = parts
    return Replayed(
        begun,
        figures,
        bool(measured["ok"]),
        _leaves(config, leaves),
        _documents(config, training, tokens),
        differences,
        _elsewhere(start, mesh),
    )


def started(rows: Sequence[Mapping], step: int) -> Mapping:
    """The start event of the process that made a step; empty where there is none."""
    return next((row for row in reversed(rows) if row.get("event") == "start" and row["step"] < step), {})


def devices(start: Mapping) -> int:
    """How many devices a step was made on; of runs in one program each stands on one."""
    return 1 if "together" in start else start.get("devices", 1)


def _as_trained(path: Path, start: Mapping) -> tuple[Config, jax.sharding.Mesh]:
    """The run's configuration and mesh; where these devices cannot be that mesh, over those that its rows divide."""
    config = rundir.config_of(path)
    mesh = written.config_as_written(path).mesh
    if "mesh" in start and "together" not in start:  # a run may be resumed on another one
        mesh = dataclasses.replace(mesh, **dict.fromkeys(MESH_AXES, 1) | start["mesh"])
    same = dataclasses.replace(config, mesh=mesh)
    try:
        return same, sharding.make_mesh(same, jax.devices()[: devices(start)])
    except UserError:
        return config, sharding.make_mesh(config, sharding.dividing(config))


def _before(
    config: Config,
    path: Path,
    mesh: jax.sharding.Mesh,
    steps: range,
    say: Callable[[str], None],
    accept: Collection[str],
) -> tuple[State, checkpoint.Position]:
    """The newest state of these steps: of a checkpoint that verifies, else that with which the run began.

    At the first of them, where that is not 0, the run went on in spite of differences of the kinds `accept`.
    """
    step = steps.stop
    for saved in reversed([saved for saved in checkpoint.steps(path / "checkpoints") if saved in steps]):
        try:
            return restore.start(config, path, mesh, saved, accept=accept if saved == steps.start else ())
        except Damaged as error:
            say(f"warning: step {saved} is passed over: {error}")
    if steps.start:
        raise UserError(f"{path} has no checkpoint of steps {steps.start} to {step - 1} left; choose a later step")
    say(f"no checkpoint before step {step} is left: all steps are made again, from the first state")
    first = restore.upcycled(config) if config.init.run else None
    return restore.start(config, path, mesh, 0, first)


def _make_parts(config: Config, sources: int) -> Callable[[State, Batch], tuple]:
    """`(state, batch) ->` what `guard.of_leaves` and `losses.by_token` say of the step."""
    gradients = make_gradients(config, sources)

    def parts(state: State, batch: Batch) -> tuple:
        trained, frozen = params.split(state.params, optim.trainable(config))
        Z_M = losses.totals(batch, config)
        _, grads = gradients(state, trained, frozen, batch, Z_M)

        def of_microbatch(batch_and_key) -> list[losses.TokenLosses]:
            microbatch, key = batch_and_key
            noised = losses.noised(microbatch, config, state.updates, state.params, state.ema)
            dropped = dropout_key(config, state)
            output = transformer.forward(state.params, noised.batch, config, key, dropout_key=dropped)
            return losses.by_token(state.params, output, noised, Z_M, config)

        split = microbatches(batch, jitter_key(config, state), config.optim.accumulate)
        return guard.of_leaves(grads), jax.lax.map(of_microbatch, split)

    return parts


def _leaves(config: Config, leaves: Mapping) -> list[Leaf]:
    found = map(Leaf, optim.trained(config), leaves["norm"].tolist(), leaves["not_finite"].tolist())
    return sorted(found, key=lambda leaf: (-leaf.not_finite, -leaf.norm, leaf.path))


def _documents(config: Config, training: Sources, tokens: list[losses.TokenLosses]) -> list[DocumentLoss]:
    joined = losses.TokenLosses(*(np.concatenate([x.ravel() for x in field]) for field in zip(*tokens, strict=True)))
    counted = losses.TokenLosses(*(x[joined.weight != 0] for x in joined))
    keys, of_key = np.unique(np.stack(counted[2:]), axis=1, return_inverse=True)
    sums = np.zeros((3, keys.shape[1]))
    np.add.at(sums.T, of_key.ravel(), np.stack([np.ones_like(counted.loss), counted.loss, counted.weight], 1))
    found = [
        DocumentLoss(
            training.names[source],
            training.name_of(source, doc_id),
            config.modalities[modality],
            int(n),
            float(loss / weight) if weight else math.nan,
        )
        for (source, doc_id, modality), (n, loss, weight) in zip(keys.T.tolist(), sums.T, strict=True)
    ]
    return sorted(found, key=lambda d: (math.isfinite(d.loss), -d.loss if math.isfinite(d.loss) else 0))


def _differences(step: int, figures: Mapping[str, float], row: Mapping) -> list[str]:
    """How figures differ from their row's, which has those that are not finite as text."""
    kept = {key: float(row[key]) for key in figures if key in row}
    if not kept:
        return [f"step {step}: metrics.jsonl has no such row"]
    return [
        f"step {step}: {key} is {figures[key]!r}, the row has {value!r}"
        for key, value in kept.items()
        if figures[key] != value and not (math.isnan(figures[key]) and math.isnan(value))
    ]


MACHINE = ("version", "commit", "backend", "device_kind", "devices", "cpu", "jax", "jaxlib")  # of a start event


def _elsewhere(start: Mapping, mesh: jax.sharding.Mesh) -> list[str]:
    here = provenance.made_by() | {"devices": mesh.size}
    found = [f"{key} {start[key]} -> {here[key]}" for key in MACHINE if key in start and start[key] != here[key]]
    return found + ["several runs in one program -> one"] * ("together" in start)
