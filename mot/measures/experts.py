"""Whose experts are these: how modalities share the experts of a tower, layer by layer.

Counts are of choices that found a place. `specialisation` and `mutual_information` are in the rows of evaluations.
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from mot.config import Config
from mot.measures import states
from mot.model import params


class Loads(NamedTuple):
    """Of one tower, by layers that have experts; sums over tokens, which add up over batches."""

    tokens_LM: jax.Array
    load_LME: jax.Array


def watch(_) -> states.Watch:
    """Finds the `Loads` of a batch, by `component/tower`."""

    def see(_):
        return ()

    def tell(_, reports):
        return {name: Loads(report.tokens_BM.sum(1), report.load_BME.sum(1)) for name, report in reports.items()}

    return states.Watch(see, tell)


def shares(tokens_M: np.ndarray, load_ME: np.ndarray) -> np.ndarray:
    """`[M]`: which part of a layer's experts is each modality's; they add up to 1.

    An expert's choices by each modality are divided by the modality's tokens, so that one with more tokens has no more
    of it by that alone; their parts are averaged over the experts that anybody chose. Even use gives 1 / M.
    """
    rate_ME = load_ME / np.maximum(tokens_M, 1)[:, None]
    used = rate_ME.sum(0) > 0
    return (rate_ME[:, used] / rate_ME[:, used].sum(0)).mean(1) if used.any() else np.full(len(tokens_M), np.nan)


def overlap(a_E: np.ndarray, b_E: np.ndarray) -> float:
    """How far two modalities use the same experts: the sum of the smaller parts of their choices (1 - total variation).

    1 = the same experts as often; 0 = none in common.
    """
    return float(np.minimum(a_E / max(a_E.sum(), 1), b_E / max(b_E.sum(), 1)).sum())


def used(load_E: np.ndarray) -> float:
    """How many experts a modality uses: the exponential of the entropy of its choices, from 1 to E."""
    p_E = load_E / load_E.sum()
    return float(np.exp(-(p_E * np.log(np.where(p_E > 0, p_E, 1))).sum()))


def numbers(found: Mapping[str, Loads], config: Config) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """`experts/{component/tower}/share/{modality}/{layer}`, `.../overlap/{layer}`, a mean over pairs of modalities, and
    `.../used/{modality}/{layer}`. A tower of one modality has `used` alone. Arrays: the sums of `Loads`."""
    result, arrays = {}, {}
    for reported, loads in found.items():
        name, stack = params.of_report(reported)
        layers = [i for i, of_layer in enumerate(config.stacks) if of_layer == stack]
        tokens_LM, load_LME = (np.asarray(x, np.float64) for x in loads)
        present = np.flatnonzero(load_LME.sum((0, 2)) > 0)
        arrays |= {f"{reported}/tokens_LM": tokens_LM, f"{reported}/load_LME": load_LME}
        for layer, tokens_M, load_ME in zip(layers, tokens_LM[:, present], load_LME[:, present], strict=True):
            named = [config.modalities[m] for m in present]
            for modality, load_E in zip(named, load_ME, strict=True):
                if load_E.sum():
                    result[f"experts/{name}/used/{modality}/{layer}"] = used(load_E)
            if len(present) > 1:
                pairs = itertools.combinations(load_ME, 2)
                result[f"experts/{name}/overlap/{layer}"] = float(np.mean([overlap(a, b) for a, b in pairs]))
                both = zip(named, shares(tokens_M, load_ME), strict=True)
                result |= {f"experts/{name}/share/{modality}/{layer}": float(x) for modality, x in both}
    return result, arrays
