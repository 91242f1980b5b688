"""What dropout drops follows a token's document and place, whatever row, device or microbatch it comes in."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import sharding
from mot.config import ConfigError, resolve
from mot.model import dropout, params, transformer
from mot.objectives import losses
from mot.train import step
from mot.train.state import State
from tests.oracles import reference
from tests.support import examples, vectors
from tests.support.devices import devices

KEY = jax.random.key(5)


def loss_of(c, key=KEY):
    def loss(weights, batch):
        given = losses.noised(batch, c, 3)
        output = transformer.forward(weights, given.batch, c, dropout_key=key)
        return losses.loss(weights, output, given, losses.totals(batch, c), c, 2)[0]

    return jax.jit(jax.value_and_grad(loss))


def documents(c):
    d = vectors.document
    lone = vectors.alone_at(c, d(7, "tS"))
    return [vectors.assign(c, d(i, parts, i % 2)) for i, parts in enumerate(("tIt", "t", "ISt"))] + [lone]


def test_a_share_is_dropped_and_the_expected_value_stays():
    y_RD = jnp.ones((2000, 16))
    got = np.asarray(dropout.drop(y_RD, dropout.fold(jnp.broadcast_to(KEY, 2000), jnp.arange(2000)), 0.25))
    assert set(np.unique(got)) == {0, np.float32(1 / 0.75)}
    np.testing.assert_allclose((got == 0).mean(), 0.25, atol=0.01)
    np.testing.assert_allclose(got.mean(), 1, atol=0.02)


def test_the_same_documents_lose_the_same_in_two_packings():
    c = vectors.make(dropout=0.3)
    a, b, d, lone = documents(c)
    weights = vectors.weights(c)
    want, want_grads = loss_of(c)(weights, vectors.pack(c, [[a, b], [d, lone]]))
    got, grads = loss_of(c)(weights, vectors.pack(c, [[lone, a], [b, d]]))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert examples.leaf_error(grads, want_grads) < 1e-5
    other, _ = loss_of(c, jax.random.fold_in(KEY, 1))(weights, vectors.pack(c, [[a, b], [d, lone]]))
    assert abs(other / want - 1) > 1e-4


@pytest.mark.parametrize(
    "text", ["context=2,tensor=2", "fsdp=2", pytest.param("data=2,context=2", marks=pytest.mark.slow)]
)
def test_every_mesh_drops_what_one_device_drops(text):
    tree = vectors.tree(budgets=(36, 24, 12), dropout=0.3, scan=True)
    c = resolve(tree)
    batch, weights = vectors.batch(c), vectors.weights(c)
    want, _ = loss_of(c)(weights, batch)
    axes = {axis: int(n) for axis, n in (part.split("=") for part in text.split(","))}
    tree.mesh.update(axes)
    c = resolve(tree)
    c = dataclasses.replace(c, data=dataclasses.replace(c.data, batch=2))
    with devices(math.prod(axes.values())):
        mesh = sharding.make_mesh(c)
    with jax.set_mesh(mesh):
        got, _ = loss_of(c)(weights, sharding.to_global(batch, c, mesh))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_microbatches_drop_what_the_whole_batch_drops_and_each_step_another_part():
    c = examples.make(dropout=0.3)
    halves = dataclasses.replace(c, optim=dataclasses.replace(c.optim, accumulate=2))
    batch, weights = examples.batch(spans=False), examples.weights(c)

    def loss(c, updates):
        now = State(weights, {}, {}, jnp.asarray(updates), {})
        return step.make_gradients(c, 2)(now, weights, {}, batch, losses.totals(batch, c))[0][0]

    whole = jax.jit(lambda: loss(c, 7))()
    np.testing.assert_allclose(jax.jit(lambda: loss(halves, 7))(), whole, rtol=1e-6)
    assert abs(jax.jit(lambda: loss(c, 8))() / whole - 1) > 1e-4


def test_without_its_key_nothing_is_dropped():
    """As in evaluation and in sampling."""
    plain, dropping = vectors.make(), vectors.make(dropout=0.3)
    batch, weights = vectors.batch(plain), vectors.weights(plain)
    (a, da), (b, db) = (loss_of(c, None)(weights, batch) for c in (plain, dropping))
    np.testing.assert_array_equal(a, b)
    jax.tree.map(np.testing.assert_array_equal, da, db)


def kept_of(c, batch, b):
    """The factors of row b, token by token: by layer and branch `[T, D]`, streams end to end."""
    rate = c.model.dropout
    tokens = jax.tree.map(lambda *x: np.concatenate([y[b] for y in x]), *batch.values())
    first = {s: tokens.position[tokens.segment == s].min() for s in np.unique(tokens.segment)}
    found = [{"attn": [], "ffn": []} for _ in range(c.model.layers)]
    for t in range(len(tokens.token)):
        key = KEY
        place = tokens.position[t] - first[tokens.segment[t]]
        for x in (tokens.source[t], tokens.doc_id[t], tokens.unit_seed[t], place):
            key = jax.random.fold_in(key, x)
        for layer, branches in enumerate(found):
            for i, branch in enumerate(branches.values()):
                own = jax.random.fold_in(jax.random.fold_in(key, layer), i)
                branch.append(jax.random.bernoulli(own, 1 - rate, (16,)) / (1 - rate))
    return [{name: jnp.stack(rows) for name, rows in branches.items()} for branches in found]


def test_the_model_drops_what_the_oracle_drops():
    c = examples.make("mot", (10, 8), dropout=0.4)
    batch, weights = examples.batch(rows=1, budgets=(10, 8), spans=False), examples.weights(c)
    flat = params.paths(weights)
    tokens = jax.tree.map(lambda *x: np.concatenate(x, 1)[0], *batch.values())
    real = (tokens.segment != 0)[:, None]
    m = c.model
    o = dict(layers=m.layers, eps=m.norm_eps, theta=m.rope_theta, norm=m.norm, qk_norm=m.qk_norm)
    o["kept"] = kept_of(c, batch, 0)
    names = ("token", "position", "segment", "span", "private")
    row = {name: getattr(tokens, name) for name in names}
    row |= {"stream": np.repeat([0, 1], (10, 8)), "rope_position": tokens.rope_position[:, 0]}
    towers = {x: getattr(c.towers, x) for x in ("attn", "ffn", "norm")}
    g = np.random.default_rng(0).standard_normal((len(real), 16)) * real

    def theirs(flat):
        return (reference.hidden(flat, row, towers, list(c.streams), o) * g).sum()

    def ours(weights):
        hidden = transformer.forward(weights, batch, c, dropout_key=KEY).hidden
        return (jnp.concatenate([h_RD for h_RD, _ in hidden]) * g).sum()

    want, want_grads = jax.jit(jax.value_and_grad(theirs))(flat)
    got, grads = jax.jit(jax.value_and_grad(ours))(weights)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-4)
    assert examples.leaf_error(params.paths(grads), want_grads) < 2e-5


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_all_or_less_than_nothing_cannot_be_dropped(rate):
    with pytest.raises(ConfigError, match=r"model\.dropout"):
        vectors.make(dropout=rate)
