"""How a modality's content becomes tokens and comes back: a file for each row of `mot.config.modalities.MODALITIES`.

A file has functions and constants, which the rest of the preparation, previews and sampling call by the row's name:

* `read(part, remarks)` opens a part's content (bytes, a path, an array), checks it, and gives what the tokenizer's
  `encode` takes; a tuple is several arguments. It raises `ValueError` with what is wrong. `remarks` counts what is lost
  of it, in words that follow "3 of 7".
* `fits_column(column)` says whether a Parquet column of this Arrow type may hold it; `COLUMNS` names what may.
* `fits_array(dtype, shape)` says the same of a row of an array in an .npz, and `ARRAYS` names what may; `IS_RAGGED`:
  rows may lie end to end, with offsets.
* `TOKENIZERS` has a class for each form of the row, ids and vectors: a dataclass that `mot.tokenizers.archive` can
  store, with `encode` and `decode`; `ids` says how many ids, or `width` how many features; `tokens` how many tokens a
  unit has, where each has so many.
* `fit(form, contents, recipe)` learns one from what `read` gave; `recipe` has the row's options.
* `box(content, tokenizer, room)` shows what `decode` gives; its caption follows the modality's name. `picture(content,
  room)` is its picture alone.
* `files(content, tokenizer, seed)` are a sample's files by suffix; the first is the one that `read` can open again.

`ids.py` does this for ids of somebody's own tokenizer, whose modality has any name. Text is encoded with places to be
cut and is learnt with its markers, so `text.py` has an `encode` and a `fit` of its own.
"""

import importlib
from types import ModuleType
from typing import Any

from mot.config.modalities import MODALITIES, NPY_HEADER, row_of
from mot.data.preview import Box, Room
from mot.prepare import media as media
from mot.prepare.codecs import ids, latents
from mot.prepare.templates import READY
from mot.tokenizers.given import GivenIds
from mot.tokenizers.networked import has_no_way_back


def of(kind: str) -> ModuleType:
    """The file of a part's kind: a row's name, or the name of any modality and READY."""
    if kind.endswith(READY):
        return ids
    kind = row_of(kind)
    if kind not in MODALITIES:
        raise ValueError(f"no modality {kind!r} that mot opens; there are {', '.join(MODALITIES)}")
    return importlib.import_module(f"mot.prepare.codecs.{MODALITIES[kind].codec or kind}")


def max_bytes(kind: str) -> int:
    """Of a file of this kind."""
    return ids.MAX_BYTES + NPY_HEADER if kind.endswith(READY) else MODALITIES[kind].max_bytes


def box(modality: str, tokenizer: Any, content: Any, room: Room) -> Box:
    """A part of a document as it is drawn; its content as its tokenizer decodes it."""
    found = _of_tokenizer(modality, tokenizer).box(content, tokenizer, room)
    return found._replace(caption=modality + found.caption)


def picture(modality: str, tokenizer: Any, content: Any, room: Room):
    """uint8 `[height, width, 3]` of a part that is no text."""
    return _of_tokenizer(modality, tokenizer).picture(content, room)


def files(modality: str, tokenizer: Any, content: Any, seed: int) -> dict[str, bytes]:
    """A part that is no text as files, by suffix; the first is the one that can be read again."""
    return _of_tokenizer(modality, tokenizer).files(content, tokenizer, seed)


def _of_tokenizer(modality: str, tokenizer: Any) -> ModuleType:
    if isinstance(tokenizer, GivenIds) or has_no_way_back(tokenizer):
        return latents if hasattr(tokenizer, "width") else ids
    return of(modality)
