"""A CPU's cores as devices of JAX, over which the mesh splits a batch's rows, or several runs.

XLA runs the matmuls of a loop, as attention's and the loss's are, on one thread of a device; other cores would wait.
"""

import os
from collections.abc import Sequence
from contextlib import suppress

import jax

from mot import sharding
from mot.config import Config
from mot.train.memory import needed

# A device that waits this long for the others is lost. XLA ends the process after a minute, which a loaded machine
# needs for a long step, and a laptop that slept always.
PATIENCE = 24 * 3600
FLAGS = {
    "xla_cpu_collective_call_warn_stuck_timeout_seconds": PATIENCE,
    "xla_cpu_collective_call_terminate_timeout_seconds": PATIENCE,
}

ACCELERATORS = (("an NVIDIA GPU", "/dev/nvidia0", "cuda"), ("a TPU", "/dev/accel0", "tpu"))  # with file and extra


def take(*configs: Config, together: bool = False) -> None:
    """Makes as many devices as serve runs, one after another or all `together`; as `make`."""
    make(serving(configs, cores(), together))


def make(devices: int) -> None:
    """Makes so many devices of the CPU, unless the user has said how many.

    To be called before JAX has devices; later it changes nothing.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join([flags, *(f"--{f}={n}" for f, n in FLAGS.items() if f not in flags)]).strip()
    if jax.config.jax_num_cpu_devices < 0 and "xla_force_host_platform_device_count" not in flags:
        with suppress(RuntimeError):  # JAX has its devices
            jax.config.update("jax_num_cpu_devices", devices)


def unused() -> str:
    """What this machine has and JAX does not use, though nobody has told it to; "" where there is nothing."""
    if jax.default_backend() != "cpu" or jax.config.jax_platforms:
        return ""
    for what, extra in accelerators():
        return (
            f"this machine has {what} and JAX computes on the CPU: install '.[{extra}]' with constraints.txt; if "
            "it is, MOT_DEBUG=1 shows what JAX says; JAX_PLATFORMS=cpu is content with the CPU"
        )
    return ""


def accelerators() -> list[tuple[str, str]]:
    """What this machine seems to have, and the extra that serves it; none where JAX may use the CPU alone.

    JAX is not asked, as it would take them for this process.
    """
    if jax.config.jax_platforms == "cpu":
        return []
    return [(what, extra) for what, file, extra in ACCELERATORS if os.path.exists(file)]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serving(configs: Sequence[Config], most: int, together: bool = False) -> int:
    """Of 1 to `most` devices the greatest number among which runs that are together divide, or else the rows of each.

    Each holds the parameters that the mesh does not split: together at most half of the machine's memory.
    """

    def serves(n):
        return len(configs) % n == 0 if together else all(_serves(c, n) for c in configs)

    return next((n for n in range(most, 1, -1) if serves(n)), 1)


def _serves(config, n):
    mesh = sharding.abstract(config, n)
    if mesh.size != n or any(sharding.undivided(config, mesh)):
        return False
    return n * sum(needed(config, mesh)) <= sharding.machine_memory() / 2
