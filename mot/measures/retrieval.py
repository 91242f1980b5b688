"""Which of a pool's captions belongs to an image, and which image to a caption.

By conditional log-likelihood; by embeddings where the model was trained to contrast them (`objectives/contrastive.py`),
and of text alone, where the halves of a passage belong together.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from mot.batches import Batch
from mot.config import Config
from mot.data import layout, packing, roles
from mot.data.layout import Format, Stretch
from mot.data.mixture import Source
from mot.data.packing import Document
from mot.errors import UserError
from mot.measures import representation
from mot.measures.figures import Figure, resampled, share
from mot.measures.likelihood import Score, batched, too_long, why_none
from mot.measures.ranking import NEAR
from mot.model import transformer
from mot.objectives import contrastive

WITHIN = (1, 5, 10)  # recall is told at these ranks, below the pool's size
READ = 100  # times as many documents as pools need are looked through at most
LEAST = 16  # tokens of half a passage


class Part(NamedTuple):
    """A part of a document that is embedded."""

    stream: str
    data: np.ndarray  # what it holds: two parts of the same are one
    document: Document  # in which it lies, with its roles


class Pool(NamedTuple):
    """K documents of two sides, stretches or parts; no two have the same of either."""

    streams: tuple[str, str]  # of the sides; of text alone FIRST and SECOND
    sides: tuple[list, list]  # [K] each; those of one number belong together


FIRST, SECOND = "first", "second"  # half of a passage


def pairs(source: Source, config: Config, format: Format, seed: int = 0) -> Iterator[dict[str, Stretch]]:
    """The documents of a source, in a drawn order, that have one stretch of each of two modalities and fit a row.

    Of a unit that lies in several streams (`data.roles`) it is the one that is read, and not learnt.
    """
    for found in _of_two_modalities(source, config, format, seed):
        if len(found) == 2 and found[0].stream != found[1].stream:
            by_stream = {stretch.stream: stretch for stretch in found}
            yield {stream: by_stream[stream] for stream in config.streams if stream in by_stream}


def singles(source: Source, config: Config, format: Format, seed: int = 0) -> Iterator[Stretch]:
    """The units of a source, in a drawn order, that are all of their document but text's markers, and fit a row."""
    for found in _of_two_modalities(source, config, format, seed):
        if len(found) == 1:
            yield found[0]


def _of_two_modalities(source: Source, config: Config, format: Format, seed: int) -> Iterator[list[Stretch]]:
    """The stretches of each document that has tokens of two modalities, in a drawn order; of each unit one."""
    streams = config.streams.values()
    for i in np.random.default_rng(seed).permutation(source.count):
        lengths = source.lengths(i)
        if len({s.modality for s, n in zip(streams, lengths, strict=True) if n}) != 2 or too_long(lengths, config):
            continue
        with contextlib.suppress(ValueError):  # it is damaged
            yield _read(layout.stretches(source.read(i), config, format), config)


def _read(stretches: Sequence[Stretch], config: Config) -> list[Stretch]:
    """Of each unit one representation: that of a stream that is an input alone, else the last, which text follows."""
    found: list[Stretch] = []
    for stretch in stretches:
        if not stretch.is_same:
            found.append(stretch)
        elif config.streams[found[-1].stream].objective != "none":
            found[-1] = stretch._replace(is_same=False)
    return found


def parts(source: Source, config: Config, format: Format, seed: int = 0) -> Iterator[dict[str, Part]]:
    """The documents of a source, in a drawn order, that have a part in both streams that are contrasted, and fit a row.

    They are laid out as in training, but that vectors are clean. A part lacks nothing that stands for it.
    """
    names = list(config.streams)
    pools = config.objective.contrastive.pools
    paired = [names.index(name) for name in pools]
    ids = {int(pool) for pool in pools.values() if pool.isdecimal()}
    for d in _documents(source, config, seed):
        if set(paired) <= set(d.stream.tolist()) and ids <= set(d.token.tolist()):
            held = roles.apart(_as_input(d, config), paired)
            yield {names[s]: Part(names[s], _content(d, s, format), held) for s in sorted(paired)}


def halves(source: Source, config: Config, format: Format, seed: int = 0) -> Iterator[dict[str, Part]]:
    """The documents of ids of one stream, in a drawn order, in two halves, each a document of its own."""
    names = list(config.streams)
    for d in _documents(source, config, seed):
        middle = len(d.token) // 2
        if middle < LEAST or len(set(d.stream.tolist())) > 1:
            continue
        ends = {FIRST: packing.cut(d, 0, middle), SECOND: packing.cut(d, middle, len(d.token))}
        stream = int(d.stream[0])
        yield {
            end: Part(names[stream], _content(half, stream, format), _as_input(half, config))
            for end, half in ends.items()
        }


def _documents(source: Source, config: Config, seed: int) -> Iterator[Document]:
    for i in np.random.default_rng(seed).permutation(source.count):
        if too_long(source.lengths(i), config):
            continue
        try:
            yield source.read(i)
        except ValueError:  # it is damaged
            continue


def _as_input(d: Document, config: Config) -> Document:
    """The document with its roles; no vector is noised. It is known by its number alone (`contrastive.by_number`)."""
    streams = [dataclasses.replace(s, objective="none") for s in config.streams.values()]
    return roles.assign(d, streams, config.data.blocks, 0)._replace(source=0)


def _content(d: Document, stream: int, format: Format) -> np.ndarray:
    """What a document holds in a stream, without <bos>, <eos> and markers."""
    if stream in d.values:
        return d.values[stream]
    ids = d.token[d.stream == stream]
    return ids[~np.isin(ids, format.special)]


def pools(
    source: Source,
    size: int,
    most: int,
    config: Config,
    format: Format,
    seed: int = 0,
    of: Callable[..., Iterator[dict]] = pairs,
) -> list[Pool]:
    """At most `most` pools of `size` documents each, `of` which gives the sides. A document goes to the first pool that
    lacks both of them.

    `UserError` where there is no pool of this size, but documents of two modalities.
    """
    filling: list[tuple[Pool, set]] = []
    full: list[Pool] = []
    for number, pair in enumerate(of(source, config, format, seed)):
        if len(full) == most or number == READ * size * most:
            break
        streams = tuple(pair)
        keys = {(s, pair[s].data.tobytes()) for s in streams}
        place = next((p for p in filling if p[0].streams == streams and not p[1] & keys), None)
        if place is None:
            place = (Pool(streams, ([], [])), set())
            filling.append(place)
        place[1].update(keys)
        for side, s in zip(place[0].sides, streams, strict=True):
            side.append(pair[s])
        if len(place[0].sides[0]) == size:
            full.append(place[0])
            filling.remove(place)
    if filling and not full:
        largest = max(len(pool.sides[0]) for pool, _ in filling)
        raise UserError(
            f"--pool={size}: the held-out documents of {source.name} make no pool of {size} pairs that all differ; the "
            f"largest has {largest}; " + (f"write --pool={largest}" if largest > 1 else "prepare with more held out")
        )
    return full


def ways(streams: tuple[str, str], config: Config) -> dict[tuple[int, int], str]:
    """The two ways from one side of a pool to the other, each with why it has no likelihood, "" where it has one."""
    return {(a, b): why_none(streams[b], config) for a, b in ((0, 1), (1, 0))}


def recalls(pools: Sequence[Pool], way: tuple[int, int], score: Score, config: Config, format: Format) -> dict:
    """How well pools, all of one size and the same streams, are retrieved one way, from side `way[0]` to `way[1]`.

    Every side of a pool is a query; it ranks the pool's other sides by log p(other | query), and `pmi` by
    log p(other | query) - log p(other), which common sides do not win. `recall_K`: the share of queries whose own other
    side is among the first K; `median_rank`: of it. Ties count as their mean over all orders.
    """
    a, b = way
    K = len(pools[0].sides[a])
    given = [
        layout.document([query, other], config, format, scored=1, ends=True)
        for pool in pools
        for query in pool.sides[a]
        for other in pool.sides[b]
    ]
    alone = [layout.document([other], config, format, scored=0, ends=True) for pool in pools for other in pool.sides[b]]
    nats, nats_alone = np.split(score([*given, *alone]), [len(given)])
    scores = nats.reshape(len(pools), K, K)
    found = _figures(scores, "")
    return found | _figures(scores - nats_alone.reshape(len(pools), 1, K), "pmi_")


Embed = Callable[[Sequence[Part]], np.ndarray]  # -> [n, Y], of length 1


def make_embed(params: dict, config: Config) -> Embed:
    """`parts -> [n, Y]` float32: the embeddings of parts of one stream. On one device.

    By the stream's own pool and projection; without such, the mean of its last states.
    """
    model = dataclasses.replace(config.model, remat="none")
    config = dataclasses.replace(config, model=model)
    embeddings = jax.jit(partial(_embeddings, config=config), static_argnames=("count", "stream"))

    def embed(parts: Sequence[Part]) -> np.ndarray:
        total = 0.0
        for batch in batched([part.document for part in parts], config):
            total += jax.device_get(embeddings(params, batch, count=len(parts), stream=parts[0].stream))
        if not np.isfinite(total).all():
            raise UserError(
                "embeddings are not finite (NaN or infinity); the checkpoint is of a run that has diverged; take an "
                "earlier --step"
            )
        return total

    return embed


def _embeddings(params: dict, batch: Batch, count: int, stream: str, config: Config) -> jax.Array:
    output = transformer.forward(params, batch, config)
    pool = config.objective.contrastive.pools.get(stream, "mean")
    if stream in output.states:
        h_BCD = output.states[stream]
    else:  # of a model of text alone
        h_RD, tokens = output.hidden[0]
        h_BCD = h_RD.reshape(*tokens.token.shape, -1)
    return contrastive.by_number(params, h_BCD, batch[stream], count, stream, pool, config)


def by_embeddings(pools: Sequence[Pool], embed: Embed, source: str) -> dict[str, Figure]:
    """How well pools, all of one size and the same streams, are retrieved both ways by the cosine of embeddings.

    `{given}/{other}/{source}/...` as in `recalls`. `gap/{source}`: the distance of both sides' centroids (2203.02053,
    section 3), a mean over pools. `shifted_...`: after a shift that closes the gap (section 4.1): each side is moved by
    half of it, towards the other, and brought to length 1 again.
    """
    K = len(pools[0].sides[0])
    sides = [embed([part for pool in pools for part in pool.sides[side]]) for side in (0, 1)]
    x, y = (side.astype(np.float64).reshape(len(pools), K, -1) for side in sides)
    gaps = [representation.gap(a.mean(0), b.mean(0))[0] for a, b in zip(x, y, strict=True)]
    half = (x.mean(1, keepdims=True) - y.mean(1, keepdims=True)) / 2
    shifted = [z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x - half, y + half)]
    found = {f"gap/{source}": Figure(float(np.mean(gaps)))}
    for prefix, (a, b) in (("", (x, y)), ("shifted_", shifted)):
        scores = a @ b.swapaxes(-1, -2)
        for streams, of_way in ((pools[0].streams, scores), (pools[0].streams[::-1], scores.swapaxes(-1, -2))):
            figures = _figures(of_way, prefix)
            found |= {f"{'/'.join(streams)}/{source}/{name}": figure for name, figure in figures.items()}
    return found


def places(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of queries with scores `[..., K, K]`, the right one on the diagonal: how many are better, how many others tie."""
    right = np.diagonal(scores, axis1=-2, axis2=-1)[..., None]
    equal = np.isclose(scores, right, rtol=NEAR, atol=0)
    return ((scores > right) & ~equal).sum(-1), equal.sum(-1) - 1


def _figures(scores: np.ndarray, prefix: str) -> dict[str, Figure]:
    better, ties = (x.ravel() for x in places(scores))
    K = scores.shape[-1]
    found = {f"{prefix}recall_{k}": share(np.clip((k - better) / (ties + 1), 0, 1), k / K) for k in WITHIN if k < K}
    return found | {f"{prefix}median_rank": resampled(1 + better + ties / 2, np.median, (K + 1) / 2)}
