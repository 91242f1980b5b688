"""The matmul peak is measured for a bounded time, and kept for this machine."""

import json
import time
import types
from datetime import UTC, datetime, timedelta

import jax
import pytest

from mot.runs import peak

SECONDS = {10: peak.SECONDS, peak.LONG: peak.SECONDS_OF_LONG}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`start(flops, steps)`: a start on a machine that shows so many FLOP/s; what it says, and what it measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mesh = jax.make_mesh((2,), ("rows",), devices=jax.devices()[:2])

    def start(flops, steps=10, dtype="float32"):
        told, tried = [], []

        def measure(mesh, dtype, sizes, seconds):
            tried.append((sizes, seconds))
            return peak.Peak(flops, sizes[-1], seconds, peak.provenance.now())

        monkeypatch.setattr(peak, "measure", measure)
        found = peak.of(mesh, dtype, steps, told.append)
        return found, tried[0][1], told

    return start


def aged(file, **age):
    """The file's peaks as they will be after that time."""
    records = json.loads(file.read_text(encoding="utf-8"))
    for record in records.values():
        record["measured"] = (datetime.now(UTC) - timedelta(**age)).isoformat(timespec="seconds")
    file.write_text(json.dumps(records), encoding="utf-8")


def test_the_best_of_several_starts_is_kept(machine):
    first, seconds, told = machine(100.0)
    assert (first.flops, first.cached, seconds) == (100.0, False, peak.SECONDS)
    assert told == ["measuring the matmul peak of 2 x cpu in float32, about 1 s"]
    busy, seconds, told = machine(12.0)
    assert (busy.flops, busy.cached, seconds, told) == (100.0, True, peak.SECONDS_AGAIN, [])
    assert busy.measured == first.measured
    better, _, _ = machine(130.0)
    assert (better.flops, better.cached) == (130.0, False)
    assert machine(1.0)[0].told()["matmul_peak"] == 130.0
    assert machine(1.0, dtype="bfloat16")[0].flops == 1.0, "another dtype has its own"


def test_a_long_run_measures_longer(machine):
    machine(100.0)
    found, seconds, told = machine(90.0, steps=peak.LONG)
    assert (found.flops, found.cached, seconds, len(told)) == (100.0, True, peak.SECONDS_OF_LONG, 1)
    assert machine(90.0, steps=peak.LONG)[1] == peak.SECONDS_AGAIN, "once"
    assert machine(90.0)[1] == peak.SECONDS_AGAIN


def test_a_peak_older_than_a_week_is_measured_anew(machine, tmp_path):
    machine(100.0)
    aged(tmp_path / "mot" / peak.FILE, days=6)
    assert machine(50.0)[0].flops == 100.0
    for age in (dict(days=8), dict(days=-2)):  # the last: the clock was wrong then, or is now
        aged(tmp_path / "mot" / peak.FILE, **age)
        found, seconds, _ = machine(50.0)
        assert (found.flops, found.cached, seconds) == (50.0, False, peak.SECONDS)


RECORD = {"flops": 1e30, "size": 1024, "seconds": 1.0, "measured": "2026-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    "change",
    [
        {"flops": "fast"},
        {"flops": -1.0},
        {"flops": True},
        {"flops": float("nan")},
        {"size": "1024"},
        {"seconds": None},
        {"measured": 3},
        {"measured": "yesterday"},
        {"measured": "2026-01-01"},
        {"more": 1},
    ],
)
def test_a_damaged_record_is_measured_anew(machine, tmp_path, change):
    machine(100.0)
    file = tmp_path / "mot" / peak.FILE
    records = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({key: record | change for key, record in records.items()}), encoding="utf-8")
    assert machine(50.0)[0][:3] == (50.0, peak.SIZES["cpu"][-1], peak.SECONDS)
    assert machine(40.0)[0].flops == 50.0, "and kept"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"a"', b"\xff\xfe", b'{"a": 3}', b"[" * 100_000])
def test_a_damaged_file_is_measured_anew(machine, tmp_path, content):
    (tmp_path / "mot").mkdir()
    (tmp_path / "mot" / peak.FILE).write_bytes(content)
    assert machine(50.0)[0].flops == 50.0
    assert machine(40.0)[0].flops == 50.0


def test_without_a_cache_folder_each_start_measures(machine, monkeypatch):
    monkeypatch.setattr(peak, "cache_folder", lambda: None)
    assert machine(100.0)[0].flops == 100.0
    found, seconds, _ = machine(50.0)
    assert (found.flops, found.cached, seconds) == (50.0, False, peak.SECONDS)


def test_real_matmuls_are_measured():
    mesh = jax.make_mesh((2,), ("rows",), devices=jax.devices()[:2])
    start = time.monotonic()
    found = peak.measure(mesh, "float32", (64, 128, 2**20), 0.1)
    assert time.monotonic() - start < 10
    assert found.flops > 1e8
    assert found.size in (64, 128), "the last, of exabytes, would take longer than there is time"


def test_the_time_that_is_left_goes_to_the_best_size(monkeypatch):
    mesh, tried, clock = jax.make_mesh((1,), ("rows",), devices=jax.devices()[:1]), [], [0.0]

    class Product:
        """Of matrices of n rows; takes that long to be ready."""

        def __init__(self, n):
            tried.append(n)
            self.seconds = {1: 0.002, 2: 0.01, 4: 1.0}[n]

        def block_until_ready(self):
            clock[0] += self.seconds

    monkeypatch.setattr(peak, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(peak, "_program", lambda mesh, rows, dtype, n: (lambda _: Product(n), None))
    found = peak.measure(mesh, "float32", (1, 2, 4), 0.1)
    assert (found.size, found.flops) == (2, pytest.approx(2 * 2**3 / 0.01))
    assert tried[:5] == [1, 1, 2, 2, 2]
    assert set(tried[5:]) == {2}
    assert 0.1 <= clock[0] < 0.12
