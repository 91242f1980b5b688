"""Logits of a fixed prompt, stored beside weights: whoever reads them elsewhere sees whether they are the same."""

import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer

from mot.config import Config
from mot.data import positions
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
    # it is one matrix at a time. Blocks of experts' rows would be a loop in Python: 106 s for 64 experts in 4 layers,
    # and 0.3 s where XLA has the loop.
    config = replace(config, model=replace(config.model, scan=False, dispatch="ragged"))
    weights = jax.tree.map(np.asarray, weights)
    rule = positions.of_streams(positions.rule(config), [list(config.streams).index("text")])
    batch = pack([[document(0, 0, ids, np.zeros(len(ids)))]], ("text",), (len(ids),), rule=rule)
    with jax.disable_jit():
        ((h_RD, _),) = transformer.forward(weights, batch, config).hidden
        logits_TV = transformer.logits(h_RD.astype("float32"), transformer.head(weights, config), config)
        return np.asarray(logits_TV)


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
        if not file.is_file():
            raise ValueError("it is no file")
        with np.load(file, allow_pickle=False) as arrays:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in arrays.zip.infolist()):
                raise ValueError("it is compressed")  # and might unfold to any size
            found = {name: arrays[name] for name in arrays.files}
        if not {"ids", "logits"} <= found.keys():
            raise ValueError("it has no ids and logits")
        ids, logits_ = found["ids"], found["logits"]
        if ids.dtype.kind not in "iu" or logits_.dtype.kind != "f" or ids.ndim != 1 or logits_.ndim != 2:
            raise ValueError("it has no ids and logits")
        if not 1 <= len(ids) <= LONGEST or len(logits_) != len(ids) or not logits_.size:
            raise ValueError(f"{len(ids)} ids, and logits {list(logits_.shape)}; 1 to {LONGEST} have a row each")
    except Exception as error:  # numpy's reader has many
        raise UserError(
            f"{file} cannot be read ({reason(error)}); move it away to go on without a comparison"
        ) from None
    return found


def of_ours(stored: dict[str, np.ndarray], order: np.ndarray | None) -> dict[str, np.ndarray]:
    """What lies beside their weights, in the order of our ids (`families.order_of_ids`)."""
    if not stored or order is None or stored["logits"].shape[1] < len(order):
        return stored
    logits = stored["logits"].copy()
    logits[:, : len(order)] = stored["logits"][:, order]
    return stored | {"logits": logits}


def of_theirs(logits: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """Logits of ours `[T, V]` in the order of their ids."""
    if order is None:
        return logits
    found = logits.copy()
    found[:, order] = logits[:, : len(order)]
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
