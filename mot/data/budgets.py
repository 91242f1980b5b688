"""How many tokens of a row each stream gets. The mixture decides, and images and clips, which cannot be cut."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mot.config import Config
from mot.data.mixture import Mixture, Sources
from mot.errors import UserError

WELL_FILLED = 0.97


def resolve(config: Config, sources: Sources) -> Config:
    """The configuration with budgets and `max_tokens` in place of zeros, as the first stage's mixture asks.

    Raises `UserError` if `data.length` is too short for an image or clip.
    """
    streams = config.streams
    if all(s.budget and s.max_tokens for s in streams.values()):
        return config
    written = np.array([s.budget for s in streams.values()])
    if not written.all():
        mean, units = means(config, sources), _units(config, sources)
        divided = np.where(written, written, best(mean, units, config.data.length))
        later = np.max([mean, *(means(config, sources, stage.shares) for stage in config.data.stages)], axis=0)
        if (short := (later > 0) & (written == 0) & ((divided < units) | (mean == 0))).any():
            m = int(short.argmax())
            why = f"one of its images or clips has {units[m]}"
            why = why if mean[m] else "the first stage's mixture has none of it"
            raise UserError(
                f"data.length: {config.data.length} tokens leave streams.{list(streams)[m]} {divided[m]}, and {why}; "
                f"raise data.length, or write its budget"
            )
        written = divided
    changed = {
        name: dataclasses.replace(s, budget=int(b), max_tokens=min(s.max_tokens or int(b), int(b)))
        for (name, s), b in zip(streams.items(), written, strict=True)
    }
    return dataclasses.replace(config, streams=changed)


def means(config: Config, sources: Sources, shares: Mapping[str, float] | None = None) -> np.ndarray:
    """`[M]` tokens of an average document of the mixture, by stream."""
    data = config.data if shares is None else dataclasses.replace(config.data, shares=dict(shares))
    data = dataclasses.replace(data, stages=())
    period = Mixture(sources, data, 0, [s.modality for s in config.streams.values()]).periods[0]
    weights = period.total / period.total.sum()
    copies = np.array([s.copies for s in config.streams.values()])
    taken = [
        (w, copies * s.totals() / max(s.count, 1)) for w, s in zip(weights, sources.all, strict=True) if w and s.count
    ]
    if not taken:
        raise UserError("data.length: nobody has counted a stream's tokens; write the streams' budgets")
    return sum((w * mean for w, mean in taken), np.zeros(len(config.streams)))


def best(mean_M: np.ndarray, units_M: np.ndarray, length: int) -> np.ndarray:
    """`[M]` the budgets that a mixture fills best, at most `length` tokens in all; the largest of these.

    A budget of images is a multiple of an image. The others follow it, and are multiples of 128, 64, ... 1, of the
    largest that costs less than half a percent.
    """
    present = mean_M > 0
    whole = present & (units_M > 1)
    free = present & ~whole
    fullest = None
    for total in np.arange(length, length // 2, -max(length // 400, 1)):
        ideal = mean_M / mean_M.sum() * total
        budget = np.where(whole, np.maximum(np.round(ideal / np.maximum(units_M, 1)), 1) * units_M, ideal)
        if free.any() and (rest := total - budget[whole].sum()) > 0:
            rate = rest / mean_M[free].sum()  # documents a row
            if whole.any():
                rate = min(rate, (budget[whole] / mean_M[whole]).min())
            budget = np.where(free, mean_M * rate, budget)
        budget = np.array([b if w else _rounded(b) for b, w in zip(budget, whole, strict=True)])
        worst = np.floor(200 * bounds(budget, mean_M, units_M)[present].min())
        if budget.sum() <= length and (fullest is None or (worst, budget.sum()) > fullest[0]):
            fullest = (worst, budget.sum()), budget
    if fullest is None:
        raise UserError(f"data.length: {length} tokens are too few for images or clips of {units_M.max()}; raise it")
    return np.maximum(fullest[1], 1).astype(int)


def bounds(budgets_M, mean_M, units_M) -> np.ndarray:
    """`[M]` the fraction of each budget that a packing can fill in the long run, if every document is placed.

    1 for a stream of which the mixture has nothing.
    """
    usable = budgets_M // np.maximum(units_M, 1) * np.maximum(units_M, 1)
    used = mean_M > 0
    rate = (usable[used] / mean_M[used]).min()  # documents a row
    return np.where(used, rate * mean_M / np.maximum(budgets_M, 1), 1.0)


def reachable(config: Config, sources: Sources, shares: Mapping[str, float] | None = None) -> dict[str, float]:
    """`bounds` by stream, for these shares or the configuration's; empty if a stream's tokens are not counted."""
    try:
        mean = means(config, sources, shares)
    except UserError:
        return {}
    budgets = np.array([s.budget for s in config.streams.values()])
    return dict(zip(config.streams, bounds(budgets, mean, _units(config, sources)).tolist(), strict=True))


def advice(config: Config, sources: Sources) -> list[str]:
    """Advice on budgets that the mixture of some stage cannot fill well."""
    said = []
    total = sum(s.budget for s in config.streams.values())
    stages = [("", config.data.shares), *((f" from step {s.step} on", s.shares) for s in config.data.stages)]
    for when, shares in stages:
        fills = reachable(config, sources, shares)
        if min(fills.values(), default=1.0) >= WELL_FILLED:
            continue
        told = ", ".join(f"{name} {100 * x:.1f} %" for name, x in fills.items())
        said.append(f"the mixture{when} can fill of the budgets at most {told}")
        better = dict(
            zip(fills, best(means(config, sources, shares), _units(config, sources), total).tolist(), strict=True)
        )
        if better != {name: s.budget for name, s in config.streams.items()}:
            said[-1] += "; better: " + ", ".join(f"streams.{name}.budget={b}" for name, b in better.items())
        elif length := _long_enough(means(config, sources, shares), _units(config, sources), total):
            said[-1] += (
                f"; rows of data.length={length} could be full, or other data.shares: these count {config.data.per}"
            )
    return said


def _long_enough(mean_M, units_M, length: int) -> int:
    """The shortest row, by doubling, whose budgets can be filled well; 0 if it is too long to train on."""

    def fills(n):
        return bounds(best(mean_M, units_M, n), mean_M, units_M).min()

    return next((n for n in (length << k for k in range(1, 8)) if n <= 2**17 and fills(n) >= WELL_FILLED), 0)


def _units(config: Config, sources: Sources) -> np.ndarray:
    copies = np.array([s.copies for s in config.streams.values()])
    return np.max([source.units for source in sources.all], axis=0) * copies


def _rounded(budget: float) -> float:
    for step in (128, 64, 32, 16, 8, 4, 2):
        if abs((rounded := np.ceil(budget / step) * step) - budget) <= 0.005 * budget:
            return rounded
    return np.ceil(budget)
