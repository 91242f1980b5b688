"""The machine's matmul peak, of which MFU is a fraction. It is measured, and kept for each machine with its date.

Other work on a shared machine makes it slower for a while, and never faster. So the best of many tries in the last week
is nearest to what the machine can do.
"""

import json
import math
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mot.files import cache_folder, write_atomically
from mot.runs import provenance

FILE = "matmul_peak.json"
SIZES = {"cpu": (512, 1024, 2048, 4096)}
SIZES_OF_OTHERS = (2048, 4096, 8192)  # accelerators
LONG = 1000  # steps of a run that are worth more tries
SECONDS, SECONDS_OF_LONG, SECONDS_AGAIN = 1.0, 4.0, 0.1  # of tries; the last where a peak is known
KEPT = timedelta(days=7)


class Peak(NamedTuple):
    flops: float  # FLOP/s of all devices together
    size: int  # rows and columns of the matrices that reached it
    seconds: float  # that were given to tries
    measured: str  # when; ISO 8601, UTC
    cached: bool = False  # by an earlier start

    def told(self) -> dict:
        """What a start event says of it."""
        return {
            "matmul_peak": self.flops,
            "matmul_peak_measured": self.measured,
            "matmul_peak_size": self.size,
            "matmul_peak_cached": self.cached,
        }


def of(mesh: Mesh, dtype: str, steps: int, say: Callable[[str], None]) -> Peak:
    """The peak of the mesh's devices, for a run of so many steps: this machine's, kept or measured now.

    A kept peak is tried again for a moment at the size that reached it, and is raised where this start measures more.
    It is measured anew where it is older than `KEPT`, and where a long run allows more time than it had. `say` is
    called before a measurement that takes long enough to be noticed. Each process measures its own devices.
    """
    local = mesh if mesh.size == len(mesh.local_devices) else Mesh(np.array(mesh.local_devices), ("devices",))
    first = mesh.local_devices[0]
    machine = f"{socket.gethostname()}, {provenance.cpu() if first.platform == 'cpu' else first.device_kind}"
    key = f"{machine}, {local.size} devices, {dtype}, jax {jax.__version__}"
    seconds = SECONDS_OF_LONG if steps >= LONG else SECONDS
    folder = cache_folder()
    file = folder / FILE if folder else None
    kept = _read(file)
    known = kept.get(key)
    sizes = SIZES.get(first.platform, SIZES_OF_OTHERS)
    is_enough = known is not None and known.seconds >= seconds and known.size in sizes
    if not is_enough:
        say(f"measuring the matmul peak of {local.size} x {first.device_kind} in {dtype}, about {seconds:.0f} s")
    with jax.set_mesh(local):
        now = measure(local, dtype, (known.size,) if is_enough else sizes, SECONDS_AGAIN if is_enough else seconds)
    best = now
    if known is not None:
        best = max(known._replace(cached=True), now)  # FLOP/s come first
        best = best._replace(seconds=max(known.seconds, now.seconds))
    if file and best._replace(cached=False) != known:
        _write(file, kept | {key: best})
    return best._replace(flops=best.flops * mesh.size / local.size)


def measure(mesh: Mesh, dtype: str, sizes: tuple[int, ...], seconds: float) -> Peak:
    """The best FLOP/s that all devices of the mesh reach together on square matmuls, in so many seconds of tries.

    Each size is tried, smallest first, while there is time; the rest of the time goes to the best one. Compiling takes
    more time. Constant matrices cost an accelerator the least power, so real ones do not reach more than this.
    """
    rows = NamedSharding(mesh, P(mesh.axis_names))
    left = seconds
    best = Peak(0.0, sizes[0], seconds, provenance.now())
    programs = {}

    def tried(n: int) -> tuple[Peak, float]:
        """The best so far after one more multiplication, and its seconds."""
        multiply, a = programs[n]
        start = time.perf_counter()
        multiply(a).block_until_ready()
        took = time.perf_counter() - start
        return max(best, best._replace(flops=2 * n**3 * mesh.size / took, size=n)), took

    tries = 1 if len(sizes) == 1 else 2  # the first is slower, and none to choose by: memory is new, threads asleep
    for n in sizes:
        if best.flops and tries * 2 * n**3 * mesh.size / best.flops > left:
            break
        programs[n] = _program(mesh, rows, dtype, n)
        for _ in range(tries):
            best, took = tried(n)
            left -= took
    while left > 0:
        best, took = tried(best.size)
        left -= took
    return best


def _program(mesh: Mesh, rows: NamedSharding, dtype: str, n: int) -> tuple[jax.stages.Compiled, jax.Array]:
    """A multiplication on every device, compiled, and what it multiplies with itself."""
    a = jax.jit(lambda: jnp.full((mesh.size, n, n), 0.5, dtype), out_shardings=rows)()
    multiply = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=dtype), out_shardings=rows)
    return multiply.lower(a).compile(), a


def _read(file: Path | None) -> dict[str, Peak]:
    """The peaks of machines that are not too old; none of a file that is damaged or foreign."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else {}
        peaks = {key: Peak(**{**record, "cached": False}) for key, record in found.items()}
        return {key: peak for key, peak in peaks.items() if _holds(peak)}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _holds(peak: Peak) -> bool:
    """Raises `ValueError` or `TypeError` where it is none."""
    types = (type(peak.flops), type(peak.seconds), type(peak.size))
    if types != (float, float, int) or not (0 < peak.flops < math.inf and 0 < peak.seconds < math.inf):
        raise ValueError(f"{peak} is no measurement")
    age = datetime.now(UTC) - datetime.fromisoformat(peak.measured)
    return timedelta(0) - timedelta(minutes=1) <= age <= KEPT  # another machine's clock may run a little ahead


def _write(file: Path, peaks: dict[str, Peak]) -> None:
    records = {key: {k: v for k, v in peak._asdict().items() if k != "cached"} for key, peak in peaks.items()}
    with suppress(OSError):  # as on a full disk: the next start measures again
        write_atomically(file, json.dumps(records, indent=1))
