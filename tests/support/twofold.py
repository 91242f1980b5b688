"""Documents whose images have several representations, and a configuration of a stream for each."""

import numpy as np

from configs import archs, base
from mot.config import resolve
from mot.data import roles
from mot.data.manifest import special_tokens
from mot.data.records import Record, Span, TokenLayout
from mot.data.sources import Records

MODALITIES = ("text", "image", "image_vectors", "latents")
OF = {"image_vectors": "image", "latents": "image"}
WIDTHS = {"image_vectors": 2, "latents": 3}
IDS = {"text": 40, "image": 9}


def tree(rules=(), copies="both", blocks="units", names=("codes", "seen", "drawn"), **drawn):
    """A ConfigDict: images as codes that are read, patches that are seen, and latents that are drawn."""
    c = base.get_config()
    c.streams = dict(text=base.stream("text", 16, 24, budget=96, max_tokens=96, ids=40))
    inputs = dict(budget=48, max_tokens=48, objective="none")
    diffusion = dict(copies=copies, max_noise=0.5)
    kinds = dict(
        codes=base.stream("image", 16, 24, first_id=40, ids=9, **inputs),
        seen=base.stream("image", 16, 24, latent=2, representation="image_vectors", **inputs),
        drawn=base.stream("image", 16, 24, diffusion, latent=3, budget=96, max_tokens=96, objective="flow")
        | dict(representation="latents")
        | drawn,
    )
    c.streams.update({name: kinds[name] for name in names})
    c.model.update(layers=2, heads=2, kv_heads=2, head_size=8)
    archs.choose(c, "mot")
    c.data.update(batch=2, sources={"a": "embedded", "b": "embedded"}, shares={"a": 1.0, "b": 1.0})
    c.data.update(blocks=blocks, roles=tuple(rules))
    c.optim.warmup = 1
    return c


def rule(streams, place="", source=""):
    return dict(streams=streams, place=place, source=source)


def record(parts, seed=0, of=MODALITIES[1:]):
    """`tIt`: words, an image in its representations `of`, words."""
    rng = np.random.default_rng(seed)
    spans = []
    for part in parts:
        for modality in ("text",) if part == "t" else of:
            n = 3 if part == "t" else 2 + len(modality) % 3
            width = WIDTHS.get(modality)
            data = rng.standard_normal((n, width)).astype(np.float32) if width else rng.integers(0, IDS[modality], n)
            spans.append(Span(modality, data))
    return Record(parts, tuple(spans))


def layout(c, source="a"):
    placed = roles.placements(c.streams, MODALITIES)
    special = {mark: i for i, mark in enumerate(special_tokens(MODALITIES))}
    return TokenLayout(placed, special, (), OF, rules=roles.rules(c.data.roles, source, c.streams, placed))


class Dataset:
    """A split in memory, as `mot.data.records.Dataset` has one on disk; each span is an atom."""

    modalities = MODALITIES

    def __init__(self, records):
        self.records, self.count = records, len(records)
        entries = {name: dict(ids=IDS[name]) if name in IDS else dict(width=WIDTHS[name]) for name in MODALITIES}
        self.about = {"tokenizers": entries}
        rows = [[(MODALITIES.index(span.modality), len(span.data)) for span in r.spans] for r in records]
        self.firsts = np.cumsum([0, *map(len, rows)])
        self.atoms = np.array([atom for row in rows for atom in row], np.int32).reshape(-1, 2)

    def atoms_of(self, i):
        return self.atoms[self.firsts[i] : self.firsts[i + 1]]

    def __getitem__(self, i):
        return self.records[i]


def source(c, records, name="a"):
    return Records(name, 0, Dataset(records), layout(c, name), len(c.streams))


def make(*args, **kwargs):
    return resolve(tree(*args, **kwargs))
