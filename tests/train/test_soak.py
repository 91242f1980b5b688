"""`make soak`: runs that are killed at random moments, and checkpoints of which a bit flips, as often as time allows.

`SOAK_KILLS` (200), `SOAK_FLIPS` (500) and `SOAK_MINUTES` (60) in the environment say how often, and for how long.
"""

import os
import random
import time

import pytest

from mot import checkpoint
from mot.errors import Damaged
from tests.support import killed

KILLS = int(os.environ.get("SOAK_KILLS", "200"))
FLIPS = int(os.environ.get("SOAK_FLIPS", "500"))
MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))


@pytest.mark.soak
def test_every_flip_is_found_and_the_older_step_chosen(tmp_path):
    folder = killed.finish(tmp_path, steps=2 * killed.EVERY) / "checkpoints"
    older, newest = checkpoint.steps(folder)
    files = [path for path in (folder / str(newest)).rglob("*") if path.is_file() and path.stat().st_size]
    rng = random.Random(0)
    for n in range(FLIPS):
        file = rng.choice(files)
        before = file.read_bytes()
        content = bytearray(before)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        with pytest.raises(Damaged, match=str(newest)):
            checkpoint.verify(folder / str(newest))
        said = []
        assert checkpoint.newest(folder, said.append) == older, f"flip {n} in {file}"
        assert said
        file.write_bytes(before)
    checkpoint.verify(folder / str(newest))
    print(f"{FLIPS} of {FLIPS} flips found")


@pytest.mark.soak
def test_every_killed_run_resumes_to_the_same_bytes(tmp_path):
    whole = killed.results(killed.finish(tmp_path / "whole"))
    end = time.monotonic() + 60 * MINUTES
    trials = 0
    while trials < KILLS and time.monotonic() < end:
        assert killed.trial(tmp_path / str(trials), trials, whole) == "", f"trial {trials}"
        trials += 1
        print(f"{trials} of {trials} kills resumed exactly", flush=True)
