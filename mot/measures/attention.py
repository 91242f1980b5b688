"""Who looks at whom: the attention mass that queries of one stream give to keys of another, layer by layer.

It is told over what attention that is uniform over all visible positions would give, as a stream with more tokens, or
earlier ones, has more of it by that alone: 1 = as uniform attention; 2 = twice as much. Here M counts streams.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mot import batches, sharding
from mot.batches import Info
from mot.config import Config
from mot.measures import states
from mot.model import layers, ops
from mot.model.context import Context, Group
from mot.model.flash import UNSEEN
from mot.model.joint import end_to_end

SCORES = 2**23  # that exist at once


class Mass(NamedTuple):
    """Sums over the queries of a stream that see something: rows are of queries, columns of keys."""

    mass_LKMM: jax.Array  # mean over the query heads of each key head
    uniform_MM: jax.Array  # what uniform attention would give
    queries_M: jax.Array


def watch(context: Context) -> states.Watch:
    """Finds the `Mass` of a batch. Sums of several batches add up."""
    config = context.config
    rules = config.mesh.rules
    info = _whole([group.tokens.info for group in context.groups], rules)
    stream_BT = end_to_end([_streams(group, context) for group in context.groups])

    def see(layer: states.Layer):
        qkv = layers.projected(layer.before, layer.weights, layer.number, context, layer.stack)
        q_BTNH, k_BTKH = (_whole([part[i] for part in qkv], rules) for i in (0, 1))
        return shares(q_BTNH, k_BTKH, info, stream_BT, len(config.streams), config.model.attention_cap)

    def tell(found: Mass, _) -> Mass:
        return Mass(found.mass_LKMM, found.uniform_MM[0], found.queries_M[0])  # these two are the same in all layers

    return states.Watch(see, tell)


def _whole(parts: list, rules: dict[str, str]):
    """Arrays `[B, C, ...]` of several groups as whole rows, end to end."""
    return jax.tree.map(lambda *x: end_to_end(x), *sharding.join_context(parts, rules))


def _streams(group: Group, context: Context) -> jax.Array:
    """`[B, C]`: the number of the stream of each of a group's tokens, of whole rows."""
    rules = context.config.mesh.rules
    names = list(context.config.streams)
    segments = sharding.join_context([tokens.segment for tokens in group.by_stream.values()], rules)
    found = [jnp.full_like(x, names.index(name)) for name, x in zip(group.by_stream, segments, strict=True)]
    stream_BC = end_to_end(found)
    return stream_BC if group.order is None else batches.in_order(stream_BC, group.order)


def shares(q_BTNH, k_BTKH, info: Info, stream_BT, streams: int, cap: float = 0.0) -> Mass:
    """The mass of one layer (no leading axis L), of tokens in any order; scores as in `attention.attend`."""
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    chunk = max(min(SCORES // (B * N * T), T), 1)
    to_BSM = jax.nn.one_hot(stream_BT, streams)
    exact = lax.Precision.HIGHEST

    def one_chunk(total, rows):
        q_BQKGH, q_info, from_BQM = rows
        seen_BQS = batches.visible(q_info, info)
        any_BQ = seen_BQS.any(-1)
        s_BKGQS = jnp.einsum("BQKGH,BSKH->BKGQS", q_BQKGH, k_BTKH, preferred_element_type=jnp.float32) * H**-0.5
        s_BKGQS = ops.capped(s_BKGQS, cap)
        seen_B11QS = seen_BQS[:, None, None]
        p_BKGQS = jnp.where(seen_B11QS, jax.nn.softmax(jnp.where(seen_B11QS, s_BKGQS, UNSEEN), axis=-1), 0)
        even_BQS = seen_BQS / jnp.maximum(seen_BQS.sum(-1, keepdims=True), 1)
        from_BQM = from_BQM * any_BQ[..., None]
        to_BKQM = jnp.einsum("BKGQS,BSM->BKQM", p_BKGQS, to_BSM, precision=exact) / (N // K)
        mass_KMM = jnp.einsum("BQA,BKQZ->KAZ", from_BQM, to_BKQM, precision=exact)
        uniform_MM = jnp.einsum("BQA,BQS,BSZ->AZ", from_BQM, even_BQS, to_BSM, precision=exact)
        return jax.tree.map(jnp.add, total, Mass(mass_KMM, uniform_MM, from_BQM.sum((0, 1)))), None

    def chunks(x):
        """`[U, B, Q, ...]`; what fills the last chunk is padding, which sees nothing."""
        x = jnp.pad(x, ((0, 0), (0, -T % chunk), *((0, 0) for _ in x.shape[2:])))
        return x.reshape(B, -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    queries = (q_BTNH.reshape(B, T, K, N // K, H), info, to_BSM)
    start = Mass(jnp.zeros((K, streams, streams)), jnp.zeros((streams, streams)), jnp.zeros(streams))
    return lax.scan(one_chunk, start, jax.tree.map(chunks, queries))[0]


def numbers(found: Mass, config: Config) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """`attention/{from}/{to}/{layer}`, the mass over that of uniform attention, by streams; absent where no query of
    `from` sees a key of `to`. Arrays: `share_LKMM`, the mean mass of a query by head group; and `uniform_MM`."""
    mass_LKMM, uniform_MM, queries_M = (np.asarray(x, np.float64) for x in found)
    result = {}
    for a, one in enumerate(config.streams):
        for b, other in enumerate(config.streams):
            if uniform_MM[a, b] > 0:
                ratios = mass_LKMM[:, :, a, b].mean(1) / uniform_MM[a, b]
                result |= {f"attention/{one}/{other}/{layer}": float(x) for layer, x in enumerate(ratios)}
    most_M1 = np.maximum(queries_M, 1)[:, None]
    arrays = {"share_LKMM": mass_LKMM / most_M1, "uniform_MM": uniform_MM / most_M1}
    return result, {name: x.astype(np.float32) for name, x in arrays.items()}
