"""The batch: one for every architecture. A stream is a fixed number of tokens of one kind, each token a few integers.

The host decides all routing by modality when it packs (`data/packing.py`): no shape on the device depends on the data.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mot.config import Config


class Info(NamedTuple):
    """What visibility is decided from; each `[B, T]`."""

    position: jax.Array  # place in the row's document order
    segment: jax.Array  # document in the row; 0 = padding
    span: jax.Array  # a group that sees itself both ways; 0 = none
    private: jax.Array  # bool: seen inside its own span alone


def visible(q: Info, k: Info) -> jax.Array:
    """`[..., T, S]` bool: does query t see key s?  The whole rule: docs/concepts/streams-and-units.md."""
    q = Info(*(field[..., :, None] for field in q))
    k = Info(*(field[..., None, :] for field in k))
    same_document = (q.segment == k.segment) & (q.segment != 0)
    causal = (k.position <= q.position) & ~k.private
    same_span = (q.span == k.span) & (q.span != 0)
    return same_document & (causal | same_span)


@struct.dataclass
class Tokens:
    """Tokens of one stream, or of several merged; every field `[B, C]` but three."""

    token: jax.Array  # id in the unified vocabulary
    position: jax.Array  # place in the row's document order; unique in the row, padding last
    rope_position: jax.Array  # [B, C, n], for RoPE alone: one place, or time, row and column (`Model.rope_axes`)
    segment: jax.Array  # document of the row, from 1; 0 = padding
    source: jax.Array  # where the document came from, for losses by source
    doc_id: jax.Array  # which document of that source
    unit: jax.Array  # image or clip within the row, from 1; 0 = none
    unit_seed: jax.Array  # uint32, the same wherever the unit is packed
    span: jax.Array  # group that sees itself both ways; 0 = none
    private: jax.Array  # bool: seen inside its own span alone
    # float32, a vector's noise level; in the host's batch the most that its unit gets. 0 = it is clean. Of an id that
    # learns of a hidden one: with which probability that was hidden; in the host's batch a factor on it
    noise: jax.Array
    target: jax.Array  # id at position + 1 of the same segment, in whatever stream it lies; one that is masked: its own
    weight: jax.Array  # float32, of that target's loss, or of a vector's own; 0 = none
    value: jax.Array  # [B, C, P] float32, of a stream of vectors; P is 0 where tokens have ids
    place: jax.Array  # [B, C, 2] row and column in the unit; [B, C, 0] where no stream has tables of them

    @property
    def info(self) -> Info:
        return Info(self.position, self.segment, self.span, self.private)


Batch = dict[str, Tokens]  # by stream


def abstract(config: Config) -> Batch:
    """The shapes of a global batch; nothing is allocated."""
    B = config.data.batch
    i = jnp.int32
    f = jnp.float32
    b = jnp.bool_
    kinds = dict(
        token=i, position=i, rope_position=i, segment=i, source=i, doc_id=i, unit=i, unit_seed=jnp.uint32, span=i
    )
    kinds |= dict(private=b, noise=f, target=i, weight=f, value=f, place=i)

    def one(stream):
        ends = {"rope_position": (config.model.rope_axes,), "value": (stream.features,)}
        ends |= {"place": (2 * config.has_places,)}

        def shape(field):
            return (B, stream.budget, *ends.get(field, ()))

        return Tokens(**{field: jax.ShapeDtypeStruct(shape(field), kind) for field, kind in kinds.items()})

    return {name: one(stream) for name, stream in config.streams.items()}


def not_finite(batch: Batch) -> dict[str, jax.Array]:
    """How many numbers of each float field are NaN or infinite, int32 by `stream.field`.

    Padding's vectors do not count: they enter the model as 0.
    """
    counts = {}
    for name, tokens in batch.items():
        value_BCP = jnp.where((tokens.segment != 0)[..., None], tokens.value, 0)
        for field, x in vars(tokens.replace(value=value_BCP)).items():
            if jnp.issubdtype(x.dtype, jnp.floating):
                counts[f"{name}.{field}"] = (~jnp.isfinite(x)).sum(dtype=jnp.int32)
    return counts


def documents(batch: Batch) -> dict[tuple[int, int], int]:
    """The documents of a host batch, `(source, doc_id)`: how many tokens of each hold numbers that are not finite."""
    found: dict[tuple[int, int], int] = {}
    for tokens in batch.values():
        broken_BC = ~(np.isfinite(tokens.weight) & np.isfinite(tokens.noise) & np.isfinite(tokens.value).all(-1))
        real_BC = np.asarray(tokens.segment) != 0
        for source, doc_id, broken in zip(
            tokens.source[real_BC].tolist(), tokens.doc_id[real_BC].tolist(), broken_BC[real_BC].tolist(), strict=True
        ):
            found[source, doc_id] = found.get((source, doc_id), 0) + broken
    return dict(sorted(found.items()))


def modality_of_ids(ids, config: Config) -> jax.Array:
    """The index, in `config.modalities`, of the modality whose id range holds each id."""
    result = jnp.zeros_like(ids)
    for stream in config.streams.values():
        inside = (ids >= stream.first_id) & (ids < stream.first_id + stream.ids)
        result = jnp.where(inside, config.modalities.index(stream.modality), result)
    return result


def ids_of(stream: str, config: Config) -> np.ndarray:
    """`[V]` bool: the ids of a stream, without those of another one's range that lies inside its own."""
    mine_V = np.zeros(config.vocab, bool)
    for name, s in config.streams.items():  # a range inside another comes after it
        mine_V[s.first_id : s.first_id + s.ids] = name == stream
    return mine_V


def modality_of_tokens(tokens: Tokens, stream: str, config: Config) -> jax.Array:
    """`[B, C]`: the index, in `config.modalities`, of the modality of each token of a stream."""
    s = config.streams[stream]
    if not (s.latent or s.masks):  # a hidden id is of no stream's range
        return modality_of_ids(tokens.token, config)
    return jnp.full_like(tokens.token, config.modalities.index(config.streams[stream].modality))


class Merged(NamedTuple):
    """The tokens of some streams as one, in document order."""

    tokens: Tokens
    modality: jax.Array  # [B, C]
    order: jax.Array | None  # [B, C], from the streams end to end to document order; None: one stream, which is in it
    back: jax.Array | None  # the inverse of `order`


def merge(batch: Batch, streams: Sequence[str], config: Config, T: int | None) -> Merged:
    """Some streams of a batch as one; T as in `document_order`."""
    tokens = concatenate([batch[s] for s in streams])
    modality_BC = jnp.concatenate([modality_of_tokens(batch[s], s, config) for s in streams], axis=1)
    if len(streams) == 1:
        return Merged(tokens, modality_BC, None, None)
    order_BC = document_order(tokens.position, T)
    return Merged(in_order(tokens, order_BC), in_order(modality_BC, order_BC), order_BC, inverse(order_BC))


def length(batch: Batch) -> int:
    """T, the tokens of a row, whose positions are 0 .. T - 1."""
    return sum(tokens.position.shape[1] for tokens in batch.values())


def document_order(position_BC, T: int | None) -> jax.Array:
    """`[B, C]`: the order that sorts tokens by position. Positions are below T; None: nothing is known of them.

    It is counted (`inverse`), and sorted only where T is None. For all T tokens of a row `position` is its inverse.
    """
    B, C = position_BC.shape
    if T is None:
        return jnp.argsort(position_BC, axis=1)  # positions are unique: any sort is stable
    if C < T:  # how many of these tokens position lower
        there_BT = jnp.zeros((B, T), jnp.int32).at[jnp.arange(B)[:, None], position_BC].set(1, unique_indices=True)
        position_BC = jnp.take_along_axis(jnp.cumsum(there_BT, axis=1) - 1, position_BC, axis=1)
    return inverse(position_BC)


def inverse(order_BT) -> jax.Array:
    """The inverse of each row's permutation: of [2, 0, 1] it is [1, 2, 0].

    A scatter, no sort: TPU's compiler takes seconds for a sort, and tenths of one for this.
    """
    B, T = order_BT.shape
    row_B1 = jnp.arange(B)[:, None]
    return jnp.zeros_like(order_BT).at[row_B1, order_BT].set(jnp.arange(T, dtype=order_BT.dtype), unique_indices=True)


def in_order(tree, order_BC: jax.Array):
    """Every `[B, C, ...]` array of the tree with its tokens in this order."""

    def take(x):
        return jnp.take_along_axis(x, order_BC.reshape(order_BC.shape + (1,) * (x.ndim - 2)), axis=1)

    return jax.tree.map(take, tree)


def concatenate(tokens: Sequence[Tokens]) -> Tokens:
    """Streams end to end along the token axis; two or more lose their vectors."""
    if len(tokens) == 1:
        return tokens[0]
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *(t.replace(value=t.value[..., :0]) for t in tokens))


def place_in_unit(tokens: Tokens) -> jax.Array:
    """`[B, C]`: how many tokens of the same copy of its unit come before it in the stream."""
    return jnp.arange(tokens.unit.shape[1])[None] - _first_of_unit(tokens)


def total_in_unit(x_BC, tokens: Tokens) -> jax.Array:
    """`[B, C]`: the sum of x over all tokens of the same copy of each token's unit."""
    B, C = tokens.unit.shape
    first_BC = _first_of_unit(tokens)
    total_BC = jnp.zeros((B, C), x_BC.dtype).at[jnp.arange(B)[:, None], first_BC].add(x_BC)
    return jnp.take_along_axis(total_BC, first_BC, axis=1)


def _first_of_unit(tokens: Tokens) -> jax.Array:
    """`[B, C]`: the number, in the stream, of the first token of the same copy of each token's unit."""
    B, C = tokens.unit.shape
    n_BC = jnp.broadcast_to(jnp.arange(C), (B, C))

    def differs(x_BC):
        return jnp.pad(x_BC[:, 1:] != x_BC[:, :-1], ((0, 0), (1, 0)), constant_values=True)

    begins_BC = differs(tokens.unit) | differs(tokens.private) | differs(tokens.segment)
    return jax.lax.cummax(jnp.where(begins_BC, n_BC, 0), axis=1)


def check(batch: Batch) -> None:
    """Raises `ValueError` if a host batch breaks an invariant; for tests and for new data sources."""
    latent = np.concatenate([np.full(t.position.shape, t.value.shape[-1] > 0) for t in batch.values()], axis=1)

    def join(*x):
        return np.concatenate(x, axis=1)

    tokens = jax.tree.map(join, *(t.replace(value=t.value[..., :0]) for t in batch.values()))
    T = tokens.position.shape[1]
    if not (np.sort(tokens.position, axis=1) == np.arange(T)).all():
        raise ValueError("positions of a row are not a permutation of 0..T-1")
    for name, stream in batch.items():
        if (np.diff(stream.position, axis=1) <= 0).any():
            raise ValueError(f"stream {name}: positions do not rise within the stream")
    order = np.argsort(tokens.position, axis=1)

    def take(x):
        return np.take_along_axis(x, order, axis=1)

    token, segment, target, weight = map(take, (tokens.token, tokens.segment, tokens.target, tokens.weight))
    real = segment != 0
    latent = take(latent)
    unit = take(tokens.unit)
    hides = (take(tokens.noise) > 0) & ~latent
    if (np.diff(real.astype(int), axis=1) > 0).any():
        raise ValueError("padding does not come last")
    for row, units in zip(segment, unit, strict=True):
        # Units that see nothing else of their document are a segment of their own, amid another.
        apart = [s for s in np.unique(row[units > 0]) if (units[row == s] > 0).all()]
        if (np.diff(row[(row != 0) & ~np.isin(row, apart)]) < 0).any():
            raise ValueError("segments do not lie one after another in document order")
    follows = np.zeros_like(real)
    follows[:, :-1] = (segment[:, :-1] == segment[:, 1:]) & real[:, :-1]
    if (weight[~follows & ~latent & ~hides] != 0).any():
        raise ValueError("a token without a successor in its segment has a weight")
    own = hides & (target == token)  # not where the token before a hidden one learns of it (`Masking.shift`)
    learns = (weight > 0)[:, :-1] & ~latent[:, :-1] & ~own[:, :-1]
    if (learns & latent[:, 1:]).any():
        raise ValueError("a vector is the target of a next-token loss")
    if (weight[latent & (take(tokens.noise) == 0)] != 0).any():
        raise ValueError("a clean vector has a weight")
    if (target[:, :-1] != token[:, 1:])[learns].any():
        raise ValueError("a target is not the id at position + 1")
    span = take(tokens.span)
    if ((span[:, :-1] == span[:, 1:]) & (span[:, :-1] != 0) & learns & ~hides[:, 1:]).any():
        raise ValueError("a next-token target lies inside a bidirectional span, which already sees it")
