"""Rows to experts and back: sort by expert, multiply group by group, gather back, sum with weights.

A dispatch is a permutation, so both directions are gathers: no scatter-add, hence the same bits every time. Its memory
grows with the rows that are routed, not with rows times experts. `grouped` multiplies behind one signature: `einsum` is
obvious, `blocked` is made for CPU, `ragged` and the kernels for accelerators. `expert` devices may share the experts of
a tower.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mot import batches, sharding
from mot.config import Mesh
from mot.model import kernels
from mot.model.router import Choice

BLOCK = 128  # rows that `blocked` multiplies at once; each expert's rows fill whole blocks


class Layout(NamedTuple):
    """Where routed rows lie, by expert: Z places, some empty."""

    row_Z: jax.Array  # whose row a place holds; R = none
    choice_Z: jax.Array  # which of the R * X choices; R * X = none
    place_RX: jax.Array  # where a choice lies; Z = nowhere
    expert_Z: jax.Array  # E = none
    start_E: jax.Array  # an expert's first place
    size_E: jax.Array  # its rows


def plan_dispatch(choice: Choice, experts: int, most: int, how: str, room: int = 0) -> tuple[Layout, jax.Array]:
    """The layout of at most `most` choices, and their weights `[R, X]`. With `room`, each expert has so many places.

    Where a token has more places for choices than choices, as where experts choose, its empty ones are moved last.
    """
    R, X = choice.expert_RX.shape
    block = BLOCK if how == "blocked" else 1
    key_I = choice.expert_RX.reshape(-1)
    turn_I, size_E = _turns(key_I, experts)
    size_E = jnp.diff(jnp.minimum(jnp.cumsum(size_E), most), prepend=0)
    if room:
        size_E = jnp.minimum(size_E, room)
        start_E = jnp.arange(experts, dtype=jnp.int32) * room
        Z = experts * room
    else:
        blocks_E = -(-size_E // block)
        start_E = ((jnp.cumsum(blocks_E) - blocks_E) * block).astype(jnp.int32)
        Z = -(-(most + experts * (block - 1)) // block) * block
    group_I = jnp.minimum(key_I, experts - 1)
    known_I = (key_I < experts) & (turn_I < size_E[group_I])
    place_RX = jnp.where(known_I, start_E[group_I] + turn_I, Z).reshape(R, X)
    number_RX = jnp.arange(R * X, dtype=jnp.int32).reshape(R, X)
    weight_RX = choice.weight_RX
    at = place_RX.reshape(-1)

    def put(x, none):
        return jnp.full((Z,), none, jnp.int32).at[at].set(x.reshape(-1), mode="drop")

    expert_Z = put(key_I, experts)
    if most < R * X:  # loops over a token's choices end with the last that any token has
        some_RX = (place_RX < Z).astype(jnp.int32)
        after_RX = some_RX.sum(1, keepdims=True) + jnp.cumsum(1 - some_RX, axis=1) - 1
        to_RX = jnp.where(some_RX > 0, jnp.cumsum(some_RX, axis=1) - 1, after_RX)
        choice_Z = put(number_RX[:, :1] + to_RX, R * X)
        place_RX, weight_RX = (jnp.take_along_axis(x, batches.inverse(to_RX), axis=1) for x in (place_RX, weight_RX))
    else:
        choice_Z = put(number_RX, R * X)
    return Layout(choice_Z // X, choice_Z, place_RX, expert_Z, start_E, size_E), weight_RX


def _turns(key_I, experts):
    """Each choice's turn among those of its expert, `[I]`, and how many these are, `[E]`.

    Counted block by block by a triangular matmul, exact below 2^24: TPU's compiler takes seconds for a sort.
    """
    I = key_I.shape[0]
    block = 64
    key_UJ1 = jnp.pad(key_I, (0, -I % block), constant_values=experts).reshape(-1, block, 1)
    mine_UJE = (key_UJ1 == jnp.arange(experts)[None, None]).astype(jnp.float32)
    inside_UJE = jnp.einsum(
        "JQ,UQE->UJE", jnp.tril(jnp.ones((block, block))), mine_UJE, precision=lax.Precision.HIGHEST
    )
    upto_U1E = jnp.cumsum(inside_UJE[:, -1:], axis=0)
    turn_UJ = ((inside_UJE + upto_U1E - inside_UJE[:, -1:] - 1) * mine_UJE).sum(-1)
    return turn_UJ.reshape(-1)[:I].astype(jnp.int32), upto_U1E[-1, 0].astype(jnp.int32)


def _take(x, index):
    """Rows by index; one past the end is a row of zeros."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def permute(x_RD, layout: Layout):
    """`[Z, D]`: each place's row; an empty place's is 0. The transpose of `combine`."""
    return _take(x_RD, layout.row_Z)


@jax.custom_vjp
def combine(y_ZD, layout: Layout):
    """`[R, D]`: the sum of a token's rows over its choices, added up in float32. The transpose of `permute`."""
    (R, X), (Z, D) = layout.place_RX.shape, y_ZD.shape
    used = _used(layout.place_RX < Z) if X > 1 else 1

    def add(x, total_RD):
        place_R = lax.dynamic_index_in_dim(layout.place_RX, x, axis=1, keepdims=False)
        return total_RD + _take(y_ZD, place_R).astype(jnp.float32)

    return lax.fori_loop(0, used, add, jnp.zeros((R, D), jnp.float32)).astype(y_ZD.dtype)


@jax.custom_batching.custom_vmap
def _used(some_RX):
    """Up to the last choice that any token has; earlier ones may be nobody's, as an expert that none was sent to."""
    return jnp.where(some_RX.any(0), jnp.arange(1, some_RX.shape[1] + 1), 0).max()


@_used.def_vmap
def _used_by_several(size, batched, some_of_runs):
    """Of several runs (`ensemble.py`) every one: a loop must not end where one run's data would end it."""
    return jnp.asarray(some_of_runs.shape[-1]), False


@jax.custom_vjp
def weights_of_slots(weight_RX, layout: Layout):
    """`[Z, 1]`: the weight of each place's choice; an empty place's is 0."""
    return _take(weight_RX.reshape(-1, 1), layout.choice_Z)


permute.defvjp(
    lambda x_RD, layout: (permute(x_RD, layout), layout),
    lambda layout, g_ZD: (combine(g_ZD, layout), None),
)
combine.defvjp(
    lambda y_ZD, layout: (combine(y_ZD, layout), layout),
    lambda layout, g_RD: (permute(g_RD, layout), None),
)
weights_of_slots.defvjp(
    lambda weight_RX, layout: (weights_of_slots(weight_RX, layout), layout),
    lambda layout, g_Z1: (_take(g_Z1[:, 0], layout.place_RX), None),
)


# --- matrices by group ---------------------------------------------------------------------------------------------


def grouped(x_ZD, w_EDF, layout: Layout, how: str):
    """`[Z, F]`: each place's row times its expert's matrix, operands in the dtype of x, accumulated in float32.

    Empty places give 0 and take no part in any gradient, whatever they hold: kernels leave them uninitialised.
    """
    return (BACKENDS | KERNELS)[how](x_ZD, w_EDF, layout)


_dot = partial(jnp.matmul, preferred_element_type=jnp.float32)


def _masked(multiply):
    """Both ways: what lies in empty places neither goes in nor comes out."""

    def masked(x_ZD, w_EDF, layout):
        held_Z1 = (layout.expert_Z < w_EDF.shape[0])[:, None]
        return jnp.where(held_Z1, multiply(jnp.where(held_Z1, x_ZD, 0), w_EDF, layout), 0)

    return masked


@_masked
def _einsum(x_ZD, w_EDF, layout):
    mine_ZE = jax.nn.one_hot(layout.expert_Z, w_EDF.shape[0], dtype=x_ZD.dtype)
    w_EDF = w_EDF.astype(x_ZD.dtype)
    return jnp.einsum("ZE,ZD,EDF->ZF", mine_ZE, x_ZD, w_EDF, preferred_element_type=jnp.float32).astype(x_ZD.dtype)


@_masked
def _ragged(x_ZD, w_EDF, layout):
    w_EDF = w_EDF.astype(x_ZD.dtype)
    return lax.ragged_dot(x_ZD, w_EDF, layout.size_E, preferred_element_type=jnp.float32).astype(x_ZD.dtype)


def _each_block(layout, experts, begin, work, end, carry):
    """For each expert e: `matrix, inner = begin(carry, e)`, `inner = work(inner, matrix, rows, first)` for each of its
    blocks, and `carry = end(carry, e, inner)`. `rows` reads a block, empty places as 0; `first` is its first place."""

    def one_expert(e, carry):
        matrix, inner = begin(carry, e)
        start, size = layout.start_E[e], layout.size_E[e]

        def one_block(n, inner):
            held_J1 = (n * BLOCK + jnp.arange(BLOCK) < size)[:, None]

            def cut(x_ZD):
                return lax.dynamic_slice(x_ZD, (start + n * BLOCK, 0), (BLOCK, x_ZD.shape[1]))

            return work(inner, matrix, lambda x_ZD: jnp.where(held_J1, cut(x_ZD), 0), start + n * BLOCK)

        return end(carry, e, lax.fori_loop(0, -(-size // BLOCK), one_block, inner))

    return lax.fori_loop(0, experts, one_expert, carry)


def _multiply(x_ZD, w_EDF, layout):
    """x @ w by blocks; each expert's matrix is read once."""
    E, _, F = w_EDF.shape

    def matrix(y_ZF, e):
        return (lax.dynamic_index_in_dim(w_EDF, e, keepdims=False), y_ZF)

    def one_block(y_ZF, w_DF, rows, first):
        return lax.dynamic_update_slice(y_ZF, _dot(rows(x_ZD), w_DF).astype(y_ZF.dtype), (first, 0))

    start_ZF = jnp.zeros((x_ZD.shape[0], F), x_ZD.dtype)
    return _each_block(layout, E, matrix, one_block, lambda _, e, y_ZF: y_ZF, start_ZF)


@jax.custom_vjp
def _blocked(x_ZD, w_EDF, layout):
    return _multiply(x_ZD, w_EDF.astype(x_ZD.dtype), layout)


def _blocked_forward(x_ZD, w_EDF, layout):
    w_EDF, dtype = w_EDF.astype(x_ZD.dtype), w_EDF.dtype
    return _multiply(x_ZD, w_EDF, layout), (x_ZD, w_EDF, layout, jnp.zeros((0,), dtype))


def _blocked_backward(residuals, g_ZF):
    x_ZD, w_EDF, layout, like = residuals
    g_ZF = g_ZF.astype(x_ZD.dtype)
    dx_ZD = _multiply(g_ZF, w_EDF.swapaxes(1, 2), layout)

    def one_block(dw_DF, _, rows, first):
        return dw_DF + _dot(rows(x_ZD).T, rows(g_ZF))

    def begin(dw_EDF, e):
        return (None, jnp.zeros(w_EDF.shape[1:], jnp.float32))

    def end(dw_EDF, e, dw_DF):
        return lax.dynamic_update_slice(dw_EDF, dw_DF[None], (e, 0, 0))

    dw_EDF = _each_block(layout, w_EDF.shape[0], begin, one_block, end, jnp.zeros(w_EDF.shape, jnp.float32))
    return dx_ZD, dw_EDF.astype(like.dtype), None


_blocked.defvjp(_blocked_forward, _blocked_backward)

BACKENDS = {"einsum": _einsum, "blocked": _blocked, "ragged": _ragged}


def _kernel(how):
    return _masked(lambda x_ZD, w_EDF, layout: kernels.grouped(x_ZD, w_EDF, layout.size_E, how))


KERNELS = {how: _kernel(how) for how in ("gmm", "triton", "mosaic")}


# --- the whole way ---------------------------------------------------------------------------------------------------

# (enter(w_EDF) -> x_ZF of the routed rows, linear(x_ZF, w_EFD) -> x_ZD, weight_Z1, weights) -> weighted y_ZD
Compute = Callable[[Callable, Callable, jax.Array, dict], jax.Array]


def apply_experts(compute: Compute, x_RD, weights: dict, choice: Choice, rows: int, most: int, how: str, mesh: Mesh):
    """`[R, F]`: each token through its experts, summed with their weights; and how many choices were lost, `[R]`.

    `weights` are `name: [E, ...]`, one set an expert; the R tokens are `rows` rows, each with at most `most` choices.
    On several devices each has its own rows, and its share of the experts where the mesh has an `expert` axis.
    """
    rules = mesh.rules
    experts = sharding.shard_count(("expert",), rules)

    def split(axis):
        return sharding.shard_count((axis,), rules) > 1

    most *= rows // sharding.shard_count((sharding.ROWS,), rules)
    here = sharding.spec((sharding.ROWS,), rules)

    def flat(name):
        return sharding.spec(("expert", *EXPERT_AXES[name]), rules)

    def share(x_RD, weights, choice):
        for name in weights:  # gathered along what splits the width, not along hidden units
            whole = [
                (dim, sharding.axes_of(axis, rules)) for dim, axis in enumerate(EXPERT_AXES[name], 1) if axis == "embed"
            ]
            for dim, names in whole if split("embed") else ():
                weights = weights | {name: sharding.all_gather(weights[name], names, dim, x_RD.dtype)}
        if experts == 1:
            y_RF, lost_R = _on_this_device(compute, x_RD, weights, choice, most, how)
        elif mesh.exchange == "gather":
            y_RF, lost_R = _by_gather(compute, x_RD, weights, choice, most, how)
        else:
            y_RF, lost_R = _by_all_to_all(compute, x_RD, weights, choice, most, how, mesh.buffer)
        hidden = sharding.axes_of("mlp", rules) if any("mlp" in EXPERT_AXES[name] for name in weights) else ()
        return lax.psum(y_RF, hidden) if hidden and split("mlp") else y_RF, lost_R

    inputs = (here, {name: flat(name) for name in weights}, here)
    return sharding.shard_map(share, inputs, here)(x_RD, weights, choice)


# The axes of an expert's flat matrices; heads of QKV and O stay whole (config refuses what would split them).
EXPERT_AXES = {"w1": ("embed", "mlp"), "w3": ("embed", "mlp"), "w2": ("mlp", "embed")}
EXPERT_AXES |= {"wq": ("embed", None), "wk": ("embed", None), "wv": ("embed", None), "wo": (None, "embed")}


def _on_this_device(compute, x_RD, weights, choice, most, how):
    experts = next(iter(weights.values())).shape[0]
    layout, weight_RX = plan_dispatch(choice, experts, most, how)

    def linear(x_ZD, w_EDF):
        return grouped(x_ZD, w_EDF, layout, how)

    # The routed rows are gathered again on the way back: kept, they would be the largest array of a layer.
    enter = jax.checkpoint(lambda w_EDF: linear(permute(x_RD, layout), w_EDF))
    y_ZF = compute(enter, linear, weights_of_slots(weight_RX, layout), weights)
    return combine(y_ZF, layout), jnp.zeros(x_RD.shape[0])


def _local_expert(expert, experts):
    """Expert numbers on this device; what lies on others is none."""
    number = expert - lax.axis_index("expert") * experts
    return jnp.where((number >= 0) & (number < experts), number, experts)


def _by_gather(compute, x_RD, weights, choice, most, how):
    """Every device of the axis sees all their rows, computes its experts' part, and keeps its rows of the sum."""
    experts = next(iter(weights.values())).shape[0]
    devices = lax.axis_size("expert")
    x_RD, choice = jax.tree.map(lambda x: lax.all_gather(x, "expert", tiled=True), (x_RD, choice))
    choice = choice._replace(expert_RX=_local_expert(choice.expert_RX, experts))
    y_RF, lost_R = _on_this_device(compute, x_RD, weights, choice, devices * most, how)

    def back(y):
        return lax.psum_scatter(y, "expert", tiled=True)

    return back(y_RF), back(lost_R)


def _by_all_to_all(compute, x_RD, weights, choice, most, how, buffer):
    """Rows travel to the devices of their experts and back, in buffers of one size for each pair of devices."""
    experts = next(iter(weights.values())).shape[0]
    devices = lax.axis_size("expert")
    room = math.ceil(buffer * most / devices)
    R, X = choice.expert_RX.shape
    to = Choice(jnp.minimum(choice.expert_RX // experts, devices), choice.weight_RX)
    layout, weight_RX = plan_dispatch(to, devices, R * X, "ragged", room)
    lost_R = ((to.expert_RX < devices) & (layout.place_RX == devices * room)).sum(1).astype(jnp.float32)
    expert_Z = jnp.take(choice.expert_RX.reshape(-1), layout.choice_Z, mode="fill", fill_value=experts * devices)

    def swap(x):
        return lax.all_to_all(x, "expert", 0, 0, tiled=True)

    expert_Z = _local_expert(swap(expert_Z), experts)
    come = Choice(expert_Z[:, None], swap(weights_of_slots(weight_RX, layout)))
    y_ZF, _ = _on_this_device(compute, swap(permute(x_RD, layout)), weights, come, devices * room, how)
    return combine(swap(y_ZF), layout), lost_R
