"""Is there memory for a step? What it cannot do without, counted before anything is allocated."""

from collections.abc import Mapping

import jax

from mot import optim, sharding
from mot.config import Config
from mot.errors import UserError
from mot.model import params

FLOAT32, BFLOAT16 = 4, 2  # bytes of a number
MOMENTS = {"float32": 2, "bfloat16": 1}  # both of Adam's moments of a parameter, in float32 numbers


AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh


def of_device(table: params.Table, rules: Mapping[str, str], mesh: AnyMesh) -> int:
    """How many numbers of these parameters one device has."""
    return sum(params.count({p: s}) // sharding.shard_count(s.axes, rules, mesh) for p, s in table.items())


def needed(config: Config, mesh: AnyMesh, runs: int = 1) -> tuple[int, int]:
    """Bytes that each device needs at the least, for `runs` runs at once: the state with its gradients, and the
    residual stream of every layer."""
    table = params.table(config)
    is_trained = optim.trainable(config)
    rules = config.mesh.rules

    weights = of_device(table, rules, mesh) * (2 if config.optim.ema else 1)
    gradients_and_moments = 1 + MOMENTS[config.optim.moments]
    trained = {path: spec for path, spec in table.items() if is_trained(path)}
    of_one = {path: spec for path, spec in trained.items() if params.by_muon(path, spec, config)}
    less = MOMENTS[config.optim.moments] / 2 * of_device(of_one, rules, mesh)  # Muon keeps one moment
    state = round(FLOAT32 * runs * (weights + gradients_and_moments * of_device(trained, rules, mesh) - less))
    rows = config.data.batch // config.optim.accumulate
    tokens = rows * config.length // sharding.shard_count((sharding.ROWS,), rules, mesh)
    width = max(stream.width for stream in config.streams.values())
    return state, BFLOAT16 * tokens * width * config.model.layers * runs


def refuse_too_large(config: Config, mesh: jax.sharding.Mesh, runs: int = 1) -> None:
    """`UserError` where a step of `runs` runs needs more memory than a device has."""
    if fault := too_large(config, mesh, sharding.memory(mesh), runs):
        raise UserError(fault)


def too_large(config: Config, mesh: AnyMesh, available: int, runs: int = 1) -> str:
    """Why a step of `runs` runs needs more than the `available` bytes of each device; "" where it does not."""
    state, residual = needed(config, mesh, runs)
    if available >= state + residual:
        return ""
    several = f"{runs} times " if runs > 1 else ""
    rows = config.data.batch // config.optim.accumulate
    parameters = params.count(params.table(config))
    return (
        f"{several}{parameters:,} parameters, their gradients and optimiser state take {state / 1e9:,.1f} GB "
        f"of a device, the residual stream of {rows:,} rows of {config.length:,} tokens on {mesh.size} devices at "
        f"least {residual / 1e9:,.1f} GB, and a device has {available / 1e9:,.1f} GB; raise mesh.fsdp, lower "
        "streams.*.width or ffn, model.layers or heads, data.batch or the budgets"
    )
