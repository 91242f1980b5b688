"""AdamW with learning rate, decay and freezing by path, and its schedule."""

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mot import params
from mot.config import Config, Rule, reads

if TYPE_CHECKING:  # JAX takes seconds to import; rules are judged without
    import optax


def rule_for(path: str, rules: tuple[Rule, ...]) -> Rule | None:
    """The first rule that matches."""
    return next((rule for rule in rules if re.search(rule.match, path)), None)


@reads("streams", "towers", "attn", "ffn", "model", "optim")
def uncovered(config: Config) -> Iterator[str]:
    """A check for `config.build`: every parameter needs a rule, and every rule a parameter."""
    rules, paths = config.optim.rules, list(params.table(config))
    if any(not _compiles(rule.match) for rule in rules):
        return  # a fault of its own, which `config` reports
    bare = [p for p in paths if rule_for(p, rules) is None]
    if bare:
        shown = ", ".join(bare[:4]) + (f" and {len(bare) - 4} more" if len(bare) > 4 else "")
        yield f"optim.rules: no rule matches {shown}; every parameter needs one; add a rule with match='.*' at the end"
    used = {id(rule_for(p, rules)) for p in paths}
    for i, rule in enumerate(rules):
        if id(rule) not in used:
            yield (
                f"optim.rules[{i}].match: {rule.match!r} decides for no parameter (earlier rules come first); allowed "
                f"paths look like {paths[1]}; mend or remove it"
            )


def _compiles(pattern: str) -> bool:
    try:
        return bool(re.compile(pattern))
    except re.error:
        return False


def trainable(config: Config) -> Callable[[str], bool]:
    """Is the parameter of this path trained? A rule with lr 0 freezes: no gradient, no optimiser state.

    A router's bias is moved by the step itself.
    """
    return lambda path: rule_for(path, config.optim.rules).lr > 0 and not params.is_bias(path)


def schedule(config: Config) -> "optax.Schedule":
    """Learning rate of step n (from 0): linear warm-up to the peak, then cosine, linear, or flat and linear (wsd)."""
    import optax

    o, steps = config.optim, config.run.steps
    after = max(steps - o.warmup, 1)
    decays = {
        "cosine": optax.cosine_decay_schedule(o.lr, after, alpha=o.end_lr / o.lr),
        "linear": optax.linear_schedule(o.lr, o.end_lr, after),
        "wsd": optax.linear_schedule(o.lr, o.end_lr, o.decay_steps, transition_begin=after - o.decay_steps),
    }
    warmup = lambda n: o.lr * (n + 1) / max(o.warmup, 1)  # the first step already moves
    return optax.join_schedules([warmup, decays[o.schedule]], [o.warmup])


def _adam(o) -> "optax.GradientTransformation":
    """Adam that keeps both its moments in `optim.moments`, as DeepSeek-V3 does in bfloat16 (2412.19437, 3.3.3).

    With steps of 1 - beta2 = 0.05 the second moment stays within some percent of what it would be, and the rate within
    half of that; `checks` refuses betas whose steps rounding would lose.
    """
    import jax
    import jax.numpy as jnp
    import optax

    adam = optax.scale_by_adam(o.beta1, o.beta2, o.eps)
    if o.moments == "float32":
        return adam

    def kept(state, dtype):
        cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)
        return state._replace(mu=cast(state.mu), nu=cast(state.nu))

    def update(updates, state, weights):
        updates, state = adam.update(updates, kept(state, jnp.float32), weights)
        return updates, kept(state, jnp.bfloat16)

    return optax.GradientTransformation(lambda weights: kept(adam.init(weights), jnp.bfloat16), update)


def make(config: Config) -> "optax.GradientTransformation":
    """Clip by the global norm, Adam, decoupled decay (1711.05101), then the rate; decay and rate by path.

    Causal routers, which only imitate, are clipped by themselves: the model trains as it would without them.
    """
    import optax

    o = config.optim

    def by_path(f):
        def update(updates, weights):
            flat = params.paths(weights)
            return params.nest({p: f(rule_for(p, o.rules), u, flat[p]) for p, u in params.paths(updates).items()})

        return optax.stateless(update)

    def clip(updates, _):
        clipped = lambda tree: optax.clip_by_global_norm(o.clip).update(tree, optax.EmptyState())[0]
        imitators, model = params.split(updates, params.is_causal)
        return params.merge(clipped(model), clipped(imitators) if imitators else {})

    return optax.chain(
        optax.stateless(clip),
        _adam(o),
        by_path(lambda rule, u, w: u + rule.decay * w if rule.decay else u),
        by_path(lambda rule, u, w: rule.lr * u),
        optax.scale_by_learning_rate(schedule(config)),
    )
