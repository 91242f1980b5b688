"""How tokens enter the stack and leave it: ids by the embedding, vectors by linear maps, with their noise level."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mot import batches, sharding
from mot.batches import Batch, Tokens
from mot.config import Config
from mot.model import ops
from mot.model.params import WAVES, by_norm

QUICKEST = 1000.0  # radians that the quickest wave turns from data to noise: 2006.11239's thousand steps


def embed(params: dict, batch: Batch, group: Sequence[str], tokens: Tokens, config: Config, T: int | None):
    """The residual `x_RD` of a group of streams, and its norms' condition `c_RY` or None; `tokens` are merged, apart.

    Padding enters as 0 whatever it holds: a NaN there would reach every weight's gradient as 0 * NaN.
    """
    real_R1 = tokens.segment.reshape(-1, 1) != 0
    dtype = config.model.dtype
    rules = config.mesh.rules

    def flat(x_RD):
        return sharding.constrain(jnp.where(real_R1, x_RD, 0).astype(dtype), (sharding.ROWS, None), rules)

    if not any(config.streams[s].latent for s in group):
        return flat(_lookup(params, tokens.token, config)), None
    order = _orders(batch, group, T)
    apart = sharding.split_context({s: batch[s] for s in group}, rules)

    def join(parts):
        if len(parts) > 1:
            whole = [sharding.join_context(x_BCD, rules) for x_BCD in parts]
            parts = [sharding.split_context(_permuted(jnp.concatenate(whole, axis=1), *order), rules)]
        return flat(parts[0].reshape(len(real_R1), -1))

    x_RD = join([_stream(params, apart[s], s, config) for s in group])
    if not by_norm(config.streams[group[0]]):  # a group's streams are alike in this
        return x_RD, None
    return x_RD, join([_condition(params, apart[s], s) for s in group])


def unembed(params: dict, h_RD, batch: Batch, group: Sequence[str], tokens: Tokens, config: Config, T: int | None):
    """A group's last states: those of ids as `[(h_RD, tokens)]`, and what is predicted of vectors by stream,
    `[B, C, P]` float32."""
    rules = config.mesh.rules
    if not any(config.streams[s].latent for s in group):
        return [(h_RD, tokens)], {}
    apart = sharding.split_context({s: batch[s] for s in group}, rules)
    rows = {group[0]: h_RD}
    if len(group) > 1:
        order, back = _orders(batch, group, T)
        h_BCD = sharding.join_context(h_RD.reshape(*tokens.token.shape, -1), rules)
        parts = lax.split(_permuted(h_BCD, back, order), [batch[s].token.shape[1] for s in group], axis=1)
        parts = [sharding.split_context(part, rules) for part in parts]
        rows = {s: part.reshape(-1, part.shape[-1]) for s, part in zip(group, parts, strict=True)}
    hidden = [(rows[s], apart[s]) for s in group if not config.streams[s].latent]

    def out(s):
        return ops.linear(rows[s], params["latent"][s]["out"]).astype(jnp.float32)

    def shaped(s):
        return sharding.join_context(out(s).reshape(*apart[s].token.shape, -1), rules)

    return hidden, {s: shaped(s) for s in group if config.streams[s].diffuses}


def _lookup(params, token_BC, config):
    """`x_RD`, the embeddings of ids. Of several devices each looks up its own rows, where it has the id's part."""
    rules = config.mesh.rules
    dtype = config.model.dtype

    def split(axis):
        return sharding.axes_of(axis, rules) if sharding.is_sharded() else ()

    inputs = sharding.spec(("vocab", "embed"), rules), sharding.spec((sharding.ROWS,), rules)

    def share(w_VD, token_R):
        return _rows_of(w_VD, token_R, dtype, split("vocab"), split("embed"))

    return sharding.shard_map(share, inputs, inputs[1])(params["embed"]["tokens"], token_BC.reshape(-1))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _rows_of(w_VD, token_R, dtype, of_vocab, of_width):
    """Rows of a table that is split over these mesh axes, in `dtype`; its gradient is added up in its own."""
    return _rows_forward(w_VD, token_R, dtype, of_vocab, of_width)[0]


def _rows_forward(w_VD, token_R, dtype, of_vocab, of_width):
    V = w_VD.shape[0]
    local_R = token_R - (lax.axis_index(of_vocab) * V if of_vocab else 0)
    mine_R = (local_R >= 0) & (local_R < V)
    whole_VD = sharding.all_gather(w_VD, of_width, 1, dtype)
    x_RD = jnp.take(whole_VD, jnp.where(mine_R, local_R, 0), axis=0)
    x_RD = lax.psum(jnp.where(mine_R[:, None], x_RD, 0), of_vocab) if of_vocab else x_RD
    return x_RD, (jnp.where(mine_R, local_R, V), jnp.zeros((V, 0), w_VD.dtype))


def _rows_backward(dtype, of_vocab, of_width, residuals, g_RD):
    local_R, like = residuals
    # The result is on every part of the vocabulary's devices, which each come back with a share of its gradient.
    g_RD = lax.psum(g_RD, of_vocab) if of_vocab else g_RD
    d_VD = jnp.zeros((len(like), g_RD.shape[1]), like.dtype).at[local_R].add(g_RD.astype(like.dtype), mode="drop")
    return lax.psum_scatter(d_VD, of_width, scatter_dimension=1, tiled=True) if of_width else d_VD, None


_rows_of.defvjp(_rows_forward, _rows_backward)


def _orders(batch, group, T):
    """From the streams end to end to the group's document order, and back; None where one stream is all."""
    if len(group) == 1:
        return None, None
    order_BC = batches.document_order(batches.concatenate([batch[s] for s in group]).position, T)
    return order_BC, batches.inverse(order_BC)


def _permuted(x_BCD, order_BC, back_BC):
    return ops.permute(x_BCD[:, :, None], order_BC, back_BC)[:, :, 0]


def _stream(params, tokens, name, config):
    """`[B, C, D]`."""
    stream = config.streams[name]
    if not stream.latent:
        return _lookup(params, tokens.token, config).reshape(*tokens.token.shape, -1)
    value_BCP = jnp.where((tokens.segment != 0)[..., None], tokens.value, 0).astype(config.model.dtype)
    x_RD = ops.linear(value_BCP.reshape(-1, stream.latent), params["latent"][name]["in"])
    if stream.diffuses and not by_norm(stream):
        x_RD += time_features(params["latent"][name], tokens.noise).astype(x_RD.dtype)
    return x_RD.reshape(*tokens.token.shape, -1).astype(jnp.float32)


def _condition(params, tokens, name):
    """`[B, C, Y]`; 0 for clean tokens."""
    return time_features(params["latent"][name], tokens.noise).reshape(*tokens.token.shape, -1)


def time_features(weights: dict, t_BC) -> jax.Array:
    """float32 `[R, features]` of noise levels: sines and cosines (1706.03762), then two layers.

    0 where the level is 0: what is clean is conditioned on nothing, as text is.
    """
    t_R1 = t_BC.reshape(-1, 1).astype(jnp.float32)
    angle_RY = t_R1 * QUICKEST ** jnp.linspace(0, 1, WAVES // 2)[None]
    waves_RY = jnp.concatenate([jnp.cos(angle_RY), jnp.sin(angle_RY)], axis=1)
    hidden_RF = jax.nn.silu(ops.linear(waves_RY, weights["time_in"]))
    return jnp.where(t_R1 > 0, ops.linear(hidden_RF, weights["time_out"]), 0)
