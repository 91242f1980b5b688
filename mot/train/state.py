"""What training changes: its leaves, where they live, and whether there is memory for them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from mot import optim, sharding
from mot.config import Config
from mot.errors import UserError
from mot.model import params


@struct.dataclass
class State:
    params: dict  # float32
    opt: Any  # of the parameters that train
    ema: dict  # of the parameters; {} where optim.ema is 0
    updates: jax.Array  # steps applied; skipped ones are not
    means: dict  # running mean of the loss of each stream that is centred


def init_state(config: Config) -> State:
    """Call under `jit`."""
    weights = params.init(params.table(config), config.model.seed)
    trained, _ = params.split(weights, optim.trainable(config))
    ema = weights if config.optim.ema else {}
    return State(weights, optim.make(config).init(trained), ema, jnp.zeros((), jnp.int32), _centred(config))


def _centred(config: Config) -> dict:
    return {name: jnp.zeros(()) for name, s in config.streams.items() if s.diffuses and s.diffusion.loss_centre}


def running_means(means: dict, sums: dict) -> dict:
    """Running means of centred streams' losses, over some hundred steps; the first is the first loss itself."""
    after = {}
    for name, mean in means.items():
        now = sums[name]["loss_sum"] / jnp.maximum(sums[name]["weight"], 1e-9)
        moved = jnp.where(mean > 0, 0.99 * mean + 0.01 * now, now)
        after[name] = jnp.where(sums[name]["weight"] > 0, moved, mean)
    return after


def state_shardings(config: Config, mesh: jax.sharding.Mesh) -> State:
    """Where each leaf of the state lives; an optimiser's leaf with its parameter.

    `UserError` where a parameter cannot be split as `mesh.rules` say.
    """
    table = params.table(config)
    rules = config.mesh.rules
    sharding.check_arrays(table, rules, mesh)
    everywhere = sharding.replicated(mesh)
    weights = params.nest({p: sharding.by_axes(mesh, spec.axes, rules) for p, spec in table.items()})
    trained, _ = params.split(weights, optim.trainable(config))
    shapes = jax.eval_shape(lambda: init_state(config))
    opt = optax.tree_utils.tree_map_params(
        optim.make(config), lambda _, place: place, shapes.opt, trained, transform_non_params=lambda _: everywhere
    )
    means = jax.tree.map(lambda _: everywhere, shapes.means)
    return State(weights, opt, weights if config.optim.ema else {}, everywhere, means)


def abstract(config: Config, mesh: jax.sharding.Mesh) -> State:
    """The state's shapes, where they live; nothing is allocated."""

    def place(x, s):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)

    return jax.tree.map(place, jax.eval_shape(lambda: init_state(config)), state_shardings(config, mesh))


def trees(state: State) -> dict:
    """The state as checkpoint items."""
    opt = {"optax": state.opt, "updates": state.updates} | ({"means": state.means} if state.means else {})
    items = {"params": state.params, "opt": opt}
    return items | ({"ema": state.ema} if state.ema else {})


def needed(config: Config, mesh, runs: int = 1) -> tuple[int, int]:
    """Bytes that each device of a mesh cannot do without for `runs` runs: the state with gradients, and the residual
    stream of every layer."""
    table = params.table(config)
    is_trained = optim.trainable(config)
    rules = config.mesh.rules

    def count(chosen):
        return sum(params.count({p: s}) // sharding.shard_count(s.axes, rules, mesh) for p, s in chosen.items())

    held = count(table) * (2 if config.optim.ema else 1)
    # With gradients and Adam's moments.
    moments = {"float32": 2, "bfloat16": 1}[config.optim.moments]
    state = 4 * runs * (held + (1 + moments) * count({p: s for p, s in table.items() if is_trained(p)}))
    rows = config.data.batch // config.optim.accumulate
    width = max(s.width for s in config.streams.values())
    tokens = rows * config.length // sharding.shard_count((sharding.ROWS,), rules, mesh)
    return state, 2 * tokens * width * config.model.layers * runs


def refuse_too_large(config: Config, mesh, runs: int = 1) -> None:
    """`UserError` where what a step of `runs` runs on a device cannot do without is more than there is memory."""
    state, residual = needed(config, mesh, runs)
    if (have := sharding.memory(mesh)) < state + residual:
        many = f"{runs} times " if runs > 1 else ""
        rows = config.data.batch // config.optim.accumulate
        parameters = params.count(params.table(config))
        raise UserError(
            f"{many}{parameters:,} parameters, their gradients and optimiser state take {state / 1e9:,.1f} GB "
            f"of a device, the residual stream of {rows:,} rows of {config.length:,} tokens on {mesh.size} devices at "
            f"least {residual / 1e9:,.1f} GB, and a device has {have / 1e9:,.1f} GB; raise mesh.fsdp, lower "
            "streams.*.width or ffn, model.layers or heads, data.batch or the budgets"
        )
