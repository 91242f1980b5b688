"""How well a linear probe tells what a unit shows from the states that a model has of it (1610.01644).

A unit stands alone after <bos>, whole and clean; the mean of its last states is what is probed. Its label is what the
text of its document says, or of documents without text the source that it is from.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mot.batches import Batch
from mot.config import Config
from mot.data import layout
from mot.data.layout import Format, Stretch
from mot.data.mixture import Source
from mot.errors import UserError
from mot.measures.figures import Figure, share
from mot.measures.likelihood import batched
from mot.measures.retrieval import pairs, singles
from mot.model import params as parameters
from mot.model import transformer

MOST = 4000  # documents of a source that are read


class Labelled(NamedTuple):
    """Units of one stream, and what each shows."""

    units: list[Stretch]
    labels: np.ndarray  # [n] str


def labelled(source: Source, config: Config, format: Format, label: Callable[[Stretch], str]) -> dict[str, Labelled]:
    """The units of a source by stream: of documents with one stretch of it and one of text, whose label is not ""."""
    found: dict[str, tuple[list, list]] = {}
    for number, pair in enumerate(pairs(source, config, format)):
        if number == MOST:
            break
        for name in [name for name in pair if config.has_states(name) and format.text in pair]:
            if said := label(pair[format.text]):
                units, labels = found.setdefault(name, ([], []))
                units.append(pair[name])
                labels.append(said)
    return {name: Labelled(units, np.array(labels)) for name, (units, labels) in found.items()}


def by_source(sources: Iterable[Source], config: Config, format: Format) -> dict[str, Labelled]:
    """The units of several sources by stream, of documents that hold one unit and nothing else: their label is the
    name of their source. Streams of one source alone are left out."""
    found: dict[str, tuple[list, list]] = {}
    for source in sources:
        for number, unit in enumerate(singles(source, config, format)):
            if number == MOST:
                break
            if config.has_states(unit.stream):
                units, labels = found.setdefault(unit.stream, ([], []))
                units.append(unit)
                labels.append(source.name)
    return {name: Labelled(units, np.array(labels)) for name, (units, labels) in found.items() if len(set(labels)) > 1}


def probed(params: dict, config: Config, format: Format, stream: str, learnt: Labelled, asked: Labelled) -> dict:
    """How often a probe that learns from some units is right about others: of the model's states, of those of the same
    model with its initial parameters, and of vectors themselves where all units are as long."""
    untrained = jax.jit(lambda: parameters.init(parameters.table(config), config.model.seed))()
    found = {}
    for name, weights in (("trained", params), ("untrained", untrained)):
        states = make_states(weights, config, format)
        found[name] = _right(*(states(x.units, stream) for x in (learnt, asked)), learnt.labels, asked.labels)
    lengths = {len(unit.data) for x in (learnt, asked) for unit in x.units}
    if config.streams[stream].latent and len(lengths) == 1:
        flat = [np.stack([unit.data.ravel() for unit in x.units]) for x in (learnt, asked)]
        found["input"] = _right(*flat, learnt.labels, asked.labels)
    return found


def _right(x_RD: np.ndarray, y_RD: np.ndarray, of_x: np.ndarray, of_y: np.ndarray) -> Figure:
    """The share of labels of y that logistic regression on standardised x gets right."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(of_x.tolist())) < 2:
        raise UserError("--what=labels: all units have one label, and there is nothing to tell; leave it out")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500, tol=1e-3)).fit(x_RD, of_x)
    usual = np.unique(of_x, return_counts=True)
    return share(probe.predict(y_RD) == of_y, float(np.mean(of_y == usual[0][usual[1].argmax()])))


def make_states(params: dict, config: Config, format: Format) -> Callable[[Iterable[Stretch], str], np.ndarray]:
    """`(units, stream) -> [n, D]` float32: the mean of each unit's normed last states. On one device."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none"))
    means = jax.jit(partial(_means, config=config), static_argnames=("count", "stream"))

    def states(units: Iterable[Stretch], stream: str) -> np.ndarray:
        documents = [layout.document([unit], config, format) for unit in units]
        batches = batched(documents, config)
        total = sum(jax.device_get(means(params, batch, count=len(documents), stream=stream)) for batch in batches)
        if not np.isfinite(total).all():
            raise UserError("states are not finite (NaN or infinity); take an earlier --step")
        return total

    return states


def _means(params: dict, batch: Batch, count: int, stream: str, config: Config) -> jax.Array:
    """`[n, D]`: of each document that a batch holds, by its number; 0 of others."""
    h_BCD = transformer.forward(params, batch, config, asked=(stream,)).states[stream]
    real_BC = batch[stream].segment != 0
    place_R = jnp.where(real_BC, batch[stream].doc_id, count).reshape(-1)
    h_RD = jnp.where(real_BC[..., None], h_BCD, 0).reshape(len(place_R), -1)
    total = jnp.zeros((count + 1, h_RD.shape[1])).at[place_R].add(h_RD)
    number = jnp.zeros((count + 1, 1)).at[place_R].add(1.0)
    return (total / jnp.maximum(number, 1))[:count]
