"""Text to ids: a byte-level BPE, trained once on a corpus and kept in the user's cache under its digests."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# Special tokens belong to text: the model writes them there. <boi> and <eoi> enclose an image.
SPECIAL = ("<pad>", "<bos>", "<eos>", "<boi>", "<eoi>")
PAD, BOS, EOS, BOI, EOI = range(len(SPECIAL))


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/mot`, by default `~/.cache/mot`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mot"


def train(corpus: Sequence[str], size: int) -> Tokenizer:
    """A byte-level BPE of `size` entries, special tokens first; any text round-trips through it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if tokenizer.get_vocab_size() != size:
        raise ValueError(
            f"the corpus yields {tokenizer.get_vocab_size()} entries, {size} were asked for; give more text"
        )
    return tokenizer


def load_or_train(corpus: Sequence[str], size: int) -> Tokenizer:
    """`train`, or what it wrote to the cache before.

    The file's name holds the digest of what went in and of the file itself, so a damaged one is made again.
    """
    recipe = hashlib.sha256(f"{tokenizers.__version__}\n{size}\n{SPECIAL}\n".encode())
    for text in corpus:
        recipe.update(hashlib.sha256(text.encode()).digest())
    prefix = f"bpe-{recipe.hexdigest()[:16]}-"
    folder = cache_folder()
    for path in sorted(folder.glob(prefix + "*.json")):
        content = path.read_bytes()
        if path.stem == prefix + _digest(content):
            return Tokenizer.from_str(content.decode())
    tokenizer = train(corpus, size)
    content = tokenizer.to_str().encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{prefix}{os.getpid()}"
        temporary.write_bytes(content)
        temporary.rename(folder / f"{prefix}{_digest(content)}.json")
    except OSError as error:  # a read-only home costs a second at each start, nothing more
        print(f"the tokenizer could not be cached: {error}")
    return tokenizer


def digest(tokenizer: Tokenizer) -> str:
    return _digest(tokenizer.to_str().encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text that each id stands for, 0 for special tokens: a byte-level entry has a character for each byte."""
    lengths = np.array([len(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())])
    lengths[: len(SPECIAL)] = 0
    return lengths


def split(tokenizer: Tokenizer, text: str, longest: int) -> list[list[int]]:
    """The ids of a text in pieces of at most `longest`, cut at the last paragraph, sentence or word that fits."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids, starts = encoding.ids, [start for start, _ in encoding.offsets]
    before = lambda i: text[: starts[i]]
    boundaries = (
        lambda i: before(i).endswith("\n\n"),
        lambda i: before(i).rstrip(" ").endswith((".", "?", "!", "\n")),
        lambda i: text[starts[i]].isspace(),
    )
    pieces, begin = [], 0
    while len(ids) - begin > longest:
        candidates = range(begin + longest, begin + longest // 2, -1)
        cut = next((i for is_end in boundaries for i in candidates if is_end(i)), begin + longest)
        pieces.append(ids[begin:cut])
        begin = cut
    return [*pieces, ids[begin:]]
