"""Silent corruption: devices that hold the same part of the state are compared, bit for bit."""

import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from mot.checkpoint import digests
from mot.errors import UserError

NAME = 64  # bytes of a machine's name that the processes tell each other


def refuse_corrupt(tree: Any, step: int) -> None:
    """`UserError` where a device holds other bits than those that should hold the same; it names leaf and machine.

    Every process of the run calls it after the same step; `tree` lies on one mesh.
    """
    leaves = jax.tree.leaves(tree)
    mesh = leaves[0].sharding.mesh
    found_DL2 = np.asarray(_of_devices(leaves, mesh, tuple(leaf.sharding.spec for leaf in leaves)))
    devices = list(mesh.devices.flat)
    faults = []
    for i, (name, leaf) in enumerate(zip(digests.names(tree), leaves, strict=True)):
        faults += [(name, device) for device in _odd(leaf, devices, found_DL2[:, i])]
    if faults:
        raise UserError(_told(faults, step))


@partial(jax.jit, static_argnames=("mesh", "specs"))
def _of_devices(leaves: Sequence[jax.Array], mesh: jax.sharding.Mesh, specs: tuple) -> jax.Array:
    """`[D, L, 2]`: of each device, in the order of the mesh, the digest of its part of each leaf; all have it."""

    def of_parts(*parts):
        return jnp.stack([digests.of_array(part) for part in parts])[None]

    each = jax.shard_map(of_parts, mesh=mesh, in_specs=specs, out_specs=P(mesh.axis_names), check_vma=False)
    return jax.lax.with_sharding_constraint(each(*leaves), jax.sharding.NamedSharding(mesh, P()))


def _odd(leaf: jax.Array, devices: Sequence[jax.Device], found_D2: np.ndarray) -> list[jax.Device]:
    """The devices whose part differs from what most devices with the same part have; all, where no bits have most."""
    groups: dict[str, list[int]] = {}
    for i, device in enumerate(devices):
        groups.setdefault(str(leaf.sharding.devices_indices_map(leaf.shape)[device]), []).append(i)
    odd = []
    for members in groups.values():
        values, counts = np.unique(found_D2[members], axis=0, return_counts=True)
        if len(values) == 1:
            continue
        has_most = 2 * counts.max() > len(members)
        usual = values[counts.argmax()]
        odd += [devices[i] for i in members if not has_most or (found_D2[i] != usual).any()]
    return odd


def _told(faults: Sequence[tuple[str, jax.Device]], step: int) -> str:
    hosts = _hosts()
    devices = dict.fromkeys(device for _, device in faults)
    where = ", ".join(f"device {d.id} of process {d.process_index} on {hosts[d.process_index]}" for d in devices)
    names = list(dict.fromkeys(name for name, _ in faults))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"after step {step} {where}: other bits of {', '.join(names[:3])}{more} than the replicas hold; memory or "
        "arithmetic there is faulty; take that machine out, and give the same command again: it goes on from the "
        "newest checkpoint"
    )


def _hosts() -> list[str]:
    """The names of the machines, by process."""
    own = np.zeros(NAME, np.uint8)
    name = socket.gethostname().encode()[:NAME]
    own[: len(name)] = np.frombuffer(name, np.uint8)
    if jax.process_count() == 1:
        return [name.decode(errors="replace")]
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in multihost_utils.process_allgather(own)]
