"""The compiled half of generation by a cached decoder: a prompt at once, ids one by one, a unit of vectors from noise.

Rows that are not in a phase pass it as padding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mot.batches import Batch, Tokens
from mot.config import Config
from mot.config.options import Settings
from mot.data import positions
from mot.model import caches, transformer
from mot.model.caches import Cache
from mot.objectives import diffusion

DOCUMENT, APART = 1, 2  # segments: a row's document; a unit that sees nothing but itself, for guidance


@struct.dataclass
class DecodingState:
    """Where each row is."""

    cache: Cache
    h_BD: jax.Array  # the last token's state, of which the next id is chosen
    place_B: jax.Array  # position of the next token
    rope_B: jax.Array  # where RoPE takes it to lie, where it is text


class Allowed(NamedTuple):
    """What the rows may choose in a phase of ids."""

    on_B: jax.Array | np.ndarray  # bool: which rows choose
    left_B: jax.Array | np.ndarray  # ids at most
    allowed_BV: np.ndarray  # bool: which ids
    stops_V: np.ndarray  # bool: which ids end a row's phase


class Lies(NamedTuple):
    """Where the tokens of a phase lie, beyond the text before it."""

    inside: np.ndarray  # int32 [T, A], for RoPE
    shifted: np.ndarray  # int32 [A], by axis: 1 where they lie after that text, 0 where they begin at 0
    ends: np.ndarray  # int32 [T + 1]: where text goes on after so many of them
    place: np.ndarray  # int32 [T, 2], rows and columns in the unit; [T, 0] where the device reads none


def text_lies(tokens: int, rule: positions.Rule) -> Lies:
    n = np.arange(tokens + 1, dtype=np.int32)
    inside = np.repeat(n[:-1, None], rule.axes, axis=1)
    return Lies(inside, np.ones(rule.axes, np.int32), n, np.zeros((tokens, 2 * rule.has_places), np.int32))


def unit_lies(place: np.ndarray, stream: int, rule: positions.Rule) -> Lies:
    """Where the tokens of a unit lie, by their frame, row and column, `[n, 3]`."""
    inside, after = positions.unit(place, stream, rule)
    read = place[:, 1:] if rule.has_places else place[:, :0]
    return Lies(inside, positions.shifted(rule), np.append(0, after).astype(np.int32), read)


def prefill(params: dict, batch: Batch, *, config: Config, slots: int) -> DecodingState:
    """The prompts in a cache, and each row's last state; no logits."""
    rows = next(iter(batch.values())).token.shape[0]
    output = transformer.forward(params, batch, config, causal=True, cache=caches.empty(config, rows, slots))
    cache = caches.keep(output.cache)
    # A row is longer than its cache by what is seen by cross-attention alone.
    place_B = sum((tokens.segment != 0).sum(1, dtype=jnp.int32) for tokens in batch.values())

    def last_state(h_RD, tokens):
        is_last_BC = tokens.position == place_B[:, None] - 1
        return jnp.where(is_last_BC[..., None], h_RD.reshape(*is_last_BC.shape, -1), 0).sum(1)

    h_BD = sum(last_state(h_RD, tokens) for h_RD, tokens in output.hidden)
    return DecodingState(cache, h_BD, place_B, _text_goes_on(batch))


def _text_goes_on(batch: Batch) -> jax.Array:
    """`[B]`: where RoPE takes the next token to lie, if it is text. A prompt ends with text: a marker, if no word."""

    def last(tokens):
        is_text_BC = (tokens.segment != 0) & (tokens.unit == 0)
        return jnp.where(is_text_BC, tokens.rope_position[..., 0], -1).max(1)

    return 1 + jnp.stack([last(tokens) for tokens in batch.values()]).max(0)


def step(params: dict, state: DecodingState, tokens: Tokens, stream: str, config: Config) -> transformer.Output:
    """The output for one step's tokens of one stream, which see the cache."""
    return transformer.forward(params, {stream: tokens}, config, causal=True, cache=state.cache)


def _tokens(state: DecodingState, on_B, lies: Lies, **fields: Any) -> Tokens:
    """The next tokens of each row that is `on`, where they lie; padding in the others."""
    B, T = len(on_B), len(lies.inside)
    here_BT = jnp.broadcast_to(on_B[:, None], (B, T))
    place_BT = state.place_B[:, None] + jnp.arange(T)[None]
    zeros_BT = jnp.zeros((B, T), jnp.int32)
    usual = dict.fromkeys(Tokens.__dataclass_fields__, zeros_BT)
    usual |= dict(position=place_BT, segment=jnp.where(here_BT, DOCUMENT, 0))
    usual |= dict(rope_position=state.rope_B[:, None, None] * lies.shifted[None, None] + lies.inside[None])
    usual |= dict(place=jnp.broadcast_to(lies.place, (B, *lies.place.shape)))
    usual |= dict(private=zeros_BT > 0, noise=zeros_BT.astype(jnp.float32), value=jnp.zeros((*zeros_BT.shape, 0)))
    return Tokens(**(usual | fields))


def _feed(params: dict, state: DecodingState, id_B, on_B, lies: Lies, *, stream: str, config: Config) -> DecodingState:
    """One id more in the rows that are `on`; where text goes on after it is not moved."""
    output = step(params, state, _tokens(state, on_B, lies, token=jnp.asarray(id_B)[:, None]), stream, config)
    h_BD = jnp.where(on_B[:, None], output.hidden[0][0], state.h_BD)
    return DecodingState(caches.keep(output.cache), h_BD, state.place_B + on_B, state.rope_B)


def marker(params: dict, state: DecodingState, id_B, on_B, lies: Lies, *, stream: str, config: Config):
    """The state with a marker in the rows that are `on`, after which text goes on."""
    state = _feed(params, state, id_B, on_B, lies, stream=stream, config=config)
    return state.replace(rope_B=state.rope_B + on_B * lies.ends[-1])


def read(params: dict, state: DecodingState, data, on_B, lies: Lies, *, stream: str, config: Config) -> DecodingState:
    """A whole unit more, ids from 0 `[B, T]` or clean vectors `[B, T, P]`, in the rows that are `on`."""
    s = config.streams[stream]
    unit_BT = jnp.broadcast_to(state.place_B[:, None] + (1 << 20), data.shape[:2])  # a span like no other
    fields = (
        dict(value=data.astype(jnp.float32), span=unit_BT)
        if s.latent
        else dict(token=data.astype(jnp.int32) + s.first_id)
    )
    output = step(params, state, _tokens(state, on_B, lies, unit=unit_BT, **fields), stream, config)
    return after_unit(output, state, on_B, lies)


def ids(
    params: dict,
    state: DecodingState,
    allowed: Allowed,
    keys_B,
    lies: Lies,
    *,
    stream: str,
    settings: Settings,
    limit: int,
    config: Config,
) -> tuple[jax.Array, jax.Array, DecodingState]:
    """Ids `[B, limit]` of a stream, -1 where there is none; which rows stayed finite; the state.

    An id that stops a row is not fed: it may be of another stream.
    """
    head_DV = transformer.head(params, config)

    def some_row_is_on(carry):
        return carry[2].any()

    def choose_and_feed(carry):
        n, state, on_B, finite_B, ids_BT = carry
        logits_BV = transformer.logits(state.h_BD, head_DV, config)
        finite_B &= ~on_B | jnp.isfinite(logits_BV).all(1)
        keys = jax.vmap(jax.random.fold_in)(keys_B, state.place_B)
        id_B = choose_ids(jnp.where(allowed.allowed_BV, logits_BV, -jnp.inf), keys, settings)
        ids_BT = ids_BT.at[:, n].set(jnp.where(on_B, id_B, -1))
        on_B &= finite_B & ~allowed.stops_V[id_B]
        one = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, n, 1), (lies.inside, lies.place))
        lies_now = lies._replace(inside=one[0], place=one[1])
        state = _feed(params, state, id_B, on_B, lies_now, stream=stream, config=config)
        return n + 1, state, on_B & (n + 1 < allowed.left_B), finite_B, ids_BT

    on_B = allowed.on_B
    ids_BT = jnp.full((len(on_B), limit), -1, jnp.int32)
    start = (0, state, on_B & (allowed.left_B > 0), jnp.ones_like(on_B), ids_BT)
    first_B, rope_B = state.place_B, state.rope_B
    _, state, _, finite_B, ids_BT = jax.lax.while_loop(some_row_is_on, choose_and_feed, start)
    return ids_BT, finite_B, state.replace(rope_B=rope_B + jnp.asarray(lies.ends)[state.place_B - first_B])


def choose_ids(logits_BV, keys_B, settings: Settings) -> jax.Array:
    """`[B]` an id each: the likeliest, or drawn among the top k and the nucleus of probability p (1904.09751)."""
    if settings.temperature == 0:
        return logits_BV.argmax(-1).astype(jnp.int32)
    logits_BV = logits_BV / settings.temperature
    if settings.top_k:
        least_B1 = jax.lax.top_k(logits_BV, min(settings.top_k, logits_BV.shape[1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    if settings.top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV), axis=-1) - jax.nn.softmax(sorted_BV)
        # The likeliest has nothing before it: it stays, however small p.
        least_B1 = jnp.where((before_BV < settings.top_p) | (before_BV == 0), sorted_BV, jnp.inf).min(-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def vectors(
    params: dict, state: DecodingState, on_B, keys_B, lies: Lies, *, stream: str, settings: Settings, config: Config
) -> tuple[jax.Array, jax.Array, DecodingState]:
    """A unit of vectors `[B, tokens, P]` solved from noise; which rows are finite; the state with the clean unit."""
    tokens = len(lies.inside)
    shape = (tokens, config.streams[stream].latent)
    objective = config.streams[stream].objective
    keys = jax.vmap(jax.random.fold_in)(keys_B, state.place_B)

    def noise(n):
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, n), (shape[0] * shape[1],)))(keys)

    whole = partial(unit_tokens, state, on_B, lies)

    def predict(value_BTP, t):
        noise_BT = jnp.full(value_BTP.shape[:2], t, jnp.float32)
        seen = whole(value=value_BTP, noise=noise_BT, private=noise_BT > 0)
        return guided(lambda tokens: step(params, state, tokens, stream, config).latents[stream], seen, settings)

    def solver_step(value_BTP, n):
        e_BTP = noise(n + 1).reshape(value_BTP.shape) if settings.solver == "ddpm" else 0.0
        return diffusion.step(predict, value_BTP, grid[n], grid[n + 1], objective, settings.solver, e_BTP), None

    grid = jnp.asarray(diffusion.grid(settings.steps, settings.shift))
    value_BTP, _ = jax.lax.scan(solver_step, noise(0).reshape(-1, *shape), jnp.arange(settings.steps))
    output = step(params, state, whole(value=value_BTP), stream, config)
    finite_B = jnp.isfinite(value_BTP).all((1, 2))
    return value_BTP, finite_B, after_unit(output, state, on_B, lies)


def unit_tokens(state: DecodingState, on_B, lies: Lies, **fields: Any) -> Tokens:
    """`_tokens` of a unit, which sees itself both ways."""
    shape = (len(on_B), len(lies.inside))
    unit_BT = jnp.broadcast_to(state.place_B[:, None] + (1 << 20), shape)  # a span like no other
    return _tokens(state, on_B, lies, unit=unit_BT, span=unit_BT, **fields)


def guided(predict: Callable[[Tokens], jax.Array], seen: Tokens, settings: Settings) -> jax.Array:
    """What is predicted of a unit's tokens, moved away from what is predicted of them without their document."""
    conditional = predict(seen)
    if settings.guidance == 1:
        return conditional
    unconditional = predict(seen.replace(segment=jnp.where(seen.segment > 0, APART, 0)))
    return diffusion.guided(conditional, unconditional, settings.guidance)


def after_unit(output: transformer.Output, state: DecodingState, on_B, lies: Lies) -> DecodingState:
    """The state with a whole unit in the rows that are `on`."""
    place_B, rope_B = state.place_B + on_B * len(lies.inside), state.rope_B + on_B * lies.ends[-1]
    return DecodingState(caches.keep(output.cache), state.h_BD, place_B, rope_B)
