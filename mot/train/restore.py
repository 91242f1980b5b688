"""What a run begins with: its data, and its state from a checkpoint, from another run's weights, or new."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from mot import checkpoint, optim, sharding
from mot.checkpoint import Position
from mot.config import Config, ConfigError
from mot.config.options import ACCEPTED
from mot.console import phase, say_once
from mot.data import budgets, pipeline, sources
from mot.data.mixture import Sources
from mot.errors import Damaged, UserError
from mot.files import as_path
from mot.runs import rundir, written
from mot.train import growth, upcycle
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


def accepted(
    config: Config, training: Sources, origin: tuple[Path, int], accept: Collection[str]
) -> dict[str, list[str]]:
    """How a run differs from the checkpoint that it goes on from, by kind of `options.ACCEPTED`; each is accepted.

    `origin` is of `origin_of`. `UserError` with all differences at once where a kind is not accepted.
    """
    path, step = origin
    is_own = path == rundir.folder(config)
    found = {"config": rundir.unlike(config) if is_own else rundir.unlike_branch(config, step)}
    if step:
        target = path / "checkpoints" / str(step)
        found |= checkpoint.unlike(target, trees(jax.eval_shape(lambda: init_state(config))))
        found |= _other_data(_position(path, checkpoint.position(target)), training)
    found = {kind: found[kind] for kind in ACCEPTED if found.get(kind)}
    instead = rundir.GIVE_BACK
    if not is_own:
        instead = "give this run the other one's configuration, or write init.state=weights: its weights alone"
    rundir.refuse(path, found, accept, instead)
    return found


def go_on(config: Config, origin: tuple[Path, int], found: Mapping[str, list[str]]) -> None:
    """Writes into a run's folder from where it goes on, and tells in spite of which differences, as `accepted` gives.

    Of several processes the first calls it.
    """
    path = rundir.folder(config)
    source, step = origin
    if source != path:
        rundir.copy_metrics(source, path, step)
    rundir.write_down(config, step, found)
    if found:
        say_once(f"{path}: goes on from step {step} in spite of differences:\n{checkpoint.listed(found)}")


def _other_data(position: Position, training: Sources) -> dict[str, list[str]]:
    """How documents, and the tokenizers that made their ids, differ from those that a run was trained on."""
    if position.data in ("", training.digest):
        return {}
    then, now = position.tokenizers, training.tokenizers
    other = [f"{m}: {then[m]} -> {now.get(m, 'absent')}" for m in then if then[m] != now.get(m)]
    data = f"was trained on other data: its digest is {position.data}, now {training.digest}"
    return {"tokenizer": other, "data": [f"{data} (another Python has another manual)"]}


def refuse_other_data(path: Path, position: Position, training: Sources) -> None:
    """`UserError` where a step was trained on other documents than are there now."""
    if found := _other_data(position, training):
        raise UserError(f"{path} {'; '.join(found['data'] + found['tokenizer'])}; read it where it was trained")


def take_up(position: Position, config: Config, training: Sources, accept: Collection[str]) -> None:
    """A run's position goes on in these data: exactly, or with the next documents where they are others."""
    packing = pipeline.packing(config)
    # An earlier version did not say how it packed.
    same_packing = position.packing == packing or (not position.packing and "config" not in accept)
    if position.plan and not (same_packing and position.data in ("", training.digest)):
        position.plan = pipeline.moved(position.plan, position.step * config.data.batch, same_packing)
    position.data = training.digest
    position.tokenizers = dict(training.tokenizers)
    position.packing = packing


def origin_of(config: Config) -> tuple[Path, int]:
    """The run, and its step, from whose whole state this one goes on; its own folder and 0 where it begins anew.

    Its files are verified. All processes ask together. Raises `UserError` where `init.run` has no such step.
    """
    path = rundir.folder(config)
    if step := checkpoint.newest(path / "checkpoints", say_once):
        return path, step
    if not is_branch(config):
        return path, 0
    source = as_path(config.init.run)
    step = config.init.step or checkpoint.newest(source / "checkpoints", say_once)
    written.saved(source, step)  # tells where there is none
    checkpoint.verify(source / "checkpoints" / str(step))
    return source, step


def beginning(config: Config) -> str:
    """What a run begins from, in words; raises `UserError` where `init.run` is no run, or has no such step."""
    written.read_config(as_path(config.init.run))
    step = config.init.step or written.saved(as_path(config.init.run))[-1]
    what = "whole state" if is_branch(config) else "weights"
    return f"{what} of {config.init.run}, step {step}"


def is_branch(config: Config) -> bool:
    """Does a run begin with all of another run's state, as if it had been that run so far?"""
    return bool(config.init.run) and config.init.state == "all"


def upcycled(config: Config) -> dict:
    """The parameters that `init.run` gives a run."""
    with phase(f"the {beginning(config)}", sharding.is_first_process()):
        source, _, trained = load(as_path(config.init.run), config.init.step or None)
        source, trained = growth.grown(source, trained, config)
        weights = upcycle.weights(source, trained, config)
    for line in upcycle.told(source, config) if sharding.is_first_process() else []:
        say_once(line)
    return weights


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
    config: Config,
    path: Path,
    mesh: jax.sharding.Mesh,
    step: int | None = None,
    first: dict | None = None,
    accept: Collection[str] = (),
    verified: bool = False,
) -> tuple[State, Position]:
    """What a checkpoint (by default the newest) holds; where there is none, a new state.

    That has the parameters `first`, where they are given. `step` 0 is the state before the first step, which an
    imported run has saved, and no other. `accept` are
    kinds of `options.ACCEPTED`. The step's files are verified, unless they were just before.

    Raises `Damaged` where a checkpoint is not what was written, `UserError` where it holds other arrays.
    """
    shardings = state_shardings(config, mesh)
    make = jax.jit(lambda: init_state(config), out_shardings=shardings)
    if step is None:
        step = checkpoint.newest(path / "checkpoints", say_once)
        verified = True
    if step or (step == 0 and step in checkpoint.steps(path / "checkpoints")):  # step 0: weights that were imported
        return _restored(path, step, make, shardings, verified, accept)
    state = make()
    if first is not None:
        ema = sharding.copied(first, shardings.ema) if config.optim.ema else {}
        state = state.replace(params=sharding.copied(first, shardings.params), ema=ema)
    return state, Position()


def _restored(
    path: Path, step: int, make: Callable[[], State], shardings: State, verified: bool, accept: Collection[str]
) -> tuple[State, Position]:
    folder = path / "checkpoints"
    like = trees(with_shardings(jax.eval_shape(make), shardings))
    found = checkpoint.unlike(folder / str(step), like)
    if not found or found.keys() - {*accept}:
        items, position = checkpoint.restore(folder, step, like, verified)  # or it tells how they differ
        return of_trees(items), _position(path, position)
    items, position = checkpoint.fitted(folder, step, like, trees(make()), verified)
    state = of_trees(items)
    if any(line.startswith("ema/") for line in found.get("tree", ())):
        state = state.replace(ema=jax.tree.map(jnp.copy, state.params))
    return state, _position(path, position)


def _position(path: Path, position: dict) -> Position:
    if unknown := position.keys() - vars(Position()).keys():  # an earlier version may have written fewer
        raise Damaged(
            f"{path}: the position in its checkpoint has {', '.join(sorted(unknown))}, which this version does not "
            "know; use the version that wrote it"
        )
    usual = vars(Position())
    odd = [key for key, value in position.items() if not _is_like(value, usual[key])]
    if odd or "step" not in position:
        raise Damaged(f"{path}: the position in its checkpoint has no {(odd or ['step'])[0]} that can be; move it away")
    return Position(**position)


def _is_like(value: object, usual: object) -> bool:
    """Has a value the type that it usually has? A whole number may stand for any."""
    return type(value) is type(usual) or (type(usual) is float and type(value) is int)
