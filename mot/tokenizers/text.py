"""Text to ids: a byte-level BPE, trained once on a corpus and kept in the user's cache under its digests."""

import contextlib
import hashlib
import itertools
import re
from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mot.files import cache_folder, write_atomically

# Special tokens belong to text: the model writes them there. <boi> and <eoi> enclose an image.
SPECIAL = ("<pad>", "<bos>", "<eos>", "<boi>", "<eoi>")
PAD, BOS, EOS, BOI, EOI = range(len(SPECIAL))


def train(corpus: Sequence[str], size: int, special: Sequence[str] = SPECIAL) -> Tokenizer:
    """A byte-level BPE of `size` entries, less where the corpus is small, special tokens first.

    Any text round-trips through it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
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
    for path in sorted(folder.glob(prefix + "*.json")) if folder else ():
        content = path.read_bytes()
        if path.stem == prefix + _digest(content):
            return Tokenizer.from_str(content.decode())
    tokenizer = train(corpus, size)
    if tokenizer.get_vocab_size() != size:
        raise ValueError(
            f"the corpus yields {tokenizer.get_vocab_size()} entries, {size} were asked for; give more text"
        )
    content = tokenizer.to_str().encode()
    if folder:
        with contextlib.suppress(OSError):  # a full disk costs a second at each start, nothing more
            write_atomically(folder / f"{prefix}{_digest(content)}.json", content)
    return tokenizer


def digest(tokenizer: Tokenizer) -> str:
    return _digest(tokenizer.to_str().encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def load(content: str, special: Sequence[str]) -> Tokenizer:
    """A tokenizer from its JSON (Hugging Face's `tokenizer.json`), with the special tokens that it lacks put last.

    Text that spells a special token is text to it. Raises `ValueError` where the JSON is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # of no type of its own
        raise ValueError(f"no tokenizer of the tokenizers library: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens(list(special))
    tokenizer.encode_special_tokens = True
    return tokenizer


def byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """`[V]` bytes of text that each id stands for, 0 for special tokens.

    A byte-level entry has a character for each byte; elsewhere a word begins with a sign for a space, and a byte that
    has no entry is written <0x..>.
    """
    added = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    entries = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        size = len
    else:
        size = lambda entry: 1 if _BYTE.fullmatch(entry) else len(entry.replace("\u2581", " ").encode())
    return np.array([0 if i in added else size(entry) for i, entry in enumerate(entries)])


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Where a sentence has ended: after its full stop and closing quotes, and after a line.
_SENTENCE = re.compile(r"""[.!?]['")\]\u2019\u201d]*(?=\s)|[\u3002\uff01\uff1f]|\n+""")
LONGEST_SENTENCE = 128


def sentences(text: str, starts: Sequence[int]) -> np.ndarray:
    """Which tokens begin a sentence, but the first; `starts` are the characters at which tokens begin.

    What goes on for longer than `LONGEST_SENTENCE` tokens without an end is cut into parts of so many.
    """
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    begin = np.unique(np.searchsorted(starts, ends))
    begin = begin[(begin > 0) & (begin < len(starts))]
    edges = np.concatenate([[0], begin, [len(starts)]])
    within = [np.arange(a, b, LONGEST_SENTENCE) for a, b in itertools.pairwise(edges)]
    return np.concatenate(within)[1:].astype(np.int64) if len(starts) else begin


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
