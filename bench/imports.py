"""What an import costs: its seconds beside those that reading its files takes, and memory beyond what it makes.

`python -m bench.imports` makes a random Llama of 1.0 G parameters (bfloat16, shards of 500 MB) and imports it, once for
each row, in a process of its own.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table

from mot.interop import shards
from tests.support import published

SHARD = 500 * 10**6  # bytes of a file
SIZES = dict(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
)
# Reads every tensor as float32 and keeps it, as whoever loads a model must.
READ = """
import sys, time
from pathlib import Path
from mot.interop import shards
began = time.perf_counter()
found = shards.headers(Path(sys.argv[1]))
kept = {name: x.astype("float32") for name, x in shards.tensors(found, "reading")}
print(time.perf_counter() - began)
"""
# The memory at the end of each phase, and the most so far; `VmHWM` is the most of a process.
IMPORT = """
import re, sys, time
from pathlib import Path
from mot.interop import importing

def megabytes():
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return {key: int(re.search(f"{key}:\\\\s+(\\\\d+)", status)[1]) / 1024 for key in ("VmRSS", "VmHWM")}

read, write = importing._read, importing._write
def timed(f, name):
    def wrapped(*args):
        began, before = time.perf_counter(), megabytes()["VmRSS"]
        found = f(*args)
        print(name, time.perf_counter() - began, before, megabytes()["VmHWM"], flush=True)
        return found
    return wrapped
importing._read, importing._write = timed(read, "read"), timed(write, "write")
began = time.perf_counter()
importing.run(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
print("all", time.perf_counter() - began, 0, megabytes()["VmHWM"])
"""


def make(folder: Path, texts: Path) -> float:
    """Writes the model; gives its parameters, in megabytes of float32."""
    about = published.ABOUT | SIZES | {"max_position_embeddings": 1024}
    shapes = published.shapes(about)
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = (0.02 * rng.standard_normal(2**24, np.float32)).astype(ml_dtypes.bfloat16)

    def tensor(name: str) -> np.ndarray:
        return np.resize(noise, shapes[name])

    plan = shards.planned(shapes, SHARD, itemsize=2)
    shards.write(folder, plan, tensor, shapes)
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    shutil.copy(texts / "tokenizer.json", folder)
    return sum(4 * np.prod(shape) for shape in shapes.values()) / 2**20


def ran(*args: object) -> str:
    done = subprocess.run([sys.executable, "-c", *map(str, args)], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def main() -> int:
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        texts = published.write(root / "texts")
        megabytes = make(root / "hf", texts)
        table = Table(
            "round", "read its files, s", "import reads, s", "ratio", "writes and checks, s", "beyond, shards"
        )
        for n in range(3):
            read = float(ran(READ, root / "hf"))
            lines = ran(IMPORT, root / "hf", texts / "data", root / f"run-{n}")
            found = {name: list(map(float, rest)) for name, *rest in map(str.split, lines.splitlines()) if rest}
            seconds, before, most = found["read"]
            beyond = (most - before - megabytes) * 2**20 / SHARD
            whole = (found["all"][2] - before - megabytes) * 2**20 / SHARD
            row = (read, seconds, seconds / read, found["write"][0])
            table.add_row(str(n), *(f"{x:.2f}" for x in row), f"{beyond:.2f} while reading, {whole:.2f} in all")
        Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
