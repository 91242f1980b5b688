"""Where arrays live. All devices split a batch by rows; along `expert` they share experts; all else is on every one."""

import os
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mot.errors import UserError

ROWS = P(("data", "expert"))
EXPERTS = P("expert")
MESH_AXIS = {"expert": "expert"}  # logical axis of a parameter -> axis of the mesh; others are not split


def make_mesh(rows: int, devices: Sequence[jax.Device] | None = None, expert: int = 1) -> Mesh:
    """Devices (default: all), `expert` of them along that axis and the rest along `data`.

    `UserError` where the `rows` of a microbatch do not divide among them, or they among `expert`.
    """
    devices = jax.devices() if devices is None else devices
    n = len(devices)
    if rows % n:
        raise UserError(
            f"data.batch / optim.accumulate: {rows} rows do not divide among {n} devices; make the batch a multiple"
        )
    if n % expert:
        raise UserError(f"mesh.expert: {expert} does not divide {n} devices; allowed are divisors of {n}; change it")
    return jax.make_mesh((n // expert, expert), ("data", "expert"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def memory(mesh: Mesh) -> int:
    """Bytes that all devices hold together; on CPU they share the machine's."""
    if stats := mesh.devices.flat[0].memory_stats():
        return stats["bytes_limit"] * mesh.size
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def by_rows(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, ROWS)


def by_axes(mesh: Mesh, axes: Sequence[str]) -> NamedSharding:
    """Of a parameter with these logical axes."""
    return NamedSharding(mesh, P(*(MESH_AXIS.get(axis) for axis in axes)))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def rows_apart(f: Callable) -> Callable:
    """`f` on each device's own rows, where a mesh is set: loops whose trip counts depend on a row cannot be split."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return f
    return jax.shard_map(f, in_specs=ROWS, out_specs=ROWS, check_vma=False)
