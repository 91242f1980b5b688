"""Predicts the states of what is hidden of a unit from what is seen of it (I-JEPA, 2301.08243).

A unit's rows and columns are cut into a context and some target blocks by chance, from (unit_seed, step) alone. What is
not context is padding to the trunk; a predictor (`model/predictor.py`) tells targets' states from the context's. These
are states of the whole unit: an average's, without a gradient, or the model's own, which SIGReg (LeJEPA,
2511.08544) keeps from becoming all alike.
"""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mot import batches
from mot.batches import Tokens
from mot.config import Config, Prediction, Stream
from mot.model import predictor
from mot.objectives.sums import Sums, modality, scales, summed

KNOTS, FARTHEST = 17, 3.0  # of the characteristic function: where it is compared, from 0 on (2511.08544's code)
NORM_EPS = 1e-5


class Masks(NamedTuple):
    """Of each token of a stream's units, `[B, C]` bool: what is seen, and what is predicted. Some are neither."""

    context: jax.Array
    target: jax.Array


def masks(tokens: Tokens, prediction: Prediction, key: jax.Array) -> Masks:
    """The context and the targets of every unit: some blocks, and a square without them (2301.08243, 3 and A.1).

    A block that would leave nothing to be seen is left out, so that every unit of two tokens or more has both; of one
    token it is seen. Blocks may overlap, and reach any edge. `key` and a unit's seed decide, wherever it is packed.
    """
    p = prediction
    keys_R = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(tokens.unit_seed.reshape(-1))
    draws = jax.vmap(lambda k: jax.random.uniform(k, (4 * (p.blocks + 1),)))(keys_R)
    drawn = draws.reshape(*tokens.unit.shape, -1)
    place_BC = batches.place_in_unit(tokens)
    count_BC = batches.total_in_unit(jnp.ones_like(place_BC), tokens)
    place = place_BC // p.columns, place_BC % p.columns
    size = -(-count_BC // p.columns), jnp.minimum(count_BC, p.columns)
    is_real_BC = tokens.unit != 0

    def block(i: int, share: tuple[float, float], aspect: tuple[float, float]) -> jax.Array:
        """Is a token in the i-th block?"""
        share_BC, aspect_BC, top_BC, left_BC = (drawn[..., 4 * i + j] for j in range(4))
        area_BC = count_BC * _between(share_BC, *share)
        height_BC, width_BC = _sides(area_BC, _between(aspect_BC, *aspect), size)
        first = (top_BC * (size[0] - height_BC + 1)).astype(jnp.int32), (left_BC * (size[1] - width_BC + 1)).astype(int)
        is_row_BC = (place[0] >= first[0]) & (place[0] < first[0] + height_BC)
        return is_row_BC & (place[1] >= first[1]) & (place[1] < first[1] + width_BC) & is_real_BC

    square_BC = block(p.blocks, (p.least_context, p.most_context), (1.0, 1.0))
    target_BC = jnp.zeros_like(is_real_BC)
    for i in range(p.blocks):
        more_BC = target_BC | block(i, (p.least_block, p.most_block), (p.least_aspect, p.most_aspect))
        left_BC = batches.total_in_unit((square_BC & ~more_BC).astype(jnp.int32), tokens)
        target_BC = jnp.where(left_BC > 0, more_BC, target_BC)
    return Masks(square_BC & ~target_BC, target_BC)


def _between(u, least: float, most: float) -> jax.Array:
    return least + (most - least) * u


def _sides(area, aspect, size: tuple) -> tuple[jax.Array, jax.Array]:
    """Height and width of a block, at least 1; a side that the unit cuts short is made up for by the other."""
    height, width = jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)
    longer = jnp.where(width > size[1], area / size[1], height)
    wider = jnp.where(height > size[0], area / size[0], width)

    def whole(x, most):
        return jnp.clip(jnp.round(x), 1, most).astype(jnp.int32)

    return whole(longer, size[0]), whole(wider, size[1])


def hidden(tokens: Tokens, stream: Stream, key: jax.Array) -> Tokens:
    """A stream's tokens as the trunk sees them: units that have a loss lose all but their context, which is clean.

    Targets have a weight, padding and context none. A unit weighs what it weighed whole, however many are targets.
    """
    found = masks(tokens, stream.prediction, key)
    learns_BC = tokens.noise > 0  # as the host says; the others are seen whole
    target_BC = found.target & learns_BC
    weighs_BC = target_BC & (tokens.weight > 0)
    total_BC = batches.total_in_unit(tokens.weight, tokens)
    targets_BC = batches.total_in_unit(weighs_BC.astype(jnp.float32), tokens)
    return tokens.replace(
        segment=jnp.where(learns_BC & ~found.context, 0, tokens.segment),
        weight=jnp.where(weighs_BC, total_BC / jnp.maximum(targets_BC, 1), 0),
        noise=jnp.zeros_like(tokens.noise),
    )


def targets(state_BCD, stream: Stream) -> jax.Array:
    """`[B, C, D]`: what is to be predicted of the states of whole units."""
    if stream.prediction.targets == "own":
        return state_BCD
    state_BCD = jax.lax.stop_gradient(state_BCD)
    state_BCD -= state_BCD.mean(-1, keepdims=True)
    return state_BCD * jax.lax.rsqrt(jnp.square(state_BCD).mean(-1, keepdims=True) + NORM_EPS)


def loss(
    name: str, params: dict, state_BCD, tokens: Tokens, target_BCD, Z_M, config: Config, sources: int, step, factor_M
) -> tuple[jax.Array, Sums, dict[str, jax.Array]]:
    """The part of `losses.loss` that is of a stream whose states are predicted, its sums, and its targets' spread.

    1 - sigreg times the prediction's loss, and sigreg times SIGReg, which weighs as much however often the step
    accumulates, and is scaled by the modality's factor as the prediction is (Z_M has it): else states that are nearly
    alike, whose small loss is scaled up, would gain by becoming all alike. The prediction's alone is reported.
    """
    s = config.streams[name]
    l_BC = of_tokens(name, params, state_BCD, tokens, target_BCD, config)
    m = config.modalities.index(s.modality)
    total = (1 - s.prediction.sigreg) * scales(Z_M, config)[m] * l_BC.sum()
    is_real_BC = (tokens.unit != 0) & ~tokens.private  # of a unit in two copies, whose states are alike, the clean one
    if s.prediction.sigreg:
        key = jax.random.fold_in(jax.random.key(config.model.seed), zlib.crc32(b"sigreg"))
        statistic = sigreg(target_BCD, is_real_BC, s.prediction.slices, jax.random.fold_in(key, step))
        part = s.prediction.sigreg * s.loss_weight * factor_M[m] * statistic / config.optim.accumulate
        total += jnp.where((tokens.weight > 0).any(), part, 0)  # of a batch, or a measure, without these units: nothing
    sums = summed(l_BC, tokens, modality(tokens, name, config), config, sources)
    return total, sums, spread(target_BCD, is_real_BC)


def of_tokens(name: str, params: dict, state_BCD, tokens: Tokens, target_BCD, config: Config) -> jax.Array:
    """w * l of each token `[B, C]`: the mean over features of smooth L1 (I-JEPA's code), or of squares (LeJEPA's)."""
    s = config.streams[name]
    is_target_BC = tokens.weight > 0
    predicted_BCD = predictor.predict(params, name, state_BCD, tokens, is_target_BC, config)
    # Before the square: in the backward pass 0 * NaN, of what does not count, is NaN.
    error_BCD = jnp.where(is_target_BC[..., None], predicted_BCD - target_BCD, 0)
    return tokens.weight * _distance(error_BCD, s.prediction.targets == "own").mean(-1)


def _distance(error, is_squared: bool) -> jax.Array:
    if is_squared:
        return jnp.square(error)
    size = jnp.abs(error)
    return jnp.where(size < 1, jnp.square(error) / 2, size - 0.5)


def sigreg(state_BCD, is_real_BC, slices: int, key: jax.Array) -> jax.Array:
    """How far states are from N(0, I): Epps and Pulley's statistic along random directions (2511.08544, algorithm 1).

    N * integral of |phi - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt, where phi is the characteristic function of N states'
    projections; the mean over directions. By the trapezoidal rule from 0 to 3, doubled, as the integrand is even.
    """
    D = state_BCD.shape[-1]
    directions = jax.random.normal(key, (D * slices,)).reshape(D, slices)
    directions /= jnp.linalg.norm(directions, axis=0, keepdims=True)
    projected = jnp.where(is_real_BC[..., None], state_BCD, 0).reshape(-1, D) @ directions
    real_R1 = is_real_BC.reshape(-1, 1)
    count = jnp.maximum(is_real_BC.sum(), 1)
    knots, step = jnp.linspace(0, FARTHEST, KNOTS), FARTHEST / (KNOTS - 1)
    weighknots = jnp.exp(-jnp.square(knots) / 2) * step * jnp.where((knots == 0) | (knots == FARTHEST), 1, 2)

    @jax.checkpoint  # of each knot only the sums are kept: N * slices numbers, not KNOTS times as many
    def add(total, knot):
        t, weight = knot
        even, odd = (jnp.where(real_R1, f(t * projected), 0).sum(0) / count for f in (jnp.cos, jnp.sin))
        error = jnp.square(even - jnp.exp(-jnp.square(t) / 2)) + jnp.square(odd)
        return total + weight * error.mean(), None

    return count * jax.lax.scan(add, jnp.zeros(()), (knots, weighknots))[0]


def spread(state_BCD, is_real_BC) -> dict[str, jax.Array]:
    """How far states are from being all alike; scalars, with `count` 1 so that sums over batches tell a mean.

    `std`: the root of their mean variance by feature. `rank`: as many equal directions would have their variance,
    (tr C)^2 / tr C^2 of its matrix C: 1 where they lie on a line.
    """
    state_BCD = jax.lax.stop_gradient(state_BCD)
    count = jnp.maximum(is_real_BC.sum(), 1)
    x_RD = jnp.where(is_real_BC[..., None], state_BCD, 0).reshape(-1, state_BCD.shape[-1])
    mean_1D = x_RD.sum(0, keepdims=True) / count
    x_RD = jnp.where(is_real_BC.reshape(-1, 1), x_RD - mean_1D, 0)
    c_DD = x_RD.T @ x_RD / count
    variance = jnp.trace(c_DD)
    rank = jnp.square(variance) / jnp.maximum(jnp.square(c_DD).sum(), 1e-30)
    return {"std": jnp.sqrt(variance / len(c_DD)), "rank": rank, "count": jnp.ones(())}
