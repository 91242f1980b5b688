"""How tokens enter the stack and leave it: ids by the embedding, vectors by their entry, with their noise level."""

from collections.abc import Collection
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mot import sharding
from mot.batches import Tokens
from mot.config import Config, Diffusion
from mot.model import entries, ops
from mot.model.context import Group
from mot.model.params import WAVES, by_norm

QUICKEST = 1000.0  # radians that the quickest wave turns from data to noise: 2006.11239's thousand steps
PERIODS = (4e-3, 4.0)  # of the quickest and the slowest wave beside vectors, in noise levels
SLOWEST = 1e-4  # and those that the slowest of `dit` would turn, were it one more (2212.09748)


Streams = tuple[str, ...]


def embed(params: dict, groups: list[Group], config: Config) -> list[tuple[jax.Array, jax.Array | None]]:
    """Of each group of streams the residual `x_RD`, and its norms' condition `c_RY` or None.

    Padding enters as 0 whatever it holds: a NaN there would reach every weight's gradient as 0 * NaN.
    """
    # All groups' at once: the gradient of each look-up is as large as the table.
    ids = {streams: token_BC for group in groups for streams, token_BC in _ids(group, config).items()}
    looked_up = _lookup(params, ids, config)
    return [_enter(params, group, looked_up, config) for group in groups]


def _ids(group: Group, config: Config) -> dict[Streams, jax.Array]:
    """The ids `[B, C]` of a group's tokens, or of those of its streams that have ids."""
    if not any(config.streams[s].latent for s in group.streams):
        return {group.streams: group.tokens.token}
    return {(s,): tokens.token for s, tokens in group.by_stream.items() if not config.streams[s].latent}


def _enter(
    params: dict, group: Group, looked_up: dict[Streams, jax.Array], config: Config
) -> tuple[jax.Array, jax.Array | None]:
    if group.streams in looked_up:
        return _without_padding(looked_up[group.streams], group, config), None
    embedded = []
    for s, tokens in group.by_stream.items():
        x_RD = _vectors(params, tokens, s, config) if config.streams[s].latent else looked_up[s,]
        embedded.append(x_RD.reshape(*tokens.token.shape, -1).astype(jnp.float32))
    x_RD = _without_padding(_merge(embedded, group, config), group, config)
    if not by_norm(config.streams[group.streams[0]]):  # a group's streams are alike in this
        return x_RD, None
    conditions = [_condition(params, tokens, s, config) for s, tokens in group.by_stream.items()]
    return x_RD, _without_padding(_merge(conditions, group, config), group, config)


def unembed(params: dict, h_RD, group: Group, config: Config) -> tuple[list[tuple[jax.Array, Tokens]], dict]:
    """A group's last states: those of ids as `[(h_RD, tokens)]`, and by stream of vectors what is predicted of them
    `[B, C, P]`, or the states `[B, C, D]` of one whose states are predicted; float32."""
    if not any(config.streams[s].latent for s in group.streams):
        return [(h_RD, group.tokens)], {}
    rows = _apart(h_RD, group, config)
    hidden = [(rows[s], tokens) for s, tokens in group.by_stream.items() if not config.streams[s].latent]
    predicted = {}
    for s, tokens in group.by_stream.items():
        if config.streams[s].diffuses:
            y_RP = entries.leave(params["latent"][s], rows[s], config.streams[s])
            y_BCP = y_RP.reshape(*tokens.token.shape, -1)
            predicted[s] = sharding.join_context(y_BCP, config.mesh.rules)
        elif config.streams[s].predicts:
            h_BCD = rows[s].astype(jnp.float32).reshape(*tokens.token.shape, -1)
            predicted[s] = sharding.join_context(h_BCD, config.mesh.rules)
    return hidden, predicted


def states(h_RD, group: Group, streams: Collection[str], config: Config) -> dict[str, jax.Array]:
    """A group's last states `[B, C, D]`, of those of its streams that are asked for."""
    asked = [s for s in group.streams if s in streams]
    rows = _apart(h_RD, group, config) if asked else {}
    shapes = {s: (*group.by_stream[s].token.shape, -1) for s in asked}
    return {s: sharding.join_context(rows[s].reshape(shapes[s]), config.mesh.rules) for s in asked}


def _without_padding(x_RD, group: Group, config: Config) -> jax.Array:
    """The rows of real tokens, in the model's dtype; padding's are 0."""
    real_R1 = group.tokens.segment.reshape(-1, 1) != 0
    x_RD = jnp.where(real_R1, x_RD, 0).astype(config.model.dtype)
    return sharding.constrain(x_RD, (sharding.ROWS, None), config.mesh.rules)


def _merge(parts: list[jax.Array], group: Group, config: Config) -> jax.Array:
    """`[R, D]` in the group's order, of each of its streams' `[B, C, D]`."""
    rules = config.mesh.rules
    if len(parts) == 1:
        return parts[0].reshape(-1, parts[0].shape[-1])
    x_BCD = jnp.concatenate([sharding.join_context(part, rules) for part in parts], axis=1)
    x_BCD = sharding.split_context(_permuted(x_BCD, group.order, group.back), rules)
    return x_BCD.reshape(-1, x_BCD.shape[-1])


def _apart(h_RD, group: Group, config: Config) -> dict[str, jax.Array]:
    """The rows of each of the group's streams, `[R, D]`; undoes `_merge`."""
    if len(group.streams) == 1:
        return {group.streams[0]: h_RD}
    rules = config.mesh.rules
    h_BCD = sharding.join_context(h_RD.reshape(*group.tokens.token.shape, -1), rules)
    parts = sharding.shard_count(("length",), rules)
    sizes = [parts * tokens.token.shape[1] for tokens in group.by_stream.values()]
    split = lax.split(_permuted(h_BCD, group.back, group.order), sizes, axis=1)
    rows = [sharding.split_context(part, rules) for part in split]
    return {s: part.reshape(-1, part.shape[-1]) for s, part in zip(group.streams, rows, strict=True)}


def _lookup(params: dict, ids: dict[Streams, jax.Array], config: Config) -> dict[Streams, jax.Array]:
    """The embeddings `x_RD` of ids `[B, C]`. Of several devices each looks up its own, where it has the id's part."""
    if not ids:
        return {}
    rules = config.mesh.rules
    of_vocab, of_width = (sharding.axes_of(axis, rules) if sharding.is_sharded() else () for axis in ("vocab", "embed"))

    def on_each_device(w_VD, *tokens):
        token_R = jnp.concatenate([token_BC.reshape(-1) for token_BC in tokens])
        x_RD = _rows_of(w_VD, token_R, config.model.dtype, of_vocab, of_width)
        return lax.split(x_RD, [token_BC.size for token_BC in tokens])

    table, rows = (sharding.spec(axes, rules) for axes in (("vocab", "embed"), (sharding.ROWS,)))
    inputs = (table, *[rows] * len(ids))
    found = sharding.shard_map(on_each_device, inputs, rows)(params["embed"]["tokens"], *ids.values())
    scale = found[0].shape[1] ** 0.5 if config.model.embed_scale else 1
    return {streams: x_RD * scale for streams, x_RD in zip(ids, found, strict=True)}


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _rows_of(w_VD, token_R, dtype: str, of_vocab: tuple[str, ...], of_width: tuple[str, ...]) -> jax.Array:
    """Rows of a table that is split over these mesh axes, in `dtype`. Its gradient is summed in the table's dtype."""
    return _rows_forward(w_VD, token_R, dtype, of_vocab, of_width)[0]


def _rows_forward(w_VD, token_R, dtype, of_vocab, of_width):
    V = w_VD.shape[0]
    local_R = token_R - (lax.axis_index(of_vocab) * V if of_vocab else 0)
    here_R = (local_R >= 0) & (local_R < V)
    whole_VD = sharding.all_gather(w_VD, of_width, 1, dtype)
    x_RD = jnp.take(whole_VD, jnp.where(here_R, local_R, 0), axis=0)
    x_RD = lax.psum(jnp.where(here_R[:, None], x_RD, 0), of_vocab) if of_vocab else x_RD
    return x_RD, (jnp.where(here_R, local_R, V), jnp.zeros((V, 0), w_VD.dtype))


def _rows_backward(dtype, of_vocab, of_width, residuals, g_RD):
    local_R, like = residuals
    # The result is on every part of the vocabulary's devices, which each come back with a share of its gradient.
    g_RD = lax.psum(g_RD, of_vocab) if of_vocab else g_RD
    d_VD = jnp.zeros((len(like), g_RD.shape[1]), jnp.float32).at[local_R].add(g_RD.astype(jnp.float32), mode="drop")
    d_VD = d_VD.astype(like.dtype)
    return lax.psum_scatter(d_VD, of_width, scatter_dimension=1, tiled=True) if of_width else d_VD, None


_rows_of.defvjp(_rows_forward, _rows_backward)


def _permuted(x_BCD, order_BC, back_BC) -> jax.Array:
    return ops.permute(x_BCD[:, :, None], order_BC, back_BC)[:, :, 0]


def _vectors(params: dict, tokens: Tokens, name: str, config: Config) -> jax.Array:
    """The vectors of a stream as they enter the residual, `[R, D]`."""
    stream = config.streams[name]
    x_RD = entries.enter(entries.of(params, name), tokens, stream, config)
    if stream.place_table:
        x_RD += _placed(params["latent"][name], tokens.place, x_RD.dtype)
    if stream.diffuses and stream.diffusion.time == "mlp":
        x_RD = _with_time(params["latent"][name], x_RD, tokens.noise, stream.diffusion, config)
    elif stream.diffuses and not by_norm(stream):
        x_RD += time_features(params["latent"][name], tokens.noise, stream.diffusion, config).astype(x_RD.dtype)
    return x_RD


def _placed(weights: dict, place, dtype) -> jax.Array:
    """`x_RD`, the sum of learned tables' entries for each token's row and column, `place` `[B, C, 2]`.

    Such a sum holds BAGEL's table (2505.14683), whose sines are of a row or of a column, and serves pictures of any
    size (2307.06304). Looked up by a product, so that its gradient is one too.
    """
    tables = (weights["rows"], weights["columns"])
    at = place.reshape(-1, 2)
    chosen = [jax.nn.one_hot(at[:, i], len(table_VD), dtype=dtype) for i, table_VD in enumerate(tables)]
    return sum(ops.linear(one_RV, table_VD) for one_RV, table_VD in zip(chosen, tables, strict=True))


def _condition(params: dict, tokens: Tokens, name: str, config: Config) -> jax.Array:
    """What modulates the norms of a stream's tokens, `[B, C, Y]`; 0 for clean tokens, as `time_features` has it."""
    features_RY = time_features(params["latent"][name], tokens.noise, config.streams[name].diffusion, config)
    return features_RY.reshape(*tokens.token.shape, -1)


def _with_time(weights: dict, x_RD, t_BC, d: Diffusion, config: Config) -> jax.Array:
    """`x_RD` of vectors and their noise levels' waves, side by side through two layers (pi0, 2410.24164, appendix B).

    Half of the waves are sines, half cosines. They are 0 where the level is 0, unless `time_of_clean`.
    """
    t_R1 = t_BC.reshape(-1, 1).astype(jnp.float32)
    shortest, longest = PERIODS
    angle_RY = t_R1 * (2 * jnp.pi / (shortest * (longest / shortest) ** jnp.linspace(0, 1, x_RD.shape[1] // 2)))[None]
    waves_RD = jnp.concatenate([jnp.sin(angle_RY), jnp.cos(angle_RY)], axis=1)
    waves_RD = waves_RD if d.time_of_clean else jnp.where(t_R1 > 0, waves_RD, 0)
    both_RF = jnp.concatenate([x_RD, waves_RD.astype(x_RD.dtype)], axis=1)
    hidden_RF = entries.plus(ops.linear(both_RF, weights["time_in"]), weights["time_in_bias"])
    hidden_RF = sharding.constrain(jax.nn.silu(hidden_RF), (sharding.ROWS, "mlp"), config.mesh.rules)
    return entries.plus(ops.linear(hidden_RF, weights["time_out"]), weights["time_out_bias"])


def time_features(weights: dict, t_BC, d: Diffusion, config: Config) -> jax.Array:
    """float32 `[R, features]` of noise levels: sines and cosines (1706.03762), then two layers.

    They are 0 where the level is 0, unless `time_of_clean`: clean tokens are conditioned on nothing, like text.
    """
    t_R1 = t_BC.reshape(-1, 1).astype(jnp.float32)
    angle_RY = t_R1 * _radians(d.time_features)
    waves_RY = jnp.concatenate([jnp.cos(angle_RY), jnp.sin(angle_RY)], axis=1)
    x_RF = ops.linear(waves_RY, weights["time_in"])
    if d.time_features == "dit":
        x_RF = sharding.constrain(
            entries.plus(x_RF, weights["time_in_bias"]), (sharding.ROWS, "mlp"), config.mesh.rules
        )
    y_RY = ops.linear(jax.nn.silu(x_RF), weights["time_out"])
    if d.time_features == "dit":
        y_RY = entries.plus(y_RY, weights["time_out_bias"])
    return y_RY if d.time_of_clean else jnp.where(t_R1 > 0, y_RY, 0)


def _radians(kind: str) -> jax.Array:
    """How far each wave turns from data to noise, float32 `[1, half the waves]`."""
    half = WAVES[kind] // 2
    if kind == "small":
        return QUICKEST ** jnp.linspace(0, 1, half)[None]
    return SLOWEST ** (jnp.arange(half, dtype=jnp.float32) / half)[None]  # DiT's, of levels up to 1 and not to 1000
