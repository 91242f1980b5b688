"""Where in the network modalities meet or part: numbers of probes.jsonl by layer, architecture and step of training.

A probe's row has numbers by name, whose last part is the layer: `gradients/cosine/text/image/ffn/3`. What stands before
it is one line of a picture. A number of no single layer (`.../ffn/all`) is in the table alone.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from .runs import TrainedRun

Groups = dict[str, list[TrainedRun]]
MOST = 8  # panels of a picture; the table has all
MOST_TOLD = 1e30  # numbers beyond it, and NaN, are none that was measured


class Kind(NamedTuple):
    title: str
    reads: str  # how a reader understands it
    even: float | None = None  # where nothing is told: a line is drawn there


# By what a number's name begins with; of experts by its third part, as the second is a tower's.
KINDS = {
    "gradients/cosine": Kind(
        "Do modalities pull shared parameters the same way?",
        "The cosine of two modalities' gradients on the parameters that they share. Above 0 one's step helps the "
        "other, below 0 it undoes the other's; near 0 they hardly meet.",
        0.0,
    ),
    "gradients/ratio": Kind(
        "Whose gradient is longer?",
        "The norm of one modality's gradient by the other's, on the parameters that they share. At 1 they are equal.",
        1.0,
    ),
    "representation/gap": Kind(
        "How far apart do modalities lie?",
        "The distance of two modalities' mean directions after each layer, on the unit sphere: 0 is together, 2 "
        "opposite (Liang et al., arXiv:2203.02053).",
        0.0,
    ),
    "representation/cosine": Kind(
        "Do modalities point the same way?",
        "The cosine of two modalities' mean directions after each layer: 1 is the same way, 0 is unrelated.",
        0.0,
    ),
    "representation/linear": Kind(
        "Can a linear probe tell modalities apart?",
        "Its accuracy on held-out tokens after each layer: 1 is always right, for two modalities in equal parts 0.5 "
        "is chance.",
    ),
    "representation/cka": Kind(
        "How alike are modalities' representations?",
        "Centred kernel alignment after each layer: 1 is alike but for rotation and scale, 0 is unrelated.",
        0.0,
    ),
    "representation/cka_debiased": Kind(
        "How alike are they, corrected for few tokens?",
        "Centred kernel alignment with its bias taken off, which is above 0 by chance where tokens are few.",
        0.0,
    ),
    "attention": Kind(
        "Who looks at whom?",
        "The share of attention's mass that goes from one stream's tokens to another's, over what uniform attention "
        "would give. At 1 it is as much as chance.",
        1.0,
    ),
    "experts/share": Kind(
        "Which modality do experts serve?",
        "A modality's share of the choices in a layer over its share of the tokens. At 1 it is served as often as "
        "it comes.",
        1.0,
    ),
    "experts/used": Kind(
        "How many experts does a modality use?",
        "The exponential of the entropy of its choices: from 1, always the same, to all of them, evenly.",
        1.0,
    ),
    "experts/overlap": Kind(
        "Do modalities use the same experts?",
        "The overlap of the sets of experts that modalities use: 1 is the same experts, 0 is none in common.",
        0.0,
    ),
}


MOVES = ("gradients/cosine", "representation/gap", "experts/share")  # whose change over training is drawn, too


def table(groups: Groups) -> pd.DataFrame:
    """A row a number: group, arch, run, step, kind, series, layer, value. Names that say no layer have -1."""
    rows = []
    for label, group in groups.items():
        for run in group:
            for probe in run.probes:
                for name, value in probe.items():
                    if "/" in name and (number := _number(value)) is not None:
                        kind, series, layer = _parts(name)
                        common = (label, run.arch, str(run.path), probe["step"])  # names may be the same
                        rows.append((*common, kind, series, layer, number))
    return pd.DataFrame(rows, columns=["group", "arch", "run", "step", "kind", "series", "layer", "value"])


def _number(value: object) -> float | None:
    """None of what no probe measures: a ratio of norms is far below `MOST_TOLD`, and pictures cannot show more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -MOST_TOLD < value < MOST_TOLD:
        return None
    return float(value)


def _parts(name: str) -> tuple[str, str, int]:
    """`gradients/cosine`, `text/image/ffn` and 3 of gradients/cosine/text/image/ffn/3."""
    path, _, last = name.rpartition("/")
    layer = int(last) if re.fullmatch(r"\d{1,4}", last, re.ASCII) else -1
    parts = (path if layer >= 0 else name).split("/")
    if parts[0] == "experts":
        measure = next((p for p in ("share", "overlap", "used") if p in parts), "")
        return f"experts/{measure}", " ".join(p for p in parts[1:] if p != measure), layer
    n = 1 if parts[0] == "attention" else 2
    joint = " to " if parts[0] == "attention" else ", "
    return "/".join(parts[:n]), joint.join(parts[n:]), layer


def by_layer(found: pd.DataFrame, kind: str) -> dict[str, dict[str, np.ndarray]]:
    """`[series][group]`: an array `[runs, layers]` of each run's newest step; NaN where a layer has none."""
    rows = found[(found.kind == kind) & (found.layer >= 0)]
    rows = rows[rows.step == rows.groupby("run").step.transform("max")]
    return _arrays(rows, "layer", layers(found, kind))


def over_training(found: pd.DataFrame, kind: str) -> dict[str, dict[str, np.ndarray]]:
    """As `by_layer`, `[runs, steps]`, a mean over layers; empty where there is one step alone. Its steps: `steps`."""
    rows = found[(found.kind == kind) & (found.layer >= 0)]
    if rows.step.nunique() < 2:
        return {}
    means = rows.groupby(["group", "run", "series", "step"], as_index=False, sort=False).value.mean()
    return _arrays(means, "step", steps(found, kind))


def steps(found: pd.DataFrame, kind: str) -> list[int]:
    """At which a kind was measured, in any run."""
    return sorted(found[(found.kind == kind) & (found.layer >= 0)].step.unique().tolist())


def layers(found: pd.DataFrame, kind: str) -> list[int]:
    return sorted(found[(found.kind == kind) & (found.layer >= 0)].layer.unique().tolist())


def _arrays(rows: pd.DataFrame, along: str, places: list[int]) -> dict[str, dict[str, np.ndarray]]:
    result: dict[str, dict[str, np.ndarray]] = {}
    for (series, group), of in rows.groupby(["series", "group"], sort=False):
        wide = of.pivot_table(index="run", columns=along, values="value").reindex(columns=places)
        result.setdefault(series, {})[group] = wide.to_numpy()
    return dict(list(result.items())[:MOST])


def kinds(found: pd.DataFrame) -> Sequence[str]:
    """Those that were measured, in the order of a page."""
    return [kind for kind in KINDS if len(layers(found, kind))]
