import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import batches, sharding
from mot.config import resolve
from mot.model import transformer
from mot.objectives import losses, next_token
from mot.objectives.cross_entropy import Rules, cross_entropy
from tests.oracles import reference
from tests.support import examples


def example(T=23, B=2, D=8, V=19, dtype=jnp.float32):
    a, b, c, d = jax.random.split(jax.random.key(0), 4)
    scale = jax.random.uniform(d, (B, T)) * (jax.random.uniform(c, (B, T)) < 0.7)
    h = jax.random.normal(a, (B, T, D)).astype(dtype)
    return h, jax.random.normal(b, (D, V)), jax.random.randint(c, (B, T), 0, V), scale


@pytest.mark.parametrize(("chunk", "cap"), [(1, 0.0), (10, 0.0), (16, 0.0), (16, 1.5), (46, 0.0), (200, 0.0)])
def test_chunked_loss_equals_unchunked_also_with_a_tail(chunk, cap):
    h, head, target, scale = example()

    def ours(h, head):
        return cross_entropy(h, head, target, scale, 1e-2, chunk, Rules(), cap)

    def theirs(h, head):
        return reference.cross_entropy(h, head, target, scale, 1e-2, cap)

    (got, got_nats), got_grads = jax.value_and_grad(ours, (0, 1), has_aux=True)(h, head)
    (want, want_nats), want_grads = jax.value_and_grad(theirs, (0, 1), has_aux=True)(h, head)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(got_nats, want_nats, atol=1e-5)
    np.testing.assert_allclose(ours(h, head)[0], want, rtol=1e-6)  # without a gradient it is another path
    assert examples.leaf_error(got_grads, want_grads) < 1e-5


def test_devices_with_the_same_rows_do_not_multiply_the_heads_gradient():
    """As where `mesh.rules` have its width along an axis that splits no rows."""
    h, head, target, scale = example()
    rules = Rules(batch="data", length="", embed="fsdp", vocab="")
    tree = examples.tree("mot")
    tree.mesh.fsdp = 2

    def loss(h, head):
        return cross_entropy(h, head, target, scale, 1e-2, 16, rules)[0]

    want = jax.value_and_grad(loss, (0, 1))(h, head)
    with jax.set_mesh(sharding.make_mesh(resolve(tree), jax.devices()[:2])):
        got = jax.jit(jax.value_and_grad(loss, (0, 1)))(h, head)
    assert examples.leaf_error(got, want) < 1e-6


def test_the_likeliest_id_is_that_of_the_logits_in_bfloat16_too():
    """What is scored as greedy is what generation would take: logits of a head in the model's dtype."""
    c = examples.make("mot", dtype="bfloat16")
    h_RD = jax.random.normal(jax.random.key(0), (4096, 64)).astype(jnp.bfloat16)
    head_DV = jax.random.normal(jax.random.key(1), (64, 1024)) / 8
    tokens = examples.batch()["text"].replace(token=jnp.zeros((4, 1024), jnp.int32))
    found_BT = next_token.likeliest([(h_RD, tokens)], head_DV, c)
    np.testing.assert_array_equal(found_BT.reshape(-1), jnp.argmax(transformer.logits(h_RD, head_DV, c), -1))


def test_logits_never_exist_at_once():
    B, T, D, V = 2, 512, 16, 4096
    shapes = [
        jax.ShapeDtypeStruct(s, d) for s, d in (((B, T, D), "f4"), ((D, V), "f4"), ((B, T), "i4"), ((B, T), "f4"))
    ]
    f = jax.grad(lambda h, w, t, s: cross_entropy(h, w, t, s, 0.0, B * 32, Rules())[0], (0, 1))
    text = jax.jit(f).lower(*shapes).compile().as_text()
    assert f"f32[{B * 32},{V}]" in text
    assert f"f32[{B * T},{V}]" not in text
    assert f"f32[{B},{T},{V}]" not in text


def test_chunks_are_alike_so_that_little_is_padded():
    """Of 640 tokens a row three chunks of 216, and not of 256."""
    h, head, target, scale = example(T=640)
    text = jax.jit(lambda h: cross_entropy(h, head, target, scale, 0.0, 512, Rules())[0]).lower(h).as_text()
    assert "tensor<432x19xf32>" in text
    assert "tensor<512x19xf32>" not in text


def test_nan_where_the_weight_is_zero_changes_nothing():
    h, head, target, scale = example()
    poisoned = jnp.where(scale[..., None] > 0, h, jnp.nan)

    # The model never yields NaN there (it enters padding as 0), but masking must not rely on a product with 0.
    def f(h):
        return cross_entropy(h, head, target, scale, 1e-2, 16, Rules())[0]

    np.testing.assert_array_equal(f(poisoned), f(h))


@pytest.mark.parametrize("per", ["all", "modality"])
def test_loss_is_booked_on_the_targets_modality_and_the_documents_source(per):
    tree = examples.tree("mot")
    tree.objective.per = per
    tree.streams.image.loss_weight = 5.0
    tree.objective.z_loss = 0.0
    c, batch = resolve(tree), examples.batch(spans=False)
    weights = examples.weights(c)
    hidden, head = transformer.forward(weights, batch, c).hidden, transformer.head(weights, c)
    total, sums = next_token.loss(hidden, head, losses.totals(batch, c), c, 2)
    nats, weight = np.zeros((2, 2)), np.zeros((2, 2))
    for h_RD, tokens in hidden:
        flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1), tokens.replace(rope_position=tokens.token))
        for i in np.flatnonzero(flat.weight):
            logits = np.asarray(h_RD[i] @ head, np.float64)
            l = np.log(np.exp(logits).sum()) - logits[flat.target[i]]
            m, s = int(flat.target[i] >= examples.IDS), flat.source[i]
            nats[m, s] += l
            weight[m, s] += 1
    np.testing.assert_allclose(sums["loss_sum"], nats, rtol=1e-5)
    np.testing.assert_array_equal(sums["weight"], weight)
    z = weight.sum((0, 1)) if per == "all" else weight.sum(1)
    np.testing.assert_allclose(total, (np.array([1, 5]) * nats.sum(1) / z).sum(), rtol=1e-5)


def test_an_absent_modality_gives_zero_and_stays_finite():
    """FAULTS 9: the loss and its sums; `tests/train/test_guard.py` has the gradients."""
    tree = examples.tree("mot")
    tree.objective.per = "modality"
    c, batch = resolve(tree), examples.batch(spans=False)
    only_text = {n: t.replace(weight=np.where(t.target < examples.IDS, t.weight, 0)) for n, t in batch.items()}
    weights = examples.weights(c)

    def loss(weights):
        hidden = transformer.forward(weights, only_text, c).hidden
        return next_token.loss(hidden, transformer.head(weights, c), losses.totals(only_text, c), c, 2)

    (total, sums), grads = jax.value_and_grad(loss, has_aux=True)(weights)
    assert np.isfinite(total)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert (np.asarray(sums["weight"])[1] == 0).all()
    np.testing.assert_array_equal(losses.totals(only_text, c)[1], 0)


def test_modality_of_ids():
    c = examples.make()
    np.testing.assert_array_equal(batches.modality_of_ids(jnp.array([0, 11, 12, 23]), c), [0, 0, 1, 1])


def test_ids_of_a_range_inside_another_are_of_the_inner_stream():
    tree = examples.tree()
    tree.streams.image.update(first_id=4, ids=5)
    c = resolve(tree)
    assert c.vocab == 12
    is_image = np.isin(np.arange(12), range(4, 9))
    np.testing.assert_array_equal(batches.modality_of_ids(jnp.arange(12), c), is_image)
    np.testing.assert_array_equal(batches.ids_of("image", c), is_image)
    np.testing.assert_array_equal(batches.ids_of("text", c), ~is_image)
