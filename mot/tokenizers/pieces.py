"""SentencePiece models as tokenizers of the tokenizers library: their protobuf is read here, and nothing is run.

A piece keeps its id. What sentencepiece never finds in a text (control, unknown, unused and byte pieces) is not found
here either, though a text may spell it. Format: sentencepiece_model.proto of google/sentencepiece.

Ids are sentencepiece's own but for these: a second accent on one letter, where the model's normalisation knows the two
together and not the three, is lost; of a bpe model that begins texts with a space, a text that is a user-defined piece
and nothing else has no space before it; and pieces of exactly equal score may be chosen otherwise.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mot.errors import reason

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of pieces
UNIGRAM, BPE = 1, 2  # types of models
KINDS = {UNIGRAM: "unigram", BPE: "bpe", 3: "word", 4: "char"}
SPACE = "\u2581"
BREAK = "\U000e0001"  # a control character, which no accent joins, and which nothing maps
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


class Model(NamedTuple):
    pieces: list[Piece]  # by id
    kind: int
    falls_back: bool  # to bytes, for characters that are in no piece
    charsmap: bytes  # how characters are normalised, compiled
    begins_with_space: bool  # as if each text did
    joins_spaces: bool  # several are one, and none begins or ends a text


def to_json(content: bytes) -> str:
    """A `tokenizer.json` of a SentencePiece `.model`; raises `ValueError` for what is none, or of another kind."""
    model = read(content)
    try:
        return _tokenizer(model).to_str()
    except BaseException as error:  # panics of the library's Rust are no `Exception`
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(
            f"a SentencePiece model that the tokenizers library does not take ({reason(error)}); copy it again"
        ) from None


def _tokenizer(model: Model) -> Tokenizer:
    tokenizer = Tokenizer(_unigram(model) if model.kind == UNIGRAM else _bpe(model))
    tokenizer.normalizer = normalizers.Sequence(list(_normalizers(model)))
    if model.kind == UNIGRAM and (apart := _apart(model)):
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(apart), "isolated")
    tokenizer.decoder = decoders.Sequence(list(_decoders(model)))
    kinds = {piece.text: piece.kind for piece in model.pieces}
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text, kind in kinds.items() if kind in (CONTROL, UNKNOWN)]
    )
    if model.kind == BPE:
        # No merge makes them: they are whole before anything is merged. A unigram model finds them by their scores.
        tokenizer.add_tokens([AddedToken(text, normalized=True) for text in _given(model)])
    return tokenizer


def read(content: bytes) -> Model:
    """What a model file says; raises `ValueError` where it is none, or mot cannot do the same."""
    try:
        pieces, trainer, normalizer = [], {}, {}
        for field, value in _fields(content):
            if field == 1:
                pieces.append(_piece(dict(_fields(value))))
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
    except (ValueError, LookupError, TypeError, AttributeError, struct.error):
        raise ValueError("no SentencePiece model; give a .model file of sentencepiece, or a tokenizer.json") from None
    kind = trainer.get(3, UNIGRAM)
    unknown = [piece for piece in pieces if piece.kind == UNKNOWN]
    if not pieces or len(unknown) != 1 or len({piece.text for piece in pieces}) < len(pieces):
        raise ValueError(f"a SentencePiece model of {len(pieces)} pieces, {len(unknown)} of them for what is unknown")
    if kind not in (UNIGRAM, BPE):
        raise ValueError(f"a SentencePiece model of the kind {KINDS.get(kind, kind)}; unigram and bpe are known")
    falls_back = bool(trainer.get(35, 0))
    if falls_back and not {*BYTES} <= {piece.text for piece in pieces if piece.kind == BYTE}:
        raise ValueError("a SentencePiece model that falls back to bytes and has no piece for some")
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise ValueError("a SentencePiece model whose spaces end words, or are no part of pieces; it cannot be taken")
    return Model(
        pieces, kind, falls_back, normalizer.get(2, b""), bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
    )


def _piece(fields: dict[int, Any]) -> Piece:
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(fields[1].decode(), score, fields.get(3, NORMAL))


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: numbers, or the bytes of what is longer; `ValueError` where it ends early."""
    place = 0

    def number() -> int:
        nonlocal place
        found = 0
        for shift in range(0, 70, 7):  # protobuf's numbers have 64 bits
            byte = content[place]
            place += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found
        raise ValueError

    while place < len(content):
        key = number()
        kind = key & 7
        if kind == 0:
            yield key >> 3, number()
            continue
        if kind not in (1, 2, 5):
            raise ValueError
        size = number() if kind == 2 else 8 if kind == 1 else 4
        if place + size > len(content):
            raise ValueError
        yield key >> 3, content[place : place + size]
        place += size


def _unigram(model: Model) -> models.Unigram:
    """Scores as sentencepiece has them: those of pieces that texts do not have are the least, and weigh nothing."""
    scores = [piece.score for piece in model.pieces if piece.kind == NORMAL] or [0.0]
    least, most = min(scores), max(0.0, *scores)

    def score(piece: Piece) -> float:
        if piece.kind == USER_DEFINED:
            return len(piece.text) * most - 0.1
        return piece.score if piece.kind == NORMAL else least

    unknown = next(i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN)
    vocabulary = [(piece.text, score(piece)) for piece in model.pieces]
    return models.Unigram(vocabulary, unknown, model.falls_back)


def _bpe(model: Model) -> models.BPE:
    """Its merges: each two pieces that make a third, the third's score decides when."""
    unknown = next(piece.text for piece in model.pieces if piece.kind == UNKNOWN)
    parts = {piece.text for piece in model.pieces if piece.kind == NORMAL}
    merges = []
    for piece in sorted((p for p in model.pieces if p.kind == NORMAL), key=lambda piece: -piece.score):
        splits = ((piece.text[:i], piece.text[i:]) for i in range(1, len(piece.text)))
        merges += [split for split in splits if parts.issuperset(split)]
    vocabulary = {piece.text: i for i, piece in enumerate(model.pieces)}
    return models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.falls_back)


def _given(model: Model) -> list[str]:
    return [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]


def _apart(model: Model) -> str:
    """A regular expression for the places where a text that spells a piece is cut, as it is not to be found there.

    The place is one that no piece goes across, where there is such a place.
    """
    found = "\0".join(piece.text for piece in model.pieces if piece.kind in (NORMAL, USER_DEFINED))
    spelt = [piece.text for piece in model.pieces if piece.kind not in (NORMAL, USER_DEFINED) and len(piece.text) > 1]

    def cut(text: str) -> str:
        i = next((i for i in range(1, len(text)) if text[i - 1 : i + 1] not in found), 1)
        return f"(?<={re.escape(text[:i])})(?={re.escape(text[i:])})"

    return "|".join(map(cut, spelt))


def _normalizers(model: Model) -> Iterator[Any]:
    if model.charsmap:
        mapped = normalizers.Precompiled(model.charsmap)
        if lost := _before_lost_marks(mapped):
            yield normalizers.Replace(Regex(f"(?<=[{lost}])(?=[\\p{{M}}\u200c\u200d])"), BREAK)
        yield mapped
        yield normalizers.Replace(BREAK, "")
    if model.joins_spaces:
        yield normalizers.Replace(Regex("^ +| +$"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if model.begins_with_space and (given := _given(model)) and model.kind == BPE:
        # Not to a piece itself, which is brought into this form to be looked for in texts.
        alone = "|".join(map(re.escape, given))
        yield normalizers.Replace(Regex(rf"\A(?!(?:{alone})\z)(?=[\s\S])"), SPACE)
    elif model.begins_with_space:
        yield normalizers.Prepend(SPACE)
    yield normalizers.Replace(" ", SPACE)


def _before_lost_marks(mapped: normalizers.Precompiled) -> str:
    """Characters that are mapped, and with which the library would lose an accent that follows: it maps both as one.

    sentencepiece maps what it knows together, and keeps the rest. In the library a character and its accents, where
    they are less than six bytes, become what the first of them are mapped to.
    """
    accents = [chr(code) for code in range(0x300, 0x370)]

    def loses(c: str) -> bool:
        alone = mapped.normalize_str(c)
        return alone != c and all(mapped.normalize_str(c + accent) == alone for accent in accents)

    characters = (chr(code) for code in range(0x80, 0x10000) if not 0xD800 <= code < 0xE000)
    return re.escape("".join(c for c in characters if loses(c)))


def _decoders(model: Model) -> Iterator[Any]:
    yield decoders.Replace(SPACE, " ")
    if model.falls_back:
        yield decoders.ByteFallback()
    yield decoders.Fuse()
    if model.begins_with_space:
        yield decoders.Strip(" ", 1, 0)
