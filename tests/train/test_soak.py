"""`make soak`: runs that are killed at random moments, and checkpoints of which a bit flips, as often as time allows.

`SOAK_KILLS` (200), `SOAK_FLIPS` (500) and `SOAK_MINUTES` (40) in the environment say how often, and for how long.
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
STEPS = 120
MINUTES = float(os.environ.get("SOAK_MINUTES", "40"))


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
    """Runs of STEPS, each killed until it is done, so that every resume must be exact."""
    context = killed.warm()
    whole = killed.results(killed.finish(tmp_path / "whole", STEPS), STEPS)
    began = time.monotonic()
    lost = []
    runs = 0

    def is_done() -> bool:
        return len(lost) >= KILLS or time.monotonic() - began > 60 * MINUTES

    while not is_done():
        root = tmp_path / str(runs)
        for steps in killed.kills(context, root, runs, STEPS):
            lost.append(steps)
            if len(lost) % 10 == 0:
                each = (time.monotonic() - began) / len(lost)
                left = min((KILLS - len(lost)) * each / 60, MINUTES)
                print(f"{len(lost)} kills, {each:.1f} s each; about {left:.0f} minutes left", flush=True)
            if is_done():
                break
        found = killed.results(killed.finish(root, STEPS), STEPS)
        assert killed.unlike(found, whole) == "", f"run {runs}"
        runs += 1
        print(f"{len(lost)} of {len(lost)} kills of {runs} runs resumed exactly", flush=True)
    print(f"a kill cost at most {max(lost)} steps of runs that save every {killed.EVERY}")
    assert max(lost) <= 2 * killed.EVERY  # one interval, and the save that was under way
