"""Probes: how modalities compete inside a checkpoint, or a run as it trains, into its folder (`runs/probed.py`).

What is measured is in `mot/measures`. All probes look at the same held-out batches, whatever the step, so that their
numbers can be followed over training; gradients are of the first batch alone.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from mot import optim, sharding
from mot.batches import Batch
from mot.config import Config
from mot.console import phase
from mot.data.mixture import Sources
from mot.data.pipeline import nothing
from mot.measures import attention, experts, gradients, representation
from mot.model import params
from mot.objectives import losses
from mot.runs import lock, probed, rundir, written
from mot.runs.probed import Found
from mot.train import evaluate, restore
from mot.train.agreement import any_process
from mot.train.signals import Interrupted
from mot.train.state import State, state_shardings
from mot.train.step import make_gradients

Measure = Callable[[State, Sequence[Batch], Callable[[], None]], Found]  # the last is called between two programs
Probe = Callable[[State, Collection[str]], dict[str, Found]]


def run(
    path: Path, steps: Sequence[int] | None, what: Sequence[str], say: Callable[[str], None] = print
) -> dict[int, dict[str, Found]]:
    """Measures checkpoints of a run, and writes what it finds into the run's folder.

    `steps`: None are all, [] is the newest. `what` are kinds, [] are all that the run has.

    `UserError` where the run has no such checkpoint, nothing to compare, or another process has its lock.
    """
    config = rundir.config_of(path)
    what = written.probes(path, config, what)
    saved = written.saved(path)
    steps = saved if steps is None else steps or saved[-1:]
    for step in steps:
        written.saved(path, step)
    config, training, held_out = restore.open_data(config)
    evaluate.refuse_endless(config, held_out)
    mesh = sharding.make_mesh(config, sharding.dividing(config))
    found = {}
    with lock.held(path), jax.set_mesh(mesh):
        probed.read(path)  # what is damaged is told before anything is computed
        probe = make_probe(config, held_out, len(training.names), mesh, say)
        for step in steps:
            with phase(f"reading step {step}"):
                state, _ = restore.start(config, path, mesh, step)
            with phase(f"probing step {step}: {', '.join(what)}; programs are compiled the first time"):
                found[step] = probe(state, what)
            probed.write(path, step, found[step])
    return found


def make_probe(
    config: Config,
    held_out: Sources,
    sources: int,
    mesh: jax.sharding.Mesh,
    say: Callable[[str], None] = print,
    between: Callable[[], None] = nothing,
) -> Probe:
    """`(state, kinds) ->` what is measured of it, by kind. Batches are packed, and programs compiled, when they are
    needed first. `sources` is the number of the training data's. Every process of a run calls it."""

    @functools.cache
    def batches() -> list[Batch]:
        return evaluate.held_out(config, held_out, mesh, say)[0]

    @functools.cache
    def measure(kind: str) -> Measure:
        return MEASURES[kind](config, sources, mesh)

    def probe(state: State, what: Collection[str]) -> dict[str, Found]:
        return {kind: measure(kind)(state, batches(), between) for kind in what}

    return probe


def in_training(probe: Probe, config: Config, path: Path, say: Callable[[str], None]) -> Callable[[State, int], None]:
    """`(state, step)`: measures a step of a run that trains, unless that was done before the run was resumed.

    Whatever fails is told, and training goes on; a signal ends it as it ends an evaluation.
    """

    what = written.probes(path, config) if config.run.probe_every else []
    is_first = sharding.is_first_process()
    done = {(row["step"], row["what"]) for row in probed.read(path)} if is_first else set()

    def at(state: State, step: int) -> None:
        if not any_process(is_first and any((step, kind) not in done for kind in what)):
            return
        try:
            found = probe(state, what)
            if is_first:
                probed.write(path, step, found)
        except Interrupted:
            raise
        except Exception as error:
            say(f"ALARM: step {step} was not probed ({type(error).__name__}: {error!s:.300}); training goes on")

    return at


# --- how each kind is measured ---------------------------------------------------------------------------------------


def _gradients(config: Config, sources: int, mesh: jax.sharding.Mesh) -> Measure:
    """A backward pass for each modality, one after another, of the parameters that train: as in a step, in microbatches
    and with its noise."""
    plain = gradients.without_routers(config)
    of_loss = make_gradients(plain, sources)

    def one(state: State, batch: Batch, m) -> dict:
        trained, frozen = params.split(state.params, optim.trainable(config))
        alone = gradients.of_modality(batch, m, config)
        return of_loss(state, trained, frozen, alone, losses.totals(batch, config))[1]

    places, _ = params.split(state_shardings(config, mesh).params, optim.trainable(config))
    one = jax.jit(one, out_shardings=places)
    products = jax.jit(functools.partial(gradients.products, config=config), out_shardings=sharding.replicated(mesh))

    def measure(state: State, batches: Sequence[Batch], between: Callable[[], None]) -> Found:
        of_modalities = []
        for m in range(len(config.modalities)):
            between()
            of_modalities.append(one(state, batches[0], jnp.int32(m)))
        found = jax.device_get(products(of_modalities))
        arrays = {f"{path}_LMM": x for path, x in found.items()}
        return Found(gradients.numbers(found, config), arrays | {"modalities": list(config.modalities)})

    return measure


def _representation(config: Config, sources: int, mesh: jax.sharding.Mesh) -> Measure:
    tokens = -(-representation.TOKENS // config.run.eval_batches)
    look = _looking(functools.partial(representation.look, config=config, tokens=tokens), mesh)

    def measure(state: State, batches: Sequence[Batch], between: Callable[[], None]) -> Found:
        clouds = representation.joined(list(look(state, batches, between)))
        return Found(*representation.numbers(clouds, config))

    return measure


def _attention(config: Config, sources: int, mesh: jax.sharding.Mesh) -> Measure:
    look = _looking(functools.partial(attention.look, config=config), mesh)

    def measure(state: State, batches: Sequence[Batch], between: Callable[[], None]) -> Found:
        return Found(*attention.numbers(_added(look(state, batches, between)), config))

    return measure


def _experts(config: Config, sources: int, mesh: jax.sharding.Mesh) -> Measure:
    look = _looking(functools.partial(experts.look, config=config), mesh)

    def measure(state: State, batches: Sequence[Batch], between: Callable[[], None]) -> Found:
        return Found(*experts.numbers(_added(look(state, batches, between)), config))

    return measure


MEASURES: Mapping[str, Callable[[Config, int, jax.sharding.Mesh], Measure]] = {
    "gradients": _gradients,
    "representation": _representation,
    "attention": _attention,
    "experts": _experts,
}


def _looking(look: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """What `look(params, batch)` finds in each batch, on the host; of the averaged parameters where there are such."""
    program = jax.jit(look, out_shardings=sharding.replicated(mesh))

    def each(state: State, batches: Sequence[Batch], between: Callable[[], None]):
        for batch in batches:
            between()
            yield jax.device_get(program(state.ema or state.params, batch))

    return each


def _added(found):
    return functools.reduce(lambda a, b: jax.tree.map(lambda x, y: x + y, a, b), found)
