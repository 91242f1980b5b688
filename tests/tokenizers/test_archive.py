"""A tokenizer's file is what was written, or a ValueError."""

import hashlib
import io
import zipfile
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mot.tokenizers import archive, codebook
from tests.support.codes import random_codes

CODES = random_codes(7, 12)


@dataclass
class Kind:
    FORMAT: ClassVar[str] = "a kind 1"
    side: int
    patch: int
    codes_KP: np.ndarray = field(metadata={archive.STORED: "codes"})

    def __post_init__(self):
        codebook.check(self.codes_KP, 12)


class Other(Kind):
    FORMAT = "a kind 2"


CONTENT = archive.to_bytes(Kind(4, 2, CODES))


def test_a_file_holds_what_went_in_and_equal_content_is_equal_bytes():
    kind = archive.from_bytes(Kind, CONTENT)
    assert (kind.side, kind.patch) == (4, 2)
    np.testing.assert_array_equal(kind.codes_KP, CODES)
    kind.codes_KP = np.asfortranarray(CODES)
    assert archive.to_bytes(kind) == CONTENT
    with np.load(io.BytesIO(CONTENT), allow_pickle=False) as opened:
        assert sorted(opened) == ["codes", "format", "patch", "side"]
    # The same in every version, or datasets lose their tokenizer.
    content = archive.pack("a kind 1", {"side": np.array(4), "codes": np.arange(24, dtype=np.uint8).reshape(2, 12)})
    assert hashlib.sha256(content).hexdigest()[:16] == "131fda6fedfa4885"


def test_every_flipped_bit_and_every_cut_is_found():
    for i in range(len(CONTENT)):
        damaged = bytearray(CONTENT)
        damaged[i] ^= 1 << i % 8
        for content in (bytes(damaged), CONTENT[:i]):
            with pytest.raises(ValueError, match=r"it |its |codes are"):
                archive.from_bytes(Kind, content)


@given(st.binary(max_size=400), st.integers(0, len(CONTENT)), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
@example(b"PK\x05\x06" + bytes(18), 0, 0)
def test_foreign_bytes_are_a_value_error(noise, place, removed):
    content = CONTENT[:place] + noise + CONTENT[place + removed :]
    if content != CONTENT:
        for foreign in (noise, content):
            with pytest.raises(ValueError, match=r"it |its |codes are"):
                archive.from_bytes(Kind, foreign)


def zipped(compression=zipfile.ZIP_STORED, **arrays):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=True)
            file.writestr(f"{name}.npy", member.getvalue())
    return out.getvalue()


@pytest.mark.parametrize(
    "changed",
    [
        {"codes": CODES.astype(np.float32)},
        {"codes": CODES[0]},
        {"codes": np.array([{}], object)},
        {"side": np.array([4, 4])},
        {"side": np.array(2**40)},
        {"side": np.array(np.nan)},
        {"format": np.array(["a kind 1"], object)},
        {"more": np.array(1)},
    ],
    ids=str,
)
def test_other_arrays_are_a_value_error(changed):
    arrays = {"format": np.array("a kind 1"), "side": np.array(4), "patch": np.array(2), "codes": CODES}
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with pytest.raises(ValueError, match=r"it |its |codes are"):
            archive.from_bytes(Kind, zipped(compression, **arrays | changed))


def test_another_format_is_named():
    with pytest.raises(ValueError, match=r"it holds 'a kind 1' and 'a kind 2' is needed"):
        archive.from_bytes(Other, CONTENT)
