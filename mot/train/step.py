"""One training step: gradients over all microbatches, and an update where the guard lets it pass (`guard.py`)."""

import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from mot import batches, optim
from mot.batches import Batch
from mot.config import Config
from mot.model import params, transformer
from mot.model.router import Report
from mot.objectives import balance, contrastive, losses
from mot.objectives.contrastive import Sides
from mot.train import guard
from mot.train.state import State, state_shardings

AGAIN = 1  # what the key of dropout becomes another by
Step = Callable[[State, Batch], tuple[State, dict]]


def make_step(config: Config, sources: int) -> Step:
    """`(state, batch) -> (state, measurements)`: gradients over all microbatches; an update if all is finite.

    With `optim.skip_above` the gradient must also be no longer than that many medians of earlier ones. What is skipped
    leaves the state as it is, to the bit, and the measurements say of each leaf what is wrong with it.
    """
    is_trained = optim.trainable(config)
    schedule = optim.schedule(config)
    gradients = make_gradients(config, sources)
    update = _make_update(config)

    def step(state: State, batch: Batch) -> tuple[State, dict]:
        trained, frozen = params.split(state.params, is_trained)
        Z_M = losses.totals(batch, config)
        (loss, sums), grads = gradients(state, trained, frozen, batch, Z_M)
        of_model = params.split(grads, params.is_causal)[1]  # without routers that only imitate
        # NaN > 0 is false: a weight that is NaN would count as none, and the step as one of loss 0.
        broken = batches.not_finite(batch) | {"sum of weights": (~jnp.isfinite(Z_M)).sum(dtype=jnp.int32)}
        loss = jnp.where(sum(broken.values()) > 0, jnp.nan, loss)
        grad_norm = optax.tree.norm(of_model)
        ok = jnp.isfinite(optax.tree.norm(grads)) & jnp.isfinite(loss)
        measured = {
            "loss": loss,
            "sums": sums,
            "grad_norm": grad_norm,
            "grad_norms": _norms_by_tower(of_model),
            "broken": broken,
            "lr": schedule(state.updates),
        }
        if config.optim.skip_above:
            measured["grad_norm_limit"] = guard.greatest(state.norms, config)
            ok &= grad_norm <= measured["grad_norm_limit"]

        def applied():
            return update(state, trained, frozen, grads, sums, grad_norm), guard.no_leaves(grads)

        def skipped():
            return state, guard.of_leaves(grads)

        # A branch, not a `where` on every leaf, which reads and writes all of the state once more.
        after, leaves = jax.lax.cond(ok, applied, skipped)
        return after, measured | {"ok": ok, "leaves": leaves}

    return step


def jitted(config: Config, sources: int, mesh: jax.sharding.Mesh) -> Callable:
    """`make_step` as a run compiles it: whoever makes a step again with it gets the same bits."""
    # Outputs stay where inputs must be: a compiled step takes its own result without moving it.
    outputs = (state_shardings(config, mesh), None)
    return jax.jit(make_step(config, sources), donate_argnums=0, out_shardings=outputs)


def make_gradients(config: Config, sources: int) -> Callable:
    """`(state, trained, frozen, batch, Z_M) -> ((loss, sums), gradients of trained)` of a whole batch."""

    def loss(
        trained: dict, frozen: dict, microbatch: Batch, Z_M, routed: dict, key, state: State, slopes: Sides | None
    ) -> tuple:
        weights = params.merge(_narrowed(trained, config), frozen)
        noised = losses.noised(microbatch, config, state.updates, weights, state.ema)
        output, again = _passes(weights, noised.batch, config, key, state)
        factor_M = balance.factors(state.balance, config)
        total, sums = losses.loss(weights, output, noised, Z_M, config, sources, state.means, again, slopes, factor_M)
        of_routers = losses.routing(output.routing, routed, config) if output.routing else 0.0
        return total + of_routers, sums | {"routing": {name: _over_rows(x) for name, x in output.routing.items()}}

    def gradients(state: State, trained: dict, frozen: dict, batch: Batch, Z_M) -> tuple:
        # Of the whole batch, as Z_M is: a microbatch is divided by what all weigh.
        routed = losses.routed_tokens(batch, config)
        key = jitter_key(config, state)
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        n = config.optim.accumulate
        if n == 1:
            return value_and_grad(trained, frozen, batch, Z_M, routed, key, state, None)
        parts = microbatches(batch, key, n)
        if config.objective.contrastive.weighs:
            return contrasted(value_and_grad, state, trained, frozen, parts, Z_M, routed)

        def of_microbatch(batch_and_key):
            microbatch, key = batch_and_key
            return value_and_grad(trained, frozen, microbatch, Z_M, routed, key, state, None)

        return _accumulate(of_microbatch, parts)

    def contrasted(value_and_grad, state: State, trained: dict, frozen: dict, parts: tuple, Z_M, routed) -> tuple:
        """With a contrastive term, which needs the embeddings of all microbatches first (2101.06983): one pass more."""
        weights = params.merge(trained, frozen)

        def embed(batch_and_key):
            microbatch, key = batch_and_key
            noised = losses.noised(microbatch, config, state.updates, weights, state.ema)
            outputs = _passes(weights, noised.batch, config, key, state)
            return contrastive.sides(weights, outputs, noised.unmasked, config)

        term, told, of_heads, slopes = contrastive.ahead(weights["contrast"], jax.lax.map(embed, parts), config)

        def of_microbatch(part_and_slopes):
            (microbatch, key), slopes = part_and_slopes
            return value_and_grad(trained, frozen, microbatch, Z_M, routed, key, state, slopes)

        (total, sums), grads = _accumulate(of_microbatch, (parts, slopes))
        for name in {"scale", "bias"} & grads.get("contrast", {}).keys():
            grads["contrast"][name] += of_heads[name]
        return (total + term, sums | {"contrastive": told}), grads

    return gradients


def _narrowed(trained: dict, config: Config) -> dict:
    """The weights, some in `optim.reduce_dtype`: their gradients then come in it, and devices add them up in it."""
    table = params.table(config)
    flat = params.paths(trained)
    narrow = {p: x.astype(config.optim.reduce_dtype) for p, x in flat.items() if params.is_reduced(p, table[p])}
    return params.nest(flat | narrow)


def _passes(weights: dict, batch: Batch, config: Config, key, state: State) -> tuple[transformer.Output, ...]:
    """A pass of a batch; and where parts of one stream are their own partners, another with other dropout (2104.08821),
    else the same."""
    dropped = dropout_key(config, state)
    output = transformer.forward(weights, batch, config, key, dropout_key=dropped)
    term = config.objective.contrastive
    if not term.weighs or len(term.pools) != 1:
        return output, output
    again = jax.random.fold_in(dropped, AGAIN)
    return output, transformer.forward(weights, batch, config, key, dropout_key=again)


def _make_update(config: Config) -> Callable:
    """`(state, trained, frozen, grads, sums, grad_norm) -> state` one step later."""
    optimiser = optim.make(config)
    o = config.optim

    def averages(means: dict, weights: dict, updates) -> dict:
        # A decay that rises does so in equal steps (2301.08243).
        decay = o.ema + (o.ema_end - o.ema) * jnp.minimum(updates / config.run.steps, 1) if o.ema_end else o.ema

        def average(mean, weight):
            # What does not move has itself as its average, to the bit.
            return jnp.where(mean == weight, mean, decay * mean + (1 - decay) * weight)

        return jax.tree.map(average, means, weights)

    def update(state: State, trained: dict, frozen: dict, grads: dict, sums: dict, grad_norm) -> State:
        updates, opt = optimiser.update(grads, state.opt, trained, norm=grad_norm)
        weights = params.merge(optax.apply_updates(trained, updates), frozen)
        weights = contrastive.clamped(_balanced(weights, sums["routing"], config), config)
        ema = averages(state.ema, weights, state.updates) if o.ema else {}
        means = running_means(state.means, sums["streams"])
        norms = guard.with_norm(state.norms, grad_norm, state.updates)
        to_target = balance.after(state.balance, sums["loss_sum"], sums["weight"], config)
        return State(weights, opt, ema, state.updates + 1, means, norms, to_target)

    return update


def _over_rows(report: Report) -> Report:
    """A report's sums over rows, `[L, ...]`."""
    return jax.tree.map(lambda x: x.sum(1), report)


def _balanced(weights: dict, routing: Mapping, config: Config) -> dict:
    """Routers' biases a step towards even loads (2408.15664): up where an expert has less than the mean, else down."""
    flat = params.paths(weights)
    for path in [path for path, rule in optim.rules(config).items() if params.is_bias(path) and rule.lr > 0]:
        stack, component, tower, _ = params.parse(path)
        load_LE = routing[params.report(f"{component}/{tower}", stack)].load_BME.sum(1)
        under_LE = jnp.sign(load_LE.mean(-1, keepdims=True) - load_LE)
        flat[path] += config.component(component).experts[tower].balance_rate * under_LE
    return params.nest(flat)


def running_means(means: Mapping, sums: Mapping) -> dict:
    """Running means of centred streams' losses, over some hundred steps; the first is the first loss itself."""
    after = {}
    for name, mean in means.items():
        loss_sum, weight = sums[name]["loss_sum"], sums[name]["weight"]
        loss = loss_sum / jnp.maximum(weight, 1e-9)
        moved = jnp.where(mean > 0, 0.99 * mean + 0.01 * loss, loss)
        after[name] = jnp.where(weight > 0, moved, mean)
    return after


def jitter_key(config: Config, state: State) -> jax.Array | None:
    """Of the noise of routers' inputs in this step; None where no router has it."""
    if not any(experts.jitter for experts in (*config.attn.values(), *config.ffn.values())):
        return None
    return jax.random.fold_in(jax.random.key(config.model.seed), state.updates)


def dropout_key(config: Config, state: State) -> jax.Array | None:
    """Of what this step drops; None without dropout. It is one for all microbatches: each token has its own of it."""
    if not config.model.dropout:
        return None
    key = jax.random.fold_in(jax.random.key(config.model.seed), zlib.crc32(b"dropout"))
    return jax.random.fold_in(key, state.updates)


def microbatches(batch: Batch, key: jax.Array | None, n: int) -> tuple[Batch, jax.Array | None]:
    """`[B, ...]` to `[n, B/n, ...]`, with a key for each; the one of a whole batch keeps the key.

    Microbatch i takes rows i, i + n, ..., so that every device keeps its own.
    """
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1), batch)
    if key is None:
        return split, None
    return split, jax.random.split(key, n) if n > 1 else key[None]


def _accumulate(f: Callable, microbatches: tuple) -> tuple:
    """The sum of f over microbatches, one at a time."""
    first = jax.tree.map(lambda x: x[0], microbatches)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, first))

    def add(total, microbatch):
        return jax.tree.map(jnp.add, total, f(microbatch)), None

    return jax.lax.scan(add, zeros, microbatches)[0]


def _norms_by_tower(grads: dict) -> dict[str, jax.Array]:
    by_tower: dict[str, list] = {}
    for path, grad in params.paths(grads).items():
        by_tower.setdefault(params.tower(path), []).append(grad)
    return {tower: optax.tree.norm(leaves) for tower, leaves in by_tower.items()}
