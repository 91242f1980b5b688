"""Accelerators: what they can do at most; and slices of TPUs by name: which devices the compiler sees in them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mot.errors import UserError

if TYPE_CHECKING:  # slices are named without JAX, which takes seconds to import
    import jax

GIB = 2**30
# Of `Chip.scatters_over`; libtpu 0.0.42, for one matmul's gradient and for 7B's.
SMALL = 4  # devices of a slice
ALONG = 64  # devices


@dataclass(frozen=True)
class Chip:
    """Peak figures of one chip, as its maker publishes them."""

    flops: float  # bfloat16, a second
    memory: int  # bytes that the compiler has for programs: somewhat less than data sheets say
    bandwidth: float  # of memory, bytes a second
    links: float  # of all links to other chips, both ways together, bytes a second
    network: float  # of the data centre's, between slices: bytes a second that it sends
    axes: int = 3  # of the torus
    most: int = 0  # chips in one slice
    closed: int = 4  # sides that are multiples of it are rings; on a torus of three axes all or none
    scatters: bool = False  # gradients are reduce-scattered along any number of devices
    devices: int = 1  # of a chip, as JAX counts
    options: tuple[tuple[str, str], ...] = ()  # for the compiler

    def scatters_over(self, devices: int, slice: int) -> bool:
        """Are gradients along so many of a slice's devices reduce-scattered? Else they are all-reduced: twice as much.

        All chips' are on `SMALL` slices, and on others along a part of them up to `ALONG`, of most sizes.
        """
        return self.scatters or slice <= SMALL or devices <= min(slice // 2, ALONG)


# Sources: the maker's pages at docs.cloud.google.com/tpu; v4's links are six of 50 GB/s each way (2304.01433). Networks
# are told in Gbit/s a chip: 25 (v5e: 6.4 Tbit/s for 256), 50 (v5p), 100 (v6e, tpu7x). v4's is not told, and taken as
# v5p's.
CHIPS = {
    # "megacore": the chip's two cores are one device, as on machines that have it.
    "v4": Chip(275e12, int(30.75 * GIB), 1200e9, 600e9, 6.25e9, most=4096, options=(("chip_config_name", "megacore"),)),
    "v5e": Chip(197e12, int(15.75 * GIB), 819e9, 400e9, 3.125e9, axes=2, most=256, closed=16),
    "v5p": Chip(459e12, int(95.74 * GIB), 2765e9, 1200e9, 6.25e9, most=8960),
    "v6e": Chip(918e12, int(31.25 * GIB), 1638e9, 800e9, 12.5e9, axes=2, most=256, closed=16),
    "tpu7x": Chip(2307e12, 2 * int(94.75 * GIB), 7380e9, 1200e9, 12.5e9, most=9216, devices=2, scatters=True),
}
# How JAX names their devices, some by two names.
KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p"}
KINDS |= {"TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "tpu7x"}


def _gpu(flops: float, memory: float, bandwidth: float, links: float, network: float) -> Chip:
    return Chip(flops, int(memory), bandwidth, links, network, axes=0, scatters=True)


# By the same names. Sources: NVIDIA's data sheets, of which FLOPs are those without sparsity. Links are NVLink's, both
# ways; without it those of PCIe. The network is that of a DGX: 200 Gbit/s a GPU (A100), 400 (others).
GPUS = {
    "NVIDIA A100-SXM4-40GB": _gpu(312e12, 40e9, 1555e9, 600e9, 25e9),
    "NVIDIA A100-SXM4-80GB": _gpu(312e12, 80e9, 2039e9, 600e9, 25e9),
    "NVIDIA A100-PCIE-40GB": _gpu(312e12, 40e9, 1555e9, 64e9, 25e9),
    "NVIDIA A100 80GB PCIe": _gpu(312e12, 80e9, 1935e9, 64e9, 25e9),
    "NVIDIA H100 80GB HBM3": _gpu(989e12, 80e9, 3350e9, 900e9, 50e9),
    "NVIDIA H100 PCIe": _gpu(756e12, 80e9, 2000e9, 128e9, 50e9),
    "NVIDIA H100 NVL": _gpu(835e12, 94e9, 3900e9, 600e9, 50e9),
    "NVIDIA H200": _gpu(989e12, 141e9, 4800e9, 900e9, 50e9),
    "NVIDIA H200 NVL": _gpu(835e12, 141e9, 4800e9, 900e9, 50e9),
    "NVIDIA B200": _gpu(2250e12, 180e9, 8000e9, 1800e9, 50e9),
}
EXAMPLES = "v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4"


def of_kind(kind: str) -> Chip | None:
    """The chip of a device that JAX calls so; None where its figures are not here."""
    return CHIPS[KINDS[kind]] if kind in KINDS else GPUS.get(kind)


@dataclass(frozen=True)
class Topology:
    name: str
    chip: Chip
    chips: int  # of all slices
    devices: "Sequence[jax.Device]"
    versions: dict[str, str]  # of what compiles

    @property
    def memory(self) -> int:
        """Of one device, as are the next four."""
        return self.chip.memory // self.chip.devices

    @property
    def flops(self) -> float:
        return self.chip.flops / self.chip.devices

    @property
    def bandwidth(self) -> float:
        return self.chip.bandwidth / self.chip.devices

    @property
    def sends(self) -> float:
        """Bytes a second that it can send, every link busy: half of what goes both ways."""
        return self.chip.links / 2 / self.chip.devices

    @property
    def sends_between(self) -> float:
        """Bytes a second that it can send to other slices."""
        return self.chip.network / self.chip.devices


def parse(name: str) -> tuple[Chip, tuple[int, ...]]:
    """`v5p:4x4x4` as the chip and the torus's sides."""
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"--topology {name}: no such chip as {kind!r}; allowed: {', '.join(CHIPS)}; write {EXAMPLES}")
    chip = CHIPS[kind]
    sides = tuple(int(n) for n in shape.split("x")) if re.fullmatch(r"[1-9]\d{0,99}(x[1-9]\d{0,99})*", shape) else ()
    if len(sides) != chip.axes:
        raise UserError(
            f"--topology {name}: {kind} is a torus of {chip.axes} axes, so its shape is {chip.axes} numbers above 0 "
            f"with x between; write as in {EXAMPLES}"
        )
    if (chips := math.prod(sides)) > chip.most:
        raise UserError(
            f"--topology {name}: {chips} chips, and a slice of {kind} has {chip.most} at most; take a smaller shape, "
            "and several slices by --config.mesh.slices=2"
        )
    return chip, sides


def wrap(name: str) -> tuple[bool, bool, bool]:
    """Along which axes a slice's first and last chips are linked, so that a side is a ring.

    v4, v5p and tpu7x: along all where the slice is of whole cubes of 4x4x4, which optical switches join. v5e and v6e:
    along sides as long as the pod's. As in docs.cloud.google.com/tpu and in MaxText's table
    (`utils/accelerator_to_spec_map.py`).
    """
    chip, sides = parse(name)
    rings = [side % chip.closed == 0 for side in sides]
    if chip.axes == 3:
        rings = [all(rings)] * 3
    first, second, third = [*rings, False][:3]
    return first, second, third


def topology(name: str, slices: int = 1) -> Topology:
    """The devices that the compiler sees in so many slices of that name; needs the extra `tpu`, but no TPU."""
    chip, sides = parse(name)
    try:
        import jax
        import libtpu
        from jax.experimental import topologies  # the one way to devices that are not there
    except ImportError as error:
        raise UserError(
            f"mot plan compiles with TPU's compiler, and {error.name} is not installed; no TPU is needed: "
            "pip install -e '.[tpu]'"
        ) from error
    host = (2, 2, 1) if all(n % 2 == 0 for n in sides[:2]) else (1, 1, 1)
    # Without `wrap` the compiler takes an environment variable's word, or else no slice has rings.
    options = dict(chip.options) | {"chips_per_host_bounds": host, "wrap": wrap(name)}
    options |= {"num_slices": slices} if slices > 1 else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"--topology {name}: the compiler knows no such slice ({said}); write as in {EXAMPLES}"
        ) from error
    versions = {"jax": jax.__version__, "libtpu": libtpu.__version__}
    return Topology(name, chip, math.prod(sides) * slices, devices, versions)
