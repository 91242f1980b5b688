"""Generation of interleaved documents by one cached decoder: tokens, then an image or clip, then tokens again.

Rows advance in phases, one compiled program for each: the prompt at once, ids one by one, a unit of vectors by solving
from noise, or of masked ids by unmasking, with its clean result written into the cache. Rows that are not in a phase
pass it as padding. Text whose documents are masked as wholes has no cache: all of a row is unmasked together.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mot import batches
from mot.batches import Batch, Tokens
from mot.config import Config
from mot.config.options import Settings
from mot.data import folding, packing, positions, records
from mot.data.layout import Format, Medium, Stretch, document, unit_places
from mot.data.packing import pack
from mot.errors import UserError
from mot.model import caches, transformer
from mot.model.caches import Cache
from mot.objectives import diffusion, masked

SLOTS = 64  # a cache's length is a multiple of this, and a prompt's of PROMPT: few shapes, few compilations
PROMPT = 8
NONE = -1  # no id
NO_SIZES: Mapping[str, tuple[int, ...]] = MappingProxyType({})
DOCUMENT, APART = 1, 2  # segments: a row's document; a unit that sees nothing but itself, for guidance


class Generated(NamedTuple):
    parts: list[Stretch]  # what follows the prompt, without <bos>, <eos> and the markers around units
    ended: bool  # by <eos>; else there was no more room


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


def _none(stream: str, data: np.ndarray) -> list[Stretch]:
    return []


class Sampler:
    """A model ready to generate; its programs are compiled once for each shape and setting."""

    def __init__(
        self, params: dict, config: Config, format: Format, further: Callable[[str, np.ndarray], list[Stretch]] = _none
    ):
        """`further` are the other representations that follow a unit drawn in a stream, which the model reads then.

        Raises `UserError` for a model that cannot continue a document.
        """
        self.writes_at_once = config.streams[format.text].masks == "document"
        if config.data.blocks == "document" and not self.writes_at_once:
            raise UserError(
                "data.blocks: 'document'; this model's tokens all see later ones, so it continues no document; train "
                "with 'units' or 'prefix', or text with objective='masked'"
            )
        config = _without_training(config)
        self.params, self.config, self.format, self.further = params, config, format, further
        self.rule = positions.rule(config)
        learned = [m for m in format.media if config.streams[m.stream].is_drawn]
        self.drawn = tuple({m.opens: m for m in reversed(learned)}.values())[::-1]  # the first that a marker opens
        if self.writes_at_once:
            self.drawn = ()  # a row's text alone

        def compiled(f, *static, **more):
            return jax.jit(partial(f, config=config), static_argnames=static, **more)

        self._prefill = compiled(_prefill, "slots")
        # A donated state's cache is written in place.
        self._feed = compiled(_marker, "stream", donate_argnames="state")
        self._read = compiled(_read, "stream", donate_argnames="state")
        self._ids = compiled(_ids, "stream", "settings", "limit", donate_argnames="state")
        self._vectors = compiled(_vectors, "stream", "settings", donate_argnames="state")
        self._unmasked_unit = compiled(_unmasked_unit, "stream", "settings", donate_argnames="state")
        self._unmasked_text = compiled(_unmasked_text, "stream", "settings", "room")

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
        sizes: Mapping[str, tuple[int, ...]] = NO_SIZES,
    ) -> list[Generated]:
        """What follows each prompt: at most `text` tokens and `media` units, first one of stream `opens` if given.

        Units of no fixed length get at most `length` ids, or so many vectors; where they have rows, `sizes` says, by
        stream, how many rows and columns. Row i depends on first + i, its prompt and the arguments, and no other row.
        Raises `UserError` for what this model cannot do, and where its logits are not finite.
        """
        self._check(prompts, settings, media, opens, length, sizes)
        keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(first + jnp.arange(len(prompts)))
        if self.writes_at_once:
            return self._written(prompts, keys_B, settings, text)
        rows = [_Row(prompt, text, media, self.format.medium(opens)) for prompt in prompts]
        batch = _prompts(prompts, self.config, self.format, opens)
        longest = max([self._tokens_of(m, length, sizes) for m in self.drawn] or [0])
        slots = sum(t.token.shape[1] for t in batch.values()) + text + media * (longest + 2) + max(longest, 1)
        state = self._prefill(self.params, batch, slots=-(-slots // SLOTS) * SLOTS)
        while not all(row.ended or row.full for row in rows):
            state = self._text(state, rows, keys_B, settings, text)
            for medium in self.drawn:
                if any(row.unit == medium for row in rows):
                    tokens = _unit_length(medium, length, sizes)
                    state = self._unit(state, rows, keys_B, settings, medium, tokens, _unit_shape(medium, sizes))
        return [Generated(row.parts, row.ended) for row in rows]

    def _tokens_of(self, medium: Medium, length: int, sizes: Mapping[str, tuple[int, ...]]) -> int:
        """The most tokens of a unit: what is drawn, and its other representations."""
        return sum(_unit_length(m, length, sizes) for m in self.format.media if m.opens == medium.opens)

    def _written(self, prompts, keys_B, settings: Settings, room: int) -> list[Generated]:
        """What follows each prompt up to its <eos>, of `room` tokens of text that are unmasked together."""
        text = self.config.streams[self.format.text]
        allowed_V = self._text_ids(media=0)
        batch = _prompts(prompts, self.config, self.format, "", room)
        ids_BC, finite_B = self._unmasked_text(
            self.params, batch, keys_B, allowed_V, stream=self.format.text, settings=settings, room=room
        )
        _refuse_not_finite(~np.asarray(finite_B), f"logits of {self.format.text}")
        generated = []
        for ids_C, opened_C in zip(
            np.asarray(ids_BC), batch[self.format.text].token == self.config.mask_id, strict=True
        ):
            ids = ids_C[opened_C]
            ended = bool((ids == self.format.eos).any())
            ids = ids[: int((ids == self.format.eos).argmax())] if ended else ids
            generated.append(Generated([Stretch(self.format.text, ids - text.first_id)] * bool(len(ids)), ended))
        return generated

    def _text(self, state: DecodingState, rows: list["_Row"], keys_B, settings: Settings, limit: int) -> DecodingState:
        """Ids of text, until each row opens a unit, ends, or has no more room."""
        on_B = np.array([row.unit is None and not row.ended and not row.full for row in rows])
        if not on_B.any():
            return state
        stops_V = np.zeros(self.config.vocab, bool)
        stops_V[[self.format.eos, *(m.opens for m in self.format.media)]] = True
        left_B = np.array([row.text for row in rows])
        allowed = Allowed(on_B, left_B, np.stack([self._text_ids(row.media) for row in rows]), stops_V)
        lies = text_lies(limit, self.rule)
        ids, state = self._choose(state, allowed, keys_B, self.format.text, settings, limit, lies)
        opened = np.full(len(rows), NONE)
        for i, row in enumerate(rows):
            if on_B[i]:
                opened[i] = row.take_text(ids[i], self.format, self.config)
        return self._mark(state, opened)

    def _text_ids(self, media: int) -> np.ndarray:
        """`[V]` bool: text, its end, and the markers of units, where a row may still open so many."""
        text = self.config.streams[self.format.text]
        allowed_V = np.zeros(self.config.vocab, bool)
        allowed_V[text.first_id : text.first_id + text.ids] = True
        allowed_V[list(self.format.special)] = False
        allowed_V[[self.format.eos, *(m.opens for m in self.drawn if media)]] = True
        return allowed_V

    def _unit(
        self,
        state: DecodingState,
        rows: list["_Row"],
        keys_B,
        settings: Settings,
        medium: Medium,
        tokens: int,
        shape: tuple[int, ...],
    ) -> DecodingState:
        """One image or clip, in the rows that have opened it, and its closing marker."""
        on_B = np.array([row.unit == medium for row in rows])
        stream = self.config.streams[medium.stream]
        draw = self._unit_of_vectors if stream.latent else self._unit_of_masked if stream.masks else self._unit_of_ids
        lies = self._lies(medium.stream, positions.places(shape, tokens))
        units, state = draw(state, on_B, keys_B, settings, medium, lies)
        if medium.is_of_any_size:
            units = [np.asarray(unit).reshape(*shape, *np.shape(unit)[1:]) for unit in units]
        for row, is_on, unit in zip(rows, on_B, units, strict=True):
            if is_on:
                row.take_unit(medium, np.asarray(unit))
        state = self._read_again(state, on_B, medium, units)
        return self._mark(state, np.where(on_B, medium.closes, NONE))

    def _lies(self, stream: str, place: np.ndarray) -> "Lies":
        return unit_lies(place, list(self.config.streams).index(stream), self.rule)

    def _read_again(self, state: DecodingState, on_B, medium: Medium, units) -> DecodingState:
        """Other representations of the units that were drawn, which the rows read; rows of one shape at a time."""
        found = {i: self.further(medium.stream, np.asarray(units[i])) for i in np.flatnonzero(on_B)}
        for n in range(max(map(len, found.values()))):
            alike: dict[tuple[str, tuple[int, ...]], list[int]] = {}
            for i, stretches in found.items():
                for one in stretches[n : n + 1]:
                    alike.setdefault((one.stream, np.shape(one.data)), []).append(i)
            for (name, _), rows in alike.items():
                fold = self.config.streams[name].entry.fold
                of = [folding.data(records.flat(np.asarray(found[i][n].data)), fold) for i in rows]
                data = np.zeros((len(on_B), *of[0].shape))
                data[rows] = of
                is_here_B = np.isin(np.arange(len(on_B)), rows)
                place = unit_places(np.asarray(found[rows[0]][n].data), self.format.medium(name))
                lies = self._lies(name, place[::fold])
                state = self._read(self.params, state, data, is_here_B, lies, stream=name)
        return state

    def _unit_of_vectors(self, state, on_B, keys_B, settings, medium: Medium, lies: "Lies"):
        """`[B, tokens, P]`, and the state."""
        name = medium.stream
        vectors_BTP, finite_B, state = self._vectors(
            self.params, state, on_B, keys_B, lies, stream=name, settings=settings
        )
        _refuse_not_finite(on_B & ~np.asarray(finite_B), f"vectors of {name}")
        return vectors_BTP, state

    def _unit_of_masked(self, state, on_B, keys_B, settings, medium: Medium, lies: "Lies"):
        """Each row's ids `[tokens]`, of the stream's own tokenizer, and the state."""
        name = medium.stream
        ids_BT, finite_B, state = self._unmasked_unit(
            self.params, state, on_B, keys_B, lies, stream=name, settings=settings
        )
        _refuse_not_finite(on_B & ~np.asarray(finite_B), f"logits of {name}")
        return np.asarray(ids_BT) - self.config.streams[name].first_id, state

    def _unit_of_ids(self, state, on_B, keys_B, settings, medium: Medium, lies: "Lies"):
        """Each row's ids, of the stream's own tokenizer, and the state."""
        tokens = len(lies.inside)
        stream = self.config.streams[medium.stream]
        allowed_V, stops_V = np.zeros((2, self.config.vocab), bool)
        allowed_V[stream.first_id : stream.first_id + stream.ids] = True
        if not medium.tokens and not medium.shape:
            allowed_V[medium.closes] = stops_V[medium.closes] = True
        rows = len(on_B)
        allowed = Allowed(on_B, np.full(rows, tokens), np.tile(allowed_V, (rows, 1)), stops_V)
        chosen, state = self._choose(state, allowed, keys_B, medium.stream, settings, tokens, lies)
        return [np.array([i - stream.first_id for i in ids if i != medium.closes], int) for ids in chosen], state

    def _choose(self, state, allowed: Allowed, keys_B, stream: str, settings: Settings, limit: int, lies: "Lies"):
        """Each row's ids of one stream, and the state."""
        chosen_BT, finite_B, state = self._ids(
            self.params, state, allowed, keys_B, lies, stream=stream, settings=settings, limit=limit
        )
        _refuse_not_finite(allowed.on_B & ~np.asarray(finite_B), f"logits of {stream}")
        return [[int(i) for i in ids if i >= 0] for ids in np.asarray(chosen_BT)], state

    def _mark(self, state: DecodingState, ids) -> DecodingState:
        """A marker fed to the rows that have one."""
        if (ids == NONE).all():
            return state
        return self._feed(self.params, state, ids, ids != NONE, text_lies(1, self.rule), stream=self.format.text)

    def _check(self, prompts, settings, media, opens, length, sizes):
        if settings.solver not in diffusion.SOLVERS:
            raise UserError(
                f"solver {settings.solver!r} is unknown; allowed: {', '.join(diffusion.SOLVERS)}; choose one"
            )
        for medium in self.drawn:
            stream = self.config.streams[medium.stream]
            if (stream.diffuses or stream.masks) and settings.guidance != 1 and not stream.drop_rate:
                section = "masking" if stream.masks else "diffusion"
                raise UserError(
                    f"guidance {settings.guidance:g} needs a model that also knows {medium.stream} without its text, "
                    f"and this one was trained with streams.{medium.stream}.{section}.drop_rate = 0; write guidance 1, "
                    "or train with drop_rate=0.1"
                )
            size = sizes.get(medium.stream, ())
            if medium.is_of_any_size and not _fits(size, medium.shape):
                raise UserError(
                    f"size {list(size)}: units of {medium.stream} have any number of rows and columns of tokens up to "
                    f"{list(medium.shape)}; say how many"
                )
            if not medium.tokens and not medium.shape and not length:
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
                used[part.stream] += records.count(np.asarray(part.data)) // self.config.streams[part.stream].entry.fold
            for name, n in used.items():
                if n > (budget := self.config.streams[name].budget):
                    raise UserError(
                        f"prompt {i + 1} has {n} tokens of {name}, and the model's rows at most {budget} "
                        f"(streams.{name}.budget); shorten it"
                    )


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


def _unit_length(medium: Medium, length: int, sizes: Mapping[str, tuple[int, ...]]) -> int:
    """Tokens of a unit, at most."""
    return medium.tokens or (math.prod(_unit_shape(medium, sizes)) if medium.shape else length)


def _unit_shape(medium: Medium, sizes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    return sizes.get(medium.stream, medium.shape) if medium.is_of_any_size else medium.shape


def _fits(size: Sequence[int], most: Sequence[int]) -> bool:
    return len(size) == len(most) and all(1 <= side <= m for side, m in zip(size, most, strict=True))


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


def _prompts(prompts: Sequence[Sequence[Stretch]], config: Config, format: Format, opens: str, room: int = 0) -> Batch:
    """The prompts as a batch of the streams that they have, each with `room` hidden tokens of text after it."""
    names = list(config.streams)
    is_block = config.data.blocks == "document" or (config.data.blocks == "prefix" and opens)
    documents = [document(prompt, config, format, opens) for prompt in prompts]
    documents = [_with_room(d, room, names.index(format.text), config.mask_id) if room else d for d in documents]
    documents = [d._replace(span=np.ones_like(d.span)) if is_block else d for d in documents]
    used = np.max([np.bincount(d.stream, minlength=len(names)) for d in documents], axis=0)
    budgets = [int(-(-n // PROMPT) * PROMPT) for n in used]
    features = [s.features for s in config.streams.values()]
    batch = pack([[d] for d in documents], names, budgets, features, positions.rule(config))
    return {name: tokens for name, tokens in batch.items() if tokens.token.shape[1]}


def _with_room(d: packing.Document, room: int, text: int, mask_id: int) -> packing.Document:
    """The document with so many hidden tokens of text after it."""
    token = np.append(d.token, np.full(room, mask_id))
    stream = np.append(d.stream, np.full(room, text))
    unit, place = np.append(d.unit, np.zeros(room, int)), np.append(d.place, np.zeros((room, 3), int), axis=0)
    return packing.document(0, 0, token, stream, d.values, unit=unit, place=place, weight=0 * token)


# --- what is compiled ----------------------------------------------------------------------------------------------


def _prefill(params: dict, batch: Batch, *, config: Config, slots: int) -> DecodingState:
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


def _step(params: dict, state: DecodingState, tokens: Tokens, stream: str, config: Config) -> transformer.Output:
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
    output = _step(params, state, _tokens(state, on_B, lies, token=jnp.asarray(id_B)[:, None]), stream, config)
    h_BD = jnp.where(on_B[:, None], output.hidden[0][0], state.h_BD)
    return DecodingState(caches.keep(output.cache), h_BD, state.place_B + on_B, state.rope_B)


def _marker(params: dict, state: DecodingState, id_B, on_B, lies: Lies, *, stream: str, config: Config):
    """The state with a marker in the rows that are `on`, after which text goes on."""
    state = _feed(params, state, id_B, on_B, lies, stream=stream, config=config)
    return state.replace(rope_B=state.rope_B + on_B * lies.ends[-1])


def _read(params: dict, state: DecodingState, data, on_B, lies: Lies, *, stream: str, config: Config) -> DecodingState:
    """A whole unit more, ids from 0 `[B, T]` or clean vectors `[B, T, P]`, in the rows that are `on`."""
    s = config.streams[stream]
    unit_BT = jnp.broadcast_to(state.place_B[:, None] + (1 << 20), data.shape[:2])  # a span like no other
    fields = (
        dict(value=data.astype(jnp.float32), span=unit_BT)
        if s.latent
        else dict(token=data.astype(jnp.int32) + s.first_id)
    )
    output = _step(params, state, _tokens(state, on_B, lies, unit=unit_BT, **fields), stream, config)
    return _after_unit(output, state, on_B, lies)


def _ids(
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
        logits_BV = jnp.matmul(state.h_BD, head_DV.astype(state.h_BD.dtype), preferred_element_type=jnp.float32)
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


def _unit_tokens(state: DecodingState, on_B, lies: Lies, **fields: Any) -> Tokens:
    """`_tokens` of a unit, which sees itself both ways."""
    shape = (len(on_B), len(lies.inside))
    unit_BT = jnp.broadcast_to(state.place_B[:, None] + (1 << 20), shape)  # a span like no other
    return _tokens(state, on_B, lies, unit=unit_BT, span=unit_BT, **fields)


def _guided(predict: Callable[[Tokens], jax.Array], seen: Tokens, settings: Settings) -> jax.Array:
    """What is predicted of a unit's tokens, moved away from what is predicted of them without their document."""
    conditional = predict(seen)
    if settings.guidance == 1:
        return conditional
    unconditional = predict(seen.replace(segment=jnp.where(seen.segment > 0, APART, 0)))
    return diffusion.guided(conditional, unconditional, settings.guidance)


def _vectors(
    params: dict, state: DecodingState, on_B, keys_B, lies: Lies, *, stream: str, settings: Settings, config: Config
) -> tuple[jax.Array, jax.Array, DecodingState]:
    """A unit of vectors `[B, tokens, P]` solved from noise; which rows are finite; the state with the clean unit."""
    tokens = len(lies.inside)
    shape = (tokens, config.streams[stream].latent)
    objective = config.streams[stream].objective
    keys = jax.vmap(jax.random.fold_in)(keys_B, state.place_B)

    def noise(n):
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, n), (shape[0] * shape[1],)))(keys)

    unit_tokens = partial(_unit_tokens, state, on_B, lies)

    def predict(value_BTP, t):
        noise_BT = jnp.full(value_BTP.shape[:2], t, jnp.float32)
        seen = unit_tokens(value=value_BTP, noise=noise_BT, private=noise_BT > 0)
        return _guided(lambda tokens: _step(params, state, tokens, stream, config).latents[stream], seen, settings)

    def solver_step(value_BTP, n):
        e_BTP = noise(n + 1).reshape(value_BTP.shape) if settings.solver == "ddpm" else 0.0
        return diffusion.step(predict, value_BTP, grid[n], grid[n + 1], objective, settings.solver, e_BTP), None

    grid = jnp.asarray(diffusion.grid(settings.steps, settings.shift))
    value_BTP, _ = jax.lax.scan(solver_step, noise(0).reshape(-1, *shape), jnp.arange(settings.steps))
    output = _step(params, state, unit_tokens(value=value_BTP), stream, config)
    finite_B = jnp.isfinite(value_BTP).all((1, 2))
    return value_BTP, finite_B, _after_unit(output, state, on_B, lies)


def _after_unit(output: transformer.Output, state: DecodingState, on_B, lies: Lies) -> DecodingState:
    """The state with a whole unit in the rows that are `on`."""
    place_B, rope_B = state.place_B + on_B * len(lies.inside), state.rope_B + on_B * lies.ends[-1]
    return DecodingState(caches.keep(output.cache), state.h_BD, place_B, rope_B)


def _unmasked_unit(
    params: dict, state: DecodingState, on_B, keys_B, lies: Lies, *, stream: str, settings: Settings, config: Config
) -> tuple[jax.Array, jax.Array, DecodingState]:
    """A unit of ids `[B, tokens]`, all hidden at first; which rows are finite; the state with the unit."""
    s = config.streams[stream]
    head_DV = transformer.head(params, config)
    unit_tokens = partial(_unit_tokens, state, on_B, lies)

    def logits(seen: Tokens) -> jax.Array:
        return _logits(_step(params, state, seen, stream, config).hidden[0][0].reshape(*seen.token.shape, -1), head_DV)

    def predict(ids_BT):
        return _guided(logits, unit_tokens(token=ids_BT, private=ids_BT >= 0), settings)

    hidden_BT = jnp.full((len(on_B), len(lies.inside)), config.mask_id, jnp.int32)
    ids = jnp.arange(config.vocab)
    choose = Unmasking((ids >= s.first_id) & (ids < s.first_id + s.ids), jnp.zeros_like(hidden_BT), 1)
    keys = jax.vmap(jax.random.fold_in)(keys_B, state.place_B)
    ids_BT, finite_B = _unmasked(predict, hidden_BT, choose, keys, settings, s.masking.distribution, config.mask_id)
    output = _step(params, state, unit_tokens(token=ids_BT), stream, config)
    return ids_BT, finite_B, _after_unit(output, state, on_B, lies)


def _unmasked_text(
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
        return _logits(jnp.roll(h_BCD, 1, axis=1) if masking.shift else h_BCD, head_DV)

    is_hidden_BC = tokens.token == config.mask_id
    block = min(settings.block or room, room)
    block_BC = jnp.where(is_hidden_BC, (jnp.cumsum(is_hidden_BC, axis=1) - 1) // block, -1)
    choose = Unmasking(allowed_V, block_BC, -(-room // block))
    return _unmasked(predict, tokens.token, choose, keys_B, settings, masking.distribution, config.mask_id)


def _logits(h_BTD, head_DV) -> jax.Array:
    return jnp.matmul(h_BTD, head_DV.astype(h_BTD.dtype), preferred_element_type=jnp.float32)


class Unmasking(NamedTuple):
    """What is unmasked."""

    allowed_V: jax.Array | np.ndarray  # bool: which ids
    block_BT: jax.Array  # int32, in which block a token lies, from 0; -1 = in none
    blocks: int  # one is unmasked after the other


def _unmasked(
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
        chosen_BT = choose_ids(logits_BTV.reshape(B * T, -1), keys.reshape(-1), settings).reshape(B, T)
        sure_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), chosen_BT[..., None], axis=-1)[..., 0]
        done = (n % steps + 1) / steps
        left_B = jnp.floor(inside_BT.sum(1) * masked.left(done, distribution) + 1e-4)  # 6 cos(pi / 3) is 3, not 2
        order_BT = jnp.argsort(jnp.where(hidden_BT, -sure_BT, jnp.inf), axis=1)
        rank_BT = batches.inverse(order_BT)
        stays_BT = hidden_BT & (rank_BT < (hidden_BT.sum(1) - left_B)[:, None])
        return (jnp.where(stays_BT, chosen_BT, ids_BT), finite_B), None

    start = (jnp.asarray(ids_BT), jnp.ones(B, bool))
    return jax.lax.scan(one_step, start, jnp.arange(steps * what.blocks))[0]
