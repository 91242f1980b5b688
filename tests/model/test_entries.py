"""How vectors enter: each entry against the oracle, on meshes, counted; and what a configuration may ask for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot.config import ConfigError, resolve
from mot.data import folding
from mot.model import entries, flops, params, transformer
from mot.objectives import losses
from mot.plan import hlo
from tests.oracles import reference
from tests.support import examples, vectors
from tests.support.devices import same_on_meshes

ENTRIES = {
    "linear": dict(fold=2),
    "mlp": dict(kind="mlp", fold=2),
    "biased": dict(bias=True, fold=2),
    "resampler": dict(kind="resampler", fold=2, queries=2, layers=2),
}


def tree(entry, arch="mot", budgets=(36, 12, 9), **model):
    """Images of four vectors are inputs, in tokens of two."""
    c = vectors.tree(arch, budgets=budgets, **model)
    c.streams.image.update(objective="none", max_tokens=12)
    c.streams.image.entry.update(ENTRIES[entry])
    return c


def batch(c, rows=2):
    def d(i, parts):
        return vectors.assign(c, folding.document(vectors.document(i, parts, i % 2), folding.of(c)))

    packed = [[d(0, "tIt"), d(1, "IIt")], [d(2, "t"), d(3, "tI")]][:rows]
    return vectors.pack(c, packed)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_equals_the_oracle(entry):
    c = resolve(tree(entry))
    tokens = batch(c)["image"]
    w = vectors.weights(c)
    g = (
        np.random.default_rng(0).standard_normal((*tokens.token.shape, 16)).astype("f")
        * (tokens.segment != 0)[..., None]
    )
    o = dict(eps=c.model.norm_eps, theta=c.model.rope_theta)

    def ours(w):
        x_RD = entries.enter(w["latent"]["image"], tokens, c.streams["image"], c)
        return (x_RD.reshape(g.shape) * g).sum()

    def theirs(flat):
        rows = [reference.entry(flat, "image", *row, o) for row in zip(tokens.value, tokens.unit, strict=True)]
        return (jnp.stack(rows) * g).sum()

    got, grads = jax.jit(jax.value_and_grad(ours))(w)
    want, want_grads = jax.jit(jax.value_and_grad(theirs))(params.paths(w))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    mine = {path: x for path, x in params.paths(grads).items() if path.startswith("latent/image")}
    assert examples.leaf_error(mine, {path: want_grads[path] for path in mine}) < 2e-5


def loss_of(c):
    def loss(weights, batch):
        given = losses.noised(batch, c, 3)
        output = transformer.forward(weights, given.batch, c)
        return losses.loss(weights, output, given, losses.totals(batch, c), c, 2)[0]

    return jax.value_and_grad(loss)


@pytest.mark.parametrize(("entry", "arch"), [("mlp", "dense"), ("resampler", "mot")])
def test_every_mesh_gives_one_devices_gradients(entry, arch):
    c = tree(entry, arch, budgets=(36, 12, 12), scan=True)
    c.data.batch = 2
    one = resolve(c)
    rows, w = batch(one), vectors.weights(one)
    same_on_meshes(c, loss_of, rows, w, (dict(context=2, tensor=2), dict(fsdp=2)))


@pytest.mark.parametrize("entry", ["mlp", "resampler"])
def test_what_padding_holds_changes_nothing(entry):
    c = resolve(tree(entry))
    rows, w = batch(c), vectors.weights(c)
    image = rows["image"]
    value = np.where((image.segment != 0)[..., None], image.value, np.nan)
    poisoned = rows | {"image": image.replace(value=value.astype("f"))}
    step = jax.jit(loss_of(c))
    (a, da), (b, db) = step(w, rows), step(w, poisoned)
    np.testing.assert_array_equal(a, b)
    jax.tree.map(np.testing.assert_array_equal, da, db)


def test_vectors_as_wide_as_a_token_enter_as_they_are():
    c = tree("linear")
    c.streams.image.update(latent=8, width=16)
    c.streams.image.entry.update(kind="none")
    c = resolve(c)
    assert not [path for path in params.table(c) if path.startswith("latent/image")]
    value = np.random.default_rng(0).standard_normal((2, 12, 16)).astype("f")
    tokens = batch(resolve(tree("linear")))["image"].replace(value=value)
    got = entries.enter(entries.of({}, "image"), tokens, c.streams["image"], c)
    np.testing.assert_array_equal(got, np.where((tokens.segment != 0)[..., None], value, 0).reshape(-1, 16))


@pytest.mark.parametrize("entry", ENTRIES)
def test_counted_flops_of_an_entry_equal_the_compilers(entry):
    """Attention makes the whole matrix, and the gradient of the vectors is not asked for."""
    c = resolve(tree(entry, attention="reference"))
    tokens, stream = batch(c)["image"], c.streams["image"]

    def enters(w):
        return (entries.enter(w, tokens, stream, c) ** 2).sum()

    w = vectors.weights(c)["latent"]["image"]
    quick = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)
    text = jax.jit(jax.grad(enters), compiler_options=quick).lower(w).compile().as_text()
    m, n, R = c.model, tokens.token.size, stream.entry.fold
    vectors_in = n * stream.entry.fold if entry == "resampler" else n
    not_asked = 2 * vectors_in * w["in"].size
    counted = 3 * 2 * n * entry_weights(c) - not_asked
    if entry == "resampler":  # of a row all pairs, where two queries' tokens and their vectors are counted
        C = tokens.token.shape[1]
        counted += 3 * 4 * n * stream.entry.layers * m.heads * m.head_size * (R + 1) * (C - stream.entry.queries)
    assert hlo.read(text).flops == counted


def entry_weights(c):
    """Of `matmul_weights`, what is not of the layers."""
    blocks = {p: math.prod(s.shape) for p, s in params.table(c).items() if p.startswith("blocks/") and "/image/" in p}
    return flops.matmul_weights(c)["image"] - sum(n for p, n in blocks.items() if "norm" not in p)


@pytest.mark.parametrize(
    ("entry", "changes", "says"),
    [
        ("resampler", {"queries": 0}, r"image\.entry\.queries, layers: 0, 2, but .* each must be above 0"),
        ("mlp", {"layers": 3}, r"0, 3, but streams\.image\.entry\.kind is 'mlp'; write 0, 0"),
        ("mlp", {"fold": 0}, r"streams\.image\.entry\.fold: 0; must be above 0"),
        ("mlp", {"bias": True}, r"streams\.image\.entry\.bias: True, but .* is 'mlp'; .* write False"),
        ("mlp", {"kind": "conv"}, r"streams\.image\.entry\.kind: 'conv'; allowed: linear, none, mlp, resampler"),
        ("linear", {"kind": "none"}, r"kind: 'none', but a token carries 6 numbers, and streams\.image\.width is 16"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(entry, changes, says):
    c = tree(entry)
    c.streams.image.entry.update(changes)
    with pytest.raises(ConfigError, match=says):
        resolve(c)


def test_what_is_predicted_is_not_resampled():
    c = tree("resampler")
    c.streams.image.objective = "flow"
    with pytest.raises(
        ConfigError, match=r"streams\.image\.entry: kind 'resampler', fold 2, .* write objective='none'"
    ):
        resolve(c)
