"""Digests of arrays: equal to a slow oracle for every dtype, whatever the sharding; any flipped bit changes them."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mot.checkpoint import digests
from tests.support.devices import devices

DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
]


def oracle(x: np.ndarray) -> str:
    """Element by element, in Python's own whole numbers."""

    def mixed(word):
        word ^= word >> 16
        word = word * 0x85EBCA6B % 2**32
        word ^= word >> 13
        word = word * 0xC2B2AE35 % 2**32
        return word ^ word >> 16

    size = min(x.dtype.itemsize, 4)
    content = np.ascontiguousarray(x).tobytes()
    words = [int.from_bytes(content[i : i + size], "little") for i in range(0, len(content), size)]
    first = [mixed(word ^ mixed((i + 0x9E3779B9) % 2**32)) for i, word in enumerate(words)]
    second = [word * 0x9E3779B1 % 2**32 ^ word >> 15 for word in first]
    return f"{sum(first) % 2**32:08x}{sum(second) % 2**32:08x}"


def example(dtype, shape=(8, 3, 4), seed=0) -> np.ndarray:
    """Any bits: also NaN, infinities and -0."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return np.random.default_rng(seed).integers(0, 2, shape).astype(bool)
    content = np.random.default_rng(seed).bytes(int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(shape)


def on_devices(x) -> str:
    (digest,) = jax.device_get(digests.of_tree([x]))
    return digests.as_text(digest)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(8, 3, 4), (), (0, 2), (7,)], ids=str)
def test_digests_are_those_of_the_oracle(dtype, shape):
    x = example(dtype, shape)
    assert digests.of_host(x) == oracle(x)
    assert on_devices(jnp.asarray(x)) == oracle(x)


def test_digests_of_eight_bytes_are_those_of_their_halves():
    for dtype in ("float64", "int64", "uint64"):
        x = example(dtype)
        assert digests.of_host(x) == oracle(x)
        with jax.enable_x64(True):
            assert on_devices(jnp.asarray(x)) == oracle(x)


@pytest.mark.parametrize("number", [2, 4, 8])
@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16, "int8"], ids=lambda dtype: np.dtype(dtype).name)
def test_no_sharding_changes_a_digest(number, dtype):
    x = example(dtype, (8, 8, 2))
    with devices(number) as seen:
        mesh = jax.make_mesh((number // 2, 2), ("a", "b"), devices=seen)
        for spec in (P(), P("a"), P(None, "b"), P("b", "a"), P(("a", "b")), P(None, ("b", "a"))):
            sharded = jax.device_put(x, NamedSharding(mesh, spec))
            assert on_devices(sharded) == oracle(x), spec
            with jax.set_mesh(mesh):
                assert on_devices(sharded) == oracle(x), spec


@pytest.mark.parametrize("dtype", ["int8", "float16", ml_dtypes.bfloat16, "float32"], ids=lambda d: np.dtype(d).name)
def test_any_flipped_bit_changes_the_digest(dtype):
    x = example(dtype, (2, 5))
    content = np.frombuffer(x.tobytes(), np.uint8)
    seen = {digests.of_host(x)}
    for byte, bit in itertools.product(range(content.size), range(8)):
        changed = content.copy()
        changed[byte] ^= 1 << bit
        seen.add(digests.of_host(changed.view(x.dtype).reshape(x.shape)))
    assert len(seen) == 1 + 8 * content.size
    zero = np.zeros(4, x.dtype)
    assert np.dtype(dtype) == np.int8 or on_devices(jnp.asarray(zero)) != on_devices(jnp.asarray(-zero))


def test_elements_that_change_places_change_the_digest():
    x = np.arange(6.0, dtype=np.float32)
    assert len({digests.of_host(np.array(p, np.float32)) for p in itertools.permutations(x)}) == 720


def test_an_array_is_described_by_its_path_shape_dtype_and_digest():
    tree = {"a": {"w": jnp.arange(6.0).reshape(2, 3)}, "b": [jnp.zeros(2, jnp.bfloat16), jnp.int32(3)]}
    described = digests.described("opt", tree, jax.device_get(digests.of_tree(tree)))
    assert [*described] == ["opt/a/w", "opt/b/0", "opt/b/1"]
    assert described["opt/a/w"] == {"shape": [2, 3], "dtype": "float32", "digest": oracle(np.asarray(tree["a"]["w"]))}
    assert described["opt/b/0"] == {"shape": [2], "dtype": "bfloat16", "digest": oracle(np.asarray(tree["b"][0]))}
    assert described["opt/b/1"]["shape"] == []
