"""What a run begins with: its data, and its state from a checkpoint, from another run's weights, or new."""

from pathlib import Path

import jax

from mot import checkpoint, optim, sharding
from mot.checkpoint import Position
from mot.config import Config, ConfigError
from mot.console import phase, say_once
from mot.data import budgets, sources
from mot.data.mixture import Sources
from mot.errors import Damaged, UserError
from mot.files import as_path
from mot.runs import rundir, written
from mot.train import upcycle
from mot.train.state import State, init_state, of_trees, state_shardings, trees, with_shardings


def open_data(config: Config) -> tuple[Config, Sources, Sources]:
    """The configuration with every budget, and its sources for training and held out.

    Raises `ConfigError`. A command line was checked so before, but whoever calls `train` from Python may have checked
    nothing, and the data may have changed since.
    """
    if faults := [*sources.faults(config), *optim.uncovered(config)]:
        raise ConfigError(faults)
    with phase("opening the data", sharding.is_first_process()):
        training, held_out = sources.open_(config)
        return budgets.resolve(config, training), training, held_out


def refuse_other_data(path: Path, position: Position, training: Sources) -> None:
    """`UserError` where a run was trained on other documents; else its position knows them from here on."""
    if position.data not in ("", training.digest):
        raise UserError(
            f"{path} was trained on other data: its digest is {position.data}, now {training.digest} (another "
            "Python has another manual); resume it where it began, or choose another run.name"
        )
    position.data = training.digest


def beginning(config: Config) -> str:
    """What a run begins from, in words; raises `UserError` where `init.run` is no run, or has no such step."""
    written.read_config(as_path(config.init.run))
    step = config.init.step or written.saved(as_path(config.init.run))[-1]
    what = "whole state" if is_branch(config) else "weights"
    return f"{what} of {config.init.run}, step {step}"


def is_branch(config: Config) -> bool:
    """Does a run begin with all of another run's state, as if it had been that run so far?"""
    return bool(config.init.run) and config.init.state == "all"


def branching(config: Config) -> int:
    """The step of `init.run` from which a run goes on; raises `UserError` where it cannot."""
    source = as_path(config.init.run)
    step = config.init.step or checkpoint.newest(source / "checkpoints", say_once)
    if step is None:
        written.saved(source)  # tells that there is none
    written.saved(source, step)
    rundir.refuse_branch(config, step)
    return step


def upcycled(config: Config) -> dict:
    """The parameters that `init.run` gives a run."""
    with phase(f"the {beginning(config)}", sharding.is_first_process()):
        source, _, trained = load(as_path(config.init.run), config.init.step or None)
        return upcycle.weights(source, trained, config)


def load(path: Path, step: int | None = None) -> tuple[Config, Position, dict]:
    """A run's configuration and what its checkpoint, by default the newest, holds: the position and the parameters.

    The parameters are the averaged ones where the run keeps an average. Raises `UserError` where there is no run, or no
    such checkpoint.
    """
    config = rundir.config_of(path)
    written.saved(path, step)
    state, position = start(config, path, sharding.one_device(), step)
    return config, position, state.ema or state.params


def start(
    config: Config, path: Path, mesh: jax.sharding.Mesh, step: int | None = None, first: dict | None = None
) -> tuple[State, Position]:
    """What a checkpoint (by default the newest) holds; where there is none, what `init` says, or a new state.

    That is the state of another run, or a new one with the parameters `first`.

    `step` 0 is the state before the first step.

    Raises `Damaged` where a checkpoint is not what was written.
    """
    shardings = state_shardings(config, mesh)
    make = jax.jit(lambda: init_state(config), out_shardings=shardings)
    verified = step is None
    if verified:
        step = checkpoint.newest(path / "checkpoints", say_once)
    if step:
        abstract = with_shardings(jax.eval_shape(make), shardings)
        return _restored(path, step, abstract, verified)
    if is_branch(config):
        step = branching(config)
        abstract = with_shardings(jax.eval_shape(make), shardings)
        return _restored(as_path(config.init.run), step, abstract, verified=False)
    state = make()
    if first is not None:
        ema = sharding.copied(first, shardings.ema) if config.optim.ema else {}
        state = state.replace(params=sharding.copied(first, shardings.params), ema=ema)
    return state, Position()


def _restored(path: Path, step: int, abstract: State, verified: bool) -> tuple[State, Position]:
    items, position = checkpoint.restore(path / "checkpoints", step, trees(abstract), verified)
    if unknown := position.keys() - vars(Position()).keys():  # an earlier version may have written fewer
        raise Damaged(f"{path}: the position in its checkpoint differs in {', '.join(sorted(unknown))}; move it away")
    return of_trees(items), Position(**position)
