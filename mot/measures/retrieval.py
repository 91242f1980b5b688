"""Which of a pool's captions belongs to an image, and which image to a caption, by conditional log-likelihood."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mot.config import Config
from mot.data import layout
from mot.data.layout import Format, Stretch
from mot.data.mixture import Source
from mot.errors import UserError
from mot.measures.figures import Figure, resampled, share
from mot.measures.likelihood import Score, too_long, why_none
from mot.measures.ranking import NEAR

WITHIN = (1, 5, 10)  # recall is told at these ranks, below the pool's size
READ = 100  # times as many documents as pools need are looked through at most


class Pool(NamedTuple):
    """K documents of two stretches of two streams; no two have the same stretch of either."""

    streams: tuple[str, str]
    sides: tuple[list[Stretch], list[Stretch]]  # [K] each; those of one number belong together


def pairs(source: Source, config: Config, format: Format, seed: int = 0) -> Iterator[dict[str, Stretch]]:
    """The documents of a source, in a drawn order, that have one stretch of each of two modalities and fit a row."""
    for i in np.random.default_rng(seed).permutation(source.count):
        if np.count_nonzero(source.lengths(i)) != 2 or too_long(source.lengths(i), config):
            continue
        try:
            found = layout.stretches(source.read(i), config, format)
        except ValueError:  # it is damaged
            continue
        if len(found) == 2 and found[0].stream != found[1].stream:
            by_stream = {stretch.stream: stretch for stretch in found}
            yield {stream: by_stream[stream] for stream in config.streams if stream in by_stream}


def pools(source: Source, size: int, most: int, config: Config, format: Format, seed: int = 0) -> list[Pool]:
    """At most `most` pools of `size` documents each. A document goes to the first pool that lacks both its sides.

    `UserError` where there is no pool of this size, but documents of two modalities.
    """
    filling: list[tuple[Pool, set]] = []
    full: list[Pool] = []
    for number, pair in enumerate(pairs(source, config, format, seed)):
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
