"""How modalities share experts, where it is known, and from a model's routers."""

import jax
import numpy as np
import pytest

from mot.config import resolve
from mot.measures import experts, states
from tests.support import examples


def test_experts_of_one_modality_each_overlap_nowhere():
    assert experts.overlap(np.array([5.0, 5, 0, 0]), np.array([0, 0, 1.0, 9])) == 0
    assert experts.overlap(np.array([4.0, 4]), np.array([1.0, 1])) == 1
    assert experts.overlap(np.array([3.0, 1]), np.array([1.0, 3])) == pytest.approx(0.5)


def test_shares_are_of_experts_and_not_of_tokens():
    """Half of the experts are each modality's, though one has nine times the tokens."""
    load = np.array([[45.0, 45, 0, 0], [0, 0, 5, 5]])
    assert experts.shares(np.array([90.0, 10]), load).tolist() == [0.5, 0.5]
    load = np.array([[30.0, 30, 30, 0], [0, 0, 0, 10]])
    assert experts.shares(np.array([90.0, 10]), load).tolist() == [0.75, 0.25]


def test_even_use_shares_evenly_whatever_the_tokens_and_whoever_is_idle():
    load = np.array([[30.0, 30, 30, 0], [2, 2, 2, 0], [7, 7, 7, 0]])
    np.testing.assert_allclose(experts.shares(load.sum(1), load), 1 / 3)


def test_how_many_experts_are_used():
    assert experts.used(np.array([5.0, 5, 0, 0])) == pytest.approx(2)
    assert experts.used(np.array([0.0, 9])) == pytest.approx(1)


def told(c, batch):
    weights = examples.weights(c)
    return experts.numbers(
        jax.device_get(jax.jit(lambda w: states.look(w, batch, c, {"it": experts.watch})["it"])(weights)), c
    )


def test_a_shared_tower_is_measured_in_the_layers_that_have_experts():
    tree = examples.tree("moe_tc4", layers=3)
    tree.model.dense_layers = 1
    c, batch = resolve(tree), examples.batch(rows=2)
    found, arrays = told(c, batch)
    assert {name.rpartition("/")[2] for name in found} == {"1", "2"}
    real = [int((tokens.segment != 0).sum()) for tokens in batch.values()]
    np.testing.assert_array_equal(arrays["ffn/text/tokens_LM"], [real, real])
    np.testing.assert_array_equal(arrays["ffn/text/load_LME"].sum(-1), c.ffn["text"].active * np.array([real, real]))
    both = [found[f"experts/ffn/text/share/{m}/1"] for m in examples.STREAMS]
    assert sum(both) == pytest.approx(1)
    assert 0 < found["experts/ffn/text/overlap/1"] <= 1


def test_a_tower_of_one_modality_says_how_many_it_uses_and_no_more():
    found, _ = told(examples.make("mot_moe"), examples.batch(rows=2))
    assert found
    assert all("/used/" in name for name in found)
