"""Gated cross-attention to streams that are no part of the joint attention (Flamingo, 2204.14198, 3.1.2).

A token sees the last unit of the stream that came before it in its document. Before every n-th layer x becomes
x + tanh(a) attention(norm(x)), then x + tanh(b) FFN(norm(x)); both gates begin at 0, so that the model begins as it is
without. Units are read once: keys and values of all layers come from what entered.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mot import batches, sharding
from mot.batches import Batch, Tokens
from mot.config import Config
from mot.model import entries, experts, ops
from mot.model.caches import Cache, Crossed
from mot.model.context import Context, Group, Seen


class Apart(NamedTuple):
    """A batch without the streams that are seen by cross-attention alone."""

    joint: Batch  # whose positions are counted anew, 0 to T - 1
    seen: dict[str, jax.Array]  # by stream: the unit that each token of the joint row sees, [B, T]; 0 = none
    last: dict[str, tuple[jax.Array, jax.Array]]  # by stream: each row's last unit, and its segment, [B]


def apart(batch: Batch, config: Config) -> Apart:
    """Takes the streams of `config.crossed` out of a batch."""
    crossed = [s for s in batch if s in config.crossed]
    if not crossed:
        return Apart(batch, {}, {})
    joint = {s: tokens for s, tokens in batch.items() if s not in crossed}
    T = batches.length(batch)
    there_BT = sum(_in_row(jnp.ones_like(t.position), t, T) for t in joint.values())
    rank_BT = jnp.cumsum(there_BT, axis=1) - 1
    units = {s: _last_units(batch[s], T) for s in crossed}

    def before(unit_BT, segment_BT) -> jax.Array:
        """Each token's unit, by the token's place in the joint row."""
        row_BT = jnp.zeros((len(unit_BT), batches.length(joint)), jnp.int32)
        for t in joint.values():
            unit_BC, segment_BC = (jnp.take_along_axis(x, t.position, axis=1) for x in (unit_BT, segment_BT))
            seen_BC = jnp.where((segment_BC == t.segment) & (t.segment != 0), unit_BC, 0)
            rank_BC = jnp.take_along_axis(rank_BT, t.position, axis=1)
            row_BT = row_BT.at[_rows(t), rank_BC].set(seen_BC, unique_indices=True)
        return row_BT

    def counted_anew(t: Tokens) -> Tokens:
        return t.replace(position=jnp.take_along_axis(rank_BT, t.position, axis=1))

    last = {s: (unit_BT[:, -1], segment_BT[:, -1]) for s, (unit_BT, segment_BT) in units.items()}
    return Apart({s: counted_anew(t) for s, t in joint.items()}, {s: before(*x) for s, x in units.items()}, last)


def _rows(tokens: Tokens) -> jax.Array:
    return jnp.arange(tokens.position.shape[0])[:, None]


def _in_row(x_BC, tokens: Tokens, T: int) -> jax.Array:
    """`[B, T]`: a number of each token at its position, and 0 elsewhere."""
    zeros_BT = jnp.zeros((x_BC.shape[0], T), jnp.int32)
    return zeros_BT.at[_rows(tokens), tokens.position].set(x_BC, unique_indices=True)


def _last_units(tokens: Tokens, T: int) -> tuple[jax.Array, jax.Array]:
    """Of each position of a row the last unit up to there, and its segment, `[B, T]`; 0 where there is none."""
    unit_BT = _in_row(jnp.where(tokens.segment != 0, tokens.unit, 0), tokens, T)
    segment_BT = _in_row(tokens.segment, tokens, T)
    last_BT = lax.cummax(jnp.where(unit_BT != 0, jnp.arange(T)[None], 0), axis=1)
    return jnp.take_along_axis(unit_BT, last_BT, axis=1), jnp.take_along_axis(segment_BT, last_BT, axis=1)


def see(
    params: dict, batch: Batch, found: Apart, groups: Sequence[Group], config: Config, cache: Cache | None
) -> tuple[dict[str, Seen], dict[str, Crossed]]:
    """What every layer sees of each stream of `config.crossed`, and what a cache keeps of them.

    A batch that follows a cache has no units of its own: its tokens see the last that the cache has.
    """
    seen, kept = {}, {}
    for s in config.crossed:
        weights = params["cross"][s]
        if s in batch:
            kept[s] = Crossed(*_keys_and_values(params, batch[s], s, config), _units(batch[s]), *found.last[s])
            units = [_of_group(group, found.seen[s], config) for group in groups]
        elif cache is not None and s in cache.crossed:
            kept[s] = cache.crossed[s]
            units = [_after(group, kept[s]) for group in groups]
        else:
            units = None
        seen[s] = Seen(weights, kept.get(s), units)
    return seen, kept


def _units(tokens: Tokens) -> jax.Array:
    return jnp.where(tokens.segment != 0, tokens.unit, 0)


def _of_group(group: Group, seen_BT, config: Config) -> jax.Array:
    """The unit that each token of a group sees; parts of rows (`context`) come first in a group."""
    parts = sharding.shard_count(("length",), config.mesh.rules)
    return jnp.take_along_axis(jnp.tile(seen_BT, (parts, 1)), group.tokens.position, axis=1)


def _after(group: Group, crossed: Crossed) -> jax.Array:
    return jnp.where(group.tokens.segment == crossed.segment[:, None], crossed.last[:, None], 0)


def _keys_and_values(params: dict, tokens: Tokens, stream: str, config: Config) -> tuple[jax.Array, jax.Array]:
    """Of a stream's tokens, for each cross-attention: `[L, B, C, K, H]` each."""
    weights = params["cross"][stream]
    B, C = tokens.token.shape
    x_RD = entries.enter(entries.of(params, stream), tokens, config.streams[stream], config, whole=True)

    def of_layer(wk_DKH, wv_DKH, scale_D):
        normed_RD = entries.norm(x_RD, scale_D, config)
        heads = (ops.linear(normed_RD, experts.flat_in(w_DKH)) for w_DKH in (wk_DKH, wv_DKH))
        return [y_RA.reshape(B, C, -1, config.model.head_size) for y_RA in heads]

    each = [of_layer(*w) for w in zip(weights["wk"], weights["wv"], weights["seen_norm"], strict=True)]
    return tuple(jnp.stack(x) for x in zip(*each, strict=True))


def cross(xs: list[jax.Array], number: jax.Array | int, context: Context) -> list[jax.Array]:
    """The groups' residuals as they enter layer `number`: past the cross-attentions that come before it."""
    for s, seen in context.crossed.items():
        n = context.config.streams[s].cross_every
        through = partial(_through, seen=seen, place=number // n, context=context)
        is_before = (number + 1) % n == 0
        if isinstance(number, int):
            xs = through(xs) if is_before else xs
        else:
            xs = through(xs) if n == 1 else lax.cond(is_before, through, _past, xs)
    return xs


def _past(xs: list[jax.Array]) -> list[jax.Array]:
    return xs


def _through(xs: list[jax.Array], seen: Seen, place: jax.Array | int, context: Context) -> list[jax.Array]:
    """Every group through the cross-attention of this place, and its FFN."""
    config = context.config
    w = {name: x[place] for name, x in seen.weights.items()}
    kept = seen.kept
    done = []
    for i, (x_RD, group) in enumerate(zip(xs, context.groups, strict=True)):
        if kept is not None:
            h_RD = entries.norm(x_RD, w["attn_norm"], config)
            q_RA = ops.linear(h_RD, experts.flat_in(w["wq"]))
            q_BCNH = q_RA.reshape(*group.tokens.token.shape, -1, config.model.head_size)
            of_unit = (seen.units[i], kept.unit)
            o_BCNH = entries.within_units(q_BCNH, kept.k[place], kept.v[place], *of_unit, config, sharding.ROWS)
            y_RD = ops.linear(o_BCNH.reshape(len(x_RD), -1), experts.flat_out(w["wo"]))
            x_RD = x_RD + _gated(y_RD, w["attn_gate"])
        y_RD = experts.gated_ffn(w, entries.norm(x_RD, w["ffn_norm"], config), config)
        x_RD = x_RD + _gated(y_RD, w["ffn_gate"])
        done.append(sharding.constrain(x_RD, (sharding.ROWS, None), config.mesh.rules))
    return done


def _gated(y_RD, gate_1) -> jax.Array:
    return y_RD * jnp.tanh(gate_1)[None].astype(y_RD.dtype)
