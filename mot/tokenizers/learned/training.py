"""Trains an autoencoder, and measures it on what it is not trained on."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.signal import resample_poly

from mot.config.tokenizer import EVALUATIONS, Settings
from mot.errors import UserError
from mot.tokenizers import audio, codebook
from mot.tokenizers.learned import coding
from mot.tokenizers.learned.nets import BYTE, begun, scaled, shape_of

WARM_UP = 50  # steps at most
LAST = 0.02  # of the rate, at the end of its cosine
MUON = 10  # times the rate of Adam: what Muon moves is orthogonal, of norm 1 in every direction
CLIP = 1.0
MOVED = 16  # a picture is moved by this part of its side at most
GAIN = 0.01  # dB: less is no gain, and patience wears thin


class Examples(NamedTuple):
    """What a network is trained on, or measured on."""

    bytes: np.ndarray  # uint8 [N, *places, P]
    mask: np.ndarray  # float32 [N, *places, 1]: 0 beyond the end of a sound


class Quality(NamedTuple):
    """What comes back from tokens, against what went in."""

    decibels: float  # of pictures PSNR, of sounds the error of log-mel levels, root mean square
    used: tuple[float, ...]  # of each layer: the part of its ids that occur; () of vectors
    perplexity: tuple[float, ...]  # of each layer: so many ids, evenly used, would say as much


class Fitted(NamedTuple):
    arrays: dict[str, np.ndarray]
    held_out: Quality
    step: int  # after which these weights were best
    steps: int  # that were taken


def pictures(patches: list[np.ndarray], settings: Settings) -> Examples:
    """Of `image.patches`, uint8 `[tokens, P]` each."""
    features, grid = shape_of(settings)
    bytes_ = np.stack(patches).reshape(len(patches), *grid, features)
    return Examples(bytes_, np.ones((*bytes_.shape[:-1], 1), np.float32))


def windows(clips: list[np.ndarray]) -> Examples:
    """Of `frames` of clips, uint8 `[n, BANDS]` each, cut into pieces of one length, about that of a clip."""
    length = 1 << min(max(int(np.median([len(clip) for clip in clips])) - 1, 7).bit_length(), 6)
    pieces = [clip[i : i + length] for clip in clips for i in range(0, len(clip), length)]
    bytes_ = np.stack([np.pad(piece, ((0, length - len(piece)), (0, 0))) for piece in pieces])
    mask = np.arange(length)[None] < np.array([len(piece) for piece in pieces])[:, None]
    return Examples(bytes_, mask[..., None].astype(np.float32))


def frames(wave: np.ndarray, of: int, settings: Settings) -> np.ndarray:
    """uint8 `[n, BANDS]` of a clip of `of` samples a second; `ValueError` where it is empty or not finite."""
    return np.rint(audio.levels(wave, of, settings.rate, settings.frame) * 255).astype(np.uint8)


def resampled(wave: np.ndarray, of: int, rate: int) -> np.ndarray:
    """float32 `[samples]` at `rate`, of a clip of `of` samples a second."""
    common = math.gcd(of, rate)
    return wave if of == rate else resample_poly(wave, rate // common, of // common).astype(np.float32)


def fit(settings: Settings, train: Examples, held_out: Examples, tell: Callable[[int, Quality | None], None]) -> Fitted:
    """The weights that are best on what is held out; `tell` hears of each step, and of each measurement.

    The same settings and examples give the same weights on the same kind of machine. Raises `UserError` where the
    examples do not yield a codebook of so many ids, and where training diverges.
    """
    graph, state = begun(settings, beginnings(settings, train))
    weights, constants = nnx.split_state(state, nnx.Param, ...)
    optimiser = _optimiser(settings)
    moments = optimiser.init(weights)
    step = jax.jit(partial(_step, graph, optimiser, settings), donate_argnums=(0, 1, 2))
    measure = partial(quality, coding.coder(graph), settings=settings)
    best = None
    worn = 0
    every = math.ceil(settings.steps / EVALUATIONS)
    for number, rows in enumerate(_batches(len(train.bytes), settings), 1):
        drawn = (train.bytes[rows], train.mask[rows])
        weights, constants, moments = step(weights, constants, moments, *drawn, jnp.uint32(number))
        if number % every and number != settings.steps:
            jax.block_until_ready(weights)
            tell(number, None)
            continue
        found = measure((weights, constants), held_out)
        tell(number, found)
        if not math.isfinite(found.decibels):
            raise UserError(f"--lr={settings.lr:g}: training diverged before step {number}; lower it")
        worn = 0 if best is None or _gain(found, best.held_out, settings) > GAIN else worn + 1
        if best is None or _gain(found, best.held_out, settings) > 0:
            best = Fitted(arrays_of(weights, constants), found, number, number)
        if worn >= settings.patience:
            break
    return best._replace(steps=number)


def _gain(new: Quality, old: Quality, settings: Settings) -> float:
    """dB by which it is better."""
    difference = new.decibels - old.decibels
    return difference if settings.medium == "image" else -difference


def _batches(count: int, settings: Settings) -> Iterator[np.ndarray]:
    """The rows of each step: a permutation of all, and another one when they are used up."""
    rng = np.random.default_rng(settings.seed)
    left = rng.permutation(count)
    size = min(settings.batch, count)
    for _ in range(settings.steps):
        if len(left) < size:
            left = np.concatenate([left, rng.permutation(count)])
        yield left[:size]
        left = left[size:]


def _step(graph, optimiser, settings: Settings, weights, constants, moments, bytes_, mask, number) -> tuple:
    """Weights, constants and moments after a batch; `number` seeds what is drawn."""
    of_variation, of_noise, of_codes = jax.random.split(jax.random.fold_in(jax.random.key(settings.seed), number), 3)
    x = scaled(bytes_)
    if settings.medium == "image":
        x = varied(x, settings.patch, of_variation)

    def loss(weights):
        model = nnx.merge(graph, weights, constants)
        z = model.encoder(x, mask) * mask
        seen, more, tokens = model.quantiser.train(z, of_noise)
        error = jnp.square(model.decoder(seen, mask) - x) * mask
        return error.sum() / (mask.sum() * x.shape[-1]) + more, (z, tokens)

    gradient, (z, tokens) = jax.grad(loss, has_aux=True)(weights)
    updates, moments = optimiser.update(gradient, moments, weights)
    weights = optax.apply_updates(weights, updates)
    model = nnx.merge(graph, weights, constants)
    model.quantiser.learn(z, tokens, mask, of_codes)
    return weights, nnx.split(model, nnx.Param, ...)[2], moments


def varied(x: jax.Array, patch: int, key: jax.Array) -> jax.Array:
    """Pictures `[B, rows, columns, 3 * patch**2]`: half of them left for right, all moved by a few pixels.

    Few pictures are learnt by heart otherwise. What moves in from beyond an edge is the edge.
    """
    of_mirror, of_move = jax.random.split(key)
    B, rows, columns = x.shape[:3]
    sides = (rows * patch, columns * patch)
    pixels = x.reshape(B, rows, columns, patch, patch, 3).swapaxes(2, 3).reshape(B, *sides, 3)
    pixels = jnp.where(jax.random.bernoulli(of_mirror, 0.5, (B, 1, 1, 1)), pixels[:, :, ::-1], pixels)
    most = min(sides) // MOVED
    wide = jnp.pad(pixels, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    down, right = jax.random.randint(of_move, (2,), 0, 2 * most + 1)
    pixels = jax.lax.dynamic_slice(wide, (0, down, right, 0), pixels.shape)
    return pixels.reshape(B, rows, patch, columns, patch, 3).swapaxes(2, 3).reshape(x.shape)


def _optimiser(settings: Settings) -> optax.GradientTransformation:
    """Muon (2502.16982) of the matrices inside the trunks, Adam of the rest."""
    warm_up = min(WARM_UP, settings.steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0, 1.0, warm_up, settings.steps + 1, LAST)
    muon = optax.contrib.muon(
        lambda step: MUON * settings.lr * rate(step),
        adam_learning_rate=lambda step: settings.lr * rate(step),
        adam_b2=0.99,
        muon_weight_dimension_numbers=_sides,
    )
    return optax.chain(optax.clip_by_global_norm(CLIP), muon)


def _sides(weights: Any) -> Any:
    """Which axes of a matrix are its inputs and outputs; None of what Adam moves."""

    def of_leaf(path, x):
        if x.ndim < 2 or not any("blocks" in str(part) for part in path):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)

    return jax.tree_util.tree_map_with_path(of_leaf, weights)


def beginnings(settings: Settings, train: Examples) -> np.ndarray | None:
    """Codebooks float32 `[layers, ids, P]` that k-means finds in the examples, by layer in what those before it leave.

    None of a kind that has no codebook. Raises `UserError` where fewer rows differ than ids are asked for.
    """
    if settings.kind not in ("vq", "rvq"):
        return None
    features = train.bytes.shape[-1]
    real = (train.bytes[i : i + 256][train.mask[i : i + 256, ..., 0] > 0] for i in range(0, len(train.bytes), 256))
    found = []
    try:
        codebook.check_ids(settings.ids, features)
        left_RP = codebook.sample(real, features)
        for layer in range(settings.layers if settings.kind == "rvq" else 1):
            codes_KP = codebook.fit(left_RP, settings.ids, f"rests of {layer} layers" if layer else "patches or frames")
            found.append(codes_KP / np.float32(BYTE) - np.float32(layer == 0))
            nearest_RP = codes_KP[codebook.nearest(left_RP, codes_KP)]
            left_RP = (left_RP.astype(np.int16) - nearest_RP).clip(-255, 255)
    except ValueError as error:
        raise UserError(f"--ids={settings.ids}: {error}") from None
    return np.stack(found)


def quality(coder: tuple[Callable, Callable], states, examples: Examples, settings: Settings) -> Quality:
    """How near the examples come back from their tokens, and how the tokens' ids are used."""
    encode, decode = coder
    tokens = coding.in_batches(partial(encode, states), examples.bytes, examples.mask)
    back = coding.in_batches(partial(decode, states), tokens, examples.mask)
    error = np.square(np.rint(back) - examples.bytes, dtype=np.float64) * examples.mask
    mean = error.sum() / (examples.mask.sum(dtype=np.float64) * error.shape[-1])
    if settings.medium == "image":
        decibels = 10 * math.log10(255**2 / max(mean, 1e-9)) if math.isfinite(mean) else math.nan
    else:
        decibels = audio.RANGE / 255 * math.sqrt(mean)
    if settings.kind == "kl":
        return Quality(decibels, (), ())
    real = tokens[examples.mask[..., 0] > 0]
    ids = math.prod(settings.levels) if settings.kind == "fsq" else settings.ids
    counts = [np.bincount(layer, minlength=ids) for layer in real.T]
    used = tuple(float((count > 0).mean()) for count in counts)
    return Quality(decibels, used, tuple(map(_perplexity, counts)))


def _perplexity(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def arrays_of(*states: nnx.State) -> dict[str, np.ndarray]:
    """By the path of each variable."""
    return {
        "/".join(map(str, path)): np.asarray(variable[...])
        for state in states
        for path, variable in nnx.to_flat_state(state)
    }
