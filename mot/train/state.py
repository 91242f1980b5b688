"""What training changes: its leaves, where they live, and how a checkpoint holds them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mot import optim, sharding
from mot.config import Config
from mot.model import params
from mot.objectives import balance
from mot.train import guard


@struct.dataclass
class State:
    params: dict  # float32
    opt: Any  # of the parameters that train
    ema: dict  # of the parameters; {} where optim.ema is 0
    updates: jax.Array  # steps applied; skipped ones are not
    means: dict  # running mean of the loss of each stream that is centred
    norms: dict = struct.field(default_factory=dict)  # of the last gradients applied; {} where optim.skip_above is 0
    balance: dict = struct.field(default_factory=dict)  # running means of losses; {} where objective.common_target is 0


KEPT = ("means", "norms", "balance")  # of the state what some runs alone have, in order


def init_state(config: Config) -> State:
    """Call under `jit`."""
    return state_of(params.init(params.table(config), config.model.seed), config)


def state_of(weights: dict, config: Config) -> State:
    """The state before the first step, with these parameters."""
    trained, _ = params.split(weights, optim.trainable(config))
    ema = weights if config.optim.ema else {}
    opt = optim.make(config).init(trained)
    kept = (_centred(config), guard.first_norms(config), balance.first(config))
    return State(weights, opt, ema, jnp.zeros((), jnp.int32), *kept)


def _centred(config: Config) -> dict:
    """Running means of the losses of streams that have `loss_centre`; none yet."""
    return {name: jnp.zeros(()) for name, s in config.streams.items() if s.diffuses and s.diffusion.loss_centre}


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
    places = params.paths(trained)

    def with_parameter(keys, _):
        """An optimiser's leaf lies under the path of its parameter."""
        path = "/".join(key.key for key in keys if isinstance(key, jax.tree_util.DictKey))
        return places.get(path, everywhere)

    opt = jax.tree_util.tree_map_with_path(with_parameter, shapes.opt)
    kept = (jax.tree.map(lambda _: everywhere, getattr(shapes, name)) for name in KEPT)
    return State(weights, opt, weights if config.optim.ema else {}, everywhere, *kept)


def abstract(config: Config, mesh: jax.sharding.Mesh) -> State:
    """The state's shapes, where they live; nothing is allocated."""

    return with_shardings(jax.eval_shape(lambda: init_state(config)), state_shardings(config, mesh))


def with_shardings(shapes, shardings):
    """A tree of shapes, each with its sharding: abstract arrays."""

    def abstract_array(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(abstract_array, shapes, shardings)


def trees(state: State) -> dict:
    """The state as checkpoint items."""
    opt = {"optax": state.opt, "updates": state.updates}
    opt |= {name: kept for name in KEPT if (kept := getattr(state, name))}
    items = {"params": state.params, "opt": opt}
    return items | ({"ema": state.ema} if state.ema else {})


def of_trees(items: dict) -> State:
    """The state of checkpoint items; undoes `trees`."""
    opt = items["opt"]
    kept = (opt.get(name, {}) for name in KEPT)
    return State(items["params"], opt["optax"], items.get("ema", {}), opt["updates"], *kept)
