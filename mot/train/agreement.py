"""What the processes of a run agree on at each step: whether to stop, and whether to save."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mot import sharding


class Wish(NamedTuple):
    """What a process asks for; of several processes, what any of them does."""

    stop: int  # the exit code, after a signal; else 0
    save: int  # 1: by its clock a save is due
    busy: int  # 1: its part of the last save is not done


class Agreement:
    """The wishes of all processes. Where there are several, each hears of those of the step before.

    The greatest of each number travels with the step's own work, and is read when that step is read: nobody waits.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self.mesh = mesh
        self.earlier: jax.Array | None = None

    def of(self, mine: Wish) -> Wish:
        if jax.process_count() == 1:
            return mine
        every = NamedSharding(self.mesh, P(self.mesh.axis_names))
        own = np.array([mine], np.int32)
        given = jax.make_array_from_callback((self.mesh.size, len(mine)), every, lambda _: own)
        earlier = self.earlier
        self.earlier = _greatest(given, sharding.replicated(self.mesh))
        if earlier is None:
            return Wish(0, 0, 0)
        return Wish(*map(int, jax.device_get(earlier)))


@partial(jax.jit, static_argnames="everywhere")
def _greatest(wishes_DW: jax.Array, everywhere: NamedSharding) -> jax.Array:
    return lax.with_sharding_constraint(wishes_DW.max(0), everywhere)


def any_process(x: bool) -> bool:
    """Is it so for any process of the run? All must ask, and wait for each other; no step may be under way."""
    return bool(np.any(multihost_utils.process_allgather(np.array(x)))) if jax.process_count() > 1 else x
