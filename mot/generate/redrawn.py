"""Held-out media, and others that a run draws in their place."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mot.config.options import Settings
from mot.data import layout
from mot.generate import opened
from mot.generate.opened import LoadedModel
from mot.generate.sampling import NO_SIZES
from mot.measures.likelihood import too_long


class Redrawn(NamedTuple):
    """Ids or vectors of units, one by one: held-out ones, and one drawn after what precedes each in its document."""

    real: list[np.ndarray]
    generated: list[np.ndarray]


def media(
    model: LoadedModel,
    modality: str,
    most: int,
    settings: Settings,
    length: int,
    sizes: Mapping[str, tuple[int, ...]] = NO_SIZES,
) -> dict[str, Redrawn]:
    """By source, the first unit of a modality of at most `most` held-out documents, in a drawn order.

    `length` and `sizes`: of units that have no fixed length, as in `Sampler`.
    """
    stream = opened.stream_of(model.config, modality)
    found = {}
    for source in model.held_out.read_by(model.config.data):
        prompts, real = _held_out(model, source, stream, most)
        if not real:
            continue
        title = f"drawing {modality} of {source.name}"
        how = dict(text=0, media=1, opens=stream, length=length, sizes=sizes)
        rows = opened.rows(model, prompts, settings, title, 0, **how)
        drawn = [row.parts[0].data for row in rows]
        found[source.name] = Redrawn(real, [data for data in drawn if len(data)])  # one of any length may be empty
    return found


def _held_out(model: LoadedModel, source, stream: str, most: int) -> tuple[list, list[np.ndarray]]:
    """What precedes the units, and the units."""
    number = list(model.config.streams).index(stream)
    prompts, real = [], []
    for i in np.random.default_rng(0).permutation(source.count):
        if len(real) == most:
            break
        if not source.lengths(i)[number] or too_long(source.lengths(i), model.config):
            continue
        try:
            parts = layout.stretches(source.read(i), model.config, model.format)
        except ValueError:  # it is damaged
            continue
        first = next(n for n, part in enumerate(parts) if part.stream == stream)
        prompts.append(parts[:first])
        real.append(parts[first].data)
    return prompts, real
