"""`make soak`: runs that are killed at random moments, and checkpoints of which a bit flips, as often as time allows.

    python -m tests.soak [--kills 200] [--flips 500] [--minutes 60]

Every killed run must end as the run that nobody killed, byte for byte, and lose no more than one interval; every flip
must be found by verifying, and the older step be chosen.
"""

import tests.conftest  # isort: split
# It decides how programs compile, and must come before JAX.

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from mot import checkpoint
from mot.errors import Damaged
from tests.support import killed


def flips(root: Path, number: int) -> int:
    """Flips so many random bits of the newest step's files, one at a time; how many were found."""
    folder = killed.finish(root, steps=2 * killed.EVERY) / "checkpoints"
    older, newest = checkpoint.steps(folder)
    files = [path for path in (folder / str(newest)).rglob("*") if path.is_file() and path.stat().st_size]
    rng = random.Random(0)
    found = 0
    for _ in range(number):
        file = rng.choice(files)
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        before = file.read_bytes()
        file.write_bytes(content)
        said: list[str] = []
        try:
            checkpoint.verify(folder / str(newest))
        except Damaged:
            found += checkpoint.newest(folder, said.append) == older and bool(said)
        file.write_bytes(before)
    checkpoint.verify(folder / str(newest))
    return found


def main(argv: list[str]) -> int:
    p = argparse.ArgumentParser(description="kills and flips, as often as time allows")
    p.add_argument("--kills", type=int, default=200)
    p.add_argument("--flips", type=int, default=500)
    p.add_argument("--minutes", type=float, default=60.0)
    options = p.parse_args(argv)
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = flips(root / "flips", options.flips)
        print(f"{found} of {options.flips} flips found", flush=True)
        whole = killed.results(killed.finish(root / "whole"))
        exact = trials = 0
        while trials < options.kills and time.monotonic() < end:
            fault = killed.trial(root / str(trials), trials, whole)
            trials += 1
            exact += not fault
            print(f"{exact} of {trials} kills resumed exactly{fault and f': {fault}'}", flush=True)
    return 0 if found == options.flips and exact == trials else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
