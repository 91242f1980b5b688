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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mot import batches
from mot.batches import Batch
from mot.config import Config
from mot.config.options import Settings
from mot.data import folding, packing, positions, records, roles
from mot.data.layout import Format, Medium, Stretch, document, unit_places
from mot.data.packing import pack
from mot.errors import UserError
from mot.generate import decoding, unmasking
from mot.generate.decoding import Allowed, DecodingState, Lies, text_lies, unit_lies
from mot.objectives import diffusion

SLOTS = 64  # a cache's length is a multiple of this, and a prompt's of PROMPT: few shapes, few compilations
PROMPT = 8
NONE = -1  # no id
NO_SIZES: Mapping[str, tuple[int, ...]] = MappingProxyType({})


class Generated(NamedTuple):
    parts: list[Stretch]  # what follows the prompt, without <bos>, <eos> and the markers around units
    ended: bool  # by <eos>; else there was no more room


def _none(stream: str, data: np.ndarray) -> list[Stretch]:
    return []


class Sampler:
    """A model ready to generate; its programs are compiled once for each shape and setting."""

    def __init__(
        self, params: dict, config: Config, format: Format, further: Callable[[str, np.ndarray], list[Stretch]] = _none
    ):
        """`further` are the other representations that follow a unit drawn in a stream, which the model reads then."""
        self.writes_at_once = config.streams[format.text].masks == "document"
        config = _without_training(config)
        self.params, self.config, self.format, self.further = params, config, format, further
        self.rule = positions.rule(config)
        learned = [m for m in format.media if config.streams[m.stream].is_drawn]
        self.drawn = tuple({m.opens: m for m in reversed(learned)}.values())[::-1]  # the first that a marker opens
        if self.writes_at_once:
            self.drawn = ()  # a row's text alone

        def compiled(f, *static, **more):
            return jax.jit(partial(f, config=config), static_argnames=static, **more)

        self._prefill = compiled(decoding.prefill, "slots")
        # A donated state's cache is written in place.
        self._feed = compiled(decoding.marker, "stream", donate_argnames="state")
        self._read = compiled(decoding.read, "stream", donate_argnames="state")
        self._ids = compiled(decoding.ids, "stream", "settings", "limit", donate_argnames="state")
        self._vectors = compiled(decoding.vectors, "stream", "settings", donate_argnames="state")
        self._unmasked_unit = compiled(unmasking.unit, "stream", "settings", donate_argnames="state")
        self._unmasked_text = compiled(unmasking.text, "stream", "settings", "room")

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
        allowed_V = batches.ids_of(self.format.text, self.config)
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

    def _lies(self, stream: str, place: np.ndarray) -> Lies:
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

    def _unit_of_vectors(self, state, on_B, keys_B, settings, medium: Medium, lies: Lies):
        """`[B, tokens, P]`, and the state."""
        name = medium.stream
        vectors_BTP, finite_B, state = self._vectors(
            self.params, state, on_B, keys_B, lies, stream=name, settings=settings
        )
        _refuse_not_finite(on_B & ~np.asarray(finite_B), f"vectors of {name}")
        return vectors_BTP, state

    def _unit_of_masked(self, state, on_B, keys_B, settings, medium: Medium, lies: Lies):
        """Each row's ids `[tokens]`, of the stream's own tokenizer, and the state."""
        name = medium.stream
        ids_BT, finite_B, state = self._unmasked_unit(
            self.params, state, on_B, keys_B, lies, stream=name, settings=settings
        )
        _refuse_not_finite(on_B & ~np.asarray(finite_B), f"logits of {name}")
        return np.asarray(ids_BT) - self.config.streams[name].first_id, state

    def _unit_of_ids(self, state, on_B, keys_B, settings, medium: Medium, lies: Lies):
        """Each row's ids, of the stream's own tokenizer, and the state."""
        tokens = len(lies.inside)
        stream = self.config.streams[medium.stream]
        allowed_V, stops_V = batches.ids_of(medium.stream, self.config), np.zeros(self.config.vocab, bool)
        if not medium.tokens and not medium.shape:
            allowed_V[medium.closes] = stops_V[medium.closes] = True
        rows = len(on_B)
        allowed = Allowed(on_B, np.full(rows, tokens), np.tile(allowed_V, (rows, 1)), stops_V)
        chosen, state = self._choose(state, allowed, keys_B, medium.stream, settings, tokens, lies)
        return [np.array([i - stream.first_id for i in ids if i != medium.closes], int) for ids in chosen], state

    def _choose(self, state, allowed: Allowed, keys_B, stream: str, settings: Settings, limit: int, lies: Lies):
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
        if self.config.data.blocks == "document" and not self.writes_at_once:
            raise UserError(
                "data.blocks: 'document'; this model's tokens all see later ones, so it continues no document; train "
                "with 'units' or 'prefix', or text with objective='masked'"
            )
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
    documents = [_as_block(d, config) if is_block else d for d in documents]
    used = np.max([np.bincount(d.stream, minlength=len(names)) for d in documents], axis=0)
    budgets = [int(-(-n // PROMPT) * PROMPT) for n in used]
    features = [s.features for s in config.streams.values()]
    batch = pack([[d] for d in documents], names, budgets, features, positions.rule(config))
    return {name: tokens for name, tokens in batch.items() if tokens.token.shape[1]}


def _as_block(d: packing.Document, config: Config) -> packing.Document:
    """The document as one block, or its prefix as one."""
    n = len(d.token)
    end = roles.prefix_of(d, list(config.streams.values()), n) if config.data.blocks == "prefix" else n
    return d._replace(span=np.where(np.arange(n) < end, 1 + d.span.max(), d.span))


def _with_room(d: packing.Document, room: int, text: int, mask_id: int) -> packing.Document:
    """The document with so many hidden tokens of text after it."""
    token = np.append(d.token, np.full(room, mask_id))
    stream = np.append(d.stream, np.full(room, text))
    unit, place = np.append(d.unit, np.zeros(room, int)), np.append(d.place, np.zeros((room, 3), int), axis=0)
    return packing.document(0, 0, token, stream, d.values, unit=unit, place=place, weight=0 * token)
