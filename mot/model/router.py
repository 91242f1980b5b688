"""Who goes where: a tower's tokens to its experts, with weights. All arithmetic is float32.

X routing group is one row, and whatever is counted leaves padding out: a result depends neither on the mesh, nor on the
batch's other rows. `token` routers look at a token alone, and with earliest-first capacity at those before it; `expert`
routers (2202.09368) and highest-first capacity look at later tokens, too.
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mot import sharding
from mot.config import Experts
from mot.model import ops


class Choice(NamedTuple):
    """Each token's experts: X places, of which some may be empty."""

    expert_RX: jax.Array  # int32; E = an empty place
    weight_RX: jax.Array  # float32; carries the router's gradient


class Report(NamedTuple):
    """What a row's routing amounted to: sums over its real tokens, which add up over rows and microbatches."""

    tokens_BM: jax.Array  # by modality
    wanted_BM: jax.Array  # choices of an expert
    load_BME: jax.Array  # choices that found a place
    entropy_B: jax.Array  # of the scores, normalised; nats
    balance_B: jax.Array  # the Switch loss (2101.03961, equation 4), times tokens; 1 a token where all is even
    z_B: jax.Array  # log(sum exp)^2 of the logits (2202.08906)
    lost_B: jax.Array  # choices that found a place and overflowed a buffer between devices
    imitation_B: jax.Array  # cross-entropy of the causal router with the experts' choice, mean over experts


TINY = 1e-20  # scores that are all 0 to float32 share nothing, rather than 0 / 0


def capacity(spec: Experts, tokens_B, longest: int, factor: float):
    """How many of a row's tokens (`max_tokens` at most) an expert takes: floor(factor * active * tokens / experts)."""
    table = np.floor(factor * spec.active * np.arange(longest + 1) / spec.experts + 1e-9)  # float32 would round
    return jnp.asarray(table, jnp.int32)[tokens_B]


def most_choices(spec: Experts, tokens: int, causal: bool) -> int:
    """How many choices a row of `tokens` tokens can make: what a dispatch must have room for."""
    if spec.router == "expert":
        return spec.experts * (tokens if causal else spec.active * tokens // spec.experts)
    return tokens * spec.active


def route(
    x_BCD,
    weights: dict,
    spec: Experts,
    real_BC,
    position_BC,
    modality_BC,
    modalities: int,
    noise_BCD=None,
    causal=False,
    rules: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Choice, Report]:
    """Choices of the rows' tokens, R = B * C, and the report of whole rows.

    `weights`: `router` [D, E]; `router_bias` [E] where spec.balance is bias; `causal_in` [D, D'] and `causal_out`
    [D', E] where experts choose. `noise_BCD` multiplies the router's input. `causal`: experts that choose are imitated
    by a router that sees one token alone (MoMa, 2407.21770, 2.4), which sends it to all that would probably take it;
    where the highest scores win, all find a place.
    """
    B, C, _ = x_BCD.shape
    whole = partial(sharding.join_context, rules=rules)
    real_BC, position_BC, modality_BC = whole((real_BC, position_BC, modality_BC))
    logits_BCE = x_BCD.astype(jnp.float32)
    logits_BCE = whole(_matmul(logits_BCE if noise_BCD is None else logits_BCE * noise_BCD, weights["router"]))
    score_BCE = jax.nn.softmax(logits_BCE, axis=-1) if spec.score == "softmax" else jax.nn.sigmoid(logits_BCE)
    imitation_BC = jnp.zeros(real_BC.shape, jnp.float32)
    if spec.router == "expert":
        likely_BCE = whole(_causal_logits(lax.stop_gradient(x_BCD), weights))
        chosen_BCE = likely_BCE > 0 if causal else _experts_choose(score_BCE, spec, real_BC, position_BC)
        chosen_BCE &= real_BC[..., None]
        weight_BCX = jnp.where(chosen_BCE, score_BCE, 0)
        expert_BCX = jnp.where(chosen_BCE, jnp.arange(spec.experts)[None, None], spec.experts)
        wanted_BCE = chosen_BCE
        imitation_BC = (jax.nn.softplus(likely_BCE) - jnp.where(chosen_BCE, likely_BCE, 0)).mean(-1)
    else:
        expert_BCX, weight_BCX, wanted_BCE, chosen_BCE = _tokens_choose(
            score_BCE, weights, spec, real_BC, position_BC, causal
        )
    expert_BCX, weight_BCX = sharding.split_context((expert_BCX.astype(jnp.int32), weight_BCX), rules)
    choice = Choice(expert_BCX.reshape(B * C, -1), weight_BCX.reshape(B * C, -1))
    return choice, _report(
        logits_BCE, score_BCE, wanted_BCE, chosen_BCE, imitation_BC, spec, real_BC, modality_BC, modalities
    )


def _matmul(x, w):
    return jnp.matmul(x, w.astype(jnp.float32), precision=lax.Precision.HIGHEST)


def _causal_logits(x_BCD, weights):
    """Its hidden units in the model's dtype: in float32 they would be the dearest matmul of a sparse layer."""
    B, C, D = x_BCD.shape
    hidden_RF = ops.linear(x_BCD.reshape(B * C, D), weights["causal_in"])
    return _matmul(jax.nn.silu(hidden_RF.astype(jnp.float32)), weights["causal_out"]).reshape(B, C, -1)


def _experts_choose(score_BCE, spec, real_BC, position_BC):
    """Each expert takes the tokens of the row that it scores highest."""
    asks_BCE = jnp.broadcast_to(real_BC[..., None], score_BCE.shape)
    most_B = capacity(spec, real_BC.sum(1), real_BC.shape[1], 1.0)
    return _first(-lax.stop_gradient(score_BCE), asks_BCE, position_BC, most_B)


def _tokens_choose(score_BCE, weights, spec, real_BC, position_BC, causal):
    """Each token takes the experts that it scores highest; where places are short, some choices come to nothing."""
    E = spec.experts
    liked_BCE = lax.stop_gradient(score_BCE)
    if spec.balance == "bias":  # it decides who is chosen, and weighs nothing (2408.15664)
        liked_BCE = liked_BCE + lax.stop_gradient(weights["router_bias"])[None, None]
    expert_BCX = lax.top_k(liked_BCE, spec.active)[1]
    weight_BCX = jnp.take_along_axis(score_BCE, expert_BCX, axis=-1)
    if spec.normalise:
        weight_BCX = weight_BCX / jnp.maximum(weight_BCX.sum(-1, keepdims=True), TINY)
    wanted_BCE = (jax.nn.one_hot(expert_BCX, E, dtype=jnp.int32).sum(2) > 0) & real_BC[..., None]
    found_BCE = wanted_BCE
    if spec.capacity and (spec.overflow == "earliest" or not causal):
        first = position_BC[..., None] if spec.overflow == "earliest" else -liked_BCE
        most_B = capacity(spec, real_BC.sum(1), real_BC.shape[1], spec.capacity)
        found_BCE = _first(
            jnp.broadcast_to(first, liked_BCE.shape).astype(jnp.float32), wanted_BCE, position_BC, most_B
        )
    found_BCX = jnp.take_along_axis(found_BCE, expert_BCX, axis=-1)
    return jnp.where(found_BCX, expert_BCX, E), jnp.where(found_BCX, weight_BCX, 0), wanted_BCE, found_BCE


def _first(key_BCE, asks_BCE, position_BC, most_B):
    """Of those who ask an expert the `most` first, by key and then by position: bool `[B, C, E]`.

    The last one's key is found bit by bit, from counts of who comes before: TPU's compiler takes seconds for a sort.
    """
    most_B11 = most_B[:, None, None]
    bits_BCE = lax.bitcast_convert_type(key_BCE + 0.0, jnp.uint32)  # -0 is 0
    # Floats in their order: of negative ones greater bits are less.
    order_BCE = jnp.where(bits_BCE >> 31 > 0, ~bits_BCE, bits_BCE | jnp.uint32(1 << 31))
    last_B1E = _last(order_BCE, asks_BCE, most_B11)
    before_BCE, ties_BCE = asks_BCE & (order_BCE < last_B1E), asks_BCE & (order_BCE == last_B1E)
    left_B1E = most_B11 - before_BCE.sum(1, keepdims=True)
    position_BC1 = position_BC[..., None].astype(jnp.uint32)
    return before_BCE | (ties_BCE & (position_BC1 <= _last(position_BC1, ties_BCE, left_B1E)) & (left_B1E > 0))


def _last(x, asks_BCE, most):
    """uint32: the greatest bound below which fewer than `most` of those who ask lie, of each row and expert."""

    def one_bit(n, bound):
        tried = bound | (jnp.uint32(1) << (31 - n).astype(jnp.uint32))
        return jnp.where((asks_BCE & (x < tried)).sum(1, keepdims=True) < most, tried, bound)

    B, _, E = asks_BCE.shape
    return lax.fori_loop(0, 32, one_bit, jnp.zeros((B, 1, E), jnp.uint32))


def _report(logits_BCE, score_BCE, wanted_BCE, found_BCE, imitation_BC, spec, real_BC, modality_BC, modalities):
    total = lambda x_BC: jnp.where(real_BC, x_BC, 0).sum(1)
    mine_BCM = (modality_BC[..., None] == jnp.arange(modalities)[None, None]) & real_BC[..., None]
    by_modality = lambda x_BCE: jnp.einsum("BCM,BCE->BME", mine_BCM.astype(jnp.float32), x_BCE.astype(jnp.float32))
    wanted_BME = by_modality(wanted_BCE)
    p_BCE = score_BCE / jnp.maximum(score_BCE.sum(-1, keepdims=True), TINY)
    real_B = jnp.maximum(real_BC.sum(1), 1).astype(jnp.float32)
    mean_p_BE = jnp.where(real_BC[..., None], p_BCE, 0).sum(1) / real_B[:, None]
    share_BE = lax.stop_gradient(wanted_BME.sum(1)) / (real_B * spec.active)[:, None]
    return Report(
        tokens_BM=mine_BCM.sum(1).astype(jnp.float32),
        wanted_BM=wanted_BME.sum(-1),
        load_BME=by_modality(found_BCE),
        entropy_B=total(-(p_BCE * jnp.log(jnp.maximum(p_BCE, 1e-30))).sum(-1)),
        balance_B=spec.experts * (share_BE * mean_p_BE).sum(-1) * real_BC.sum(1),
        z_B=total(jax.nn.logsumexp(logits_BCE, axis=-1) ** 2),
        lost_B=jnp.zeros(real_BC.shape[0]),
        imitation_B=total(imitation_BC),
    )
