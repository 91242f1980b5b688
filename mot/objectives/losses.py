"""The loss of a batch: over its streams, of ids and of vectors; and that of its routers.

A batch is noised, the model predicts, `loss` judges: `totals`, `noised`, `loss` and `routing` are all that training and
evaluation need. What one objective computes is in `next_token.py`, `masked.py`, `denoising.py` and `latent.py`.
"""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mot.batches import Batch, Tokens
from mot.config import Config, Experts
from mot.model import params as parameters
from mot.model import transformer
from mot.model.router import Report
from mot.objectives import contrastive, denoising, latent, masked, next_token
from mot.objectives.contrastive import Sides
from mot.objectives.sums import Sums, modality, totals

__all__ = ["Noised", "TokenLosses", "by_token", "loss", "noised", "routed_tokens", "routing", "totals"]


class Noised(NamedTuple):
    """A batch with what is noised and hidden, and what the model should predict for vectors."""

    batch: Batch
    target: dict[str, jax.Array]  # by stream, [B, C, P]; [B, C, D] of one whose states are predicted
    step: jax.Array | int
    ids: dict[str, jax.Array] = {}  # by stream that is masked, [B, C]: its documents' own

    @property
    def unmasked(self) -> Batch:
        """The batch with the ids of its documents, also where the model sees the mask's."""
        return self.batch | {name: self.batch[name].replace(token=ids_BC) for name, ids_BC in self.ids.items()}


def noised(
    batch: Batch, config: Config, step: jax.Array | int, params: dict | None = None, average: dict | None = None
) -> Noised:
    """Noise levels and noise, and what is hidden, from (unit_seed, step) alone, wherever a unit is packed.

    `params` are the model's own, and `average` those of `optim.ema`, if there is one. A stream with objective latent
    predicts the states that either has of whole units, as `prediction.targets` says: a forward pass of its own. Without
    them there are no such targets.
    """
    key = jax.random.fold_in(jax.random.key(config.model.seed), zlib.crc32(b"noise"))
    key = jax.random.fold_in(key, step)
    result = dict(batch)
    targets = {}
    for name, tokens in batch.items():
        if config.streams[name].diffuses:
            result[name], targets[name] = denoising.noised(tokens, config.streams[name], key)
        elif config.streams[name].masks:
            result[name] = masked.hidden(tokens, config.streams[name], config.mask_id, key)
    predicting = {name: config.streams[name].prediction.targets for name in batch if config.streams[name].predicts}
    for whose in dict.fromkeys(predicting.values()) if params is not None else ():
        seeing = average if whose == "ema" and average else params
        whole = transformer.forward(seeing, result, config).latents
        own = [name for name in predicting if predicting[name] == whose]
        targets |= {name: latent.targets(whole[name], config.streams[name]) for name in own}
    result |= {name: latent.hidden(batch[name], config.streams[name], key) for name in predicting}
    return Noised(result, targets, step, {name: batch[name].token for name in batch if config.streams[name].masks})


def loss(
    params: dict,
    output: transformer.Output,
    noised: Noised,
    Z_M,
    config: Config,
    sources: int,
    means: dict[str, jax.Array] | None = None,
    again: transformer.Output | None = None,
    slopes: Sides | None = None,
    factor_M: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array | dict[str, Sums]]]:
    """The sum over modalities m of factor_m * lambda_m * sum(w * l) / Z_m, and its parts.

    `means` are running means by stream, of those that are centred: their loss weighs `loss_centre` / mean. `factor_M`
    scales modalities to a common target, with what regularises their losses (`balance.factors`). Returns the scalar and
    `{"loss_sum": [M, O], "weight": [M, O], "streams": ...}`: sums of w * l (nats of ids, squared errors of vectors) and
    of w, by modality and source; and both by stream of vectors that are noised. Of streams whose states are predicted
    `spread` has `latent.spread` of these. A contrastive term comes beside them, and what is told of it as
    `contrastive`; where its partners come of another pass, that is `again`. It needs the whole batch: of a microbatch,
    `slopes` are the term's gradients by its pairs' embeddings (`contrastive.ahead`), with which it adds 0 and its part
    of the gradient.
    """
    factor_M = jnp.ones_like(Z_M) if factor_M is None else factor_M
    Z_M = Z_M / factor_M
    total, sums = next_token.loss(output.hidden, transformer.head(params, config), Z_M, config, sources)
    by_stream = {}
    spreads = {}
    for name, prediction_BCP in output.latents.items():
        judged = (noised.batch[name], noised.target[name], Z_M, config, sources)
        if config.streams[name].predicts:
            part, part_sums, spreads[name] = latent.loss(name, params, prediction_BCP, *judged, noised.step, factor_M)
            total += part
            sums = jax.tree.map(jnp.add, sums, part_sums)
            continue
        part, part_sums = denoising.loss(name, prediction_BCP, *judged)
        mean = (means or {}).get(name, jnp.zeros(()))
        centred = config.streams[name].diffusion.loss_centre / jnp.where(mean > 0, mean, 1)
        total += part * jnp.where(mean > 0, centred, 1)
        sums = jax.tree.map(jnp.add, sums, part_sums)
        by_stream[name] = jax.tree.map(jnp.sum, part_sums)
    sums |= {"streams": by_stream} | ({"spread": spreads} if spreads else {})
    if not config.objective.contrastive.weighs:
        return total, sums
    sides = contrastive.sides(params, (output, again or output), noised.unmasked, config)
    if slopes is not None:
        return total + contrastive.pulled(sides, slopes), sums
    term, told = contrastive.judge(params["contrast"], sides, config)
    return total + term, sums | {"contrastive": told}


class TokenLosses(NamedTuple):
    """Losses token by token, each `[B, C]`, of which `loss` gives sums. Padding has weight 0."""

    loss: jax.Array  # w * l
    weight: jax.Array  # w
    source: jax.Array
    doc_id: jax.Array
    modality: jax.Array  # in `config.modalities`, of what the loss is about


def by_token(params: dict, output: transformer.Output, noised: Noised, Z_M, config: Config) -> list[TokenLosses]:
    """What `loss` sums: of all ids together, and of each stream of vectors. What is not finite stays where it is."""

    def judged(l_BC, tokens: Tokens, m_BC) -> TokenLosses:
        return TokenLosses(l_BC, tokens.weight, tokens.source, tokens.doc_id, m_BC)

    _, *of_ids = next_token.of_tokens(output.hidden, transformer.head(params, config), Z_M, config)
    found = [judged(*of_ids)]
    for name, prediction_BCP in output.latents.items():
        tokens = noised.batch[name]
        if config.streams[name].predicts:
            l_BC = latent.of_tokens(name, params, prediction_BCP, tokens, noised.target[name], config)
        else:
            l_BC = denoising.of_tokens(name, prediction_BCP, tokens, noised.target[name], config)
        found.append(judged(l_BC, tokens, modality(tokens, name, config)))
    return found


def routed_tokens(batch: Batch, config: Config) -> dict[str, jax.Array]:
    """How many real tokens of the global batch pass each tower with experts, by the name of its routers' report."""
    real = {stream: (tokens.segment != 0).sum().astype(jnp.float32) for stream, tokens in batch.items()}
    result = {}
    for stack in dict.fromkeys(stack for stack, sparse in zip(config.stacks, config.sparse, strict=True) if sparse):
        for component in ("attn", "ffn"):
            served = config.towers_in(stack)[component]
            for tower, experts in config.component(component).experts.items():
                if experts.experts and tower in served.values():
                    name = parameters.report(f"{component}/{tower}", stack)
                    result[name] = sum(real[s] for s in real if served[s] == tower and s not in config.crossed)
    return result


def routing(reports: dict[str, Report], tokens: dict[str, jax.Array], config: Config) -> jax.Array:
    """The routers' loss: summed over layers, and a mean over the tower's tokens of the global batch.

    It is balance (2101.03961) and z-loss (2202.08906) with their weights. The causal routers' imitation adds 0 and its
    gradient, which reaches these routers alone. A pooled balance loss (`_pooled`) is no sum over layers.
    """
    result = jnp.zeros((), jnp.float32)
    for name, report in reports.items():
        component, tower = parameters.of_report(name)[0].split("/")
        experts = config.component(component).experts[tower]
        imitation = report.imitation_B.sum()
        total = experts.z_loss * report.z_B.sum() + (imitation - lax.stop_gradient(imitation))
        if experts.balance == "loss" or experts.balance_loss:
            total += experts.row_balance * report.balance_B.sum()
        result += total / jnp.maximum(tokens[name], 1)
    for component, tower, experts in _with_pooled_balance(config):
        own = [name for name in reports if parameters.of_report(name)[0] == f"{component}/{tower}"]
        layers = [reports[name].tokens_BM.shape[0] for name in own]
        rows = sum(n * tokens[name] for n, name in zip(layers, own, strict=True))
        result += experts.balance_rate * _pooled([reports[name] for name in own], rows, experts.experts)
    return result


def _with_pooled_balance(config: Config) -> list[tuple[str, str, Experts]]:
    """Component, tower and experts of the routers whose balance loss is pooled."""
    every = [(x, tower, e) for x in ("attn", "ffn") for tower, e in config.component(x).experts.items()]
    return [(x, tower, e) for x, tower, e in every if e.experts and e.balance == "pooled"]


def _pooled(reports: list[Report], rows: jax.Array, experts: int) -> jax.Array:
    """E times the sum over experts of f * P, as transformers' `load_balancing_loss_func` has it.

    f is an expert's share of tokens, of which each counts as often as it chooses, and P its mean score, both over all
    rows and layers of a tower: `active` where all is even. A microbatch has an f and a P of its own, and weighs as many
    tokens as it has of the `rows` of all, which count a token once for each layer.
    """
    wanted_E, score_E = (
        sum(of.sum((0, 1)) for of in parts) for parts in zip(*(r.pooled for r in reports), strict=True)
    )
    own = sum(r.tokens_BM.sum() for r in reports)
    return experts * (wanted_E * score_E).sum() / (jnp.maximum(own, 1) * jnp.maximum(rows, 1))
