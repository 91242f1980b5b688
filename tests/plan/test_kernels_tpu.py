"""mot/model/kernels.py: TPU's interpreted and compiled for a v5p that is not there, GPU's lowered for CUDA.

Interpreted, memory that nothing has written is NaN, so whatever reads it is found.
"""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mot.batches import Info
from mot.model import kernels, transformer
from mot.model.attention import attend
from mot.objectives import losses
from tests.support import vectors
from tests.support.arrays import qkv, row, row_of_units


@pytest.fixture
def interpreted():
    # Private: the grouped kernel asks which TPU it is on, also where there is none.
    from jax._src.pallas.mosaic import tpu_info

    def v5e():
        return tpu_info.get_tpu_info_for_chip(tpu_info.ChipVersion.TPU_V5E, 1)

    with pytest.MonkeyPatch.context() as patch, pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
        patch.setitem(tpu_info.registry, "cpu", v5e)
        patch.setattr(kernels._joint_softmax, "optimize_remat", False)  # JAX has it for nothing that is interpreted
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "_block", lambda *_: 128)


def two_rows(T, private):
    """With private tokens there are units alone and hidden parts of units, too."""
    rows = [row_of_units(T, seed, True, True, True) if private else row(T, seed) for seed in range(2)]
    return Info(*(jnp.stack(x) for x in zip(*rows, strict=True)))


def compare(f, q, k, v, q_info, k_info):
    """Forward and all gradients against the reference, NaN in padding, of which `attend` clears inputs and cotangents.

    What comes out of padding must be 0 without its help.
    """
    pad_q, pad_k = (np.asarray(x.segment == 0)[..., None, None] for x in (q_info, k_info))

    def poison(x, pad):
        return jnp.where(pad, jnp.nan, x)

    def reference(*x):
        return attend(*x, backend="reference")

    g = jnp.where(pad_q, 0, jax.random.normal(jax.random.key(9), q.shape))

    def both(f, q, k, v):
        def clean(q, k, v):
            return (jnp.where(pad_q, 0, q), jnp.where(pad_k, 0, k), jnp.where(pad_k, 0, v))

        out, back = jax.vjp(lambda *qkv: f(*clean(*qkv), q_info, k_info), q, k, v)
        return out, *back(g)

    got = jax.jit(partial(both, f))(poison(q, pad_q), poison(k, pad_k), poison(v, pad_k))
    for a, b in zip(got, jax.jit(partial(both, reference))(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    return got


def splash(q, k, v, q_info, k_info, private):
    calls = kernels.splash_calls(q_info, k_info, private, False, q.shape[-1] * q.dtype.itemsize)
    return kernels.splash(q, k, v, calls)


# --- TPU: attention ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interpreted", "small_blocks")
@pytest.mark.parametrize(
    ("private", "K"),
    [
        pytest.param(False, 2, marks=pytest.mark.slow),
        (True, 2),
        pytest.param(False, 4, marks=pytest.mark.slow),
        pytest.param(True, 4, marks=pytest.mark.slow),
    ],
)
def test_splash_equals_the_reference(private, K):
    """Of two rows each has its own documents, spans and padding; the second form has private tokens, too."""
    info = two_rows(384, private)
    assert info.private.any() == private
    compare(partial(splash, private=200 * private), *qkv(384, 384, K=K), info, info)


@pytest.mark.usefixtures("interpreted", "small_blocks")
@pytest.mark.parametrize("private", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_splash_of_a_context_shard_whose_length_fits_no_block(private):
    info = two_rows(384, private)
    inside = (info.span[0, 1:] == info.span[0, :-1]) & (info.span[0, 1:] != 0)
    start = 1 + int(jnp.argmax(inside & (jnp.arange(383) > 110)))  # a span reaches over the shard's edge
    part = Info(*(x[:, start : start + 200] for x in info))
    compare(partial(splash, private=200 * private), *qkv(200, 384), part, info)


@pytest.mark.usefixtures("interpreted", "small_blocks")
@pytest.mark.parametrize("private", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_splash_of_queries_that_see_nothing(private):
    """One amid others, a whole block, and a row without tokens between others: zero, and no gradient."""
    k_info = Info(*(x[jnp.array([0, 1, 1])] for x in two_rows(384, False)))
    k_info = k_info._replace(segment=k_info.segment.at[1].set(0))
    blind = (jnp.arange(384) == 70) | (jnp.arange(384) // 128 == 1)
    q_info = k_info._replace(segment=jnp.where(blind[None] & (k_info.segment != 0), 77, k_info.segment))
    f = partial(splash, private=200 * private)
    out, dq, _, _ = compare(f, *qkv(384, 384, B=3), q_info, k_info)
    np.testing.assert_array_equal(jax.jit(f)(*qkv(384, 384, B=3), q_info, k_info), out)  # where nobody differentiates
    assert (out[:, np.asarray(blind)] == 0).all()
    assert (dq[:, np.asarray(blind)] == 0).all()


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
def test_splash_short_rows_a_unit_alone_and_the_rules_own_blocks():
    """Keys are padded to three blocks; a segment lies amid another."""
    info = two_rows(256, False)
    info = info._replace(segment=info.segment.at[:, 40:48].set(9), span=info.span.at[:, 40:48].set(99))
    compare(partial(splash, private=0), *qkv(256, 256), info, info)


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted", "small_blocks")
@pytest.mark.parametrize("walls", [(), [("image", "text")]])
def test_a_models_gradients_with_splash_are_the_references(walls):
    """With every role of a token, and NaN in padding's vectors: queries stay by tower, keys come in document order."""

    def gradients(attention, fill):
        c = vectors.make("mot", attention=attention, walls=walls, layers=1, heads=2, kv_heads=1)
        batch = vectors.batch(c)
        batch = {s: t.replace(value=np.where((t.segment == 0)[..., None], fill, t.value)) for s, t in batch.items()}

        def loss(weights):
            given = losses.noised(batch, c, 0)
            output = transformer.forward(weights, given.batch, c)
            return losses.loss(weights, output, given, losses.totals(batch, c), c, 2)[0]

        return jax.jit(jax.value_and_grad(loss))(vectors.weights(c))

    want, got = gradients("reference", 0.0), gradients("splash", np.nan)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want)


# --- TPU: compiled for a v5p that is not there -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def v5p():
    jax.config.update("jax_enable_compilation_cache", False)  # programs for absent devices cannot be read back
    yield Mesh(np.array(topologies.get_topology_desc("v5p:2x2x1", "tpu").devices), ("data",))
    jax.config.update("jax_enable_compilation_cache", True)


def compiled(v5p, f, *shapes):
    """The gradient of `f` by its floating arguments, each device with its own rows."""
    share = jax.shard_map(f, mesh=v5p, in_specs=P("data"), out_specs=P("data"), check_vma=False)

    def put(x):
        return jax.ShapeDtypeStruct((4 * x.shape[0], *x.shape[1:]), x.dtype, sharding=NamedSharding(v5p, P("data")))

    shapes = jax.tree.map(put, shapes)
    floating = tuple(i for i, x in enumerate(shapes) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating))

    def loss(*x):
        return (share(*x).astype(jnp.float32) ** 2).sum()

    return jax.jit(jax.value_and_grad(loss, floating)).lower(*shapes).compile()


def attention(v5p, T, private, N=16, K=16, H=128):
    def shape(n):
        return jax.ShapeDtypeStruct((1, T, n, H), jnp.bfloat16)

    info = Info(*(jax.ShapeDtypeStruct((1, T), dtype) for dtype in (jnp.int32, jnp.int32, jnp.int32, bool)))

    def f(q, k, v, info):
        return splash(q, k, v, info, info, private * T // 4)

    return compiled(v5p, f, shape(N), shape(K), shape(K), info)


def temporaries(program):
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("private", [False, True])
def test_splash_compiles_forward_and_backward_in_linear_memory(v5p, private):
    """Of shorter rows part lies in VMEM, which is not counted: 78 MB at 4096, 187 at 8192, 458, 901 at 32768."""
    short, long = attention(v5p, 16384, private), attention(v5p, 32768, private)
    assert short.as_text().count("tpu_custom_call") >= 2
    assert not re.search(r"\[(\d+,)*16384,(16384|32768)[],]", short.as_text())
    assert temporaries(long) < 2.1 * temporaries(short)


# --- matrices by group -----------------------------------------------------------------------------------------------


def matrices(S=300, D=256, F=128, sizes=(100, 0, 37, 60, 0)):
    """Experts without rows, groups that begin amid a tile, and rows past the last group."""
    shapes = ((S, D), (len(sizes), D, F), (S, F))
    x, w, g = (jax.random.normal(key, s) for key, s in zip(jax.random.split(jax.random.key(0), 3), shapes, strict=True))
    return x, w, g, jnp.array(sizes, jnp.int32)


def compare_grouped(how):
    x, w, g, size = matrices()
    held = (jnp.arange(x.shape[0]) < size.sum())[:, None]

    def both(f, x, w, g):
        out, back = jax.vjp(f, x, w)
        return out, *back(g)

    def poison(x):
        return jnp.where(held, x, jnp.nan)

    # As in `dispatch`, nothing is masked: neither operands nor results.
    got = jax.jit(partial(both, lambda x, w: kernels.grouped(x, w, size, how)))(poison(x), w, poison(g))

    def ragged(x, w):
        return lax.ragged_dot(x, w, size, preferred_element_type=jnp.float32)

    R = int(size.sum())
    (out, dx, dw), wanted = got, both(ragged, jnp.where(held, x, 0), w, jnp.where(held, g, 0))
    for a, b in zip((out[:R], dx[:R], dw), (wanted[0][:R], wanted[1][:R], wanted[2]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    half, dw = jax.eval_shape(
        lambda x, w: jax.vjp(lambda w: kernels.grouped(x, w, size, how), w), x.astype(jnp.bfloat16), w
    )
    assert half.dtype == jnp.bfloat16
    assert dw is not None


@pytest.mark.usefixtures("interpreted")
def test_grouped_equals_ragged_dot_on_tpu():
    compare_grouped("gmm")


@pytest.mark.slow
def test_grouped_compiles_for_tpu_without_work_for_absent_rows(v5p):
    """`lax.ragged_dot` multiplies all rows with all experts on the way back: 8 times the work for dw."""
    S, D, F, E = 4096, 1024, 512, 8
    shapes = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((S, D), (E, D, F))]
    size = jax.ShapeDtypeStruct((E,), jnp.int32)

    def flops(f):
        return compiled(v5p, f, *shapes, size).cost_analysis()["flops"] / (2 * S * D * F)

    assert flops(lambda x, w, size: kernels.grouped(x, w, size, "gmm")) < 3.1
    assert flops(lambda x, w, size: lax.ragged_dot(x, w, size, preferred_element_type=jnp.float32)) > 9


# --- GPU -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def for_gpu(monkeypatch):
    """tokamax and JAX ask the machine which GPU it has; here they are told Hopper. All kernels then lower for CUDA."""
    import jax._src.cudnn.fused_attention_stablehlo as cudnn
    from tokamax._src import config, gpu_utils

    monkeypatch.setattr(gpu_utils, "is_sm90", lambda *_: True)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 92000)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda *_: False)
    with config.cross_compile(True), jax.numpy_rank_promotion("allow"):
        yield


TARGETS = {
    "triton": ["__gpu$xla.gpu.triton"],
    "mosaic": ["mosaic_gpu_v2"],
    "cudnn": ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"],
}


def lowered(f, *shapes):
    checks = [export.DisabledSafetyCheck.custom_call(x) for names in TARGETS.values() for x in names]
    text = export.export(jax.jit(f), platforms=["cuda"], disabled_checks=checks)(*shapes).mlir_module()
    return set(re.findall(r"custom_call @([\w$.]+)", text)), text


@pytest.mark.usefixtures("for_gpu")
@pytest.mark.parametrize("rows", ["plain", "private", "parts"])
@pytest.mark.parametrize("how", ["triton", "mosaic", "cudnn"])
def test_gpu_attention_lowers_for_cuda_forward_and_backward(how, rows):
    """A whole mask with cuDNN and of parts alone; where keys have intervals, one of 4,096 queries."""
    B, T, N, K, H = 2, 8192, 8, 4, 128
    q, k = (jax.ShapeDtypeStruct((B, T, n, H), jnp.bfloat16) for n in (N, K))
    info = Info(*(jax.ShapeDtypeStruct((B, T), dtype) for dtype in (jnp.int32, jnp.int32, jnp.int32, bool)))
    whole = how == "cudnn" or rows == "parts"

    def f(q, k, v, info):
        return kernels.gpu(q, k, v, info, info, T // 4 * (rows == "private"), rows == "private", rows == "parts", how)

    def grad(*x):
        return jax.grad(lambda *x: f(*x).astype(jnp.float32).sum(), (0, 1, 2))(*x)

    names, text = lowered(f, q, k, k, info)
    assert names >= set(TARGETS[how][:1])
    assert (f"x{T}x{T}x" in text) == whole
    assert (f"x4096x{T}x" in text) == (rows == "private" and not whole)
    names, text = lowered(grad, q, k, k, info)
    assert names >= set(TARGETS[how])
    assert (f"x{T}x{T}x" in text) == whole


@pytest.mark.usefixtures("for_gpu")
@pytest.mark.parametrize("how", ["triton", "mosaic"])
def test_grouped_lowers_for_cuda_forward_and_backward(how):
    x, w, n = (
        jax.ShapeDtypeStruct(s, d)
        for s, d in (((4096, 1024), jnp.bfloat16), ((8, 1024, 2048), jnp.float32), ((8,), jnp.int32))
    )

    def f(x, w, n):
        return kernels.grouped(x, w, n, how).astype(jnp.float32)

    def both(x, w, n):
        return jax.value_and_grad(lambda x, w: f(x, w, n).sum(), (0, 1))(x, w)

    names, text = lowered(both, x, w, n)
    assert names >= set(TARGETS[how])
    assert len(re.findall(rf"custom_call @{re.escape(TARGETS[how][0])}", text)) >= 3


@pytest.mark.usefixtures("for_gpu")
@pytest.mark.parametrize("mode", ["plain", "plain, cut", "units", "units, cut", "parts"])
def test_what_gpu_attention_asks_its_kernel_for_is_what_is_visible(mode, monkeypatch):
    """The kernel here is tokamax's plain one, which takes the same intervals and masks."""
    from tokamax._src.ops.attention import base, pallas_triton

    monkeypatch.setattr(pallas_triton, "PallasTritonFlashAttention", base.DotProductAttention)
    if "cut" in mode:
        monkeypatch.setattr(kernels, "QUERIES", 128)
    units, parts = "units" in mode, mode == "parts"
    k_info = two_rows(384, units)
    q_info = k_info
    blind = np.asarray(k_info.position == 70) & parts  # elsewhere a query sees at least itself
    if parts:
        parts_of_one = (k_info.position // 8 == 5) | (k_info.position // 8 == 20)
        k_info = k_info._replace(segment=jnp.where(parts_of_one & (k_info.segment != 0), 99, k_info.segment))
        q_info = k_info._replace(segment=jnp.where(blind, 77, k_info.segment))
    f = partial(kernels.gpu, private=200 * units, alone=units, parts=parts, kernel="triton")
    out, *_ = compare(f, *qkv(384, 384), q_info, k_info)
    assert (out[blind] == 0).all()


@pytest.mark.usefixtures("for_gpu")
def test_grouped_equals_ragged_dot_by_triton_interpreted(monkeypatch):
    from tokamax._src.pallas import block

    def call(*args, **kwargs):
        return pl.pallas_call(*args, **kwargs, interpret=True)

    monkeypatch.setattr(block, "pl", SimpleNamespace(**{**vars(pl), "pallas_call": call}))
    compare_grouped("triton")
