"""Training steps: their time, compiling, memory, and the plan's figures of the very program that is timed."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from bench import timing
from bench.device import machine
from bench.rows import filled
from mot import sharding
from mot.batches import Batch
from mot.config import Config
from mot.errors import UserError, reason
from mot.model import flops, kernels
from mot.plan import forecast, search
from mot.train.state import abstract, init_state, state_shardings
from mot.train.step import jitted

# Attention and experts' matmuls, as the ladder has them; what follows is tried where the one before does not work.
KERNELS = {
    "tpu": (("splash", "gmm"), ("chunked", "ragged")),
    "gpu": (("triton", "triton"), ("cudnn", "ragged"), ("chunked", "ragged")),
    "cpu": (("chunked", "blocked"),),
}
SECONDS = 4.0  # of timed steps


class Program(NamedTuple):
    """A compiled step."""

    run: jax.stages.Compiled
    tracing: float  # seconds
    compiling: float


def step(rung: str, arch: str, rows: int, smoke: bool, peak: float | None) -> Iterator[dict]:
    """One row. Where memory does not do, half as many rows are tried; where kernels fail, others; both are told.

    `peak` is the matmul peak that was measured, FLOP/s of a device. Raises `UserError` where nothing works.
    """
    failures = []
    left = list(KERNELS[machine.platform()])
    while left and rows:
        attention, dispatch = left[0]
        try:
            config = machine.configuration(rung, arch, rows, smoke, attention=attention, dispatch=dispatch)
            yield _measured(config, smoke, peak, failures) | {"rows": rows, "failures": failures}
            return
        except Exception as error:  # a library's, of any kind: the next attempt may work
            failures.append(f"{rows} rows, {attention}, {dispatch}: {told(error)}")
            if is_out_of_memory(error):
                rows //= 2
            else:
                left.pop(0)
    raise UserError("; ".join(failures))


def is_out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def told(error: Exception) -> str:
    return "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {reason(error)}"


def _measured(config: Config, smoke: bool, peak: float | None, failures: list[str]) -> dict:
    kernels.refuse_absent(config, machine.platform())
    mesh = sharding.make_mesh(config, machine.devices())
    host = filled(config)
    program = _compiled(config, host, mesh)
    seconds = _seconds(program.run, config, host, mesh, smoke)
    tokens = {name: config.data.batch * s.budget for name, s in config.streams.items()}
    work = flops.train_step(config, tokens, flops.visible_pairs(host)) / mesh.size
    row = {"seconds": seconds, "tokens_per_s": sum(tokens.values()) / seconds, "flops": work}
    row |= {"attention": config.model.attention, "dispatch": config.model.dispatch, "length": config.length}
    row |= {"parameters": flops.total_parameters(config), "remat": config.model.remat}
    row |= {"tracing": program.tracing, "compiling": program.compiling}
    row |= {"estimated": search.memory(config), "used": machine.peak_memory()}
    row |= _shares(work, seconds, peak)
    try:
        row |= _planned(config, program, peak)
    except Exception as error:  # its reader's, of a text that it does not know: the step is measured all the same
        failures.append(f"the plan cannot read this program: {told(error)}")
    return row


def _compiled(config: Config, host: Batch, mesh: jax.sharding.Mesh) -> Program:
    """As `mot train` compiles it."""
    rows = sharding.of_batch(config, mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), host)
    state = abstract(config, mesh)
    began = time.monotonic()
    with jax.set_mesh(mesh):
        lowered = jitted(config, 1, mesh).lower(state, batch)
        traced = time.monotonic()
        run = lowered.compile(compiler_options=sharding.compiler_options(mesh))
    return Program(run, traced - began, time.monotonic() - traced)


def _seconds(run: jax.stages.Compiled, config: Config, host: Batch, mesh: jax.sharding.Mesh, smoke: bool) -> float:
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(config), out_shardings=state_shardings(config, mesh))()
        rows = jax.device_put(host, sharding.of_batch(config, mesh))

        def once():
            nonlocal state
            state, measured = run(state, rows)
            return measured["loss"]

        if not np.isfinite(once()):
            raise ValueError("the loss of the first step is not finite")
        return timing.of_a_call(once, 0.0 if smoke else SECONDS)


def _planned(config: Config, program: Program, peak: float | None) -> dict:
    """What `mot plan` says of this program; nothing where neither the chip's peak nor a measured one is known."""
    topology = machine.topology(peak)
    if topology is None:
        return {}
    compiled = forecast.Compiled(
        program.run.as_text(), program.run.memory_analysis(), program.compiling, program.tracing
    )
    plan = forecast.plan(config, topology, lambda *_: compiled)
    # Kernels whose FLOPs the program's text does not tell count as nothing: the step needs the formula's at least.
    least = (plan.formula_flops + _attention_flops(config)) / topology.flops
    bound = max(plan.roofline["step"], least)
    return {
        "bound": bound,
        "overlapped": max(plan.roofline["overlapped"], least),
        "binding": plan.binding,
        "spent": plan.spent,
        "matmuls": plan.ratio,
        "memory": plan.memory,
    }


def _attention_flops(config: Config) -> float:
    """Model FLOPs of a device."""
    of_pair = flops.FORWARD_AND_BACKWARD * flops.attention_per_pair(config)
    return of_pair * forecast.pairs(config) / len(machine.devices())


def _shares(work: float, seconds: float, peak: float | None) -> dict:
    """Model FLOPs of what the chip's maker tells, and of the matmul peak that was measured."""
    topology = machine.topology(None)
    shares = {"mfu": work / seconds / topology.flops} if topology else {}
    return shares | ({"mfu_measured": work / seconds / peak} if peak else {})
