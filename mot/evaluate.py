"""Held-out losses by modality and source, on fixed batches."""

import math

import jax
import numpy as np

from mot import metrics, model, objectives
from mot.config import Config
from mot.data.embedded import Sources
from mot.data.pipeline import Batches

SEED = 2**31 - 1  # of the held-out batches: the same for every run


def make_evaluate(config: Config, sources: Sources, rows):
    """`params -> metrics` over `run.eval_batches` batches, which stay on the devices with sharding `rows`.

    Losses are means of l over the targets' weights; bits per byte of a source's text divide its nats by the bytes that
    its text targets stand for, so they compare across tokenizers.
    """
    batches = Batches(sources, config, SEED, config.run.eval_batches)
    host = [batches[n] for n in range(len(batches))]
    fixed = [jax.device_put(batch, rows) for batch in host]
    bytes_S = np.zeros(len(sources.names))
    for tokens in (tokens for batch in host for tokens in batch.values()):
        np.add.at(bytes_S, tokens.source, np.where(tokens.weight > 0, sources.byte_lengths[tokens.target], 0))

    @jax.jit
    def sums(params, batch):
        hidden = model.forward(params, batch, config)
        head = model.head(params, config)
        return objectives.next_token(hidden, head, objectives.totals(batch, config), config, len(sources.names))[1]

    def evaluate(params) -> dict[str, float]:
        parts = [sums(params, batch) for batch in fixed]
        nats_MS = np.sum([np.asarray(p["nats"], np.float64) for p in parts], axis=0)
        weight_MS = np.sum([np.asarray(p["weight"], np.float64) for p in parts], axis=0)
        result = metrics.losses(nats_MS, weight_MS, config.modalities, sources.names)
        if "text" in config.modalities:
            for s, source in enumerate(sources.names):
                if bytes_S[s]:
                    nats = nats_MS[config.modalities.index("text"), s]
                    result[f"bits_per_byte/{source}"] = float(nats / math.log(2) / bytes_S[s])
        return result

    return evaluate
