import dataclasses

import jax
import numpy as np
import pytest

from mot import attention, flops, model, objectives, params
from scaling import hlo
from tests import examples, vectors


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
    assert abs(hlo.read(text).flops / counted - 1) < 0.02


def test_visible_pairs_equal_the_mask():
    for seed in range(5):
        batch = examples.batch(seed)
        info = jax.tree.map(lambda *x: np.concatenate(x, 1), *(t.info for t in batch.values()))
        assert flops.visible_pairs(batch) == attention.visible(info, info).sum()


def test_only_sizes_differ_not_the_cost_of_a_token():
    one = lambda arch: flops.train_step(examples.make(arch), {"text": 5, "image": 7}, 100)
    assert one("dense") == one("mot") == one("mot_ffn")


@pytest.mark.parametrize(("arch", "width"), [("dense", 16), ("mot", 12)])
def test_counted_flops_of_vectors_equal_the_compilers(arch, width):
    """The gradient of vectors that enter is not asked for, so their way in has two matmuls of three; the time's too."""
    c = vectors.make(arch, width, attention="reference", layers=1)
    c = dataclasses.replace(c, objective=dataclasses.replace(c.objective, chunk=c.streams["text"].budget))
    batch = vectors.batch(c)

    def loss(weights):
        output, given = (
            model.forward(weights, batch, c),
            objectives.Noised(batch, {n: t.value for n, t in batch.items()}),
        )
        return objectives.loss(weights, output, given, objectives.totals(batch, c), c, 2)[0]

    shapes = jax.eval_shape(lambda: params.init(params.table(c), 0))
    quick = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)
    text = jax.jit(jax.grad(loss), compiler_options=quick).lower(shapes).compile().as_text()
    tokens = {name: t.token.size for name, t in batch.items()}
    counted = flops.train_step(c, tokens, 2 * c.length**2)
    table = {p: np.prod(spec.shape) for p, spec in params.table(c).items()}
    entering = sum(2 * tokens[n] * table[f"latent/{n}/{w}"] for n in ("image", "sound") for w in ("in", "time_in"))
    assert abs(hlo.read(text).flops / (counted - entering) - 1) < 0.02


def test_parameters_of_vectors_are_those_of_the_tree():
    c = vectors.make("mot", 12)
    tree = jax.eval_shape(lambda: params.init(params.table(c), 0))
    assert params.count(params.table(c)) == sum(x.size for x in jax.tree.leaves(tree)) == flops.total_parameters(c)
    active, paths = flops.active_parameters(c), params.paths(tree)
    own = lambda stream: sum(x.size for p, x in paths.items() if f"/{stream}/" in p)
    ids = sum(paths[p].size for p in ("embed/tokens", "head/out"))
    assert active == {"text": own("text") + ids, "image": own("image"), "sound": own("sound")}


def test_visible_pairs_of_copies_and_of_units_alone_equal_the_mask():
    c = vectors.make()
    batch = vectors.batch(c)
    info = jax.tree.map(lambda *x: np.concatenate(x, 1), *(t.info for t in batch.values()))
    assert flops.visible_pairs(batch) == attention.visible(info, info).sum()
