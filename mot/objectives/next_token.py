"""Predicts ids by cross-entropy: the next token's, and those that are hidden (`masked.py`)."""

import jax
import jax.numpy as jnp
from jax import lax

from mot import batches
from mot.batches import Tokens
from mot.config import Config
from mot.model import transformer
from mot.objectives import masked
from mot.objectives.cross_entropy import Rules, cross_entropy
from mot.objectives.sums import Sums, scales, summed


def loss(hidden: list[tuple[jax.Array, Tokens]], head_DV, Z_M, config: Config, sources: int) -> tuple[jax.Array, Sums]:
    """The part of `losses.loss` that is of ids, and its sums.

    `hidden` is that of `transformer.forward`; Z_M is `losses.totals` of the global batch, of which this may be part. A
    target belongs to its own modality: an image's first code, predicted from text, is image loss. An absent modality
    gives 0. l is the plain cross-entropy; z_loss * log(sum exp)^2 is added for stability (2405.09818) and not reported.
    """
    total, weighted_BT, tokens, m_BT = of_tokens(hidden, head_DV, Z_M, config)
    return total, summed(weighted_BT, tokens, m_BT, config, sources)


def of_tokens(hidden: list[tuple[jax.Array, Tokens]], head_DV, Z_M, config: Config) -> tuple:
    """The loss, and of all tokens of ids: w * l `[B, T]` in nats, the tokens, and the modalities of their targets."""
    tokens = batches.concatenate([t for _, t in hidden])
    h_BTD = _states(hidden)
    m_BT = batches.modality_of_ids(tokens.target, config)
    weight_BT = masked.weights(tokens, config)
    scale_BT = weight_BT * scales(Z_M, config)[m_BT]
    o = config.objective
    how = (o.z_loss, o.chunk, Rules(config.mesh.rules), config.model.logits_cap)
    total, nats_BT = cross_entropy(h_BTD, head_DV, tokens.target, scale_BT, *how)
    weighted_BT = jnp.where(weight_BT > 0, weight_BT * nats_BT, 0)
    return total, weighted_BT, tokens, m_BT


def likeliest(hidden: list[tuple[jax.Array, Tokens]], head_DV: jax.Array, config: Config) -> jax.Array:
    """The likeliest next id after each token of ids, int32 `[B, T]`; `objective.chunk` tokens' logits at a time."""
    h_BTD = _states(hidden)
    h_RD = h_BTD.reshape(-1, h_BTD.shape[-1])

    def of_token(h_D: jax.Array) -> jax.Array:
        return jnp.argmax(transformer.logits(h_D[None], head_DV, config)[0], -1)

    return lax.map(of_token, h_RD, batch_size=config.objective.chunk).reshape(h_BTD.shape[:2])


def _states(hidden: list[tuple[jax.Array, Tokens]]) -> jax.Array:
    """`[B, T, D]` of all groups, one after another."""
    B = hidden[0][1].token.shape[0]
    return jnp.concatenate([h_RD.reshape(B, -1, h_RD.shape[-1]) for h_RD, _ in hidden], axis=1)
