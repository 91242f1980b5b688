"""Rows to experts and back: sort by expert, multiply group by group, gather back, sum with weights.

    rows R         places Z, by expert          rows R
    r0  ------>    expert 0:  r0 r3   ------>   y0 = .7 e0(r0) + .3 e2(r0)
    r1             expert 1:  r1                y1 = .6 e1(r1) + .4 e2(r1)
    r2             expert 2:  r0 r1 r2          y2 =  1 e2(r2)
    `plan_dispatch, permute`  `grouped`         `combine`

With `mesh.exchange=all_to_all` the same happens twice: rows are sorted by device, sent, and sorted by expert there.

    rows R  ->  sent, by device  ->  received  ->  places, by expert  ->  back, by device  ->  rows R
    `plan_exchange, permute`  `all_to_all`   `_on_this_device`      `all_to_all`    `combine`

A dispatch is a permutation, so both directions are gathers: no scatter-add, hence the same bits every time. Its memory
grows with the rows that are routed, not with rows times experts. `grouped` multiplies behind one signature: `einsum` is
obvious, `blocked` is made for CPU, `ragged` and the kernels are for accelerators.
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
from mot.model.params import MATRIX_AXES
from mot.model.router import Choice

BLOCK = 128  # rows that `blocked` multiplies at once; each expert's rows fill whole blocks


# --- plan: which row each place holds --------------------------------------------------------------------------------


class Layout(NamedTuple):
    """Where routed rows lie, by expert: Z places, some empty."""

    row_Z: jax.Array  # the row that a place holds; R = none
    choice_Z: jax.Array  # which of the R * X choices; R * X = none
    place_RX: jax.Array  # where a choice lies; Z = nowhere
    expert_Z: jax.Array  # E = none
    start_E: jax.Array  # an expert's first place
    size_E: jax.Array  # its rows


def plan_dispatch(choice: Choice, experts: int, limit: int, kernel: str) -> tuple[Layout, jax.Array]:
    """The layout of at most `limit` choices, in places that follow one another, and the choices' weights `[R, X]`.

    A token may have more slots than choices, as where experts choose: then its choices move to its first slots.
    """
    R, X = choice.expert_RX.shape
    block = BLOCK if kernel == "blocked" else 1
    turn_RX, size_E = _turns(choice.expert_RX, experts)
    size_E = jnp.diff(jnp.minimum(jnp.cumsum(size_E), limit), prepend=0)
    blocks_E = -(-size_E // block)
    start_E = ((jnp.cumsum(blocks_E) - blocks_E) * block).astype(jnp.int32)
    Z = -(-(limit + experts * (block - 1)) // block) * block
    place_RX = _places(choice.expert_RX, turn_RX, start_E, size_E, Z)
    expert_Z = _by_place(choice.expert_RX, place_RX, Z, experts)
    weight_RX = choice.weight_RX
    if limit < R * X:  # loops over a token's choices end with the last that any token has
        from_RX = batches.inverse(_first_slots(place_RX < Z))
        place_RX, weight_RX = (jnp.take_along_axis(x, from_RX, axis=1) for x in (place_RX, weight_RX))
    return _layout(place_RX, expert_Z, start_E, size_E), weight_RX


def plan_exchange(choice: Choice, devices: int, capacity: int) -> Layout:
    """The layout of rows by device, whose number stands for an expert's: each device has a buffer of `capacity` places.

    Choices past a buffer's end are nowhere.
    """
    turn_RX, size_E = _turns(choice.expert_RX, devices)
    size_E = jnp.minimum(size_E, capacity)
    start_E = jnp.arange(devices, dtype=jnp.int32) * capacity
    Z = devices * capacity
    place_RX = _places(choice.expert_RX, turn_RX, start_E, size_E, Z)
    expert_Z = _by_place(choice.expert_RX, place_RX, Z, devices)
    return _layout(place_RX, expert_Z, start_E, size_E)


def _turns(expert_RX, experts: int) -> tuple[jax.Array, jax.Array]:
    """Each choice's turn among those of its expert, `[R, X]`, and how many these are, `[E]`.

    Counted block by block by a triangular matmul, exact below 2^24: TPU's compiler takes seconds for a sort.
    """
    expert_I = expert_RX.reshape(-1)
    I = expert_I.shape[0]
    block = 64
    expert_UJ1 = jnp.pad(expert_I, (0, -I % block), constant_values=experts).reshape(-1, block, 1)
    own_UJE = (expert_UJ1 == jnp.arange(experts)[None, None]).astype(jnp.float32)
    inside_UJE = jnp.einsum("JQ,UQE->UJE", jnp.tril(jnp.ones((block, block))), own_UJE, precision=lax.Precision.HIGHEST)
    upto_U1E = jnp.cumsum(inside_UJE[:, -1:], axis=0)
    turn_UJ = ((inside_UJE + upto_U1E - inside_UJE[:, -1:] - 1) * own_UJE).sum(-1)
    turn_RX = turn_UJ.reshape(-1)[:I].astype(jnp.int32).reshape(expert_RX.shape)
    return turn_RX, upto_U1E[-1, 0].astype(jnp.int32)


def _places(expert_RX, turn_RX, start_E, size_E, Z: int) -> jax.Array:
    """Each choice's place, `[R, X]`; Z where its expert is none, or has no place left."""
    experts = size_E.shape[0]
    real_RX = jnp.minimum(expert_RX, experts - 1)
    fits_RX = (expert_RX < experts) & (turn_RX < size_E[real_RX])
    return jnp.where(fits_RX, start_E[real_RX] + turn_RX, Z)


def _by_place(x_RX, place_RX, Z: int, none: int) -> jax.Array:
    """`[Z]`: the number of the choice that each place holds; `none` where it is empty."""
    return jnp.full((Z,), none, jnp.int32).at[place_RX.reshape(-1)].set(x_RX.reshape(-1), mode="drop")


def _first_slots(has_place_RX) -> jax.Array:
    """The slot that each choice moves to, `[R, X]`: those that have a place come first, in their order."""
    has_place_RX = has_place_RX.astype(jnp.int32)
    after_RX = has_place_RX.sum(1, keepdims=True) + jnp.cumsum(1 - has_place_RX, axis=1) - 1
    return jnp.where(has_place_RX > 0, jnp.cumsum(has_place_RX, axis=1) - 1, after_RX)


def _layout(place_RX, expert_Z, start_E, size_E) -> Layout:
    R, X = place_RX.shape
    number_RX = jnp.arange(R * X, dtype=jnp.int32).reshape(R, X)
    choice_Z = _by_place(number_RX, place_RX, expert_Z.shape[0], R * X)
    return Layout(choice_Z // X, choice_Z, place_RX, expert_Z, start_E, size_E)


# --- move: rows to places and back -----------------------------------------------------------------------------------


def _take(x, index) -> jax.Array:
    """Rows by index; one past the end is a row of zeros."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def permute(x_RD, layout: Layout) -> jax.Array:
    """`[Z, D]`: each place's row; an empty place holds anything that is finite. The transpose of `combine`."""
    return jnp.take(x_RD, layout.row_Z, axis=0, mode="clip")  # to fill with 0 would be a pass of its own


@jax.custom_vjp
def combine(y_ZD, layout: Layout) -> jax.Array:
    """`[R, D]`: the sum of a token's rows over its choices, added up in float32. The transpose of `permute`."""
    (R, X), (Z, D) = layout.place_RX.shape, y_ZD.shape
    if X == 1:
        return _take(y_ZD, layout.place_RX[:, 0])
    slots = _used_slots(layout.place_RX < Z)

    def add_slot(x, total_RD):
        place_R = lax.dynamic_index_in_dim(layout.place_RX, x, axis=1, keepdims=False)
        return total_RD + _take(y_ZD, place_R).astype(jnp.float32)

    return lax.fori_loop(0, slots, add_slot, jnp.zeros((R, D), jnp.float32)).astype(y_ZD.dtype)


@jax.custom_batching.custom_vmap
def _used_slots(has_place_RX) -> jax.Array:
    """Slots up to the last that any token has a choice in; earlier ones may be empty for all."""
    slots = jnp.arange(1, has_place_RX.shape[1] + 1)
    return jnp.where(has_place_RX.any(0), slots, 0).max()


@_used_slots.def_vmap
def _slots_of_all_runs(size, batched, has_place_of_runs):
    """All slots where runs are trained together (`ensemble.py`): one run's data may not end another's loop."""
    return jnp.asarray(has_place_of_runs.shape[-1]), False


@jax.custom_vjp
def weights_of_places(weight_RX, layout: Layout) -> jax.Array:
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
weights_of_places.defvjp(
    lambda weight_RX, layout: (weights_of_places(weight_RX, layout), layout),
    lambda layout, g_Z1: (_take(g_Z1[:, 0], layout.place_RX), None),
)


# --- multiply: each place's row by its expert's matrix ---------------------------------------------------------------


def grouped(x_ZD, w_EDF, layout: Layout, kernel: str) -> jax.Array:
    """`[Z, F]`: each place's row times its expert's matrix, operands in the dtype of x, accumulated in float32.

    Empty places take no part in the result of others, nor in their gradients, nor in that of the matrices, whatever
    they hold. What they give may be anything, as kernels leave them unwritten: NaN, too. No masks are needed, which
    would be passes over the largest arrays of a layer: between `permute` and `combine` nothing mixes places, and
    neither these two nor `weights_of_places` read an empty one, forward or backward.
    """
    return (BACKENDS | KERNELS)[kernel](x_ZD, w_EDF, layout)


def permuted(x_RD, matrices: list[jax.Array], layout: Layout, kernel: str) -> list[jax.Array]:
    """`[Z, F]` by each of the matrices `[E, D, F]`: `grouped` of the rows where they are placed.

    Rows are placed again on the way back: kept, they would be the largest array of a layer. Kernels multiply by each
    matrix alone: joined, the matrices and the gradients of what they give would be written once more in each layer.
    The rest multiplies once by all of them, as experts may be narrow.
    """

    def permute_and_multiply(matrices):
        x_ZD = permute(x_RD, layout)
        if kernel in KERNELS:
            return [grouped(x_ZD, w_EDF, layout, kernel) for w_EDF in matrices]
        y_ZF = grouped(x_ZD, jnp.concatenate(matrices, axis=-1), layout, kernel)
        return lax.split(y_ZF, [w_EDF.shape[-1] for w_EDF in matrices], axis=1)

    return jax.checkpoint(permute_and_multiply)(matrices)


_dot = partial(jnp.matmul, preferred_element_type=jnp.float32)


def _masked(multiply: Callable) -> Callable:
    """`multiply`, where what lies in empty places neither goes in nor comes out."""

    def masked(x_ZD, w_EDF, layout: Layout):
        held_Z1 = (layout.expert_Z < w_EDF.shape[0])[:, None]
        return jnp.where(held_Z1, multiply(jnp.where(held_Z1, x_ZD, 0), w_EDF, layout), 0)

    return masked


def _einsum(x_ZD, w_EDF, layout: Layout) -> jax.Array:
    own_ZE = jax.nn.one_hot(layout.expert_Z, w_EDF.shape[0], dtype=x_ZD.dtype)
    w_EDF = w_EDF.astype(x_ZD.dtype)
    return jnp.einsum("ZE,ZD,EDF->ZF", own_ZE, x_ZD, w_EDF, preferred_element_type=jnp.float32).astype(x_ZD.dtype)


def _ragged(x_ZD, w_EDF, layout: Layout) -> jax.Array:
    w_EDF = w_EDF.astype(x_ZD.dtype)
    return lax.ragged_dot(x_ZD, w_EDF, layout.size_E, preferred_element_type=jnp.float32).astype(x_ZD.dtype)


def _blocks(layout: Layout, e) -> jax.Array:
    """How many blocks expert e has."""
    return -(-layout.size_E[e] // BLOCK)


def _first_place(layout: Layout, e, n) -> jax.Array:
    """Of block n of expert e."""
    return layout.start_E[e] + n * BLOCK


def _block(x_ZD, layout: Layout, e, n) -> jax.Array:
    """The rows of block n of expert e, `[J, D]`; those of empty places are 0."""
    held_J1 = (n * BLOCK + jnp.arange(BLOCK) < layout.size_E[e])[:, None]
    rows_JD = lax.dynamic_slice(x_ZD, (_first_place(layout, e, n), 0), (BLOCK, x_ZD.shape[1]))
    return jnp.where(held_J1, rows_JD, 0)


def _multiply_blocks(x_ZD, w_EDF, layout: Layout) -> jax.Array:
    """x @ w by blocks; each expert's matrix is read once."""
    E, _, F = w_EDF.shape

    def one_expert(e, y_ZF):
        w_DF = lax.dynamic_index_in_dim(w_EDF, e, keepdims=False)

        def one_block(n, y_ZF):
            y_JF = _dot(_block(x_ZD, layout, e, n), w_DF).astype(y_ZF.dtype)
            return lax.dynamic_update_slice(y_ZF, y_JF, (_first_place(layout, e, n), 0))

        return lax.fori_loop(0, _blocks(layout, e), one_block, y_ZF)

    return lax.fori_loop(0, E, one_expert, jnp.zeros((x_ZD.shape[0], F), x_ZD.dtype))


def _weight_gradient(x_ZD, g_ZF, layout: Layout, shape: tuple[int, int, int]) -> jax.Array:
    """x^T @ g of each expert by blocks, `[E, D, F]` float32."""

    def one_expert(e, dw_EDF):
        def one_block(n, dw_DF):
            return dw_DF + _dot(_block(x_ZD, layout, e, n).T, _block(g_ZF, layout, e, n))

        dw_DF = lax.fori_loop(0, _blocks(layout, e), one_block, jnp.zeros(shape[1:], jnp.float32))
        return lax.dynamic_update_slice(dw_EDF, dw_DF[None], (e, 0, 0))

    return lax.fori_loop(0, shape[0], one_expert, jnp.zeros(shape, jnp.float32))


@jax.custom_vjp
def _blocked(x_ZD, w_EDF, layout: Layout) -> jax.Array:
    return _multiply_blocks(x_ZD, w_EDF.astype(x_ZD.dtype), layout)


def _blocked_forward(x_ZD, w_EDF, layout: Layout):
    w_EDF, dtype = w_EDF.astype(x_ZD.dtype), w_EDF.dtype
    return _multiply_blocks(x_ZD, w_EDF, layout), (x_ZD, w_EDF, layout, jnp.zeros((0,), dtype))


def _blocked_backward(residuals, g_ZF):
    x_ZD, w_EDF, layout, like = residuals
    g_ZF = g_ZF.astype(x_ZD.dtype)
    dx_ZD = _multiply_blocks(g_ZF, w_EDF.swapaxes(1, 2), layout)
    dw_EDF = _weight_gradient(x_ZD, g_ZF, layout, w_EDF.shape)
    return dx_ZD, dw_EDF.astype(like.dtype), None


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _kernel(x_ZD, w_EDF, layout: Layout, kernel: str) -> jax.Array:
    return kernels.grouped(x_ZD, w_EDF, layout.size_E, kernel)


# XLA's products of all rows would read empty places: 0 * NaN is NaN. Kernels read a group's rows alone.
BACKENDS = {"einsum": _masked(_einsum), "blocked": _blocked, "ragged": _masked(_ragged)}
KERNELS = {name: partial(_kernel, kernel=name) for name in ("gmm", "triton", "mosaic")}


# --- the whole way ---------------------------------------------------------------------------------------------------


class Places(NamedTuple):
    """The rows of some tokens, and where they lie among the experts of one device."""

    x_RD: jax.Array
    weight_Z1: jax.Array  # of each place's choice
    layout: Layout
    kernel: str


Compute = Callable[[Places, dict], jax.Array]  # what experts make of their rows, weighted: (places, weights) -> y_ZF


def apply_experts(
    compute: Compute, x_RD, weights: dict, choice: Choice, rows: int, limit: int, kernel: str, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """`[R, F]`: each token through its experts, summed with their weights; and how many choices were lost, `[R]`.

    `weights` are `name: [E, ...]`, one set an expert; the R tokens are `rows` rows, each with at most `limit` choices.
    On several devices each has its own rows, and its share of the experts where the mesh has an `expert` axis.
    """
    rules = mesh.rules
    limit *= rows // sharding.shard_count((sharding.ROWS,), rules)

    def on_each_device(x_RD, weights, choice):
        weights = {name: _whole_width(w, name, x_RD.dtype, rules) for name, w in weights.items()}
        if sharding.shard_count(("expert",), rules) == 1:
            y_RF, lost_R = _on_this_device(compute, x_RD, weights, choice, limit, kernel)
        elif mesh.exchange == "gather":
            y_RF, lost_R = _by_gather(compute, x_RD, weights, choice, limit, kernel)
        else:
            y_RF, lost_R = _by_all_to_all(compute, x_RD, weights, choice, limit, kernel, mesh.buffer)
        return _sum_over_hidden(y_RF, weights, rules), lost_R

    by_row = sharding.spec((sharding.ROWS,), rules)
    by_expert = {name: sharding.spec(("expert", *_flat_axes(name)), rules) for name in weights}
    inputs = (by_row, by_expert, by_row)
    return sharding.shard_map(on_each_device, inputs, by_row)(x_RD, weights, choice)


def _flat_axes(name: str) -> tuple[str | None, str | None]:
    """Of an expert's matrix with its heads laid flat. Heads stay whole: the configuration refuses what splits them."""
    axes = MATRIX_AXES[name]
    first, last = (axis if axis in ("embed", "mlp") else None for axis in (axes[0], axes[-1]))
    return first, last


def _whole_width(w, name: str, dtype, rules: dict[str, str]) -> jax.Array:
    """A matrix that is gathered along what splits the width, in `dtype`; hidden units stay split."""
    if sharding.shard_count(("embed",), rules) == 1:
        return w
    dim = 1 + _flat_axes(name).index("embed")
    return sharding.all_gather(w, sharding.axes_of("embed", rules), dim, dtype)


def _sum_over_hidden(y_RF, weights: dict, rules: dict[str, str]) -> jax.Array:
    """The results of all devices that have a part of the hidden units."""
    has_hidden = any("mlp" in _flat_axes(name) for name in weights)
    if not has_hidden or sharding.shard_count(("mlp",), rules) == 1:
        return y_RF
    return lax.psum(y_RF, sharding.axes_of("mlp", rules))


def _expert_count(weights: dict) -> int:
    """How many experts this device has."""
    return next(iter(weights.values())).shape[0]


def _on_this_device(
    compute: Compute, x_RD, weights: dict, choice: Choice, limit: int, kernel: str
) -> tuple[jax.Array, jax.Array]:
    """Rows through the experts of one device: plan, permute, multiply, combine."""
    layout, weight_RX = plan_dispatch(choice, _expert_count(weights), limit, kernel)
    y_ZF = compute(Places(x_RD, weights_of_places(weight_RX, layout), layout, kernel), weights)
    return combine(y_ZF, layout), jnp.zeros(x_RD.shape[0])


def _local_expert(expert, experts: int) -> jax.Array:
    """Expert numbers on this device; those of other devices are none."""
    number = expert - lax.axis_index("expert") * experts
    return jnp.where((number >= 0) & (number < experts), number, experts)


def _by_gather(
    compute: Compute, x_RD, weights: dict, choice: Choice, limit: int, kernel: str
) -> tuple[jax.Array, jax.Array]:
    """Every device of the axis sees all their rows, computes its experts' part, and keeps its rows of the sum."""
    devices = lax.axis_size("expert")
    x_RD, choice = jax.tree.map(lambda x: lax.all_gather(x, "expert", tiled=True), (x_RD, choice))
    choice = choice._replace(expert_RX=_local_expert(choice.expert_RX, _expert_count(weights)))
    y_RF, lost_R = _on_this_device(compute, x_RD, weights, choice, devices * limit, kernel)
    own_RF, own_R = (lax.psum_scatter(x, "expert", tiled=True) for x in (y_RF, lost_R))
    return own_RF, own_R


def _by_all_to_all(
    compute: Compute, x_RD, weights: dict, choice: Choice, limit: int, kernel: str, buffer: float
) -> tuple[jax.Array, jax.Array]:
    """Rows travel to the devices of their experts and back, in buffers of one size for each pair of devices."""
    experts = _expert_count(weights)
    devices = lax.axis_size("expert")
    capacity = math.ceil(buffer * limit / devices)
    destination = Choice(jnp.minimum(choice.expert_RX // experts, devices), choice.weight_RX)
    layout = plan_exchange(destination, devices, capacity)
    lost_RX = (destination.expert_RX < devices) & (layout.place_RX == devices * capacity)
    # What a device is sent: rows, the experts they go to, and the weights of these choices.
    sent_ZD = permute(x_RD, layout)
    expert_Z = jnp.take(choice.expert_RX.reshape(-1), layout.choice_Z, mode="fill", fill_value=experts * devices)
    weight_Z1 = weights_of_places(choice.weight_RX, layout)
    received = Choice(_local_expert(_exchange(expert_Z), experts)[:, None], _exchange(weight_Z1))
    y_ZF, _ = _on_this_device(compute, _exchange(sent_ZD), weights, received, devices * capacity, kernel)
    return combine(_exchange(y_ZF), layout), lost_RX.sum(1).astype(jnp.float32)


def _exchange(x_Z) -> jax.Array:
    """Each device's buffers to the devices that they are for; done twice it brings them back."""
    return lax.all_to_all(x_Z, "expert", 0, 0, tiled=True)
