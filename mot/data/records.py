"""A dataset of records on disk: what `mot data prepare` writes and training reads (docs/data.md).

    DATASET/dataset.json              counts, tokenizers, every file's digest
            tokenizers/               text.json, image.npz, audio.npz
            train/, held_out/         shard-00000.array_record ..., lengths.npy, atoms.npy, firsts.npy

One ArrayRecord entry is one document: an id and spans `(modality, array)`, in msgpack (flax.serialization), never
pickled. `lengths.npy` `[n, M]` holds each document's tokens by modality; `atoms.npy` `[A, 2]` the modality and the
tokens of what must not be cut: a sentence, an image; document i has atoms `firsts[i]` to `firsts[i + 1]`.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from flax import serialization

from mot.data.packing import Document
from mot.errors import UserError

FORMAT = 1
SPLITS = ("train", "held_out")
INDEX = ("lengths.npy", "atoms.npy", "firsts.npy")
BYTES = "text_bytes.npy"  # [ids] bytes that each id of the text tokenizer stands for


class Span(NamedTuple):
    """A run of one modality. Text: ids. Image, audio: ids of its own tokenizer, from 0. Latents: float32 `[n, P]`."""

    modality: str
    data: np.ndarray


class Record(NamedTuple):
    id: str
    spans: tuple[Span, ...]


def encode(record: Record) -> bytes:
    spans = [{"modality": modality, "data": data} for modality, data in record.spans]
    return serialization.msgpack_serialize({"id": record.id, "spans": spans}, in_place=True)


def decode(content: bytes) -> Record:
    """Raises `ValueError`, and nothing else, for what `encode` does not write."""
    try:
        found = serialization.msgpack_restore(content)
    # What a hostile file can provoke in msgpack and numpy: wrong types, unknown dtypes, shapes, depth.
    except (ValueError, TypeError, KeyError, AssertionError, OverflowError, RecursionError, AttributeError) as error:
        raise ValueError(f"no msgpack of ours ({type(error).__name__}: {error})") from None
    except Exception as error:
        # msgpack's own errors derive from Exception in part; a dtype's name may raise what numpy likes.
        raise ValueError(f"no msgpack of ours ({type(error).__name__})") from None
    if not isinstance(found, dict) or found.keys() != {"id", "spans"}:
        raise ValueError("a record has the keys id and spans, and no others")
    if not isinstance(found["id"], str) or not isinstance(found["spans"], list):
        raise ValueError("a record's id is text and its spans are a list")
    return Record(found["id"], tuple(map(_span, found["spans"])))


def _span(found) -> Span:
    if not isinstance(found, dict) or found.keys() != {"modality", "data"}:
        raise ValueError("a span has the keys modality and data, and no others")
    modality, data = found["modality"], found["data"]
    if not isinstance(modality, str) or not isinstance(data, np.ndarray):
        raise ValueError("a span's modality is text and its data an array")
    if data.dtype.kind == "f":
        if data.ndim != 2 or not np.isfinite(data).all():
            raise ValueError(f"latents of shape {data.shape} must be [n, P] and finite")
    elif data.dtype.kind not in "iu" or data.ndim != 1:
        raise ValueError(f"ids of dtype {data.dtype} and shape {data.shape} must be integers, [n]")
    if not len(data):
        raise ValueError("a span is empty")
    return Span(modality, data)


class Layout(NamedTuple):
    """How a dataset's spans become tokens of the one vocabulary."""

    streams: tuple[tuple[str, int, int, int], ...]  # modality, index of its stream, first id there, ids
    special: dict[str, int]  # <bos>, <eos> and the markers around other modalities' spans
    fixed: tuple[str, ...]  # modalities whose spans all have one length, so that their end is no news


def markers(modality: str) -> tuple[str, str]:
    """What encloses a span of a modality, among text."""
    return ("<boi>", "<eoi>") if modality == "image" else (f"<{modality}>", f"</{modality}>")


def special_tokens(modalities: Sequence[str]) -> list[str]:
    enclosing = [mark for modality in modalities if modality != "text" for mark in markers(modality)]
    return list(dict.fromkeys(["<pad>", "<bos>", "<eos>", "<boi>", "<eoi>", *enclosing]))


def render(record: Record, layout: Layout, source: int, doc_id: int) -> Document:
    """<bos> span span ... <eos>, spans other than text between markers; raises `ValueError` for ids out of range."""
    place = {modality: (stream, first, ids) for modality, stream, first, ids in layout.streams}
    text, special = place["text"][0], layout.special
    n = 2 + sum(len(data) + 2 * (modality != "text") for modality, data in record.spans)
    token, stream = np.empty(n, np.int32), np.full(n, text, np.uint8)
    weight, unit = np.ones(n, np.float32), np.zeros(n, np.int32)
    token[0], token[-1] = special["<bos>"], special["<eos>"]
    at = 1
    for number, (modality, data) in enumerate(record.spans, 1):
        if modality not in place:
            raise ValueError(f"a span of {modality}, for which there is no stream")
        where, first, ids = place[modality]
        if data.dtype.kind == "f" or data.min() < 0 or data.max() >= ids:
            raise ValueError(f"{modality} tokens must be ids from 0 to {ids - 1}")
        end = at + len(data)
        if modality == "text":
            token[at:end] = data
            token[at:end] += first
            at = end
            continue
        token[at], token[end + 1] = (special[mark] for mark in markers(modality))
        at, end = at + 1, end + 1
        token[at:end] = data
        token[at:end] += first
        stream[at:end], unit[at:end] = where, number
        if modality in layout.fixed:
            weight[end] = 0
        at = end + 1
    private = np.zeros(n, bool)
    return Document(source, doc_id, token, stream, weight, unit, np.zeros(n, np.int32), private)


def atoms(record: Record, modalities: Sequence[str], cuts: Sequence[np.ndarray]) -> np.ndarray:
    """`[A, 2]` modality and tokens, of sentences and media. `cuts` holds for each span where it may be cut."""
    found = []
    for (modality, data), inner in zip(record.spans, cuts, strict=True):
        sizes = np.diff([0, *inner, len(data)])
        found += [(modalities.index(modality), size) for size in sizes]
    return np.array(found, np.int32).reshape(-1, 2)


def lengths(atoms: np.ndarray, modalities: int) -> np.ndarray:
    """`[M]` tokens of a document with these atoms, <bos>, <eos> and markers included; text is modality 0."""
    tokens = np.bincount(atoms[:, 0], atoms[:, 1], minlength=modalities).astype(np.int64)
    tokens[0] += 2 + 2 * (atoms[:, 0] != 0).sum()
    return tokens


class Shard(NamedTuple):
    """What is known of a shard that was written."""

    file: str
    documents: int
    bytes: int
    digest: str


def write_shard(path: Path, records: Sequence[Record]) -> Shard:
    """Written beside and renamed, so that a shard is whole or absent; the same records give the same bytes."""
    partial = path.with_name(f".{path.name}.partial")
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    try:
        for record in records:
            writer.write(encode(record))
    finally:
        writer.close()
    # The writer reports no full disk; what was written is read again.
    reader = ArrayRecordReader(str(partial))
    if reader.num_records() != len(records):
        raise OSError(f"{partial} holds {reader.num_records()} of {len(records)} records; is the disk full?")
    reader.close()
    shard = Shard(path.name, len(records), partial.stat().st_size, file_digest(partial))
    partial.rename(path)
    return shard


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(folder: Path) -> dict:
    """A dataset's `dataset.json`; raises `UserError` where there is none of this format."""
    file = folder / "dataset.json"
    try:
        found = json.loads(file.read_text())
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}; this version reads {FORMAT}")
        for name, size, digest in files(found):
            # A dataset from elsewhere must not name files outside of its folder.
            if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or type(size) is not int or type(digest) is not str:
                raise ValueError(f"{name!r}, {size!r}, {digest!r} is no file of a dataset")
        if found["modalities"][0] != "text" or not all(type(m) is str for m in found["modalities"]):
            raise ValueError(f"its modalities are {found['modalities']!r}; text must come first")
        if found["splits"].keys() != set(SPLITS):
            raise ValueError(f"its splits are {list(found['splits'])!r}; it needs {', '.join(SPLITS)}")
        for modality, tokenizer in found["tokenizers"].items():
            if type(tokenizer["ids"]) is not int or type(tokenizer.get("tokens", 0)) is not int:
                raise ValueError(f"its {modality} tokenizer's ids and tokens must be integers")
        text = found["tokenizers"]["text"]
        if any(type(i) is not int or not 0 <= i < text["ids"] for i in text["special"].values()):
            raise ValueError(f"its special tokens are {text['special']!r}; they must be ids below {text['ids']}")
        if missing := set(special_tokens(found["modalities"])) - text["special"].keys():
            raise ValueError(f"its text tokenizer lacks {', '.join(sorted(missing))}")
    except FileNotFoundError:
        if (folder / "recipe.json").exists():
            raise UserError(
                f"{folder} is begun and not finished; the same `mot data prepare` command goes on"
            ) from None
        raise UserError(f"{folder} is no dataset: it has no dataset.json; `mot data prepare` makes one") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, RecursionError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{file} is damaged or foreign ({what}); prepare the dataset anew") from None
    return found


def files(about: dict) -> list[tuple[str, int, str]]:
    """Every file of a dataset beside `dataset.json`: its path there, bytes, digest."""
    known = [(f"{split}/{f['file']}", f) for split in SPLITS for f in _files_of(about["splits"][split])]
    for tokenizer in about["tokenizers"].values():
        known += [(f"tokenizers/{f['file']}", f) for f in tokenizer["files"]]
    return [(path, f["bytes"], f["digest"]) for path, f in known]


def _files_of(split: dict) -> list[dict]:
    return split["shards"] + split["index"]


class Dataset:
    """A split of a dataset, read at random. Opening checks every file's size, and its digest with `verify`."""

    def __init__(self, folder: Path, split: str, verify: bool = True):
        self.folder, self.split = folder, folder / split
        self.about = read_json(folder)
        self.known = self.about["splits"][split]
        self.modalities = tuple(self.about["modalities"])
        self.firsts_of_shards = np.cumsum([0, *(s["documents"] for s in self.known["shards"])])
        self.count = int(self.firsts_of_shards[-1])
        self._verify(verify)
        if len(self.lengths) != self.count or len(self.firsts) != self.count + 1:
            raise UserError(f"{self.split}: lengths.npy has {len(self.lengths)} documents, the shards {self.count}")

    def __getstate__(self):
        """What a worker process needs to open it again: no mapped file, no reader."""
        return {k: v for k, v in vars(self).items() if k not in ("lengths", "atoms", "firsts", "_reader")}

    @cached_property
    def lengths(self) -> np.ndarray:
        return self._map("lengths.npy")

    @cached_property
    def atoms(self) -> np.ndarray:
        return self._map("atoms.npy")

    @cached_property
    def firsts(self) -> np.ndarray:
        return self._map("firsts.npy")

    def _map(self, name) -> np.ndarray:
        try:
            return np.load(self.split / name, mmap_mode="r", allow_pickle=False).view(np.ndarray)  # a memmap is slow
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{self.split / name} is damaged ({error}); prepare the dataset anew") from None

    def _verify(self, digests: bool) -> None:
        files = _files_of(self.known)
        for known in files:
            path = self.split / known["file"]
            if not path.is_file():
                raise UserError(f"{path} is missing; copy it again, or prepare the dataset anew")
            if path.stat().st_size != known["bytes"]:
                raise UserError(
                    f"{path} has {path.stat().st_size} bytes, dataset.json says {known['bytes']}; copy it again"
                )
        if digests:
            with ThreadPoolExecutor() as pool:
                found = pool.map(lambda known: file_digest(self.split / known["file"]), files)
                for known, digest in zip(files, found, strict=True):
                    if digest != known["digest"]:
                        raise UserError(
                            f"{self.split / known['file']} is damaged: its digest is {digest[:16]}, dataset.json says "
                            f"{known['digest'][:16]}; copy it again, or prepare the dataset anew"
                        )

    def totals(self) -> np.ndarray:
        """`[M]` tokens of all documents by modality."""
        return self.lengths.sum(0, dtype=np.int64)

    def lengths_of(self, i: int) -> np.ndarray:
        return self.lengths[i]

    def atoms_of(self, i: int) -> np.ndarray:
        return self.atoms[self.firsts[i] : self.firsts[i + 1]]

    def __getitem__(self, i: int) -> Record:
        """Document i; raises `ValueError` where its entry is not what was written."""
        shard = int(np.searchsorted(self.firsts_of_shards, i, side="right")) - 1
        try:
            content = self._reader(shard).read([int(i - self.firsts_of_shards[shard])])[0]
        except (RuntimeError, OSError, IndexError) as error:
            raise ValueError(f"unreadable ({error})") from None
        return decode(content)

    @cached_property
    def _reader(self):
        open_ = lambda shard: ArrayRecordReader(str(self.split / self.known["shards"][shard]["file"]))
        return lru_cache(maxsize=256)(open_)  # open files are few, also of a dataset of many shards
