"""Logits of a fixed prompt, stored beside weights: whoever reads them elsewhere sees whether they are the same."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer

from mot.config import Config
from mot.data.packing import document, pack
from mot.errors import UserError, reason
from mot.files import replacing
from mot.model import transformer

NAME = "prompt.npz"
TEXT = "The quick brown fox jumps over the lazy dog."
LONGEST = 8  # tokens
TOLERANCE = 1e-3  # of logits, relative to their largest: other machines sum in another order


def ids_of(tokenizer: Tokenizer) -> np.ndarray:
    """The first ids of the prompt's text, or of any text where this has none."""
    return np.array(tokenizer.encode(TEXT, add_special_tokens=False).ids[:LONGEST] or [0], np.int32)


def logits(weights: dict, config: Config, ids: np.ndarray) -> np.ndarray:
    """float32 `[T, V]` of a text alone."""
    # A compiled program copies the weights of all layers on a CPU before it uses one. Op by op, from the host's memory,
    # it is one matrix at a time.
    config = replace(config, model=replace(config.model, scan=False))
    weights = jax.tree.map(np.asarray, weights)
    batch = pack([[document(0, 0, ids, np.zeros(len(ids)))]], ("text",), (len(ids),))
    with jax.disable_jit():
        ((h_RD, _),) = transformer.forward(weights, batch, config).hidden
        return np.asarray(h_RD.astype("float32") @ transformer.head(weights, config))


def write(folder: Path, ids: np.ndarray, logits: np.ndarray, **more: np.ndarray) -> None:
    """`more` are arrays of an import, which an export puts back."""
    with replacing(folder / NAME) as partial_, open(partial_, "wb") as file:
        np.savez(file, ids=ids, logits=logits, **more)


def read(folder: Path) -> dict[str, np.ndarray]:
    """What `write` wrote; {} where nothing lies there. Raises `UserError` for a file that is none."""
    file = folder / NAME
    if not file.exists():
        return {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        if found["ids"].ndim != 1 or found["logits"].ndim != 2 or len(found["ids"]) != len(found["logits"]):
            raise ValueError("it has no logits of its ids")
    except Exception as error:  # numpy's reader has many
        raise UserError(
            f"{file} cannot be read ({reason(error)}); move it away to go on without a comparison"
        ) from None
    return found


def compare(folder: Path, stored: dict[str, np.ndarray], weights: dict, config: Config) -> float:
    """How far the logits of these weights are from those stored beside others, relative to the largest of these.

    Raises `UserError` where that is more than TOLERANCE. Of different vocabularies what both have is compared.
    """
    ids = stored["ids"]
    if not len(ids) or ids.min() < 0 or ids.max() >= config.vocab:
        raise UserError(f"{folder / NAME} is of another vocabulary; move it away to go on without a comparison")
    then = stored["logits"]
    now = logits(weights, config, ids)
    V = min(then.shape[1], now.shape[1])
    apart = float(np.abs(then[:, :V] - now[:, :V]).max() / np.abs(then[:, :V]).max())
    if not apart <= TOLERANCE:
        raise UserError(
            f"{folder / NAME}: the logits of a fixed prompt are {apart:.2g} (relative) from those of these weights; "
            "the weights were changed after they were written; copy them again"
        )
    return apart
