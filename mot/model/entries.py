"""How vectors become residuals: by a matrix, by two layers, or by a resampler's queries (`streams.*.entry`); and back.

A token may carry several vectors of the data side by side (`entry.fold`). The first two read them as one long vector. A
resampler takes them apart: a unit's tokens are learned queries that attend to all vectors of the unit.
"""

import jax
import jax.numpy as jnp

from mot import batches, sharding
from mot.batches import Info, Tokens
from mot.config import Config, Stream
from mot.model import attention, experts, ops


def enter(weights: dict, tokens: Tokens, stream: Stream, config: Config, whole: bool = False) -> jax.Array:
    """The residual `x_RD` of a stream's vectors, in the model's dtype; padding enters as 0.

    The tokens are in parts of rows (`sharding.split_context`), unless rows are `whole`.
    """
    value_BCP = jnp.where((tokens.segment != 0)[..., None], tokens.value, 0).astype(config.model.dtype)
    if stream.entry.kind == "resampler":
        # A part of a row may hold a part of a unit only.
        rules = config.mesh.rules
        rows = (value_BCP, tokens) if whole else sharding.join_context((value_BCP, tokens), rules)
        x_BCD = _resampler(weights, *rows, stream, config)
        x_BCD = x_BCD if whole else sharding.split_context(x_BCD, rules)
        return x_BCD.reshape(-1, x_BCD.shape[-1])
    if stream.entry.kind == "none":
        return value_BCP.reshape(-1, stream.features)
    x_RD = ops.linear(value_BCP.reshape(-1, stream.features), weights["in"])
    if stream.entry.kind == "mlp":
        return _second_layer(weights, x_RD, config)
    return plus(x_RD, weights["in_bias"]) if stream.entry.bias else x_RD


def _second_layer(weights: dict, x_RF, config: Config) -> jax.Array:
    """GELU and another matrix, both with biases (LLaVA-1.5, 2310.03744)."""
    x_RF = sharding.constrain(x_RF, (sharding.ROWS, "mlp"), config.mesh.rules)
    hidden_RF = jax.nn.gelu(plus(x_RF, weights["in_bias"]), approximate=False)
    return plus(ops.linear(hidden_RF, weights["in_2"]), weights["in_2_bias"])


def of(params: dict, stream: str) -> dict:
    """The parameters by which a stream's vectors enter and leave; there may be none."""
    return params.get("latent", {}).get(stream, {})


def leave(weights: dict, h_RD, stream: Stream) -> jax.Array:
    """What is predicted of a stream's vectors, float32 `[R, P]`."""
    y_RP = ops.linear(h_RD, weights["out"]).astype(jnp.float32)
    return plus(y_RP, weights["out_bias"]) if stream.entry.bias else y_RP


def plus(x_RD, bias_D) -> jax.Array:
    """With a bias, in x's dtype."""
    return x_RD + bias_D[None].astype(x_RD.dtype)


def _resampler(weights: dict, value_BCP, tokens: Tokens, stream: Stream, config: Config) -> jax.Array:
    """Flamingo's Perceiver (2204.14198, A.1.1): queries attend to the unit's vectors and to each other, layer by layer.

    Vectors and queries have the place of what they stand for in the unit, by RoPE; one query begins each fold.
    """
    m = config.model
    B, C, P = value_BCP.shape
    R = stream.entry.fold
    place_BC = jnp.minimum(batches.place_in_unit(tokens), stream.entry.queries - 1)
    unit_BC = jnp.where(tokens.segment != 0, tokens.unit, 0)
    each_BS = (R * place_BC[..., None] + jnp.arange(R)[None, None]).reshape(B, C * R)  # a vector's place in its unit
    seen = jnp.concatenate([jnp.repeat(unit_BC, R, axis=1), unit_BC], axis=1)
    places = R * place_BC, jnp.concatenate([each_BS, R * place_BC], axis=1)

    vectors_RD = ops.linear(value_BCP.reshape(-1, P // R), weights["in"])
    x_RD = weights["queries"][place_BC.reshape(-1)].astype(m.dtype)
    for i in range(stream.entry.layers):
        w = {name: x[i] for name, x in weights.items() if name not in ("in", "queries", "out_norm")}
        y_RD = _attend(w, x_RD, vectors_RD, (unit_BC, seen), places, config)
        x_RD = x_RD + y_RD
        x_RD = x_RD + experts.gated_ffn(w, norm(x_RD, w["ffn_norm"], config), config)
    return norm(x_RD, weights["out_norm"], config).reshape(B, C, -1)


def norm(x_RD, scale_D, config: Config) -> jax.Array:
    """By RMSNorm, as the model norms."""
    return ops.rms_norm(x_RD, scale_D, config.model.norm_eps, config.model.norm_offset)


def _attend(w: dict, x_RD, vectors_RD, units: tuple, places: tuple, config: Config) -> jax.Array:
    """What queries get from the vectors of their unit and from its queries, `[R, D]`."""
    m = config.model
    B = units[0].shape[0]

    def heads(x_RD, name):
        y_RA = ops.linear(x_RD, experts.flat_in(w[name]))
        return y_RA.reshape(B, -1, y_RA.shape[1] // m.head_size, m.head_size)

    normed_RD, seen_RD = norm(x_RD, w["queries_norm"], config), norm(vectors_RD, w["vectors_norm"], config)
    q_BCNH = ops.rope(heads(normed_RD, "wq"), places[0][..., None], m.rope_theta)
    k_BSKH, v_BSKH = (jnp.concatenate([heads(seen_RD, name), heads(normed_RD, name)], axis=1) for name in ("wk", "wv"))
    k_BSKH = ops.rope(k_BSKH, places[1][..., None], m.rope_theta)
    o_BCNH = within_units(q_BCNH, k_BSKH, v_BSKH, *units, config)
    return ops.linear(o_BCNH.reshape(len(x_RD), -1), experts.flat_out(w["wo"]))


def within_units(q_BCNH, k_BSKH, v_BSKH, q_unit_BC, k_unit_BS, config: Config, of_rows: str = "batch") -> jax.Array:
    """Attention of queries to the keys of their unit, `[B, C, N, H]`; of unit 0 they see nothing and get 0.

    Keys are of whole rows. Queries are too, or `of_rows` says that they are in parts: sharding.ROWS.
    """
    rules = config.mesh.rules
    m = config.model
    backend = m.attention if m.attention in attention.BACKENDS else "chunked"  # kernels want whole rows
    heads, q_heads = (sharding.spec((axis, None, "heads"), rules) for axis in ("batch", of_rows))
    rows, q_rows = (sharding.spec((axis,), rules) for axis in ("batch", of_rows))

    def on_each_device(q_BCNH, k_BSKH, v_BSKH, q_unit_BC, k_unit_BS):
        return attention.attend(q_BCNH, k_BSKH, v_BSKH, _info(q_unit_BC), _info(k_unit_BS), backend)

    return sharding.shard_map(on_each_device, (q_heads, heads, heads, q_rows, rows), q_heads)(
        q_BCNH, k_BSKH, v_BSKH, q_unit_BC, k_unit_BS
    )


def _info(unit_BC) -> Info:
    """Visibility by unit alone."""
    zeros_BC = jnp.zeros_like(unit_BC)
    return Info(zeros_BC, unit_BC, zeros_BC, zeros_BC > 0)
