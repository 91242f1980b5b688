"""Small configurations and batches that use everything: several documents, padding, spans, private copies."""

import jax
import numpy as np

from configs import archs, base
from mot.config import resolve
from mot.data.packing import document, pack
from mot.model import params

STREAMS = ("text", "image")
IDS = 12  # of each stream
# Of a row of metrics.jsonl, what equal runs differ in.
CLOCK = (
    "time",
    "seconds",
    "step_seconds",
    "idle_seconds",
    "data_wait",
    "tokens_per_s",
    "mfu",
    "wall_seconds",
    "goodput",
)


def tree(arch="mot", budgets=(24, 24), **model):
    """A ConfigDict of two streams, width 16, two layers."""
    c = base.get_config()
    c.streams = {
        name: base.stream(name, 16, 24, budget=budgets[i], max_tokens=8, first_id=i * IDS, ids=IDS)
        for i, name in enumerate(STREAMS)
    }
    c.model.update(dict(layers=2, heads=4, kv_heads=2, head_size=8) | model)
    archs.choose(c, arch)
    c.objective.update(chunk=80, z_loss=1e-3)
    c.data.update(batch=4, sources={"a": "embedded"}, shares={"a": 1.0})
    return c


def make(arch="mot", budgets=(24, 24), **model):
    return resolve(tree(arch, budgets, **model))


def weights(c):
    """Initial parameters, norms' scales and biases shaken so that no tower is like another."""
    flat = params.paths(jax.jit(lambda: params.init(params.table(c), c.model.seed))())

    def shake(path, x):
        change = 0.3 * np.random.default_rng(len(path)).standard_normal(x.shape).astype("f")
        return change if path.endswith("_bias") or c.model.norm_offset else x * (1 + change)

    return params.nest({p: shake(p, x) if "norm" in p or p.endswith("_bias") else x for p, x in flat.items()})


def random_document(rng, length, doc_id, spans):
    """Runs of text and image; an image run may be bidirectional, with a private copy before it."""
    stream, unit, span, private, weight = [], [], [], [], []
    number = 0
    while len(stream) < length:
        n = min(int(rng.integers(1, 6)), length - len(stream))
        m = int(rng.integers(0, 2))
        copies = [True, False] if spans and m and 2 * n <= length - len(stream) and rng.random() < 0.5 else [False]
        for copy in copies:
            number += 1
            both_ways = spans and m == 1
            stream += [m] * n
            unit += [number * m] * n
            span += [number if both_ways else 0] * n
            private += [copy] * n
            weight += [0.0 if both_ways else 1.0] * n
    stream = np.array(stream)
    token = rng.integers(0, IDS, len(stream)) + IDS * stream
    return document(doc_id % 2, doc_id, token, stream, weight=weight, unit=unit, span=span, private=private)


def batch(seed=0, rows=4, budgets=(24, 24), spans=True):
    """Packed random documents; every row ends in padding of both streams."""
    rng = np.random.default_rng(seed)
    packed = []
    for _ in range(rows):
        room, documents = np.array(budgets) - 2, []
        for doc_id in range(100):
            d = random_document(rng, int(rng.integers(3, 16)), doc_id, spans)
            used = np.bincount(d.stream, minlength=2)
            if (used <= room).all():
                room, documents = room - used, [*documents, d]
        packed.append(documents)
    return pack(packed, STREAMS, budgets)


def leaf_error(a, b):
    """The greatest difference of any leaf, over that leaf's maximum."""

    def relative(x, y):
        return float(np.abs(np.asarray(x) - np.asarray(y)).max() / max(np.abs(np.asarray(y)).max(), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(relative, a, b)))
