"""Slices of TPUs as Google Cloud calls them, from the names of mot.plan.chips.

Sources: docs.cloud.google.com/tpu (versions, runtimes) and /kubernetes-engine (plan-tpus).
"""

import math
from typing import NamedTuple

from launch.targets.job import OPTIONS, Job
from mot.errors import UserError
from mot.plan import chips


class Kind(NamedTuple):
    label: str  # of GKE's nodes
    accelerator: str  # of TPU VMs, without its count; "" where they are had by GKE alone
    counts: int  # for each chip: some count TensorCores
    runtime: str  # of TPU VMs
    single: int  # chips that one machine may have, as a whole slice
    host: int = 4  # chips of each machine where a slice has several


KINDS = {
    "v4": Kind("tpu-v4-podslice", "v4", 2, "tpu-ubuntu2204-base", 4),
    "v5e": Kind("tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite", 8),
    "v5p": Kind("tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5", 4),
    "v6e": Kind("tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e", 8),
    "tpu7x": Kind("tpu7x", "", 2, "", 4),
}


class Slice(NamedTuple):
    kind: Kind
    shape: str  # 4x4x4
    chips: int
    hosts: int

    @property
    def chips_of_host(self) -> int:
        return self.chips // self.hosts


def of(topology: str) -> Slice:
    """Raises `UserError` for a topology that no machines make up."""
    _, sides = chips.parse(topology)
    name, _, shape = topology.partition(":")
    kind = KINDS[name]
    count = math.prod(sides)
    hosts = 1 if count <= kind.single else count // kind.host
    if hosts > 1 and count % kind.host:
        raise UserError(
            f"--topology {topology}: {count} chips, and a slice of several machines has {kind.host} on each; take a "
            "shape of a multiple of it"
        )
    return Slice(kind, shape, count, hosts)


def refuse(j: Job) -> list[str]:
    """Faults of a job on slices."""
    faults = [f"--{name} is missing: {OPTIONS[name].about}" for name in ("topology", "image") if not j.options[name]]
    if j.options["topology"]:
        found = of(j.options["topology"])
        if j.is_sweep and found.hosts > 1:
            faults.append(
                f"--topology={j.options['topology']}: has {found.hosts} machines, and a sweep runs on one; take a "
                "smaller slice, or launch its rows as trainings"
            )
        if j.slices > 1 and found.hosts == 1:
            faults.append(
                f"--config.mesh.slices={j.slices}: slices that are joined have several machines each; take larger ones"
            )
    return faults
