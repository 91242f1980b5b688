"""Likelihoods of many documents in a row against each document alone, and against what is known without computing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot.config import resolve
from mot.data import layout, packing
from mot.data.layout import Format, Medium, Stretch
from mot.errors import UserError
from mot.measures import likelihood
from mot.model import params, transformer
from tests.oracles import reference
from tests.support import examples, vectors

SPECIAL = (0, 1, 2, 3)
IDS = Format("text", 0, 1, SPECIAL, (Medium("image", 2, 3, 0),))
# As tests/support/vectors.py writes documents: <bos> 0, <eos> 1, markers 2 and 3, of images and of sounds.
VECTORS = Format("text", 0, 1, SPECIAL, (Medium("image", 2, 3, 4), Medium("sound", 2, 3, 3)))


def documents(c, format, count=9):
    """Of many lengths, each text scored after a prompt of text or a unit, or alone."""
    rng = np.random.default_rng(0)

    def words(n):
        return Stretch("text", rng.integers(len(SPECIAL), 12, n))

    def unit(stream):
        s = c.streams[stream]
        if s.latent:
            return Stretch(stream, rng.standard_normal((4, s.latent)).astype("f"))
        return Stretch(stream, rng.integers(0, s.ids, rng.integers(2, 6)))

    made = []
    for i in range(count):
        media = [name for name in c.streams if name != "text"]
        parts = [[words(3)], [unit(media[i % len(media)])], []][i % 3]
        made.append(layout.document([*parts, words(1 + i % 4)], c, format, scored=len(parts), ends=i % 2 == 0))
    return made


def packed_alone(d, c):
    """The document in a row that is exactly as long as it is."""
    used = np.bincount(d.stream, minlength=len(c.streams)).tolist()
    return packing.pack([[d]], list(c.streams), used, [s.latent for s in c.streams.values()])


def by_the_definition(d, c, hidden_TD, head_DV):
    """sum of log softmax(h @ head)[the next token] where that has weight; hidden states in document order."""
    logits_TV = np.asarray(hidden_TD, np.float64) @ np.asarray(head_DV, np.float64)
    p_TV = np.exp(logits_TV - logits_TV.max(1, keepdims=True))
    p_TV /= p_TV.sum(1, keepdims=True)
    return sum(np.log(p_TV[i - 1, d.token[i]]) for i in range(1, len(d.token)) if d.weight[i])


def oracle(d, c, flat):
    """By the slow oracle, which imports nothing of mot."""
    m = c.model
    o = dict(layers=m.layers, eps=m.norm_eps, theta=m.rope_theta, norm=m.norm, qk_norm=m.qk_norm)
    o["time"] = {name: s.diffusion.time for name, s in c.streams.items() if s.diffuses}
    n = np.arange(len(d.token))
    row = dict(token=d.token, stream=d.stream, position=n, rope_position=n, segment=n * 0 + 1)
    row |= dict(span=d.span, private=d.private, noise=d.noise, value={})
    for s, (name, stream) in enumerate(c.streams.items()):
        if stream.latent:
            row["value"][name] = np.zeros((len(n), stream.latent), "f")
            row["value"][name][d.stream == s] = d.values.get(s, np.zeros((0, stream.latent)))
    towers = {x: getattr(c.towers, x) for x in ("attn", "ffn", "norm")}
    hidden_TD = reference.hidden(flat, row, towers, list(c.streams), o)
    return by_the_definition(d, c, hidden_TD, flat["head/out"])


@pytest.mark.parametrize("arch", ["mot", pytest.param("dense", marks=pytest.mark.slow)])
def test_documents_in_a_row_have_the_likelihood_that_the_oracle_gives_each_alone(arch):
    c = examples.make(arch)
    weights, made = examples.weights(c), documents(c, IDS)
    flat = params.paths(weights)
    want = [oracle(d, c, flat) for d in made]
    np.testing.assert_allclose(likelihood.make(weights, c)(made), want, rtol=2e-5)


def test_text_after_clean_vectors_too():
    c = vectors.make()
    weights, made = vectors.weights(c), documents(c, VECTORS)
    flat = params.paths(weights)
    want = [oracle(d, c, flat) for d in made]
    np.testing.assert_allclose(likelihood.make(weights, c)(made), want, rtol=5e-5)


def with_capacity(arch, overflow):
    tree = examples.tree(arch)
    for tower in tree.ffn:
        tree.ffn[tower].update(capacity=0.5, overflow=overflow)
    return resolve(tree)


@pytest.mark.parametrize(
    ("arch", "overflow"),
    [
        ("moe_ec4", ""),
        ("moe_tc4", "earliest"),
        pytest.param("moe_tc4", "highest", marks=pytest.mark.slow),
    ],
)
def test_neighbours_in_a_row_take_no_experts_place(arch, overflow):
    """Also of routers that look at later tokens, or count the row's: as generation has it."""
    c = with_capacity(arch, overflow) if overflow else examples.make(arch)
    weights, made = examples.weights(c), documents(c, IDS)[:3]  # each shape alone is compiled
    head_DV = params.paths(weights)["head/out"]
    roomy = dataclasses.replace(c, ffn={t: dataclasses.replace(e, capacity=0.0) for t, e in c.ffn.items()})
    states = jax.jit(lambda w, batch: transformer.forward(w, batch, roomy, causal=True).hidden)
    want = []
    for d in made:
        hidden = states(weights, {s: t for s, t in packed_alone(d, c).items() if t.token.size})
        h_BTD = jnp.concatenate([h.reshape(1, -1, h.shape[-1]) for h, _ in hidden], 1)
        place = np.concatenate([t.position for _, t in hidden], 1)[0]
        want.append(by_the_definition(d, c, np.asarray(h_BTD)[0][np.argsort(place)], head_DV))
    np.testing.assert_allclose(likelihood.make(weights, c)(made), want, rtol=2e-5)


def test_a_model_that_knows_nothing_finds_every_id_as_likely():
    c = examples.make()
    weights = examples.weights(c)
    weights["head"]["out"] = weights["head"]["out"] * 0
    made = documents(c, IDS)
    want = [-d.weight.sum() * np.log(c.vocab) for d in made]
    np.testing.assert_allclose(likelihood.make(weights, c)(made), want, rtol=1e-6)


def test_every_document_has_one_row_with_room_for_it():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, [200, 60], (300, 2)) + 1
    budgets = likelihood._budgets(tokens, 640)
    rows = likelihood._rows(tokens, budgets)
    assert sorted(i for row in rows for i in row) == list(range(300))
    assert all((tokens[row].sum(0) <= budgets).all() for row in rows)
    assert sum(map(len, rows)) / len(rows) > 4
    assert all(budget % likelihood.MULTIPLE == 0 for budget in budgets)


def test_documents_score_in_their_own_order_and_none_scores_nothing():
    c = examples.make()
    score, made = likelihood.make(examples.weights(c), c), documents(c, IDS)
    order = np.random.default_rng(1).permutation(len(made))
    np.testing.assert_allclose(score([made[i] for i in order]), score(made)[order], rtol=1e-6)
    assert score([]).shape == (0,)


def test_what_has_no_likelihood_is_told():
    c = vectors.make()
    assert likelihood.why_none("text", c) == ""
    assert likelihood.why_none("image", c) == "image is diffused (flow), and has no likelihood"
    tree = vectors.tree()
    tree.streams.sound.objective = "none"
    assert "read by this run and never predicted" in likelihood.why_none("sound", resolve(tree))
    tree = vectors.tree(image=dict(copies="noised"))
    tree.data.blocks = "document"
    with pytest.raises(UserError, match="tokens all see later ones, so they have no likelihood"):
        likelihood.make({}, resolve(tree))


def test_a_model_that_diverged_is_told():
    c = examples.make()
    weights = jax.tree.map(lambda x: x * np.nan, examples.weights(c))
    with pytest.raises(UserError, match="not finite"):
        likelihood.make(weights, c)(documents(c, IDS))


def test_what_fits_no_row_is_told():
    c = examples.make(budgets=(24, 16))
    assert likelihood.too_long(np.array([24, 16]), c) == ""
    assert likelihood.too_long(np.array([3, 17]), c).startswith("17 tokens of image, and a row of this run has 16")
