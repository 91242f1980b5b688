"""Held-out losses by modality and source, on fixed batches."""

import dataclasses
import math
from collections import Counter

import jax
import numpy as np

from mot import sharding
from mot.config import Config
from mot.data.mixture import Sources
from mot.data.pipeline import Batches, iterate, refuse_too_many
from mot.errors import UserError
from mot.model import transformer
from mot.objectives import losses
from mot.runs import metrics

SEED = 2**31 - 1  # of the held-out batches: the same for every run


def make_evaluate(config: Config, sources: Sources, mesh, say=print):
    """`params -> metrics` over `run.eval_batches` batches, which stay on the mesh's devices.

    Losses are means of l over the targets' weights. A model whose routers look at later tokens has two: `loss`, as it
    trains, which is no likelihood, and `causal_loss`, as it generates. Bits per byte of a source's text divide its nats
    by the bytes that its text targets stand for, so they compare across tokenizers. `say` is told of documents that
    cannot be read; raises `UserError` where these are too many.
    """
    fixed, bytes_O = held_out(config, sources, mesh, say)
    of_batch = jax.jit(sums(config, len(sources.names)), static_argnames="causal")
    return lambda params: report(config, sources, bytes_O, lambda causal: total(of_batch, params, fixed, causal))


def held_out(config: Config, sources: Sources, mesh, say=print):
    """The batches, on their devices, and the bytes that each source's text targets stand for `[O]`."""
    mine = sharding.rows_of_process(config, mesh)
    batches = Batches(sources, _first_stage(config, sources), SEED, config.run.eval_batches, None, *mine)
    packed = list(iterate(batches, 0, timeout=config.data.timeout))
    host = [p.batch for p in packed]
    left_out = [d for p in packed for d in p.left_out]
    for source, document, why in left_out:
        say(f"evaluation: left out document {document} of {source}: {why}")
    if left_out:
        refuse_too_many(Counter(d.source for d in left_out), left_out[-1], config.data.max_skipped)
    bytes_O = np.zeros(len(sources.names))
    for tokens in (tokens for batch in host for tokens in batch.values()):
        np.add.at(bytes_O, tokens.source, np.where(tokens.weight > 0, sources.byte_lengths[tokens.target], 0))
    weighs = np.array([(tokens.weight > 0).sum() for batch in host for tokens in batch.values()])
    # Of all processes, which each have some of the rows; those that share rows count them once.
    weighs, bytes_O = (np.asarray(sharding.sum_over_processes(x, config, mesh)) for x in (weighs, bytes_O))
    if not weighs.any():
        raise UserError("the held-out batches hold nothing to predict; prepare data with a larger --held-out")
    return [sharding.to_global(batch, config, mesh) for batch in host], bytes_O


def sums(config: Config, sources: int):
    """`(params, batch, causal) -> ` the batch's losses and weights, and what its routers did."""

    def of_batch(params, batch, causal):
        given = losses.noised(batch, config, SEED)
        output = transformer.forward(params, given.batch, config, causal=causal)
        Z_M = losses.totals(batch, config)
        sums = losses.loss(params, output, given, Z_M, config, sources)[1]
        return sums | {"routing": {name: jax.tree.map(lambda x: x.sum(1), r) for name, r in output.routing.items()}}

    return of_batch


def total(of_batch, params, batches, causal):
    """The sums of all batches, on the host."""
    parts = [jax.device_get(of_batch(params, batch, causal=causal)) for batch in batches]
    return jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *parts)


def report(config: Config, sources: Sources, bytes_O, measured) -> dict:
    """The row of an evaluation, from the sums that `measured(causal)` gives."""
    seen = measured(causal=False)
    loss_sum_MO, weight_MO = seen["loss_sum"], seen["weight"]
    result = metrics.losses(loss_sum_MO, weight_MO, config.modalities, sources.names)
    result |= metrics.routing(seen["routing"], config.modalities)
    if seen["routing"]:
        result["experts"] = metrics.loads(seen["routing"], config.modalities)
    if not config.causal:  # the losses above saw later tokens; these are what generation will be like
        causal = measured(causal=True)
        loss_sum_MO = causal["loss_sum"]
        losses = metrics.losses(loss_sum_MO, causal["weight"], config.modalities, sources.names)
        result |= {f"causal_{key}": value for key, value in losses.items()}
    if "text" in config.modalities:
        for s, source in enumerate(sources.names):
            if bytes_O[s]:
                nats = loss_sum_MO[config.modalities.index("text"), s]
                result[f"bits_per_byte/{source}"] = float(nats / math.log(2) / bytes_O[s])
    return result


def _first_stage(config: Config, sources: Sources) -> Config:
    """With the shares of the sources that have held-out documents, at every step, and no unit alone."""
    some = {source.name for source in sources.all if source.count}
    shares = {name: share for name, share in config.data.shares.items() if name in some}
    if not sum(shares.values()):
        raise UserError(
            f"data.sources: none of {', '.join(config.data.sources)} that has a share has held-out documents; prepare "
            "one with a larger --held-out"
        )

    def whole(s):
        return dataclasses.replace(s, diffusion=dataclasses.replace(s.diffusion, drop_rate=0.0))

    streams = {name: whole(s) for name, s in config.streams.items()}
    return dataclasses.replace(config, streams=streams, data=dataclasses.replace(config.data, shares=shares, stages=()))
