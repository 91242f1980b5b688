"""Text to ids and back, by a byte-level BPE that is trained on the first documents, or by a tokenizer that is given: a
tokenizer.json or a SentencePiece model.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from mot.config.modalities import MODALITIES, TEXT
from mot.data import preview
from mot.data.preview import Box, Room
from mot.errors import UserError, reason
from mot.prepare import columns
from mot.prepare.raw import Part
from mot.tokenizers import pieces, text

ARRAYS = "integers (with an array of their names) or strings [n]"
IS_RAGGED = False
COLUMNS = "a string"
STRETCH = 256 << 10  # characters that are encoded at a time: the encoder takes hundreds of bytes for each
LINES = 8  # of a part as it is drawn
# The trainer's time grows with the square of a word's length.
_WORD = re.compile(r".*?\S{4096}|.+", re.DOTALL)


def read(part: Part, remarks: Counter) -> str:
    try:
        part.content.encode()
    except UnicodeEncodeError:
        raise ValueError("its text holds characters that UTF-8 cannot write") from None
    return part.content


def fits_array(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return dtype.kind in "iuSU" and shape == ()


def fits_column(column) -> bool:
    from pyarrow import types

    return columns.is_text(column) or (types.is_dictionary(column) and columns.is_text(column.value_type))


def fit(corpus: Sequence[str], recipe, special: Sequence[str]) -> tuple[Tokenizer, np.ndarray, dict]:
    """The tokenizer, with the bytes that each of its ids stands for, and what it loses of the corpus, {} = nothing.

    Raises `UserError` where the recipe names a tokenizer.json, or a SentencePiece model, that cannot be taken.
    """
    if recipe.tokenizer:
        content = _given(Path(recipe.tokenizer))
    else:
        # Characters that UTF-8 cannot write are some document's fault, told in its turn.
        whole = [words.encode("utf-8", "ignore").decode() for words in corpus]
        short = [words for text_ in whole for words in _WORD.findall(text_)]
        content = text.train(short, recipe.text_ids or MODALITIES[TEXT].usual_ids, special).to_str()
    made = text.load(content, special)
    ids = sorted(made.get_vocab().values())
    if ids != list(range(made.get_vocab_size())):
        raise UserError(
            f"--tokenizer={recipe.tokenizer}: {len(ids)} entries, of ids {ids[0]} to {ids[-1]}; each id from 0 on must "
            "belong to one entry; number them anew"
        )
    sizes = text.byte_lengths(made)
    lossy = text.loss(made, corpus) if recipe.tokenizer else {}
    if lossy:
        sizes = text.measured(made, corpus, sizes)
        lossy |= {"counted": round(text.counted(made, corpus, sizes), 4)}
    return made, sizes, lossy


def _given(file: Path) -> str:
    """A tokenizer.json, or a SentencePiece model as one."""
    try:
        return pieces.to_json(file.read_bytes()) if file.suffix == ".model" else file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"--tokenizer={file}: {reason(error)}; name a tokenizer.json, or a .model of SentencePiece"
        ) from None


def encode(words: str, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """A text's ids, int64, and the tokens that begin a sentence, but the first, or a stretch."""
    ids, begin, count, place = [], [], 0, 0
    while place < len(words) or not ids:
        end = place + STRETCH
        if end < len(words):  # before a word's space, which belongs to the word
            space = max(words.rfind(mark, place + STRETCH // 2, end) for mark in " \n\t")
            end = space if space > 0 else end
        stretch = words[place:end]
        place = end
        try:
            encoding = tokenizer.encode(stretch, add_special_tokens=False)
        except Exception as error:  # of no type of its own
            raise ValueError(f"its text cannot be encoded by the tokenizer: {reason(error)}") from None
        ids.append(np.asarray(encoding.ids, np.int64))
        inner = text.sentences(stretch, [start for start, _ in encoding.offsets]) + count
        if count and len(ids[-1]):
            begin.append(np.array([count], np.int64))
        begin.append(inner)
        count += len(ids[-1])
    return np.concatenate(ids), np.concatenate(begin)


def box(words: str, tokenizer: Tokenizer | None, room: Room) -> Box:
    lines = textwrap.wrap(preview.legible(words), room.columns, max_lines=LINES, placeholder=" ...") or ["(empty)"]
    return Box(f", {len(words)} characters", tuple(lines), None)
