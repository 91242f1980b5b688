"""Each token takes the experts that it scores highest (1701.06538); with a capacity some choices come to nothing."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from mot.config import Experts
from mot.model.params import ROUTER_BIAS, Spec, scale
from mot.model.router import TINY, Chosen, Traffic, capacity, first_to_ask, logits, scores


def weights(spec: Experts, D: int) -> Iterator[tuple[str, Spec]]:
    yield "router", Spec((D, spec.experts), ("embed", "router"), scale(D))
    if spec.balance == "bias":
        yield ROUTER_BIAS, Spec((spec.experts,), ("router",), None, 0.0)


def most_choices(spec: Experts, tokens: int, causal: bool) -> int:
    return tokens * spec.active


def choose(traffic: Traffic, weights: dict, spec: Experts, causal: bool) -> Chosen:
    """`causal`: where the highest scores win, all find a place."""
    logits_BCE = logits(traffic, weights["router"])
    score_BCE = scores(logits_BCE, spec)
    liked_BCE = lax.stop_gradient(score_BCE)
    if spec.balance == "bias":  # it decides who is chosen, and weighs nothing (2408.15664)
        liked_BCE = liked_BCE + lax.stop_gradient(weights[ROUTER_BIAS])[None, None]
    choosable_BCE = liked_BCE if spec.groups == 1 else _of_best_groups(liked_BCE, spec)
    expert_BCX = lax.top_k(choosable_BCE, spec.active)[1]
    weight_BCX = jnp.take_along_axis(score_BCE, expert_BCX, axis=-1)
    if spec.normalise:
        weight_BCX = weight_BCX / jnp.maximum(weight_BCX.sum(-1, keepdims=True), TINY)
    if spec.weight_scale != 1:
        weight_BCX = weight_BCX * spec.weight_scale
    wanted_BCE = (jax.nn.one_hot(expert_BCX, spec.experts, dtype=jnp.int32).sum(2) > 0) & traffic.real_BC[..., None]
    placed_BCE = wanted_BCE
    if spec.capacity and (spec.overflow == "earliest" or not causal):
        placed_BCE = _find_places(liked_BCE, wanted_BCE, traffic, spec)
    placed_BCX = jnp.take_along_axis(placed_BCE, expert_BCX, axis=-1)
    expert_BCX = jnp.where(placed_BCX, expert_BCX, spec.experts)
    return Chosen(expert_BCX, jnp.where(placed_BCX, weight_BCX, 0), wanted_BCE, placed_BCE, logits_BCE, score_BCE)


BEST = 2  # experts of a group by which it is scored


def _of_best_groups(liked_BCE, spec: Experts) -> jax.Array:
    """-inf for experts outside of a token's best groups, which are those with the most liked experts (2412.19437)."""
    liked_BCGX = liked_BCE.reshape(*liked_BCE.shape[:2], spec.groups, -1)
    liked_BCG = lax.top_k(liked_BCGX, BEST)[0].sum(-1)
    group_BCX = lax.top_k(liked_BCG, spec.active_groups)[1]
    is_best_BCG = jax.nn.one_hot(group_BCX, spec.groups, dtype=jnp.int32).sum(2) > 0
    return jnp.where(is_best_BCG[..., None], liked_BCGX, -jnp.inf).reshape(liked_BCE.shape)


def _find_places(liked_BCE, wanted_BCE, traffic: Traffic, spec: Experts) -> jax.Array:
    """Which choices an expert has room for: the earliest tokens', or the highest scores'."""
    key = traffic.position_BC[..., None] if spec.overflow == "earliest" else -liked_BCE
    key_BCE = jnp.broadcast_to(key, liked_BCE.shape).astype(jnp.float32)
    limit_B = capacity(spec, traffic.real_BC.sum(1), traffic.real_BC.shape[1], spec.capacity)
    return first_to_ask(key_BCE, wanted_BCE, traffic.position_BC, limit_B)
