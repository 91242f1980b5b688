"""What the layers of a model read and leave, for measures that look into it: the model itself is as it trains."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

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


def enter(params: dict, batch: Batch, config: Config) -> tuple[list[jax.Array], Context]:
    """What enters the first layer: the groups' residuals, and what every layer sees. Vectors are noised."""
    # Unrolled, as of a scan's layers only the last of a period says something; parameters are the same.
    model = dataclasses.replace(config.model, scan=False, remat="none")
    config = dataclasses.replace(config, model=model)
    noised = losses.noised(batch, config, NOISE).batch
    return transformer.enter(params, noised, config, None, False, None)


def of_layers(see: Callable[[Layer], Any], params: dict, xs: list[jax.Array], context: Context) -> Any:
    """What `see` says of each layer, a tree of arrays, with a leading axis of layers; `xs` and `context` of `enter`."""

    def layer(before, weights, number):
        after, _, kv = layers.block(before, weights, number, context)
        return after, see(Layer(before, after, weights, number)), kv

    return transformer.stack(layer, params["blocks"], xs, context.config, False)[1]
