"""Cross-entropy of a large vocabulary: logits exist for a few tokens at a time, and their gradient with the loss."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from mot import sharding
from mot.model import ops


class Rules(dict):
    """`mesh.rules` as an argument that a custom derivative takes: hashable."""

    def __hash__(self):
        return hash(tuple(self.items()))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def cross_entropy(
    h_BTD, head_DV, target_BT, scale_BT, z_loss: float, chunk: int, rules: Rules, cap: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """sum(scale * (l + z_loss * lse^2)) and l `[B, T]`, the cross-entropy of `h @ head` with the targets, in float32.

    With a `cap` these logits are capped (`ops.capped`).
    A device has the logits of `chunk` tokens at a time. The gradient is made in the forward pass, where the logits
    are at hand, as a scalar loss allows: three matmuls in all instead of four. l carries no gradient, nor does scale.
    Of several devices each has its own rows and its own part of the vocabulary; the head's gradient is added up once.
    """
    return _cross_entropy(h_BTD, head_DV, target_BT, scale_BT, z_loss, chunk, rules, cap, grad=False)[0]


def _cross_entropy(
    h_BTD, head_DV, target_BT, scale_BT, z_loss: float, chunk: int, rules: Rules, cap: float, grad: bool
):
    """The loss and l; and with `grad` the gradients of hidden states and head, else None."""
    rows, head = (sharding.spec(axes, rules) for axes in ((sharding.ROWS,), ("embed", "vocab")))
    of_rows, of_vocab, of_width = (
        sharding.axes_of(axis, rules) if sharding.is_sharded() else () for axis in (sharding.ROWS, "vocab", "embed")
    )

    def on_each_device(h_BTD, head_DV, target_BT, scale_BT):
        w_DV = sharding.all_gather(head_DV, of_width, 0, h_BTD.dtype)
        first = lax.axis_index(of_vocab) * w_DV.shape[1] if of_vocab else 0
        loss, nats_BT, dh_BTD, dw_DV = _chunks(
            h_BTD, w_DV, target_BT - first, scale_BT, z_loss, chunk, cap, of_vocab, grad
        )

        def add(x, names):
            return lax.psum(x, names) if names else x

        if grad:
            same_rows = tuple(name for name in of_width if name not in of_rows)
            dw_DV = dw_DV / lax.psum(1, same_rows) if same_rows else dw_DV  # which is added up among these, too
            dw_DV = dw_DV.astype(head_DV.dtype)  # in which devices add it up
            dw_DV = lax.psum_scatter(dw_DV, of_width, scatter_dimension=0, tiled=True) if of_width else dw_DV
            dw_DV = add(dw_DV, tuple(name for name in of_rows if name not in of_width))
            # First this: else XLA keeps the whole sum, float32, until the stack's backward pass is over.
            dh_BTD, dw_DV = lax.optimization_barrier((dh_BTD, dw_DV))
        return add(loss, of_rows), nats_BT, dh_BTD, dw_DV

    outputs = (P(), rows, rows, head)
    loss, nats_BT, dh_BTD, dw_DV = sharding.shard_map(on_each_device, (rows, head, rows, rows), outputs)(
        h_BTD, head_DV, target_BT, scale_BT
    )
    return (loss, nats_BT), (dh_BTD, dw_DV) if grad else None


def _chunks(
    h_BTD, w_DV, target_BT, scale_BT, z_loss: float, chunk: int, cap: float, of_vocab: tuple[str, ...], grad: bool
):
    """One device's loss, l and gradients, where `w_DV` is its part of the vocabulary, split over axes `of_vocab`."""
    B, T, D = h_BTD.shape
    chunk = max(chunk // B, 1)  # of each row
    chunks = -(-T // chunk)
    # Alike, in eights as accelerators like them: else the last is padded to a whole `chunk`, which costs as much.
    chunk = min(chunk, -(-T // chunks // 8) * 8)

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, chunks * chunk - T), *((0, 0),) * (x.ndim - 2)))

    h_BTD, target_BT, scale_BT = pad(h_BTD), pad(target_BT), pad(scale_BT)  # padded tokens have scale 0
    dtype = h_BTD.dtype
    V = w_DV.shape[1]

    def add(x):
        return lax.psum(x, of_vocab) if of_vocab else x

    def one_chunk(carry, n):
        loss, dw_DV = carry

        def rows(x):
            return lax.dynamic_slice_in_dim(x, n * chunk, chunk, axis=1).reshape(B * chunk, *x.shape[2:])

        h_RD, target_R, scale_R = rows(h_BTD), rows(target_BT), rows(scale_BT)
        logits_RV = ops.capped(jnp.matmul(h_RD, w_DV, preferred_element_type=jnp.float32), cap)
        max_R = logits_RV.max(-1)
        max_R = lax.pmax(max_R, of_vocab) if of_vocab else max_R
        lse_R = max_R + jnp.log(add(jnp.exp(logits_RV - max_R[:, None]).sum(-1)))
        here_R = (target_R >= 0) & (target_R < V)
        id_R1 = jnp.where(here_R, target_R, 0)[:, None]
        nats_R = lse_R - add(jnp.where(here_R, jnp.take_along_axis(logits_RV, id_R1, axis=-1)[:, 0], 0))
        loss += jnp.where(scale_R > 0, scale_R * (nats_R + z_loss * lse_R**2), 0).sum()
        if not grad:
            return (loss, dw_DV), (nats_R.reshape(B, chunk), None)
        slope_R = jnp.where(scale_R > 0, scale_R, 0)
        p_RV = jnp.exp(logits_RV - lse_R[:, None]) * (1 + 2 * z_loss * lse_R)[:, None]
        is_target_RV = jnp.arange(V)[None] == target_R[:, None]
        dlogits_RV = slope_R[:, None] * (p_RV - is_target_RV)
        if cap:
            dlogits_RV *= 1 - (logits_RV / cap) ** 2
        dlogits_RV = dlogits_RV.astype(dtype)
        dh_RD = add(ops.product(dlogits_RV, w_DV.T, 1, dtype))
        dw_DV += ops.over_rows(h_RD, dlogits_RV, jnp.float32)
        return (loss, dw_DV), (nats_R.reshape(B, chunk), dh_RD.reshape(B, chunk, D))

    start = (jnp.zeros((), jnp.float32), jnp.zeros(w_DV.shape if grad else (0, V), jnp.float32))
    (loss, dw_DV), (nats_UBC, dh_UBCD) = lax.scan(one_chunk, start, jnp.arange(chunks))

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(B, chunks * chunk, *x.shape[3:])[:, :T]

    return loss, join(nats_UBC), join(dh_UBCD) if grad else None, dw_DV


def _cross_entropy_forward(h_BTD, head_DV, target_BT, scale_BT, *how):
    return _cross_entropy(h_BTD, head_DV, target_BT, scale_BT, *how, grad=True)


def _cross_entropy_backward(z_loss, chunk, rules, cap, residuals, cotangents):
    dh_BTD, dw_DV = ((cotangents[0] * x).astype(x.dtype) for x in residuals)
    return dh_BTD, dw_DV, None, None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
