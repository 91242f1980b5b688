"""Where arrays live: a mesh of named axes, and one dict (`mesh.rules`) from logical axes to them.

`data` and `fsdp` split a batch's rows, and `fsdp` parameters and optimiser state too, each gathered where it is used;
`expert` splits rows and a tower's experts; `context` splits every row; `tensor` splits heads, hidden units and the
vocabulary. Any of them may have size one. jit moves what these constraints ask for; `shard_map` stands where each
device must see its own share: attention, experts, the loss.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mot.config import Config
from mot.config.axes import MESH_AXES, names
from mot.errors import UserError

ROWS = "rows"  # the logical axis of flat tokens: parts of rows (`context`), then rows


# --- the mesh --------------------------------------------------------------------------------------------------------


def make_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that `config.mesh` asks for, over `devices` (default: all of every process).

    Axes that talk most are nearest; with `slices`, `data` lies over them first. `UserError` where devices do not fill
    it, or a microbatch's rows, or a row's tokens, do not divide.
    """
    devices = jax.devices() if devices is None else list(devices)
    m = config.mesh
    wanted = abstract(config, len(devices))
    if wanted.size != len(devices):
        told = " x ".join(f"{axis} {getattr(m, axis)}" for axis in MESH_AXES)
        raise UserError(
            f"mesh: {told} does not fill {len(devices)} devices; the product of the axes must be {len(devices)}; "
            "data = 0 takes what the others leave"
        )
    found = len({getattr(device, "slice_index", 0) for device in devices})
    data, *others = wanted.axis_sizes
    if m.slices > 1 and (found != m.slices or data % m.slices):
        raise UserError(
            f"mesh.slices: {m.slices}, the devices are of {found} and mesh.data is {data}; must be as many as "
            "there are, and divide mesh.data; write 1 to take them as one"
        )
    types = (AxisType.Auto,) * len(MESH_AXES)
    if m.slices > 1:
        inner, outer = (data // m.slices, *others), (m.slices, *(1 for _ in others))
        mesh = Mesh(_arranged(mesh_utils.create_hybrid_device_mesh, inner, outer, devices), MESH_AXES, axis_types=types)
    else:
        mesh = Mesh(_arranged(mesh_utils.create_device_mesh, wanted.axis_sizes, devices), MESH_AXES, axis_types=types)
    if faults := list(undivided(config, mesh)):
        raise UserError("; ".join(faults))
    return mesh


def _arranged(create: Callable[..., np.ndarray], *arguments) -> np.ndarray:
    """The devices of a mesh. Each axis takes whole sides of the torus, or else, where sizes do not allow it, parts."""
    try:
        return create(*arguments)
    except NotImplementedError:
        return create(*arguments, allow_split_physical_axes=True)


def abstract(config: Config, devices: int) -> AbstractMesh:
    """The mesh of so many devices, which need not exist. `data` = 0 takes what the other axes leave."""
    sizes = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
    others = math.prod(n for axis, n in sizes.items() if axis != "data")
    sizes["data"] = sizes["data"] or max(devices // others, 1)
    return AbstractMesh(tuple(sizes.values()), MESH_AXES)


def dividing(config: Config) -> list[jax.Device]:
    """As many devices as a microbatch's rows divide among, to read a run that another machine trained."""
    devices = jax.devices()
    counts = range(len(devices), 1, -1)
    return devices[: next((n for n in counts if not any(undivided(config, abstract(config, n)))), 1)]


def one_device(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one device, by default this process's first: on any machine a run can be read with it."""
    devices = (jax.local_devices() if devices is None else devices)[:1]
    return jax.make_mesh(
        (1,) * len(MESH_AXES), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def undivided(config: Config, mesh: Mesh) -> Iterator[str]:
    """Faults: rows or tokens of a microbatch that do not divide among the mesh's parts."""
    rules = config.mesh.rules
    rows = config.data.batch // config.optim.accumulate
    if rows % (n := shard_count(("batch",), rules, mesh)):
        yield (
            f"data.batch / optim.accumulate: {rows} rows do not divide among the {n} parts of mesh.rules.batch = "
            f"{rules['batch']!r}; make the batch a multiple"
        )
    n = shard_count(("length",), rules, mesh)
    for name, stream in config.streams.items():
        if stream.budget % n:
            yield (
                f"streams.{name}.budget: {stream.budget} tokens do not divide among the {n} parts of "
                f"mesh.rules.length = {rules['length']!r}; make it a multiple, or mesh.context smaller"
            )


def unsplit(table: Mapping, rules: Mapping[str, str], mesh: Mesh) -> Iterator[str]:
    """Faults: arrays, with `shape` and logical `axes`, that cannot be split as the rules say."""
    for path, array in table.items():
        for size, axis in zip(array.shape, array.axes, strict=True):
            if size % (n := shard_count((axis,), rules, mesh)):
                yield (
                    f"{path}: its axis {axis} of {size} does not divide among the {n} parts of mesh.rules.{axis} = "
                    f"{rules[axis]!r}; change the size, the mesh, or the rule ('' does not split it)"
                )


def check_arrays(table: Mapping, rules: Mapping[str, str], mesh: Mesh) -> None:
    """Raises `UserError`, before anything is allocated, if arrays are `unsplit`."""
    if faults := list(unsplit(table, rules, mesh)):
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError("; ".join(faults[:3]) + more)


def memory(mesh: Mesh) -> int:
    """Bytes of one device's memory; on CPU the devices share the machine's."""
    if stats := mesh.local_devices[0].memory_stats():
        return stats["bytes_limit"]
    return machine_memory() // len(mesh.local_devices)


def machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# Options of TPU's compiler. Weights are gathered whole before their matmul: else XLA sends them in pieces between
# partial matmuls, which makes the program longer and slower to compile.
WHOLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
# Gathers begin early and go on beside matmuls; so do all-reduces. MaxText's recipes for v5p and v6e have seven options
# for this (CF_FOR_ALL_GATHER, CF_FOR_ALL_REDUCE in its benchmarks/xla_flags_library.py), of which libtpu 0.0.42 has
# all but these four by default. Compiled at full effort, FFNs of four of 7B's layers; in turn what is waited for on the
# links, temporaries and the compiler's CPU-seconds:
#   v5p:4x4x4, data 4, fsdp 16    none 7.1 ms, 3.9 GB, 16; GATHERS 4.9 ms, 3.9 GB, 16, and SUMS change nothing more, as
#                                 gradients are reduce-scattered
#   v6e:16x16, fsdp 256           none 16.2 ms, 2.6 GB, 34; GATHERS 12.6 ms, 3.1 GB, 42; with SUMS 1.8 ms, 3.4 GB, 84
# 16 of 24 gathers go on so, and on v6e all 12 all-reduces. Not taken: the recipes' DATA_PARALLEL_OVERLAP, which changed
# nothing, and xla_tpu_scoped_vmem_limit_kib=98304: 0.1 ms of 150 on v5p for five times the compiler's time. v5e and
# tpu7x were not compiled with any of these.
_FUSE = "xla_tpu_enable_async_collective_fusion_fuse"
GATHERS = {f"{_FUSE}_all_gather": "true", "xla_enable_async_all_gather": "true"}
SUMS = {f"{_FUSE}_all_reduce": "true", "xla_enable_async_all_reduce": "true"}
# libtpu 0.0.42 aborts where a gather runs along a part of the slice.
_OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload"
NO_OFFLOAD = {f"{_OFFLOAD}_{kind}": "false" for kind in ("all_gather", "all_reduce", "reduce_scatter")}
OPTIONS = {
    "TPU v5": WHOLE | GATHERS,
    "TPU v5p": WHOLE | GATHERS,
    "TPU v6 lite": WHOLE | GATHERS | SUMS,
    "TPU v6e": WHOLE | GATHERS | SUMS,
    "TPU7x": WHOLE | NO_OFFLOAD,
}  # by `jax.Device.device_kind`, which has two names for some


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Options for the programs of this mesh: none but on TPU, and none that `LIBTPU_INIT_ARGS` names."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu":
        return {}
    given = re.findall(r"(?:^|\s)--?(\w+)", os.environ.get("LIBTPU_INIT_ARGS", ""))
    return {name: value for name, value in OPTIONS.get(device.device_kind, WHOLE).items() if name not in given}


# --- logical axes ----------------------------------------------------------------------------------------------------


def axes_of(axis: str | None, rules: Mapping[str, str]) -> tuple[str, ...]:
    """The mesh axes that split a logical axis."""
    if axis == ROWS:
        return axes_of("length", rules) + axes_of("batch", rules)
    return names(rules.get(axis, "")) if axis else ()


def spec(axes: Sequence[str | None], rules: Mapping[str, str]) -> P:
    return P(*(axes_of(axis, rules) or None for axis in axes))


def shard_count(axes: Sequence[str | None], rules: Mapping[str, str], mesh=None) -> int:
    """The number of shards along these logical axes, on the given mesh or the active one."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return int(np.prod([mesh.shape.get(name, 1) for axis in axes for name in axes_of(axis, rules)], dtype=int))


def by_axes(mesh: Mesh, axes: Sequence[str | None], rules: Mapping[str, str]) -> NamedSharding:
    return NamedSharding(mesh, spec(axes, rules))


def of_batch(config: Config, mesh: Mesh) -> NamedSharding:
    """The sharding of an array `[B, C, ...]`."""
    return by_axes(mesh, ("batch", "length"), config.mesh.rules)


def copied(tree, shardings):
    """Copies of this process's arrays with these shardings, over any number of devices and processes.

    They share no memory with `tree` or with each other, so that each may be donated.
    """

    def copy(x, sharding):
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))

    return jax.tree.map(copy, tree, shardings)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def is_sharded() -> bool:
    """True if the active mesh splits an axis that rules can name. Runs of an ensemble lie along another axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(mesh.shape.get(axis, 1) > 1 for axis in MESH_AXES)


def constrain(x, axes: Sequence[str | None], rules: Mapping[str, str]):
    """`x`, and its gradient, split as its logical axes say, if a mesh of several devices is active."""
    return lax.with_sharding_constraint(x, spec(axes, rules)) if is_sharded() else x


def shard_map(f: Callable, inputs, outputs) -> Callable:
    """`jax.shard_map` of `f` if a mesh of several devices is active, else `f`; inputs and outputs are specs."""
    return jax.shard_map(f, in_specs=inputs, out_specs=outputs, check_vma=False) if is_sharded() else f


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def all_gather(x, names: tuple[str, ...], dim: int, dtype):
    """Inside `shard_map`: x whole along `dim`, in `dtype`. Its gradient is summed in the dtype of x."""
    return lax.all_gather(x.astype(dtype), names, axis=dim, tiled=True) if names else x.astype(dtype)


def _all_gather_backward(names, dim, dtype, like, g):
    g = g.astype(like.dtype)
    return (lax.psum_scatter(g, names, scatter_dimension=dim, tiled=True) if names else g,)


all_gather.defvjp(
    lambda x, names, dim, dtype: (all_gather(x, names, dim, dtype), jnp.zeros((), x.dtype)),
    _all_gather_backward,
)


def gathered(w, of_width: tuple[str, ...], of_columns: tuple[str, ...]):
    """`w`, whose first axis and whose second lie along these mesh axes, whole along the first: one array for all who
    read it.

    XLA gathers an operand for each product by itself, and does not always see that two gathers are the same.
    """
    split = lax.with_sharding_constraint(w, P(of_width, of_columns))  # else XLA may gather what was cast to w
    return lax.with_sharding_constraint(split, P(None, of_columns))


# --- parts of rows ---------------------------------------------------------------------------------------------------
# With `context`, a part of a row is a row to all that looks at single tokens: [B, C] becomes [c * B, C / c], parts
# first, so that each device's tokens stay its own when they are laid flat.


def split_context(tree, rules: Mapping[str, str]):
    """Every array `[B, C, ...]` as `[c * B, C / c, ...]`, where `context` splits a row into c parts."""
    c = shard_count(("length",), rules)
    if c == 1:
        return tree

    def cut(x):
        B, C = x.shape[:2]
        x = constrain(x, ("batch", "length"), rules).reshape(B, c, C // c, *x.shape[2:])
        x = constrain(x, ("batch", "length"), rules).swapaxes(0, 1)
        x = constrain(x, ("length", "batch"), rules).reshape(c * B, C // c, *x.shape[3:])
        return constrain(x, (ROWS,), rules)

    return jax.tree.map(cut, tree)


def join_context(tree, rules: Mapping[str, str]):
    """Undoes `split_context`."""
    c = shard_count(("length",), rules)
    if c == 1:
        return tree

    def join(x):
        B = x.shape[0] // c
        C = x.shape[1]
        x = constrain(x, (ROWS,), rules).reshape(c, B, C, *x.shape[2:])
        x = constrain(x, ("length", "batch"), rules).swapaxes(0, 1)
        x = constrain(x, ("batch", "length"), rules).reshape(B, c * C, *x.shape[3:])
        return constrain(x, ("batch", "length"), rules)

    return jax.tree.map(join, tree)


# --- several processes -----------------------------------------------------------------------------------------------


def rows_of_process(config: Config, mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of `count` equal parts of a batch's rows this process's devices hold.

    Processes whose devices share rows (along `context` or `tensor`) have the same index.
    """
    B = config.data.batch
    # Rows alone matter: where `context` splits them, the devices that hold a row do not depend on its length.
    held = by_axes(mesh, ("batch",), config.mesh.rules).addressable_devices_indices_map((B,)).values()
    bounds = sorted(index[0].indices(B)[:2] for index in held)
    first = bounds[0][0]
    rows = max(end for _, end in bounds) - bounds[0][0]
    if {start for start, _ in bounds} != set(range(first, first + rows, bounds[0][1] - first)) or first % rows:
        raise UserError(
            "mesh: a process's devices do not hold rows that lie together; make data, fsdp or expert a multiple of the "
            "processes' number"
        )
    return first // rows, B // rows


def to_global(tree, config: Config, mesh: Mesh):
    """A global batch on its devices, from each process's own rows."""
    sharding = of_batch(config, mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    index, count = rows_of_process(config, mesh)

    def global_array(x):
        shift = index * x.shape[0]

        def share(index):
            return x[slice(index[0].start - shift, index[0].stop - shift), *index[1:]]

        return jax.make_array_from_callback((x.shape[0] * count, *x.shape[1:]), sharding, share)

    return jax.tree.map(global_array, tree)


def sum_over_processes(x, config: Config, mesh: Mesh):
    """The sum over processes of `x`, which each has from its own rows. It is a device array, and is not awaited."""
    if jax.process_count() == 1:
        return x
    count = rows_of_process(config, mesh)[1]
    rows = by_axes(mesh, ("batch",), config.mesh.rules)
    each = config.data.batch // count

    # x stands in the first of this process's rows.
    def share(index):
        return np.stack([x * (r % each == 0) for r in range(*index[0].indices(config.data.batch))])

    return _sum_over_rows(jax.make_array_from_callback((config.data.batch, *x.shape), rows, share), replicated(mesh))


@partial(jax.jit, static_argnames="sharding")
def _sum_over_rows(x, sharding: NamedSharding) -> jax.Array:
    return lax.with_sharding_constraint(jnp.sum(x, 0), sharding)


def is_first_process() -> bool:
    """True in the one process that writes a run's files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
