"""FAULTS 14, 15: what hangs is noticed in time, and the process ends with a code of its own."""

import subprocess
import sys
import time

from mot.errors import HUNG
from tests.conftest import ROOT

HANGS = """
import sys, time
from pathlib import Path
import jax
from mot.train.watchdog import Watchdog

if sys.argv[2] == "peer":
    def two():
        return 2

    jax.process_count = two
with Watchdog(Path(sys.argv[1]), float(sys.argv[3]), 3.0) as watchdog:
    watchdog.moved("step 7 or its batch")
    for _ in range(int(sys.argv[4])):
        time.sleep(0.5)
        watchdog.moved("step 8")
    time.sleep(40)
"""


def ended(path, *arguments):
    command = [sys.executable, "-c", HANGS, str(path), *arguments]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stderr, time.monotonic() - began


def test_a_step_that_hangs_ends_the_process_with_stacks(tmp_path):
    code, said, _ = ended(tmp_path, "hang", "2", "6")
    assert code == HUNG
    assert "most recent call first" in said
    assert "mot: step 8 has taken" in said
    assert "run.hang_timeout allows 2; the stacks are above" in said


def test_a_process_without_a_sign_of_life_ends_the_others(tmp_path):
    code, said, seconds = ended(tmp_path, "peer", "0", "0")
    assert code == HUNG
    assert "process 1 of this run has given no sign of life for" in said
    assert seconds < 35
