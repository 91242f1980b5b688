"""Documents into rows: a plan from lengths alone, then the row's arrays with every integer a token carries."""

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mot.batch import Batch, Tokens


class Document(NamedTuple):
    """One document in document order; arrays of n tokens."""

    source: int
    doc_id: int
    token: np.ndarray  # int32, id in the unified vocabulary
    stream: np.ndarray  # uint8, index of the stream the token travels in
    weight: np.ndarray  # float32, of this token as a target; 0 where the format forces it
    unit: np.ndarray  # int32, image or clip of the document, from 1; 0 = none
    span: np.ndarray  # int32, bidirectional group of the document, from 1; 0 = none
    private: np.ndarray  # bool, seen inside its own span alone


def document(source: int, doc_id: int, token, stream, weight=None, unit=None, span=None, private=None) -> Document:
    """A document, absent fields filled in: every token weighs 1, no units, no spans, nothing private."""
    n = len(token)
    field = lambda x, fill, dtype: np.full(n, fill, dtype) if x is None else np.asarray(x, dtype)
    return Document(
        source,
        doc_id,
        np.asarray(token, np.int32),
        field(stream, 0, np.uint8),
        field(weight, 1, np.float32),
        field(unit, 0, np.int32),
        field(span, 0, np.int32),
        field(private, False, bool),
    )


class Plan:
    """Which documents of an endless stream share each row: best fit with a bounded look-ahead.

    `lengths(g)` gives the tokens of document g in each stream. The plan depends on nothing else, so every host makes
    the same one; (`position`, `waiting`) is its whole state, and a resumed run makes it again from the first row on. A
    row starts with the document that has waited longest, so none starves; then documents that need several streams,
    being harder to place; then whatever leaves least room.
    """

    def __init__(self, lengths: Callable[[int], np.ndarray], budgets: Sequence[int], lookahead: int):
        self.lengths, self.budgets, self.lookahead = lengths, np.asarray(budgets), lookahead
        self.position, self.waiting = 0, []  # the next document to take in; those taken in and not yet placed
        self.rows: list[list[int]] = []

    def row(self, r: int) -> list[int]:
        """The documents of row r, in document order."""
        while len(self.rows) <= r:
            self.rows.append(self._next_row())
        return self.rows[r]

    def _next_row(self) -> list[int]:
        while len(self.waiting) < self.lookahead:
            if (self.lengths(self.position) > self.budgets).any():
                raise ValueError(
                    f"document {self.position} has {self.lengths(self.position)} tokens by stream; the budgets are "
                    f"{self.budgets}; raise the budgets or split it"
                )
            self.waiting.append(self.position)
            self.position += 1
        lengths = np.stack([self.lengths(g) for g in self.waiting])
        several = (lengths > 0).sum(1) > 1
        free = np.ones(len(lengths), bool)
        room = self.budgets.copy()
        chosen = [0]
        while True:
            free[chosen[-1]] = False
            room = room - lengths[chosen[-1]]
            fits = free & (lengths <= room).all(1)
            if not fits.any():
                break
            left = (((room - lengths) / self.budgets) ** 2).sum(1)
            chosen.append(int(np.lexsort((left, ~several, ~fits))[0]))
        row = sorted(self.waiting[i] for i in chosen)
        self.waiting = [g for i, g in enumerate(self.waiting) if free[i]]
        return row


def pack(rows: Sequence[Sequence[Document]], streams: Sequence[str], budgets: Sequence[int]) -> Batch:
    """A batch of numpy arrays, one row for each list of documents; raises `ValueError` if they do not fit."""
    packed = [_row(documents, budgets) for documents in rows]
    batch = {field: np.stack([row[field] for row in packed]) for field in packed[0]}
    ends = np.cumsum(budgets)
    return {
        name: Tokens(**{field: x[:, end - budget : end] for field, x in batch.items()})
        for name, budget, end in zip(streams, budgets, ends, strict=True)
    }


def _row(documents: Sequence[Document], budgets: Sequence[int]) -> dict[str, np.ndarray]:
    """The fields of `Tokens` for one row, streams end to end."""
    join = lambda arrays, dtype: np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)
    sizes = [len(d.token) for d in documents]
    each = lambda values, dtype: np.repeat(np.asarray(values, dtype), sizes)
    offset = lambda field: join([np.where(x > 0, x + base, 0) for x, base in _bases(documents, field)], np.int32)
    stream = join([d.stream for d in documents], np.int64)
    used = np.bincount(stream, minlength=len(budgets))
    if len(used) > len(budgets) or (used > budgets).any():
        raise ValueError(f"documents with {used} tokens by stream do not fit the budgets {list(budgets)}")
    fields = {
        "token": join([d.token for d in documents], np.int32),
        "rank": np.arange(len(stream), dtype=np.int32),
        "position": join([np.arange(n) for n in sizes], np.int32)[:, None],
        "segment": each(np.arange(1, len(documents) + 1), np.int32),
        "source": each([d.source for d in documents], np.int32),
        "doc_id": each([d.doc_id for d in documents], np.int32),
        "unit": offset("unit"),
        "unit_seed": join([_unit_seeds(d) for d in documents], np.uint32),
        "span": offset("span"),
        "private": join([d.private for d in documents], bool),
    }
    targets = [_targets(d) for d in documents]
    fields["target"] = join([t for t, _ in targets], np.int32)
    fields["weight"] = join([w for _, w in targets], np.float32)

    # Each token's place in stream order: its stream's start and how many of that stream came before it.
    starts = np.cumsum([0, *budgets[:-1]])
    place = np.zeros(len(stream), np.int64)
    for m, start in enumerate(starts):
        place[stream == m] = start + np.arange(used[m])
    out = {}
    for name, x in fields.items():
        out[name] = np.zeros((sum(budgets), *x.shape[1:]), x.dtype)
        out[name][place] = x
    padding = np.ones(sum(budgets), bool)
    padding[place] = False
    out["rank"][padding] = len(stream) + np.arange(padding.sum())
    return out


def _bases(documents, field):
    """Each document's values of `field` and what to add, so that numbers are unique in the row."""
    base = 0
    for d in documents:
        values = getattr(d, field)
        yield values, base
        base += values.max(initial=0)


def _unit_seeds(d: Document) -> np.ndarray:
    seed = lambda u: zlib.crc32(f"{d.source}/{d.doc_id}/{u}".encode()) if u else 0
    numbers, inverse = np.unique(d.unit, return_inverse=True)
    return np.array([seed(u) for u in numbers], np.uint32)[inverse]


def _targets(d: Document) -> tuple[np.ndarray, np.ndarray]:
    """The next id, and its weight; none for the last token."""
    target, weight = np.append(d.token[1:], 0), np.append(d.weight[1:], 0).astype(np.float32)
    inside = (d.span[:-1] == d.span[1:]) & (d.span[:-1] != 0)
    if (weight[:-1][inside] != 0).any():
        raise ValueError(
            f"document {d.doc_id} of source {d.source} asks for a next-token target inside a bidirectional span, which "
            "already sees it; give the span's tokens weight 0"
        )
    return target, weight
