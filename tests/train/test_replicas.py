"""A bit that flips in the memory of one device is noticed, and leaf, device and machine are named."""

import socket

import jax
import numpy as np
import pytest

from mot import sharding
from mot.errors import UserError
from mot.train.replicas import refuse_corrupt
from mot.train.state import init_state, state_shardings, trees
from tests.support.devices import devices
from tests.support.training import smoke


def state_on(mesh, c):
    with jax.set_mesh(mesh):
        return jax.jit(lambda: init_state(c), out_shardings=state_shardings(c, mesh))()


def flipped(x, which):
    """The array with another bit in the part of one of its devices."""
    parts = [np.array(shard.data) for shard in x.addressable_shards]
    parts[which].view(np.uint32).flat[0] ^= 1 << 7
    placed = [jax.device_put(part, shard.device) for part, shard in zip(parts, x.addressable_shards, strict=True)]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, placed)


@pytest.mark.parametrize(("axes", "named"), [({}, [1]), ({"mesh__fsdp": 2}, [1, 3])])  # of two, each may be wrong
def test_a_device_that_differs_from_its_replicas_is_named(axes, named):
    with devices(4):
        c = smoke("runs", data__batch=4, **axes)
        mesh = sharding.make_mesh(c)
        state = state_on(mesh, c)
        refuse_corrupt(trees(state), 5)
        leaves, structure = jax.tree.flatten(state)
        leaves[3] = flipped(leaves[3], 1)
        with pytest.raises(UserError) as caught:
            refuse_corrupt(trees(jax.tree.unflatten(structure, leaves)), 5)
        said = str(caught.value)
        parts = [shard.device.id for shard in leaves[3].addressable_shards]
        where = ", ".join(f"device {parts[i]} of process 0 on {socket.gethostname()}" for i in named)
        assert f"after step 5 {where}: other bits of " in said


def test_nothing_held_twice_is_nothing_to_compare(one_device):
    c = smoke("runs")
    refuse_corrupt(trees(state_on(sharding.make_mesh(c, one_device), c)), 1)
