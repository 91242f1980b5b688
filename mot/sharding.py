"""Where arrays live: a mesh whose `data` axis splits the batch by rows; parameters are on every device."""

import os
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mot.errors import UserError

ROWS = P("data")


def make_mesh(rows: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices (default: all) along `data`; `UserError` where the `rows` of a microbatch do not divide among them."""
    devices = jax.devices() if devices is None else devices
    n = len(devices)
    if rows % n:
        raise UserError(
            f"data.batch / optim.accumulate: {rows} rows do not divide among {n} devices; make the batch a multiple"
        )
    return jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def memory(mesh: Mesh) -> int:
    """Bytes that all devices hold together; on CPU they share the machine's."""
    if stats := mesh.devices.flat[0].memory_stats():
        return stats["bytes_limit"] * mesh.size
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def by_rows(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def rows_apart(f: Callable) -> Callable:
    """`f` on each device's own rows, where a mesh is set: loops whose trip counts depend on a row cannot be split."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return f
    return jax.shard_map(f, in_specs=ROWS, out_specs=ROWS, check_vma=False)
