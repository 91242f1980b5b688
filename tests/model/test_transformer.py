import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import batches
from mot.model import params, transformer
from tests.oracles import reference
from tests.support import examples
from tests.support.arrays import copies, in_document_order, loss_of


def oracle_states(c, flat, batch):
    tokens = jax.tree.map(lambda *x: np.concatenate(x, 1), *batch.values())
    stream = np.repeat(np.arange(len(batch)), [t.token.shape[1] for t in batch.values()])
    m = c.model
    o = dict(layers=m.layers, eps=m.norm_eps, theta=m.rope_theta, norm=m.norm, qk_norm=m.qk_norm)
    o |= dict(activation=m.activation, offset=int(m.norm_offset), scaled=m.embed_scale)
    o |= dict(cap=m.attention_cap, query_size=m.query_size)
    towers = {x: getattr(c.towers, x) for x in ("attn", "ffn", "norm")}
    rows = []
    for b in range(tokens.token.shape[0]):
        fields = {f: np.asarray(getattr(tokens, f)[b]) for f in ("token", "position", "segment", "span", "private")}
        row = fields | {"stream": stream, "rope_position": tokens.rope_position[b, :, 0]}
        rows.append(reference.hidden(flat, row, towers, list(c.streams), o)[np.argsort(tokens.position[b])])
    return jnp.stack(rows)


@pytest.mark.parametrize(
    ("arch", "choices"),
    [
        ("dense", {}),
        pytest.param("mot", {}, marks=pytest.mark.slow),
        ("mot", {"norm": "post", "qk_norm": "layer"}),
        ("mot_ffn", {"qk_norm": "none", "attention": "reference"}),
        pytest.param("mot_attn_ffn", {"tied": True}, marks=pytest.mark.slow),
        ("loo_image", {"scan": True}),
        ("mot_ffn", {"qk_norm": "rms_flat"}),
        ("mot", {"norm": "both", "attention_cap": 0.7, "query_size": 3}),
        ("mot", {"activation": "geglu", "norm_offset": True, "embed_scale": True, "qkv_bias": True, "tied": True}),
    ],
)
def test_grouped_streams_equal_a_per_token_masked_select(arch, choices):
    c = examples.make(arch, **choices)
    batch, weights = examples.batch(rows=2), examples.weights(c)
    flat = params.paths(weights)
    real = np.sort(np.concatenate([t.segment for t in batch.values()], 1) == 0, axis=1)  # padding comes last
    g = np.where(real[..., None], 0, np.random.default_rng(0).standard_normal((*real.shape, 16))).astype("f")

    def ours(w):
        states = in_document_order(transformer.forward(w, batch, c).hidden)
        return (states * g).sum(), states

    def theirs(flat):
        states = oracle_states(c, flat, batch)
        return (states * g).sum(), states

    (got, states), got_grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(weights)
    (want, wanted), want_grads = jax.jit(jax.value_and_grad(theirs, has_aux=True))(flat)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-4)
    assert examples.leaf_error(params.paths(got_grads), want_grads) < 2e-5
    np.testing.assert_allclose(np.where(real[..., None], 0, states), np.where(real[..., None], 0, wanted), atol=2e-5)


def summed(grads):
    """Gradients of all copies, summed onto the dense paths."""
    total = {}
    for path, g in params.paths(grads).items():
        key = path.replace("/image/", "/text/")
        total[key] = total.get(key, 0) + g
    return total


def test_tied_towers_equal_dense_bit_for_bit():
    """Streams of equal small length: beyond, a matmul of half the rows may add up in another order."""
    budgets = (8, 8)
    dense, mot, batch = examples.make("dense", budgets), examples.make("mot", budgets), examples.batch(0, 2, budgets)
    weights = examples.weights(dense)
    tied = copies(weights, params.table(mot))

    def run(c):
        return jax.jit(lambda w: in_document_order(transformer.forward(w, batch, c).hidden))

    np.testing.assert_array_equal(run(mot)(tied), run(dense)(weights))


@pytest.mark.parametrize(
    ("arch", "budgets"),
    [
        ("mot", (40, 26)),
        ("loo_text", (24, 24)),
        ("loo_text", (40, 26)),
        ("loo_image", (24, 24)),
        ("loo_image", (40, 26)),
        pytest.param("mot", (24, 24), marks=pytest.mark.slow),
        pytest.param("mot_ffn", (24, 24), marks=pytest.mark.slow),
        pytest.param("mot_ffn", (40, 26), marks=pytest.mark.slow),
        pytest.param("mot_attn_ffn", (24, 24), marks=pytest.mark.slow),
        pytest.param("mot_attn_ffn", (40, 26), marks=pytest.mark.slow),
    ],
)
def test_tied_towers_equal_dense(arch, budgets):
    dense, split, batch = examples.make("dense", budgets), examples.make(arch, budgets), examples.batch(3, 4, budgets)
    weights = examples.weights(dense)
    tied = copies(weights, params.table(split))

    def run(c):
        return jax.jit(lambda w: in_document_order(transformer.forward(w, batch, c).hidden))

    np.testing.assert_allclose(run(split)(tied), run(dense)(weights), atol=1e-5)
    grads = summed(jax.jit(jax.grad(loss_of(split, batch)))(tied))
    assert examples.leaf_error(grads, params.paths(jax.jit(jax.grad(loss_of(dense, batch)))(weights))) < 1e-5


def without_images(batch):
    """The same rows where every image token is padding."""
    image = batch["image"]
    empty = jax.tree.map(np.zeros_like, image).replace(position=image.position)
    text = batch["text"]
    return {"text": text.replace(weight=np.where(text.target < examples.IDS, text.weight, 0)), "image": empty}


@pytest.mark.parametrize("arch", ["mot", pytest.param("mot_ffn", marks=pytest.mark.slow), "loo_image"])
def test_a_text_only_batch_gives_image_parameters_exactly_zero_gradient(arch):
    c = examples.make(arch)
    batch = without_images(examples.batch(spans=False))
    grads = params.paths(jax.jit(jax.grad(loss_of(c, batch)))(examples.weights(c)))
    image = {p: g for p, g in grads.items() if "/image/" in p}
    assert image
    for path, g in grads.items():
        assert np.isfinite(g).all(), path
        assert (np.asarray(g) == 0).all() == (path in image), path


def influence(c, weights, batch):
    """`[B, T, T]`: how much the logits of the token at position q change with the embedded input at position k."""
    tokens = batches.merge(batch, list(c.streams), c, batches.length(batch)).tokens
    B, T = tokens.token.shape

    # Every token gets an id of its own, so that the embedding's rows are the inputs.
    ids = np.arange(B * T).reshape(B, T)

    def relabel(t, position=tokens.position):
        return t.replace(token=np.take_along_axis(ids, np.asarray(t.position), axis=1))

    table = weights["embed"]["tokens"][np.asarray(tokens.token).reshape(-1)]
    relabelled = {name: relabel(t) for name, t in batch.items()}

    def out(table, q):
        states = in_document_order(transformer.forward(weights | {"embed": {"tokens": table}}, relabelled, c).hidden)
        return (states[0, q] * (1 + jnp.arange(states.shape[-1]))).sum()

    # Row by row: XLA's CPU compiler (jaxlib 0.10.2) gets the vmapped gradient of a norm, as jacrev asks for it, wrong.
    row = jax.jit(jax.grad(out))
    return np.stack([np.abs(np.asarray(row(table, q))).sum(-1)[:T] for q in range(T)]), tokens


@pytest.mark.parametrize("arch", ["dense", "mot"])
def test_influence_through_the_whole_model_is_exactly_what_is_visible(arch):
    """Through several layers: q feels k if a chain of visible pairs leads from one to the other."""
    c = examples.make(arch)
    found, tokens = influence(c, examples.weights(c), examples.batch(seed=1, rows=1))
    see = reference.visible(*(np.asarray(x[0]) for x in tokens.info))
    real = np.asarray(tokens.segment[0]) != 0
    chain = (see | np.eye(len(see), dtype=bool)).astype(int)
    reach = (chain @ chain > 0) & real[:, None] & real[None]
    found = found * real[:, None] * real[None]
    assert ((found > 0) == reach).all()
    assert not reach[np.triu_indices(len(reach), 1)].all()


def test_nan_in_padded_inputs_changes_nothing():
    """FAULTS 11: in what every padded token enters the model as."""
    c, batch = examples.make("mot"), examples.batch()
    weights = examples.weights(c)
    row = c.vocab - 1  # an id that only padding has

    def used(t):
        return t.replace(token=np.where(t.segment == 0, row, np.where(t.token == row, row - 1, t.token)))

    batch = {name: used(t) for name, t in batch.items()}
    batch = {n: t.replace(target=np.where(t.target == row, row - 1, t.target)) for n, t in batch.items()}
    assert any((t.segment == 0).any() for t in batch.values())
    poisoned = jax.tree.map(lambda x: x, weights)
    poisoned["embed"]["tokens"] = weights["embed"]["tokens"].at[row].set(jnp.nan)
    step = jax.jit(jax.value_and_grad(loss_of(c, batch)))
    (a, da), (b, db) = step(weights), step(poisoned)
    np.testing.assert_array_equal(a, b)
    jax.tree.map(np.testing.assert_array_equal, da, db)


def test_scan_equals_unrolled():
    batch, weights = examples.batch(), examples.weights(examples.make("mot"))

    def run(**choices):
        return jax.jit(jax.value_and_grad(loss_of(examples.make("mot", **choices), batch)))(weights)

    (a, da), (b, db) = run(scan=True), run(scan=False)
    np.testing.assert_array_equal(a, b)
    assert examples.leaf_error(da, db) < 1e-6


@functools.cache
def rematerialised(how, scan):
    """The compiled gradient."""
    c = examples.make("mot", remat=how, scan=scan)
    return jax.jit(jax.grad(loss_of(c, examples.batch()))).lower(examples.weights(c)).compile()


@pytest.mark.parametrize(
    ("remat", "scan"),
    [
        ("dots", True),
        ("offload", True),
        pytest.param("block", True, marks=pytest.mark.slow),
        pytest.param("dots", False, marks=pytest.mark.slow),
        pytest.param("block", False, marks=pytest.mark.slow),
        pytest.param("offload", False, marks=pytest.mark.slow),
    ],
)
def test_rematerialisation_saves_memory_and_changes_nothing(remat, scan):
    weights = examples.weights(examples.make("mot"))
    plain, saving = rematerialised("none", scan), rematerialised(remat, scan)
    assert examples.leaf_error(saving(weights), plain(weights)) < 1e-6
    if scan:  # where layers are unrolled at this size, XLA undoes it as common subexpressions

        def size(x):
            return x.memory_analysis().temp_size_in_bytes

        assert size(saving) < size(plain)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_gradients():
    batch, weights = examples.batch(), examples.weights(examples.make("mot"))

    def run(dtype):
        return jax.jit(jax.value_and_grad(loss_of(examples.make("mot", dtype=dtype), batch)))(weights)

    (a, da), (b, _) = run("bfloat16"), run("float32")
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(da))
    np.testing.assert_allclose(a, b, rtol=0.02)
    hidden, _ = transformer.forward(weights, batch, examples.make("mot", dtype="bfloat16")).hidden[0]
    assert hidden.dtype == jnp.bfloat16


def test_streams_that_share_every_map_travel_merged():
    assert transformer.alike(examples.make("dense")) == [("text", "image")]
    assert transformer.alike(examples.make("mot")) == [("text",), ("image",)]
    assert transformer.alike(examples.make("mot_ffn")) == [("text",), ("image",)]


def test_merged_streams_know_their_document_order_and_the_way_back():
    c, batch = examples.make("dense"), examples.batch(spans=False)
    T = batches.length(batch)
    group = transformer.merge(batch, ("text", "image"), c, T)
    position_BC = np.concatenate([batch[s].position for s in group.streams], axis=1)
    np.testing.assert_array_equal(np.take_along_axis(position_BC, np.asarray(group.order), axis=1)[0], np.arange(T))
    np.testing.assert_array_equal(
        np.take_along_axis(np.asarray(group.tokens.position), group.back, axis=1), position_BC
    )
    own = np.concatenate([np.full(batch[s].token.shape, m) for m, s in enumerate(group.streams)], axis=1)
    real = group.tokens.segment != 0
    np.testing.assert_array_equal(group.modality[real], np.take_along_axis(own, group.order, axis=1)[real])
    alone = transformer.merge(batch, ("text",), c, T)
    assert alone.order is None
    np.testing.assert_array_equal(alone.tokens.token, batch["text"].token)
