import dataclasses

import jax
import numpy as np
import pytest

from mot import batches
from mot.model import flops, params, transformer
from mot.objectives import losses, next_token
from mot.plan import hlo
from tests.support import examples, vectors


@pytest.mark.parametrize(
    ("arch", "choices"), [("dense", {}), ("mot", {"tied": True}), ("loo_text", {"qk_norm": "none"})]
)
def test_counted_flops_equal_the_compilers(arch, choices):
    """An unrolled model whose attention makes the whole matrix and whose loss is one chunk: all pairs are computed."""
    c = examples.make(arch, **choices, attention="reference")
    c = dataclasses.replace(c, objective=dataclasses.replace(c.objective, z_loss=1e-4, chunk=4 * 48))
    batch = examples.batch()

    def loss(weights):
        hidden = transformer.forward(weights, batch, c).hidden
        return next_token.loss(hidden, transformer.head(weights, c), losses.totals(batch, c), c, 2)[0]

    shapes = jax.eval_shape(lambda: params.init(params.table(c), 0))
    text = jax.jit(jax.grad(loss)).lower(shapes).compile().as_text()
    B, T = 4, 48
    counted = flops.train_step(c, {"text": B * 24, "image": B * 24}, B * T * T)
    assert abs(hlo.read(text).flops / counted - 1) < 0.02


def test_visible_pairs_equal_the_mask():
    for seed in range(5):
        batch = examples.batch(seed)
        info = jax.tree.map(lambda *x: np.concatenate(x, 1), *(t.info for t in batch.values()))
        assert flops.visible_pairs(batch) == batches.visible(info, info).sum()


def test_only_sizes_differ_not_the_cost_of_a_token():
    def one(arch):
        return flops.train_step(examples.make(arch), {"text": 5, "image": 7}, 100)

    assert one("dense") == one("mot") == one("mot_ffn")


def compiled_and_counted(arch, width=16, **choices):
    """FLOPs of a step of text, images and sounds: of the compiled program, and as counted.

    The gradient of vectors that enter is not asked for, so their way in has two matmuls of three; the time's too, but
    beside vectors.
    """
    c = vectors.make(arch, width, attention="reference", layers=1, dispatch="einsum", **choices)
    c = dataclasses.replace(c, objective=dataclasses.replace(c.objective, chunk=2 * c.streams["text"].budget))
    batch = vectors.batch(c)

    def loss(weights):
        output = transformer.forward(weights, batch, c)
        given = losses.Noised(batch, {name: tokens.value for name, tokens in batch.items()}, 0)
        return losses.loss(weights, output, given, losses.totals(batch, c), c, 2)[0]

    shapes = jax.eval_shape(lambda: params.init(params.table(c), 0))
    quick = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)
    text = jax.jit(jax.grad(loss), compiler_options=quick).lower(shapes).compile().as_text()
    tokens = {name: t.token.size for name, t in batch.items()}
    table = {p: np.prod(spec.shape) for p, spec in params.table(c).items()}
    beside = {n for n, s in c.streams.items() if s.diffuses and s.diffusion.time == "mlp"}
    ways = [(n, w) for n in ("image", "sound") for w in ("in", "time_in") if w == "in" or n not in beside]
    entering = sum(2 * tokens[n] * table[f"latent/{n}/{w}"] for n, w in ways)
    return hlo.read(text).flops, flops.train_step(c, tokens, 2 * c.length**2) - entering


UNROUTED = ("dense", "mot", "mot_ffn", "mot_attn_ffn", "loo_text", "loo_image", "loo_sound")


@pytest.mark.parametrize(("arch", "width"), [*((arch, 16) for arch in UNROUTED), ("mot", 12)])
def test_counted_flops_of_vectors_equal_the_compilers(arch, width):
    """Norms that text shares with images modulate images alone, whatever else the two share."""
    compiled, counted = compiled_and_counted(arch, width)
    assert compiled == counted


def test_counted_flops_of_levels_beside_vectors_equal_the_compilers():
    compiled, counted = compiled_and_counted("mot", 12, image=dict(time="mlp"))
    assert compiled == counted


@pytest.mark.parametrize("arch", ["moe_ec4", "moe_tc4", "moe_fine", "learned_mot", "mot_moe", "mot_moe_both"])
def test_counted_flops_of_vectors_and_experts_differ_from_the_compilers_by_dispatch_alone(arch):
    """What multiplying every row by every expert costs does not depend on how the noise level enters."""
    by_norm, added = (compiled_and_counted(arch, image={"time": time}) for time in ("norm", "add"))
    assert by_norm[1] != added[1]
    assert by_norm[0] - by_norm[1] == added[0] - added[1]


def test_shared_norms_cost_every_architecture_alike():
    """Text beside images by flow: none of dense's tokens meets a matrix that MoT's do not."""
    steps = {arch: flops.train_step(vectors.make(arch), {"text": 50, "image": 20, "sound": 9}, 99) for arch in UNROUTED}
    assert len(set(steps.values())) == 1, steps


def test_parameters_of_vectors_are_those_of_the_tree():
    c = vectors.make("mot", 12)
    tree = jax.eval_shape(lambda: params.init(params.table(c), 0))
    assert params.count(params.table(c)) == sum(x.size for x in jax.tree.leaves(tree)) == flops.total_parameters(c)
    active, paths = flops.active_parameters(c), params.paths(tree)

    def own(stream):
        return sum(x.size for p, x in paths.items() if f"/{stream}/" in p)

    ids = sum(paths[p].size for p in ("embed/tokens", "head/out"))
    assert active == {"text": own("text") + ids, "image": own("image"), "sound": own("sound")}


def test_visible_pairs_of_copies_and_of_units_alone_equal_the_mask():
    c = vectors.make()
    batch = vectors.batch(c)
    info = jax.tree.map(lambda *x: np.concatenate(x, 1), *(t.info for t in batch.values()))
    assert flops.visible_pairs(batch) == batches.visible(info, info).sum()
