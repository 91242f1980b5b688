"""What is saved comes back bit for bit, on any mesh; damage is passed over, and what differs is listed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mot import checkpoint
from mot.errors import Damaged, UserError
from tests.support.checkpoints import LIKE, TREES, same
from tests.support.devices import devices


def test_what_is_saved_is_restored_bit_for_bit(saved):
    trees, data = checkpoint.restore(saved, 20, LIKE)
    same(trees)
    assert data == {"step": 20}


def placed(number, spec, x):
    with devices(number) as seen:
        return jax.device_put(x, NamedSharding(jax.make_mesh((number,), ("a",), devices=seen), spec))


@pytest.mark.parametrize(("there", "here"), [(8, 4), (4, 2), (2, 8), (1, 8), (8, 1)])
def test_any_mesh_gives_to_any_mesh_the_same_bits(tmp_path, there, here):
    x = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    checkpoint.save(tmp_path, 1, {"params": {"w": placed(there, P("a"), x)}}, {}, keep=1)
    wanted = placed(here, P(None, "a"), x)
    like = {"params": {"w": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=wanted.sharding)}}
    came = checkpoint.restore(tmp_path, 1, like)[0]["params"]["w"]
    np.testing.assert_array_equal(came, x)
    assert came.sharding == wanted.sharding


def test_where_no_step_verifies_the_newest_tells_why(saved):
    for step in (10, 20):
        (saved / str(step) / "data" / "metadata").unlink()
    told = []
    with pytest.raises(
        Damaged, match=r"none of its steps \(10, 20\) verifies; the newest: .*20/data/metadata is missing"
    ):
        checkpoint.newest(saved, told.append)
    assert len(told) == 2


def test_a_step_without_its_manifest_is_no_checkpoint(saved):
    (saved / "40").mkdir()
    with pytest.raises(Damaged, match=r"40/manifest.json cannot be read"):
        checkpoint.restore(saved, 40, LIKE)


def test_differences_of_tree_shape_and_dtype_are_listed_each(saved):
    def described(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=LIKE["params"]["a"]["w"].sharding)

    like = {
        "params": {"a": {"w": described((2, 3, 2), jnp.float32)}, "b": described((4,), jnp.float32)},
        "opt": {"count": described((), jnp.float32)},
    }
    with pytest.raises(UserError) as caught:
        checkpoint.restore(saved, 10, like)
    for line in (
        "10 holds other arrays than are needed:",
        "dtype:\n  opt/count: int32[] -> float32[]",
        "shape:\n  params/a/w: float32[2, 3] -> float32[2, 3, 2]",
        "tree:\n  params/b: absent -> float32[4]",
        "give the run the configuration that it had at this step, or name another step",
    ):
        assert line in str(caught.value)
    with pytest.raises(UserError, match=r"ema/w: absent -> float32\[2\]"):
        checkpoint.restore(saved, 10, LIKE | {"ema": {"w": described((2,), jnp.float32)}})
    assert checkpoint.restore(saved, 10, {"params": LIKE["params"]})[0].keys() == {"params"}
    assert TREES["params"]["a"]["w"].shape == (2, 3)
