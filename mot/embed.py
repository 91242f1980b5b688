"""How tokens enter the stack and leave it: ids by the embedding, vectors by linear maps, with their noise level."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from mot import batch as batches
from mot import ops
from mot.batch import Batch, Tokens
from mot.config import Config
from mot.params import ADA, WAVES, by_norm

QUICKEST = 1000.0  # radians that the quickest wave turns from data to noise: 2006.11239's thousand steps


def enter(params: dict, batch: Batch, group: Sequence[str], tokens: Tokens, config: Config):
    """The residual `x_RD` of a group of streams, whose `tokens` are merged, and its norms' condition `c_RX` or None.

    Padding enters as 0 whatever it holds: a NaN there would reach every weight's gradient as 0 * NaN.
    """
    real_R1, dtype = tokens.segment.reshape(-1, 1) != 0, config.model.dtype
    if not any(config.streams[s].latent for s in group):
        x_RD = jnp.take(params["embed"]["tokens"], tokens.token.reshape(-1), axis=0)
        return jnp.where(real_R1, x_RD, 0).astype(dtype), None
    order = _orders(batch, group)
    join = lambda parts: _permuted(jnp.concatenate(parts, axis=1), *order).reshape(len(real_R1), -1).astype(dtype)
    x_RD = join([_stream(params, batch[s], s, config) for s in group])
    if not any(by_norm(config.streams[s]) for s in group):
        return jnp.where(real_R1, x_RD, 0), None
    c_RX = join([_condition(params, batch[s], s, config) for s in group])
    return jnp.where(real_R1, x_RD, 0), jnp.where(real_R1, c_RX, 0)


def leave(params: dict, h_RD, batch: Batch, group: Sequence[str], tokens: Tokens, config: Config):
    """A group's last states: those of ids as `[(h_RD, tokens)]`, and what is predicted of vectors by stream,
    `[B, C, P]` float32."""
    if not any(config.streams[s].latent for s in group):
        return [(h_RD, tokens)], {}
    B = tokens.token.shape[0]
    order, back = _orders(batch, group)
    h_BCD = _permuted(h_RD.reshape(B, -1, h_RD.shape[-1]), back, order)
    parts = lax.split(h_BCD, [batch[s].token.shape[1] for s in group], axis=1)
    rows = {s: part.reshape(-1, part.shape[-1]) for s, part in zip(group, parts, strict=True)}
    hidden = [(rows[s], batch[s]) for s in group if not config.streams[s].latent]
    out = lambda s: ops.linear(rows[s], params["latent"][s]["out"]).astype(jnp.float32)
    return hidden, {s: out(s).reshape(*batch[s].token.shape, -1) for s in group if config.streams[s].diffuses}


def _orders(batch, group):
    """From the streams end to end to the group's document order, and back; None where one stream is all."""
    if len(group) == 1:
        return None, None
    order_BC = batches.document_order(batches.concatenate([batch[s] for s in group]))
    return order_BC, jnp.argsort(order_BC, axis=1)


def _permuted(x_BCD, order_BC, back_BC):
    return x_BCD if order_BC is None else ops.permute(x_BCD[:, :, None], order_BC, back_BC)[:, :, 0]


def _stream(params, tokens, name, config):
    """`[B, C, D]`."""
    stream = config.streams[name]
    if not stream.latent:
        return jnp.take(params["embed"]["tokens"], tokens.token, axis=0)
    value_BCP = jnp.where((tokens.segment != 0)[..., None], tokens.value, 0).astype(config.model.dtype)
    x_RD = ops.linear(value_BCP.reshape(-1, stream.latent), params["latent"][name]["in"])
    if stream.diffuses and not by_norm(stream):
        x_RD += time_features(params["latent"][name], tokens.noise).astype(x_RD.dtype)
    return x_RD.reshape(*tokens.token.shape, -1).astype(jnp.float32)


def _condition(params, tokens, name, config):
    """`[B, C, X]`; 0 for tokens that know of no noise."""
    if not by_norm(config.streams[name]):
        return jnp.zeros((*tokens.token.shape, ADA))
    return time_features(params["latent"][name], tokens.noise).reshape(*tokens.token.shape, -1)


def time_features(weights: dict, t_BC) -> jax.Array:
    """float32 `[R, features]` of noise levels: sines and cosines (1706.03762), then two layers.

    0 where the level is 0: what is clean is conditioned on nothing, as text is.
    """
    t_R1 = t_BC.reshape(-1, 1).astype(jnp.float32)
    angle_RX = t_R1 * QUICKEST ** jnp.linspace(0, 1, WAVES // 2)[None]
    waves_RX = jnp.concatenate([jnp.cos(angle_RX), jnp.sin(angle_RX)], axis=1)
    hidden_RF = jax.nn.silu(ops.linear(waves_RX, weights["time_in"]))
    return jnp.where(t_R1 > 0, ops.linear(hidden_RF, weights["time_out"]), 0)
