"""The log-likelihood of parts of documents, many documents to a row.

A document's tokens see nothing of the others in its row, and as in generation no expert is short of places and no
router looks at later tokens: so a document has the likelihood that it has alone.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from mot.batches import Batch
from mot.config import Config
from mot.data import positions
from mot.data.packing import Document, pack
from mot.errors import UserError
from mot.model import transformer
from mot.objectives import losses, masked, next_token

MULTIPLE = 128  # tokens of a stream in a row: kernels take such, and few shapes are compiled

Score = Callable[[Sequence[Document]], np.ndarray]  # -> [n] nats, log-likelihoods of what they weigh


def refuse(config: Config) -> None:
    """`UserError` for a model whose tokens see later ones: it says of no token how likely it is."""
    if config.data.blocks == "document":
        raise UserError(
            "data.blocks: 'document'; this model's tokens all see later ones, so they have no likelihood; train with "
            "'units' or 'prefix'"
        )


def why_none(stream: str, config: Config) -> str:
    """Why what a stream holds has no likelihood; "" where it has one."""
    s = config.streams[stream]
    if s.diffuses:
        return f"{s.modality} is diffused ({s.objective}), and has no likelihood"
    if s.masks:
        return f"{s.modality} is masked, and has a bound of its likelihood alone (bits)"
    if s.latent or s.objective == "none":
        return f"{s.modality} is read by this run and never predicted, and has no likelihood"
    return ""


def too_long(lengths: np.ndarray, config: Config) -> str:
    """Why a document with these tokens by stream fits no row, as the run was trained on; "" where it fits."""
    for (name, stream), n in zip(config.streams.items(), lengths, strict=True):
        if n > stream.budget:
            return (
                f"{n} tokens of {name}, and a row of this run has {stream.budget} (streams.{name}.budget); shorten it"
            )
    return ""


def lengths(document: Document, config: Config) -> np.ndarray:
    """Tokens by stream."""
    return np.bincount(document.stream, minlength=len(config.streams))


def make(params: dict, config: Config) -> Score:
    """`documents -> [n]` float64: the log-likelihood in nats of each one's ids that have weight, given all before them.

    On one device. A document must fit a row (`too_long`). Raises `UserError` where a likelihood is not finite.
    """
    sums = _sums(params, config, _nats)

    def score(documents: Sequence[Document]) -> np.ndarray:
        return -sums(documents)[0]

    return score


def with_greedy(params: dict, config: Config) -> Callable[[Sequence[Document]], tuple[np.ndarray, np.ndarray]]:
    """As `make`, and bool `[n]`: is every id that has weight the likeliest one there?"""
    sums = _sums(params, config, _nats_and_misses)

    def score(documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
        nats, misses = sums(documents)
        return -nats, misses == 0

    return score


def _sums(params: dict, config: Config, of_batch: Callable) -> Callable[[Sequence[Document]], np.ndarray]:
    """`documents -> [k, n]` float64: the sums by document of what `of_batch` gives by token, `[k, B, T]`."""
    refuse(config)
    config = _as_generated(config)
    by_token = jax.jit(partial(of_batch, config=config))

    def sums(documents: Sequence[Document]) -> np.ndarray:
        total = None
        for batch in batched(documents, config):
            found, number_BT = jax.device_get(by_token(params, batch))
            total = np.zeros((len(found), len(documents))) if total is None else total
            for kind, found_BT in enumerate(found):
                np.add.at(total[kind], number_BT, found_BT.astype(np.float64))  # padding adds 0 to the first
        total = np.zeros((2, 0)) if total is None else total
        if not np.isfinite(total).all():
            raise UserError(
                "likelihoods are not finite (NaN or infinity); the checkpoint is of a run that has diverged; take an "
                "earlier --step"
            )
        return total

    return sums


def _as_generated(config: Config) -> Config:
    """Experts take all that choose them: what lies beside a document in its row is no matter to it."""

    def dropless(sets):
        return {tower: dataclasses.replace(s, capacity=0.0) for tower, s in sets.items()}

    model = dataclasses.replace(config.model, remat="none")
    return dataclasses.replace(config, model=model, attn=dropless(config.attn), ffn=dropless(config.ffn))


def _nats(params: dict, batch: Batch, config: Config) -> tuple[list[jax.Array], jax.Array]:
    """-log p of each target that has weight, 0 of others, and the number of its document; all `[B, T]`."""
    nats_BT, tokens, _ = _of_tokens(params, batch, config)
    return [nats_BT], tokens.doc_id


def _nats_and_misses(params: dict, batch: Batch, config: Config) -> tuple[list[jax.Array], jax.Array]:
    """As `_nats`, and whether a target that has weight is not the likeliest id."""
    nats_BT, tokens, hidden = _of_tokens(params, batch, config)
    likeliest_BT = next_token.likeliest(hidden, transformer.head(params, config), config)
    return [nats_BT, (masked.weights(tokens, config) > 0) & (likeliest_BT != tokens.target)], tokens.doc_id


def _of_tokens(params: dict, batch: Batch, config: Config) -> tuple:
    output = transformer.forward(params, batch, config, causal=True)
    Z_M = losses.totals(batch, config)
    _, nats_BT, tokens, _ = next_token.of_tokens(output.hidden, transformer.head(params, config), Z_M, config)
    return nats_BT, tokens, output.hidden


def batched(documents: Sequence[Document], config: Config):
    """Batches of one shape with all documents, each of which carries its number as `doc_id`."""
    tokens = np.stack([lengths(d, config) for d in documents]) if documents else np.zeros((0, len(config.streams)), int)
    if not len(tokens):
        return
    streams = np.flatnonzero(tokens.any(0))  # a row without images has no room for them
    budgets = _budgets(tokens[:, streams], config.length)
    rows = _rows(tokens[:, streams], budgets)
    size = min(len(rows), max(config.data.batch // config.optim.accumulate, 1))  # as many as a step has at once
    names = [list(config.streams)[s] for s in streams]
    latents = [config.streams[name].features for name in names]
    rule = positions.of_streams(positions.rule(config), streams)
    place = np.zeros(len(config.streams), np.uint8)
    place[streams] = np.arange(len(streams))
    for first in range(0, len(rows), size):
        own = rows[first : first + size]
        own = own + [[]] * (size - len(own))
        packed = [[_numbered(documents[i], i, place) for i in row] for row in own]
        yield pack(packed, names, budgets, latents, rule)


def _numbered(d: Document, number: int, place: np.ndarray) -> Document:
    """The document under its number, its streams those of the batch."""
    return d._replace(doc_id=number, stream=place[d.stream], values={int(place[s]): x for s, x in d.values.items()})


def _budgets(tokens: np.ndarray, length: int) -> list[int]:
    """Tokens of a row by stream, in the proportion in which the documents `[n, M]` have them; about `length` in all, or
    as many as there are."""

    def rounded(x: float) -> int:
        return math.ceil(x / MULTIPLE) * MULTIPLE

    scale = min(length / tokens.sum(), 1)
    return [rounded(max(most, scale * total)) for most, total in zip(tokens.max(0), tokens.sum(0), strict=True)]


def _rows(tokens: np.ndarray, budgets: Sequence[int]) -> list[list[int]]:
    """Which documents `[n, M]` share a row: the longest first, each in the first row that has room."""
    rows: list[list[int]] = []
    room = np.zeros((len(tokens), len(budgets)), int)
    for i in np.argsort(-tokens.sum(1), kind="stable"):
        fits = (tokens[i] <= room[: len(rows)]).all(1)
        r = int(fits.argmax()) if fits.any() else len(rows)
        if r == len(rows):
            rows.append([])
            room[r] = budgets
        rows[r].append(int(i))
        room[r] -= tokens[i]
    return rows
