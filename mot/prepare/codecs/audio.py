"""Sound: WAV and other files to log-mel frames, as ids of a codebook or as vectors, and back.

What a file claims to be is read from its first bytes, and its length is judged before it is decoded.
"""

import io
import math
import struct
from collections import Counter
from collections.abc import Iterable

import numpy as np

from mot.config.modalities import IDS, MODALITIES, VECTORS
from mot.data import preview
from mot.data.preview import Box, Room
from mot.errors import reason
from mot.prepare import columns
from mot.prepare.media import Content, bytes_of
from mot.prepare.raw import Part
from mot.tokenizers import audio, vectors, waveform
from mot.tokenizers.audio import AudioTokenizer, fit_audio
from mot.tokenizers.networked import Networked
from mot.tokenizers.vectors import AudioVectors
from mot.tokenizers.waveform import Sound

TOKENIZERS = {IDS: AudioTokenizer, VECTORS: AudioVectors}
ARRAYS = "integers or floats [n, samples], or [samples] with offsets [n + 1]"
IS_RAGGED = True
COLUMNS = columns.ENCODED
RATES = (1000, 384_000)  # of a file
MAX_SECONDS = 3600
MAX_BYTES = 512 * 2**20  # of all samples in float32
UNKNOWN = 2**62  # samples, and more: what libsndfile says of a FLAC whose header leaves its length open
PIPED = 0x7FFFF000  # bytes, and more: what writers to a pipe say of a WAV, whose length they do not know
PEAK = 4.0  # decoders overshoot 1 a little; a float wave beyond this was not scaled to -1..1
TICKS = 64  # pixels between two ticks of a spectrogram's axis at least


def read(part: Part, remarks: Counter) -> tuple[np.ndarray, int]:
    return sound(part.content, part.rate)


def sound(content: Content, rate: int = 0) -> tuple[np.ndarray, int]:
    """float32 [n] in -1..1, the mean of all channels, and the samples a second.

    Encoded as WAV, FLAC, OGG or MP3 (which name their rate), or a 1-d array of samples and its `rate`: floats in -1..1
    or full-scale int16, int32 or uint8 around 128.
    """
    if isinstance(content, np.ndarray):
        if content.ndim != 1 or (content.dtype not in (np.int16, np.int32, np.uint8) and content.dtype.kind != "f"):
            raise ValueError(
                f"audio array {content.dtype} {list(content.shape)}; float, int16, int32 or uint8 [n] is allowed"
            )
        _check_length(len(content), 1, rate)
        if content.dtype.kind == "f":
            return _wave(content.astype(np.float32)), rate
        bits = 8 * content.dtype.itemsize
        centre = 128 if content.dtype == np.uint8 else 0
        return _wave(((content.astype(np.float64) - centre) / 2 ** (bits - 1)).astype(np.float32)), rate
    import soundfile

    kind, encoded = _header(bytes_of(content, MODALITIES["audio"].max_bytes))
    try:
        with soundfile.SoundFile(io.BytesIO(encoded)) as file:
            frames, channels, rate = file.frames, file.channels, file.samplerate
            if frames < UNKNOWN:
                _check_length(frames, channels, rate)
                samples = file.read(dtype="float32", always_2d=True)
            else:
                samples = _to_the_end(encoded)
    except ValueError:
        raise
    except Exception as error:  # soundfile's own errors are RuntimeErrors, of which it exports no common class
        raise ValueError(f"the {kind} audio does not decode: {reason(error)}") from None
    return _wave(samples.mean(1)), rate


def _to_the_end(encoded: bytes) -> np.ndarray:
    """float32 [n, channels] of a file whose header leaves its length open, under the same limits as any other."""
    import soundfile

    class Unsought(soundfile.SoundFile):
        """`read` seeks to where it stopped reading, which libsndfile cannot do at the end of such a file."""

        def seekable(self) -> bool:
            return False

    with Unsought(io.BytesIO(encoded)) as file:
        blocks, count = [], 0
        while len(block := file.read(2**16, dtype="float32", always_2d=True)):
            blocks.append(block)
            count += len(block)
            _check_length(count, file.channels, file.samplerate)
        _check_length(count, file.channels, file.samplerate)
    return np.concatenate(blocks)


def _header(encoded: bytes) -> tuple[str, bytes]:
    """The kind of file, by its first bytes, so that no other of the library's many parsers is ever reached; and it.

    Of a WAV or OGG that is cut off the library would return what is there (of an MP3 it does); both are refused here.
    """
    if encoded[:4] in (b"RIFF", b"RF64", b"BW64") and encoded[8:12] == b"WAVE":
        return "WAV", _wav(encoded)
    if encoded.startswith(b"fLaC"):
        return "FLAC", encoded
    if encoded.startswith(b"OggS"):
        page = encoded[encoded.rindex(b"OggS") :]
        ends = len(page) > 26 and page[5] & 4  # the flag of a stream's last page
        if not ends or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
            raise ValueError("the OGG audio is cut off")
        return "OGG", encoded
    if encoded.startswith(b"ID3") or (len(encoded) > 1 and encoded[0] == 0xFF and encoded[1] & 0xE0 == 0xE0):
        return "MP3", encoded
    raise ValueError("not a WAV, FLAC, OGG or MP3 file")


def _wav(encoded: bytes) -> bytes:
    """A WAV whose header says how long it is: as it was, or mended where its writer could not know.

    Writers to a pipe put the largest number there, or 0, and never come back to it. An RF64 (EBU Tech 3306) keeps its
    sizes, of 64 bits, in a chunk ds64; whatever is read here fits the 32 bits of a plain WAV.
    """
    place, large = 12, 0
    while place + 8 <= len(encoded):
        name, size = struct.unpack_from("<4sI", encoded, place)
        if name == b"data":
            break
        if name == b"ds64" and place + 24 <= len(encoded):
            (large,) = struct.unpack_from("<Q", encoded, place + 16)
        place += 8 + size + size % 2
    else:
        raise ValueError("the WAV audio is cut off: no samples")
    have = len(encoded) - place - 8
    is_plain = encoded.startswith(b"RIFF")
    closed = struct.unpack_from("<I", encoded, 4)[0] + 8 == len(encoded)  # by a writer that knew its length
    size = size if is_plain or size < PIPED else large
    if size >= PIPED or (size == 0 and not (is_plain and closed)):
        size = have
    elif have < size:
        raise ValueError(f"the WAV audio is cut off: {have} of {size} bytes")
    elif is_plain:
        return encoded
    header = bytearray(encoded[: place + 8])
    header[:4] = b"RIFF"
    struct.pack_into("<I", header, 4, len(encoded) - 8)
    struct.pack_into("<I", header, place + 4, size)
    return bytes(header).replace(b"ds64", b"JUNK", 1) + encoded[place + 8 :]


def _check_length(samples: int, channels: int, rate: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"audio of {rate} samples a second; {RATES[0]} to {RATES[1]} are allowed")
    if not 1 <= samples <= MAX_SECONDS * rate:
        raise ValueError(
            f"audio of {samples} samples at {rate} a second; at least one and at most {MAX_SECONDS} seconds are allowed"
        )
    if samples * channels * 4 > MAX_BYTES:
        raise ValueError(
            f"audio of {samples} samples by {channels} channels; at most {MAX_BYTES // 4} together are allowed"
        )


def _wave(wave: np.ndarray) -> np.ndarray:
    if not len(wave):
        raise ValueError("audio without samples")
    peak = np.abs(wave).max()
    if not peak <= PEAK:  # also NaN
        raise ValueError(f"audio samples reach {peak}; floats in -1..1 are allowed")
    return np.clip(wave, -1, 1)


def fits_array(dtype: np.dtype, shape: tuple[int, ...]) -> bool:
    return dtype.kind in "iuf" and len(shape) == 1


def fits_column(column) -> bool:
    return columns.is_encoded(column)


def fit(form: str, clips: Iterable[tuple[np.ndarray, int]], recipe) -> AudioTokenizer | AudioVectors:
    if form == VECTORS:
        return vectors.fit_audio(clips, recipe.audio_rate)
    asked = recipe.audio_ids
    ids = asked or MODALITIES["audio"].usual_ids
    return fit_audio(clips, recipe.audio_rate, ids=ids, fewer=not asked, layers=recipe.audio_layers)


def box(content: np.ndarray | Sound, tokenizer: AudioTokenizer | AudioVectors | Networked, room: Room) -> Box:
    """A spectrogram `[bands, frames]`, or that of a sound; its axes tell seconds and frequencies."""
    is_sound = isinstance(content, Sound)
    caption = f", {len(content.wave) / content.rate:.2f} s" if is_sound else f", {content.shape[1]} frames"
    if not is_sound and not content.size:
        return Box(caption, (), picture(content, room))
    highest = tokenizer.rate / 2
    seconds = (len(content.wave) if is_sound else tokenizer.hop * content.shape[1]) / tokenizer.rate
    left = preview.extent([f"{label} " for _, label in _frequencies(highest, 1)], preview.SMALL)[0]
    right = preview.extent(["00.00 s"], preview.SMALL)[0]
    pixels = picture(content, room._replace(width=room.width - left - right))
    height, width, _ = pixels.shape
    return Box(caption, (), pixels, _times(seconds, width), _frequencies(highest, height))


def _times(seconds: float, width: int) -> tuple[tuple[float, str], ...]:
    """Ticks at round times: pixels from the left, and what they say."""
    least = seconds * TICKS / width
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    times = [step * i for i in range(int(seconds / step * (1 + 1e-9)) + 1)]
    unit = [" s", *[""] * (len(times) - 1)]
    return tuple((width * t / seconds, f"{t:.{digits}f}{u}") for t, u in zip(times, unit, strict=True))


def _frequencies(highest: float, height: int) -> tuple[tuple[float, str], ...]:
    """Ticks at 0, a half and all of the height, where they stand on mel bands: pixels upwards, and kHz."""
    mel = 2595 * math.log10(1 + highest / 700)
    frequencies = {share: 700 * (10 ** (share * mel / 2595) - 1) / 1000 for share in (0.0, 0.5, 1.0)}
    unit = {1.0: " kHz"}
    return tuple((share * height, f"{kilohertz:.2g}{unit.get(share, '')}") for share, kilohertz in frequencies.items())


def picture(content: np.ndarray | Sound, room: Room) -> np.ndarray:
    decibels = _decibels(content) if isinstance(content, Sound) else content
    return preview.heat(decibels[::-1], "magma", room)


def _decibels(sound: Sound) -> np.ndarray:
    """The spectrogram `[bands, frames]` of a sound, a frame for every 20 ms."""
    return (audio.levels(sound.wave, sound.rate, sound.rate, sound.rate // 50).T - 1) * audio.RANGE


def files(
    content: np.ndarray | Sound, tokenizer: AudioTokenizer | AudioVectors | Networked, seed: int
) -> dict[str, bytes]:
    """The sound, or what a spectrogram sounds like, a phase being made up by the seed; and its picture."""
    is_sound = isinstance(content, Sound)
    wave = content.wave if is_sound else waveform.wave(content, tokenizer.rate, tokenizer.hop, seed)
    return {"wav": waveform.wav(wave, tokenizer.rate), "png": preview.png(picture(content, Room()))}
