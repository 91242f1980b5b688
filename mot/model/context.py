"""What every layer of a forward pass sees alike: the groups of streams, the row in which they meet, and the cache."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax

from mot.batches import Info, Tokens
from mot.config import Config, Experts
from mot.model.caches import Cache, Crossed
from mot.model.kernels import Calls


class Group(NamedTuple):
    """Streams that are alike in every layer, and so travel merged, in document order.

    With `context` tokens are in parts (`sharding.split_context`): B counts parts and C is a part's tokens.
    """

    streams: tuple[str, ...]
    tokens: Tokens  # merged
    modality: jax.Array  # of each merged token, [B, C]
    by_stream: dict[str, Tokens]  # the same tokens, not merged
    order: jax.Array | None  # of whole rows [B, C], from streams end to end to document order; None: one stream
    back: jax.Array | None  # the inverse of `order`


class Queries(NamedTuple):
    """Tokens that attend to all keys in one call."""

    info: Info
    calls: Calls | None  # what `splash` is told of them


class JointRow(NamedTuple):
    """The tokens of all groups where they meet. With `context` B counts parts of rows and T is a part's tokens."""

    q: Info  # [B, T], in document order, where causality leaves the fewest tiles to visit
    k: Info  # of whole rows; without `context` the same
    order: jax.Array | None  # [B, T], from the groups end to end to document order; None: they are in it
    back: jax.Array | None
    k_order: jax.Array | None  # the same of whole rows, as they come from their devices
    k_back: jax.Array | None
    queries: Sequence[Queries]  # `q`, or else each group's, which then stay as they come


class Seen(NamedTuple):
    """What layers see of a stream by cross-attention alone."""

    weights: dict  # of its cross-attentions, each with a leading axis of them
    kept: Crossed | None  # None: there is nothing of the stream
    units: list[jax.Array] | None  # by group: the unit that each token sees, [B, C]; 0 = none


class Context(NamedTuple):
    """What every layer sees alike, but for `towers`, `jitter_key`, `kv` and `dropout`, the layer's own inside it."""

    config: Config
    groups: list[Group]
    conditions: list[jax.Array | None]  # by group: c_RY that its norms are modulated by
    row: JointRow
    jitter_key: jax.Array | None  # of the routers' inputs; None: no jitter
    causal: bool  # experts that choose are imitated by routers that see no later token
    cache: Cache | None  # whose info has these tokens
    multipliers: Mapping[str, float] = MappingProxyType({})  # by `component/tower/weight`, where they are not 1
    towers: Mapping[str, Mapping[str, str]] = MappingProxyType({})  # of this layer: component -> stream -> tower
    kv: tuple[jax.Array, jax.Array] | None = None  # the cache's keys and values of this layer
    crossed: Mapping[str, Seen] = MappingProxyType({})  # by stream
    dropout: list[jax.Array] | None = None  # by group: a key for each token, [R]; None: nothing is dropped

    def tower(self, component: str, group: Group) -> str:
        """The tower that serves a group in this layer."""
        return self.towers[component][group.streams[0]]

    def scaled(self, x: jax.Array, path: str) -> jax.Array:
        """x times the multiplier of a weight, `component/tower/weight`."""
        return x * self.multipliers[path] if path in self.multipliers else x


class Tower(NamedTuple):
    """One parameter set of a component, and the numbers of the groups that it serves."""

    name: str
    experts: Experts
    groups: list[int]


def towers(component: str, context: Context) -> list[Tower]:
    """The towers of `attn` or `ffn` that serve some group, in the order of their first group."""
    names = [context.tower(component, group) for group in context.groups]
    experts = context.config.component(component).experts
    return [
        Tower(tower, experts[tower], [i for i, name in enumerate(names) if name == tower])
        for tower in dict.fromkeys(names)
    ]
