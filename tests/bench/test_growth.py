"""`python -m bench.growth`: each part at tiny sizes, and what is told of its figures."""

import json
import os
import subprocess
import sys

import pytest

from bench import growth
from mot.data import sources
from tests.support.sources import ROOT


def test_exponents_are_those_of_the_costs():
    sizes = (1, 2, 4, 8)
    square = growth.Growth("", "", "s", sizes, [n**2 for n in sizes])
    line = growth.Growth("", "", "s", sizes, [5 + 3 * n for n in sizes])
    assert square.exponent == pytest.approx(2)
    assert "MORE THAN LINEAR" in square.told
    assert line.line == pytest.approx((3, 5, 1))
    assert line.exponent < line.last < 1
    assert "MORE" not in line.told


def test_compiling_is_measured_with_and_without_a_scan():
    unrolled, scanned = growth.compiling(layers=(1, 2))
    assert (unrolled.what, scanned.what) == ("compiling a step, unrolled", "compiling a step, with a scan")
    assert min(*unrolled.costs, *scanned.costs) > 0


def test_memory_grows_with_a_row():
    (held,) = growth.memory(lengths=(256, 1024))
    assert held.costs[1] > 1.5 * held.costs[0] > 0


def test_steps_are_timed():
    (taken,) = growth.steps(lengths=(256, 512), tokens=256, rounds=1)
    assert len(taken.costs) == 2
    assert min(taken.costs) > 0


def test_packing_counts_the_documents_of_its_rows():
    (packed,) = growth.packing(documents=(2, 8), length=1024, rows=2)
    assert packed.sizes[0] >= 2
    assert packed.sizes[1] > 3 * packed.sizes[0] / 2
    assert min(packed.costs) > 0


def test_a_dataset_of_lengths_alone_is_opened(tmp_path):
    """Its documents are as many as were asked for; a hole in a file takes no disk."""
    growth.write_index(tmp_path, 10**6)
    held = sum(file.stat().st_blocks * 512 for file in (tmp_path / "train").iterdir())
    assert held < 1.5 * 4 * 10**6
    code = "import sys; from bench import growth; growth.open_index(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    found = json.loads(done.stdout)
    assert found["memory"] > 4  # MiB: the order of a million documents
    assert min(found["seconds"].values()) > 0
    about = sources._about(str(tmp_path))
    assert about["splits"]["train"]["documents"] == 10**6
    assert about["splits"]["train"]["tokens"]["text"] > 200 * 10**6


def test_opening_is_measured_phase_by_phase():
    *phases, together, memory = growth.opening(documents=(1000, 4000))
    assert together.costs == pytest.approx([sum(costs) for costs in zip(*(p.costs for p in phases), strict=True)])
    assert memory.unit == "MiB"
