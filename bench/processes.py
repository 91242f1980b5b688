"""What several processes cost: the steps of two, with a device each, against those of one that has both devices."""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mot.runs import rundir

ROUNDS = 5
STEPS = 60
WARM = 10  # steps that are not counted
RUNG = {"streams.text.width": 384, "streams.text.ffn": 1024, "streams.image.width": 384, "streams.image.ffn": 1024}
RUNG |= {"model.layers": 6, "model.heads": 12, "model.kv_heads": 12}
SIZES = {
    "demo": ("configs/digits.py:arch=mot,size=demo", {}),
    "10M": ("configs/digits.py:arch=dense,size=demo", RUNG),
}


def steps_of_two(size: str = "demo", rounds: int = ROUNDS, steps: int = STEPS) -> list[float]:
    """Seconds of two processes' steps over those of one with as many devices, of each of some rounds in turn."""
    with tempfile.TemporaryDirectory() as folder:
        trained(folder, "warm-1", 1, size, 2)
        trained(folder, "warm-2", 2, size, 2)  # what they compile is kept
        found = []
        for n in range(rounds):
            two, one = (trained(folder, f"{n}-{count}", count, size, steps) for count in (2, 1))
            found.append(two / one)
    return found


def trained(root: str, name: str, processes: int, size: str, steps: int) -> float:
    """Trains with two devices, so many processes together; seconds of the steps after the first few."""
    config, values = SIZES[size]
    values = values | {"run.root": root, "run.name": name, "run.steps": steps, "run.eval_batches": 1}
    values |= {"run.eval_every": 10**6, "run.save_every": 10**6, "optim.warmup": 1}
    command = [sys.executable, "-m", "launch.train", f"--config={config}"]
    command += [f"--config.{key}={value}" for key, value in values.items()]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(2 // processes)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    each = [[f"--distributed={address},{i},{processes}"] if processes > 1 else [] for i in range(processes)]
    started = [subprocess.Popen(command + more, env=env, stderr=subprocess.PIPE, text=True) for more in each]
    said = [process.communicate()[1] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("\n".join(said))
    rows = [row for row in rundir.read_metrics(Path(root) / name) if row["kind"] == "train"]
    return rows[-1]["wall_seconds"] - rows[min(WARM, steps) - 1]["wall_seconds"]


def main() -> None:
    for size in SIZES:
        found = steps_of_two(size)
        rounds = ", ".join(f"{ratio:.3f}" for ratio in found)
        print(f"{size}: steps of two processes / of one with two devices: {statistics.median(found):.3f} ({rounds})")


if __name__ == "__main__":
    main()
