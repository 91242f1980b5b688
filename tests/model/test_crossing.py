"""Gated cross-attention: against the oracle, from gates of 0, on meshes, in sampling, and counted."""

import dataclasses

import jax
import numpy as np
import pytest

from mot import optim
from mot.config import ConfigError, resolve
from mot.data import folding
from mot.model import caches, flops, params, transformer
from mot.objectives import losses
from tests.oracles import reference
from tests.support import examples, vectors
from tests.support.devices import same_on_meshes


def tree(every=1, budgets=(36, 16, 12), **choices):
    """Images are seen by cross-attention; sounds, which are drawn, are part of the joint attention."""
    c = vectors.tree("dense", budgets=budgets, image={"copies": "noised"}, **choices)
    c.streams.image.update(objective="none", cross_every=every, max_tokens=16)
    c.data.batch = 2
    return c


def batch(c):
    def d(i, parts):
        return vectors.assign(c, folding.document(vectors.document(i, parts, i % 2), folding.of(c)))

    return vectors.pack(c, [[d(0, "tItIt"), d(2, "t")], [d(1, "t"), d(3, "ItS"), d(4, "It")]])


def weights(c, gate=0.5):
    flat = params.paths(vectors.weights(c))
    return params.nest({p: np.full_like(x, gate) if params.is_gate(p) else x for p, x in flat.items()})


def loss_of(c):
    def loss(weights, batch):
        given = losses.noised(batch, c, 3)
        output = transformer.forward(weights, given.batch, c)
        return losses.loss(weights, output, given, losses.totals(batch, c), c, 2)[0]

    return jax.value_and_grad(loss)


@pytest.mark.parametrize(("every", "scan"), [(1, False), (2, True)])
def test_text_sees_the_last_picture_as_the_oracle_does(every, scan):
    c = resolve(tree(every, scan=scan))
    rows, w = batch(c), weights(c)
    rows = {**rows, "sound": rows["sound"].replace(noise=np.zeros_like(rows["sound"].noise))}
    streams = list(c.streams)
    sizes = [s.budget for s in c.streams.values()]
    ends = np.cumsum([0, *sizes])
    m = c.model
    o = dict(layers=m.layers, eps=m.norm_eps, theta=m.rope_theta, norm=m.norm, qk_norm=m.qk_norm)
    o |= dict(time=dict.fromkeys(streams), crossed={"image": every})
    towers = {x: getattr(c.towers, x) for x in ("attn", "ffn", "norm")}
    tokens = jax.tree.map(lambda *x: np.concatenate(x, 1), *(t.replace(value=t.value[..., :0]) for t in rows.values()))
    real = (rows["text"].segment != 0)[..., None]
    g = np.random.default_rng(0).standard_normal((*real.shape[:2], 16)).astype("f") * real

    def theirs(flat):
        total = 0
        for b in range(2):
            names = ("token", "position", "segment", "span", "private", "unit", "noise")
            row = {name: getattr(tokens, name)[b] for name in names}
            row |= {"stream": np.repeat([0, 1, 2], sizes), "rope_position": tokens.rope_position[b, :, 0], "value": {}}
            for i, s in enumerate(streams[1:], 1):
                value = np.zeros((c.length, c.streams[s].latent), "f")
                value[ends[i] : ends[i + 1]] = rows[s].value[b]
                row["value"][s] = value
            states = reference.states(flat, row, towers, streams, o)["text"]
            total += (states[: sizes[0]] * g[b]).sum()
        return total

    def ours(w):
        hidden = transformer.forward(w, rows, c).hidden
        h_RD, _ = hidden[0]
        return (h_RD.reshape(2, -1, 16) * g).sum()

    got, grads = jax.jit(jax.value_and_grad(ours))(w)
    want, want_grads = jax.jit(jax.value_and_grad(theirs))(params.paths(w))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-4)
    mine = {p: x for p, x in params.paths(grads).items() if p.startswith(("cross/", "latent/image", "blocks", "embed"))}
    assert examples.leaf_error(mine, {p: want_grads[p] for p in mine}) < 5e-5


def test_it_begins_as_the_model_without_and_gates_learn_first():
    c = resolve(tree())
    rows, w = batch(c), weights(c, gate=0)
    loss, grads = jax.jit(loss_of(c))(w, rows)
    ungated = {p: x for p, x in params.paths(w).items() if not p.startswith(("cross/", "latent/image"))}
    other = jax.tree.map(lambda x: x + 1, w)
    moved = params.nest(params.paths(other) | ungated | {p: x for p, x in params.paths(w).items() if params.is_gate(p)})
    same, _ = jax.jit(loss_of(c))(moved, rows)
    np.testing.assert_array_equal(loss, same)  # whatever the pictures and their weights are
    found = {
        p: float(np.abs(g).max()) for p, g in params.paths(grads).items() if p.startswith(("cross/", "latent/image"))
    }
    assert all((size > 0) == params.is_gate(p) for p, size in found.items()), found
    decided = optim.rules(c)
    assert {decided[p].decay for p in found if params.is_gate(p)} == {0}


def test_it_begins_as_text_alone_to_the_bit():
    """A model that has no pictures, of the same documents without them, at the same places."""
    with_pictures = resolve(tree())
    rows, w = batch(with_pictures), weights(with_pictures, gate=0)
    text = {s: t for s, t in rows.items() if s != "image"}
    plain = vectors.tree("dense", budgets=(36, 16, 12), image={"copies": "noised"})
    plain.streams.image.update(objective="none", max_tokens=16)
    plain = resolve(plain)

    def states(c, rows):
        return np.asarray(jax.jit(lambda w: transformer.forward(w, rows, c).hidden[0][0])(w))

    position = np.concatenate([t.position for t in text.values()], axis=1)
    rank = np.argsort(np.argsort(position, axis=1), axis=1)
    cuts = np.cumsum([t.position.shape[1] for t in text.values()])[:-1]
    alone = {s: t.replace(position=x) for (s, t), x in zip(text.items(), np.split(rank, cuts, axis=1), strict=True)}
    np.testing.assert_array_equal(states(with_pictures, rows), states(plain, alone))


@pytest.mark.parametrize("entry", [{}, dict(kind="resampler", fold=2, queries=2, layers=1)])
def test_every_mesh_gives_one_devices_gradients(entry):
    c = tree(2, scan=True)
    c.streams.image.entry.update(entry)
    one = resolve(c)
    rows, w = batch(one), weights(one)
    same_on_meshes(c, loss_of, rows, w, (dict(context=2, tensor=2), dict(fsdp=2)))


def test_rematerialisation_changes_nothing():
    c = resolve(tree(2))
    rows, w = batch(c), weights(c)
    want = jax.jit(loss_of(c))(w, rows)[1]
    again = dataclasses.replace(c, model=dataclasses.replace(c.model, remat="block"))
    assert examples.leaf_error(jax.jit(loss_of(again))(w, rows)[1], want) < 1e-5


def test_what_follows_a_cache_sees_the_pictures_of_the_prompt():
    """Ids one by one after a prompt give the states of the whole document at once."""
    c = resolve(tree())
    w = weights(c)
    d = vectors.assign(c, vectors.document(1, "tIt"))
    whole = vectors.pack(c, [[d]])
    h_RD, tokens = jax.jit(lambda w: transformer.forward(w, whole, c).hidden[0])(w)
    want = np.asarray(h_RD)[np.asarray(tokens.segment[0]) != 0]
    text = int((d.stream == 0).sum())
    prompt = jax.tree.map(lambda x: x, whole)
    first = text - 2
    keep = np.arange(whole["text"].segment.shape[1]) < first
    prompt["text"] = whole["text"].replace(segment=whole["text"].segment * keep)
    output = transformer.forward(w, prompt, c, causal=True, cache=caches.empty(c, 1, 64))
    cache = caches.keep(output.cache)
    for n in range(first, text):
        one = jax.tree.map(lambda x, n=n: x[:, n : n + 1], whole["text"])
        output = transformer.forward(w, {"text": one}, c, causal=True, cache=cache)
        cache = caches.keep(output.cache)
        np.testing.assert_allclose(output.hidden[0][0][0], want[n], atol=1e-5)


def test_pairs_of_a_batch_are_those_of_the_oracle():
    c = resolve(tree(2))
    rows = batch(c)
    joint = {s: t for s, t in rows.items() if s != "image"}
    tokens = jax.tree.map(lambda *x: np.concatenate(x, 1), *(t.replace(value=t.value[..., :0]) for t in rows.values()))
    stream = np.repeat([0, 1, 2], [s.budget for s in c.streams.values()])
    total = 0
    for b in range(2):
        row = {name: getattr(tokens, name)[b] for name in ("position", "segment", "unit")} | {"stream": stream}
        total += reference.last_unit(row, 1).sum()
    assert flops.crossed_pairs(rows, "image", c) == total > 0
    assert flops.pairs(rows, c) == round(flops.visible_pairs(joint) + total / 2)  # one layer of two


def test_a_token_meets_what_it_passes():
    c, plain = resolve(tree(2)), vectors.tree("dense", image={"copies": "noised"})
    plain.streams.image.objective = "none"
    plain = resolve(plain)
    met, before = flops.matmul_weights(c), flops.matmul_weights(plain)
    square, ffn = 16 * 4 * 8, 3 * 16 * 24
    assert met["text"] - before["text"] == met["sound"] - before["sound"] == 2 * square + ffn
    assert met["image"] == 3 * 16 + 2 * square // 2  # its way in, keys and values
    users = {path: params.users(path, c) for path in params.table(c)}
    assert users["cross/image/wq"] == users["cross/image/attn_gate"] == ["image"]
    assert users["blocks/main/attn/text/wq"] == ["sound", "text"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(objective="flow"), r"streams\.image\.cross_every: 1, but latent is 3 and objective 'flow'"),
        (dict(cross_every=3), r"cross_every: 3, but model\.layers is 2; no layer would see it"),
        (dict(width=12), r"streams\.image\.width: 12, but .* set both alike"),
    ],
)
def test_what_cannot_be_crossed_is_refused(change, says):
    c = tree()
    c.streams.image.update(change)
    with pytest.raises(ConfigError, match=says):
        resolve(c)


def test_what_is_crossed_has_no_tower():
    c = tree()
    c.towers.norm.image = "image"
    with pytest.raises(ConfigError, match=r"towers\.norm\.image: 'image', but its tokens pass through no layer"):
        resolve(c)
