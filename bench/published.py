"""A block of Mixture-of-Transformers beside one that works as the published PyTorch code does (2411.04996).

`python -m bench.published`, in the environment of `make bench`. Published: boolean masks choose each modality's tokens,
which are projected and written back before one causal attention, and again after it. (The code as published needs an
attention of one's own: that of its README, on PyTorch's `scaled_dot_product_attention`.) Each row is one document.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bench import timing
from mot import sharding
from mot.batches import Batch
from mot.config import Config
from mot.model import layers, params, transformer
from mot.train.state import state_shardings

ROUNDS = 7
EPS = 1e-5


class Attention(torch.nn.Module):
    """Projections and norms by modality around one attention."""

    def __init__(self, modalities: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (
            _each(modalities, torch.nn.Linear, width, width, bias=False) for _ in range(4)
        )
        size = width // heads
        self.q_norm, self.k_norm = (_each(modalities, torch.nn.RMSNorm, size, eps=EPS) for _ in range(2))
        self.norm = _each(modalities, torch.nn.RMSNorm, width, eps=EPS)

    def forward(self, x, masks, rows, cos, sin):
        def heads(y):
            return y.unflatten(-1, (self.heads, -1))

        def turned(y):
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat([-b, a], -1) * sin

        own = [x[mask] for mask in masks]
        q = [norm(heads(w(y))) for w, norm, y in zip(self.q, self.q_norm, own, strict=True)]
        k = [norm(heads(w(y))) for w, norm, y in zip(self.k, self.k_norm, own, strict=True)]
        v = [heads(w(y)) for w, y in zip(self.v, own, strict=True)]
        q, k, v = (_merged(y, masks).unflatten(0, (rows, -1)).transpose(1, 2) for y in (q, k, v))
        o = torch.nn.functional.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        o = o.transpose(1, 2).flatten(2).flatten(0, 1)
        return _merged([norm(w(o[mask])) for w, norm, mask in zip(self.o, self.norm, masks, strict=True)], masks)


class FeedForward(torch.nn.Module):
    """An FFN and a norm by modality."""

    def __init__(self, modalities: int, width: int, hidden: int):
        super().__init__()
        self.w1, self.w3 = (_each(modalities, torch.nn.Linear, width, hidden, bias=False) for _ in range(2))
        self.w2 = _each(modalities, torch.nn.Linear, hidden, width, bias=False)
        self.norm = _each(modalities, torch.nn.RMSNorm, width, eps=EPS)

    def forward(self, x, masks):
        parts = zip(self.w1, self.w2, self.w3, self.norm, masks, strict=True)
        return _merged([norm(w2(_gated(x[mask], w1, w3))) for w1, w2, w3, norm, mask in parts], masks)


def _each(modalities: int, module, *args, **how) -> torch.nn.ModuleList:
    return torch.nn.ModuleList(module(*args, **how) for _ in range(modalities))


def _gated(y, w1, w3):
    return torch.nn.functional.silu(w1(y)) * w3(y)


def _merged(parts: list, masks: list):
    """Every modality's rows in their places."""
    whole = torch.empty((len(masks[0]), *parts[0].shape[1:]))
    for part, mask in zip(parts, masks, strict=True):
        whole[mask] = part
    return whole


def theirs(config: Config, host: Batch):
    """A function that takes the published block forward and back on the rows of a batch."""
    tokens = list(host.values())
    rows, T = tokens[0].position.shape[0], sum(x.position.shape[1] for x in tokens)
    stream = np.zeros((rows, T), int)
    for i, x in enumerate(tokens):
        np.put_along_axis(stream, np.asarray(x.position), i, axis=1)
    masks = [torch.from_numpy(stream.reshape(-1) == i) for i in range(len(tokens))]
    m, first = config.model, next(iter(config.streams.values()))
    attention = Attention(len(masks), first.width, m.heads)
    ffn = FeedForward(len(masks), first.width, first.ffn)
    half = m.head_size // 2
    angle = (torch.arange(T)[:, None] * m.rope_theta ** (-torch.arange(half) / half)[None]).repeat(1, 2)
    cos, sin = angle.cos(), angle.sin()
    x = torch.randn(rows * T, first.width, requires_grad=True)
    g = torch.randn(rows * T, first.width)

    def once():
        h = x + attention(x, masks, rows, cos, sin)
        (h + ffn(h, masks)).backward(g)
        for y in (x, *attention.parameters(), *ffn.parameters()):
            y.grad = None

    return once


def ours(config: Config, host: Batch, mesh: jax.sharding.Mesh):
    """A function that takes a block of this project, of a configuration with one layer, forward and back."""

    def entered(weights, batch):
        return transformer.enter(weights, batch, config, None, False, None)

    def loss(blocks, xs, batch, g):
        context = entered(weights, batch)[1]
        ys, _, _ = transformer.stack(partial(layers.block, context=context), blocks, xs, config, False)
        return sum((y_RD * g_RD).sum() for y_RD, g_RD in zip(ys, g, strict=True))

    with jax.set_mesh(mesh):
        place = state_shardings(config, mesh).params
        weights = jax.jit(lambda: params.init(params.table(config), 0), out_shardings=place)()
        batch = sharding.to_global(host, config, mesh)
        xs = jax.jit(lambda weights, batch: entered(weights, batch)[0])(weights, batch)
        g = jax.tree.map(jnp.ones_like, xs)
        both = jax.jit(jax.grad(loss, (0, 1))).lower(weights["blocks"], xs, batch, g).compile()
    return lambda: jax.block_until_ready(both(weights["blocks"], xs, batch, g))


def times(config: Config, host: Batch, mesh: jax.sharding.Mesh) -> tuple[float, float]:
    """How often as fast ours is, forward and back: by CPU-seconds, and by wall time; medians of rounds in turn."""
    seconds = timing.in_turn(theirs(config, host), ours(config, host, mesh), clock=_clocks, rounds=ROUNDS)
    published, own = np.moveaxis(seconds, 1, 0)
    cpu, wall = np.median(published / own, axis=0)
    return cpu, wall


def _clocks() -> np.ndarray:
    return np.array([time.process_time(), time.perf_counter()])
