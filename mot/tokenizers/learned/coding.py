"""A trained network at work: bytes to tokens and back, in batches of fixed sizes, so that few programs are compiled."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

PLACES = 4096  # of a batch, about


def coder(graph: nnx.GraphDef) -> tuple[Callable, Callable]:
    """Compiled `encode(states, bytes, mask)` and `decode(states, tokens, mask)` of an `Autoencoder`."""

    def encode(states, bytes_, mask):
        return nnx.merge(graph, *states).encode(bytes_, mask)

    def decode(states, tokens, mask):
        return nnx.merge(graph, *states).decode(tokens, mask)

    return jax.jit(encode), jax.jit(decode)


def in_batches(f: Callable, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`f(x, mask)` of all rows, a batch at a time; the last one is filled with rows of zeros."""
    size = batch_size(mask.shape[1:-1])
    made = []
    for i in range(0, len(x), size):
        parts = (x[i : i + size], mask[i : i + size])
        fill = size - len(parts[0])
        filled = (np.concatenate([part, np.zeros((fill, *part.shape[1:]), part.dtype)]) for part in parts)
        made.append(np.asarray(f(*filled))[: size - fill])
    return np.concatenate(made)


def batch_size(places: tuple[int, ...]) -> int:
    """Rows of a batch, each of so many places."""
    return max(PLACES // int(np.prod(places)), 1)
