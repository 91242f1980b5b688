"""Generation of masked ids: all are hidden at first, and in each step the surest of what is predicted stay."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mot import batches
from mot.batches import Batch, Tokens
from mot.config import Config
from mot.config.options import Settings
from mot.generate import decoding
from mot.model import transformer
from mot.objectives import masked


def unit(
    params: dict,
    state: decoding.DecodingState,
    on_B,
    keys_B,
    lies: decoding.Lies,
    *,
    stream: str,
    settings: Settings,
    config: Config,
) -> tuple[jax.Array, jax.Array, decoding.DecodingState]:
    """A unit of ids `[B, tokens]`, all hidden at first; which rows are finite; the state with the unit."""
    s = config.streams[stream]
    head_DV = transformer.head(params, config)
    whole = partial(decoding.unit_tokens, state, on_B, lies)

    def logits(seen: Tokens) -> jax.Array:
        h_RD = decoding.step(params, state, seen, stream, config).hidden[0][0]
        return transformer.logits(h_RD.reshape(*seen.token.shape, -1), head_DV, config)

    def predict(ids_BT):
        return decoding.guided(logits, whole(token=ids_BT, private=ids_BT >= 0), settings)

    hidden_BT = jnp.full((len(on_B), len(lies.inside)), config.mask_id, jnp.int32)
    ids = jnp.arange(config.vocab)
    choose = Unmasking((ids >= s.first_id) & (ids < s.first_id + s.ids), jnp.zeros_like(hidden_BT), 1)
    keys = jax.vmap(jax.random.fold_in)(keys_B, state.place_B)
    ids_BT, finite_B = unmasked(predict, hidden_BT, choose, keys, settings, s.masking.distribution, config.mask_id)
    output = decoding.step(params, state, whole(token=ids_BT), stream, config)
    return ids_BT, finite_B, decoding.after_unit(output, state, on_B, lies)


def text(
    params: dict, batch: Batch, keys_B, allowed_V, *, stream: str, settings: Settings, room: int, config: Config
) -> tuple[jax.Array, jax.Array]:
    """The stream's ids `[B, C]` with none of its `room` hidden ones left; which rows are finite.

    All of a row is computed anew in each step, as what is there sees what is found (2502.09992, 2.4).
    """
    tokens = batch[stream]
    masking = config.streams[stream].masking
    head_DV = transformer.head(params, config)
    rows = jnp.arange(len(keys_B))[:, None]

    def predict(ids_BC):
        seen = batch | {stream: tokens.replace(token=ids_BC)}
        output = transformer.forward(params, seen, config, causal=True)
        h_BTD = jnp.zeros((len(keys_B), batches.length(batch), head_DV.shape[0]), output.hidden[0][0].dtype)
        for h_RD, of_group in output.hidden:
            h_BTD = h_BTD.at[rows, of_group.position].set(h_RD.reshape(*of_group.position.shape, -1))
        h_BCD = h_BTD[rows, tokens.position]
        return transformer.logits(jnp.roll(h_BCD, 1, axis=1) if masking.shift else h_BCD, head_DV, config)

    is_hidden_BC = tokens.token == config.mask_id
    block = min(settings.block or room, room)
    block_BC = jnp.where(is_hidden_BC, (jnp.cumsum(is_hidden_BC, axis=1) - 1) // block, -1)
    choose = Unmasking(allowed_V, block_BC, -(-room // block))
    return unmasked(predict, tokens.token, choose, keys_B, settings, masking.distribution, config.mask_id)


class Unmasking(NamedTuple):
    """What is unmasked."""

    allowed_V: jax.Array | np.ndarray  # bool: which ids
    block_BT: jax.Array  # int32, in which block a token lies, from 0; -1 = in none
    blocks: int  # one is unmasked after the other


def unmasked(
    predict: Callable[[jax.Array], jax.Array],
    ids_BT,
    what: Unmasking,
    keys_B,
    settings: Settings,
    distribution: str,
    mask_id: int,
) -> tuple[jax.Array, jax.Array]:
    """Ids `[B, T]` with none hidden that lies in a block, and which rows stayed finite.

    `predict(ids_BT)` gives logits `[B, T, V]`. In each step an id is chosen for every hidden place of the block, and
    the surest stay (2202.04200, 3.2; 2502.09992 alg. 5: low-confidence remasking). How many are left hidden falls as
    ratios in training spread: evenly, or along a cosine. Each block has its part of `settings.steps`.
    """
    B, T = ids_BT.shape
    steps = max(settings.steps // what.blocks, 1)
    places = jnp.arange(T)

    def one_step(carry, n):
        ids_BT, finite_B = carry
        inside_BT = what.block_BT == n // steps
        hidden_BT = inside_BT & (ids_BT == mask_id)
        logits_BTV = predict(ids_BT)
        finite_B &= (jnp.isfinite(logits_BTV).all(-1) | ~hidden_BT).all(1)
        logits_BTV = jnp.where(what.allowed_V, logits_BTV, -jnp.inf)
        keys = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, n)))(places))(keys_B)
        chosen_BT = decoding.choose_ids(logits_BTV.reshape(B * T, -1), keys.reshape(-1), settings).reshape(B, T)
        sure_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), chosen_BT[..., None], axis=-1)[..., 0]
        done = (n % steps + 1) / steps
        left_B = jnp.floor(inside_BT.sum(1) * masked.left(done, distribution) + 1e-4)  # 6 cos(pi / 3) is 3, not 2
        order_BT = jnp.argsort(jnp.where(hidden_BT, -sure_BT, jnp.inf), axis=1)
        rank_BT = batches.inverse(order_BT)
        stays_BT = hidden_BT & (rank_BT < (hidden_BT.sum(1) - left_B)[:, None])
        return (jnp.where(stays_BT, chosen_BT, ids_BT), finite_B), None

    start = (jnp.asarray(ids_BT), jnp.ones(B, bool))
    return jax.lax.scan(one_step, start, jnp.arange(steps * what.blocks))[0]
