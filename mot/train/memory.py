"""Is there memory for a step? What it cannot do without, counted before anything is allocated."""

import jax

from mot import optim, sharding
from mot.config import Config
from mot.errors import UserError
from mot.model import params

FLOAT32, BFLOAT16 = 4, 2  # bytes of a number
MOMENTS = {"float32": 2, "bfloat16": 1}  # both of Adam's moments of a parameter, in float32 numbers


def needed(config: Config, mesh: jax.sharding.Mesh, runs: int = 1) -> tuple[int, int]:
    """Bytes that each device needs at the least, for `runs` runs at once: the state with its gradients, and the
    residual stream of every layer."""
    table = params.table(config)
    is_trained = optim.trainable(config)
    rules = config.mesh.rules

    def count(specs: params.Table) -> int:
        """Numbers of these parameters on one device."""
        return sum(params.count({p: s}) // sharding.shard_count(s.axes, rules, mesh) for p, s in specs.items())

    weights = count(table) * (2 if config.optim.ema else 1)
    gradients_and_moments = 1 + MOMENTS[config.optim.moments]
    trained = {path: spec for path, spec in table.items() if is_trained(path)}
    of_one = {path: spec for path, spec in trained.items() if params.by_muon(path, spec, config)}
    less = MOMENTS[config.optim.moments] / 2 * count(of_one)  # Muon keeps one moment
    state = round(FLOAT32 * runs * (weights + gradients_and_moments * count(trained) - less))
    rows = config.data.batch // config.optim.accumulate
    tokens = rows * config.length // sharding.shard_count((sharding.ROWS,), rules, mesh)
    width = max(stream.width for stream in config.streams.values())
    return state, BFLOAT16 * tokens * width * config.model.layers * runs


def refuse_too_large(config: Config, mesh: jax.sharding.Mesh, runs: int = 1) -> None:
    """`UserError` where a step of `runs` runs needs more memory than a device has."""
    if fault := too_large(config, mesh, sharding.memory(mesh), runs):
        raise UserError(fault)


def too_large(
    config: Config, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, available: int, runs: int = 1
) -> str:
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
