"""Deeper and wider models from trained ones: what the published rules say, and what they cannot make."""

import jax
import numpy as np
import pytest

from mot.config import resolve
from mot.errors import UserError
from mot.interop import prompt
from mot.model import params
from mot.train import growth, upcycle
from tests.support import examples

IDS = np.arange(6, dtype=np.int32)


def source(**model):
    """Trained, as far as a test can tell: no scale is 1, no bias 0."""
    config = resolve(examples.tree("dense", **model))
    rng = np.random.default_rng(0)
    flat = params.paths(jax.jit(lambda: params.init(params.table(config), 0))())
    noisy = {path: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for path, x in flat.items()}
    return config, params.nest(noisy)


def target(arch="dense", init=(), widths=1, **model):
    tree = examples.tree(arch, **model)
    tree.init.update(run="runs/source", **dict(init))
    for stream in tree.streams.values():
        stream.update(width=stream.width * widths, ffn=stream.ffn * widths)
    return resolve(tree)


def logits(config, weights):
    return prompt.logits(weights, config, IDS)


def begun(from_, to):
    grown = growth.grown(*from_, to)
    return upcycle.weights(*grown, to)


def test_identity_layers_change_nothing():
    from_ = source()
    to = target(init=dict(deeper="identity"), layers=4)
    weights = begun(from_, to)
    np.testing.assert_allclose(logits(to, weights), logits(*from_), atol=1e-5)
    wq, wo = (params.paths(weights)[f"blocks/main/attn/text/{x}"] for x in ("wq", "wo"))
    np.testing.assert_array_equal(wq[0], wq[1])
    np.testing.assert_array_equal(wq[2], wq[3])
    assert [bool(np.any(x)) for x in wo] == [True, False, True, False]


def test_a_stack_has_the_layers_again():
    from_ = source()
    to = target(init=dict(deeper="stack"), layers=4)
    weights = params.paths(begun(from_, to))
    for path, x in params.paths(from_[1]).items():
        if path.startswith("blocks/"):
            np.testing.assert_array_equal(weights[path], np.concatenate([x, x]), err_msg=path)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(qk_norm="layer"),
        dict(tied=True, qkv_bias=True),
        dict(embed_scale=True, norm_offset=True, tied=True),
    ],
)
def test_clones_change_nothing(options):
    from_ = source(**options)
    heads = dict(heads=2 * from_[0].model.heads, kv_heads=2 * from_[0].model.kv_heads)
    to = target(init=dict(wider="clone"), widths=2, **{**options, "tied": False}, **heads)
    np.testing.assert_allclose(logits(to, begun(from_, to)), logits(*from_), atol=2e-5)


def test_a_wider_and_deeper_mixture_has_clones_with_noise_in_all_but_the_first():
    from_ = source()
    heads = dict(heads=2 * from_[0].model.heads, kv_heads=2 * from_[0].model.kv_heads)
    init = dict(wider="clone", deeper="identity")
    quiet = target("mot", init=init, widths=2, layers=4, **heads)
    weights = begun(from_, quiet)
    np.testing.assert_allclose(logits(quiet, weights), logits(*from_), atol=2e-5)
    noisy = target("mot", init=init | dict(noise=0.1), widths=2, layers=4, **heads)
    a, b = (params.paths(w)["blocks/main/attn/text/wq"] for w in (weights, begun(from_, noisy)))
    D, N = a.shape[1] // 2, a.shape[2] // 2
    np.testing.assert_array_equal(a[0, :D, :N], b[0, :D, :N])
    assert np.all(a[0, D:] != b[0, D:])


@pytest.mark.parametrize(
    ("init", "widths", "model", "says"),
    [
        (dict(deeper="stack"), 1, dict(layers=3), "init.deeper: 'stack', from 2 layers to 3: .*a multiple of 2"),
        (dict(deeper="identity"), 1, dict(layers=2), "from 2 layers to 2: more are needed, 2 and a divisor of it"),
        (
            dict(wider="clone"),
            2,
            dict(heads=6, kv_heads=3),
            "does not fit:\n  model.heads: 6, the source has 4; must be a multiple",
        ),
        (dict(wider="clone"), 2, dict(heads=8, kv_heads=4, head_size=4), "model.head_size: 4, the source has 8"),
        (dict(), 1, dict(layers=4), r"model.layers: 4, the source has 2 \(init.deeper adds some\)"),
    ],
)
def test_what_rules_cannot_make(init, widths, model, says):
    to = target(init=init, widths=widths, **model)
    with pytest.raises(UserError, match=says):
        begun(source(), to)


def test_a_rule_needs_a_run():
    tree = examples.tree("dense")
    tree.init.wider = "clone"
    with pytest.raises(UserError, match=r"init\.wider: 'clone', but init.run is ''"):
        resolve(tree)
