"""Gradients of modalities: what is known of them beforehand, and against the whole loss's."""

import itertools

import jax
import numpy as np
import pytest

from configs import base
from mot.config import resolve
from mot.data.packing import document, pack
from mot.measures import gradients
from mot.model import joint, params, transformer
from mot.objectives import losses
from tests.support import examples, vectors


def gradients_of(c, batch, weights):
    """The gradient of each modality's part, by number, and that of the whole loss."""
    Z_M = losses.totals(batch, c)

    def loss(weights, batch):
        given = losses.noised(batch, c, 3)
        output = transformer.forward(weights, given.batch, c)
        return losses.loss(weights, output, given, Z_M, c, 2)[0]

    grad = jax.jit(jax.grad(loss))
    parts = [grad(weights, gradients.of_modality(batch, m, c)) for m in range(len(c.modalities))]
    return parts, grad(weights, batch)


@pytest.mark.parametrize("arch", ["dense", "mot", "moe_tc4", pytest.param("moe_ec4", marks=pytest.mark.slow), "flow"])
def test_modalities_gradients_add_up_to_that_of_the_whole_loss(arch):
    if arch == "flow":
        c = vectors.make("dense", attention="reference")
        batch, weights = vectors.batch(c), vectors.weights(c)
    else:
        c = examples.make(arch, attention="reference")
        batch, weights = examples.batch(rows=2, spans=False), examples.weights(c)
    parts, whole = gradients_of(c, batch, weights)
    total = jax.tree.map(lambda *x: sum(x), *parts)
    # Measured by the greatest of all: a leaf that both pull hardly at is a difference of great ones.
    most = max(np.abs(x).max() for x in jax.tree.leaves(whole))
    for path, x in params.paths(whole).items():
        np.testing.assert_allclose(params.paths(total)[path], x, rtol=1e-4, atol=2e-6 * most, err_msg=path)
    assert all(length(part) > 0 for part in parts)


def length(tree):
    return np.sqrt(sum(float((np.asarray(x) ** 2).sum()) for x in jax.tree.leaves(tree)))


def alike():
    """A dense model to which both modalities are the same, and a row with the same document in each of them."""
    tree = examples.tree("dense", (8, 8), attention="reference")
    c = resolve(tree)
    weights = examples.weights(c)
    half = weights["embed"]["tokens"][: examples.IDS]
    weights["embed"]["tokens"] = np.concatenate([half, half])
    half = weights["head"]["out"][:, : examples.IDS]
    weights["head"]["out"] = np.concatenate([half, half], axis=1)
    ids = np.random.default_rng(0).integers(0, examples.IDS, 7)
    row = [document(0, m, ids + m * examples.IDS, np.full(7, m)) for m in (0, 1)]
    return c, weights, pack([row], examples.STREAMS, (8, 8))


def test_modalities_that_are_the_same_to_a_model_have_cosine_1():
    c, weights, batch = alike()
    parts, _ = gradients_of(c, batch, weights)
    found = gradients.numbers(jax.device_get(gradients.products(parts, c)), c)
    for component, layer in itertools.product(("attn", "ffn", "norm"), ("0", "1", "all")):
        assert found[f"gradients/cosine/text/image/{component}/{layer}"] == pytest.approx(1, abs=1e-5)
        assert found[f"gradients/ratio/text/image/{component}/{layer}"] == pytest.approx(1, abs=1e-5)
    assert found["gradients/cosine/text/image/embed/ends"] < 0.1  # each has rows of its own


def planted(c, seed=0):
    """Random gradients of each modality, by number."""
    shapes = {path: spec.shape for path, spec in params.table(c).items()}
    rng = np.random.default_rng(seed)
    return [params.nest({p: rng.standard_normal(s).astype("f") for p, s in shapes.items()}) for _ in c.modalities]


def told(c, grads):
    return gradients.numbers(jax.device_get(gradients.products(grads, c)), c)


@pytest.mark.parametrize("arch", ["dense", "mot_ffn", "moe_tc4"])
def test_numbers_are_those_of_plain_loops(arch):
    tree = examples.tree(arch, layers=3)
    tree.model.dense_layers = int(arch == "moe_tc4")
    c = resolve(tree)
    grads = planted(c)
    found = told(c, grads)
    a, b = (params.paths(grad) for grad in grads)
    numbers = {"main": [], "sparse": []}
    for layer, stack in enumerate(c.stacks):
        numbers[stack].append(layer)
    for component, layer in [("attn", 0), ("attn", 2), ("norm", 1), ("ffn", 0), ("ffn", 2)]:
        own = [p for p in a if p.startswith("blocks") and p.split("/")[2] == component]
        own = [p for p in own if len(c.component(component).towers) == 1]
        pieces = [(p, numbers[p.split("/")[1]].index(layer)) for p in own if layer in numbers[p.split("/")[1]]]
        key = f"text/image/{component}/{layer}"
        if not pieces:
            assert f"gradients/cosine/{key}" not in found
            continue
        x, y = (np.concatenate([g[p][i].ravel() for p, i in pieces]).astype(np.float64) for g in (a, b))
        lengths = np.linalg.norm(x), np.linalg.norm(y)
        assert found[f"gradients/cosine/{key}"] == pytest.approx(x @ y / lengths[0] / lengths[1], abs=1e-6)
        assert found[f"gradients/ratio/{key}"] == pytest.approx(lengths[0] / lengths[1], rel=1e-6)


def test_opposite_gradients_have_cosine_minus_1_and_their_ratio():
    c = examples.make("dense")
    one = planted(c)[0]
    found = told(c, [one, jax.tree.map(lambda x: -2 * x, one)])
    assert found["gradients/cosine/text/image/all/all"] == pytest.approx(-1)
    assert found["gradients/ratio/text/image/all/all"] == pytest.approx(0.5)


def test_towers_of_one_modality_are_not_compared():
    found = told(examples.make("mot"), planted(examples.make("mot")))
    assert {name.split("/")[4] for name in found} == {"embed", "head", "all"}
    found = told(examples.make("mot_ffn"), planted(examples.make("mot_ffn")))
    assert {name.split("/")[4] for name in found} == {"attn", "norm", "embed", "head", "all"}


def test_where_one_has_no_gradient_there_is_no_number():
    c = examples.make("dense")
    a, b = planted(c)
    b["blocks"]["main"]["ffn"] = jax.tree.map(np.zeros_like, b["blocks"]["main"]["ffn"])
    found = told(c, [a, b])
    assert not [name for name in found if "/ffn/" in name]
    assert np.isfinite([*found.values()]).all()


def test_routers_own_losses_are_left_out_and_nothing_else():
    c = examples.make("moe_tc4")
    plain = gradients.without_routers(c)
    assert c.ffn["text"].balance == "loss"
    assert c.ffn["text"].balance_rate > 0
    assert (plain.ffn["text"].balance, plain.ffn["text"].balance_rate, plain.ffn["text"].z_loss) == ("none", 0, 0)
    assert params.table(plain) == params.table(c)


def test_a_contrastive_term_is_left_out_and_attention_knows_of_its_parts(monkeypatch):
    """They are segments amid others, which kernels that take intervals of keys must be told."""
    tree = examples.tree("dense", layers=1)
    tree.objective.contrastive = base.contrastive("infonce", width=0, pairs=2)
    c = resolve(tree)
    plain = gradients.without_routers(c)
    assert params.table(plain) == params.table(c)
    batch = examples.batch(rows=2, spans=False)
    told, attend = [], joint.attention.attend

    def listening(*arguments):
        *_, parts, _cap, _calls = arguments
        told.append(parts)
        return attend(*arguments)

    monkeypatch.setattr(joint.attention, "attend", listening)

    def sums(weights):
        output = transformer.forward(weights, batch, plain)
        return losses.loss(weights, output, losses.Noised(batch, {}, 0), losses.totals(batch, c), plain, 2)[1]

    found = jax.eval_shape(sums, vectors.weights(c))
    assert "contrastive" not in found
    assert told
    assert all(told)


def test_only_targets_of_the_modality_weigh():
    c, batch = examples.make("dense"), examples.batch(spans=False)
    parts = [jax.device_get(gradients.of_modality(batch, m, c)) for m in (0, 1)]
    for name, tokens in batch.items():
        total = sum(part[name].weight for part in parts)
        np.testing.assert_array_equal(total, tokens.weight)
        is_image = tokens.target >= examples.IDS  # an image's first id, predicted from text, is image loss
        assert not parts[0][name].weight[is_image].any()
        assert not parts[1][name].weight[~is_image].any()
    assert (parts[1]["text"].weight > 0).any()
