"""Small documents of text and vectors, and configurations of them: images in two copies, sounds noised in place."""

import numpy as np

from configs import archs, base
from mot.config import resolve
from mot.data import packing, positions, roles
from mot.model import params

BOS, EOS, OPEN, CLOSE, WORDS, IDS = 0, 1, 2, 3, 4, 12
PARTS = {"t": 0, "I": 1, "S": 2}  # words, an image, a sound: the stream of each
SIZES = {"t": 3, "I": 4, "S": 3}
FEATURES = (0, 3, 2)
NOISED = dict(max_noise=0.5, drop_rate=0.5, time_distribution="uniform")


def tree(arch="mot", width=16, budgets=(36, 24, 9), walls=(), image=None, sound=None, table=0, entry=None, **model):
    """A ConfigDict of text, image and sound; `width` is images' own, `table` the rows of their tables of places, and
    `entry` how they enter."""
    c = base.get_config()
    c.streams = dict(
        text=base.stream("text", 16, 24, budget=budgets[0], max_tokens=24, ids=IDS),
        image=base.stream("image", width, 24, dict(time="norm", copies="both", max_noise=0.5) | (image or {})),
        sound=base.stream("sound", 16, 24, dict(time="add") | NOISED | (sound or {})),
    )
    c.streams.image.update(
        place_table=table, budget=budgets[1], max_tokens=24, latent=3, objective="flow", loss_weight=5.0
    )
    c.streams.image.entry.update(entry or {})
    c.streams.sound.update(budget=budgets[2], max_tokens=9, latent=2, objective="x", loss_weight=0.5)
    c.model.update(dict(layers=2, heads=4, kv_heads=2, head_size=8) | model)
    archs.choose(c, arch)
    c.towers.stop_gradients = tuple(dict(queries=q, keys=k) for q, k in walls)
    c.objective.update(chunk=80, z_loss=1e-3, per="modality")
    c.data.update(batch=4, sources={"a": "embedded"}, shares={"a": 1.0})
    c.optim.warmup = 1
    return c


def make(arch="mot", width=16, **choices):
    return resolve(tree(arch, width, **choices))


def weights(c):
    """Parameters drawn by numpy, so that nothing is compiled; none is 0 or like another's."""
    rng = np.random.default_rng(c.model.seed)

    def draw(spec):
        return rng.standard_normal(spec.shape) * (spec.std or 0.3) + (spec.std is None) * spec.fill

    return params.nest({path: draw(spec).astype("f") for path, spec in params.table(c).items()})


def document(doc_id, parts, source=0):
    """`tIt`: <bos> words <open> image <close> words <eos>, as data rooms hand it over."""
    rng = np.random.default_rng([source, doc_id])
    token, stream, unit, weight, values = [BOS], [0], [0], [1.0], {}
    for number, part in enumerate(parts, 1):
        n, s = SIZES[part], PARTS[part]
        if s:
            values[s] = [*values.get(s, []), rng.standard_normal((n, FEATURES[s]))]
            body, mark = [[0] * n, [s] * n, [number] * n, [1.0] * n], [[OPEN], [0], [0], [1.0]]
            close = [[CLOSE], [0], [0], [0.0]]
            body = [a + b + c for a, b, c in zip(mark, body, close, strict=True)]
        else:
            body = [rng.integers(WORDS, IDS, n).tolist(), [0] * n, [0] * n, [1.0] * n]
        token, stream, unit, weight = (a + b for a, b in zip((token, stream, unit, weight), body, strict=True))
    ends = [[EOS], [0], [0], [1.0]]
    token, stream, unit, weight = (a + b for a, b in zip((token, stream, unit, weight), ends, strict=True))
    values = {s: np.concatenate(x) for s, x in values.items()}
    place = np.zeros((len(token), 3), int)
    place[np.array(stream) == PARTS["I"]] = np.tile(positions.places((2, 2), 4), (parts.count("I"), 1))
    return packing.document(source, doc_id, token, stream, values, weight=weight, unit=unit, place=place)


def assign(c, d, number=0):
    return roles.assign(d, list(c.streams.values()), c.data.blocks, number)


def pack(c, rows):
    """Rows of documents that have their roles."""
    streams = c.streams.values()
    latents = [s.features for s in streams]
    return packing.pack(rows, list(c.streams), [s.budget for s in streams], latents, positions.rule(c))


def alone_at(c, d, alone=True):
    """The document with its roles, of the first number at which its last unit is trained alone (or is not)."""
    found = (assign(c, d, number) for number in range(100))
    return next(x for x in found if x.alone.any() == alone)


def batch(c, rows=2):
    """Every role at once, and padding in every stream."""

    def d(i, parts):
        return assign(c, document(i, parts, i % 2))

    lone = alone_at(c, document(7, "tS"))
    return pack(c, [[d(0, "tIt"), lone, d(2, "t")], [d(3, "ISt"), d(4, "tI")]][:rows])
