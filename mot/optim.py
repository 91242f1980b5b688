"""AdamW and Muon with learning rate, decay and freezing by path, and their schedule."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from mot.config import Config, Rule, checks, reads
from mot.model import params

if TYPE_CHECKING:  # JAX takes seconds to import; rules are judged without
    import optax

FROZEN = Rule(match="", lr=0.0, decay=0.0)


def rules(config: Config) -> dict[str, Rule | None]:
    """What decides for each parameter, by path: `optim.freeze`, else the first rule that matches, or None.

    `base_rules` never decay a bias or a gate.
    """
    frozen = {path for paths in frozen_by(config).values() for path in paths}

    def first(rules: Sequence[Rule], path: str) -> Rule | None:
        return next((rule for rule in rules if re.search(rule.match, path)), None)

    def rule_for(path: str) -> Rule | None:
        if path in frozen:
            return FROZEN
        if rule := first(config.optim.rules, path):
            return rule
        rule = first(config.optim.base_rules, path)
        return replace(rule, decay=0.0) if rule and (params.is_added(path) or params.is_gate(path)) else rule

    return {path: rule_for(path) for path in params.table(config)}


def frozen_by(config: Config) -> dict[str, list[str]]:
    """The paths that each entry of `optim.freeze` freezes: all that a stream, or a modality's streams, use.

    Whole arrays: of a tower, an embedding or a head that others share, they lose it too. So the loss of a frozen
    modality stays what it was, to the bit, wherever it does not attend to others; rows of the embedding and columns of
    the head that are others' stay as well, since a softmax is over all ids.
    """
    found = {}
    for entry in [entry.strip() for entry in config.optim.freeze.split(",") if entry.strip()]:
        part = entry.partition(".")[2]
        mine = _named(entry, config)
        uses = [path for path in params.table(config) if mine & set(params.users(path, config))]
        found[entry] = [path for path in uses if not part or part == params.part(path)]
    return found


def _named(entry: str, config: Config) -> set[str]:
    """The streams that an entry of `optim.freeze` means."""
    name = entry.partition(".")[0]
    return {s for s, stream in config.streams.items() if name in (s, stream.modality)}


@reads("streams", "towers", "attn", "ffn", "model", "objective", "optim")
def uncovered(config: Config) -> Iterator[str]:
    """A check for `config.build`: every parameter needs a rule, every rule a parameter, and something must train."""
    o = config.optim
    patterns = [o.muon, *(rule.match for rule in (*o.rules, *o.base_rules))]
    if any([*checks.pattern("optim", text)] for text in patterns):
        return  # a fault of its own, which `config` reports
    paths = list(params.table(config))
    frozen = frozen_by(config)
    names = dict.fromkeys(name for s, stream in config.streams.items() for name in (s, stream.modality))
    for entry in [entry for entry, found in frozen.items() if not found]:
        yield (
            f"optim.freeze: {entry!r} names no parameter; allowed: {', '.join(names)}, and parts of them, as "
            f"{next(iter(names))}.ffn ({', '.join(params.PARTS)}), with commas between; change it"
        )
    decided = rules(config)
    bare = [path for path in paths if decided[path] is None]
    if bare:
        shown = ", ".join(bare[:4]) + (f" and {len(bare) - 4} more" if len(bare) > 4 else "")
        yield (
            f"optim.rules, base_rules: no rule matches {shown}; every parameter needs one; add a rule with match='.*' "
            "at the end"
        )
    elif not any(decided[path].lr > 0 for path in paths):
        how = f"optim.freeze: {o.freeze!r}" if frozen else "optim.rules: with lr 0 everywhere"
        yield (
            f"{how} leaves nothing to train: towers, embedding and head are frozen for all that share them; untie what "
            "should train (as arch=mot does), or freeze parts"
        )
    if o.name == "muon":
        yield from _without_muon(config, decided)
    first = [next((i for i, rule in enumerate(o.rules) if re.search(rule.match, path)), None) for path in paths]
    for i in [i for i in range(len(o.rules)) if i not in first]:
        yield (
            f"optim.rules[{i}].match: {o.rules[i].match!r} decides for no parameter (earlier rules come first); "
            f"allowed paths look like {paths[1]}; mend or remove it"
        )


def _without_muon(config: Config, decided: Mapping[str, Rule | None]) -> Iterator[str]:
    """A fault where `optim.name` is muon, and Muon would move nothing."""
    table = params.table(config)
    found = [path for path, spec in table.items() if params.by_muon(path, spec, config)]
    if not found:
        like = next((path for path, spec in table.items() if params.is_hidden(spec)), "")
        yield (
            f"optim.muon: {config.optim.muon!r} matches no matrix from width to width, and optim.name is muon; allowed "
            f"paths look like {like}; mend it, or write name='adamw'"
        )
    elif all((rule := decided[path]) and rule.lr == 0 for path in found):
        yield (
            f"optim.muon: {config.optim.muon!r} matches {found[0]} and others that are all frozen, so muon would move "
            "nothing; have it match what trains, or write name='adamw'"
        )


def trainable(config: Config) -> Callable[[str], bool]:
    """Is the parameter of this path trained? A rate of 0 freezes: no gradient, no optimiser state.

    A router's bias is moved by the step itself.
    """
    decided = rules(config)
    return lambda path: decided[path].lr > 0 and not params.is_bias(path)


def trained(config: Config) -> list[str]:
    """The paths of the parameters that are trained, in order."""
    is_trained = trainable(config)
    return sorted(path for path in params.table(config) if is_trained(path))


def told(config: Config) -> list[str]:
    """What a run says of its frozen parameters: how many of which part, for whom, and what still moves."""
    table, decided = params.table(config), rules(config)
    frozen = {path: spec for path, spec in table.items() if decided[path].lr == 0}
    trains = {path: spec for path, spec in table.items() if path not in frozen}
    if not frozen:
        return []
    lines = [
        f"frozen: {params.count(frozen):,} of {params.count(table):,} parameters: {_by_part(frozen)}",
        f"trained: {params.count(trains):,}: {_by_part(trains)}",
    ]
    named = {stream for entry in frozen_by(config) for stream in _named(entry, config)}
    for stream in config.streams:
        used = {path for path in table if stream in params.users(path, config)}
        lost = {path: spec for path, spec in frozen.items() if path in used}
        left = {path: spec for path, spec in trains.items() if path in used}
        if lost and named and stream not in named:
            lines.append(f"frozen for {stream} too, which shares them: {_by_part(lost)}")
        if left and not {"attn", "ffn"} & {params.part(path) for path in left}:
            lines.append(
                f"{stream}'s towers are frozen, but what else it uses is trained, so its loss will change: "
                f"{_by_part(left)}; --config.optim.freeze={stream} freezes all of it"
            )
    if not config.init.run:
        lines.append("warning: what is frozen keeps its random initial values: init.run names no run to begin from")
    return lines


def _by_part(table: params.Table) -> str:
    """`attn/text 12,288, embed 33,312`."""
    counts: Counter[str] = Counter()
    for path, spec in table.items():
        part = params.part(path)
        name = part if part in ("embed", "head") else f"{part}/{params.tower(path)}"
        counts[f"{part}/{params.parse(path).tower}" if part in params.BY_STREAM else name] += math.prod(spec.shape)
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def _at_least_1(steps):
    """Steps, which of several runs in one program are traced; a number that Python has stays one."""
    import jax.numpy as jnp

    return max(steps, 1) if isinstance(steps, int) else jnp.maximum(steps, 1)


def _cosine(begin, end, steps) -> "optax.Schedule":
    """optax's `cosine_decay_schedule`, bit for bit, of a number of steps that may be traced."""
    import jax.numpy as jnp

    def rate(n):
        share = end / begin
        turned = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(n, steps) / steps))
        return begin * ((1 - share) * turned + share)

    return rate


def _linear(begin, end, steps) -> "optax.Schedule":
    """optax's `linear_schedule`, bit for bit, of a number of steps that may be traced."""
    import jax.numpy as jnp

    def rate(n):
        return (begin - end) * (1 - jnp.clip(n, 0, steps) / steps) + end

    return rate


def schedule(config: Config) -> "optax.Schedule":
    """Learning rate of step n (from 0): linear warm-up to the peak, then cosine, linear, constant, or wsd: both.

    Of constant, and of wsd before its decay, no rate depends on `run.steps`: such a run can be given more.
    """
    import optax

    o = config.optim
    after = _at_least_1(config.run.steps - o.warmup)
    decays = {
        "cosine": _cosine(o.lr, o.end_lr, after),
        "linear": _linear(o.lr, o.end_lr, after),
        "constant": optax.constant_schedule(o.lr),
    }
    # Joined, so that the flat part is `constant` to the bit, and one may follow the other.
    last = _linear(o.lr, o.end_lr, _at_least_1(o.decay_steps))
    decays["wsd"] = optax.join_schedules([decays["constant"], last], [after - o.decay_steps])

    def warmup(n):
        return o.lr * (n + 1) / _at_least_1(o.warmup)  # the first step already moves

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
        def cast(tree):
            return jax.tree.map(lambda x: x.astype(dtype), tree)

        return state._replace(mu=cast(state.mu), nu=cast(state.nu))

    def update(updates, state, weights):
        updates, state = adam.update(updates, kept(state, jnp.float32), weights)
        return updates, kept(state, jnp.bfloat16)

    return optax.GradientTransformation(lambda weights: kept(adam.init(weights), jnp.bfloat16), update)


def _is_zero(x) -> bool:
    """False of what is traced, which may be anything."""
    return isinstance(x, (int, float)) and x == 0


RMS = 0.2  # of a step of Muon, as AdamW's is: one rate and one decay serve both (2502.16982, 2.2)


class ByMatrix(NamedTuple):
    """The states of both, each of its own parameters."""

    muon: Any
    adam: Any


def _muon(config: Config) -> "optax.GradientTransformation":
    """Muon (2502.16982) of the matrices that `optim.muon` names, Adam of the others.

    Each matrix is orthogonalised by itself: a layer's, an expert's; q, k, v and o with all their heads, as they
    multiply. Its step is then scaled to the root mean square of AdamW's.
    """
    import optax
    from optax.contrib import MuonDimensionNumbers, scale_by_muon

    o = config.optim
    specs = {path: spec for path, spec in params.table(config).items() if params.by_muon(path, spec, config)}

    def dimensions(updates):
        return params.nest({path: MuonDimensionNumbers(*params.sides(specs[path])) for path in params.paths(updates)})

    adam = _adam(o)
    muon = scale_by_muon(beta=o.momentum, eps=o.eps, mu_dtype=o.moments, weight_dimension_numbers=dimensions)

    def init(weights):
        matrices, others = params.split(weights, specs.__contains__)
        return ByMatrix(muon.init(matrices), adam.init(others))

    def scaled(path, update):
        sizes = [math.prod(specs[path].shape[i] for i in side) for side in params.sides(specs[path])]
        return update * RMS * max(sizes) ** 0.5

    def update(updates, state, weights=None):
        matrices, others = params.split(updates, specs.__contains__)
        matrices, of_muon = muon.update(matrices, state.muon)
        others, of_adam = adam.update(others, state.adam)
        matrices = params.nest({path: scaled(path, x) for path, x in params.paths(matrices).items()})
        return params.merge(matrices, others), ByMatrix(of_muon, of_adam)

    return optax.GradientTransformation(init, update)


def _clipped(grads: dict, norm, most) -> dict:
    """Gradients of this global norm, scaled down to `most` where it is longer (1211.5063).

    By one factor, not as optax's `(g / norm) * most`: a division is never fused into its uses, so that XLA would write
    all gradients once more.
    """
    import jax
    import jax.numpy as jnp

    factor = most / jnp.maximum(norm, most)
    return jax.tree.map(lambda g: g * factor, grads)


def make(config: Config) -> "optax.GradientTransformationExtraArgs":
    """Clip by the global norm, Adam or Muon, decoupled decay (1711.05101), then the rate; decay and rate by path.

    `update` is also given the `norm` of the model's gradients, which the step has at hand.
    With `optim.transfer` a parameter's own factor on the rate comes before its decay, which so is independent of it: in
    a step a weight loses schedule * rule.lr * decay of itself at every width (CompleteP's lambda * m_N, 2505.01618,
    table 1). Causal routers, which only imitate, are clipped by themselves: the model trains as it would without them.
    """
    import optax

    o = config.optim
    decided, table = rules(config), params.table(config)

    def by_path(f):
        def update(updates, weights):
            flat = params.paths(weights)
            return params.nest({p: f(p, u, flat[p]) for p, u in params.paths(updates).items()})

        return optax.stateless(update)

    def clip(updates, state, weights, *, norm):
        imitators, model = params.split(updates, params.is_causal)
        own = optax.tree.norm(imitators)
        return params.merge(_clipped(model, norm, o.clip), _clipped(imitators, own, o.clip)), state

    def decayed(path, update, weight):
        lr, decay = table[path].lr, decided[path].decay
        decay = decay if table[path].decay == 1 else table[path].decay * decay
        update = update if lr == 1 else lr * update
        return update if _is_zero(decay) else update + decay * weight

    return optax.chain(
        optax.GradientTransformationExtraArgs(optax.init_empty_state, clip),
        _muon(config) if o.name == "muon" else _adam(o),
        by_path(decayed),
        by_path(lambda path, update, _: decided[path].lr * update),
        optax.scale_by_learning_rate(schedule(config)),
    )


def told_name(config: Config) -> str:
    """How a report names the optimiser: AdamW, or Muon with AdamW; and how its rates transfer."""
    o = config.optim
    name = {"adamw": "AdamW", "muon": "Muon, and AdamW for the rest"}[o.name]
    bases = {"width": o.base_width, "heads": o.base_head_size, "layers": o.base_layers}
    base = ", ".join(f"{key} {value}" for key, value in bases.items() if value)
    return f"{name}; muP from {base}" if o.transfer else name
