"""The small operations of a block. Float32 islands (norm statistics, rotation angles) are visible in the code."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from mot import sharding
from mot.config import Config, RopeScaling


@jax.custom_vjp
def linear(x, w) -> jax.Array:
    """`x_RD @ w_DF` in the dtype of x: operands in that dtype, accumulated in float32 and rounded once. In place of D
    and F there may be several axes each, as a head and its features.

    What a product is rounded to is what devices add up that have parts of its sum, as along `tensor`. The weight's
    gradient is in the weight's dtype (`optim.reduce_dtype`).
    Rows, not `[B, T, D]`: on CPU the backward pass of the batched form runs at about half the rate.
    """
    return product(x, w.astype(x.dtype), x.ndim - 1, x.dtype)


def _linear_forward(x, w):
    w, dtype = w.astype(x.dtype), w.dtype
    return product(x, w, x.ndim - 1, x.dtype), (x, w, jnp.zeros((), dtype))


def _linear_backward(residuals, g):
    x, w, like = residuals
    g = g.astype(x.dtype)
    return _transposed(g, w, x.dtype), over_rows(x, g, like.dtype)


def _transposed(g, w, dtype) -> jax.Array:
    """`g_RF @ w_DF.T`."""
    of_F = tuple(range(1, g.ndim)), tuple(range(w.ndim - g.ndim + 1, w.ndim))
    return product(g, w, of_F, dtype)


def over_rows(x, g, dtype) -> jax.Array:
    """`x_RD.T @ g_RF`, a weight's gradient, accumulated in float32; of several axes each as in `linear`.

    On CPU x is laid out anew: XLA would multiply it as it lies, 1.1 to 2 times slower.
    """
    ways = dict(cpu=_laid_out_anew, default=_as_it_lies)
    return lax.platform_dependent(x, g, **{name: partial(way, dtype=dtype) for name, way in ways.items()})


def _laid_out_anew(x, g, dtype) -> jax.Array:
    return product(lax.optimization_barrier(jnp.moveaxis(x, 0, -1)), g, 1, dtype)


def _as_it_lies(x, g, dtype) -> jax.Array:
    return product(x, g, ((0,), (0,)), dtype)


def product(a, b, axes, dtype) -> jax.Array:
    """`jnp.tensordot`, accumulated in float32 and rounded once to `dtype`.

    CPUs multiply bfloat16 into float32 at twice the rate of bfloat16 into bfloat16, for which XLA widens the operands.
    """
    if dtype == jnp.float32:
        return _accumulated(a, b, axes, dtype)
    ways = dict(cpu=_rounded_after, default=_accumulated)
    return lax.platform_dependent(a, b, **{name: partial(way, axes=axes, dtype=dtype) for name, way in ways.items()})


def _accumulated(a, b, axes, dtype) -> jax.Array:
    return jnp.tensordot(a, b, axes, preferred_element_type=dtype)


def _rounded_after(a, b, axes, dtype) -> jax.Array:
    return _accumulated(a, b, axes, jnp.float32).astype(dtype)


linear.defvjp(_linear_forward, _linear_backward)


def linears(x_RD, ws: Sequence, axis: str, config: Config) -> list[jax.Array]:
    """`linear` by several matrices, whose columns, or heads, lie along a logical axis.

    Where a mesh splits it, devices add up the gradient of x once for all of them (Megatron's f, 1909.08053, 3). Where
    the backward pass makes a layer again, it gathers each matrix once.
    """
    rules = config.mesh.rules
    once = sharding.is_sharded() and config.model.remat != "none"  # which would keep whole matrices from forward on
    is_split = sharding.shard_count((axis,), rules) > 1
    if not once and not is_split:
        return [linear(x_RD, w) for w in ws]
    of_rows, of_width, of_columns = (sharding.axes_of(name, rules) for name in (sharding.ROWS, "embed", axis))
    return _linears(x_RD, tuple(ws), of_rows, of_width, of_columns if is_split else (), once)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _linears(x_RD, ws: tuple, of_rows, of_width, of_columns, once: bool) -> list[jax.Array]:
    return _linears_forward(x_RD, ws, of_rows, of_width, of_columns, once)[0]


def _linears_forward(x_RD, ws, of_rows, of_width, of_columns, once):
    dtypes = [jnp.zeros((), w.dtype) for w in ws]
    ws = [w.astype(x_RD.dtype) for w in ws]
    if once:
        ws = [sharding.gathered(w, of_width, of_columns) for w in ws]
    return [product(x_RD, w, x_RD.ndim - 1, x_RD.dtype) for w in ws], (x_RD, ws, dtypes)


def _linears_backward(of_rows, of_width, of_columns, once, residuals, gs):
    x_RD, ws, dtypes = residuals
    gs = [g.astype(x_RD.dtype) for g in gs]
    of_width = () if once else of_width

    def sum_once(gs, ws):
        ws = [sharding.all_gather(w, of_width, 0, x_RD.dtype) for w in ws]
        dx_RD = sum(_transposed(g, w, jnp.float32) for g, w in zip(gs, ws, strict=True))
        return lax.psum(dx_RD.astype(x_RD.dtype), of_columns)

    if of_columns:
        inputs = (P(of_rows, of_columns), P(of_width, of_columns))
        dx_RD = sharding.shard_map(sum_once, inputs, P(of_rows))(gs, ws)
    else:
        dx_RD = sum(_transposed(g, w, x_RD.dtype) for g, w in zip(gs, ws, strict=True))
    return dx_RD, tuple(over_rows(x_RD, g, like.dtype) for g, like in zip(gs, dtypes, strict=True))


_linears.defvjp(_linears_forward, _linears_backward)


def rms_norm(x_RD, scale_D, eps: float, offset: bool = False) -> jax.Array:
    """RMSNorm over the last axis (1910.07467); statistics in float32. `offset`: by 1 + scale (Gemma, 2403.08295)."""
    x = x_RD.astype(jnp.float32)
    x = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    scale = _last_axes(scale_D, x)
    return (x * (1 + scale if offset else scale)).astype(x_RD.dtype)


def modulate(x_RD, c_RY, w_YF) -> jax.Array:
    """x (1 + scale) + shift, both linear in the condition (DiT's adaLN-zero, 2212.09748): of 0 it changes nothing."""
    scale_RD, shift_RD = jnp.split(linear(c_RY, w_YF), 2, axis=-1)
    return x_RD * (1 + scale_RD) + shift_RD


def layer_norm(x_RNH, scale_NH, bias_NH, eps: float) -> jax.Array:
    """LayerNorm over the last axis, a scale and a bias for each head (Chameleon's q/k norm); statistics in float32."""
    x = x_RNH.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return (x * _last_axes(scale_NH, x) + _last_axes(bias_NH, x)).astype(x_RNH.dtype)


def _last_axes(w, x) -> jax.Array:
    return w.reshape((1,) * (x.ndim - w.ndim) + w.shape)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def rope(
    x_BCNH, position, theta: float, axes: tuple[int, ...] = (), pairs: int = 0, scaling: RopeScaling | None = None
) -> jax.Array:
    """Rotary position embedding (2104.09864), halves of what turns paired as in Llama; angles in float32.

    `position` is `[B, C, n]`. Pair i turns by the integer on the axis `axes[i]` (`axes_of_pairs`); (): n is 1. Of a
    head the first 2 * `pairs` features turn, and the others stay; 0: all turn.
    """
    return _rotate(x_BCNH, position, theta, axes, pairs, scaling)


def _rotate(
    x_BCNH, position, theta: float, axes: tuple[int, ...], pairs: int, scaling: RopeScaling | None, direction: int = 1
) -> jax.Array:
    half = pairs or x_BCNH.shape[-1] // 2
    cos, sin = _turns(position, half, theta, axes, scaling)
    sin = direction * sin
    # Each part is widened by itself: of the whole, XLA would write the wide array out.
    a, b, rest = (part.astype(jnp.float32) for part in jnp.split(x_BCNH, (half, 2 * half), axis=-1))
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x_BCNH.dtype)


def _turns(position, half: int, theta: float, axes: tuple[int, ...], scaling: RopeScaling | None) -> jax.Array:
    """Cosines and sines of each pair's angle, float32 `[2, B, C, 1, half]`.

    One array, or XLA would compute each anew on CPU for every head, in every use.
    """
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling and scaling.kind:
        frequency = frequency * stretched(half, theta, scaling)
    position = position[..., np.array(axes)] if axes else position
    angle = (position.astype(jnp.float32) * frequency[None, None, :])[:, :, None, :]
    turns = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    if scaling and scaling.amplitude != 1:
        turns = turns * scaling.amplitude
    return jnp.moveaxis(turns.reshape(*turns.shape[:-1], 2, half), -2, 0)


# A rotation's transpose is the rotation back; derived from the code above it would be four padded arrays and their sum.
rope.defvjp(
    lambda x_BCNH, position, *how: (_rotate(x_BCNH, position, *how), position),
    lambda *args: (_rotate(args[-1], args[-2], *args[:-2], direction=-1), None),
)


def stretched(pairs: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """What the frequency of each pair is multiplied by: 1 / factor where it is stretched in full, 1 where not at all.

    Llama 3.1's ramp is linear in how often a pair turns in a row of the first training; YaRN's (2309.00071, 3.2) in the
    pair's number, between the whole numbers around the pairs that turn as often as it says.
    """
    kept = np.zeros(pairs)
    if scaling.kind == "llama3":
        turns = scaling.length * theta ** (-np.arange(pairs) / pairs) / (2 * np.pi)
        kept = np.clip((turns - scaling.least_turns) / (scaling.most_turns - scaling.least_turns), 0, 1)
    elif scaling.kind == "yarn":
        first, last = (
            pairs * math.log(scaling.length / (2 * math.pi * turns)) / math.log(theta)
            for turns in (scaling.most_turns, scaling.least_turns)
        )
        first, last = max(math.floor(first), 0), min(math.ceil(last), 2 * pairs - 1)
        kept = 1 - np.clip((np.arange(pairs) - first) / max(last - first, 1e-3), 0, 1)
    return (kept + (1 - kept) / scaling.factor).astype(np.float32)


def axes_of_pairs(sections: Sequence[int], interleaved: bool, time_last: bool = False) -> tuple[int, ...]:
    """The axis (0 time, 1 row, 2 column) by which each pair of a head turns; `sections` has how many turn by each.

    One axis after another (Qwen2-VL, 2409.12191), or in turn, until an axis has its pairs: as in Qwen3-VL (2511.21631),
    where rows and columns have as many, and time no fewer. With `time_last` time has the last pairs, after those of
    rows and columns (ERNIE 4.5). () for no sections.
    """
    counts = dict(enumerate(sections))
    last = [0] * counts.pop(0, 0) if time_last else []
    if not interleaved:
        return (*(axis for axis, count in counts.items() for _ in range(count)), *last)
    rounds = range(max(counts.values(), default=0))
    return (*(axis for turn in rounds for axis, count in counts.items() if turn < count), *last)


@jax.custom_vjp
def permute(x_BTNH, order_BT, back_BT) -> jax.Array:
    """Each row's tokens in another order; `back` undoes it. Gathers both ways: the derived transpose would scatter."""
    return jnp.take_along_axis(x_BTNH, order_BT[:, :, None, None], axis=1, mode="promise_in_bounds")


permute.defvjp(
    lambda x_BTNH, order_BT, back_BT: (permute(x_BTNH, order_BT, back_BT), (order_BT, back_BT)),
    lambda orders, g_BTNH: (permute(g_BTNH, orders[1], orders[0]), None, None),
)


def capped(x, cap: float) -> jax.Array:
    """cap * tanh(x / cap), which is x where that is small beside the cap (Gemma 2, 2408.00118, 2.2); of 0: x."""
    return cap * jnp.tanh(x / cap) if cap else x


def gated(gate_RF, up_RF, activation: str) -> jax.Array:
    """f(gate) * up (2002.05202): f is silu of swiglu, and of geglu gelu, by tanh as Gemma has it."""
    f = {"swiglu": jax.nn.silu, "geglu": partial(jax.nn.gelu, approximate=True)}[activation]
    return f(gate_RF) * up_RF
