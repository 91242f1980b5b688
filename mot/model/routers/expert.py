"""Each expert takes the tokens of a row that it scores highest (2202.09368), and so looks at later ones.

A second, causal router learns to imitate them for generation (MoMa, 2407.21770, 2.4): it sees one token alone, and
sends it to all experts that would probably take it.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from mot import sharding
from mot.config import Experts
from mot.model import ops
from mot.model.params import CAUSAL, Spec, scale
from mot.model.router import Chosen, Traffic, capacity, first_to_ask, logits, matmul, scores


def weights(spec: Experts, D: int) -> Iterator[tuple[str, Spec]]:
    yield "router", Spec((D, spec.experts), ("embed", "router"), scale(D))
    yield f"{CAUSAL}_in", Spec((D, D), ("embed", "mlp"), scale(D))
    yield f"{CAUSAL}_out", Spec((D, spec.experts), ("mlp", "router"), scale(D))


def most_choices(spec: Experts, tokens: int, causal: bool) -> int:
    return spec.experts * (tokens if causal else spec.active * tokens // spec.experts)


def choose(traffic: Traffic, weights: dict, spec: Experts, causal: bool) -> Chosen:
    """`causal`: by the router that imitates them."""
    logits_BCE = logits(traffic, weights["router"])
    score_BCE = scores(logits_BCE, spec)
    likely_BCE = sharding.join_context(_causal_logits(lax.stop_gradient(traffic.x_BCD), weights), traffic.rules)
    chosen_BCE = likely_BCE > 0 if causal else _take_highest(score_BCE, traffic, spec)
    chosen_BCE &= traffic.real_BC[..., None]
    weight_BCX = jnp.where(chosen_BCE, score_BCE, 0)
    expert_BCX = jnp.where(chosen_BCE, jnp.arange(spec.experts)[None, None], spec.experts)
    imitation_BC = (jax.nn.softplus(likely_BCE) - jnp.where(chosen_BCE, likely_BCE, 0)).mean(-1)
    return Chosen(expert_BCX, weight_BCX, chosen_BCE, chosen_BCE, logits_BCE, score_BCE, imitation_BC)


def _take_highest(score_BCE, traffic: Traffic, spec: Experts) -> jax.Array:
    asks_BCE = jnp.broadcast_to(traffic.real_BC[..., None], score_BCE.shape)
    limit_B = capacity(spec, traffic.real_BC.sum(1), traffic.real_BC.shape[1], 1.0)
    return first_to_ask(-lax.stop_gradient(score_BCE), asks_BCE, traffic.position_BC, limit_B)


def _causal_logits(x_BCD, weights: dict) -> jax.Array:
    """Its hidden units in the model's dtype: in float32 they would be the dearest matmul of a sparse layer."""
    B, C, D = x_BCD.shape
    hidden_RF = ops.linear(x_BCD.reshape(B * C, D), weights[f"{CAUSAL}_in"])
    return matmul(jax.nn.silu(hidden_RF.astype(jnp.float32)), weights[f"{CAUSAL}_out"]).reshape(B, C, -1)
