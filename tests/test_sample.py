"""Generation against the obvious: the whole document again for every id, and for every answer about vectors."""

import copy
import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import archs, base
from mot import config, diffusion, model, params, sample
from mot.data import records, roles
from mot.data.formats import Format, Medium
from mot.data.packing import document, pack
from mot.errors import UserError
from mot.sample import Generated, Part, Settings
from tests import examples

SPECIAL = ("<pad>", "<bos>", "<eos>", "<boi>", "<eoi>", "<sound>", "</sound>")
PAD, BOS, EOS, *MARKERS = range(len(SPECIAL))
IDS = 14  # of text
ROOM = 48  # tokens of each stream in the oracle's row
GREEDY = Settings(temperature=0.0, steps=3)
TEXT, MEDIA = 20, 3  # generated at most
PREFIX = 999  # a span

ids = lambda n, width=16, **stream: base.stream("", width, 24, ids=n, budget=ROOM, longest=ROOM, **stream)
vectors = lambda objective="flow", width=16, P=3, **diffusion: base.stream(
    "", width, 24, diffusion, latent=P, objective=objective, budget=ROOM, longest=ROOM
)


def build(arch, image, sound=None, blocks="units", **model):
    """A model of text, images and maybe sounds."""
    tree, first = examples.tree(arch, **model), IDS
    tree.streams = {"text": ids(IDS) | dict(modality="text")}
    for name, stream in (("image", image), ("sound", sound)):
        if stream:
            tree.streams[name] = stream | dict(modality=name, first_id=first if stream["ids"] else 0)
            first += stream["ids"]
    archs.choose(tree, arch)
    tree.data.blocks = blocks
    return config.build(tree)


def written(*tokens):
    """A format: units of images, and maybe of sounds, have so many tokens; 0 = any number."""
    media = zip(("image", "sound"), MARKERS[::2], MARKERS[1::2], tokens, strict=False)
    return Format("text", BOS, EOS, tuple(range(len(SPECIAL))), tuple(Medium(*m) for m in media))


class Case(NamedTuple):
    config: config.Config
    seed: int  # of weights under which greedy documents end, some late, and hold units
    format: Format = written(4)
    settings: Settings = GREEDY
    opens: str = ""
    length: int = 0
    chunked: bool = False  # attention in every step


GUIDED = GREEDY._replace(guidance=2.0)
both = vectors("x", width=24, time="add", copies="both")
CASES = {
    "ids": Case(build("mot", ids(9), tied=True), 0),
    "merged": Case(build("dense", vectors(drop=0.1), norm="post"), 0, settings=GUIDED),
    "both_copies": Case(build("mot", both, scan=True, kv_heads=4), 0, chunked=True),
    "two_media": Case(
        build("mot_attn_ffn", ids(5), vectors(time="add"), norm="post", scan=True), 0, written(0, 3), length=5
    ),
    "prefix": Case(
        build("mot_ffn", vectors("ddpm", drop=0.1), blocks="prefix"), 0, settings=GUIDED, opens="image"
    ),
    "token_choice": Case(build("moe_tc4", vectors(), kv_heads=1), 0),
    "expert_choice": Case(build("mot_moe_both", ids(9)), 0),
}


def weights(c, seed):
    """Random, also what training begins at 0 or 1; what ends a text is often likely."""
    rng, table = np.random.default_rng(seed), params.table(c)
    value = lambda spec: rng.standard_normal(spec.shape) * (spec.std or 0.3) + (spec.std is None) * spec.fill
    flat = {path: value(spec).astype(np.float32) for path, spec in table.items()}
    head_VD = flat["embed/tokens"] if c.model.tied else flat["head/out"].T
    head_VD[[EOS, *MARKERS]] *= 2
    return params.nest(flat)


@functools.cache
def made(name):
    case = CASES[name]
    return case, sample.Sampler(weights(case.config, case.seed), case.config, case.format)


def prompts(case):
    """One of text alone, one that holds units, an empty one."""
    rng = np.random.default_rng(0)
    text = lambda n: Part("text", rng.integers(len(SPECIAL), IDS, n))

    def unit(medium):
        n, stream = medium.tokens or 4, case.config.streams[medium.stream]
        data = rng.standard_normal((n, stream.latent)) if stream.latent else rng.integers(0, stream.ids, n)
        return Part(medium.stream, data.astype(np.float32) if stream.latent else data)

    first, last = case.format.media[0], case.format.media[-1]
    return [[text(3)], [text(2), unit(first), text(1), unit(last), unit(first)], []]


# --- the oracle ----------------------------------------------------------------------------------------------------


class Token(NamedTuple):
    stream: str
    id: int = 0
    unit: int = 0
    span: int = 0
    private: bool = False
    noise: float = 0.0
    alone: bool = False
    value: np.ndarray | None = None


class Writer:
    """Writes one row with no cache: a forward pass of the whole document, as training lays it out, for each answer."""

    def __init__(self, case, weights):
        self.case, self.config, self.format, self.weights = case, case.config, case.format, weights
        self.head = np.asarray(model.head(weights, self.config))
        self.forward = jax.jit(lambda weights, batch: model.forward(weights, batch, self.config, causal=True))

    def run(self, tokens):
        with jax.disable_jit(False):
            return self.forward(self.weights, self.batch(tokens))

    def batch(self, tokens):
        names, latents = list(self.config.streams), [s.latent for s in self.config.streams.values()]
        of = lambda i: [t.value for t in tokens if t.stream == names[i]]
        values = {i: np.stack(of(i)) for i, P in enumerate(latents) if P and of(i)}
        field = lambda name: np.array([getattr(t, name) for t in tokens])
        stream = [names.index(t.stream) for t in tokens]
        fields = {name: field(name) for name in ("unit", "span", "private", "noise", "alone")}
        row = [document(0, 0, field("id"), stream, np.zeros(len(tokens)), **fields, values=values)]
        return pack([row], names, [ROOM] * len(names), latents)

    def unit(self, name, data, number):
        """A clean unit; where training keeps two copies, behind a noised one, which must make no difference."""
        stream = self.config.streams[name]
        if not stream.latent:
            return [Token(name, int(i) + stream.first_id, number) for i in data]
        clean = [Token(name, 0, number, number, value=x) for x in data]
        noised = [t._replace(span=500 + number, private=True, noise=0.5, value=t.value + 1) for t in clean]
        return noised * (stream.copies == 2) + clean

    def likeliest(self, tokens, allowed):
        hidden = self.run(tokens).hidden
        last = [np.asarray(h_RD)[t.rank.reshape(-1) == len(tokens) - 1] for h_RD, t in hidden]
        logits_V = (np.concatenate(last) @ self.head)[0]
        return max(allowed, key=lambda i: logits_V[i])

    def draw(self, tokens, medium, number, key):
        name, stream, n = medium.stream, self.config.streams[medium.stream], medium.tokens or self.case.length
        if not stream.latent:
            allowed, data = [*range(stream.first_id, stream.first_id + stream.ids)], []
            while len(data) < n:
                found = self.likeliest(
                    tokens + self.unit(name, data, number), allowed + [medium.closes] * (not medium.tokens)
                )
                if found == medium.closes:
                    break
                data.append(found - stream.first_id)
            return np.array(data)
        key = jax.random.fold_in(key, sum(not t.private for t in tokens))
        noise = lambda k: jax.random.normal(jax.random.fold_in(key, k), (n * stream.latent,)).reshape(n, -1)
        settings, both = self.case.settings, stream.copies == 2

        def answer(x, t, alone):
            mine = [Token(name, 0, number, 500 + number, both, float(t), alone, np.asarray(value)) for value in x]
            found = self.run(tokens + mine).latents[name]
            end = sum(t.stream == name for t in tokens + mine)
            return found[0, end - n : end]

        def predict(x, t):
            return diffusion.guided(answer(x, t, False), answer(x, t, True), settings.guidance)

        x, levels = noise(0), diffusion.grid(settings.steps, settings.shift)
        noises = [noise(k + 1) for k in range(settings.steps)]
        with jax.disable_jit():  # `predict` is no program but many
            for t, s, e in zip(levels, levels[1:], noises, strict=True):
                x = diffusion.step(predict, x, t, s, stream.objective, settings.solver, e)
        return np.asarray(x)

    def __call__(self, prompt, row, text, media):
        """What a row's sampler must generate, greedily, with seed 0."""
        key, media_, parts = jax.random.fold_in(jax.random.key(0), row), self.format.media, []
        tokens, number = [Token("text", BOS)], 0
        for part in prompt:
            number += 1
            medium, unit = self.format.medium(part.stream), self.unit(part.stream, part.data, number)
            mark = lambda marker, medium=medium: [Token("text", getattr(medium, marker))] if medium else []
            tokens += mark("opens") + [t if medium else t._replace(unit=0) for t in unit] + mark("closes")
        opened = self.format.medium(self.case.opens)
        if opened:
            tokens.append(Token("text", opened.opens))
        if opened and self.config.data.blocks == "prefix":
            tokens = [t._replace(span=PREFIX) for t in tokens]
        plain = []
        while opened or text:
            if opened:
                number += 1
                data = self.draw(tokens, opened, number, key)
                tokens += [*self.unit(opened.stream, data, number), Token("text", opened.closes)]
                parts += [Part(opened.stream, data)]
                media, opened, plain = media - 1, None, []
                continue
            markers = [m.opens for m in media_ if media]
            found = self.likeliest(tokens, [EOS, *markers, *range(len(SPECIAL), IDS)])
            text -= 1
            if found == EOS:
                return Generated(parts, True)
            tokens.append(Token("text", found))
            opened = next((m for m in media_ if m.opens == found), None)
            if not opened:
                parts += [] if plain else [Part("text", plain)]
                plain.append(found)
        return Generated(parts, False)


def assert_alike(got, want):
    assert [p.stream for p in got.parts] == [p.stream for p in want.parts]
    for mine, other in zip(got.parts, want.parts, strict=True):
        compare = np.testing.assert_array_equal if mine.data.ndim == 1 else np.testing.assert_allclose
        compare(mine.data, np.asarray(other.data), **({} if mine.data.ndim == 1 else dict(atol=1e-5, rtol=0)))
    assert got.ended == want.ended


@pytest.mark.parametrize("name", CASES)
def test_a_cached_row_is_what_the_whole_document_says(name, monkeypatch):
    case, sampler = made(name)
    if case.chunked:
        monkeypatch.setattr(model, "FEW", 0)
    got = sampler(prompts(case), case.settings, TEXT, MEDIA, case.opens, case.length, first=5)
    write = Writer(case, sampler.params)
    for i, prompt in enumerate(prompts(case)):
        assert_alike(got[i], write(prompt, 5 + i, TEXT, MEDIA))
    units = [sum(part.stream != "text" for part in row.parts) for row in got]
    print(name, [[(p.stream, len(p.data)) for p in row.parts] + [row.ended] for row in got])
    assert sum(units) >= 3
    assert len(set(units)) > 1
