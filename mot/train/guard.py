"""Which steps are skipped: what is not finite, and on request a gradient far longer than those of late.

PaLM (2204.02311, 5.1) went back to a checkpoint and left out hundreds of batches; OLMo-core's SkipStepOptimizer and
levanter's skipstep skip a step whose norm lies 6 standard deviations above the mean of the last 128, once 64 are known.
Their window takes in what they skip, and one outlier moves mean and deviation so far that the next one passes. Here the
scale is the median of norms that were applied: what is skipped never moves it.
"""

import jax
import jax.numpy as jnp
import optax

from mot.config import Config
from mot.model import params

WINDOW = 128  # norms
ENOUGH = 64  # norms; with fewer nothing is judged


def first_norms(config: Config) -> dict:
    """The window before any step; {} where `optim.skip_above` is 0, and the state has no such leaf."""
    return {"last": jnp.zeros(WINDOW)} if config.optim.skip_above else {}


def with_norm(norms: dict, norm: jax.Array, updates: jax.Array) -> dict:
    """The window with the norm of the step that is applied after `updates` others."""
    return {"last": norms["last"].at[updates % WINDOW].set(norm)} if norms else {}


def greatest(norms: dict, config: Config) -> jax.Array:
    """The greatest norm that is applied: `optim.skip_above` medians; infinite while too few norms are known."""
    norm_W = norms["last"]
    seen_W = norm_W > 0  # a window begins with zeros
    seen = seen_W.sum()
    # The lower median is the least that half do not exceed; counted, as a sort takes TPU's compiler seconds.
    rank_W = (seen_W[None, :] & (norm_W[None, :] <= norm_W[:, None])).sum(1)
    median = jnp.where(seen_W & (2 * rank_W >= seen), norm_W, jnp.inf).min()
    return jnp.where(seen >= ENOUGH, config.optim.skip_above * median, jnp.inf)


def of_leaves(grads: dict) -> dict[str, jax.Array]:
    """Of each gradient, in the order of `optim.trained`: how many numbers are `not_finite` `[P]`, and its `norm` `[P]`.

    Two arrays in all: the host waits for each one that it reads.
    """
    leaves = [leaf for _, leaf in sorted(params.paths(grads).items())]
    not_finite = [(~jnp.isfinite(leaf)).sum(dtype=jnp.int32) for leaf in leaves]
    return {"not_finite": jnp.stack(not_finite), "norm": jnp.stack([optax.tree.norm(leaf) for leaf in leaves])}


def no_leaves(grads: dict) -> dict[str, jax.Array]:
    """What stands in place of `of_leaves` where nobody asks: no gradient is read for it."""
    P = len(params.paths(grads))
    return {"not_finite": jnp.zeros(P, jnp.int32), "norm": jnp.zeros(P)}
