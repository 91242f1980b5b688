"""Documents into rows: a plan from lengths alone, then the row's arrays with every integer a token carries."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mot.batch import Batch, Tokens
from mot.errors import UserError


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


def cut(d: Document, begin: int, end: int) -> Document:
    """Tokens begin .. end - 1 of a document; what does not begin with its first token, <bos>, gets that once more."""
    if (begin, end) == (0, len(d.token)):
        return d
    part = lambda x: np.concatenate([x[:1], x[begin:end]]) if begin else x[:end]
    return Document(d.source, d.doc_id, *(part(x) for x in d[2:]))


class Piece(NamedTuple):
    """Tokens begin .. end - 1 of document g; one that begins later than 0 gets the document's <bos> once more."""

    g: int
    begin: int
    end: int


class _Waiting(NamedTuple):
    piece: Piece
    lengths: np.ndarray  # [M]
    cuts: np.ndarray | None  # of a document that is to be cut


class Documents(Protocol):
    """What a plan needs of an endless stream of documents."""

    def lengths(self, g: int) -> np.ndarray: ...  # [M] tokens by stream

    def cuts(self, g: int) -> np.ndarray: ...  # [k, 1 + M] where it may be cut, as mixture.Source says

    def enter(self, step: int, g: int) -> None: ...  # document g is taken in for a row of this step


class Plan:
    """Which documents of an endless stream share each row: best fit with a bounded look-ahead.

    It depends on the documents' lengths alone, so every host makes the same one. A row starts with the document that
    has waited longest, so none starves; then documents that need several streams, being harder to place; then whatever
    leaves least room. A document longer than `longest` is cut where it may be: into pieces as long as that allows, and
    where room is left over, into what fills it.
    """

    SHORTEST = 16  # tokens that are worth a further cut
    TRIED = 16  # documents that are tried for one
    MOST_DROPPED = 1000  # pieces, in one row; more are no accident

    def __init__(
        self, documents: Documents, budgets: Sequence[int], longest: Sequence[int], lookahead: int, rows: int = 1
    ):
        """`rows` make a step."""
        self.documents, self.lookahead, self.rows = documents, lookahead, rows
        self.budgets, self.longest = np.asarray(budgets), np.asarray(longest)
        self.number = 0  # the next row's
        self.position = 0  # the next document to take in
        self.waiting: list[_Waiting] = []  # taken in and not yet placed whole
        self.dropped: list[Piece] = []  # what fits no row, since the caller last emptied it

    @property
    def state(self) -> dict:
        """What `resume` goes on from, as JSON holds it."""
        waiting = [[w.piece.g, w.piece.begin] for w in self.waiting]
        return {"row": self.number, "position": self.position, "waiting": waiting}

    def resume(self, state: dict) -> None:
        self.number, self.position = state["row"], state["position"]
        self.waiting = [self._next_piece(g, begin) for g, begin in state["waiting"]]

    def next_row(self) -> list[Piece]:
        """The next row's pieces, in order of documents."""
        self.documents.enter(self.number // self.rows, self.position)
        while len(self.waiting) < self.lookahead:
            if (piece := self._next_piece(self.position, 0)) is not None:
                self.waiting.append(piece)
            self.position += 1
        chosen, room = self._whole_pieces()
        while (cut := self._cut_to_fit(chosen, room)) is not None:
            i, piece, lengths = cut
            chosen[i] = piece
            room = room - lengths
        self.number += 1
        after = []
        for i, w in enumerate(self.waiting):
            if i not in chosen:
                after.append(w)
            elif w.cuts is not None and chosen[i].end < w.cuts[-1, 0]:
                rest = self._next_piece(w.piece.g, chosen[i].end)
                after += [rest] if rest is not None else []
        self.waiting = after
        return sorted(chosen.values())

    def _whole_pieces(self) -> tuple[dict[int, Piece], np.ndarray]:
        """The waiting pieces that fit together, by their place in line, and the room that they leave."""
        lengths = np.stack([w.lengths for w in self.waiting])
        several = (lengths > 0).sum(1) > 1
        free = np.ones(len(lengths), bool)
        room, chosen, i = self.budgets, {}, 0
        while True:
            chosen[i], free[i] = self.waiting[i].piece, False
            room = room - lengths[i]
            fits = free & (lengths <= room).all(1)
            if not fits.any():
                return chosen, room
            left = (((room - lengths) / self.budgets) ** 2).sum(1)
            if (first := fits & several).any():
                fits = first
            i = int(np.where(fits, left, np.inf).argmin())

    def _cut_to_fit(self, chosen, room) -> tuple[int, Piece, np.ndarray] | None:
        """The further cut of a waiting document that leaves least of the room."""
        if room.max() < self.SHORTEST:
            return None
        best, tried = None, 0
        for i, w in enumerate(self.waiting):
            if i in chosen or w.cuts is None:
                continue
            if (tried := tried + 1) > self.TRIED:
                break
            cut = _longest_within(w.cuts, w.piece.begin, room)
            if cut is not None and cut[1].sum() >= self.SHORTEST and (best is None or cut[1].sum() > best[2].sum()):
                best = i, Piece(w.piece.g, w.piece.begin, cut[0]), cut[1]
        return best

    def _next_piece(self, g: int, begin: int) -> _Waiting | None:
        """The longest piece of document g from `begin` on; what fits no row, as a long sound, is dropped."""
        lengths = self.documents.lengths(g)
        if not begin and (lengths <= self.longest).all():
            return _Waiting(Piece(g, 0, int(lengths.sum())), lengths, None)
        cuts = self.documents.cuts(g)
        while (found := _longest_within(cuts, begin, self.longest)) is None:
            after = int(np.searchsorted(cuts[:, 0], begin)) + 1
            end, last = int(cuts[after, 0]), cuts[after, 1:] - cuts[after - 1, 1:]
            self.dropped.append(Piece(g, begin, end))
            if len(self.dropped) > self.MOST_DROPPED:
                raise UserError(
                    f"{len(self.dropped)} pieces of documents fit no row, the last with {last} tokens by stream; "
                    f"streams.*.longest allows {self.longest}; raise it, or prepare shorter documents"
                )
            if end == cuts[-1, 0]:
                return None
            begin = end
        return _Waiting(Piece(g, begin, found[0]), found[1], cuts)


def _longest_within(cuts: np.ndarray, begin: int, room: np.ndarray) -> tuple[int, np.ndarray] | None:
    """The end, and the tokens by stream, of the longest piece from token `begin` on that fits the room."""
    bos = cuts[0, 1:]  # every piece has it
    start = int(np.searchsorted(cuts[:, 0], begin))
    most = room - bos + cuts[start, 1:]
    last = min(int(np.searchsorted(cuts[:, 1 + m], n, "right")) for m, n in enumerate(most)) - 1
    return (int(cuts[last, 0]), cuts[last, 1:] - cuts[start, 1:] + bos) if last > start else None


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
