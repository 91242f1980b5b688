"""A dataset of records on disk: what `mot data prepare` writes and training reads (docs/reference/dataset-format.md).

    DATASET/dataset.json              counts, tokenizers, every file's digest
            tokenizers/               text.json, image.npz, audio.npz, action.npz
            train/, held_out/         shard-00000.array_record ..., lengths.npy, atoms.npy, firsts.npy

One ArrayRecord entry is one document: an id and spans `(modality, array)`, in msgpack (flax.serialization), never
pickled. `lengths.npy` `[n, M]` holds each document's tokens by modality; `atoms.npy` `[A, 2]` the modality and the
tokens of what must not be cut: a sentence, an image; document i has atoms `firsts[i]` to `firsts[i + 1]`.

A unit may have several representations: ids, and patches of the same image. They are spans that follow one another.
Where `dataset.json` says that a tokenizer is `of` a modality, its spans are the same units as that one's before them.
"""

import errno
import math
import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from flax import serialization

from mot.config.modalities import markers
from mot.data import roles
from mot.data.manifest import check_files, file_digest, files, read_json, representations
from mot.data.packing import Document, document
from mot.data.positions import places
from mot.data.roles import Placement, Rule
from mot.errors import UserError
from mot.files import replacing

CHUNK = 1024  # documents that are checked at a time


class Span(NamedTuple):
    """A run of one modality: ids of its own tokenizer, from 0, `[n]`, or vectors, float16 or float32 `[n, P]`.

    What has rows keeps them: `[rows, columns]` in place of `[n]`, and of several frames `[frames, rows, columns]`.
    """

    modality: str
    data: np.ndarray


def shape_of(data: np.ndarray) -> tuple[int, ...]:
    """The shape of a span's unit: (n,), (rows, columns) or (frames, rows, columns)."""
    return data.shape[:-1] if data.dtype.kind == "f" else data.shape


def count(data: np.ndarray) -> int:
    """The tokens of a span."""
    return math.prod(shape_of(data))


def flat(data: np.ndarray) -> np.ndarray:
    """`[n]` ids, or `[n, P]` vectors, row by row."""
    return data.reshape(-1, data.shape[-1]) if data.dtype.kind == "f" else data.reshape(-1)


class Record(NamedTuple):
    id: str
    spans: tuple[Span, ...]


def encode(record: Record) -> bytes:
    spans = [{"modality": modality, "data": data} for modality, data in record.spans]
    return serialization.msgpack_serialize({"id": record.id, "spans": spans}, in_place=True)


def decode(content: bytes) -> Record:
    """The record in these bytes. Raises `ValueError`, and nothing else, if `encode` did not write them."""
    try:
        restored = serialization.msgpack_restore(content)
    # What a hostile file can provoke in msgpack and numpy: wrong types, unknown dtypes, shapes, depth.
    except (ValueError, TypeError, KeyError, AssertionError, OverflowError, RecursionError, AttributeError) as error:
        raise ValueError(f"no msgpack of ours ({type(error).__name__}: {error})") from None
    except Exception as error:
        # msgpack's own errors derive from Exception in part; a dtype's name may raise what numpy likes.
        raise ValueError(f"no msgpack of ours ({type(error).__name__})") from None
    if not isinstance(restored, dict) or restored.keys() != {"id", "spans"}:
        raise ValueError("a record has the keys id and spans, and no others")
    if not isinstance(restored["id"], str) or not isinstance(restored["spans"], list):
        raise ValueError("a record's id is text and its spans are a list")
    return Record(restored["id"], tuple(map(_span, restored["spans"])))


def _span(plain) -> Span:
    if not isinstance(plain, dict) or plain.keys() != {"modality", "data"}:
        raise ValueError("a span has the keys modality and data, and no others")
    modality, data = plain["modality"], plain["data"]
    if not isinstance(modality, str) or not isinstance(data, np.ndarray):
        raise ValueError("a span's modality is text and its data an array")
    if data.dtype.kind == "f":
        if not 2 <= data.ndim <= 4 or data.dtype.itemsize > 4 or not np.isfinite(data).all():
            raise ValueError(f"vectors {data.dtype} {list(data.shape)}; they must be float32 [n, P] and finite")
    elif data.dtype.kind not in "iu" or not 1 <= data.ndim <= (1 if modality == "text" else 3):
        raise ValueError(f"ids of dtype {data.dtype} and shape {data.shape} must be integers, [n]")
    if not data.size:
        raise ValueError("a span is empty")
    return Span(modality, data)


class TokenLayout(NamedTuple):
    """How a dataset's spans become tokens of the one vocabulary, and vectors."""

    places: tuple[Placement, ...]  # by stream
    special: dict[str, int]  # <bos>, <eos> and the markers around other modalities' spans
    fixed: tuple[str, ...]  # modalities whose spans all have one length, so that their end is no news
    of: Mapping[str, str] = {}  # the modality of which another is a further representation
    shapes: Mapping[str, tuple[int, ...]] = {}  # of these, where all units have one
    rules: tuple[Rule, ...] = ()  # which streams hold a unit; none: each of its representations appears once


def units(spans: Sequence[str], of: Mapping[str, str]) -> list[tuple[int, ...]]:
    """The spans of each unit of a document, by number: a further representation follows the one of its modality.

    Raises `ValueError` where it does not.
    """
    found: list[tuple[int, ...]] = []
    for i, modality in enumerate(spans):
        if modality not in of:
            found.append((i,))
            continue
        if not found or of.get(spans[found[-1][0]], spans[found[-1][0]]) != of[modality]:
            raise ValueError(f"{modality} that follow no {of[modality]}, of which they are a representation")
        if modality in [spans[j] for j in found[-1]]:
            raise ValueError(f"{modality} twice for one {of[modality]}")
        found[-1] += (i,)
    return found


def render(record: Record, layout: TokenLayout, source: int, doc_id: int) -> Document:
    """<bos> span span ... <eos>, units other than text between markers, in the streams where each appears.

    Raises `ValueError` for ids out of range, for vectors of another width than their stream's, and for a unit that no
    stream holds.
    """
    special, kinds = layout.special, [span.modality for span in record.spans]
    grouped = units(kinds, layout.of)
    bases = [kinds[spans[0]] for spans in grouped]
    place = _places_of(tuple(bases))
    text = next(p.stream for p in layout.places if p.modality == "text")
    runs = [_Run(np.array([special["<bos>"]]), text)]
    values: dict[int, list[np.ndarray]] = {}
    for spans, base, where in zip(grouped, bases, place, strict=True):
        here = {kinds[i]: record.spans[i].data for i in spans}
        shown = roles.appearances(list(here), roles.PLACES[where], layout.places, layout.rules)
        if not shown:
            raise ValueError(f"a span of {'+'.join(here)}, for which there is no stream")
        if base != "text":
            runs.append(_Run(np.array([special[markers(base)[0]]]), text))
        for n, (number, is_input) in enumerate(shown):
            placement = layout.places[number]
            data = flat(here[placement.modality])
            ids = _ids(data, placement)
            if placement.width:
                values.setdefault(placement.stream, []).append(data)
            shape = shape_of(here[placement.modality])
            shape = shape if len(shape) > 1 else layout.shapes.get(placement.modality, ())
            # A number like no other of the document: that of the unit's first span where it appears once.
            unit = (1 + spans[0] + n * len(kinds)) * (base != "text")
            lies = places(shape if base != "text" else (), len(ids))
            runs.append(_Run(ids, placement.stream, unit=unit, given=is_input, place=lies))
        if base != "text":
            is_news = not (placement.width or placement.modality in layout.fixed)  # no vector predicts an id
            runs.append(_Run(np.array([special[markers(base)[1]]]), text, weight=is_news))
    runs.append(_Run(np.array([special["<eos>"]]), text))
    sizes = [len(run.token) for run in runs]

    def each(field):
        return np.repeat([getattr(run, field) for run in runs], sizes)

    fields = {name: each(name) for name in ("weight", "unit", "given")}
    fields["place"] = np.concatenate([places((), len(run.token)) if run.place is None else run.place for run in runs])
    vectors = {s: np.concatenate(parts) for s, parts in values.items()}
    return document(source, doc_id, np.concatenate([run.token for run in runs]), each("stream"), vectors, **fields)


@lru_cache(maxsize=1024)  # documents of few kinds are many
def _places_of(bases: tuple[str, ...]) -> tuple[int, ...]:
    """`roles.places` of the units of one document, whose modalities these are."""
    return tuple(roles.places(np.unique(bases, return_inverse=True)[1], np.zeros(len(bases), int)).tolist())


class _Run(NamedTuple):
    """Tokens of one stream that follow one another in a document; fields as `Document` has them."""

    token: np.ndarray
    stream: int
    weight: float = 1
    unit: int = 0
    given: bool = False
    place: np.ndarray | None = None  # of a unit


def _ids(data: np.ndarray, placement: Placement) -> np.ndarray:
    """A span's ids in the one vocabulary; 0 for vectors. Raises `ValueError` where they are not those of the stream."""
    modality, ids, width = placement.modality, placement.ids, placement.width
    if width:
        if data.dtype.kind != "f" or data.shape[1] != width:
            raise ValueError(f"{modality} tokens must be vectors of {width} features")
        return np.zeros(len(data), np.int32)
    if data.dtype.kind == "f" or data.min() < 0 or data.max() >= ids:
        raise ValueError(f"{modality} tokens must be ids from 0 to {ids - 1}")
    return data.astype(np.int32) + np.int32(placement.first_id)


def atoms(record: Record, modalities: Sequence[str], cuts: Sequence[np.ndarray]) -> np.ndarray:
    """`[A, 2]` modality and tokens of each sentence and medium. `cuts` says where each span may be cut."""
    rows = []
    for (modality, data), inner in zip(record.spans, cuts, strict=True):
        sizes = np.diff([0, *inner, count(data)])
        rows += [(modalities.index(modality), size) for size in sizes]
    return np.array(rows, np.int32).reshape(-1, 2)


def lengths(atoms: np.ndarray, modalities: int, further: Collection[int] = ()) -> np.ndarray:
    """`[M]` tokens of a document with these atoms. <bos>, <eos> and markers count; text is modality 0.

    Those of `further` are representations of the unit before, and share its markers.
    """
    tokens = np.bincount(atoms[:, 0], atoms[:, 1], minlength=modalities).astype(np.int64)
    tokens[0] += 2 + 2 * (~np.isin(atoms[:, 0], [0, *further])).sum()
    return tokens


class Shard(NamedTuple):
    """A shard that was written, as `dataset.json` lists it."""

    file: str
    documents: int
    bytes: int
    digest: str


def write_shard(path: Path, records: Sequence[Record]) -> Shard:
    """Written beside and renamed, so that a shard is whole or absent; the same records give the same bytes."""
    with replacing(path) as partial:
        try:
            writer = ArrayRecordWriter(str(partial), "group_size:1")
            try:
                for record in records:
                    writer.write(encode(record))
            finally:
                writer.close()
        except RuntimeError as error:
            full = "No space left" in str(error)
            raise OSError(
                errno.ENOSPC if full else errno.EIO, os.strerror(errno.ENOSPC) if full else str(error)
            ) from None
        # The writer does not tell of every full disk; what was written is read again.
        reader = ArrayRecordReader(str(partial))
        if reader.num_records() != len(records):
            raise OSError(f"{path} holds {reader.num_records()} of {len(records)} records; is the disk full?")
        reader.close()
        return Shard(path.name, len(records), partial.stat().st_size, file_digest(partial))


def load_array(file: Path) -> np.ndarray:
    """An .npy file, memory-mapped; raises `UserError` if it is none."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False).view(np.ndarray)  # a memmap is slow
    except Exception as error:  # a damaged header raises any of a dozen kinds
        raise UserError(f"{file} is missing or damaged ({error}); copy it again, or prepare the dataset anew") from None


class Dataset:
    """A split of a dataset, read at random.

    Opening checks the size of the split's files and the tokenizers', and their digests and the index with `verify`.
    """

    def __init__(self, folder: Path, split: str, verify: bool = True):
        self.folder, self.split = folder, folder / split
        self.about = read_json(folder)
        self.known = self.about["splits"][split]
        self.modalities = tuple(self.about["modalities"])
        self.of = representations(self.about)
        self.is_further = np.array([modality in self.of for modality in self.modalities])
        self.firsts_of_shards = np.cumsum([0, *(s["documents"] for s in self.known["shards"])])
        self.count = int(self.firsts_of_shards[-1])
        check_files(folder, [f for f in files(self.about) if f[0].startswith((f"{split}/", "tokenizers/"))], verify)
        self._check_shapes()
        for i in range(0, self.count if verify else 0, CHUNK):
            self._check_documents(i, min(i + CHUNK, self.count))

    def __getstate__(self):
        """The state that a worker process opens it from: no mapped file, no reader."""
        return {k: v for k, v in vars(self).items() if k not in ("lengths", "atoms", "firsts", "_reader")}

    lengths = cached_property(lambda self: load_array(self.split / "lengths.npy"))
    atoms = cached_property(lambda self: load_array(self.split / "atoms.npy"))
    firsts = cached_property(lambda self: load_array(self.split / "firsts.npy"))

    def _check_shapes(self) -> None:
        for name, array, dtype, shape in (
            ("lengths.npy", self.lengths, np.int32, (self.count, len(self.modalities))),
            ("atoms.npy", self.atoms, np.int32, (*self.atoms.shape[:1], 2)),
            ("firsts.npy", self.firsts, np.int64, (self.count + 1,)),
        ):
            if array.dtype != dtype or array.shape != shape:
                has = f"it is {array.dtype} {list(array.shape)} and must be {np.dtype(dtype)} {list(shape)}"
                self._refuse(name, f"{has}, as the shards have {self.count} documents")
        if self.firsts[0] != 0 or self.firsts[-1] != len(self.atoms):
            self._refuse("firsts.npy", f"it must rise from 0 to {len(self.atoms)}, the atoms")
        if self.lengths.min(initial=0) < 0 or self.lengths[:, 0].min(initial=2) < 2:
            self._refuse("lengths.npy", "a document has less than no tokens, or less than 2 of text: <bos> and <eos>")

    def _check_documents(self, begin: int, end: int) -> None:
        """Raises `UserError` unless documents begin .. end - 1 are as long as their atoms."""
        firsts = self.firsts[begin : end + 1]
        m = len(self.modalities)
        if (firsts[1:] <= firsts[:-1]).any() or firsts[0] < 0 or firsts[-1] > len(self.atoms):
            self._refuse("firsts.npy", f"it does not rise from document {begin} to {end}")
        modality, tokens = self.atoms[firsts[0] : firsts[-1]].T
        if modality.min() < 0 or modality.max() >= m or tokens.min() < 1:
            self._refuse("atoms.npy", f"it has modalities outside 0 to {m - 1}, or atoms of less than 1 token")
        fixed = np.array([self.about["tokenizers"].get(name, {}).get("tokens", 0) for name in self.modalities])
        if ((fixed[modality] > 0) & (fixed[modality] != tokens)).any():
            self._refuse("atoms.npy", "it has images of another length than dataset.json says")
        document = np.repeat(np.arange(end - begin), np.diff(firsts))
        found = np.bincount(document * m + modality, tokens, (end - begin) * m).reshape(-1, m)
        has_markers = (modality != 0) & ~self.is_further[modality]
        found[:, 0] += 2 + 2 * np.bincount(document, has_markers, end - begin)
        if (wrong := (found != self.lengths[begin:end]).any(1)).any():
            i = int(wrong.argmax())
            has = f"document {begin + i} has {self.lengths[begin + i].tolist()} tokens by modality"
            self._refuse("lengths.npy", f"{has}, and its atoms {found[i].astype(int).tolist()}")

    def _refuse(self, name: str, why) -> NoReturn:
        raise UserError(f"{self.split / name} is damaged or foreign ({why}); prepare the dataset anew")

    def totals(self) -> np.ndarray:
        """`[M]` tokens of all documents by modality."""
        return self.lengths.sum(0, dtype=np.int64)

    def lengths_of(self, i: int) -> np.ndarray:
        return self.lengths[i]

    def atoms_of(self, i: int) -> np.ndarray:
        """`[A, 2]` of document i. Raises `UserError` if they are damaged, even in a dataset that was not verified."""
        self._check_documents(i, i + 1)
        return self.atoms[self.firsts[i] : self.firsts[i + 1]]

    def __getitem__(self, i: int) -> Record:
        """Document i; raises `ValueError` if its entry is damaged."""
        shard = int(np.searchsorted(self.firsts_of_shards, i, side="right")) - 1
        try:
            content = self._reader(shard).read([int(i - self.firsts_of_shards[shard])])[0]
        except (RuntimeError, OSError, IndexError) as error:
            raise ValueError(f"unreadable ({error})") from None
        record = decode(content)
        for modality, data in record.spans:
            tokenizer = self.about["tokenizers"].get(modality, {})
            ids, width, tokens = (tokenizer.get(key, 0) for key in ("ids", "width", "tokens"))
            of_vectors = data.dtype.kind == "f"
            fits = data.shape[-1] == width if of_vectors else 0 <= data.min() <= data.max() < ids
            n = count(data)
            if modality not in self.modalities or not fits or n != (tokens or n):
                needed = f"{tokens or n} " + (f"vectors of {width} features" if width else f"of {ids} ids")
                found = f"vectors of {data.shape[-1]} features" if of_vectors else f"of {data.dtype}"
                raise ValueError(f"its {modality!r:.60} are {n} {found}, no {needed}")
        units([span.modality for span in record.spans], self.of)
        return record

    @cached_property
    def _reader(self):
        def open_(shard):
            return ArrayRecordReader(str(self.split / self.known["shards"][shard]["file"]))

        return lru_cache(maxsize=256)(open_)  # open files are few, also of a dataset of many shards
