"""Opens what `data.sources` name: embedded documents, datasets of records, a seqio stream."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mot.config import Config, reads
from mot.config.modalities import of_either_form
from mot.config.objectives import OF_VECTORS
from mot.data import embedded, folding, roles, seqio_bridge
from mot.data.manifest import BYTES, SPLITS, files, most_shape, read_json, representations
from mot.data.mixture import Source, Sources
from mot.data.packing import Document
from mot.data.records import Dataset, TokenLayout, load_array, render
from mot.data.remote import local
from mot.data.seqio_bridge import SeqioStream
from mot.errors import UserError

EMBEDDED = "embedded"


class Records:
    """A split of a dataset as a source. A unit's tokens travel in the streams where it appears (`roles.py`)."""

    def __init__(self, name: str, index: int, dataset: Dataset | SeqioStream, layout: TokenLayout, streams: int):
        self.name, self.index, self.dataset, self.layout = name, index, dataset, layout
        self.count = dataset.count
        self.streams = streams
        self.text = next(p.stream for p in layout.places if p.modality == "text")
        self.is_further = np.array([modality in layout.of for modality in dataset.modalities])
        # Where each modality has one stream, tokens are counted as the dataset has counted them.
        held = [[p.stream for p in layout.places if p.modality == modality] for modality in dataset.modalities]
        is_plain = not layout.of and not layout.rules and all(len(streams_) == 1 for streams_ in held)
        self.stream_of = np.array([streams_[0] for streams_ in held]) if is_plain else None
        fixed = {m: dataset.about["tokenizers"][m]["tokens"] for m in layout.fixed}
        by_stream = [[fixed.get(p.modality, 1) for p in layout.places if p.stream == s] for s in range(streams)]
        self.units = np.array([max(tokens or [1]) for tokens in by_stream])

    def lengths(self, i: int) -> np.ndarray:
        if self.stream_of is not None:
            return self._by_stream(self.dataset.lengths_of(i))
        result = self._of_atoms(self.dataset.atoms_of(i)).sum(0)
        result[self.text] += 2  # <bos> and <eos>
        return result

    def _by_stream(self, by_modality) -> np.ndarray:
        result = np.zeros(self.streams, np.int64)
        result[self.stream_of] = by_modality
        return result

    def _of_atoms(self, atoms: np.ndarray, document: np.ndarray | None = None) -> np.ndarray:
        """`[U, M]` tokens by stream of each unit of some atoms, with its markers; `[A]` numbers of their documents."""
        document = np.zeros(len(atoms), int) if document is None else document
        modality, tokens = atoms.T
        begins = np.flatnonzero(~self.is_further[modality])
        unit = np.cumsum(~self.is_further[modality]) - 1
        size = np.zeros((len(begins), len(self.dataset.modalities)), np.int64)
        size[unit, modality] = tokens
        base = modality[begins]
        result = np.zeros((len(begins), self.streams), np.int64)
        result[:, self.text] = np.where(base == 0, tokens[begins], 2)
        alike = np.column_stack([roles.places(base, document[begins]), size > 0])  # such units appear alike
        kinds, kind_of = np.unique(alike[base != 0], axis=0, return_inverse=True)
        for n, (place, *has) in enumerate(kinds.tolist()):
            here = np.flatnonzero(base != 0)[kind_of.reshape(-1) == n]
            there = [name for name, is_there in zip(self.dataset.modalities, has, strict=True) if is_there]
            for one in roles.appearances(there, roles.PLACES[place], self.layout.places, self.layout.rules):
                placement = self.layout.places[one.placement]
                result[here, placement.stream] += size[here, self.dataset.modalities.index(placement.modality)]
        return result

    def cuts(self, i: int) -> np.ndarray:
        bos = (np.arange(self.streams) == self.text).astype(np.int64)
        by_stream = np.cumsum([bos, *self._of_atoms(self.dataset.atoms_of(i))], axis=0)
        by_stream[-1] += bos  # and <eos>
        return np.concatenate([by_stream.sum(1, keepdims=True), by_stream], axis=1)

    def read(self, i: int) -> Document:
        document = render(self.dataset[i], self.layout, self.index, i)
        tokens = np.bincount(document.stream, minlength=self.streams)
        if (tokens != self.lengths(i)).any():
            raise ValueError(f"it has {tokens} tokens by stream, lengths.npy says {self.lengths(i)}")
        return document

    def name_of(self, i: int) -> str:
        try:
            return self.dataset[i].id
        except ValueError:
            return f"number {i}"

    @cached_property
    def _totals(self) -> np.ndarray:
        if self.stream_of is not None:
            return self._by_stream(self.dataset.totals())
        document = np.repeat(np.arange(self.count), np.diff(self.dataset.firsts))
        result = self._of_atoms(np.asarray(self.dataset.atoms), document).sum(0)
        result[self.text] += 2 * self.count
        return result

    def totals(self) -> np.ndarray:
        return self._totals


def is_embedded(config: Config) -> bool:
    return EMBEDDED in config.data.sources.values()


@reads("streams", "data")
def faults(config):
    """A check for `config.build`: what the data needs of the configuration."""
    addresses = config.data.sources
    if is_embedded(config):
        if others := [name for name, address in addresses.items() if address != EMBEDDED]:
            yield f"data.sources.{others[0]}: {addresses[others[0]]!r}; embedded data mixes with no other; remove it"
            return
        yield from embedded.faults(config)
        yield from folding.unit_faults(config, dict.fromkeys(embedded.FORMS, embedded.PATCHES))
        for key, stream in config.streams.items():
            yield from _table_faults(key, stream, embedded.shape(stream))
            yield from _column_faults(key, stream, embedded.shape(stream), is_of_any_size=False)
        return
    abouts = {}
    for name, address in addresses.items():
        if not address:
            yield f"data.sources.{name}: names no data; write data=FOLDER after the configuration's file"
            continue
        if config.data.workers and seqio_bridge.is_address(address):
            yield (
                f"data.workers: {config.data.workers}; {address} is read by one process; set it to 0, or export it: "
                "`mot data prepare --seqio`"
            )
        try:
            abouts[name] = _about(address)
        except (UserError, OSError) as error:
            yield f"data.sources.{name}: {address!r}; {error}"
    unlike = list(_tokenizer_faults(abouts))
    yield from unlike
    for name, about in abouts.items():
        yield from _dataset_faults(config, name, about, ids=not unlike)
    if len(abouts) == len(addresses):
        yield from _absent(config, abouts)
    yield from folding.unit_faults(config, unit_lengths([*abouts.values()]))


def _about(address) -> dict:
    """The `dataset.json` of a dataset, or what a seqio stream has in place of one."""
    if seqio_bridge.is_address(address):
        return seqio_bridge.open_(address).about()
    return read_json(local(address, whole=False))


def remarks(config: Config, held_out: Sources) -> list[str]:
    """Remarks on a run's sources."""
    silent = [s.name for s in held_out.all if not s.count and config.data.shares.get(s.name)]
    return [
        f"data.sources.{name}: it has no held-out documents, so held-out losses say nothing of it" for name in silent
    ] + [
        f"data.sources.{name}: {address} is not elastic: one process reads it (of several, each all of it), in its own "
        "order, and after a resume from its beginning, for which data.timeout must do; `mot data prepare --seqio` "
        "exports it, which does away with all of that"
        for name, address in config.data.sources.items()
        if seqio_bridge.is_address(address)
    ]


def _tokenizer_faults(abouts):
    """Datasets that are mixed must have been tokenised alike."""
    seen: dict[str, tuple[str, str]] = {}
    for name, about in abouts.items():
        for modality, tokenizer in about["tokenizers"].items():
            first, digest = seen.setdefault(modality, (name, tokenizer["digest"]))
            if digest != tokenizer["digest"]:
                other_way = f", or both with the same --ids {modality}=COUNT" * digest.startswith("ids-")
                yield (
                    f"data.sources.{name}: its {modality} tokenizer is {tokenizer['digest']}, that of {first} is "
                    f"{digest}; prepare one with --like the other{other_way}"
                )


def _dataset_faults(config, name, about, ids: bool):
    """What a dataset needs of the streams: for each of its media one that holds it, in one of its representations."""
    of = representations(about)
    held = {stream.holds for stream in config.streams.values()}
    for modality in about["modalities"]:
        alike = [m for m in about["modalities"] if modality in (m, of.get(m))]
        if modality not in of and not held & set(alike):
            yield (
                f"data.sources.{name}: it has {' and '.join(alike)}, for which there is no stream (modalities: "
                f"{', '.join(held)}); add a stream, or prepare it without"
            )
        for key, stream in config.streams.items():
            if stream.holds == modality:
                yield from _stream_faults(key, stream, name, about, ids)
                if stream.modality != of.get(modality, modality):
                    yield (
                        f"streams.{key}.modality: {stream.modality!r}; it holds {modality} of {name}, another form of "
                        f"its {of.get(modality, modality)}; write that"
                    )


def _stream_faults(key, stream, name, about, ids: bool):
    """What a dataset needs of a stream that holds one of its modalities."""
    modality = stream.holds
    tokenizer = about["tokenizers"][modality]
    n, width = tokenizer.get("ids", 0), tokenizer.get("width", 0)
    if width and not stream.latent:
        yield (
            f"streams.{key}: it has {stream.ids} ids; {modality} of {name} are vectors of {width} features; write "
            f"latent={width}, ids=0, first_id=0, objective='flow' (or {', '.join(OF_VECTORS[1:])})"
        )
    elif stream.latent and n:
        again = f", or prepare it with --vectors={modality}" * (modality in of_either_form())
        yield (
            f"streams.{key}: its tokens are vectors of {stream.latent} features (latent); {modality} of {name} are "
            f"{n} ids; write latent=0, ids={n}, objective='next_token'{again}"
        )
    elif ids and stream.latent != width:
        yield f"streams.{key}.latent: {stream.latent}; {modality} of {name} have {width} features; write {width}"
    elif ids and stream.ids != n:
        yield f"streams.{key}.ids: {stream.ids}; the {modality} tokenizer of {name} has {n} ids; write {n}"
    if 0 < stream.max_tokens < (fixed := tokenizer.get("tokens", 0) // stream.entry.fold):
        yield f"streams.{key}.max_tokens: {stream.max_tokens}; {modality} of {name} has {fixed} tokens; raise it"
    shape = most_shape(modality, tokenizer)
    yield from _table_faults(key, stream, shape)
    yield from _column_faults(key, stream, shape, is_of_any_size="tokens" not in tokenizer)


def _table_faults(key, stream, shape):
    """A row or column beyond a learned table would have no entry, and nobody would say so."""
    longest = max(shape[-2:], default=0)
    if 0 < stream.place_table < longest:
        yield (
            f"streams.{key}.place_table: {stream.place_table}; its units have up to {longest} rows or columns; raise "
            "it, or write 0"
        )


def _column_faults(key, stream, shape, is_of_any_size: bool):
    """Blocks of rows that are cut elsewhere than the data's are no blocks of the picture. A sequence has no rows."""
    columns = stream.prediction.columns
    if not stream.predicts or columns == 1 or not shape:
        return
    if is_of_any_size:
        yield (
            f"streams.{key}.prediction.columns: {columns}; its units have rows of their own, of up to {shape[-1]} "
            "tokens, and are hidden in blocks of one length alone; write 1 (a sequence), or prepare them in one size"
        )
    elif columns != shape[-1]:
        yield (
            f"streams.{key}.prediction.columns: {columns}; a row of its units has {shape[-1]} tokens; write "
            f"{shape[-1]}, or 1 (a sequence)"
        )


def _absent(config, abouts):
    """Streams of a representation that no dataset has, which would stay empty."""
    there = {modality for about in abouts.values() for modality in about["modalities"]}
    for key, stream in config.streams.items():
        if stream.representation and stream.representation not in there:
            yield (
                f"streams.{key}.representation: {stream.representation!r}; no dataset has it, these have "
                f"{', '.join(sorted(there))}; name one, or prepare it (`mot data prepare --also {stream.modality}=...`)"
            )


def open_(config: Config) -> tuple[Sources, Sources]:
    """The training and the held-out documents. A source without held-out documents is absent from these."""
    both = embedded.load(config) if is_embedded(config) else _records(config)
    return folding.sources(both[0], config), folding.sources(both[1], config)


def _records(config: Config) -> tuple[Sources, Sources]:
    by_split: dict[str, list[Source]] = {"train": [], "held_out": []}
    digest = hashlib.sha256()
    byte_lengths = np.zeros(config.vocab, np.int64)
    opened = {name: _opened(address, config.data.verify) for name, address in config.data.sources.items()}
    alike = unit_lengths([about for about, *_ in opened.values()])
    for n, (name, (about, datasets, bytes_, identity)) in enumerate(opened.items()):
        places = roles.placements(config.streams, about["modalities"])
        fixed = tuple(m for m in about["tokenizers"] if alike[m])
        shapes = {m: most_shape(m, about["tokenizers"][m]) for m in fixed}
        rules = roles.rules(config.data.roles, name, config.streams, places)
        special = about["tokenizers"]["text"]["special"]
        layout = TokenLayout(places, special, fixed, representations(about), shapes, rules)
        for split, sources in by_split.items():
            sources.append(Records(name, n, datasets[split], layout, len(config.streams)))
        stream = next(stream for stream in config.streams.values() if stream.holds == "text")
        byte_lengths[stream.first_id : stream.first_id + stream.ids] = bytes_
        digest.update(json.dumps([name, identity]).encode())
    tokenizers = {m: t["digest"] for about, *_ in opened.values() for m, t in about["tokenizers"].items()}
    both = [Sources(tuple(sources), byte_lengths, digest.hexdigest()[:16], tokenizers) for sources in by_split.values()]
    return both[0], both[1]


def unit_lengths(abouts: Sequence[dict]) -> dict[str, int]:
    """Tokens of a unit of each modality; 0 if the datasets have units of different lengths."""
    lengths_of: dict[str, set[int]] = {}
    for about in abouts:
        for modality, tokenizer in about["tokenizers"].items():
            lengths_of.setdefault(modality, set()).add(tokenizer.get("tokens", 0))
    return {modality: lengths.pop() if len(lengths) == 1 else 0 for modality, lengths in lengths_of.items()}


def _opened(address: str, verify: bool) -> tuple[dict, dict[str, Dataset | SeqioStream], np.ndarray, list]:
    """A source: its `dataset.json`, its splits, the bytes of text of each id, and its identity."""
    if seqio_bridge.is_address(address):
        mixture = seqio_bridge.open_(address)
        training = SeqioStream(mixture, "train")
        held_out = SeqioStream(mixture, "validation", seqio_bridge.MOST_HELD_OUT)
        splits = dict(zip(SPLITS, (training, held_out), strict=True))
        return mixture.about(), splits, mixture.vocabulary.byte_lengths, training.identity()
    folder = local(address)
    about = read_json(folder)
    splits = {split: Dataset(folder, split, verify) for split in SPLITS}
    return about, splits, bytes_of_ids(folder, about), sorted(files(about))


def bytes_of_ids(folder: Path, about: dict) -> np.ndarray:
    """`[ids]` bytes of text of each id of a dataset's tokenizer."""
    file = folder / "tokenizers" / BYTES
    ids = about["tokenizers"]["text"]["ids"]
    sizes = load_array(file)
    if sizes.shape != (ids,) or sizes.dtype.kind not in "iu" or sizes.min() < 0 or sizes.max() >= 2**31:
        raise UserError(f"{file} is no list of {ids} integers of 0 or more; copy it again")
    return sizes
