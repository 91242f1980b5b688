"""Generation of interleaved documents by one cached decoder: tokens, then an image or clip, then tokens again.

Rows advance in phases, one compiled program for each: the prompt at once, ids one by one, a unit of vectors by solving
from noise with its clean result written into the cache. Rows that are not in a phase pass it as padding.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mot.batches import Batch, Tokens
from mot.config import Config
from mot.config.options import Settings
from mot.data.layout import Format, Medium, Stretch, document
from mot.data.packing import pack
from mot.errors import UserError
from mot.model import caches, transformer
from mot.model.caches import Cache
from mot.objectives import diffusion

SLOTS = 64  # a cache's length is a multiple of this, and a prompt's of PROMPT: few shapes, few compilations
PROMPT = 8
NONE = -1  # no id
DOCUMENT, APART = 1, 2  # segments: a row's document; a unit that sees nothing but itself, for guidance


class Generated(NamedTuple):
    parts: list[Stretch]  # what follows the prompt, without <bos>, <eos> and the markers around units
    ended: bool  # by <eos>; else there was no more room


@struct.dataclass
class DecodingState:
    """Where each row is."""

    cache: Cache
    h_BD: jax.Array  # the last token's state, of which the next id is chosen
    place_B: jax.Array  # position and RoPE position of the next token


class Allowed(NamedTuple):
    """What the rows may choose in a phase of ids."""

    on_B: jax.Array | np.ndarray  # bool: which rows choose
    left_B: jax.Array | np.ndarray  # ids at most
    allowed_BV: np.ndarray  # bool: which ids
    stops_V: np.ndarray  # bool: which ids end a row's phase


class Sampler:
    """A model ready to generate; its programs are compiled once for each shape and setting."""

    def __init__(self, params: dict, config: Config, format: Format):
        """Raises `UserError` for a model that cannot continue a document."""
        if config.data.blocks == "document":
            raise UserError(
                "data.blocks: 'document'; this model's tokens all see later ones, so it continues no document; train "
                "with 'units' or 'prefix'"
            )
        config = _without_training(config)
        self.params, self.config, self.format = params, config, format
        self.drawn = tuple(m for m in format.media if config.streams[m.stream].is_drawn)

        def compiled(f, *static, **more):
            return jax.jit(partial(f, config=config), static_argnames=static, **more)

        self._prefill = compiled(_prefill, "slots")
        # A donated state's cache is written in place.
        self._feed = compiled(_feed, "stream", donate_argnames="state")
        self._ids = compiled(_ids, "stream", "settings", "limit", donate_argnames="state")
        self._vectors = compiled(_vectors, "stream", "settings", "tokens", donate_argnames="state")

    def __call__(
        self,
        prompts: Sequence[Sequence[Stretch]],
        settings: Settings = Settings(),  # noqa: B008
        text: int = 64,
        media: int = 1,
        opens: str = "",
        length: int = 0,
        seed: int = 0,
        first: int = 0,
    ) -> list[Generated]:
        """What follows each prompt: at most `text` tokens and `media` units, first one of stream `opens` if given.

        Units of no fixed length get at most `length` ids, or so many vectors. Row i depends on first + i, its prompt
        and the arguments, and on no other row. Raises `UserError` for what this model cannot do, and where its logits
        are not finite.
        """
        self._check(prompts, settings, media, opens, length)
        rows = [_Row(prompt, text, media, self.format.medium(opens)) for prompt in prompts]
        batch = _prompts(prompts, self.config, self.format, opens)
        longest = max([m.tokens or length for m in self.drawn] or [0])
        slots = sum(t.token.shape[1] for t in batch.values()) + text + media * (longest + 2) + max(longest, 1)
        state = self._prefill(self.params, batch, slots=-(-slots // SLOTS) * SLOTS)
        keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(first + jnp.arange(len(rows)))
        while not all(row.ended or row.full for row in rows):
            state = self._text(state, rows, keys_B, settings, text)
            for medium in self.drawn:
                if any(row.unit == medium for row in rows):
                    state = self._unit(state, rows, keys_B, settings, medium, length)
        return [Generated(row.parts, row.ended) for row in rows]

    def _text(self, state: DecodingState, rows: list["_Row"], keys_B, settings: Settings, limit: int) -> DecodingState:
        """Ids of text, until each row opens a unit, ends, or has no more room."""
        on_B = np.array([row.unit is None and not row.ended and not row.full for row in rows])
        if not on_B.any():
            return state
        stops_V = np.zeros(self.config.vocab, bool)
        stops_V[[self.format.eos, *(m.opens for m in self.format.media)]] = True
        left_B = np.array([row.text for row in rows])
        allowed = Allowed(on_B, left_B, np.stack([self._text_ids(row) for row in rows]), stops_V)
        ids, state = self._choose(state, allowed, keys_B, self.format.text, settings, limit)
        opened = np.full(len(rows), NONE)
        for i, row in enumerate(rows):
            if on_B[i]:
                opened[i] = row.take_text(ids[i], self.format, self.config)
        return self._mark(state, opened)

    def _text_ids(self, row: "_Row") -> np.ndarray:
        """`[V]` bool: text, its end, and the markers of units that the row may still open."""
        text = self.config.streams[self.format.text]
        allowed_V = np.zeros(self.config.vocab, bool)
        allowed_V[text.first_id : text.first_id + text.ids] = True
        allowed_V[list(self.format.special)] = False
        allowed_V[[self.format.eos, *(m.opens for m in self.drawn if row.media)]] = True
        return allowed_V

    def _unit(
        self, state: DecodingState, rows: list["_Row"], keys_B, settings: Settings, medium: Medium, length: int
    ) -> DecodingState:
        """One image or clip, in the rows that have opened it, and its closing marker."""
        on_B = np.array([row.unit == medium for row in rows])
        draw = self._unit_of_vectors if self.config.streams[medium.stream].latent else self._unit_of_ids
        units, state = draw(state, on_B, keys_B, settings, medium, medium.tokens or length)
        for row, is_on, unit in zip(rows, on_B, units, strict=True):
            if is_on:
                row.take_unit(medium, np.asarray(unit))
        return self._mark(state, np.where(on_B, medium.closes, NONE))

    def _unit_of_vectors(self, state, on_B, keys_B, settings, medium: Medium, tokens: int):
        """`[B, tokens, P]`, and the state."""
        name = medium.stream
        vectors_BTP, finite_B, state = self._vectors(
            self.params, state, on_B, keys_B, stream=name, tokens=tokens, settings=settings
        )
        _refuse_not_finite(on_B & ~np.asarray(finite_B), f"vectors of {name}")
        return vectors_BTP, state

    def _unit_of_ids(self, state, on_B, keys_B, settings, medium: Medium, tokens: int):
        """Each row's ids, of the stream's own tokenizer, and the state."""
        stream = self.config.streams[medium.stream]
        allowed_V, stops_V = np.zeros((2, self.config.vocab), bool)
        allowed_V[stream.first_id : stream.first_id + stream.ids] = True
        if not medium.tokens:
            allowed_V[medium.closes] = stops_V[medium.closes] = True
        rows = len(on_B)
        allowed = Allowed(on_B, np.full(rows, tokens), np.tile(allowed_V, (rows, 1)), stops_V)
        chosen, state = self._choose(state, allowed, keys_B, medium.stream, settings, tokens)
        return [np.array([i - stream.first_id for i in ids if i != medium.closes], int) for ids in chosen], state

    def _choose(self, state, allowed: Allowed, keys_B, stream: str, settings: Settings, limit: int):
        """Each row's ids of one stream, and the state."""
        chosen_BT, finite_B, state = self._ids(
            self.params, state, allowed, keys_B, stream=stream, settings=settings, limit=limit
        )
        _refuse_not_finite(allowed.on_B & ~np.asarray(finite_B), f"logits of {stream}")
        return [[int(i) for i in ids if i >= 0] for ids in np.asarray(chosen_BT)], state

    def _mark(self, state: DecodingState, ids) -> DecodingState:
        """A marker fed to the rows that have one."""
        if (ids == NONE).all():
            return state
        return self._feed(self.params, state, ids, ids != NONE, stream=self.format.text)

    def _check(self, prompts, settings, media, opens, length):
        if settings.solver not in diffusion.SOLVERS:
            raise UserError(
                f"solver {settings.solver!r} is unknown; allowed: {', '.join(diffusion.SOLVERS)}; choose one"
            )
        for medium in self.drawn:
            stream = self.config.streams[medium.stream]
            if stream.diffuses and settings.guidance != 1 and not stream.diffusion.drop_rate:
                raise UserError(
                    f"guidance {settings.guidance:g} needs a model that also knows {medium.stream} without its text, "
                    f"and this one was trained with streams.{medium.stream}.diffusion.drop_rate = 0; write guidance 1, "
                    "or train with drop_rate=0.1"
                )
            if not medium.tokens and not length:
                raise UserError(f"{medium.stream} have no fixed length; say how many tokens at most (length)")
        if opens and self.format.medium(opens) not in self.drawn:
            if self.format.medium(opens):
                learns = self.config.streams[opens].objective
                raise UserError(f"streams.{opens}.objective: {learns!r}; this model reads {opens} and draws none")
            names = ", ".join(m.stream for m in self.drawn)
            raise UserError(
                f"opens {opens!r} is no stream that this model draws; allowed: {names or 'none'}; choose one"
            )
        if opens and media < 1:
            raise UserError(f"media {media}, but {opens} is to be opened; allow at least 1, or open none")
        names = list(self.config.streams)
        for i, prompt in enumerate(prompts):
            used = dict.fromkeys(names, 0)
            for part in prompt:
                used[part.stream] += len(part.data)
            for name, n in used.items():
                if n > (budget := self.config.streams[name].budget):
                    raise UserError(
                        f"prompt {i + 1} has {n} tokens of {name}, and the model's rows at most {budget} "
                        f"(streams.{name}.budget); shorten it"
                    )


def _without_training(config: Config) -> Config:
    """Nothing is kept for a way back; experts take all, as a token by itself has no share of a row's capacity."""

    def dropless(sets):
        return {tower: replace(s, capacity=0.0) for tower, s in sets.items()}

    m = replace(config.model, remat="none")
    return replace(config, model=m, attn=dropless(config.attn), ffn=dropless(config.ffn))


class _Row:
    """What the host knows of a row."""

    def __init__(self, prompt, text: int, media: int, unit: Medium | None):
        self.text, self.media = text, media  # room that is left
        self.unit = unit  # opened, to be generated
        self.parts: list[Stretch] = []
        self.ended = False

    @property
    def full(self) -> bool:
        return self.unit is None and not self.text

    def take_text(self, ids, format, config) -> int:
        """The marker to feed, or NONE."""
        self.text -= len(ids)
        last = ids[-1]
        medium = next((m for m in format.media if m.opens == last), None)
        self.ended, self.unit = last == format.eos, medium
        if plain := [i - config.streams[format.text].first_id for i in (ids[:-1] if self.ended or medium else ids)]:
            self.parts.append(Stretch(format.text, np.array(plain)))
        return last if medium else NONE

    def take_unit(self, medium, data):
        self.parts.append(Stretch(medium.stream, data))
        self.media -= 1
        self.unit = None


def _refuse_not_finite(bad_B, what):
    if bad_B.any():
        raise UserError(
            f"row {int(np.argmax(bad_B)) + 1}: the {what} are not finite (NaN or infinity); the checkpoint is of a run "
            "that has diverged; take an earlier --step"
        )


def _prompts(prompts: Sequence[Sequence[Stretch]], config: Config, format: Format, opens: str) -> Batch:
    """The prompts as a batch of the streams that they have."""
    names = list(config.streams)
    is_prefix = config.data.blocks == "prefix" and opens
    documents = [document(prompt, config, format, opens) for prompt in prompts]
    documents = [d._replace(span=np.ones_like(d.span)) if is_prefix else d for d in documents]
    used = np.max([np.bincount(d.stream, minlength=len(names)) for d in documents], axis=0)
    budgets = [int(-(-n // PROMPT) * PROMPT) for n in used]
    batch = pack([[d] for d in documents], names, budgets, [s.latent for s in config.streams.values()])
    return {name: tokens for name, tokens in batch.items() if tokens.token.shape[1]}


# --- what is compiled ----------------------------------------------------------------------------------------------


def _prefill(params: dict, batch: Batch, *, config: Config, slots: int) -> DecodingState:
    """The prompts in a cache, and each row's last state; no logits."""
    rows = next(iter(batch.values())).token.shape[0]
    output = transformer.forward(params, batch, config, causal=True, cache=caches.empty(config, rows, slots))
    cache = caches.keep(output.cache)

    def last_state(h_RD, tokens):
        is_last_BC = tokens.position == cache.used[:, None] - 1
        return jnp.where(is_last_BC[..., None], h_RD.reshape(*is_last_BC.shape, -1), 0).sum(1)

    return DecodingState(cache, sum(last_state(h_RD, tokens) for h_RD, tokens in output.hidden), cache.used)


def _step(params: dict, state: DecodingState, tokens: Tokens, stream: str, config: Config) -> transformer.Output:
    """The output for one step's tokens of one stream, which see the cache."""
    return transformer.forward(params, {stream: tokens}, config, causal=True, cache=state.cache)


def _tokens(state: DecodingState, on_B, T: int, **fields: Any) -> Tokens:
    """The next T tokens of each row that is `on`; padding in the others."""
    here_BT = jnp.broadcast_to(on_B[:, None], (len(on_B), T))
    place_BT = state.place_B[:, None] + jnp.arange(T)[None]
    zeros_BT = jnp.zeros((len(on_B), T), jnp.int32)
    usual = dict.fromkeys(Tokens.__dataclass_fields__, zeros_BT)
    usual |= dict(position=place_BT, rope_position=place_BT[..., None], segment=jnp.where(here_BT, DOCUMENT, 0))
    usual |= dict(private=zeros_BT > 0, noise=zeros_BT.astype(jnp.float32), value=jnp.zeros((*zeros_BT.shape, 0)))
    return Tokens(**(usual | fields))


def _feed(params: dict, state: DecodingState, id_B, on_B, *, stream: str, config: Config) -> DecodingState:
    """One id more in the rows that are `on`."""
    output = _step(params, state, _tokens(state, on_B, 1, token=jnp.asarray(id_B)[:, None]), stream, config)
    h_BD = jnp.where(on_B[:, None], output.hidden[0][0], state.h_BD)
    return DecodingState(caches.keep(output.cache), h_BD, state.place_B + on_B)


def _ids(
    params: dict,
    state: DecodingState,
    allowed: Allowed,
    keys_B,
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
        logits_BV = jnp.matmul(state.h_BD, head_DV.astype(state.h_BD.dtype), preferred_element_type=jnp.float32)
        finite_B &= ~on_B | jnp.isfinite(logits_BV).all(1)
        keys = jax.vmap(jax.random.fold_in)(keys_B, state.place_B)
        id_B = choose_ids(jnp.where(allowed.allowed_BV, logits_BV, -jnp.inf), keys, settings)
        ids_BT = ids_BT.at[:, n].set(jnp.where(on_B, id_B, -1))
        on_B &= finite_B & ~allowed.stops_V[id_B]
        state = _feed(params, state, id_B, on_B, stream=stream, config=config)
        return n + 1, state, on_B & (n + 1 < allowed.left_B), finite_B, ids_BT

    on_B = allowed.on_B
    ids_BT = jnp.full((len(on_B), limit), -1, jnp.int32)
    start = (0, state, on_B & (allowed.left_B > 0), jnp.ones_like(on_B), ids_BT)
    _, state, _, finite_B, ids_BT = jax.lax.while_loop(some_row_is_on, choose_and_feed, start)
    return ids_BT, finite_B, state


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


def _vectors(
    params: dict, state: DecodingState, on_B, keys_B, *, stream: str, tokens: int, settings: Settings, config: Config
) -> tuple[jax.Array, jax.Array, DecodingState]:
    """A unit of vectors `[B, tokens, P]` solved from noise; which rows are finite; the state with the clean unit."""
    shape = (tokens, config.streams[stream].latent)
    objective = config.streams[stream].objective
    keys = jax.vmap(jax.random.fold_in)(keys_B, state.place_B)

    def noise(n):
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, n), (shape[0] * shape[1],)))(keys)

    unit_BT = jnp.broadcast_to(state.place_B[:, None] + (1 << 20), (len(on_B), tokens))  # a span like no other
    unit_tokens = partial(_tokens, state, on_B, tokens, unit=unit_BT, span=unit_BT)

    def predict(value_BTP, t):
        noise_BT = jnp.full(unit_BT.shape, t, jnp.float32)
        seen = unit_tokens(value=value_BTP, noise=noise_BT, private=unit_BT > 0)
        conditional = _step(params, state, seen, stream, config).latents[stream]
        if settings.guidance == 1:
            return conditional
        alone = seen.replace(segment=jnp.where(seen.segment > 0, APART, 0))
        unconditional = _step(params, state, alone, stream, config).latents[stream]
        return diffusion.guided(conditional, unconditional, settings.guidance)

    def solver_step(value_BTP, n):
        e_BTP = noise(n + 1).reshape(value_BTP.shape) if settings.solver == "ddpm" else 0.0
        return diffusion.step(predict, value_BTP, grid[n], grid[n + 1], objective, settings.solver, e_BTP), None

    grid = jnp.asarray(diffusion.grid(settings.steps, settings.shift))
    value_BTP, _ = jax.lax.scan(solver_step, noise(0).reshape(-1, *shape), jnp.arange(settings.steps))
    output = _step(params, state, unit_tokens(value=value_BTP), stream, config)
    finite_B = jnp.isfinite(value_BTP).all((1, 2))
    return value_BTP, finite_B, DecodingState(caches.keep(output.cache), state.h_BD, state.place_B + on_B * tokens)
