"""Which experts each token goes to, and with which weights. All arithmetic is float32.

What is common to all routers; each kind has a file in `routers/`. `capacity` counts whole rows: a row is routed as it
would be by itself, whatever the batch's other rows are.
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mot import sharding
from mot.config import Experts
from mot.config.routers import ROUTERS

TINY = 1e-20  # scores that are all 0 to float32 share nothing, rather than 0 / 0


class Traffic(NamedTuple):
    """The tokens that a router sends. They are of whole rows; with `context`, x and its noise are of parts."""

    x_BCD: jax.Array  # the device's parts of rows; padding's are finite
    noise_BCD: jax.Array | None  # what a router multiplies x by; of the same parts
    token_BC: jax.Array  # ids
    real_BC: jax.Array  # bool: no padding
    position_BC: jax.Array
    modality_BC: jax.Array
    rules: Mapping[str, str] = MappingProxyType({})  # mesh.rules


class Choice(NamedTuple):
    """Each token's experts: X slots, some of them empty."""

    expert_RX: jax.Array  # int32; E = an empty slot
    weight_RX: jax.Array  # float32; carries the router's gradient


class Pooled(NamedTuple):
    """What a balance loss over rows and layers together needs of a row: sums over its real tokens."""

    wanted_BE: jax.Array  # choices of each expert
    score_BE: jax.Array  # each expert's scores, normalised


class Report(NamedTuple):
    """A row's routing: sums over its real tokens, which add up over rows and microbatches."""

    tokens_BM: jax.Array  # by modality
    wanted_BM: jax.Array  # choices of an expert
    load_BME: jax.Array  # choices that found a place
    entropy_B: jax.Array  # of the scores, normalised; nats
    balance_B: jax.Array  # the Switch loss (2101.03961, equation 4), times tokens; 1 a token where all is even
    z_B: jax.Array  # log(sum exp)^2 of the logits (2202.08906)
    lost_B: jax.Array  # choices that found a place and overflowed a buffer between devices
    imitation_B: jax.Array  # cross-entropy of the causal router with the experts' choice, mean over experts
    pooled: Pooled | None = None  # where the balance loss is pooled


class Chosen(NamedTuple):
    """What a router decided, for whole rows."""

    expert_BCX: jax.Array  # each token's experts; E = an empty slot
    weight_BCX: jax.Array
    wanted_BCE: jax.Array  # bool: a token's choices
    placed_BCE: jax.Array  # bool: those that found a place
    logits_BCE: jax.Array  # as the z-loss judges them
    score_BCE: jax.Array  # 0 or more
    imitation_BC: jax.Array | None = None  # cross-entropy of a router that imitates this one; None: there is none


def implementation(name: str) -> ModuleType:
    """The file of `routers/` that a row of ROUTERS names."""
    if name not in ROUTERS:
        raise ValueError(f"no router {name!r}; there are {', '.join(ROUTERS)}")
    return importlib.import_module(f"mot.model.routers.{name}")


def most_choices(spec: Experts, tokens: int, causal: bool) -> int:
    """The most choices that a row of `tokens` tokens can make: a dispatch must have room for them."""
    return implementation(spec.router).most_choices(spec, tokens, causal)


def route(
    traffic: Traffic, weights: dict, spec: Experts, modalities: int, causal: bool = False
) -> tuple[Choice, Report]:
    """The tokens' choices, R = B * C, and the report of whole rows.

    `weights` are the router's (`routers/<name>.py`). `causal`: no token's choice may depend on later ones.
    """
    chosen = implementation(spec.router).choose(traffic, weights, spec, causal)
    choices = (chosen.expert_BCX.astype(jnp.int32), chosen.weight_BCX)
    expert_BCX, weight_BCX = sharding.split_context(choices, traffic.rules)
    B, C = expert_BCX.shape[:2]
    choice = Choice(expert_BCX.reshape(B * C, -1), weight_BCX.reshape(B * C, -1))
    return choice, _report(chosen, traffic, spec, modalities)


# --- what routers have in common -------------------------------------------------------------------------------------


def logits(traffic: Traffic, w_DE) -> jax.Array:
    """A linear router's logits, of whole rows; its input is multiplied by `noise_BCD`."""
    x_BCD = traffic.x_BCD.astype(jnp.float32)
    x_BCD = x_BCD if traffic.noise_BCD is None else x_BCD * traffic.noise_BCD
    return sharding.join_context(matmul(x_BCD, w_DE), traffic.rules)


def scores(logits_BCE, spec: Experts) -> jax.Array:
    return jax.nn.softmax(logits_BCE, axis=-1) if spec.score == "softmax" else jax.nn.sigmoid(logits_BCE)


def matmul(x, w) -> jax.Array:
    return jnp.matmul(x, w.astype(jnp.float32), precision=lax.Precision.HIGHEST)


def capacity(spec: Experts, tokens_B, tokens: int, factor: float) -> jax.Array:
    """How many of a row's tokens (`tokens` at most) an expert takes: floor(factor * active * tokens / experts)."""
    table = np.floor(factor * spec.active * np.arange(tokens + 1) / spec.experts + 1e-9)  # float32 would round
    return jnp.asarray(table, jnp.int32)[tokens_B]


def first_to_ask(key_BCE, asks_BCE, position_BC, limit_B) -> jax.Array:
    """The first of those who ask an expert, at most `limit` of them, by key and then by position: bool `[B, C, E]`.

    The last one's key is found bit by bit, from counts of who comes before: TPU's compiler takes seconds for a sort.
    """
    limit_B11 = limit_B[:, None, None]
    bits_BCE = lax.bitcast_convert_type(key_BCE + 0.0, jnp.uint32)  # -0 is 0
    # Floats in their order: of negative ones greater bits are less.
    order_BCE = jnp.where(bits_BCE >> 31 > 0, ~bits_BCE, bits_BCE | jnp.uint32(1 << 31))
    last_B1E = _last(order_BCE, asks_BCE, limit_B11)
    before_BCE, ties_BCE = asks_BCE & (order_BCE < last_B1E), asks_BCE & (order_BCE == last_B1E)
    left_B1E = limit_B11 - before_BCE.sum(1, keepdims=True)
    position_BC1 = position_BC[..., None].astype(jnp.uint32)
    return before_BCE | (ties_BCE & (position_BC1 <= _last(position_BC1, ties_BCE, left_B1E)) & (left_B1E > 0))


def _last(x, asks_BCE, limit) -> jax.Array:
    """uint32: the greatest bound below which fewer than `limit` of those who ask lie, of each row and expert."""

    def one_bit(n, bound):
        tried = bound | (jnp.uint32(1) << (31 - n).astype(jnp.uint32))
        return jnp.where((asks_BCE & (x < tried)).sum(1, keepdims=True) < limit, tried, bound)

    B, _, E = asks_BCE.shape
    return lax.fori_loop(0, 32, one_bit, jnp.zeros((B, 1, E), jnp.uint32))


def _report(chosen: Chosen, traffic: Traffic, spec: Experts, modalities: int) -> Report:
    real_BC = traffic.real_BC
    score_BCE = chosen.score_BCE
    imitation_BC = chosen.imitation_BC
    if imitation_BC is None:
        imitation_BC = jnp.zeros(real_BC.shape, jnp.float32)

    def total(x_BC):
        return jnp.where(real_BC, x_BC, 0).sum(1)

    own_BCM = (traffic.modality_BC[..., None] == jnp.arange(modalities)[None, None]) & real_BC[..., None]

    def by_modality(x_BCE):
        return jnp.einsum("BCM,BCE->BME", own_BCM.astype(jnp.float32), x_BCE.astype(jnp.float32))

    wanted_BME = by_modality(chosen.wanted_BCE)
    p_BCE = score_BCE / jnp.maximum(score_BCE.sum(-1, keepdims=True), TINY)
    real_B = jnp.maximum(real_BC.sum(1), 1).astype(jnp.float32)
    p_BE = jnp.where(real_BC[..., None], p_BCE, 0).sum(1)
    mean_p_BE = p_BE / real_B[:, None]
    share_BE = lax.stop_gradient(wanted_BME.sum(1)) / (real_B * spec.active)[:, None]
    return Report(
        tokens_BM=own_BCM.sum(1).astype(jnp.float32),
        wanted_BM=wanted_BME.sum(-1),
        load_BME=by_modality(chosen.placed_BCE),
        entropy_B=total(-(p_BCE * jnp.log(jnp.maximum(p_BCE, 1e-30))).sum(-1)),
        balance_B=spec.experts * (share_BE * mean_p_BE).sum(-1) * real_BC.sum(1),
        z_B=total(jax.nn.logsumexp(chosen.logits_BCE, axis=-1) ** 2),
        lost_B=jnp.zeros(real_BC.shape[0]),
        imitation_B=total(imitation_BC),
        pooled=Pooled(lax.stop_gradient(wanted_BME.sum(1)), p_BE) if spec.balance == "pooled" else None,
    )
