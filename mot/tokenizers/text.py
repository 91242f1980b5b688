"""Text to ids: a byte-level BPE, trained once on a corpus and kept in the user's cache under its digests."""

import contextlib
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

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
    """`[V]` bytes of UTF-8 that each id stands for within a text, 0 for special tokens.

    What the tokenizer's decoder adds to a text for an entry is what the entry stands for, but where it is a part of a
    character: such are counted as bytes. A word that is a text's first may have a space less.
    """
    added = tokenizer.get_added_tokens_decoder()
    decode = tokenizer.decoder.decode if tokenizer.decoder else " ".join  # as the library does without one
    by_bytes = decode(["\u00c3", "\u00a4"]) == "\u00e4"  # a character for each byte, wherever that decoder stands
    falls_back = decode(["<0x41>"]) == "A"
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    alone = len(decode(["a", "a"]).encode())

    def size(i: int) -> int:
        if i in added:
            return 0 if added[i].special else len(added[i].content.encode())
        entry = tokenizer.id_to_token(i) or ""
        if falls_back and _BYTE.fullmatch(entry):
            return 1
        if by_bytes:
            return len(entry) if alphabet.issuperset(entry) else len(entry.encode())
        return max(0, len(decode(["a", entry, "a"]).encode()) - alone)

    return np.array([size(i) for i in range(tokenizer.get_vocab_size())])


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
MEASURED = 4 << 20  # characters by which a tokenizer is judged, in stretches of
JUDGED = 1 << 16


def _judged(corpus: Sequence[str]) -> Iterator[str]:
    left = MEASURED
    for text in corpus:
        for begin in range(0, min(len(text), left), JUDGED):
            yield text[begin : begin + min(JUDGED, left)]
        left -= len(text)
        if left <= 0:
            return


def loss(tokenizer: Tokenizer, corpus: Sequence[str]) -> dict:
    """What does not come back of texts through a tokenizer; {} where all does, but for a space before the first word.

    `documents`: the fraction of the texts; `bytes`: the fraction of their bytes, as characters that do not come back;
    `text` and `back`: where the first of them differs.
    """
    texts, differ, size, lost, example = 0, 0, 0, 0, {}
    for text in _judged(corpus):
        try:
            back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception:  # what cannot be encoded is told as a bad document
            continue
        texts, size = texts + 1, size + len(text.encode(errors="surrogatepass"))
        if back.removeprefix(" ") == text.removeprefix(" "):
            continue
        differ += 1
        gone = Counter(text) - Counter(back)
        lost += sum(n * len(character.encode(errors="surrogatepass")) for character, n in gone.items())
        example = example or _difference(text, back)
    return {"documents": differ / texts, "bytes": lost / size} | example if differ else {}


def _difference(text: str, back: str) -> dict[str, str]:
    """Some words around the first place where two texts differ."""
    at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    begin = max(0, text.rfind(" ", 0, max(0, at - 8)) + 1)
    return {"text": text[begin : at + 24], "back": back[begin : at + 24]}


def measured(tokenizer: Tokenizer, corpus: Sequence[str], sizes: np.ndarray) -> np.ndarray:
    """`[V]` bytes of the original texts that each id stood for, on average; `sizes` for ids that are not in them.

    What a tokenizer drops between two tokens belongs to the second.
    """
    total, count = np.zeros((2, len(sizes)))
    for text in _judged(corpus):
        try:
            encoding = tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # as above
            continue
        if encoding.ids:
            bytes_before = np.cumsum([0, *(len(c.encode(errors="surrogatepass")) for c in text)])
            ends = np.maximum.accumulate([end for _, end in encoding.offsets])
            ends[-1] = len(text)
            np.add.at(total, encoding.ids, np.diff(bytes_before[ends], prepend=0))
            np.add.at(count, encoding.ids, 1)
    return np.where(count > 0, np.rint(total / np.maximum(count, 1)), sizes).astype(np.int64)


def counted(tokenizer: Tokenizer, corpus: Sequence[str], sizes: np.ndarray) -> float:
    """The bytes that `sizes` count in texts, as a fraction of those they have."""
    found, size = 0, 0
    for text in _judged(corpus):
        with contextlib.suppress(Exception):  # as above
            found += int(sizes[tokenizer.encode(text, add_special_tokens=False).ids].sum())
            size += len(text.encode(errors="surrogatepass"))
    return found / max(size, 1)


def told(lossy: dict) -> str:
    """What `loss` and `counted` have found, in words."""
    return (
        f"the text tokenizer is lossy: {100 * lossy['documents']:.1f} % of the first documents do not come back as "
        f"they were, {100 * lossy['bytes']:.2f} % of their bytes are lost ({lossy['text']!r} comes back as "
        f"{lossy['back']!r}); bits per byte are of the original text: an id counts as the bytes that it stood for in "
        f"these documents, on average, rounded (together {100 * lossy['counted']:.1f} % of them)"
    )


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
    """The ids of a text in pieces of at most `max_tokens`, cut at the last paragraph, sentence or word that fits."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids = encoding.ids
    starts = [start for start, _ in encoding.offsets]

    def before(i):
        return text[: starts[i]]

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
