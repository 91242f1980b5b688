"""Points of a search: values by dotted key, drawn from ranges that are data, the same for every architecture.

A range has a lower and an upper end, and is linear or logarithmic:

RANGES = {"optim.lr": log(3e-4, 3e-2), "optim.beta2": linear(0.9, 0.99)}
found = rows(RANGES, 16)    # of a sweep: product(archs("dense+mot"), found), with the same points in every arm

Points are Sobol's (scrambled), which fill ranges evenly, or random. A longer search begins with the points of a shorter
one, and so finds the runs of it done.
"""

import math
import random
from collections.abc import Mapping
from typing import NamedTuple

from configs import base

HOW = ("sobol", "random")
DIGITS = 4  # of a value: names of runs and their configurations stay readable, and no result depends on more
MOST = 1024


class Range(NamedTuple):
    """Where the values of a key lie."""

    low: float
    high: float
    scale: str  # linear, log

    def at(self, share: float) -> float:
        """The value at a share of the way, from 0 to 1."""
        if self.scale == "linear":
            return self.low + share * (self.high - self.low)
        return self.low * (self.high / self.low) ** share


def linear(low: float, high: float) -> Range:
    return Range(low, high, "linear")


def log(low: float, high: float) -> Range:
    return Range(low, high, "log")


# For rungs of `sizes.TINY`, whose end_lr lies below these rates. What matters most at a small size: the peak rate, how
# long second moments are remembered, and how much weights decay.
RANGES = {
    "optim.lr": log(3e-4, 3e-2),
    "optim.beta2": linear(0.9, 0.99),
    "optim.base_rules[1].decay": log(0.01, 1.0),
}


def points(ranges: Mapping[str, Range], count: int, how: str = "sobol", seed: int = 0) -> list[dict[str, float]]:
    """So many points, each a value by dotted key. Raises `ValueError` for a range or a number that is none."""
    base.chosen("how", how, HOW)
    if not 1 <= count <= MOST:
        raise ValueError(f"points={count}: must be 1 to {MOST}")
    if faults := [fault for key, one in ranges.items() if (fault := _fault(key, one))] or _none(ranges):
        raise ValueError("; ".join(faults))
    shares = (_sobol if how == "sobol" else _random)(len(ranges), count, seed)
    return [
        {key: _rounded(one.at(share)) for (key, one), share in zip(ranges.items(), row, strict=True)} for row in shares
    ]


def rows(ranges: Mapping[str, Range], count: int, how: str = "sobol", seed: int = 0) -> list[dict]:
    """The points as rows of a sweep, each with its part of a run's name."""
    return [point | {"run.name": f"point{i}"} for i, point in enumerate(points(ranges, count, how, seed))]


def _none(ranges: Mapping[str, Range]) -> list[str]:
    return [] if ranges else ["no range; give one as {'optim.lr': log(3e-4, 3e-2)}"]


def _fault(key: str, one: Range) -> str:
    """What is wrong with a range; "" where nothing is."""
    shown = f"{key}: {one.scale}({one.low}, {one.high})"
    base.chosen("scale", one.scale, ("linear", "log"))
    if not (math.isfinite(one.low) and math.isfinite(one.high) and one.low < one.high):
        return f"{shown}: must go from a lower to a higher number"
    if one.scale == "log" and one.low <= 0:
        return f"{shown}: a logarithmic range begins above 0; raise it, or write linear"
    return ""


def _sobol(dimensions: int, count: int, seed: int) -> list[list[float]]:
    from scipy.stats import qmc  # it takes a second, which other configurations save

    # Sobol's points are balanced in powers of two alone; of these the first are taken.
    return qmc.Sobol(dimensions, rng=seed).random_base2(max(0, math.ceil(math.log2(count)))).tolist()[:count]


def _random(dimensions: int, count: int, seed: int) -> list[list[float]]:
    source = random.Random(seed)
    return [[source.random() for _ in range(dimensions)] for _ in range(count)]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
