"""Where modalities pull a parameter apart: how their gradients agree, by component and layer.

The gradient of a modality is that of its own part of the training loss, over the same Z, so that the gradients of all
modalities add up to that of the whole loss (but for the routers' own losses, which belong to no modality). Cosine below
0: a step that helps one hurts the other (2001.06782). Only parameters that tokens of both modalities pass through are
compared; embedding and head are of all that have ids.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mot.batches import Batch
from mot.config import Config, Experts, Sections
from mot.model import params
from mot.objectives.sums import modality

ENDS, ALL = "ends", "all"  # in place of a layer: what lies outside the blocks; all of a component, or of the model


def of_modality(batch: Batch, m: jax.Array | int, config: Config) -> Batch:
    """The batch in which only targets of modality m weigh; its loss over the whole batch's Z is m's part of it."""

    def alone(name, tokens):
        return tokens.replace(weight=jnp.where(modality(tokens, name, config) == m, tokens.weight, 0))

    return {name: alone(name, tokens) for name, tokens in batch.items()}


def without_routers(config: Config) -> Sections:
    """The configuration without the routers' own losses and a contrastive term, which are of no one modality.

    What a term contrasts lies apart in the batch, as segments amid others: attention must know, so it stays there, with
    a weight of 0. The result is not checked: `config` was.
    """

    def plain(experts: Experts) -> Experts:
        by_loss = experts.balance in ("loss", "pooled")
        balance = dict(balance="none", balance_rate=0.0) if by_loss else {}
        return dataclasses.replace(experts, **balance, balance_loss=0.0, z_loss=0.0)

    attn, ffn = ({name: plain(e) for name, e in group.items()} for group in (config.attn, config.ffn))
    term = dataclasses.replace(config.objective.contrastive, weight=0.0)
    objective = dataclasses.replace(config.objective, contrastive=term)
    as_it_is = {field.name: getattr(config, field.name) for field in dataclasses.fields(Sections)}
    return Sections(**as_it_is | dict(attn=attn, ffn=ffn, objective=objective))


def users(path: str, config: Config) -> list[int]:
    """The numbers, in `config.modalities`, of those whose tokens pass through a parameter."""
    found = {config.streams[stream].modality for stream in params.users(path, config)}
    return [m for m, name in enumerate(config.modalities) if name in found]


def products(grads: Sequence[dict], config: Config) -> dict[str, jax.Array]:
    """Scalar products of the modalities' gradients, `[L, M, M]` float32, of each parameter that several use, by path.

    `grads` are by modality; L counts the layers of the parameter's stack, and is 1 outside the blocks. The products
    with a modality that does not use the parameter are there too: `numbers` leaves them out.
    """
    flat = [params.paths(grad) for grad in grads]
    shared = [path for path in flat[0] if len(users(path, config)) > 1 and not params.is_causal(path)]
    return {path: _products([of_one[path] for of_one in flat], bool(params.parse(path).stack)) for path in shared}


def _products(grads: Sequence[jax.Array], in_blocks: bool) -> jax.Array:
    layers = [grad if in_blocks else grad[None] for grad in grads]

    def product(a, b):
        return (a.astype(jnp.float32) * b.astype(jnp.float32)).sum(tuple(range(1, a.ndim)))

    # One after another: a batched product would need the gradients of all modalities once more.
    rows = [jnp.stack([product(a, b) for b in layers], axis=-1) for a in layers]
    return jnp.stack(rows, axis=-2)


def numbers(found: Mapping[str, np.ndarray], config: Config) -> dict[str, float]:
    """`gradients/cosine/{a}/{b}/{component}/{layer}` and `gradients/ratio/...`, |a| / |b|, of `products` on the host.

    Components are attn, ffn, norm, embed, head, and `all` of them; in place of a layer's number stand `ends` (outside
    the blocks) and `all`. A place where one of both has no gradient has no number.
    """
    sums: dict[tuple[int, int, str, str], np.ndarray] = {}
    for path, found_LMM in found.items():
        parsed = params.parse(path)
        numbered = [str(i) for i, stack in enumerate(config.stacks) if stack == parsed.stack] or [ENDS]
        for a, b in itertools.combinations(users(path, config), 2):
            for layer, found_MM in zip(numbered, np.asarray(found_LMM, np.float64), strict=True):
                three = np.array([found_MM[a, a], found_MM[b, b], found_MM[a, b]])
                for place in ((parsed.component, layer), (parsed.component, ALL), (ALL, ALL)):
                    key = (a, b, *place)
                    sums[key] = sums.get(key, 0) + three
    result = {}
    for (a, b, component, layer), (aa, bb, ab) in sums.items():
        if aa == 0 or bb == 0:
            continue
        where = f"{config.modalities[a]}/{config.modalities[b]}/{component}/{layer}"
        result[f"gradients/cosine/{where}"] = float(ab / math.sqrt(aa) / math.sqrt(bb))
        result[f"gradients/ratio/{where}"] = math.sqrt(aa / bb)
    return result
