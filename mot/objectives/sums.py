"""Sums of losses by modality and source, and what they are divided by.

A token's loss counts for the modality of its target and for the source of its document.
"""

import jax
import jax.numpy as jnp
from jax import lax

from mot import batches
from mot.batches import Batch, Tokens
from mot.config import Config

Sums = dict[str, jax.Array]  # loss_sum: of w * l (nats of ids, squared errors of vectors), weight: of w; each [M, O]


def totals(batch: Batch, config: Config) -> jax.Array:
    """Z of each modality `[M]`: the weight its loss is divided by, summed over the whole (global) batch."""
    m_M11 = jnp.arange(len(config.modalities))[:, None, None]
    weight_M = sum(
        jnp.where(modality(tokens, name, config)[None] == m_M11, tokens.weight[None], 0).sum((1, 2))
        for name, tokens in batch.items()
    )
    return jnp.broadcast_to(weight_M.sum(), weight_M.shape) if config.objective.per == "all" else weight_M


def modality(tokens: Tokens, stream: str, config: Config) -> jax.Array:
    """`[B, C]`: of what each token's loss is about: its target, or a vector itself."""
    if not config.streams[stream].latent:
        return batches.modality_of_ids(tokens.target, config)
    return jnp.full_like(tokens.target, config.modalities.index(config.streams[stream].modality))


def scales(Z_M, config: Config) -> jax.Array:
    """`[M]` lambda / Z, 0 for an absent modality."""
    weights = {s.modality: s.loss_weight for s in config.streams.values()}
    lambda_M = jnp.array([weights[m] for m in config.modalities], jnp.float32)
    return jnp.where(Z_M > 0, lambda_M / jnp.where(Z_M > 0, Z_M, 1), 0)


def summed(l_BT, tokens: Tokens, m_BT, config: Config, sources: int) -> Sums:
    """The sums of weighted losses l of tokens about modalities m."""
    m_BTM = jax.nn.one_hot(m_BT, len(config.modalities))
    s_BTO = jax.nn.one_hot(tokens.source, sources)

    def by_modality_and_source(x_BT):
        return jnp.einsum("BTM,BTO,BT->MO", m_BTM, s_BTO, x_BT, precision=lax.Precision.HIGHEST)

    return {"loss_sum": by_modality_and_source(l_BT), "weight": by_modality_and_source(tokens.weight)}
