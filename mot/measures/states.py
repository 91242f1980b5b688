"""What the layers of a model read and leave, for measures that look into it: the model itself is as it trains.

Several measures look at one pass of a batch: each gives a `Watch`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mot.batches import Batch
from mot.config import Config
from mot.model import layers, transformer
from mot.model.context import Context
from mot.objectives import losses

NOISE = 0  # the step of which vectors get their noise: the same whenever a batch is looked at


class Layer(NamedTuple):
    """A layer as it is passed; each group's residual is `[R, D]`."""

    before: list[jax.Array]
    after: list[jax.Array]
    weights: dict  # as `layers.block` takes them
    number: int
    stack: str


class Watch(NamedTuple):
    """A measure's look at a pass."""

    see: Callable[[Layer], Any]  # what it keeps of a layer, a tree of arrays
    tell: Callable[[Any, layers.Reports], Any]  # what it finds, of what it kept with a leading axis of layers, and of
    # the routers' reports


Watching = Callable[[Context], Watch]


def _enter(params: dict, batch: Batch, config: Config) -> tuple[list[jax.Array], Context]:
    """What enters the first layer: the groups' residuals, and what every layer sees. Vectors are noised."""
    # Unrolled, as of a scan's layers only the last of a period says something; parameters are the same.
    model = dataclasses.replace(config.model, scan=False, remat="none")
    config = dataclasses.replace(config, model=model)
    noised = losses.noised(batch, config, NOISE).batch
    return transformer.enter(params, noised, config, None, False, None)


def look(params: dict, batch: Batch, config: Config, watching: Mapping[str, Watching]) -> dict[str, Any]:
    """What each measure finds in one pass of a batch, by name."""
    xs, context = _enter(params, batch, config)
    watches = {name: watch(context) for name, watch in watching.items()}

    def layer(before, weights, number, stack):
        after, reports, _ = layers.block(before, weights, number, context, stack)
        passed = Layer(before, after, weights, number, stack)
        # In the place of keys and values, which `stack` hands out layer by layer.
        return after, reports, {name: watch.see(passed) for name, watch in watches.items()}

    _, reports, of_layers = transformer.stack(layer, params["blocks"], xs, context.config, False)
    kept = jax.tree.map(lambda *x: jnp.stack(x), *of_layers)
    return {name: watch.tell(kept[name], reports) for name, watch in watches.items()}
