"""One target for the losses of all modalities (2603.03276): each is scaled to it by its own running mean.

Nats and squared errors differ in size, and change at other times; scaled, each modality's loss stays near the target,
which is the running mean of the losses of all, weighed by lambda. What regularises a loss, as SIGReg does, is scaled
with it: its weight is relative to that loss. (`diffusion.loss_centre` scales one stream's loss to a number that is
given.)
"""

import jax
import jax.numpy as jnp

from mot.config import Config

Balance = dict  # {"target": running mean of all losses, "own": {modality: running mean}}, 0 = none yet; {} = no target


def first(config: Config) -> Balance:
    """Of a run that begins."""
    if not config.objective.common_target:
        return {}
    return {"target": jnp.zeros(()), "own": {m: jnp.zeros(()) for m in config.modalities}}


def factors(balance: Balance, config: Config) -> jax.Array:
    """What each modality's loss is multiplied by `[M]`: the target over its own mean; 1 where there is none yet."""
    if not balance:
        return jnp.ones(len(config.modalities))
    own_M = jnp.stack([balance["own"][m] for m in config.modalities])
    return jnp.where(own_M > 0, balance["target"] / jnp.where(own_M > 0, own_M, 1), 1)


def after(balance: Balance, loss_sum_MO, weight_MO, config: Config) -> Balance:
    """The means after a step with these sums, as `losses.loss` gives them; the first is the first loss itself.

    A modality that is absent keeps its own, and is no part of the step's mean.
    """
    if not balance:
        return balance
    decay = config.objective.common_target
    weight_M = weight_MO.sum(1)
    present_M = weight_M > 0
    loss_M = loss_sum_MO.sum(1) / jnp.where(present_M, weight_M, 1)
    weights = {s.modality: s.loss_weight for s in config.streams.values()}
    lambda_M = jnp.where(present_M, jnp.array([weights[m] for m in config.modalities], jnp.float32), 0)
    total = lambda_M.sum()
    mean = (lambda_M * loss_M).sum() / jnp.where(total > 0, total, 1)

    def moved(old, new, is_present):
        return jnp.where(is_present, jnp.where(old > 0, decay * old + (1 - decay) * new, new), old)

    own = {m: moved(balance["own"][m], loss_M[i], present_M[i]) for i, m in enumerate(config.modalities)}
    return {"target": moved(balance["target"], mean, total > 0), "own": own}
