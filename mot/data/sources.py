"""Opens what `data.sources` name: embedded documents, datasets of records, a seqio stream."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mot.config import Config, Stream, reads
from mot.config.modalities import of_either_form
from mot.config.objectives import OF_VECTORS
from mot.data import embedded, seqio_bridge
from mot.data.manifest import BYTES, SPLITS, files, most_shape, read_json
from mot.data.mixture import Source, Sources
from mot.data.packing import Document
from mot.data.records import Dataset, Placement, TokenLayout, load_array, render
from mot.data.remote import local
from mot.data.seqio_bridge import SeqioStream
from mot.errors import UserError

EMBEDDED = "embedded"


class Records:
    """A split of a dataset as a source. Each modality's spans travel in the stream of that modality."""

    def __init__(self, name: str, index: int, dataset: Dataset | SeqioStream, layout: TokenLayout, streams: int):
        self.name, self.index, self.dataset, self.layout = name, index, dataset, layout
        self.count = dataset.count
        stream_of = {placement.modality: placement.stream for placement in layout.places}
        self.stream_of = np.array([stream_of[modality] for modality in dataset.modalities])
        self.streams = streams
        fixed = {m: dataset.about["tokenizers"][m]["tokens"] for m in layout.fixed}
        by_stream = [[fixed.get(m, 1) for m, stream in stream_of.items() if stream == s] for s in range(streams)]
        self.units = np.array([max(tokens or [1]) for tokens in by_stream])

    def lengths(self, i: int) -> np.ndarray:
        return self._by_stream(self.dataset.lengths_of(i))

    def _by_stream(self, by_modality) -> np.ndarray:
        result = np.zeros(self.streams, np.int64)
        result[self.stream_of] = by_modality
        return result

    def cuts(self, i: int) -> np.ndarray:
        atoms = self.dataset.atoms_of(i)
        tokens = np.zeros((len(atoms), self.streams), np.int64)
        tokens[np.arange(len(atoms)), self.stream_of[atoms[:, 0]]] = atoms[:, 1]
        text = self.stream_of[0]
        tokens[:, text] += 2 * (atoms[:, 0] != 0)  # its markers
        bos = (np.arange(self.streams) == text).astype(np.int64)
        by_stream = np.cumsum([bos, *tokens], axis=0)
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
        return self._by_stream(self.dataset.totals())

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
    streams = {stream.modality: (key, stream) for key, stream in config.streams.items()}
    for modality in about["modalities"]:
        if modality not in streams:
            yield (
                f"data.sources.{name}: it has {modality}, for which there is no stream (modalities: "
                f"{', '.join(streams)}); add a stream, or prepare it without"
            )
            continue
        key, stream = streams[modality]
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
        if 0 < stream.max_tokens < (fixed := tokenizer.get("tokens", 0)):
            yield f"streams.{key}.max_tokens: {stream.max_tokens}; {modality} of {name} has {fixed} tokens; raise it"


def open_(config: Config) -> tuple[Sources, Sources]:
    """The training and the held-out documents. A source without held-out documents is absent from these."""
    if is_embedded(config):
        return embedded.load(config)
    index = {stream.modality: (m, stream) for m, stream in enumerate(config.streams.values())}
    by_split: dict[str, list[Source]] = {"train": [], "held_out": []}
    digest = hashlib.sha256()
    byte_lengths = np.zeros(config.vocab, np.int64)
    opened = {name: _opened(address, config.data.verify) for name, address in config.data.sources.items()}
    alike = unit_lengths([about for about, *_ in opened.values()])
    for n, (name, (about, datasets, bytes_, identity)) in enumerate(opened.items()):
        places = tuple(_placement(modality, *index[modality]) for modality in about["modalities"])
        fixed = tuple(m for m in about["tokenizers"] if alike[m])
        shapes = {m: most_shape(m, about["tokenizers"][m]) for m in fixed}
        layout = TokenLayout(places, about["tokenizers"]["text"]["special"], fixed, shapes)
        for split, sources in by_split.items():
            sources.append(Records(name, n, datasets[split], layout, len(config.streams)))
        stream = index["text"][1]
        byte_lengths[stream.first_id : stream.first_id + stream.ids] = bytes_
        digest.update(json.dumps([name, identity]).encode())
    tokenizers = {m: t["digest"] for about, *_ in opened.values() for m, t in about["tokenizers"].items()}
    both = [Sources(tuple(sources), byte_lengths, digest.hexdigest()[:16], tokenizers) for sources in by_split.values()]
    return both[0], both[1]


def _placement(modality: str, number: int, stream: Stream) -> Placement:
    """Where the tokens of a modality go: to its stream, the `number`-th of the configuration."""
    return Placement(modality, number, stream.first_id, stream.ids, stream.latent)


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
