"""Does a model follow its prompt? A unit's loss after its own prompt, against its loss after another document's.

The control is paired: the same model, the same unit, and a prompt of the same kind; so what a unit costs in itself, and
what any prompt tells of the modality to come, is in both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mot.config import Config
from mot.data import layout
from mot.data.layout import Format, Stretch
from mot.data.mixture import Source
from mot.data.records import count
from mot.measures.figures import Figure, resampled, share
from mot.measures.likelihood import Score, too_long

READ = 50  # times as many documents as are measured are looked through at most


Direction = tuple[tuple[str, ...], ...]  # the streams of a prompt, each once, and those of the unit after it


class Prompted(NamedTuple):
    """A document's last unit, in all its representations, and all before it."""

    prompt: tuple[Stretch, ...]
    unit: tuple[Stretch, ...]

    @property
    def direction(self) -> Direction:
        return tuple(tuple(dict.fromkeys(s.stream for s in part)) for part in self)


def by_direction(
    source: Source, most: int, config: Config, format: Format, seed: int = 0
) -> dict[Direction, list[Prompted]]:
    """Documents of a source whose last unit follows something, in a drawn order, `most` of each direction."""
    found: dict[Direction, list[Prompted]] = {}
    order = np.random.default_rng(seed).permutation(source.count)
    for i in order[: READ * most]:
        if np.count_nonzero(source.lengths(i)) < 2 or too_long(source.lengths(i), config):
            continue
        try:
            stretches = layout.stretches(source.read(i), config, format)
        except ValueError:  # it is damaged
            continue
        last = max((i for i, stretch in enumerate(stretches) if not stretch.is_same), default=0)
        if last > 0:
            one = Prompted(tuple(stretches[:last]), tuple(stretches[last:]))
            of_direction = found.setdefault(one.direction, [])
            if len(of_direction) < most:
                of_direction.append(one)
    return dict(sorted(found.items()))


def crossed(documents: Sequence[Prompted], config: Config, seed: int = 0) -> list[tuple[Prompted, Prompted]]:
    """Each document, and it with the prompt of another one, drawn among those whose prompt differs.

    One that has none, or whose unit and the other's prompt fit no row together, is left out.
    """
    rng = np.random.default_rng(seed)
    keys = [_key(d.prompt) for d in documents]
    pairs = []
    for d, key in zip(documents, keys, strict=True):
        for j in rng.permutation(len(documents)):
            other = d._replace(prompt=documents[j].prompt)
            if keys[j] != key and not too_long(_tokens(other, config), config):
                pairs.append((d, other))
                break
    return pairs


def _key(stretches: Sequence[Stretch]) -> tuple:
    return tuple((s.stream, np.asarray(s.data).tobytes()) for s in stretches)


def _tokens(d: Prompted, config: Config) -> np.ndarray:
    """By stream, with <bos>, <eos> and two markers for each unit at most, which are text."""
    names = list(config.streams)
    counts = np.zeros(len(names), int)
    for stretch in (*d.prompt, *d.unit):
        counts[names.index(stretch.stream)] += count(stretch.data) // config.streams[stretch.stream].entry.fold
    counts[[s.holds for s in config.streams.values()].index("text")] += 2 + 2 * len(d.prompt + d.unit)
    return counts


def figures(pairs: Sequence[tuple[Prompted, Prompted]], score: Score, config: Config, format: Format) -> dict:
    """Of documents of one direction, each with its control.

    `own` and `other`: nats of the unit, its markers and end included, after its own prompt and after the other's.
    `gain`: other less own. `better`: the share of units to which their own prompt is worth more; ties are halves. `p`:
    of the one-sided exact sign test that it is no more than half; ties are left out. `p_rank`: of Wilcoxon's one-sided
    signed-rank test, which counts how much each unit gains and takes gains to be symmetric about their middle.
    """
    made = [
        layout.document([*d.prompt, *d.unit], config, format, scored=len(d.prompt), ends=True)
        for both in pairs
        for d in both
    ]
    own, other = -score(made).reshape(-1, 2).T
    gain = other - own
    wins = (gain > 0) + 0.5 * (gain == 0)
    decided = int((gain != 0).sum())
    p = stats.binomtest(int((gain > 0).sum()), decided, 0.5, "greater").pvalue if decided else 1.0
    p_rank = stats.wilcoxon(gain, alternative="greater").pvalue if decided else 1.0
    found = {"own": own, "other": other, "gain": gain}
    told = {name: resampled(x, np.mean, 0.0 if name == "gain" else None) for name, x in found.items()}
    of_tests = {"p": Figure(float(p), n=decided), "p_rank": Figure(float(p_rank), n=decided)}
    return told | {"better": share(wins, 0.5)} | of_tests
