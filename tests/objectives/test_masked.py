"""Ids that are hidden and predicted: which, by what ratio, with what loss, and who sees whom."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from mot import batches
from mot.config import ConfigError, resolve
from mot.data import packing, roles
from mot.model import params, transformer
from mot.objectives import losses, masked
from tests.oracles import reference
from tests.support import examples, vectors

BOS, EOS, OPEN, CLOSE = range(4)
SIZES = {"t": 3, "I": 4}
EVEN = dict(weighting="even", distribution="cosine")


def make(text=None, image=None, blocks="units", arch="dense", **stream):
    """Text and images of ids, each by next token or masked as its dictionary says."""
    tree = examples.tree(arch, attention="reference")
    for name, masking in (("text", text), ("image", image)):
        if masking is not None:
            tree.streams[name].objective = "masked"
            tree.streams[name].masking.update(masking)
        tree.streams[name].max_tokens = 24
    tree.data.blocks = blocks
    return resolve(tree)


PICTURES = make(image={})  # Show-o
WHOLE = make(text=dict(by="document"), image=dict(by="document"), blocks="document")
SHIFTED = make(text=dict(by="document", least=0.5, most=0.5, shift=True), blocks="document")


def document(doc_id, parts, source=0):
    """`tIt`: <bos> words <open> image <close> words <eos>."""
    rng = np.random.default_rng([source, doc_id])
    token, stream, unit, weight = [BOS], [0], [0], [1.0]
    for number, part in enumerate(parts, 1):
        n, is_image = SIZES[part], part == "I"
        ids = (rng.integers(0, 8, n) + (examples.IDS if is_image else 4)).tolist()
        marks = ([OPEN], [CLOSE]) if is_image else ([], [])
        token += [*marks[0], *ids, *marks[1]]
        stream += [0] * len(marks[0]) + [int(is_image)] * n + [0] * len(marks[1])
        unit += [0] * len(marks[0]) + [number * is_image] * n + [0] * len(marks[1])
        weight += [1.0] * (len(marks[0]) + n) + [0.0] * len(marks[1])
    return packing.document(source, doc_id, [*token, EOS], [*stream, 0], weight=[*weight, 1.0], unit=[*unit, 0])


def assign(c, d, number=0):
    return roles.assign(d, list(c.streams.values()), c.data.blocks, number)


def pack(c, rows):
    batch = packing.pack(rows, list(c.streams), [s.budget for s in c.streams.values()])
    batches.check(batch)
    return batch


def packed(c, *parts):
    return pack(c, [[assign(c, document(i, p)) for i, p in enumerate(row.split())] for row in parts])


def flat_row(batch, r, *names):
    """Fields of a row by position."""
    order = np.argsort(np.concatenate([np.asarray(t.position[r]) for t in batch.values()]))
    return [np.concatenate([np.asarray(getattr(t, name)[r]) for t in batch.values()])[order] for name in names]


# --- who is hidden, and who sees whom --------------------------------------------------------------------------------


def test_a_picture_sees_itself_both_ways_and_text_is_causal():
    batch = packed(PICTURES, "tI")
    stream = np.array([0] * 5 + [1] * 4 + [0] * 2)
    n = len(stream)
    position, segment, span, private, token, target, weight, noise = (
        x[:n]
        for x in flat_row(batch, 0, "position", "segment", "span", "private", "token", "target", "weight", "noise")
    )
    see = reference.visible(position, segment, span, private)
    want = np.tril(np.ones((n, n), bool))
    want[5:9, 5:9] = True
    np.testing.assert_array_equal(see, want)
    np.testing.assert_array_equal(noise, stream)
    np.testing.assert_array_equal(target[stream == 1], token[stream == 1])
    # The marker before the picture learns nothing, nor does its last id of what follows it; the rest is as ever.
    np.testing.assert_array_equal(weight, [1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(target[:4], token[1:5])


def test_a_picture_that_is_read_is_shown_whole_and_learns_nothing():
    is_image = np.array([0] * 2 + [1] * 4 + [0] * 5, bool)
    noise, weight = (x[:11] for x in flat_row(packed(PICTURES, "It"), 0, "noise", "weight"))
    assert not noise.any()
    np.testing.assert_array_equal(weight, [1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0])  # the words after it do
    half = make(image=dict(before_text=0.5, least=1.0 - 1e-3, most=1.0))
    noise, weight = (x[:11] for x in flat_row(packed(half, "It"), 0, "noise", "weight"))
    np.testing.assert_array_equal(noise[is_image], 0.5)
    np.testing.assert_array_equal(weight[is_image], 1)
    drawn = losses.noised(packed(half, *["It"] * 4), half, 3).batch["image"].noise
    assert 0.499 < np.unique(drawn)[1] <= np.unique(drawn)[-1] <= 0.5


def test_of_a_document_all_but_its_begin_and_what_is_forced_may_be_hidden():
    token, noise, weight, target, span = (
        x[:14] for x in flat_row(packed(WHOLE, "tIt"), 0, "token", "noise", "weight", "target", "span")
    )
    may = np.ones(14)
    may[[0, 9]] = 0  # <bos>, <close>
    np.testing.assert_array_equal(noise, may)
    np.testing.assert_array_equal(weight, may)
    np.testing.assert_array_equal(target[may > 0], token[may > 0])
    assert (span == span[0]).all()
    assert span[0] > 0


def test_shifted_the_token_before_learns():
    batch = packed(SHIFTED, "tt")
    n = 8
    weight, target, token = (x[:n] for x in flat_row(batch, 0, "weight", "target", "token"))
    np.testing.assert_array_equal(weight, [1] * (n - 1) + [0])
    np.testing.assert_array_equal(target[:-1], token[1:])
    noised = losses.noised(batch, SHIFTED, 0).batch
    hidden = np.asarray(noised["text"].token[0] == SHIFTED.mask_id)[:n]
    learns = np.asarray(noised["text"].noise[0])[:n]
    assert hidden.any()
    np.testing.assert_array_equal(learns[:-1] > 0, hidden[1:])
    np.testing.assert_array_equal(learns[learns > 0], 0.5)


def test_a_unit_without_its_text_is_a_segment_of_its_own():
    c = make(image=dict(drop_rate=0.5))
    d = next(x for x in (assign(c, document(0, "tI"), number) for number in range(50)) if x.alone.any())
    segment, unit, weight = flat_row(pack(c, [[d]]), 0, "segment", "unit", "weight")
    assert len(set(segment[unit > 0])) == 1
    assert set(segment[unit > 0]).isdisjoint(segment[unit == 0])
    assert (weight[unit > 0] == 1).all()


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from(["t", "tI", "It", "tIt", "II"]), min_size=2, max_size=3), st.integers(0, 99))
def test_what_is_hidden_shows_nothing_and_what_is_seen_weighs_nothing_however_packed(parts, step):
    for c in (PICTURES, WHOLE):
        documents = [assign(c, document(i, p)) for i, p in enumerate(parts)]
        apart = pack(c, [[d] for d in documents[::-1]] + [[]] * (4 - len(documents)))
        # As many rows as above, so that nothing is compiled anew.
        halves = pack(c, [documents[:2], documents[2:], [], []])
        found = []
        for batch in (apart, halves):
            noised, drawn = losses.noised(batch, c, step).batch, {}
            for name, tokens in noised.items():
                hidden = np.asarray(tokens.token) == c.mask_id
                may = np.asarray(batch[name].noise) > 0
                assert not (hidden & ~may).any()
                np.testing.assert_array_equal(hidden, np.asarray(tokens.noise) > 0)
                np.testing.assert_array_equal(np.asarray(tokens.token)[~hidden], batch[name].token[~hidden])
                weight = np.asarray(masked.weights(tokens, c))
                assert (weight[may & ~hidden] == 0).all()
                np.testing.assert_allclose(weight[hidden] * np.asarray(tokens.noise)[hidden], 1, rtol=1e-6)
                for i in range(len(parts)):
                    mine = (np.asarray(tokens.doc_id) == i) & (np.asarray(tokens.segment) > 0)
                    drawn[name, i] = [np.asarray(x)[mine].tolist() for x in (tokens.token, tokens.noise)]
            found.append(drawn)
        assert found[0] == found[1]


# --- ratios and losses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["uniform", "cosine"])
def test_ratios_spread_as_they_say(distribution):
    masking = dataclasses.replace(PICTURES.streams["image"].masking, distribution=distribution, least=0.2, most=0.6)
    t = np.sort(np.asarray(masked.ratios((jnp.arange(1000) + 0.5) / 1000, masking)))
    assert 0.2 < t[0] < t[-1] < 0.6
    np.testing.assert_allclose(t.mean(), 0.2 + 0.4 * masked.MEAN[distribution], atol=1e-4)
    want = {"uniform": 0.4, "cosine": 0.2 + 0.4 * np.cos(np.pi / 4)}[distribution]
    np.testing.assert_allclose(np.median(t), want, atol=1e-3)


def test_the_bound_of_a_planted_distribution_is_its_likelihood():
    """Of exact conditionals: by all subsets of what is hidden, and in the mean over draws (2502.09992 eq. 3, 6)."""
    p = np.random.default_rng(0).dirichlet(np.ones(8)).reshape(2, 2, 2)
    x = (1, 0, 1)

    def nats(i, hidden):
        seen = tuple(slice(None) if j in hidden else x[j] for j in range(3))
        known = tuple(slice(None) if j in hidden and j != i else x[j] for j in range(3))
        return -np.log(p[known].sum() / p[seen].sum())

    want = -np.log(p[x])
    bound = 0.0
    for k in (1, 2, 3):
        of_size = [sum(nats(i, s) for i in s) / k for s in itertools.combinations(range(3), k)]
        bound += np.mean(of_size)
    np.testing.assert_allclose(bound, want, rtol=1e-12)
    n = 8192
    each = np.tile(np.arange(1, 4), (n, 1))
    tokens = packed(WHOLE, "t")["text"]
    tokens = jax.tree.map(lambda a: np.resize(a[:1, 1:4], (n, 3, *a.shape[2:])), tokens)
    tokens = tokens.replace(doc_id=np.tile(np.arange(n)[:, None], (1, 3)), token=each, noise=np.ones((n, 3), "f"))
    drawn = masked.hidden(tokens, WHOLE.streams["text"], WHOLE.mask_id, jax.random.key(0))
    hides, t = np.asarray(drawn.token) == WHOLE.mask_id, np.asarray(drawn.noise)
    per_row = np.array(
        [sum(nats(i, np.flatnonzero(h)) / r[i] for i in np.flatnonzero(h)) for h, r in zip(hides, t, strict=True)]
    )
    assert abs(per_row.mean() - want) < 4 * per_row.std() / np.sqrt(n) + 2e-3 * want
    # A document's tokens have one ratio, and each is hidden apart: about half of all pairs alike by chance.
    assert (np.where(hides, t, np.nan).T[0][hides.all(1)] == t[hides.all(1), 1]).all()
    np.testing.assert_allclose(hides.mean(0), 0.5, atol=0.03)


CASES = {
    "show_o": (make(image=EVEN, arch="mot"), False),
    "llada": (WHOLE, False),
    "mntp": (SHIFTED, True),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_the_oracle(name):
    c, shift = CASES[name]
    batch = packed(c, "tI t", "tt") if name != "mntp" else packed(c, "tt t", "ttt")
    noised = losses.noised(batch, c, 5)
    Z_M = losses.totals(batch, c)
    weights = examples.weights(c)

    @jax.jit
    @jax.value_and_grad
    def ours(weights):
        output = transformer.forward(weights, noised.batch, c)
        return losses.loss(weights, output, noised, Z_M, c, 1)[0]

    m = c.model
    o = dict(layers=m.layers, eps=m.norm_eps, theta=m.rope_theta, norm=m.norm, qk_norm=m.qk_norm)
    stream = [np.repeat(np.arange(2), [t.token.shape[1] for t in batch.values()])]
    towers = {x: getattr(c.towers, x) for x in ("attn", "ffn", "norm")}
    mean = next(s.masking for s in c.streams.values() if s.masks)
    mean = mean.least + (mean.most - mean.least) * masked.MEAN[mean.distribution]

    def terms(r):
        """By position: what is predicted where, of a row; `hidden` from what entered."""
        token, weight, noise, target = flat_row(batch, r, "token", "weight", "noise", "target")
        entered, divisor = flat_row(noised.batch, r, "token", "noise")
        hidden = entered == c.mask_id
        ratio = np.roll(divisor, 1) if shift else divisor
        if name == "show_o":
            np.testing.assert_allclose(ratio[hidden], mean, rtol=1e-6)
        found = reference.masked_terms(token, hidden, ratio, np.ones(len(token)), shift)
        return found + [
            (i, int(target[i]), weight[i]) for i in np.flatnonzero((weight > 0) & (noise == 0) & (not shift))
        ]

    @jax.value_and_grad
    def oracle(weights):
        flat, total = params.paths(weights), 0.0
        head = transformer.head(weights, c)
        for r in range(2):
            names = ("token", "position", "segment", "span", "private", "rope_position")
            row = dict(zip(names, flat_row(noised.batch, r, *names), strict=True))
            ends = np.argsort(np.concatenate([np.asarray(t.position[r]) for t in batch.values()]))
            row |= {"stream": stream[0][ends], "rope_position": row["rope_position"][:, 0]}
            h = reference.hidden(flat, row, towers, list(c.streams), o)
            for place, id_, scale in terms(r):
                logits = h[place] @ head
                lse = jnp.log(jnp.exp(logits).sum())
                total += scale * (lse - logits[id_] + c.objective.z_loss * lse**2)
        return total / float(Z_M[0])

    (got, got_grad), (want, want_grad) = ours(weights), oracle(weights)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(got_grad), jax.tree.leaves(want_grad), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_sums_are_over_all_that_may_be_hidden():
    batch = packed(PICTURES, "tI", "tI", "It", "t")
    noised = losses.noised(batch, PICTURES, 1)
    weights = examples.weights(PICTURES)
    output = jax.jit(lambda w: transformer.forward(w, noised.batch, PICTURES))(weights)
    sums = losses.loss(weights, output, noised, losses.totals(batch, PICTURES), PICTURES, 1)[1]
    assert sums["weight"][1, 0] == 8
    again = losses.noised(batch, PICTURES, 1).batch["image"]
    np.testing.assert_array_equal(again.token, noised.batch["image"].token)
    other = losses.noised(batch, PICTURES, 2).batch["image"]
    assert (np.asarray(other.token) != np.asarray(again.token)).any()


def test_what_is_hidden_is_contrasted_by_its_own_ids(monkeypatch):
    """An id that stands for its part does so also where the model does not see it; so do ids that are compared."""
    word = examples.IDS + 3
    tree = examples.tree("dense", attention="reference")
    tree.streams.image.objective = "masked"
    tree.streams.image.masking.update(least=0.999, most=1.0)
    tree.objective.contrastive = base.contrastive("infonce", pool=f"mean,{word}", skip_equal=True, width=0, pairs=2)
    c = resolve(tree)
    batch = packed(c, "tI", "tI")
    image = batch["image"]
    batch["image"] = image.replace(token=np.where(image.segment != 0, word, image.token))
    noised = losses.noised(batch, c, 5)
    assert (np.asarray(noised.batch["image"].token)[image.segment != 0] == c.mask_id).all()
    states = {name: np.ones((*t.token.shape, 16), "f") for name, t in batch.items()}
    output = transformer.Output([], {}, {}, None, states)
    monkeypatch.setattr(losses.next_token, "loss", lambda *_: (0.0, {}))
    told = losses.loss(vectors.weights(c), output, noised, losses.totals(batch, c), c, 1)[1]["contrastive"]
    assert told.pairs == 2
    np.testing.assert_allclose(told.sums["loss"], 0, atol=1e-6)  # equal images are no negatives of each other


# --- configurations --------------------------------------------------------------------------------------------------


def test_the_mask_is_one_id_more():
    assert (PICTURES.mask_id, PICTURES.vocab) == (24, 25)
    assert make().vocab == 24


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        (dict(image=dict(least=0.0)), "streams.image.masking.least: 0.0; must be above 0 and below 1"),
        (dict(image=dict(least=1.0)), "streams.image.masking.least: 1.0; must be above 0 and below 1"),
        (dict(image=dict(most=0.0)), "streams.image.masking.most: 0.0; must be at least 0.01"),
        (dict(image=dict(least=1e-30, most=1e-30)), "streams.image.masking.most: 1e-30; must be at least 0.01"),
        (dict(image=dict(least=0.5, most=0.2)), "streams.image.masking.least: 0.5 is above"),
        (dict(image=dict(shift=True)), "streams.image.masking.shift: True, but"),
        (dict(text={}), "streams.text.masking.by: 'unit', but text has no units"),
        (dict(text=dict(by="document")), "data.blocks: 'units', but streams.text.masking.by is 'document'"),
        (
            dict(text=dict(by="document", drop_rate=0.1), blocks="document"),
            "streams.text.masking.before_text, drop_rate: 0.0, 0.1, but",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(choices, says):
    with pytest.raises(ConfigError) as error:
        make(**choices)
    assert says in str(error.value), error.value
