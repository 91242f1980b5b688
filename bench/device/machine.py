"""The devices that JAX finds: their chip, its peak figures, and the rungs of the ladder that fit."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bench import timing
from configs import ladder
from mot import optim, sharding
from mot.config import Config, resolve
from mot.plan import chips, search
from mot.plan.chips import Chip, Topology
from mot.runs import peak, provenance

ARCHS = ("dense", "mot", "moe_ec4", "mot_moe")
PUBLISHED = ("37m", "94m", "443m", "1.5b", "7b")
RUNGS = {"cpu": ("0.3m", "1m", "3m")}
MOST_ROWS = {"cpu": 4}  # of a device
MOST_ROWS_OF_OTHERS = 16
LARGEST = 3  # rungs that are measured
DTYPES = {"cpu": "float32"}  # as configs/sizes.py has it
MATRIX, SMALL_MATRIX = 8192, 512  # rows and columns
COPIED, COPIED_SMALL = 2**29, 2**22  # numbers


def devices() -> list[jax.Device]:
    return jax.local_devices()


def platform() -> str:
    return devices()[0].platform


def dtype() -> str:
    return DTYPES.get(platform(), "bfloat16")


def memory() -> int:
    """Bytes of one device that programs may have."""
    return sharding.memory(sharding.one_device())


def peak_memory() -> int | None:
    """Bytes that this process has had at most on one device; None where the device does not count them."""
    stats = [device.memory_stats() for device in devices()]
    return max(s["peak_bytes_in_use"] for s in stats) if all(stats) else None


def topology(measured: float | None) -> Topology | None:
    """The devices that are there, with what bounds them.

    A chip whose figures nobody has told has the matmul peak that was `measured`, FLOP/s of a device, and memory and
    links that take no time. None where that is missing, too.
    """
    found = devices()
    chip = chips.of_kind(found[0].device_kind)
    if chip is None and measured is None:
        return None
    chip = chip or Chip(measured, 0, math.inf, math.inf, math.inf)
    chip = dataclasses.replace(chip, memory=memory() * chip.devices)
    name = f"{len(found)} x {found[0].device_kind}"
    return Topology(name, chip, len(found) // chip.devices, found, {"jax": jax.__version__})


def found(smoke: bool) -> Iterator[dict]:
    """One row: the devices, and the rungs with the rows of their steps."""
    first = devices()[0]
    chip = chips.of_kind(first.device_kind)
    published = chip and {"flops": chip.flops / chip.devices, "bandwidth": chip.bandwidth / chip.devices}
    about = {"platform": first.platform, "device_kind": first.device_kind, "devices": len(devices())}
    about |= {"memory": memory(), "published": published, "counts_memory": peak_memory() is not None}
    about |= {"dtype": dtype(), "rungs": rungs(smoke), **provenance.made_by()}
    yield about


def rungs(smoke: bool) -> list[dict]:
    """The largest rungs of which dense and MoT fit, smallest first: the rows of a device, the same for all
    architectures that fit, and the bytes that those which do not would take with one row."""
    names = RUNGS.get(platform(), PUBLISHED)
    room = search.ROOM * memory()
    found = []
    for rung in names[:1] if smoke else names:
        least = {arch: search.memory(configuration(rung, arch, 1, smoke)) for arch in ARCHS}
        fitting = [arch for arch, held in least.items() if held <= room]
        if {*ARCHS[:2]} <= {*fitting}:
            large = {arch: held for arch, held in least.items() if arch not in fitting}
            found.append({"rung": rung, "rows": _rows(rung, fitting, room, smoke), "too_large": large})
    return found[-LARGEST:]


def _rows(rung: str, archs: Sequence[str], room: float, smoke: bool) -> int:
    """The most rows with which all architectures fit: a power of two."""
    rows = 1 if smoke else MOST_ROWS.get(platform(), MOST_ROWS_OF_OTHERS)
    while rows > 1 and any(search.memory(configuration(rung, arch, rows, smoke)) > room for arch in archs):
        rows //= 2
    return rows


def configuration(rung: str, arch: str, rows: int, smoke: bool, **model: str) -> Config:
    """The ladder's configuration for these devices, all along fsdp, with so many rows on each."""
    tree = ladder.get_config(f"rung={rung},arch={arch},device={platform()}").unlock()
    tree.data.batch = rows * len(devices())
    tree.mesh.update(data=1, fsdp=len(devices()))
    tree.model.update(model)
    if smoke:
        tree.model.layers = 1
    return resolve(tree, optim.uncovered)


def peaks(smoke: bool) -> Iterator[dict]:
    """Two rows: FLOP/s of square matmuls, and bytes a second of a copy, of one device each."""
    mesh = sharding.one_device()
    sizes = (SMALL_MATRIX,) if smoke or platform() == "cpu" else (MATRIX // 2, MATRIX)
    with jax.set_mesh(mesh):
        best = peak.measure(mesh, dtype(), sizes, 0.2 if smoke else 2.0)
    yield {"name": "matmul", "flops": best.flops, "size": best.size, "dtype": dtype()}
    numbers = COPIED_SMALL if smoke or platform() == "cpu" else COPIED
    x = jnp.zeros(numbers, dtype())
    add = jax.jit(lambda x: x + 1)
    seconds = timing.of_a_call(lambda: add(x), 0.2 if smoke else 1.0)
    yield {"name": "memory", "bandwidth": 2 * numbers * np.dtype(x.dtype).itemsize / seconds, "bytes": x.nbytes}
