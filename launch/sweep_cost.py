"""What a sweep would cost, row by row, before anything runs: nothing is compiled, and no data is read."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from launch import cores
from launch.sweep_rows import Row, program
from launch.sweep_shown import console
from mot import sharding
from mot.config import Config
from mot.model import flops
from mot.plan import chips
from mot.runs import peak, states
from mot.train.memory import too_large

DAY = 86_400
LEAST = 0.001  # hours and days below it are told as such


class Devices(NamedTuple):
    """Where a sweep would run."""

    number: int
    memory: int  # bytes of each
    flops: Callable[[str], float]  # FLOP/s of all together at most, by dtype
    about: str


def named(topology: str) -> Devices:
    """Those of a slice of TPUs, at their maker's figures, of which none is needed here."""
    chip, sides = chips.parse(topology)
    number = int(np.prod(sides)) * chip.devices

    def at_most(_: str) -> float:
        return chip.flops / chip.devices * number

    return Devices(number, chip.memory // chip.devices, at_most, f"{topology}, its peak in bfloat16 as published")


def here() -> Devices:
    """Those of this machine, at the matmul peak that is measured."""
    cores.make(cores.cores())
    devices = jax.devices()
    mesh = Mesh(np.array(devices), ("devices",))
    known: dict[str, float] = {}

    def at_most(dtype: str) -> float:
        if dtype not in known:
            known[dtype] = peak.of(mesh, dtype, 0, lambda line: print(line, file=sys.stderr)).flops
        return known[dtype]

    memory = sharding.memory(sharding.one_device(devices))
    return Devices(
        len(devices), memory, at_most, f"{len(devices)} x {devices[0].device_kind}, its matmul peak measured"
    )


def fits(devices: Devices) -> Callable[[Config], Iterator[str]]:
    """For `judged`: why a configuration has no room on these devices."""

    def faults(config: Config) -> Iterator[str]:
        if fault := too_large(config, sharding.abstract(config, devices.number), devices.memory):
            yield fault

    return faults


class Cost(NamedTuple):
    parameters: int
    flops: float  # model FLOPs of all steps, each row full
    hours: float  # of all devices together, at their peak
    days: float


def cost(config: Config, devices: Devices) -> Cost:
    """A bound from below, as `mot plan` gives one, of what is computed alone: memory and networks only add to it."""
    work = flops.full_step(config) * config.run.steps
    seconds = work / devices.flops(config.model.dtype)
    return Cost(flops.total_parameters(config), work, seconds * devices.number / 3600, seconds / DAY)


def show(rows: Sequence[Row], devices: Devices) -> None:
    """A table of the rows and their sums; rows of one program have one number."""
    costs = [cost(row.config, devices) for row in rows]
    numbers: dict[str, int] = {}
    every = Table("row", "name", "state", "program", "steps", "parameters", "FLOPs", "device-hours", "days", box=None)
    for column in every.columns[3:]:
        column.justify = "right"
    for row, found in zip(rows, costs, strict=True):
        number = numbers.setdefault(program(row.config), len(numbers))
        state = states.of(row.path, row.config.run.steps).name
        figures = _short(found.parameters), f"{found.flops:.3g}", _amount(found.hours), _amount(found.days)
        every.add_row(str(row.index), row.name, state, str(number), f"{row.config.run.steps:,}", *figures)
    out = console(sys.stdout)
    out.print(every)
    total = Cost(*map(sum, zip(*costs, strict=True)))
    print(
        f"{len(rows)} rows in {len(numbers)} programs: {total.flops:.3g} model FLOPs, at least {_amount(total.hours)} "
        f"device-hours and {_amount(total.days)} days on {devices.about}. Nothing was compiled: `mot plan` bounds a "
        "row closer"
    )


def _amount(number: float) -> str:
    return f"{number:.3g}" if number >= LEAST or not number else f"below {LEAST:g}"


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
