"""Chunks of actions to ids and back: FAST (2501.09747): a cosine transform, whole numbers, and pairs that are joined.

Each dimension is brought to -1 to 1 by its quantiles, transformed along time (DCT-II, orthonormal), scaled and rounded.
The coefficients lie slow ones first, all dimensions of each, and byte-pair encoding joins what often stands together.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from scipy.fft import dct, idct
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from mot.config.modalities import FAST_IDS, FAST_POINTS
from mot.tokenizers import vectors

QUANTILES = (0.01, 0.99)  # of the values of a dimension: what becomes -1 and 1
WIDTH = 256  # dimensions of a chunk at most
ROOM = 0.25  # of the range of coefficients that were seen, beyond it on either side
FIRST = 0x4E00  # the character that stands for the least coefficient, amid many that nothing normalises or splits
LETTERS = 0x5000  # of these


@dataclass(frozen=True, eq=False)
class FastTokenizer:
    """Chunks of `points` points of P features; `is_pen`: of a pen's path, resampled to so many."""

    FORMAT: ClassVar[str] = "mot fast tokenizer 1"
    points: int
    is_pen: bool
    scale: float  # of a coefficient; what is left after rounding is at most 0.5 / scale of each
    low_P: np.ndarray  # float64, of each dimension what is -1,
    high_P: np.ndarray  # and what is 1
    least: int  # the least coefficient that has an id; it is id 0, and the one above it id 1
    letters: int  # how many coefficients have one
    merges: np.ndarray  # int32 [ids - letters, 2]: the two ids that each further id joins, the first to be joined first

    def __post_init__(self):
        _check_points(self.points)
        low, high = self.low_P, self.high_P
        if low.dtype != np.float64 or low.shape != high.shape or low.ndim != 1 or not 1 <= len(low) <= WIDTH:
            raise ValueError(f"quantiles {low.dtype} {list(low.shape)}, {high.dtype} {list(high.shape)}; float64 [P]")
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all() and 0 < self.scale < 1e6):
            raise ValueError("quantiles are not finite or not in order, or the scale is out of range; fit it anew")
        ids = self.letters + np.arange(len(self.merges))
        shaped = self.merges.dtype == np.int32 and self.merges.shape == (len(ids), 2)
        if not 1 <= self.letters <= LETTERS or not shaped or self.ids > FAST_IDS[1]:
            raise ValueError(f"{self.letters} coefficients, merges {self.merges.dtype} {list(self.merges.shape)}")
        if ((self.merges < 0) | (self.merges >= ids[:, None])).any():
            raise ValueError("an id joins ids that come after it; fit it anew")

    @property
    def ids(self) -> int:
        return self.letters + len(self.merges)

    @property
    def width(self) -> int:
        """P; a chunk has as many ids as it needs."""
        return len(self.low_P)

    def encode(self, chunk: np.ndarray) -> np.ndarray:
        """int32 `[n]` of a chunk `[points, P]`, or of a pen's path `[n, 3]`.

        Raises `ValueError` where these ids would not give its coefficients back: it has another shape, or reaches
        coefficients that have no id.
        """
        wanted = self.coefficients(chunk).ravel()
        outside = wanted[(wanted < self.least) | (wanted >= self.least + self.letters)]
        if len(outside):
            raise ValueError(
                f"a chunk has the coefficient {outside[0]}, and FAST has ids for {self.least} to "
                f"{self.least + self.letters - 1}, as the first chunks had: it moves {_times(outside[0], self):.1f} "
                "times as far; bring all to one unit, leave it out, or learn from more (--sample)"
            )
        ids = np.array(self._bpe.encode(_written(wanted - self.least)).ids, np.int32)
        if not np.array_equal(self._coefficients_of(ids), wanted):
            raise ValueError("FAST's ids do not give this chunk back; fit the tokenizer anew")
        return ids

    def decode(self, ids) -> np.ndarray | list[np.ndarray]:
        """The chunk float64 `[points, P]`, or a pen's strokes `[k, 2]` each, in the unit that was fitted to.

        Ids that a model drew may give too few coefficients, or too many: what lacks, the fastest, is 0, and what is too
        much is left out. (The published code makes a chunk of zeros of all of them.)
        """
        found = self._coefficients_of(ids)[: self.points * self.width]
        whole = np.zeros(self.points * self.width)
        whole[: len(found)] = found
        unit = idct(whole.reshape(self.points, -1) / self.scale, axis=0, norm="ortho")
        chunk = (unit + 1) / 2 * (self.high_P - self.low_P) + self.low_P
        return vectors.strokes(chunk[:, :2], chunk[:, 2]) if self.is_pen else chunk

    def coefficients(self, chunk: np.ndarray) -> np.ndarray:
        """int64 `[points, P]`, slow ones first."""
        chunk = _chunk(chunk, self.points, self.is_pen)
        if chunk.shape[1] != self.width:
            raise ValueError(f"a chunk of {chunk.shape[1]} features, where the first ones had {self.width}")
        return _rounded(_normalised(chunk, self.low_P, self.high_P), self.scale)

    def _coefficients_of(self, ids) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"ids are {ids.dtype} {list(ids.shape)}; they must be whole numbers [tokens]")
        if len(odd := ids[(ids < 0) | (ids >= self.ids)]):
            raise ValueError(f"id {odd[0]} stands for nothing; ids are from 0 to {self.ids - 1}")
        letters = [letter for i in ids.tolist() for letter in self._letters[i]]
        return np.array(letters, np.int64) + self.least

    @cached_property
    def _letters(self) -> list[tuple[int, ...]]:
        """The letters of each id, from 0."""
        found: list[tuple[int, ...]] = [(i,) for i in range(self.letters)]
        for a, b in self.merges.tolist():
            found.append(found[a] + found[b])
        return found

    @cached_property
    def _bpe(self) -> Tokenizer:
        words = [_written(letters) for letters in self._letters]
        pairs = [(words[a], words[b]) for a, b in self.merges.tolist()]
        return Tokenizer(BPE({word: i for i, word in enumerate(words)}, pairs))

    def __getstate__(self):
        """What another process opens it from."""
        return {k: v for k, v in vars(self).items() if k not in ("_bpe", "_letters")}


def fit_fast(
    chunks: Iterable[np.ndarray], points: int, scale: float, ids: int, is_pen: bool, fewer: bool = False
) -> FastTokenizer:
    """A tokenizer for chunks like these; the same from the same chunks.

    `points` 0: as many as the first has. A path that cannot be resampled is passed over. Raises `ValueError` where none
    is left, or where coefficients alone are more than `ids`.
    """
    found = []
    last = "there is none"
    for chunk in chunks:
        try:
            found.append(_chunk(chunk, points or len(chunk), is_pen))
            points = points or len(found[0])
        except ValueError as error:
            last = str(error)
    if not found:
        raise ValueError(f"no chunk to learn from: {last}")
    alike = [chunk for chunk in found if chunk.shape == found[0].shape]
    low_P, high_P = np.quantile(np.concatenate(alike), QUANTILES, axis=0)
    level_P = high_P - low_P <= 1e-9 * np.maximum(np.abs(high_P), np.abs(low_P))  # a dimension that never moves
    low_P, high_P = np.where(level_P, low_P - 1, low_P), np.where(level_P, high_P + 1, high_P)
    rows = [_rounded(_normalised(chunk, low_P, high_P), scale).ravel() for chunk in alike]
    most, least = max(int(x.max()) for x in rows), min(int(x.min()) for x in rows)
    room = 1 + int(ROOM * (most - least))
    least, letters = least - room, most - least + 1 + 2 * room
    if letters > min(ids, LETTERS):
        raise ValueError(
            f"{letters} different coefficients, which need an id each, and {ids} ids; ask for more (--fast-ids), or "
            "lower --fast-scale"
        )
    merges = _merges([x - least for x in rows], letters, ids)
    if len(merges) < ids - letters and not fewer:
        raise ValueError(
            f"{ids} ids were asked for, and {len(alike)} chunks yield {letters + len(merges)}; ask for fewer "
            "(--fast-ids)"
        )
    return FastTokenizer(points, is_pen, float(scale), low_P, high_P, least, letters, merges)


def _merges(rows: list[np.ndarray], letters: int, ids: int) -> np.ndarray:
    """int32 `[n, 2]`: the pairs that byte-pair encoding joins, in order; ids of letters come first."""
    learner = Tokenizer(BPE())
    alphabet = [chr(FIRST + i) for i in range(letters)]
    trainer = BpeTrainer(vocab_size=ids, min_frequency=2, show_progress=False, initial_alphabet=alphabet)
    learner.train_from_iterator([_written(row) for row in rows], trainer)
    number = {word: i for i, word in enumerate(alphabet)}
    pairs = []
    for a, b in json.loads(learner.to_str())["model"]["merges"]:
        if a + b not in number:  # two ways to the same word are one id
            number[a + b] = len(number)
            pairs.append((number[a], number[b]))
    return np.array(pairs, np.int32).reshape(-1, 2)


def _written(letters) -> str:
    return "".join(chr(FIRST + int(i)) for i in letters)


def _check_points(points: int) -> None:
    if not FAST_POINTS[0] <= points <= FAST_POINTS[1]:
        raise ValueError(f"points={points}; must be from {FAST_POINTS[0]} to {FAST_POINTS[1]}")


def _chunk(chunk: np.ndarray, points: int, is_pen: bool) -> np.ndarray:
    """float64 `[points, P]`; raises `ValueError` for another shape, and for what is not finite."""
    _check_points(points)
    if is_pen:
        place, pen = vectors.resampled(chunk, points)
        return np.column_stack([place, pen])
    if chunk.ndim != 2 or chunk.dtype.kind not in "iuf" or len(chunk) != points or not 1 <= chunk.shape[1] <= WIDTH:
        raise ValueError(
            f"a chunk is {chunk.dtype} {list(chunk.shape)}, and FAST needs numbers [{points}, P]: chunks of one "
            "length; cut them alike, or resample a pen's paths (--fast-points)"
        )
    if not np.isfinite(chunk).all():
        raise ValueError("a chunk is not finite; repair it or leave it out")
    return chunk.astype(np.float64)


def _normalised(chunk: np.ndarray, low_P: np.ndarray, high_P: np.ndarray) -> np.ndarray:
    return (chunk - low_P) / (high_P - low_P) * 2 - 1


def _rounded(unit: np.ndarray, scale: float) -> np.ndarray:
    return np.rint(np.clip(dct(unit, axis=0, norm="ortho") * scale, -1e9, 1e9)).astype(np.int64)


def _times(coefficient: int, tokenizer: FastTokenizer) -> float:
    """How many times the range of the first chunks a coefficient is."""
    end = tokenizer.least if coefficient < 0 else tokenizer.least + tokenizer.letters - 1
    return coefficient / end if end else float("inf")
