"""Generation against the obvious: the whole document again for every id, and for every answer about vectors."""

import copy
import dataclasses
import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import archs, base
from mot.config import Config, resolve
from mot.config.options import Settings
from mot.data import layout, positions, records, roles
from mot.data.layout import Format, Medium, Stretch
from mot.data.packing import document, pack
from mot.errors import UserError
from mot.generate import decoding, sampling
from mot.generate.sampling import Generated
from mot.model import caches, joint, params, transformer
from mot.objectives import diffusion
from tests.support import examples, twofold

SPECIAL = ("<pad>", "<bos>", "<eos>", "<boi>", "<eoi>", "<sound>", "</sound>")
PAD, BOS, EOS, *MARKERS = range(len(SPECIAL))
IDS = 14  # of text
ROOM = 48  # tokens of each stream in the oracle's row
GREEDY = Settings(temperature=0.0, steps=3)
TEXT, MEDIA = 20, 3  # generated at most
PREFIX = 999  # a span


def ids(n, width=16, **stream):
    return base.stream("", width, 24, ids=n, budget=ROOM, max_tokens=ROOM, **stream)


def vectors(objective="flow", width=16, P=3, **diffusion):
    return base.stream("", width, 24, diffusion, latent=P, objective=objective, budget=ROOM, max_tokens=ROOM)


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
    return resolve(tree)


def written(*tokens):
    """A format: units of images, and maybe of sounds, have so many tokens; 0 = any number."""
    media = zip(("image", "sound"), MARKERS[::2], MARKERS[1::2], tokens, strict=False)
    return Format("text", BOS, EOS, tuple(range(len(SPECIAL))), tuple(Medium(*m) for m in media))


class Case(NamedTuple):
    config: Config
    seed: int  # of weights under which greedy documents end, some late, and hold units
    format: Format = written(4)
    settings: Settings = GREEDY
    opens: str = ""
    length: int = 0
    few: int = joint.FEW  # queries that attend otherwise than by chunks
    size: tuple[int, ...] = ()  # rows and columns of units of any size


GUIDED = GREEDY._replace(guidance=2.0)
both = vectors("x", width=24, time="add", copies="both")
PLACED = written(0, 0)._replace(media=(Medium("image", 3, 4, 0, (3, 4)), Medium("sound", 5, 6, 0)))
CASES = {
    "ids": Case(build("mot", ids(9), tied=True), 20),
    "merged": Case(build("dense", vectors(drop_rate=0.1), norm="post"), 6, settings=GUIDED),
    "both_copies": Case(build("mot", both, layers=1, kv_heads=4), 3, few=8),
    "two_media": Case(
        build("mot_attn_ffn", ids(5), vectors(time="add"), norm="post", scan=True), 1, written(0, 3), length=5
    ),
    "prefix": Case(
        build("mot_ffn", vectors("ddpm", drop_rate=0.1), blocks="prefix"), 5, settings=GUIDED, opens="image"
    ),
    "places": Case(
        build(
            "mot",
            vectors(width=24) | dict(place_table=4, rope_gap=7),
            ids(5, rope_seconds=0.5),
            layers=1,
            rope_sections=(2, 1, 1),
            rope_per_second=3.0,
        ),
        19,
        PLACED,
        length=5,
        size=(2, 3),
    ),
    "token_choice": Case(build("moe_tc4", vectors(), kv_heads=1, layers=1), 2),
    "expert_choice": Case(build("moe_ec4", ids(9)), 5),
    "capped": Case(
        build(
            "dense",
            ids(9),
            norm="both",
            qk_norm="rms_flat",
            attention_cap=0.5,
            query_size=3,
            rope_features=4,
            layers=1,
        ),
        0,
        few=8,
    ),
}


def weights(c, seed):
    """Random, also what training begins at 0 or 1; what ends a text is often likely."""
    rng, table = np.random.default_rng(seed), params.table(c)

    def value(spec):
        return rng.standard_normal(spec.shape) * (spec.std or 0.3) + (spec.std is None) * spec.fill

    flat = {path: value(spec).astype(np.float32) for path, spec in table.items()}
    head_VD = flat["embed/tokens"] if c.model.tied else flat["head/out"].T
    head_VD[[EOS, *MARKERS]] *= 2
    return params.nest(flat)


@functools.cache
def made(name):
    case = CASES[name]
    return case, sampling.Sampler(weights(case.config, case.seed), case.config, case.format)


@functools.cache
def whole(name):
    return Writer(made(name)[0], made(name)[1].params)


def prompts(case):
    """One of text alone, one that holds units, an empty one."""
    rng = np.random.default_rng(0)

    def text(n):
        return Stretch("text", rng.integers(len(SPECIAL), IDS, n))

    def unit(medium):
        n, stream = medium.tokens or 4, case.config.streams[medium.stream]
        shape = (1, 4) if medium.shape else (n,)
        data = rng.standard_normal((*shape, stream.latent)) if stream.latent else rng.integers(0, stream.ids, shape)
        return Stretch(medium.stream, data.astype(np.float32) if stream.latent else data)

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
    place: tuple[int, ...] = (0, 0, 0)
    value: np.ndarray | None = None


def at(i, columns):
    """Frame, row and column of a unit's token; 0 where it has no rows."""
    return (0, *divmod(i, columns)) if columns else (0, 0, 0)


class Writer:
    """Writes one row with no cache: a forward pass of the whole document, as training lays it out, for each answer."""

    def __init__(self, case, weights):
        self.case, self.config, self.format, self.weights = case, case.config, case.format, weights
        self.head = np.asarray(transformer.head(weights, self.config))
        self.forward = jax.jit(lambda weights, batch: transformer.forward(weights, batch, self.config, causal=True))

    def run(self, tokens):
        with jax.disable_jit(False):
            return self.forward(self.weights, self.batch(tokens))

    def batch(self, tokens):
        names, latents = list(self.config.streams), [s.latent for s in self.config.streams.values()]

        def of(i):
            return [t.value for t in tokens if t.stream == names[i]]

        values = {i: np.stack(of(i)) for i, P in enumerate(latents) if P and of(i)}

        def field(name):
            return np.array([getattr(t, name) for t in tokens])

        stream = [names.index(t.stream) for t in tokens]
        fields = {name: field(name) for name in ("unit", "span", "private", "noise", "alone", "place")}
        row = [document(0, 0, field("id"), stream, values, weight=np.zeros(len(tokens)), **fields)]
        return pack([row], names, [ROOM] * len(names), latents, positions.rule(self.config))

    def unit(self, name, data, number):
        """A clean unit; where training keeps two copies, behind a noised one, which must make no difference."""
        stream = self.config.streams[name]
        if not stream.latent:
            return [Token(name, int(i) + stream.first_id, number) for i in data]
        columns = data.shape[1] if data.ndim == 3 else 0  # of a unit with rows
        data = data.reshape(-1, stream.latent)
        clean = [Token(name, 0, number, number, place=at(i, columns), value=x) for i, x in enumerate(data)]
        noised = [t._replace(span=500 + number, private=True, noise=0.5, value=t.value + 1) for t in clean]
        return noised * (stream.copies == 2) + clean

    def likeliest(self, tokens, allowed):
        hidden = self.run(tokens).hidden
        last = [np.asarray(h_RD)[t.position.reshape(-1) == len(tokens) - 1] for h_RD, t in hidden]
        logits_V = (np.concatenate(last) @ self.head)[0]
        return max(allowed, key=lambda i: logits_V[i])

    def draw(self, tokens, medium, number, key):
        name, stream = medium.stream, self.config.streams[medium.stream]
        n = medium.tokens or (math.prod(self.case.size) if medium.shape else self.case.length)
        columns = self.case.size[1] if medium.shape else 0
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

        def noise(k):
            return jax.random.normal(jax.random.fold_in(key, k), (n * stream.latent,)).reshape(n, -1)

        settings, both = self.case.settings, stream.copies == 2

        def answer(x, t, alone):
            mine = [
                Token(name, 0, number, 500 + number, both, float(t), alone, at(i, columns), np.asarray(value))
                for i, value in enumerate(x)
            ]
            found = self.run(tokens + mine).latents[name]
            end = sum(t.stream == name for t in tokens + mine)
            return found[0, end - n : end]

        def predict(x, t):
            return diffusion.guided(answer(x, t, False), answer(x, t, True), settings.guidance)

        x, levels = noise(0), diffusion.grid(settings.steps, settings.shift)
        noises = [noise(k + 1) for k in range(settings.steps)]
        with jax.disable_jit():  # `predict` is no program but many
            for t, s, e in zip(levels[:-1], levels[1:], noises, strict=True):
                x = diffusion.step(predict, x, t, s, stream.objective, settings.solver, e)
        return np.asarray(x).reshape(*self.case.size, -1) if columns else np.asarray(x)

    def __call__(self, prompt, row, text, media):
        """What a row's sampler must generate, greedily, with seed 0."""
        key, media_, parts = jax.random.fold_in(jax.random.key(0), row), self.format.media, []
        tokens, number = [Token("text", BOS)], 0
        for part in prompt:
            number += 1
            medium, unit = self.format.medium(part.stream), self.unit(part.stream, part.data, number)

            def mark(marker, medium=medium):
                return [Token("text", getattr(medium, marker))] if medium else []

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
                parts += [Stretch(opened.stream, data)]
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
                parts += [] if plain else [Stretch("text", plain)]
                plain.append(found)
        return Generated(parts, False)


def assert_alike(got, want):
    assert [p.stream for p in got.parts] == [p.stream for p in want.parts]
    for mine, other in zip(got.parts, want.parts, strict=True):
        if mine.data.ndim == 1:
            np.testing.assert_array_equal(mine.data, other.data)
        else:  # ddpm's first step divides by 0.03: what nobody has trained grows
            assert abs(mine.data - other.data).max() <= 1e-5 * max(1, abs(other.data).max())
    assert got.ended == want.ended


@pytest.mark.parametrize("name", CASES)
def test_a_cached_row_is_what_the_whole_document_says(name, monkeypatch):
    case, sampler = made(name)
    monkeypatch.setattr(joint, "FEW", case.few)
    given = prompts(case)
    got = sampler(given, case.settings, TEXT, MEDIA, case.opens, case.length, first=5, sizes={"image": case.size})
    write = whole(name)
    for i, prompt in enumerate(given):
        assert_alike(got[i], write(prompt, 5 + i, TEXT, MEDIA))
    units = [sum(part.stream != "text" for part in row.parts) for row in got]
    assert sum(units) >= 3
    assert len(set(units)) > 1, "no row waited while another drew"
    assert {row.ended for row in got} == {True, False}


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("solver", diffusion.SOLVERS)
def test_every_solver_is_that_of_the_whole_document(solver, guidance):
    case, sampler = made("merged")
    settings = GREEDY._replace(solver=solver, guidance=guidance, shift=2.0)
    case = case._replace(settings=settings, opens="image")
    got = sampler(prompts(case)[1:], settings, 0, 1, "image", first=5)
    write = whole("merged")
    write.case = case
    for i, prompt in enumerate(prompts(case)[1:]):
        assert_alike(got[i], write(prompt, 5 + i, 0, 1))


# --- choice ----------------------------------------------------------------------------------------------------------


def kept(logits_V, settings):
    """Probabilities in float64."""
    p_V = np.exp(np.float64(logits_V) / settings.temperature)
    order = np.argsort(-p_V)
    if settings.top_k:
        p_V[order[settings.top_k :]] = 0
    p_V /= p_V.sum()
    n = 1 + np.searchsorted(np.cumsum(p_V[order]), settings.top_p)
    p_V[order[n:]] = 0
    return p_V / p_V.sum()


@pytest.mark.parametrize(
    ("temperature", "k", "p"),
    [(1, 0, 1), (0.5, 0, 1), (2, 3, 1), (1, 99, 0.7), (0.5, 4, 0.8), (1, 1, 1), (1, 0, 1e-6), (0, 0, 1)],
)
def test_ids_are_drawn_among_the_likeliest(temperature, k, p):
    rng, n, settings = np.random.default_rng(0), 20_000, Settings(temperature, k, p)
    logits_BV = rng.standard_normal((3, 12)).astype(np.float32) * 2
    logits_BV[:, 5] = -np.inf
    keys = jax.random.split(jax.random.key(1), (3, n))

    def choose(x_V, keys):
        return decoding.choose_ids(jnp.broadcast_to(x_V[None], (n, 12)), keys, settings)

    drawn = np.asarray(jax.jit(jax.vmap(choose))(logits_BV, keys))
    for logits_V, ids in zip(logits_BV, drawn, strict=True):
        likeliest = np.eye(12)[logits_V.argmax()]
        want_V = kept(logits_V, settings) if temperature else likeliest
        if k == 1 or p < 1e-3:
            np.testing.assert_array_equal(want_V, likeliest)
        got_V = np.bincount(ids, minlength=12) / n
        assert not got_V[want_V == 0].any()
        assert (abs(got_V - want_V) <= 5 * np.sqrt(want_V * (1 - want_V) / n)).all()


HOT = Settings(temperature=1.5, top_k=6, top_p=0.95)


def test_a_row_depends_on_its_number_prompt_and_seed_alone():
    case, sampler = made("ids")
    a, b, c = prompts(case)

    def go(prompts, seed=3, first=5):
        return sampler(prompts, HOT, TEXT, MEDIA, seed=seed, first=first)

    rows = go([a, b, c])
    compiled = [f._cache_size() for f in (sampler._prefill, sampler._feed, sampler._ids)]

    def spell(row):
        return [(part.stream, part.data.tolist()) for part in row.parts]

    assert list(map(spell, go([a, b, c]))) == list(map(spell, rows))
    turned = go([b, c, a], first=6)
    assert [spell(row) for row in turned[:2]] == [spell(row) for row in rows[1:]]
    assert spell(turned[2]) != spell(rows[0])
    assert spell(go([a, b, c], seed=4)[0]) != spell(rows[0])
    assert len({str(spell(row)) for row in go([b, b, b])}) > 1
    assert [f._cache_size() for f in (sampler._prefill, sampler._feed, sampler._ids)] == compiled


def test_no_text_holds_a_marker_and_media_end():
    case, sampler = made("ids")
    sampler = copy.copy(sampler)
    table = sampler.params["embed"]["tokens"].copy()
    table[[PAD, BOS, *MARKERS[1:]]] *= 20
    table[MARKERS[0]] *= 3
    sampler.params = sampler.params | {"embed": {"tokens": table}}
    rows = sampler(prompts(case), HOT, TEXT, MEDIA, seed=3, first=5)
    text, images = ([p.data for row in rows for p in row.parts if p.stream == name] for name in ("text", "image"))
    assert np.concatenate(text).min() >= len(SPECIAL)
    assert np.concatenate(text).max() < IDS
    assert {len(x) for x in images} == {4}
    assert np.concatenate(images).min() >= 0
    assert np.concatenate(images).max() < 9
    assert max(sum(p.stream == "image" for p in row.parts) for row in rows) == MEDIA


# --- faults ----------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_told_with_its_row():
    case, sampler = made("merged")
    good, bad = prompts(case)[1], prompts(case)[1]
    bad[1] = bad[1]._replace(data=bad[1].data * np.nan)
    with pytest.raises(UserError, match=r"row 2: the logits of text are not finite .* take an earlier --step"):
        sampler([good, bad, good], case.settings, TEXT, MEDIA, first=5)
    diverged = copy.copy(sampler)
    out = {"out": sampler.params["latent"]["image"]["out"] * np.inf}
    diverged.params = sampler.params | {"latent": {"image": sampler.params["latent"]["image"] | out}}
    settings = GREEDY._replace(solver="euler", shift=2.0)
    with pytest.raises(UserError, match=r"row 1: the vectors of image are not finite"):
        diverged(prompts(case)[1:], settings, 0, 1, "image")


TEXTS = [[Stretch("text", np.full(3, 8))]] * 2


@pytest.mark.parametrize(
    ("name", "how", "says"),
    [
        (
            "both_copies",
            dict(settings=GUIDED),
            r"guidance 2 needs .* streams.image.diffusion.drop_rate = 0; write guidance 1",
        ),
        ("merged", dict(settings=GREEDY._replace(solver="magic")), "solver 'magic' is unknown; allowed: euler, heun, "),
        ("two_media", dict(length=0), "image have no fixed length; say how many tokens at most"),
        ("ids", dict(opens="sound"), "opens 'sound' is no stream that this model draws; allowed: image"),
        ("ids", dict(opens="image", media=0), "media 0, but image is to be opened"),
        (
            "ids",
            dict(prompts=[*TEXTS, [Stretch("text", np.full(49, 8))]]),
            r"prompt 3 has 49 tokens of text, .* at most 48",
        ),
    ],
)
def test_what_cannot_be_done_is_told(name, how, says):
    with pytest.raises(UserError, match=says):
        made(name)[1](**(dict(prompts=TEXTS) | how))


def test_a_model_that_sees_later_tokens_continues_nothing():
    c = build("mot", ids(9), blocks="document")
    with pytest.raises(UserError, match=r"data.blocks: 'document'; this model's tokens all see later ones"):
        sampling.Sampler({}, c, written(4))([[]])


def test_a_stream_that_is_only_read_is_not_drawn():
    """Nor opened by text, which learns to from its data."""
    sampler = sampling.Sampler({}, build("mot", vectors("none")), written(0))
    with pytest.raises(UserError, match=r"streams.image.objective: 'none'; this model reads image and draws none"):
        sampler(TEXTS, opens="image")

    def opens(sampler):
        return sampler._text_ids(sampling._Row([], 5, 1, None))[MARKERS[0]]

    assert opens(made("merged")[1])
    assert not opens(sampler)


def test_text_draws_no_id_of_a_range_inside_its_own():
    inside = build("dense", ids(9))
    streams = inside.streams | {"image": dataclasses.replace(inside.streams["image"], first_id=5)}
    allowed_V = sampling.Sampler({}, dataclasses.replace(inside, streams=streams), written(4))._text_ids(0)
    assert not allowed_V[5:].any()


def test_what_training_alone_needs_is_left_out():
    tree = build("moe_tc4", vectors(), kv_heads=1, layers=1, remat="dots")
    limited = {tower: dataclasses.replace(sets, capacity=1.5) for tower, sets in tree.ffn.items()}
    sampler = sampling.Sampler({}, dataclasses.replace(tree, ffn=limited), written(4))
    assert sampler.config == CASES["token_choice"].config


def test_a_prompt_is_laid_out_as_data_is():
    case = CASES["two_media"]
    text, image, sound = np.array([9, 8]), np.array([3, 0, 1]), np.ones((2, 3), np.float32)
    parts = [
        Stretch("text", text),
        Stretch("image", image),
        Stretch("sound", sound),
        Stretch("sound", -sound),
        Stretch("text", text),
    ]
    streams = list(case.config.streams.values())
    places = tuple(records.Placement(s.modality, i, s.first_id, s.ids, s.latent) for i, s in enumerate(streams))
    token_layout = records.TokenLayout(places, dict(zip(SPECIAL, range(len(SPECIAL)), strict=True)), ("sound",))
    rendered = records.render(records.Record("", tuple(records.Span(*part[:2]) for part in parts)), token_layout, 0, 0)
    want = roles.assign(rendered, streams, "units", 0)
    got = layout.document(parts, case.config, case.format, "image")
    for field in ("token", "stream", "unit", "span"):
        np.testing.assert_array_equal(getattr(got, field)[:-1], getattr(want, field)[:-1], field)
    np.testing.assert_array_equal(got.values[2], want.values[2])
    assert (got.token[-1], want.token[-1]) == (MARKERS[0], EOS)
    assert not got.noise.any()


# --- memory ----------------------------------------------------------------------------------------------------------


def sizes(text, axis):
    """Of all arrays in an HLO module's text that have an axis of that length."""
    shapes = [[int(n) for n in shape.split(",")] for shape in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)]
    return [math.prod(shape) for shape in shapes if axis in shape]


@pytest.mark.usefixtures("optimised")
def test_a_prompt_makes_no_logits_and_the_cache_is_written_in_place():
    c, S, format = build("mot", ids(9), layers=1), 2048, written(4)
    sampler = sampling.Sampler(weights(c, 0), c, format)
    V, D = c.vocab, 16
    batch = sampling._prompts([[Stretch("text", np.full(n, 8))] for n in (30, 9)], c, format, "")
    text = sampler._prefill.lower(sampler.params, batch, slots=S).compile().as_text()
    assert max(sizes(text, V)) == V * D, "only the embedding is as long as the vocabulary"
    ask = jax.jit(
        lambda params, batch: transformer.forward(params, batch, c).hidden[0][0] @ transformer.head(params, c)
    )
    assert max(sizes(ask.lower(sampler.params, batch).compile().as_text(), V)) > V * D

    def row(dtype, *shape):
        return jax.ShapeDtypeStruct((2, *shape), dtype)

    state = decoding.DecodingState(jax.eval_shape(lambda: caches.empty(c, 2, S)), row("f4", D), row("i4"), row("i4"))
    allowed = decoding.Allowed(row(bool), row("i4"), row(bool, V), np.zeros(V, bool))
    random_keys = jax.random.split(jax.random.key(0), 2)
    lowered = sampler._ids.lower(
        sampler.params,
        state,
        allowed,
        random_keys,
        decoding.text_lies(TEXT, sampler.rule),
        stream="text",
        settings=GREEDY,
        limit=TEXT,
    )
    program = lowered.compile()
    keys = state.cache.kv[0][0]
    shape = ",".join(map(str, keys.shape))
    assert f"f32[{shape}]" in program.as_text()
    assert not re.search(rf"f32\[{shape}\]\S* copy\(", program.as_text())
    assert program.memory_analysis().temp_size_in_bytes < keys.size * 4


@pytest.mark.parametrize("fold", [1, 2])
def test_what_was_drawn_is_read_in_its_other_form(fold):
    """Text goes on after a drawn picture as after the same picture given as a prompt, latents and (folded) patches."""
    tree = twofold.tree([twofold.rule("drawn,seen")], names=("seen", "drawn"))
    tree.streams.seen.entry.fold = fold
    for stream in tree.streams.values():
        stream.update(budget=ROOM, max_tokens=ROOM)
    tree.streams.text.ids = IDS
    c = resolve(tree)
    media = [Medium(name, *MARKERS[:2], 4) for name in ("drawn", "seen")]
    form = Format("text", BOS, EOS, tuple(range(len(SPECIAL))), tuple(media))

    def further(stream, data):
        return [Stretch("seen", data[:, :2] * 3, True)]

    words = [Stretch("text", np.array([9, 10, 11]))]
    sampler = sampling.Sampler(weights(c, 3), c, form, further)
    assert [m.stream for m in sampler.drawn] == ["drawn"]
    matters = 0
    for seed in range(20):
        sampler.params = weights(c, seed)
        (row,) = sampler([words], GREEDY, text=8, opens="drawn")
        if len(row.parts) < 2:  # no text follows
            continue
        drawn, after = row.parts
        whole = [*words, drawn, *further("drawn", drawn.data)]
        (again,), (without,) = (sampler([prompt], GREEDY, text=8, media=0) for prompt in (whole, whole[:-1]))
        np.testing.assert_array_equal(again.parts[0].data, after.data)
        matters += not without.parts or without.parts[0].data.tolist() != after.data.tolist()
    assert matters > 1, "what is read matters"
