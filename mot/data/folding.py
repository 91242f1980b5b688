"""Several vectors of a unit side by side in one token (`streams.*.entry.fold`): a unit has so many times fewer tokens.

`[n, P]` becomes `[n / fold, fold * P]`. A fold divides every unit, or the configuration is refused.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mot.config import Config
from mot.data.mixture import InMemory, Source, Sources
from mot.data.packing import Document, take

Folds = Sequence[int]  # by stream; 1 = not folded


def of(config: Config) -> Folds:
    return [stream.entry.fold if stream.latent else 1 for stream in config.streams.values()]


def unit_faults(config: Config, tokens: Mapping[str, int]) -> Iterator[str]:
    """What units of the data need of the configuration. `tokens` a unit has by representation, 0 where they differ."""
    for name, stream in config.streams.items():
        e = stream.entry
        n = tokens.get(stream.holds, 0)
        if not stream.latent or stream.holds not in tokens or (e.fold == 1 and not e.queries):
            continue
        wanted = e.fold * (e.queries or 1)
        if (e.queries and n != wanted) or not n or n % wanted:
            found = f"{n} vectors" if n else "units of different lengths"
            asks = f"fold * queries = {e.fold} * {e.queries} = {wanted}" if e.queries else f"a multiple of {wanted}"
            yield (
                f"streams.{name}.entry.fold{', queries' * bool(e.queries)}: the data has {found} in a unit of "
                f"{stream.holds}; it must have {asks}; change them, or prepare units of one length"
            )


def data(x: np.ndarray, fold: int) -> np.ndarray:
    """Vectors `[n, P]` of a stream, folded; ids, and what is not folded, as they are."""
    return x if fold == 1 else x.reshape(len(x) // fold, -1)


def undone(x: np.ndarray, fold: int) -> np.ndarray:
    return x if fold == 1 else x.reshape(len(x) * fold, -1)


def document(d: Document, folds: Folds) -> Document:
    """A document whose folded streams keep the first of each fold's tokens, with the vectors of all."""
    kept = np.ones(len(d.token), bool)
    for s, fold in enumerate(folds):
        mine = d.stream == s
        kept[mine] = np.arange(mine.sum()) % fold == 0
    if kept.all():
        return d
    values = {s: data(x, folds[s]) for s, x in d.values.items()}
    return take(d._replace(values={}), np.flatnonzero(kept))._replace(values=values)


class Folded:
    """A source whose documents are folded."""

    def __init__(self, source: Source, folds: Folds):
        self.source, self.folds = source, np.asarray(folds)
        self.name, self.count = source.name, source.count
        self.units = np.maximum(source.units // self.folds, 1)

    def lengths(self, i: int) -> np.ndarray:
        return self.source.lengths(i) // self.folds

    def cuts(self, i: int) -> np.ndarray:
        by_stream = self.source.cuts(i)[:, 1:] // self.folds
        return np.concatenate([by_stream.sum(1, keepdims=True), by_stream], axis=1)

    def read(self, i: int) -> Document:
        return document(self.source.read(i), self.folds)

    def name_of(self, doc_id: int) -> str:
        return self.source.name_of(doc_id)

    def totals(self) -> np.ndarray:
        return self.source.totals() // self.folds


def sources(found: Sources, config: Config) -> Sources:
    """The sources with what the configuration folds folded."""
    folds = of(config)
    if max(folds) == 1:
        return found

    def folded(source: Source) -> Source:
        if isinstance(source, InMemory):
            documents = tuple(document(d, folds) for d in source.documents)
            return source._replace(documents=documents, units=np.maximum(source.units // folds, 1))
        return Folded(source, folds)

    return found._replace(all=tuple(map(folded, found.all)))
