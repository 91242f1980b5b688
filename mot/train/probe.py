"""Probes: how modalities compete inside a checkpoint, or a run as it trains, into its folder (`runs/probed.py`).

What is measured is in `mot/measures`. All probes look at the same held-out batches, whatever the step, so that their
numbers can be followed over training; gradients are of the first batch alone.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mot import optim, sharding
from mot.batches import Batch
from mot.config import Config
from mot.console import phase
from mot.data import remote
from mot.data.mixture import Sources
from mot.data.pipeline import nothing
from mot.measures import attention, experts, gradients, representation, states
from mot.model import params
from mot.objectives import losses
from mot.runs import lock, probed, rundir, written
from mot.runs.probed import Found
from mot.train import evaluate, restore
from mot.train.agreement import any_process
from mot.train.signals import Interrupted
from mot.train.state import State, state_shardings
from mot.train.step import make_gradients

Probe = Callable[[State, Collection[str]], dict[str, Found]]


def run(
    path: Path,
    steps: Sequence[int] | None,
    what: Sequence[str],
    say: Callable[[str], None] = print,
    fetch: bool = False,
) -> dict[int, dict[str, Found]]:
    """Measures checkpoints of a run, and writes what it finds into the run's folder.

    `steps`: None are all, [] is the newest. `what` are kinds, [] are all that the run has. `fetch`: with data also from
    an address that only the run itself names.

    `UserError` where the run has no such checkpoint, nothing to compare, or another process has its lock.
    """
    config = rundir.config_of(path)
    what = written.probes(path, config, what)
    saved = written.saved(path)
    steps = saved if steps is None else steps or saved[-1:]
    for step in steps:
        written.saved(path, step)
    remote.refuse_unknown(path, written.config_as_written(path).data.sources, fetch)
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
    needed first. `between` is called before each. `sources` is the number of the training data's. Every process of a
    run calls it."""

    @functools.cache
    def batches() -> list[Batch]:
        return evaluate.held_out(config, held_out, mesh, say)[0]

    of_gradients = functools.cache(functools.partial(make_gradients_probe, config, sources, mesh))
    of_passes = functools.cache(functools.partial(_make_passes_probe, config, mesh))

    def probe(state: State, what: Collection[str]) -> dict[str, Found]:
        found = {"gradients": of_gradients()(state, batches()[0], between)} if "gradients" in what else {}
        passes = tuple(kind for kind in what if kind != "gradients")
        if passes:
            found |= of_passes(passes)(state, batches(), between)
        return {kind: found[kind] for kind in what}

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


# --- how they are measured -------------------------------------------------------------------------------------------


def make_gradients_probe(config: Config, sources: int, mesh: jax.sharding.Mesh) -> Callable[..., Found]:
    """`(state, batch, between) ->` how the modalities' gradients of the parameters that train agree.

    A backward pass for each modality, one after another; as in a step, in microbatches and with its noise.
    """
    of_loss = make_gradients(gradients.without_routers(config), sources)
    is_trained = optim.trainable(config)

    def one(state: State, batch: Batch, m: jax.Array) -> dict:
        trained, frozen = params.split(state.params, is_trained)
        alone = gradients.of_modality(batch, m, config)
        return of_loss(state, trained, frozen, alone, losses.totals(batch, config))[1]

    places, _ = params.split(state_shardings(config, mesh).params, is_trained)
    one = jax.jit(one, out_shardings=places)
    products = jax.jit(functools.partial(gradients.products, config=config), out_shardings=sharding.replicated(mesh))

    def measure(state: State, batch: Batch, between: Callable[[], None]) -> Found:
        of_modalities = []
        for m in range(len(config.modalities)):
            between()
            of_modalities.append(one(state, batch, jnp.int32(m)))
        found = jax.device_get(products(of_modalities))
        arrays = {f"{path}_LMM": x for path, x in found.items()}
        return Found(gradients.numbers(found, config), arrays | {"modalities": np.array(config.modalities)})

    return measure


def _make_passes_probe(config: Config, mesh: jax.sharding.Mesh, what: Sequence[str]) -> Callable[..., dict[str, Found]]:
    """`(state, batches, between) ->` what is seen in passes of the batches, by kind, all in one program."""
    tokens = -(-representation.TOKENS // config.run.eval_batches)
    watching: dict[str, states.Watching] = {
        "representation": functools.partial(representation.watch, tokens=tokens),
        "attention": attention.watch,
        "experts": experts.watch,
    }
    look = functools.partial(states.look, config=config, watching={kind: watching[kind] for kind in what})
    look = jax.jit(look, out_shardings=sharding.replicated(mesh))

    def measure(state: State, batches: Sequence[Batch], between: Callable[[], None]) -> dict[str, Found]:
        found = []
        for batch in batches:
            between()
            found.append(jax.device_get(look(state.ema or state.params, batch)))
        return {kind: TELL[kind]([of_batch[kind] for of_batch in found], config) for kind in what}

    return measure


def _added(found: Sequence) -> Any:
    return jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *found)


def _of_clouds(found: Sequence[list[representation.Cloud]], config: Config) -> Found:
    return Found(*representation.numbers(representation.joined(found), config))


def _of_masses(found: Sequence[attention.Mass], config: Config) -> Found:
    return Found(*attention.numbers(_added(found), config))


def _of_loads(found: Sequence[dict[str, experts.Loads]], config: Config) -> Found:
    return Found(*experts.numbers(_added(found), config))


TELL = {"representation": _of_clouds, "attention": _of_masses, "experts": _of_loads}
