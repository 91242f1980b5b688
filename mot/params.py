"""One row per parameter: the table from which initial values, counts, freezing and checkpoints are read.

Paths are the public interface: `blocks/<stack>/<component>/<tower>/<weight>`, leading axis L always.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mot.config import Config


class Spec(NamedTuple):
    shape: tuple[int, ...]
    axes: tuple[str, ...]  # logical: embed, vocab, heads, kv_heads, head, mlp, layer
    std: float | None = None  # of a normal distribution; None means ones (a norm's scale) ...
    fill: float = 1.0  # ... or another constant


Table = dict[str, Spec]


def table(config: Config) -> Table:
    """Every parameter of the model `config` describes, by path."""
    m, V = config.model, config.vocab
    L, N, K, H = m.layers, m.heads, m.kv_heads, m.head_size
    D = next(iter(config.streams.values())).width
    scale = lambda n: max(n, 1) ** -0.5  # of fan-in n; sizes may not have been checked yet
    shrink = scale(2 * L)  # the residual sums 2 L branches (GPT-2)
    rows: Table = {"embed/tokens": Spec((V, D), ("vocab", "embed"), scale(D))}

    def block(component, tower, weight, shape, axes, *init):
        rows[f"blocks/main/{component}/{tower}/{weight}"] = Spec((L, *shape), ("layer", *axes), *init)

    for tower in _towers(config.towers.attn):
        block("attn", tower, "wq", (D, N, H), ("embed", "heads", "head"), scale(D))
        block("attn", tower, "wk", (D, K, H), ("embed", "kv_heads", "head"), scale(D))
        block("attn", tower, "wv", (D, K, H), ("embed", "kv_heads", "head"), scale(D))
        block("attn", tower, "wo", (N, H, D), ("heads", "head", "embed"), scale(N * H) * shrink)
        if m.qk_norm == "rms":
            block("attn", tower, "q_norm", (H,), ("head",))
            block("attn", tower, "k_norm", (H,), ("head",))
        if m.qk_norm == "layer":
            for x, heads, axis in (("q", N, "heads"), ("k", K, "kv_heads")):
                block("attn", tower, f"{x}_norm", (heads, H), (axis, "head"))
                block("attn", tower, f"{x}_norm_bias", (heads, H), (axis, "head"), None, 0.0)
    for tower in _towers(config.towers.ffn):
        F = config.streams[tower].ffn
        block("ffn", tower, "w1", (D, F), ("embed", "mlp"), scale(D))
        block("ffn", tower, "w3", (D, F), ("embed", "mlp"), scale(D))
        block("ffn", tower, "w2", (F, D), ("mlp", "embed"), scale(F) * shrink)
    for tower in _towers(config.towers.norm):
        block("norm", tower, "attn", (D,), ("embed",))
        block("norm", tower, "ffn", (D,), ("embed",))
        rows[f"final_norm/{tower}/scale"] = Spec((D,), ("embed",))
    if not m.tied:
        rows["head/out"] = Spec((D, V), ("embed", "vocab"), scale(D))
    return rows


def _towers(mapping: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(mapping.values()))


def init(specs: Table, seed: int) -> dict:
    """Initial values, each from its own path and the seed alone. Call under `jit`: eager differs in the last bit."""
    key = jax.random.key(seed)

    def value(path, spec):
        if spec.std is None:
            return jnp.full(spec.shape, spec.fill, jnp.float32)
        # Drawn flat: an n-d random.normal compiles ten times slower on CPU.
        flat = jax.random.normal(jax.random.fold_in(key, zlib.crc32(path.encode())), (math.prod(spec.shape),))
        return flat.reshape(spec.shape) * spec.std

    return nest({path: value(path, spec) for path, spec in specs.items()})


def nest(flat: Mapping) -> dict:
    return unflatten_dict(flat, sep="/")


def paths(tree: Mapping) -> dict:
    """A nested tree as `{path: leaf}`."""
    return flatten_dict(tree, sep="/")


def split(tree: Mapping, chosen: Callable[[str], bool]) -> tuple[dict, dict]:
    """The leaves whose path is chosen, and the others; `merge` undoes it."""
    flat = paths(tree)
    yes = {p: x for p, x in flat.items() if chosen(p)}
    return nest(yes), nest({p: x for p, x in flat.items() if p not in yes})


def merge(a: Mapping, b: Mapping) -> dict:
    return nest({**paths(a), **paths(b)})


def count(specs: Table) -> int:
    return sum(math.prod(spec.shape) for spec in specs.values())


def tower(path: str) -> str:
    """`text` of `blocks/main/ffn/text/w1`; the first part of a path outside the towers."""
    parts = path.split("/")
    return parts[3] if parts[0] == "blocks" else parts[1] if parts[0] == "final_norm" else parts[0]
