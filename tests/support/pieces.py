"""SentencePiece models, written byte for byte as its protobuf has them."""

import struct

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPECIAL = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number, value):
    """A number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text, score=-1.0, kind=NORMAL):
    return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + field(3, kind))


def model(pieces, kind=1, bytes_=False, prefix=True, joins=True, suffix=False):
    """A .model of pieces, each its text, score and kind; `kind` is 1 (unigram) or 2 (bpe)."""
    trainer = field(3, kind) + field(24, int(suffix)) + field(35, int(bytes_))
    normalizer = field(3, int(prefix)) + field(4, int(joins)) + field(5, 1)
    return b"".join(piece(*one) for one in pieces) + field(2, trainer) + field(3, normalizer)
