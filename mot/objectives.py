"""What the model is judged by: next-token cross-entropy, booked on the target's modality and the document's source."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mot import batch as batches
from mot.batch import Batch, Tokens
from mot.config import Config
from mot.router import Report


def totals(batch: Batch, config: Config) -> jax.Array:
    """Z of each modality `[M]`: the weight its loss is divided by, summed over the whole (global) batch."""
    tokens = batches.concatenate(list(batch.values()))
    m_M11 = jnp.arange(len(config.modalities))[:, None, None]
    weight_M = jnp.where(batches.modality(tokens.target, config)[None] == m_M11, tokens.weight[None], 0).sum((1, 2))
    return jnp.broadcast_to(weight_M.sum(), weight_M.shape) if config.objective.per == "all" else weight_M


def next_token(hidden: list[tuple[jax.Array, Tokens]], head_DV, Z_M, config: Config, sources: int):
    """Loss = sum over modalities m of lambda_m * sum(w * l) / Z_m, and its parts.

    `hidden` is `model.forward`'s; Z_M is `totals` of the global batch, of which this may be one microbatch. A target
    belongs to its own modality: an image's first code, predicted from text, is image loss. An absent modality gives 0.
    Returns the scalar and `{"nats": [M, S], "weight": [M, S]}`: sums of w * l and of w by modality and source, l the
    plain cross-entropy (2405.09818 adds z_loss * log(sum exp)^2 to the loss for stability, not to what is reported).
    """
    tokens = batches.concatenate([t for _, t in hidden])
    B = tokens.token.shape[0]
    h_BTD = jnp.concatenate([h_RD.reshape(B, -1, h_RD.shape[-1]) for h_RD, _ in hidden], axis=1)
    m_BT = batches.modality(tokens.target, config)
    loss_weight = {s.modality: s.loss_weight for s in config.streams.values()}
    lambda_M = jnp.array([loss_weight[m] for m in config.modalities], jnp.float32)
    scale_M = jnp.where(Z_M > 0, lambda_M / jnp.where(Z_M > 0, Z_M, 1), 0)
    scale_BT = tokens.weight * scale_M[m_BT]
    o = config.objective
    loss, nats_BT = cross_entropy(h_BTD, head_DV, tokens.target, scale_BT, o.z_loss, o.chunk)
    m_BTM, s_BTS = jax.nn.one_hot(m_BT, len(config.modalities)), jax.nn.one_hot(tokens.source, sources)
    by = lambda x_BT: jnp.einsum("BTM,BTS,BT->MS", m_BTM, s_BTS, x_BT, precision=lax.Precision.HIGHEST)
    return loss, {"nats": by(jnp.where(tokens.weight > 0, tokens.weight * nats_BT, 0)), "weight": by(tokens.weight)}


def routed_tokens(batch: Batch, config: Config) -> dict[str, jax.Array]:
    """How many real tokens of the whole (global) batch meet each tower with experts, by `component/tower`."""
    real = {stream: (tokens.segment != 0).sum().astype(jnp.float32) for stream, tokens in batch.items()}
    return {
        f"{component}/{tower}": sum(real[s] for s in real if getattr(config.towers, component)[s] == tower)
        for component in ("attn", "ffn")
        for tower, sets in getattr(config, component).items()
        if sets.experts
    }


def routing(reports: dict[str, Report], tokens: dict[str, jax.Array], config: Config):
    """What routers are judged by, summed over layers, a mean over the tower's tokens of the global batch.

    Balance (2101.03961) and z-loss (2202.08906) with their weights; of the causal routers' imitation the gradient
    alone, which reaches nothing but themselves.
    """
    loss = jnp.zeros((), jnp.float32)
    for name, report in reports.items():
        component, tower = name.split("/")
        sets = getattr(config, component)[tower]
        imitation = report.imitation_B.sum()
        total = sets.z_loss * report.z_B.sum() + (imitation - lax.stop_gradient(imitation))
        if sets.balance == "loss":
            total += sets.balance_rate * report.balance_B.sum()
        loss += total / jnp.maximum(tokens[name], 1)
    return loss


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(h_BTD, head_DV, target_BT, scale_BT, z_loss: float, chunk: int):
    """sum(scale * (l + z_loss * lse^2)) and l `[B, T]`, the cross-entropy of `h @ head` with the targets, in float32.

    Logits exist for `chunk` tokens of each row at a time. The gradient is made in the forward pass, where the logits
    are at hand, as a scalar loss allows: three matmuls in all instead of four. l carries no gradient, nor does scale.
    """
    return _cross_entropy(h_BTD, head_DV, target_BT, scale_BT, z_loss, chunk, grad=False)[0]


def _cross_entropy(h_BTD, head_DV, target_BT, scale_BT, z_loss, chunk, grad):
    B, T, D = h_BTD.shape
    chunk = min(chunk, T)
    chunks = -(-T // chunk)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, chunks * chunk - T), *((0, 0),) * (x.ndim - 2)))
    h_BTD, target_BT, scale_BT = pad(h_BTD), pad(target_BT), pad(scale_BT)  # padded tokens have scale 0
    dtype = h_BTD.dtype
    w_DV = head_DV.astype(dtype)

    def one_chunk(carry, n):
        loss, dw_DV = carry
        rows = lambda x: lax.dynamic_slice_in_dim(x, n * chunk, chunk, axis=1).reshape(B * chunk, *x.shape[2:])
        h_RD, target_R, scale_R = rows(h_BTD), rows(target_BT), rows(scale_BT)
        logits_RV = jnp.matmul(h_RD, w_DV, preferred_element_type=jnp.float32)
        lse_R = jax.nn.logsumexp(logits_RV, axis=-1)
        nats_R = lse_R - jnp.take_along_axis(logits_RV, target_R[:, None], axis=-1)[:, 0]
        loss += jnp.where(scale_R > 0, scale_R * (nats_R + z_loss * lse_R**2), 0).sum()
        if not grad:
            return (loss, dw_DV), (nats_R.reshape(B, chunk), None)
        slope_R = jnp.where(scale_R > 0, scale_R, 0)
        p_RV = jnp.exp(logits_RV - lse_R[:, None]) * (1 + 2 * z_loss * lse_R)[:, None]
        is_target_RV = jnp.arange(w_DV.shape[1])[None] == target_R[:, None]
        dlogits_RV = (slope_R[:, None] * (p_RV - is_target_RV)).astype(dtype)
        dh_RD = jnp.matmul(dlogits_RV, w_DV.T, preferred_element_type=jnp.float32).astype(dtype)
        dw_DV += jnp.matmul(h_RD.T, dlogits_RV, preferred_element_type=jnp.float32)
        return (loss, dw_DV), (nats_R.reshape(B, chunk), dh_RD.reshape(B, chunk, D))

    start = (jnp.zeros((), jnp.float32), jnp.zeros(head_DV.shape, jnp.float32) if grad else None)
    (loss, dw_DV), (nats_NBC, dh_NBCD) = lax.scan(one_chunk, start, jnp.arange(chunks))
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(B, chunks * chunk, *x.shape[3:])[:, :T]
    return (loss, join(nats_NBC)), (join(dh_NBCD), dw_DV.astype(head_DV.dtype)) if grad else None


def _cross_entropy_forward(h_BTD, head_DV, target_BT, scale_BT, z_loss, chunk):
    return _cross_entropy(h_BTD, head_DV, target_BT, scale_BT, z_loss, chunk, grad=True)


def _cross_entropy_backward(z_loss, chunk, residuals, cotangents):
    dh_BTD, dw_DV = residuals
    return (cotangents[0] * dh_BTD).astype(dh_BTD.dtype), cotangents[0] * dw_DV, None, None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
