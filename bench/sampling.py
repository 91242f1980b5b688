"""Generation's speed: cached decoding against the whole row again for every token, and eight rows against one."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from mot.data import positions
from mot.data.packing import document, pack
from mot.generate import decoding, sampling
from mot.model import caches, params, transformer

NEW = 512  # tokens


def cached(c, weights, rows: int):
    """A function that draws NEW ids in each of so many rows."""
    stream, ids = next(iter(c.streams.items()))
    allowed = np.zeros((rows, c.vocab), bool)
    allowed[:, : ids.ids] = True
    keys = jax.random.split(jax.random.key(0), rows)
    nothing = np.zeros(c.vocab, bool)
    settings = dict(stream=stream, settings=sampling.Settings(), limit=NEW)
    lies = decoding.text_lies(NEW, positions.rule(c))
    run = jax.jit(lambda *x: decoding.ids(*x, config=c, **settings), donate_argnums=1)
    D = ids.width
    slots = -(-(NEW + 1) // sampling.SLOTS) * sampling.SLOTS

    def once():
        h_BD = jax.random.normal(jax.random.key(1), (rows, D))
        state = decoding.DecodingState(caches.empty(c, rows, slots), h_BD, *jnp.zeros((2, rows), jnp.int32))
        choices = decoding.Allowed(np.ones(rows, bool), np.full(rows, NEW), allowed, nothing)
        ids, _, _ = run(weights, state, choices, keys, lies)
        return np.asarray(ids)

    return once


def whole(c, weights, length: int):
    """A function that runs the model on a row of that length and makes the last token's logits."""
    names = list(c.streams)
    row = [document(0, 0, np.arange(length) % 1000, np.zeros(length))]
    batch = pack([row], names, [length, *[0] * (len(names) - 1)])
    batch = {names[0]: batch[names[0]]}

    @jax.jit
    def run(weights, batch):
        h_RD = transformer.forward(weights, batch, c).hidden[0][0]
        return h_RD[-1:] @ transformer.head(weights, c)

    return lambda: np.asarray(run(weights, batch))


def seconds(*functions, rounds: int = 5):
    """The median of each, taken in turn."""
    for f in functions:
        f()
    rows = []
    for _ in range(rounds):
        rows.append([])
        for f in functions:
            start = time.perf_counter()
            f()
            rows[-1].append(time.perf_counter() - start)
    return [statistics.median(x) for x in zip(*rows, strict=True)]


def figures(c) -> dict[str, tuple[str, str]]:
    """By figure: what was measured, and the bar."""
    weights = jax.jit(lambda: params.init(params.table(c), 0))()
    growing = [whole(c, weights, n) for n in range(64, NEW + 1, 64)]
    drawn = [cached(c, weights, rows) for rows in (1, 8)]
    one, eight, padded, *prefixes = seconds(*drawn, whole(c, weights, NEW), *growing)
    return {
        f"a padded forward of {NEW} for each token / cached, batch 1": (f"{NEW * padded / one:.1f}", "at least 4"),
        "the growing prefix for each token / cached": (f"{NEW * statistics.mean(prefixes) / one:.1f}", ""),
        "tokens a second, batch 8 / batch 1": (f"{8 * one / eight:.1f}", "at least 6"),
        "  milliseconds a step, batch 1 and 8": (f"{1e3 * one / NEW:.1f}, {1e3 * eight / NEW:.1f}", ""),
    }
