"""`python -m bench.device` on a CPU: as a user runs it, and where time, memory, kernels or the process fail it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from bench.device import __main__ as command
from bench.device import kernels, machine, page, steps
from bench.device.asked import LATE, Worker
from mot.batches import visible
from mot.errors import UserError
from mot.model import attention
from mot.plan import chips
from tests.support.sources import ROOT

PARTS = ["peak"] * 2 + ["step"] * 4 + ["attention"] * 4 + ["grouped"] * 4


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The command's results, its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("device")
    done = subprocess.run(
        [sys.executable, "-m", "bench.device", "--smoke", f"--out={folder}"],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "device.json").read_text(encoding="utf-8")), folder, done.stdout


def test_every_part_is_measured(measured):
    results, _, _ = measured
    assert not results["left_out"]
    assert sorted(row["part"] for row in results["rows"]) == sorted(PARTS)
    assert not [row for row in results["rows"] if "failed" in row or row.get("failures")]
    for key in ("device_kind", "memory", "jax", "commit"):
        assert results["machine"][key]
    for row in results["rows"]:
        figures = [value for key, value in row.items() if type(value) is float and key != "difference"]
        assert all(np.isfinite(figures)), row
        assert min(figures) > 0, row
        assert row.get("difference") is None or row["difference"] < 1e-5


def test_a_step_stands_beside_the_plan(measured):
    rows = page.of_part(measured[0], "step")
    assert {row["arch"] for row in rows} == set(machine.ARCHS)
    peak = page.figure(measured[0], "peak", "matmul", "flops")
    for row in rows:
        assert row["mfu_measured"] == pytest.approx(row["flops"] / row["seconds"] / peak)
        assert row["bound"] >= 0.999 * row["flops"] / peak  # no step is faster than its model FLOPs at peak
        assert row["memory"]["peak"] > row["memory"]["temporaries"] > 0
    dense = next(row for row in rows if row["arch"] == "dense")
    assert dense["matmuls"] == pytest.approx(1, abs=0.02)


def test_the_table_shows_what_the_file_has(measured):
    results, folder, said = measured
    told = (folder / "device.md").read_text(encoding="utf-8")
    assert (folder / "device.png").read_bytes().startswith(b"\x89PNG")
    for table in page.tables(results):
        assert table.title in said
        for row in table.rows:
            assert f"| {' | '.join(row)} |" in told
            assert any(all(cell in line for cell in row) for line in said.splitlines()), row
    assert len(page.tables(results)) == 5


# --- what goes wrong -------------------------------------------------------------------------------------------------

MACHINE = {"rungs": [dict(rung=name, rows=1, too_large={}) for name in ("small", "middle", "large")], "platform": "cpu"}
MACHINE |= {"counts_memory": False, "published": None, "device_kind": "cpu", "devices": 1, "memory": 2**34}
MACHINE |= {"dtype": "float32"} | dict.fromkeys(("version", "jax", "commit", "time", "host", "cpu", "python"), "")


class Answers:
    """A worker that answers without a device, and the clock by which a part takes so many seconds."""

    def __init__(self, seconds=0.0):
        self.asked, self.seconds, self.now = [], seconds, 0.0

    def monotonic(self):
        return self.now

    def rows(self, part, deadline):
        self.asked.append(part)
        if part["part"] == "machine":
            yield MACHINE
        else:
            self.now += self.seconds
            yield {"failed": "a kernel's own words"}

    def end(self, kill=False):
        pass


def measure(monkeypatch, folder, answers, seconds):
    monkeypatch.setattr(command, "Worker", lambda: answers)
    monkeypatch.setattr(command, "time", answers)
    results = {"rows": [], "left_out": [], "minutes": seconds / 60}
    command.measure(results, False, seconds, folder, Console(quiet=True))
    return results


def test_a_part_that_fails_ends_no_other(monkeypatch, tmp_path):
    answers = Answers()
    results = measure(monkeypatch, tmp_path, answers, 1000)
    assert len(results["rows"]) == len(answers.asked) - 1 == len([*command.parts(MACHINE, False)])
    assert json.loads((tmp_path / "device.json").read_text(encoding="utf-8")) == results
    (table,) = [t for t in page.tables(results) if "wrong" in t.title]
    assert ("step middle dense", "a kernel's own words") in table.rows


def test_what_there_is_no_time_for_is_left_out_and_told(monkeypatch, tmp_path):
    """After the peak too little time is left for a first step."""
    answers = Answers(seconds=0.3)
    results = measure(monkeypatch, tmp_path, answers, command.FIRST + 0.2)
    assert [part["part"] for part in answers.asked] == ["machine", "peak"]
    assert "step large mot" in results["left_out"]
    assert len(results["left_out"]) == len([*command.parts(MACHINE, False)]) - 1


def test_the_best_is_measured_first():
    first = [page.told(part) for part in command.parts(MACHINE, False)][:4]
    assert first == ["peak", "step middle dense", "step middle mot", "attention chunked"]


def test_a_process_that_ends_or_hangs_is_told_and_another_begins():
    worker = Worker()
    nothing = {"part": "no such part"}
    soon = time.monotonic() + 300
    try:
        (row,) = worker.rows(nothing, soon)
        assert "KeyError" in row["failed"]
        worker.running.kill()
        worker.running.wait()
        (row,) = worker.rows(nothing, soon)
        assert "ended with -9" in row["failed"]
        (late,) = worker.rows(nothing, time.monotonic())
        assert late["failed"] == "stopped: the time is over"
        assert worker.running is None
    finally:
        worker.end(kill=True)


def test_devices_that_are_not_there_are_told_by_what_asks_for_them(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    worker = Worker()
    try:
        (row,) = worker.rows({"part": "machine", "smoke": True}, time.monotonic() + 300)
    finally:
        worker.end(kill=True)
    assert "JAX has no device of JAX_PLATFORMS=cuda" in row["failed"]
    assert "change or unset it" in row["failed"]


def test_half_the_rows_are_tried_where_memory_does_not_do(monkeypatch):
    def measured(config, smoke, peak, failures):
        if config.data.batch > len(machine.devices()):
            raise RuntimeError("RESOURCE_EXHAUSTED: 5 GB")
        return {}

    monkeypatch.setattr(steps, "_measured", measured)
    (row,) = steps.step("0.3m", "dense", 4, True, None)
    assert row["rows"] == 1
    assert row["failures"] == [f"{n} rows, chunked, blocked: out of memory" for n in (4, 2)]


def test_other_kernels_are_tried_where_one_does_not_work(monkeypatch):
    def measured(config, smoke, peak, failures):
        if config.model.attention == "splash":
            raise NotImplementedError("no such layout")
        return {}

    monkeypatch.setattr(steps, "_measured", measured)
    monkeypatch.setitem(steps.KERNELS, "cpu", (("splash", "gmm"), ("chunked", "ragged")))
    (row,) = steps.step("0.3m", "mot", 1, True, None)
    assert row["failures"] == ["1 rows, splash, gmm: NotImplementedError: no such layout"]
    monkeypatch.setitem(steps.KERNELS, "cpu", (("splash", "gmm"),))
    with pytest.raises(UserError, match="no such layout"):
        next(steps.step("0.3m", "mot", 1, True, None))


def test_a_program_that_the_plan_cannot_read_is_timed_all_the_same(monkeypatch):
    def unreadable(*_):
        raise ValueError("no such operation")

    one = jax.devices()[:1]
    monkeypatch.setattr(machine, "devices", lambda: one)
    monkeypatch.setattr(steps.forecast, "plan", unreadable)
    (row,) = steps.step("0.3m", "dense", 1, True, 1e11)
    assert row["failures"] == ["the plan cannot read this program: ValueError: no such operation"]
    assert row["seconds"] > 0
    assert "bound" not in row
    results = {"rows": [{"part": "step", "rung": "0.3m", "arch": "dense"} | row], "left_out": []}
    told = {table.title: table.rows for table in page.tables(results | {"machine": machine_row()})}
    assert "-" in told["Training steps"][0]
    assert len(told["What went wrong"]) == 1


def machine_row():
    (row,) = machine.found(smoke=True)
    return row


@pytest.mark.parametrize("minutes", ["-1", "0", "nan", "inf", "1e+09"])
def test_minutes_that_are_none_or_too_many_are_refused(minutes, tmp_path):
    with pytest.raises(UserError, match=re.escape(f"--minutes {minutes}: must be above 0 and at most")):
        command.main([f"--minutes={minutes}", f"--out={tmp_path / 'none'}"])
    assert not (tmp_path / "none").exists()


def test_too_few_minutes_are_told(monkeypatch, tmp_path):
    class Late(Answers):
        def rows(self, part, deadline):
            yield {"failed": LATE}

    with pytest.raises(UserError, match="allow more --minutes"):
        measure(monkeypatch, tmp_path, Late(), 1)


def test_a_worker_ends_with_its_parent_also_where_it_hangs(tmp_path):
    """Whose standard input stays open here, as a kernel that hangs reads no more of it."""
    child = "import os, sys, time; from launch import process; process.end_with(int(sys.argv[1])); time.sleep(300)"
    parent = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())], stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    running = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid = int(running.stdout.readline())
    running.kill()
    running.wait()
    running.stdout.close()
    until = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_running(pid)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# --- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", kernels.MASKS)
def test_masks_have_the_pairs_that_are_counted(mask):
    who = kernels.info(mask, 2, 192)
    assert kernels.pairs(who) == int(visible(who, who).sum()) > 0
    assert bool(who.private.any()) == (mask == "copies")


def test_a_kernel_that_is_wrong_differs(monkeypatch):
    monkeypatch.setitem(attention.BACKENDS, "chunked", lambda q, k, v, *_: 0.9 * v)
    row = kernels._attended("chunked", "packed", kernels.SMALL_HEADS, smoke=True)
    assert row["difference"] > 0.1


def test_a_kernel_that_gives_nan_fails(monkeypatch):
    monkeypatch.setitem(attention.BACKENDS, "chunked", lambda q, k, v, *_: v * jnp.nan)
    row = kernels._tried(kernels._attended, "chunked", "packed", kernels.SMALL_HEADS, True)
    assert row == {"failed": "ValueError: a result or a gradient is not finite"}


def test_every_kernel_has_a_device():
    for platform in ("tpu", "gpu"):
        assert len(kernels.attention_backends(platform)) >= 3
        own = {how for pair in steps.KERNELS[platform] for how in pair}
        assert own <= {*kernels.attention_backends(platform), *kernels.dispatch_kinds(platform)}


def test_rungs_are_the_largest_that_fit(monkeypatch):
    """As on an H200, and on a device of 18 GB, where MoT alone fits beside dense."""
    one = jax.devices()[:1]
    monkeypatch.setattr(machine, "platform", lambda: "gpu")
    monkeypatch.setattr(machine, "devices", lambda: one)
    found = {}
    for gigabytes in (18, 130):
        monkeypatch.setattr(machine, "memory", lambda gigabytes=gigabytes: gigabytes * 10**9)
        found[gigabytes] = {of["rung"]: of for of in machine.rungs(smoke=False)}
    assert [*found[130]] == ["94m", "443m", "1.5b"]
    assert not found[130]["1.5b"]["too_large"]
    assert 1 < found[130]["1.5b"]["rows"] < found[130]["94m"]["rows"] == machine.MOST_ROWS_OF_OTHERS
    small = found[18]["443m"]
    assert small["rows"] == 2
    assert [*small["too_large"]] == ["moe_ec4", "mot_moe"]
    (first, _) = command.too_large({"rungs": [small], "memory": 18 * 10**9})
    assert "one row takes about 21 GB, and 16 GB may be filled" in first["failed"]


def test_published_figures_are_of_the_device():
    assert chips.of_kind("TPU v5 lite") is chips.CHIPS["v5e"]
    assert chips.of_kind("NVIDIA H200").flops == 989e12
    assert chips.of_kind("cpu") is None
    assert machine.topology(None) is None
    assert machine.topology(5e11).flops == 5e11
    assert {*chips.KINDS.values()} == {*chips.CHIPS}
