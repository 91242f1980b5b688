"""Held-out losses by modality and source, on fixed batches."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mot import sharding
from mot.batches import Batch
from mot.config import Config, Stream
from mot.console import phase
from mot.data.mixture import Sources
from mot.data.pipeline import Batches, iterate, nothing, refuse_too_many
from mot.errors import UserError
from mot.model import transformer
from mot.objectives import losses
from mot.runs import metrics, rundir, written
from mot.train import restore

SEED = 2**31 - 1  # of the held-out batches: the same for every run

Sums = Callable[..., dict]  # (params, batch, causal) -> the batch's losses, weights and router reports, summed


PLACES = 2**24  # tokens that an evaluation may read of any data: 8 batches of 512 rows of 4,096
TIMES = 10  # as often it may read all held-out data


def run(
    config: Config, step: int | None = None, devices: Sequence[jax.Device] | None = None, foreign: bool = False
) -> tuple[int, dict[str, float]]:
    """The step of a run's checkpoint, the newest by default, and its held-out losses; the run must have this model.

    `foreign`: the configuration is what the run's folder holds, which may come from anyone: it is bounded.
    """
    path = rundir.folder(config)
    config, _, held_out = restore.open_data(config)
    if foreign:
        refuse_endless(config, held_out)
    changes = rundir.changes(rundir.plain(rundir.config_of(path)), rundir.plain(config))
    if different := [change for change in changes if not change.startswith(("run.", "init."))]:
        listed = "\n  ".join(different)
        raise UserError(
            f"{path} was trained with another configuration (its -> yours):\n  {listed}\ngive it its own back"
        )
    written.saved(path, step)
    mesh = sharding.make_mesh(config, devices)
    with jax.set_mesh(mesh):
        with phase("reading the checkpoint"):
            state, position = restore.start(config, path, mesh, step)
        with phase(f"evaluating {config.run.eval_batches} batches; their program is compiled the first time"):
            row = make_evaluate(config, held_out, mesh)(state.ema or state.params)
    return position.step, row


def refuse_endless(config: Config, held_out: Sources) -> None:
    """`UserError` where a configuration asks for an evaluation far larger than its held-out data."""
    places = config.run.eval_batches * config.data.batch * config.length
    tokens = held_out.size([stream.modality for stream in config.streams.values()])["tokens"]
    most = max(PLACES, TIMES * sum((tokens or {}).values()))
    if places > most:
        raise UserError(
            f"run.eval_batches: {config.run.eval_batches} batches of data.batch = {config.data.batch} rows of "
            f"{config.length} tokens are {places:,} tokens; this run's held-out data allow {most:,}; nothing was "
            "evaluated; where the run is your own, lower them in its config.json, without its digest"
        )


def make_evaluate(
    config: Config,
    sources: Sources,
    mesh: jax.sharding.Mesh,
    say: Callable[[str], None] = print,
    between: Callable[[], None] = nothing,
) -> Callable[[dict], dict]:
    """`params -> metrics` over `run.eval_batches` batches, which stay on the mesh's devices.

    Losses are means of l over the targets' weights. A model whose routers look at later tokens has two: `loss`, as it
    trains, which is no likelihood, and `causal_loss`, as it generates. Bits per byte of a source's text divide its nats
    by the bytes that its text targets stand for, so they compare across tokenizers. `say` is told of documents that
    cannot be read; raises `UserError` where these are too many. `between` is called before each batch, and ends an
    evaluation by raising.
    """
    batches, bytes_O = held_out(config, sources, mesh, say)
    of_batch = jitted(config, len(sources.names))

    def evaluate(params: dict) -> dict:
        return report(config, sources, bytes_O, lambda causal: total(of_batch, params, batches, causal, between))

    return evaluate


def held_out(
    config: Config, sources: Sources, mesh: jax.sharding.Mesh, say: Callable[[str], None] = print
) -> tuple[list[Batch], np.ndarray]:
    """The batches, on their devices, and the bytes that each source's text targets stand for `[O]`."""
    rows = sharding.rows_of_process(config, mesh)
    batches = Batches(sources, _first_stage(config, sources), SEED, config.run.eval_batches, None, *rows)
    packed = list(iterate(batches, 0, timeout=config.data.timeout))
    left_out = [document for p in packed for document in p.left_out]
    for source, document, why in left_out:
        say(f"evaluation: left out document {document} of {source}: {why}")
    if left_out:
        refuse_too_many(Counter(document.source for document in left_out), left_out[-1], config.data.max_skipped)
    bytes_O = np.zeros(len(sources.names))
    predicted = []  # targets of each batch and stream
    for tokens in (tokens for p in packed for tokens in p.batch.values()):
        is_predicted = tokens.weight > 0
        predicted.append(is_predicted.sum())
        np.add.at(bytes_O, tokens.source, np.where(is_predicted, sources.byte_lengths[tokens.target], 0))
    # Each process has some of the rows; those that share rows count them once.
    bytes_O = np.asarray(sharding.sum_over_processes(bytes_O, config, mesh))
    predicts = np.asarray(sharding.sum_over_processes(np.array(predicted), config, mesh)).any()
    if not predicts and not config.objective.contrastive.kind:
        raise UserError("the held-out batches hold nothing to predict; prepare data with a larger --held-out")
    return [sharding.to_global(p.batch, config, mesh) for p in packed], bytes_O


def jitted(config: Config, sources: int) -> Sums:
    """`make_sums` as an evaluation compiles it."""
    return jax.jit(make_sums(config, sources), static_argnames="causal")


def make_sums(config: Config, sources: int) -> Sums:
    """`(params, batch, causal) ->` the batch's losses and weights, and what its routers did."""

    def sums(params, batch, causal):
        noised = losses.noised(batch, config, SEED, params)
        output = transformer.forward(params, noised.batch, config, causal=causal)
        Z_M = losses.totals(batch, config)
        of_losses = losses.loss(params, output, noised, Z_M, config, sources)[1]
        of_routers = {name: jax.tree.map(lambda x: x.sum(1), r) for name, r in output.routing.items()}
        return of_losses | {"routing": of_routers}  # and of a contrastive term, where there is one

    return sums


def total(
    sums: Sums, params: dict, batches: Sequence[Batch], causal: bool, between: Callable[[], None] = nothing
) -> dict:
    """The sums of all batches, on the host."""
    of_batches = []
    for batch in batches:
        between()
        of_batches.append(jax.device_get(sums(params, batch, causal=causal)))
    return jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *of_batches)


def report(config: Config, sources: Sources, bytes_O: np.ndarray, total_sums: Callable[..., dict]) -> dict:
    """The row of an evaluation. `total_sums(causal)` gives the sums of all batches."""
    modalities = config.modalities
    sums = total_sums(causal=False)
    row = metrics.losses(sums["loss_sum"], sums["weight"], modalities, sources.names)
    row |= metrics.contrastive(sums) | metrics.routing(sums["routing"], modalities) | metrics.spread(sums)
    if sums["routing"]:
        row["experts"] = metrics.loads(sums["routing"], modalities)
    if not config.causal:  # the losses above saw later tokens; these are what generation will be like
        sums = total_sums(causal=True)
        causal = metrics.losses(sums["loss_sum"], sums["weight"], modalities, sources.names)
        row |= {f"causal_{key}": value for key, value in causal.items()}
    if "text" in modalities:
        nats_O = sums["loss_sum"][modalities.index("text")]
        bits_O = nats_O / math.log(2)
        named = zip(sources.names, bits_O, bytes_O, strict=True)
        row |= {f"bits_per_byte/{name}": float(bits / n) for name, bits, n in named if n}
    return row


def _first_stage(config: Config, sources: Sources) -> Config:
    """As training begins, but for two things: sources without held-out documents have no share, no unit is dropped."""
    present = {source.name for source in sources.all if source.count}
    shares = {name: share for name, share in config.data.shares.items() if name in present}
    if not sum(shares.values()):
        raise UserError(
            f"data.sources: none of {', '.join(config.data.sources)} that has a share has held-out documents; prepare "
            "one with a larger --held-out"
        )
    streams = {name: _without_drops(stream) for name, stream in config.streams.items()}
    return dataclasses.replace(config, streams=streams, data=dataclasses.replace(config.data, shares=shares, stages=()))


def _without_drops(stream: Stream) -> Stream:
    """No unit loses what comes before it."""
    parts = {name: dataclasses.replace(getattr(stream, name), drop_rate=0.0) for name in ("diffusion", "masking")}
    return dataclasses.replace(stream, **parts)
