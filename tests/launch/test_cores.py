"""A CPU's cores become devices, as many as a run can use, and its user has the last word."""

import dataclasses
import os
import subprocess
import sys

import pytest

from launch import cores
from mot import sharding
from tests.conftest import ROOT
from tests.support import examples
from tests.support.training import SMOKE

# Nothing of what this process has, which is for four devices.
ENV = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")} | {
    "JAX_PLATFORMS": "cpu",
}


def made(rows=4, accumulate=1, **mesh):
    c = examples.make()
    return dataclasses.replace(
        c,
        data=dataclasses.replace(c.data, batch=rows),
        optim=dataclasses.replace(c.optim, accumulate=accumulate),
        mesh=dataclasses.replace(c.mesh, **mesh),
    )


@pytest.mark.parametrize(
    ("asked", "most", "serving"),
    [
        (dict(rows=4), 1, 1),
        (dict(rows=4), 2, 2),
        (dict(rows=4), 3, 2),
        (dict(rows=6), 4, 3),
        (dict(rows=7), 4, 1),
        (dict(rows=2), 64, 2),
        (dict(rows=8, accumulate=4), 8, 2),
        (dict(rows=8, data=1), 8, 1),  # as its user says
        (dict(rows=8, data=4), 8, 4),
        (dict(rows=8, data=4), 3, 1),  # too few cores: the mesh is refused as ever
        (dict(rows=2, tensor=2), 8, 4),
        (dict(rows=4, fsdp=2, context=2), 5, 4),
        (dict(rows=1, context=4), 6, 4),
    ],
)
def test_as_many_devices_as_divide_the_rows_or_as_the_mesh_asks_for(asked, most, serving):
    assert cores.serving([made(**asked)], most) == serving


def test_one_number_serves_all_runs_in_turn_and_divides_those_together():
    assert cores.serving([made(rows=4), made(rows=6)], 4) == 2
    assert cores.serving([made()] * 3, 2, together=True) == 1
    assert cores.serving([made(rows=1)] * 6, 4, together=True) == 3


def test_devices_together_hold_no_more_than_half_the_memory(monkeypatch):
    c = made(rows=8)

    def whole(n):
        return n * sum(cores.needed(c, sharding.abstract(c, n)))

    monkeypatch.setattr(sharding, "machine_memory", lambda: 2 * whole(4))
    assert cores.serving([c], 8) == 4
    monkeypatch.setattr(sharding, "machine_memory", lambda: 2 * whole(4) - 1)
    assert cores.serving([c], 8) == 2


DEVICES = """
import sys
import jax
from launch import cores, train
from mot.train import loop

def stop(config, **_):
    sys.exit(print(len(jax.devices())))

def three():
    return 3

cores.cores = three
loop.run = stop
train.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("environment", "more", "devices"),
    [
        ({}, [], 2),
        ({}, ["--config.mesh.data=1"], 1),
        ({"JAX_NUM_CPU_DEVICES": "1"}, [], 1),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, ["--config.mesh.fsdp=2"], 2),
    ],
)
def test_a_command_takes_the_machines_cores_unless_told(tmp_path, environment, more, devices):
    """In a process that ends where training would begin, on a machine of three cores."""
    command = [sys.executable, "-c", DEVICES, SMOKE, f"--config.run.root={tmp_path}", "--config.data.batch=2", *more]
    done = subprocess.run(command, cwd=ROOT, env=ENV | environment, capture_output=True, timeout=300, check=True)
    assert int(done.stdout) == devices


def test_devices_wait_for_each_other_a_day(monkeypatch):
    """What the user has set stays, and nothing is said twice."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_collective_call_terminate_timeout_seconds=7 --xla_dump_to=/tmp/x")
    for _ in range(2):
        cores.take(made())
        assert sorted(os.environ["XLA_FLAGS"].split()) == [
            "--xla_cpu_collective_call_terminate_timeout_seconds=7",
            "--xla_cpu_collective_call_warn_stuck_timeout_seconds=86400",
            "--xla_dump_to=/tmp/x",
        ]


FAULTS = """
import resource, sys, threading
import numpy as np
from launch import process
process.with_environment()

def allocated():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=lambda: np.ones(2**25))
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = allocated()
print(first, allocated())
"""


def test_memory_is_cleared_by_the_kernel_once(tmp_path):
    """256 MiB, freed and allocated again in another thread, as XLA does in every step."""
    script = tmp_path / "faults.py"
    script.write_text(FAULTS, encoding="utf-8")
    env = {k: v for k, v in ENV.items() if k != "GLIBC_TUNABLES"} | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=True)
    first, again = map(int, told.stdout.split())
    assert again < first / 4 or sys.platform != "linux"
