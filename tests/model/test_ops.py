import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import rope_scaling
from mot import sharding
from mot.config import RopeScaling, resolve
from mot.model import ops
from tests.oracles import reference
from tests.support import examples


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("shape", [(512, 128), (300, 8, 64), (300, 4, 8)])
def test_norms_equal_their_closed_form_in_float64_forward_and_gradient(shape, kind):
    rng = np.random.default_rng(0)
    x, g = 1 + rng.standard_normal((2, *shape))
    scale, bias = 1 + 0.1 * rng.standard_normal((2, *shape[-1:]))
    eps = 1e-5

    def norm(x, scale, bias):
        return ops.rms_norm(x, scale, eps) if kind == "rms" else ops.layer_norm(x, scale, bias, eps)

    def centred(x):
        return x - x.mean(-1, keepdims=True) if kind == "layer" else x

    y, back = jax.vjp(jax.jit(norm), *map(jnp.float32, (x, scale, bias)))
    dx, dscale, dbias = jax.jit(back)(jnp.float32(g))
    r = 1 / np.sqrt((centred(x) ** 2).mean(-1, keepdims=True) + eps)
    z, dz = centred(x) * r, g * scale
    np.testing.assert_allclose(y, z * scale + (bias if kind == "layer" else 0), atol=1e-5)
    np.testing.assert_allclose(dx, r * (centred(dz) - z * (dz * z).mean(-1, keepdims=True)), atol=2e-5)
    np.testing.assert_allclose(dscale, (g * z).reshape(-1, shape[-1]).sum(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(dbias, g.reshape(-1, shape[-1]).sum(0) * (kind == "layer"), rtol=1e-3, atol=1e-3)


def test_rope_is_a_rotation_by_position_and_its_gradient_the_rotation_back():
    x = jax.random.normal(jax.random.key(0), (2, 9, 4, 8))
    position = jnp.arange(18).reshape(2, 9, 1) * 7
    for b in range(2):
        want = reference.rope(x[b], position[b, :, 0], 1e4)
        np.testing.assert_allclose(ops.rope(x, position, 1e4)[b], want, atol=1e-5)
    y, back = jax.vjp(lambda x: ops.rope(x, position, 1e4), x)
    np.testing.assert_allclose(back(y)[0], x, atol=1e-5)
    shifted = ops.rope(x, position + 5, 1e4)

    def scores(y):
        return jnp.einsum("BTNH,BSNH->BNTS", y, y)

    np.testing.assert_allclose(scores(shifted), scores(y), atol=1e-4)


def test_cosines_are_computed_once_whoever_turns():
    """Not anew for each head of queries and keys, and on the way back."""

    def f(q, k, position):
        turned = [ops.rope(x, position, 1e4) for x in (q, k)]
        return sum((x**2 * jnp.exp(x)).sum() for x in turned)

    q = k = jnp.ones((2, 64, 4, 32))
    text = jax.jit(jax.grad(f, (0, 1))).lower(q, k, jnp.zeros((2, 64, 1), int)).compile().as_text()
    assert text.count(" cosine(") == 1


@pytest.mark.parametrize(
    ("sections", "how"),
    [
        ((1, 2, 1), (False,)),
        ((0, 3, 1), (False,)),
        ((2, 1, 1), (True,)),
        ((4, 0, 0), (True,)),
        ((1, 2, 1), (False, True)),
        ((2, 1, 1), (True, True)),
    ],
)
def test_rope_by_sections_turns_each_pair_by_its_own_axis(sections, how):
    """Against the oracle pair by pair; Qwen3-VL's own sections are (24, 20, 20) of 64 pairs."""
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 1, 9, 4, 8)).astype("f")
    position = rng.integers(0, 50, (1, 9, 3))
    axes = ops.axes_of_pairs(sections, *how)
    y, back = jax.vjp(lambda x: ops.rope(x, position, 1e4, axes), x)
    want, want_back = jax.vjp(lambda x: reference.rope(x[0], position[0], 1e4, sections, *how)[None], x)
    np.testing.assert_allclose(y, want, atol=1e-5)
    np.testing.assert_allclose(back(g)[0], want_back(g)[0], atol=1e-5)
    same = np.repeat(position[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(ops.rope(x, same, 1e4, axes), ops.rope(x, same[..., :1], 1e4))


def test_what_does_not_turn_stays_and_the_rest_turns_as_a_smaller_head():
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 2, 9, 3, 12)).astype("f")
    position = rng.integers(0, 50, (2, 9, 1))
    y, back = jax.vjp(lambda x: ops.rope(x, position, 1e4, (), 4), x)
    np.testing.assert_array_equal(y[..., :8], ops.rope(x[..., :8], position, 1e4))
    np.testing.assert_array_equal(y[..., 8:], x[..., 8:])
    np.testing.assert_array_equal(back(g)[0][..., 8:], g[..., 8:])


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_long_wavelengths_are_stretched_and_short_ones_are_not(kind):
    """Transformers' own formulas are in tests/parity/test_rope.py."""
    theta, pairs, length = 1e4, 64, 0 if kind == "linear" else 2048
    scaling = RopeScaling(**rope_scaling(kind, 8.0, length=length))
    kept = ops.stretched(pairs, theta, scaling)
    if kind == "linear":
        np.testing.assert_array_equal(kept, np.full(pairs, 0.125))
    else:
        turns = length * theta ** (-np.arange(pairs) / pairs) / (2 * np.pi)
        np.testing.assert_array_equal(kept[turns > 1.3 * scaling.most_turns], 1)
        np.testing.assert_array_equal(kept[turns < 0.8], 0.125)
        assert (np.diff(kept) <= 0).all()
        assert ((kept > 0.2) & (kept < 0.9)).sum() > 3
    x = np.random.default_rng(0).standard_normal((1, 9, 2, 128)).astype("f")
    position = jnp.arange(9).reshape(1, 9, 1) * 100
    y, back = jax.vjp(lambda x: ops.rope(x, position, theta, (), 0, scaling), x)
    if kind == "linear":
        np.testing.assert_allclose(y, ops.rope(x, position / 8, theta), atol=1e-4)
    amplitude = {"yarn": 0.1 * np.log(8) + 1}.get(kind, 1)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), amplitude * np.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(back(y)[0], amplitude**2 * x, atol=1e-5)


def test_pairs_are_dealt_out_as_published():
    for sections, *how in (((16, 24, 24), False), ((24, 20, 20), True), ((20, 22, 22), True, True)):
        want = [reference.axis_of_pair(i, sections, *how) for i in range(64)]
        assert list(ops.axes_of_pairs(sections, *how)) == want
    assert ops.axes_of_pairs((0, 2, 3), True) == (1, 2, 1, 2, 2)
    assert ops.axes_of_pairs((), False) == ()


def exact(a):
    return np.asarray(a, np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_equals_matmul_and_keeps_the_weights_gradient_in_float32(dtype):
    x = jax.random.normal(jax.random.key(0), (33, 16)).astype(dtype)
    w, g = jax.random.normal(jax.random.key(1), (16, 24)), jax.random.normal(jax.random.key(2), (33, 24)).astype(dtype)
    y, back = jax.vjp(ops.linear, x, w)
    dx, dw = back(g)

    close = dict(rtol=1e-5, atol=1e-5) if dtype == "float32" else dict(rtol=0.03, atol=0.2)
    np.testing.assert_allclose(exact(y), exact(x) @ exact(w), **close)
    np.testing.assert_allclose(exact(dx), exact(g) @ exact(w).T, **close)
    np.testing.assert_allclose(exact(dw), exact(x).T @ exact(g), **close)
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, "float32")


@pytest.mark.parametrize("remat", ["none", "block"])
@pytest.mark.parametrize("mesh", [{}, dict(fsdp=4), dict(data=2, tensor=2), dict(fsdp=2, tensor=2)])
def test_linears_equal_matmul_and_add_up_gradients_in_the_dtype_of_the_weights(mesh, remat):
    tree = examples.tree("mot")
    tree.model.remat = remat
    tree.mesh.update(mesh)
    c = resolve(tree)
    x, *gs = (jax.random.normal(jax.random.key(i), (32, n)).astype("bfloat16") for i, n in enumerate((16, 24, 8)))
    ws = [jax.random.normal(jax.random.key(i), (16, n)) for i, n in ((3, 24), (4, 8))]
    active = sharding.make_mesh(c, jax.devices()[: math.prod(mesh.values())])
    x, *gs = (jax.device_put(a, sharding.by_axes(active, (sharding.ROWS,), c.mesh.rules)) for a in (x, *gs))
    ws = [jax.device_put(w, sharding.by_axes(active, ("embed", "mlp"), c.mesh.rules)) for w in ws]

    def both_ways(x, ws, gs):
        ys, back = jax.vjp(lambda x, ws: ops.linears(x, ws, "mlp", c), x, ws)
        return ys, *back(gs)

    with jax.set_mesh(active):
        ys, dx, dws = jax.jit(both_ways)(x, ws, gs)

    rounded = dict(rtol=0.03, atol=0.2)
    for y, w, g, dw in zip(ys, ws, gs, dws, strict=True):
        np.testing.assert_allclose(exact(y), exact(x) @ exact(w), **rounded)
        np.testing.assert_allclose(exact(dw), exact(x).T @ exact(g), rtol=1e-5, atol=1e-5)
        assert (y.dtype, dw.dtype) == ("bfloat16", "float32")
    want = sum(exact(g) @ exact(w).T for g, w in zip(gs, ws, strict=True))
    np.testing.assert_allclose(exact(dx), want, **rounded)
    assert dx.dtype == "bfloat16"
