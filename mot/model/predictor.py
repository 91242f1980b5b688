"""Predicts the states of what is hidden of a unit from those of the rest: a narrow tower after the trunk (2301.08243).

It is a model of one stream (`params.predictor`), with layers as the trunk has. Its tokens see those of their unit.
"""

from functools import partial

import jax
import jax.numpy as jnp

from mot import batches, sharding
from mot.batches import Tokens
from mot.config import Config
from mot.model import joint, layers, ops, transformer
from mot.model import params as parameters
from mot.model.context import Context


def predict(params: dict, name: str, state_BCD, tokens: Tokens, is_target_BC, config: Config) -> jax.Array:
    """`[B, C, D]` float32: what is predicted of the states of a stream's tokens.

    `state_BCD` are the states of those that were seen, whose segment is not 0. In place of each target stands one
    learned token, with the target's position; what is neither is padding. A clean copy of a unit is another unit.
    """
    own = parameters.predictor(config, name)
    weights = params["predictor"][name]
    rules = config.mesh.rules
    is_seen_BC = tokens.segment != 0
    unit_BC = jnp.where(is_seen_BC | is_target_BC, 2 * tokens.unit - tokens.private, 0)
    index_BC = jnp.broadcast_to(jnp.arange(unit_BC.shape[1]), unit_BC.shape)  # the stream is the row
    alone = tokens.replace(position=index_BC, segment=unit_BC, span=unit_BC, private=jnp.zeros_like(is_seen_BC))
    group = transformer.merge({name: alone}, (name,), own, batches.length({name: alone}))
    state_BCD, seen_BC1 = sharding.split_context((state_BCD, is_seen_BC[..., None]), rules)
    state_RD = state_BCD.reshape(-1, state_BCD.shape[-1]).astype(config.model.dtype)
    hidden_1D = weights["hidden"].astype(config.model.dtype)
    x_RD = jnp.where(seen_BC1.reshape(-1, 1), ops.linear(state_RD, weights["in"]), hidden_1D)
    x_RD = jnp.where(group.tokens.segment.reshape(-1, 1) != 0, x_RD, 0)
    x_RD = sharding.constrain(x_RD, (sharding.ROWS, None), rules)
    row = joint.prepared(joint.join([group], rules, None), [group], own)
    context = Context(own, [group], [None], row, None, False, None, parameters.multipliers(own))
    (x_RD,), _, _ = transformer.stack(partial(layers.block, context=context), weights["blocks"], [x_RD], own, False)
    h_RD = ops.rms_norm(x_RD, weights["final_norm"], config.model.norm_eps, config.model.norm_offset)
    y_RD = ops.linear(h_RD, weights["out"]).astype(jnp.float32)
    return sharding.join_context(y_RD.reshape(*group.tokens.token.shape, -1), rules)
