"""The mesh, remat policy and microbatches with which a configuration's step is fastest on a slice.

Estimates rank every candidate, and the compiler judges the best few in full: since layers are scanned, a shallow model
takes it as long as the whole one.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from jax.sharding import AbstractMesh

from mot import sharding
from mot.config import Config
from mot.config.axes import MESH_AXES
from mot.errors import UserError
from mot.model import flops, params
from mot.plan.chips import Topology
from mot.plan.forecast import ATTENTION, RECOMPUTED_ATTENTION, RECOMPUTING, attention_work, recomputed

REMAT = ("none", "dots", "block")
TENSOR, CONTEXT, PARTS = (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8, 16)
# Devices along fsdp on a torus of three axes: over a whole one the compiler makes gathers into all-reduces, which send
# twice as much (libtpu 0.0.42, v5p:4x4x4 and 4x4x8, tpu7x:4x4x4; not 2x4x4 and below).
PLANE = 16
ROOM = 0.9  # of memory that an estimate may fill
FINISHED = 4  # candidates that fit, of which the fastest is taken
TRIED = 8  # candidates at most, where the first do not fit


@dataclass(frozen=True)
class Candidate:
    config: Config
    seconds: float  # both are estimates
    bytes: float

    @property
    def told(self) -> str:
        m = self.config.mesh
        c = self.config
        axes = " ".join(
            f"{axis}={n}" for axis in ("data", "fsdp", "expert", "context", "tensor") if (n := getattr(m, axis)) > 1
        )
        return f"{axes or 'one device'}, remat {c.model.remat}, {c.optim.accumulate} microbatches"


def candidates(config: Config, topology: Topology) -> list[Candidate]:
    """Those that divide and may fit, the fastest by estimate first; the expert axis stays as the configuration has it.

    `UserError` where none does.
    """
    found = []
    for config_ in _variants(config, len(topology.devices)):
        held, seconds = estimate(config_, topology)
        if held <= ROOM * topology.memory:
            found.append(Candidate(config_, seconds, held))
    if not found:
        raise UserError(
            f"{topology.name}: no mesh, remat policy and number of microbatches was found with which "
            f"{config.run.name} fits; take a larger slice, or mesh.expert where it has experts"
        )
    return sorted(found, key=lambda c: (c.seconds, c.bytes))


def _variants(config: Config, devices: int) -> Iterator[Config]:
    m = config.mesh
    for tensor, context, parts, remat in itertools.product(TENSOR, CONTEXT, PARTS, REMAT):
        left, rest = divmod(devices, tensor * context * m.expert)
        if rest or config.data.batch % parts:
            continue
        for data in (n for n in range(1, left + 1) if left % n == 0 and n % m.slices == 0):
            if data > 1 and data not in (m.slices, left // PLANE, left):
                continue  # between them lie meshes that are neither the least memory nor the least sent
            changed = dataclasses.replace(
                config,
                mesh=dataclasses.replace(m, data=data, fsdp=left // data, context=context, tensor=tensor),
                model=dataclasses.replace(config.model, remat=remat),
                optim=dataclasses.replace(config.optim, accumulate=parts),
            )
            if _divides(changed):
                yield changed


def _divides(config: Config) -> bool:
    """Do rows, tokens and every parameter divide among the parts?"""
    m = config.mesh
    mesh = AbstractMesh(tuple(getattr(m, axis) for axis in MESH_AXES), MESH_AXES)
    faults = itertools.chain(sharding.undivided(config, mesh), sharding.unsplit(params.table(config), m.rules, mesh))
    return next(faults, None) is None


def estimate(config: Config, topology: Topology) -> tuple[float, float]:
    """Bytes of a device and seconds of a step, roughly."""
    m = config.mesh
    c = config.model
    devices = len(topology.devices)
    weights = params.count(params.table(config))
    parts = config.optim.accumulate
    tokens = config.data.batch * config.length / (devices // m.tensor)  # of a device, all microbatches
    D = max(s.width for s in config.streams.values())
    F = max(max(s.active * (s.width or 0) for s in config.ffn.values()), *(s.ffn for s in config.streams.values()))
    heads = (c.heads + 2 * c.kv_heads) * c.head_size / m.tensor
    kept = {"block": 2 * D, "dots": 2 * (2 * D + heads + 2 * F / m.tensor)}
    kept |= {"none": 2.5 * kept["dots"], "offload": kept["block"]}
    rows = max(config.data.batch / parts / (m.data * m.fsdp * m.expert), 1)
    logits = 3 * 4 * rows * config.objective.chunk * config.vocab / m.tensor
    held = 16 * weights / (m.fsdp * m.tensor * m.expert) + tokens / parts * c.layers * kept[c.remat] + logits
    held += 3 * 4 * weights / c.layers / m.tensor  # of a layer, whole

    counts = {name: config.data.batch * s.budget for name, s in config.streams.items()}
    seen = ATTENTION + (RECOMPUTED_ATTENTION if c.remat in RECOMPUTING else 0)
    attention = flops.FORWARD_AND_BACKWARD * attention_work(config) * flops.attention_per_pair(config) * seen
    computed = (flops.train_step(config, counts, 0) + recomputed(config, counts) + attention) / devices

    def away(n):
        return (n - 1) / n

    sent = (2 * 2 + 4) * weights / m.tensor * away(m.fsdp) * parts  # gathered twice, and gradients
    sent *= 2 if topology.chip.axes == 3 and m.fsdp == devices > 2 * PLANE else 1
    sent += 2 * 4 * weights / (m.tensor * m.fsdp) * away(m.data) * parts
    sent += (12 if c.remat in RECOMPUTING else 8) * tokens * D * 2 * c.layers * away(m.tensor)
    sent += 3 * tokens * 2 * 2 * c.kv_heads * c.head_size / m.tensor * c.layers * (m.context - 1)
    compute, send = computed / topology.flops, sent / topology.sends
    return held, max(compute, send) + 0.2 * min(compute, send)
