"""The losses: next-token cross-entropy of ids, and the squared error of predictions of noised vectors.

Each token's loss counts for the modality of its target and for the source of its document.
"""

import zlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from mot import batches, sharding
from mot.batches import Batch, Tokens
from mot.config import Config
from mot.model import transformer
from mot.model.router import Report
from mot.objectives import diffusion


def totals(batch: Batch, config: Config) -> jax.Array:
    """Z of each modality `[M]`: the weight its loss is divided by, summed over the whole (global) batch."""
    m_M11 = jnp.arange(len(config.modalities))[:, None, None]
    weight_M = sum(
        jnp.where(_modality(tokens, name, config)[None] == m_M11, tokens.weight[None], 0).sum((1, 2))
        for name, tokens in batch.items()
    )
    return jnp.broadcast_to(weight_M.sum(), weight_M.shape) if config.objective.per == "all" else weight_M


def _modality(tokens, stream, config):
    """`[B, C]`: of what each token's loss is about: its target, or a vector itself."""
    if not config.streams[stream].latent:
        return batches.modality_of_ids(tokens.target, config)
    return jnp.full_like(tokens.target, config.modalities.index(config.streams[stream].modality))


def _lambda(config):
    """`[M]`."""
    weights = {s.modality: s.loss_weight for s in config.streams.values()}
    return jnp.array([weights[m] for m in config.modalities], jnp.float32)


def _booked(tokens, m_BT, config, sources: int):
    """A function that sums `[B, T]` by modality and source, `[M, O]`."""
    m_BTM, s_BTO = jax.nn.one_hot(m_BT, len(config.modalities)), jax.nn.one_hot(tokens.source, sources)
    return lambda x_BT: jnp.einsum("BTM,BTO,BT->MO", m_BTM, s_BTO, x_BT, precision=lax.Precision.HIGHEST)


def _scales(Z_M, config):
    """`[M]` lambda / Z, 0 for an absent modality."""
    return jnp.where(Z_M > 0, _lambda(config) / jnp.where(Z_M > 0, Z_M, 1), 0)


class Noised(NamedTuple):
    """A batch with noised vectors, and what the model should predict for them."""

    batch: Batch
    target: dict[str, jax.Array]  # by stream, [B, C, P]


def noised(batch: Batch, config: Config, step) -> Noised:
    """Noise levels and noise from (unit_seed, step) alone, wherever a unit is packed: one level a unit."""
    key = jax.random.fold_in(jax.random.key(config.model.seed), zlib.crc32(b"noise"))
    key = jax.random.fold_in(key, step)
    result = dict(batch)
    targets = {}
    for name, tokens in batch.items():
        stream = config.streams[name]
        if not stream.diffuses:
            continue
        keys_R = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(tokens.unit_seed.reshape(-1))
        u_R = jax.vmap(lambda k: jax.random.uniform(k, minval=1e-6, maxval=1 - 1e-6))(keys_R)
        each_R = jax.vmap(jax.random.fold_in)(keys_R, batches.place_in_unit(tokens).reshape(-1))
        e_RP = jax.vmap(partial(jax.random.normal, shape=(stream.latent,)))(each_R)
        e_BCP = e_RP.reshape(tokens.value.shape)
        how = stream.diffusion
        t_BC = diffusion.noise_levels(u_R.reshape(tokens.noise.shape), how.time_distribution, how.shift, tokens.noise)
        x_BCP = tokens.value
        t_BC1 = t_BC[..., None]
        value_BCP = diffusion.noised(x_BCP, e_BCP, t_BC1, stream.objective)
        # What is clean stays so to the bit.
        value_BCP = jnp.where(tokens.noise[..., None] > 0, value_BCP, x_BCP)
        result[name] = tokens.replace(value=value_BCP, noise=t_BC)
        targets[name] = diffusion.target(x_BCP, e_BCP, t_BC1, stream.objective)
    return Noised(result, targets)


def loss(
    params, output: transformer.Output, given: Noised, Z_M, config: Config, sources: int, means: dict | None = None
):
    """The sum over modalities m of lambda_m * sum(w * l) / Z_m, and its parts.

    `means` are running means by stream, of those that are centred: their loss weighs `loss_centre` / mean. Returns the
    scalar and `{"loss_sum": [M, O], "weight": [M, O], "streams": ...}`: sums of w * l (nats of ids, squared errors of
    vectors) and of w, by modality and source; and both by stream of vectors.
    """
    total, sums = next_token(output.hidden, transformer.head(params, config), Z_M, config, sources)
    by_stream = {}
    for name, prediction_BCP in output.latents.items():
        part, parts = denoising(name, prediction_BCP, given, Z_M, config, sources)
        mean = (means or {}).get(name, jnp.zeros(()))
        centred = config.streams[name].diffusion.loss_centre / jnp.where(mean > 0, mean, 1)
        total += part * jnp.where(mean > 0, centred, 1)
        sums, by_stream[name] = jax.tree.map(jnp.add, sums, parts), jax.tree.map(jnp.sum, parts)
    return total, sums | {"streams": by_stream}


def denoising(stream: str, prediction_BCP, given: Noised, Z_M, config: Config, sources: int):
    """`next_token` of a stream of vectors: l is the mean squared error over features (2006.11239, 2209.03003)."""
    tokens, s = given.batch[stream], config.streams[stream]
    # Before the square: in the backward pass 0 * NaN, of what does not count, is NaN.
    error_BCP = jnp.where((tokens.weight > 0)[..., None], prediction_BCP - given.target[stream], 0)
    square_BC = jnp.square(error_BCP).mean(-1) * diffusion.weight(tokens.noise, s.objective)
    l_BC = tokens.weight * square_BC
    m_BC = _modality(tokens, stream, config)
    by = _booked(tokens, m_BC, config, sources)
    scale = _scales(Z_M, config)[config.modalities.index(s.modality)]
    return scale * l_BC.sum(), {"loss_sum": by(l_BC), "weight": by(tokens.weight)}


def next_token(hidden: list[tuple[jax.Array, Tokens]], head_DV, Z_M, config: Config, sources: int):
    """The part of `loss` that is of ids, and its sums.

    `hidden` is that of `transformer.forward`; Z_M is `totals` of the global batch, of which this may be part. A target
    belongs to its own modality: an image's first code, predicted from text, is image loss. An absent modality gives 0.
    Returns the scalar and `{"loss_sum": [M, O], "weight": [M, O]}`: sums of w * l and of w by modality and source, l
    the plain cross-entropy (2405.09818 adds z_loss * log(sum exp)^2 for stability, which is not reported).
    """
    tokens = batches.concatenate([t for _, t in hidden])
    B = tokens.token.shape[0]
    h_BTD = jnp.concatenate([h_RD.reshape(B, -1, h_RD.shape[-1]) for h_RD, _ in hidden], axis=1)
    m_BT = batches.modality_of_ids(tokens.target, config)
    scale_BT = tokens.weight * _scales(Z_M, config)[m_BT]
    o = config.objective
    loss, nats_BT = cross_entropy(h_BTD, head_DV, tokens.target, scale_BT, o.z_loss, o.chunk, Rules(config.mesh.rules))
    by = _booked(tokens, m_BT, config, sources)
    return loss, {"loss_sum": by(jnp.where(tokens.weight > 0, tokens.weight * nats_BT, 0)), "weight": by(tokens.weight)}


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


class Rules(dict):
    """`mesh.rules` as an argument that a custom derivative takes: hashable."""

    def __hash__(self):
        return hash(tuple(self.items()))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def cross_entropy(h_BTD, head_DV, target_BT, scale_BT, z_loss: float, chunk: int, rules: Rules):
    """sum(scale * (l + z_loss * lse^2)) and l `[B, T]`, the cross-entropy of `h @ head` with the targets, in float32.

    Logits exist for `chunk` tokens of each row at a time. The gradient is made in the forward pass, where the logits
    are at hand, as a scalar loss allows: three matmuls in all instead of four. l carries no gradient, nor does scale.
    Of several devices each has its own rows and its own part of the vocabulary; the head's gradient is added up once.
    """
    return _cross_entropy(h_BTD, head_DV, target_BT, scale_BT, z_loss, chunk, rules, grad=False)[0]


def _cross_entropy(h_BTD, head_DV, target_BT, scale_BT, z_loss, chunk, rules, grad):
    rows, head = (sharding.spec(axes, rules) for axes in ((sharding.ROWS,), ("embed", "vocab")))
    of_rows, of_vocab, of_width = (
        sharding.axes_of(axis, rules) if sharding.is_sharded() else () for axis in (sharding.ROWS, "vocab", "embed")
    )

    def share(h_BTD, head_DV, target_BT, scale_BT):
        w_DV = sharding.all_gather(head_DV, of_width, 0, h_BTD.dtype)
        first = lax.axis_index(of_vocab) * w_DV.shape[1] if of_vocab else 0
        loss, nats_BT, dh_BTD, dw_DV = _chunks(h_BTD, w_DV, target_BT - first, scale_BT, z_loss, chunk, of_vocab, grad)

        def add(x, names):
            return lax.psum(x, names) if names else x

        if grad:
            dw_DV = lax.psum_scatter(dw_DV, of_width, scatter_dimension=0, tiled=True) if of_width else dw_DV
            dw_DV = add(dw_DV, tuple(name for name in of_rows if name not in of_width))
        return add(loss, of_rows), nats_BT, dh_BTD, dw_DV

    outputs = (P(), rows, rows, head)
    loss, nats_BT, dh_BTD, dw_DV = sharding.shard_map(share, (rows, head, rows, rows), outputs)(
        h_BTD, head_DV, target_BT, scale_BT
    )
    return (loss, nats_BT), (dh_BTD, dw_DV.astype(head_DV.dtype)) if grad else None


def _chunks(h_BTD, w_DV, target_BT, scale_BT, z_loss, chunk, of_vocab, grad):
    """One device's loss, l and gradients, where `w_DV` is its part of the vocabulary, split over axes `of_vocab`."""
    B, T, D = h_BTD.shape
    chunk = min(chunk, T)
    chunks = -(-T // chunk)

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
        logits_RV = jnp.matmul(h_RD, w_DV, preferred_element_type=jnp.float32)
        most_R = logits_RV.max(-1)
        most_R = lax.pmax(most_R, of_vocab) if of_vocab else most_R
        lse_R = most_R + jnp.log(add(jnp.exp(logits_RV - most_R[:, None]).sum(-1)))
        mine_R = (target_R >= 0) & (target_R < V)
        at_R1 = jnp.where(mine_R, target_R, 0)[:, None]
        nats_R = lse_R - add(jnp.where(mine_R, jnp.take_along_axis(logits_RV, at_R1, axis=-1)[:, 0], 0))
        loss += jnp.where(scale_R > 0, scale_R * (nats_R + z_loss * lse_R**2), 0).sum()
        if not grad:
            return (loss, dw_DV), (nats_R.reshape(B, chunk), None)
        slope_R = jnp.where(scale_R > 0, scale_R, 0)
        p_RV = jnp.exp(logits_RV - lse_R[:, None]) * (1 + 2 * z_loss * lse_R)[:, None]
        is_target_RV = jnp.arange(V)[None] == target_R[:, None]
        dlogits_RV = (slope_R[:, None] * (p_RV - is_target_RV)).astype(dtype)
        dh_RD = add(jnp.matmul(dlogits_RV, w_DV.T, preferred_element_type=jnp.float32)).astype(dtype)
        dw_DV += jnp.matmul(h_RD.T, dlogits_RV, preferred_element_type=jnp.float32)
        return (loss, dw_DV), (nats_R.reshape(B, chunk), dh_RD.reshape(B, chunk, D))

    start = (jnp.zeros((), jnp.float32), jnp.zeros(w_DV.shape if grad else (0, V), jnp.float32))
    (loss, dw_DV), (nats_UBC, dh_UBCD) = lax.scan(one_chunk, start, jnp.arange(chunks))

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(B, chunks * chunk, *x.shape[3:])[:, :T]

    return loss, join(nats_UBC), join(dh_UBCD) if grad else None, dw_DV


def _cross_entropy_forward(h_BTD, head_DV, target_BT, scale_BT, z_loss, chunk, rules):
    return _cross_entropy(h_BTD, head_DV, target_BT, scale_BT, z_loss, chunk, rules, grad=True)


def _cross_entropy_backward(z_loss, chunk, rules, residuals, cotangents):
    dh_BTD, dw_DV = residuals
    return (cotangents[0] * dh_BTD).astype(dh_BTD.dtype), cotangents[0] * dw_DV, None, None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
