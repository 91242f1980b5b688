"""Random inputs of attention, and what tests make of a model's states."""

import jax
import jax.numpy as jnp
import numpy as np

from mot.batches import Info
from mot.model import params, transformer
from mot.objectives import losses, next_token


def qkv(T, S, N=4, K=2, H=8, B=2, seed=0):
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H))
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def random_info(seed, T, B=2, scrambled=True):
    """Segments of spans and private tokens in a random token order, some padding."""
    rng = np.random.default_rng(seed)
    infos = []
    for _ in range(B):
        segment = np.sort(rng.integers(1, 4, T))
        segment[-T // 8 :] = 0
        span = np.repeat(rng.integers(0, 9, T // 4 + 1), 4)[:T] * (rng.random(T // 4 + 1) < 0.5).repeat(4)[:T]
        private = (span > 0) & (rng.random(T // 4 + 1) < 0.5).repeat(4)[:T]
        order = rng.permutation(T) if scrambled else np.arange(T)
        infos.append(Info(np.arange(T)[order], segment[order], span[order], private[order]))
    return Info(*(jnp.asarray(np.stack(x)) for x in zip(*infos, strict=True)))


def row(T, seed):
    """Documents with spans, padding last, nothing private, no unit alone."""
    rng = np.random.default_rng(seed)
    segment = np.sort(rng.integers(1, 5, T))
    segment[T - rng.integers(1, T // 4) :] = 0
    runs = T // 8 + 1
    span = (np.arange(1, runs + 1) * (rng.random(runs) < 0.5)).repeat(8)[:T]
    return Info(jnp.arange(T), jnp.asarray(segment), jnp.asarray(span * (segment != 0)), jnp.zeros(T, bool))


def row_of_units(T, seed, private=False, alone=False, hidden=False):
    """Documents of text and units as they are packed: padding last.

    Units have a `private` copy before the clean one, some of them are a segment of their own (`alone`), and padding
    stands where parts of them are `hidden`.
    """
    rng = np.random.default_rng(seed)
    runs = []  # (tokens, document, unit, private, alone)
    document, unit, left = 1, 0, T - rng.integers(1, T // 8)
    while left > 0:
        n = int(rng.integers(1, 24))
        runs.append((n, document, 0, False, False))
        if rng.random() < 0.8:
            unit += 1
            n = int(rng.integers(1, 40))
            apart = alone and rng.random() < 0.4
            runs += [(n, document, unit, True, apart)] * private + [(n, document, unit, False, apart and not private)]
        document += rng.random() < 0.5
        left = T - sum(run[0] for run in runs)
    documents = document
    fields = np.zeros((4, T), int)
    x = np.repeat(np.array(runs), [run[0] for run in runs], axis=0)[: T - T // 16]
    _, document, unit, is_private, apart = x.T
    segment = np.where(apart, documents + unit, document)
    segment[(unit > 0) & (rng.random(len(x)) < 0.3 * hidden)] = 0
    fields[:, : len(x)] = np.arange(len(x)), segment, np.where(is_private, 10**4 + unit, unit), is_private
    _, segment, span, is_private = map(jnp.asarray, fields)
    return Info(jnp.arange(T), segment, span, is_private.astype(bool))


def in_document_order(hidden):
    """All groups' states `[B, T, D]` by position."""
    B = hidden[0][1].token.shape[0]
    h = jnp.concatenate([x.reshape(B, -1, x.shape[-1]) for x, _ in hidden], axis=1)
    position = jnp.concatenate([tokens.position for _, tokens in hidden], axis=1)
    return jnp.take_along_axis(h, jnp.argsort(position, axis=1)[..., None], axis=1)


def loss_of(c, batch):
    def loss(weights):
        hidden = transformer.forward(weights, batch, c).hidden
        return next_token.loss(hidden, transformer.head(weights, c), losses.totals(batch, c), c, 2)[0]

    return loss


def copies(dense, table):
    """A dense model's weights under another table's paths: every tower is a copy."""
    source = params.paths(dense)

    def rename(path):
        return path.replace("/image/", "/text/")

    return params.nest({path: source[rename(path)] for path in table})
