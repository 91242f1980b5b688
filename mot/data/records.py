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
from typing import NamedTuple, NoReturn

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from flax import serialization

from mot.data.packing import Document
from mot.errors import UserError

FORMAT = 1
SPLITS = ("train", "held_out")
INDEX = ("lengths.npy", "atoms.npy", "firsts.npy")
BYTES = "text_bytes.npy"  # [ids] bytes that each id of the text tokenizer stands for
NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)  # of a file, a modality, a digest: no path, no markup, no control codes
CHUNK = 1024  # documents that are checked at a time


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
    if not data.size:
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
        _check_json(found)
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


def _check_json(found: dict) -> None:
    """Raises `ValueError`, or what Python raises for a wrong type, unless all that is read later is as it must be."""
    if type(found["format"]) is not int or found["format"] != FORMAT:
        raise ValueError(f"its format is {found['format']!r:.60}; this version reads {FORMAT}")
    modalities, tokenizers, splits = found["modalities"], found["tokenizers"], found["splits"]
    if type(modalities) is not list or modalities[:1] != ["text"] or len(set(modalities)) < len(modalities):
        raise ValueError(f"its modalities are {modalities!r:.60}; text must come first, and none twice")
    for modality in modalities:
        _check_name("a modality", modality)
    if tokenizers.keys() != set(modalities) - {"latents"}:
        raise ValueError(f"its tokenizers are of {list(tokenizers)!r:.60}; they must be of all modalities but latents")
    for modality, tokenizer in tokenizers.items():
        _check_name(f"its {modality} tokenizer's digest", tokenizer["digest"])
        _check_number(f"its {modality} tokenizer's ids", tokenizer["ids"], 1, 2**31)
        if "tokens" in tokenizer:
            _check_number(f"its {modality} tokenizer's tokens", tokenizer["tokens"], 1, 2**20)
    text = tokenizers["text"]
    for name, id_ in text["special"].items():
        _check_number(f"its special token {name!r:.60}", id_, 0, text["ids"] - 1)
    if missing := set(special_tokens(modalities)) - text["special"].keys():
        raise ValueError(f"its text tokenizer lacks {', '.join(sorted(missing))}")
    if len(set(text["special"].values())) < len(text["special"]) or "tokens" in text:
        raise ValueError("its text tokenizer has an id for two special tokens, or says how long a text is")
    if splits.keys() != set(SPLITS):
        raise ValueError(f"its splits are {list(splits)!r:.60}; it needs {', '.join(SPLITS)}")
    for split in splits.values():
        _check_split(split, modalities)
    for why, n in found["left_out"].items():
        _check_number(f"left out because {why!r:.60}", n)
    listed = files(found)
    for name, size, digest in listed:
        # A dataset from elsewhere must not name files outside of its folder.
        if name.count("/") != 1 or not all(map(NAME.fullmatch, (*name.split("/"), digest))):
            raise ValueError(f"{name!r:.60} with the digest {digest!r:.60} is no file of a dataset")
        _check_number(f"the bytes of {name}", size)
    if len({name for name, _, _ in listed}) < len(listed):
        raise ValueError("it lists a file twice")


def _check_split(split: dict, modalities: list[str]) -> None:
    _check_number("a split's documents", split["documents"])
    for shard in split["shards"]:
        _check_number("a shard's documents", shard["documents"])
    if (n := sum(shard["documents"] for shard in split["shards"])) != split["documents"]:
        raise ValueError(f"a split has {split['documents']} documents and its shards have {n}")
    if sorted(file["file"] for file in split["index"]) != sorted(INDEX):
        raise ValueError(f"a split's index must be {', '.join(INDEX)}")
    if split["tokens"].keys() != set(modalities) or split["spans"].keys() - set(modalities):
        raise ValueError("a split's tokens and spans must be those of its modalities")
    for n in (*split["tokens"].values(), *split["spans"].values()):
        _check_number("tokens or spans of a split", n)


def _check_name(what: str, name) -> None:
    if type(name) is not str or not NAME.fullmatch(name):
        raise ValueError(f"{what} is {name!r:.60}; letters, digits, _, - and . are allowed, 100 of them")


def _check_number(what: str, n, least: int = 0, most: int = 2**48) -> None:
    if type(n) is not int or not least <= n <= most:
        raise ValueError(f"{what}: {n!r:.60} is no whole number from {least} to {most}")


def files(about: dict) -> list[tuple[str, int, str]]:
    """Every file of a dataset beside `dataset.json`: its path there, bytes, digest."""
    splits = about["splits"]
    known = [(split, f) for split in SPLITS for f in splits[split]["shards"] + splits[split]["index"]]
    known += [("tokenizers", f) for tokenizer in about["tokenizers"].values() for f in tokenizer["files"]]
    return [(folder + "/" + f["file"], f["bytes"], f["digest"]) for folder, f in known]


def _verify(folder: Path, listed: Sequence[tuple[str, int, str]], digests: bool) -> None:
    """Raises `UserError` for the first of these files that is not there as `dataset.json` says."""
    for name, size, _ in listed:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; copy it again, or prepare the dataset anew")
        if path.stat().st_size != size:
            raise UserError(f"{path} has {path.stat().st_size} bytes, dataset.json says {size}; copy it again")
    if not digests:
        return
    with ThreadPoolExecutor() as pool:
        digests_found = pool.map(lambda known: file_digest(folder / known[0]), listed)
        for (name, _, digest), found in zip(listed, digests_found, strict=True):
            if found != digest:
                raise UserError(
                    f"{folder / name} is damaged: its digest is {found[:16]}, dataset.json says {digest[:16]}; copy it "
                    "again, or prepare the dataset anew"
                )


def load_array(file: Path) -> np.ndarray:
    """An .npy file, mapped; raises `UserError` where it is none."""
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
        self.firsts_of_shards = np.cumsum([0, *(s["documents"] for s in self.known["shards"])])
        self.count = int(self.firsts_of_shards[-1])
        _verify(folder, [f for f in files(self.about) if f[0].startswith((f"{split}/", "tokenizers/"))], verify)
        self._check_shapes()
        for i in range(0, self.count if verify else 0, CHUNK):
            self._check_documents(i, min(i + CHUNK, self.count))

    def __getstate__(self):
        """What a worker process needs to open it again: no mapped file, no reader."""
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
        """Raises `UserError` unless the documents from `begin` to before `end` are as long as their atoms."""
        firsts, m = self.firsts[begin : end + 1], len(self.modalities)
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
        found[:, 0] += 2 + 2 * np.bincount(document, modality != 0, end - begin)
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
        """`[A, 2]` of document i; raises `UserError` where they are damaged, also in what was opened unverified."""
        self._check_documents(i, i + 1)
        return self.atoms[self.firsts[i] : self.firsts[i + 1]]

    def __getitem__(self, i: int) -> Record:
        """Document i; raises `ValueError` where its entry is not what was written."""
        shard = int(np.searchsorted(self.firsts_of_shards, i, side="right")) - 1
        try:
            content = self._reader(shard).read([int(i - self.firsts_of_shards[shard])])[0]
        except (RuntimeError, OSError, IndexError) as error:
            raise ValueError(f"unreadable ({error})") from None
        record = decode(content)
        for modality, data in record.spans:
            tokenizer, vectors = self.about["tokenizers"].get(modality, {}), data.dtype.kind == "f"
            ids, tokens = tokenizer.get("ids", 0), tokenizer.get("tokens", len(data))
            fits = vectors if modality == "latents" else not vectors and 0 <= data.min() <= data.max() < ids
            if modality not in self.modalities or not fits or len(data) != tokens:
                raise ValueError(f"its {modality!r:.60} are {len(data)} of {data.dtype}, no {tokens} of {ids} ids")
        return record

    @cached_property
    def _reader(self):
        open_ = lambda shard: ArrayRecordReader(str(self.split / self.known["shards"][shard]["file"]))
        return lru_cache(maxsize=256)(open_)  # open files are few, also of a dataset of many shards
