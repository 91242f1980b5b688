import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import batches
from mot.batches import Info
from mot.config import ConfigError
from mot.model import attention, flash
from mot.model.attention import attend
from tests.oracles import reference
from tests.support import examples
from tests.support.arrays import qkv, random_info

BACKENDS = tuple(attention.BACKENDS)


def oracle(q, k, v, info, cap=0.0):
    rows = []
    for b in range(q.shape[0]):
        see = reference.visible(*(np.asarray(x)[b] for x in info))
        rows.append(reference.attention(q[b], k[b], v[b], see, cap))
    return jnp.stack(rows)


@pytest.mark.parametrize(
    ("how", "T", "scrambled", "cap", "narrow"),
    [
        ("reference", 24, True, 0.0, True),
        ("reference", 24, True, 0.8, True),
        ("reference", 128, False, 0.0, True),
        pytest.param("reference", 300, True, 0.0, True, marks=pytest.mark.slow),
        ("reference", 512, True, 0.0, True),
        ("chunked", 24, True, 0.0, True),
        ("chunked", 128, False, 0.0, True),
        ("chunked", 300, True, 0.0, True),
        ("chunked", 300, True, 0.8, True),
        ("chunked", 512, True, 0.0, True),
        ("chunked", 512, True, 0.0, False),
    ],
)
def test_backends_equal_the_oracle_forward_and_gradient(how, T, scrambled, cap, narrow, monkeypatch):
    """Also in the long chunks of wide heads."""
    if not narrow:
        monkeypatch.setattr(flash, "NARROW", 0)
    info, (q, k, v) = random_info(T, T, scrambled=scrambled), qkv(T, T)
    g = jax.random.normal(jax.random.key(9), q.shape)

    def forward(f):
        return jax.value_and_grad(lambda *x: (f(*x) * g).sum(), (0, 1, 2))

    def ours(*qkv):
        return attend(*qkv, info, info, how, cap=cap)

    def theirs(*qkv):
        return oracle(*qkv, info, cap)

    got, got_grads = jax.jit(forward(ours))(q, k, v)
    want, want_grads = jax.jit(forward(theirs))(q, k, v)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(ours)(q, k, v), jax.jit(theirs)(q, k, v), atol=2e-6)
    for a, b in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("how", BACKENDS)
def test_queries_and_keys_may_differ_in_number(how):
    """As with a cache, or a context shard: the last queries against all keys."""
    T = 96
    info, (q, k, v) = random_info(3, T, scrambled=False), qkv(T, T)
    some = slice(40, 70)
    part = Info(*(x[:, some] for x in info))
    whole = attend(q, k, v, info, info, how)
    np.testing.assert_allclose(attend(q[:, some], k, v, part, info, how), whole[:, some], atol=1e-6)
    g = jax.random.normal(jax.random.key(1), q[:, some].shape)
    alone = jax.grad(lambda k, v: (attend(q[:, some], k, v, part, info, how) * g).sum(), (0, 1))(k, v)
    within = jax.grad(lambda k, v: (attend(q, k, v, info, info, how)[:, some] * g).sum(), (0, 1))(k, v)
    for a, b in zip(alone, within, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("how", BACKENDS)
def test_a_query_that_sees_nothing_gives_zero_and_gradient_zero(how):
    info, (q, k, v) = random_info(0, 24), qkv(24, 24)
    blind = info._replace(
        segment=jnp.where(info.position == 5, 7, info.segment), private=info.private | (info.position == 5)
    )
    blind = blind._replace(span=jnp.where(info.position == 5, 0, info.span))

    def f(q):
        return attend(q, k, v, blind, blind, how)

    row = np.asarray(info.position == 5)
    assert (np.asarray(f(q))[row] == 0).all()
    dq = jax.grad(lambda q: f(q).sum())(q)
    assert (np.asarray(dq)[row] == 0).all()
    assert (np.asarray(dq)[~row] != 0).any()
    assert np.isfinite(dq).all()


@pytest.mark.parametrize("how", BACKENDS)
def test_influence_is_exactly_zero_where_not_visible_and_some_where_visible(how):
    """Every pair of tokens: streams interleaved, spans, private copies, other segments, padding."""
    batch = examples.batch(seed=5, rows=1)
    tokens = jax.tree.map(lambda *x: np.concatenate(x, 1), *batch.values())
    info, T = tokens.info, tokens.position.shape[1]
    q, k, v = qkv(T, T, B=1)
    jacobian = jax.jit(jax.jacrev(lambda v: attend(q, k, v, info, info, how).sum((2, 3))[0]))(v)
    influence = np.abs(np.asarray(jacobian)[:, 0]).sum((2, 3))
    see = reference.visible(*(x[0] for x in info))
    stream = np.repeat([0, 1], [x.position.shape[1] for x in batch.values()])
    for a in (0, 1):
        for b in (0, 1):
            pairs = np.ix_(stream == a, stream == b)
            assert see[pairs].any()
            assert not see[pairs].all()
    private = np.asarray(info.private)[0]
    assert see[:, private].any(), "the example needs private tokens that someone sees"
    assert (influence[see] > 0).all()
    assert (influence[~see] == 0).all()


@pytest.mark.parametrize("how", BACKENDS)
def test_nan_in_padding_changes_nothing(how):
    """FAULTS 11: in attention's queries, keys and values."""
    info, (q, k, v) = random_info(1, 80), qkv(80, 80)
    pad = np.asarray(info.segment == 0)[..., None, None]

    def poison(x):
        return jnp.where(pad, jnp.nan, x)

    g = jax.random.normal(jax.random.key(9), q.shape)

    def grads(g):
        return jax.jit(jax.grad(lambda *x: (jnp.where(pad, 0, attend(*x, info, info, how)) * g).sum(), (0, 1, 2)))

    clean, dirty = grads(g)(q, k, v), grads(g)(poison(q), poison(k), poison(v))
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        attend(q, k, v, info, info, how), attend(poison(q), poison(k), poison(v), info, info, how)
    )


def test_chunk_pairs_cover_what_is_visible_and_little_else():
    C = flash.LONG
    info = random_info(4, 8 * C, scrambled=False)
    see = np.asarray(batches.visible(info, info))
    tiles = see.reshape(2, 8, C, 8, C).any((2, 4))
    cut = flash.chunks(info, C)
    pairs = np.asarray(flash.chunk_pairs(cut, cut))
    assert (pairs >= tiles).all()
    assert pairs.sum() <= 1.3 * tiles.sum()


def test_padding_does_not_make_a_tail_chunk_visible():
    C = flash.LONG
    segment = jnp.array([[1] * C + [2] * 10 + [0] * (C - 10)])
    info = flash.chunks(Info(jnp.arange(2 * C)[None], segment, 0 * segment, segment < 0), C)
    np.testing.assert_array_equal(flash.chunk_pairs(info, info)[0], [[True, False], [False, True]])


@pytest.mark.usefixtures("optimised")
def test_memory_is_linear_in_length():
    def temporaries(T, how):
        q, k, v = (jax.ShapeDtypeStruct((1, T, 2, 16), jnp.float32) for _ in range(3))
        info = Info(*(jax.ShapeDtypeStruct((1, T), dtype) for dtype in (jnp.int32, jnp.int32, jnp.int32, bool)))
        grads = jax.grad(lambda q, k, v, info: attend(q, k, v, info, info, how).sum(), (0, 1, 2))
        return jax.jit(grads).lower(q, k, v, info).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4096, "chunked") < 2.2 * temporaries(2048, "chunked")
    assert temporaries(4096, "chunked") < temporaries(4096, "reference") / 4


@pytest.mark.usefixtures("optimised")
def test_memory_is_linear_in_length_where_layers_are_scanned():
    """A row's mask is the same in all layers: JAX would make the whole of it before them, and keep it."""

    def temporaries(T):
        x_BTNH = jax.ShapeDtypeStruct((1, T, 2, 16), jnp.float32)
        info = Info(*(jax.ShapeDtypeStruct((1, T), dtype) for dtype in (jnp.int32, jnp.int32, jnp.int32, bool)))

        def loss(x_BTNH, info):
            def layer(x_BTNH, _):
                return x_BTNH + attend(x_BTNH, x_BTNH, x_BTNH, info, info, "chunked"), None

            return jax.lax.scan(layer, x_BTNH, length=2)[0].sum()

        return jax.jit(jax.grad(loss)).lower(x_BTNH, info).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 2.2 * temporaries(2048)


def test_bfloat16_is_close_to_float32():
    info, (q, k, v) = random_info(2, 128), qkv(128, 128)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    out = attend(*half, info, info, "chunked")
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), attend(q, k, v, info, info), atol=0.05)

    def loss(how):
        return lambda q, k, v: (attend(q, k, v, info, info, how).astype(jnp.float32) ** 2).sum()

    got, want = (jax.grad(loss("chunked"), (0, 1, 2))(*x) for x in (half, (q, k, v)))
    assert examples.leaf_error([x.astype(jnp.float32) for x in got], list(want)) < 0.05


def test_the_configuration_allows_exactly_the_backends():
    for how in attention.BACKENDS | attention.KERNELS:
        examples.make(attention=how)
    with pytest.raises(ConfigError, match=r"model\.attention: 'flash'"):
        examples.make(attention="flash")


def test_unknown_backend_is_refused():
    info, (q, k, v) = random_info(0, 16), qkv(16, 16)
    with pytest.raises(ValueError, match=r"attention 'flash' is unknown; allowed: reference, chunked"):
        attend(q, k, v, info, info, "flash")
