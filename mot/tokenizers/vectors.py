"""Pictures, sound and pen strokes as float32 vectors `[n, P]`, about -1 to 1, for streams of vectors (latents).

Nothing is learned but constants: patches as in Transfusion (Zhou et al. 2024) without its autoencoder, log-mel frames,
and points of the pen as in sketch-rnn (Ha and Eck 2017).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mot.config.modalities import ACTION_POINTS
from mot.tokenizers import audio, image

FAR = 50  # times what the first drawings reach: a pen that was not measured in their unit
FARTHEST = 1e29  # from 0, that a pen may be: what is learnt of such paths stays below 1e30
FAINTEST = 1e-3  # the least that a band's levels are taken to vary, of its whole range


@dataclass(frozen=True)
class ImageVectors:
    """Pictures of `side` x `side` pixels in patches of `patch` x `patch`, row by row; `native`: no side is longer."""

    FORMAT: ClassVar[str] = "mot image vectors 1"
    side: int
    patch: int
    native: bool = False

    def __post_init__(self):
        image.check(self.side, self.patch)

    @property
    def width(self) -> int:
        return 3 * self.patch**2

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a picture, or the most of them."""
        return (self.side // self.patch,) * 2

    @property
    def tokens(self) -> int:
        """Of a picture, where each has so many; else 0."""
        return 0 if self.native else math.prod(self.shape)

    def encode(self, picture: np.ndarray) -> np.ndarray:
        """float32 `[tokens, width]`, -1 to 1, of the square in the middle of a picture uint8 `[H, W, 3]`.

        Of a `native` one `[rows, columns, width]`, of all of it.
        """
        if not self.native:
            return image.patches(picture, self.side, self.patch).astype(np.float32) / 127.5 - 1
        found, shape = image.native_patches(picture, self.side, self.patch)
        return (found.astype(np.float32) / 127.5 - 1).reshape(*shape, -1)

    def decode(self, x: np.ndarray) -> np.ndarray:
        """The picture uint8 `[side, side, 3]`, or `[height, width, 3]`; what lies outside -1 to 1 is clipped."""
        x = np.asarray(x)
        x_CP = _vectors(x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x, self.width, self.tokens, "a picture")
        shape = image.checked_shape(x.shape[:-1], self)
        return image.assembled(_rounded((x_CP + 1) * 127.5), shape, self.patch)


@dataclass(frozen=True, eq=False)
class AudioVectors:
    """Sound of `rate` samples a second as log-mel frames, one for every `hop` of them."""

    FORMAT: ClassVar[str] = "mot audio vectors 1"
    rate: int
    hop: int
    mean_P: np.ndarray  # float64, of each band's level: 1 is a clip's loudest, 0 audio.RANGE dB below
    scale_P: np.ndarray  # its standard deviation

    def __post_init__(self):
        audio.check(self.rate, self.hop)
        for x_P in (self.mean_P, self.scale_P):
            if x_P.dtype != np.float64 or x_P.shape != (audio.BANDS,) or not np.isfinite(x_P).all():
                raise ValueError(
                    f"a band's constants are {x_P.dtype} {list(x_P.shape)}; float64 [{audio.BANDS}] needed"
                )
        if self.scale_P.min() < FAINTEST:
            raise ValueError(f"a band's levels vary by {self.scale_P.min()}; must be {FAINTEST} or more; fit it anew")

    @property
    def width(self) -> int:
        return audio.BANDS

    @property
    def tokens(self) -> int:
        return 0  # a clip has as many as it is long

    def encode(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """float32 `[ceil(n / hop), width]` of a clip, float `[samples]`, that has n samples at the tokenizer's rate.

        How loud a clip is makes no difference. Raises `ValueError` where it is empty or not finite.
        """
        level_CP = audio.levels(wave, rate, self.rate, self.hop)
        return ((level_CP - self.mean_P) / self.scale_P).astype(np.float32)

    def decode(self, x_CP: np.ndarray) -> np.ndarray:
        """The spectrogram float32 `[BANDS, n]`, low bands first, in dB below the clip's loudest."""
        level_CP = _vectors(x_CP, self.width, 0, "a clip") * self.scale_P + self.mean_P
        return ((level_CP.clip(0, 1) - 1) * audio.RANGE).astype(np.float32).T


@dataclass(frozen=True, eq=False)
class ActionVectors:
    """A pen's path as `points` points `[x, y, pen]`, evenly spaced along its strokes; pen is 1 where a stroke ends.

    Each is a place, or an offset from the one before: then where a drawing lies is lost. So is its timing.
    """

    FORMAT: ClassVar[str] = "mot action vectors 1"
    points: int
    offsets: bool
    centre: np.ndarray  # float64 [2], the place that is 0
    scale: float  # the length that is 1: half of the canvas, or an offset's root mean square

    def __post_init__(self):
        if not ACTION_POINTS[0] <= self.points <= ACTION_POINTS[1]:
            raise ValueError(f"points={self.points}; must be from {ACTION_POINTS[0]} to {ACTION_POINTS[1]}")
        if type(self.offsets) is not bool or self.centre.dtype != np.float64 or self.centre.shape != (2,):
            raise ValueError(f"offsets are {self.offsets!r}, the centre {self.centre.dtype} {list(self.centre.shape)}")
        if not (np.abs(self.centre).max() <= 1e30 and 0 < self.scale <= 1e30):
            raise ValueError(f"centre {self.centre.tolist()}, scale {self.scale}; at most 1e30, the scale above 0")

    @property
    def width(self) -> int:
        return 3

    @property
    def tokens(self) -> int:
        """Of a drawing; each has so many."""
        return self.points

    def encode(self, path: np.ndarray) -> np.ndarray:
        """float32 `[points, 3]` of a path `[n, 3]` (x, y, and above 0 where the pen leaves the paper after the point).

        Raises `ValueError` where it has more strokes than half the points, or lies far outside the canvas.
        """
        place, pen = resampled(path, self.points)
        moved = np.diff(place, axis=0, prepend=place[:1]) if self.offsets else place - self.centre
        if np.abs(moved).max() > FAR * self.scale:
            raise ValueError(
                f"a drawing reaches {np.abs(moved).max():.3g} where the first ones were about {self.scale:.3g} large; "
                "bring all to one unit, or leave it out"
            )
        return np.column_stack([moved / self.scale, pen]).astype(np.float32)

    def decode(self, x_CP: np.ndarray) -> list[np.ndarray]:
        """Its strokes, float64 `[k, 2]` each, in the unit of the paths that it was fitted to."""
        x_CP = _vectors(x_CP, self.width, self.tokens, "a drawing")
        place = x_CP[:, :2] * self.scale
        place = (np.cumsum(place, axis=0) if self.offsets else place) + self.centre
        return strokes(place, x_CP[:, 2])


def resampled(path: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Places float64 `[points, 2]`, evenly spaced along a path's strokes, two or more on each; and the pen's -1, 1."""
    if path.ndim != 2 or path.shape[1] != 3 or path.dtype.kind not in "iuf" or not len(path):
        raise ValueError(f"a path is {path.dtype} {list(path.shape)}; it must be numbers [points, 3]: x, y, pen up")
    if not np.isfinite(path).all():
        raise ValueError("a path is not finite")
    found = strokes(path[:, :2].astype(np.float64), path[:, 2])
    if 2 * len(found) > points:
        raise ValueError(
            f"a drawing of {len(found)} strokes; {points} points hold {points // 2}; take more (--action-points)"
        )
    along = [np.append(0, np.cumsum(np.hypot(*np.diff(stroke, axis=0).T))) for stroke in found]
    lengths = np.array([s[-1] for s in along])
    shares = lengths if lengths.any() else np.ones(len(along))
    ends = np.rint(np.cumsum(shares) / shares.sum() * (points - 2 * len(along))).astype(int)
    places = []
    pen = np.full(points, -1.0)
    for stroke, s, k in zip(found, along, 2 + np.diff(ends, prepend=0), strict=True):
        at = np.linspace(0, s[-1], k)
        places.append(np.column_stack([np.interp(at, s, stroke[:, 0]), np.interp(at, s, stroke[:, 1])]))
    pen[np.cumsum([len(x) for x in places]) - 1] = 1
    return np.concatenate(places), pen


def strokes(place: np.ndarray, pen: np.ndarray) -> list[np.ndarray]:
    """Places `[n, 2]` by stroke; pen `[n]` is above 0 at the last of each."""
    ends = np.flatnonzero(pen[:-1] > 0) + 1
    return np.split(place, ends)


def fit_audio(clips: Iterable[tuple[np.ndarray, int]], rate: int, hop: int | None = None) -> AudioVectors:
    """For clips like these (float `[samples]`, samples a second), whose bands get mean 0 and deviation 1.

    `hop` is 20 ms unless told another.
    """
    hop = rate // 50 if hop is None else hop
    audio.check(rate, hop)
    count = 0
    total_P = np.zeros(audio.BANDS)
    square_P = np.zeros(audio.BANDS)
    for wave, of in clips:
        level_CP = audio.levels(wave, of, rate, hop)
        count, total_P, square_P = count + len(level_CP), total_P + level_CP.sum(0), square_P + (level_CP**2).sum(0)
    if not count:
        raise ValueError("no clip to learn from")
    mean_P = total_P / count
    return AudioVectors(rate, hop, mean_P, np.sqrt(np.maximum(square_P / count - mean_P**2, FAINTEST**2)))


def fit_action(paths: Iterable[np.ndarray], points: int, offsets: bool) -> ActionVectors:
    """For paths like these, `[n, 3]`, whose places lie in -1 to 1, or whose offsets have a mean square of 1.

    A path that cannot be resampled is passed over. Raises `ValueError` where none is left.
    """
    if not ACTION_POINTS[0] <= points <= ACTION_POINTS[1]:
        raise ValueError(f"points={points}; must be from {ACTION_POINTS[0]} to {ACTION_POINTS[1]}")
    low = np.full(2, np.inf)
    high = np.full(2, -np.inf)
    square = 0.0
    count = 0
    last = "there is none"
    for path in paths:
        try:
            place, _ = resampled(path, points)
        except ValueError as error:
            last = str(error)
            continue
        low = np.minimum(low, place.min(0))
        high = np.maximum(high, place.max(0))
        square, count = square + (np.diff(place, axis=0) ** 2).sum(), count + 2 * (points - 1)
    if not count:
        raise ValueError(f"no path to learn from: {last}")
    scale = float(np.sqrt(square / count) if offsets else (high - low).max() / 2)
    return ActionVectors(points, offsets, (low + high) / 2, scale or 1.0)


Vectors = ImageVectors | AudioVectors | ActionVectors


def _vectors(x_CP, width: int, tokens: int, what: str) -> np.ndarray:
    """float64 `[C, P]`; raises `ValueError` unless it is finite, of that width, and has so many tokens (0 = any)."""
    x_CP = np.asarray(x_CP)
    fits = x_CP.dtype.kind == "f" and x_CP.ndim == 2 and x_CP.shape[1] == width and len(x_CP) == (tokens or len(x_CP))
    if not fits or not len(x_CP):
        needed = f"floats [{tokens or 'n'}, {width}]"
        raise ValueError(f"{what} is {x_CP.dtype} {list(x_CP.shape)}; it must be {needed}")
    if not np.isfinite(x_CP).all():
        raise ValueError(f"{what} has features that are not finite")
    return x_CP.astype(np.float64)


def _rounded(x: np.ndarray) -> np.ndarray:
    return np.rint(x.clip(0, 255)).astype(np.uint8)
