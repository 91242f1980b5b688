import jax
import numpy as np
import pytest

from mot import attention, flops, model, objectives, params
from tests import examples, hlo


@pytest.mark.parametrize(
    ("arch", "choices"), [("dense", {}), ("mot", {"tied": True}), ("loo_text", {"qk_norm": "none"})]
)
def test_counted_flops_equal_the_compilers(arch, choices):
    """An unrolled model whose attention makes the whole matrix and whose loss is one chunk: all pairs are computed."""
    c = examples.make(arch, **choices, attention="reference")
    c = examples.config.dataclasses.replace(c, objective=examples.config.Objective(1e-4, "all", chunk=48))
    batch = examples.batch()

    def loss(weights):
        hidden = model.forward(weights, batch, c).hidden
        return objectives.next_token(hidden, model.head(weights, c), objectives.totals(batch, c), c, 2)[0]

    shapes = jax.eval_shape(lambda: params.init(params.table(c), 0))
    text = jax.jit(jax.grad(loss)).lower(shapes).compile().as_text()
    B, T = 4, 48
    counted = flops.train_step(c, {"text": B * 24, "image": B * 24}, B * T * T)
    assert abs(hlo.dots(text) / counted - 1) < 0.02


def test_visible_pairs_equal_the_mask():
    for seed in range(5):
        batch = examples.batch(seed)
        info = jax.tree.map(lambda *x: np.concatenate(x, 1), *(t.info for t in batch.values()))
        assert flops.visible_pairs(batch) == attention.visible(info, info).sum()


def test_only_sizes_differ_not_the_cost_of_a_token():
    one = lambda arch: flops.train_step(examples.make(arch), {"text": 5, "image": 7}, 100)
    assert one("dense") == one("mot") == one("mot_ffn")
