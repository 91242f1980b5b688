"""seqio's tasks and mixtures as documents (the `seqio` extra); the only file that knows seqio and TensorFlow.

Tasks are registered by whoever owns them: by a module that the configuration's file imports, or that `mot data prepare
--seqio-module` names. Here they are looked up, read in their own order without shuffling, and never packed or padded.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mot.data.manifest import special_tokens
from mot.data.records import Record, Span, atoms, lengths
from mot.errors import UserError
from mot.tokenizers import text

PREFIX = "seqio:"
MODALITIES = ("text",)
MOST_HELD_OUT = 2000  # documents of the validation split that a stream is judged by
PROBED = 16  # documents by which a stream is known again
EMPTY = 10_000  # examples in a row without an id; a stream of such would never come to an end
HELD = 32 << 20
FEWEST = 1024  # tokens that a stream holds at most, if it holds more documents than so many


def is_address(address: str) -> bool:
    return address.startswith(PREFIX)


def require() -> tuple[Any, Any]:
    """seqio and TensorFlow; raises `UserError` if the extra is not installed."""
    try:
        import seqio
        import tensorflow
    except ModuleNotFoundError as error:
        raise UserError(
            f"seqio cannot be imported ({error}); it is an extra: pip install -c constraints.txt -e '.[seqio]'"
        ) from None
    with contextlib.suppress(RuntimeError):  # whoever registered the task may have used TensorFlow before
        tensorflow.config.set_visible_devices([], "GPU")  # their memory is JAX's
    return seqio, tensorflow


class Vocabulary(NamedTuple):
    """A seqio vocabulary as mot keeps it: seqio's ids, then mot's own special tokens."""

    size: int  # seqio's ids
    tokenizer: Tokenizer
    encodes: bool  # False: the tokenizer tells what ids stand for, and no more
    byte_lengths: np.ndarray  # [ids] of text
    pieces: tuple[str, ...]  # what each id stands for, for finding sentences
    endings: tuple[int | None, int | None]  # ids that a feature ends in and mot does without: padding, and one EOS

    def about(self) -> dict:
        """The entry that a text tokenizer has in dataset.json, without files."""
        special = {token: self.tokenizer.token_to_id(token) for token in special_tokens(MODALITIES)}
        return {"ids": len(self.byte_lengths), "digest": self.digest, "special": special}

    @property
    def digest(self) -> str:
        # Of what a dataset keeps as text.json, so that a stream and an export of one vocabulary can be mixed.
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()[:16]


class SeqioMixture(NamedTuple):
    """A registered task or mixture."""

    name: str
    provider: Any  # seqio.Task or seqio.Mixture
    features: tuple[str, ...]  # those that make a document, in order
    vocabulary: Vocabulary

    def about(self) -> dict:
        return {"modalities": list(MODALITIES), "tokenizers": {"text": self.vocabulary.about()}}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(sorted(self.provider.splits))


class Read(NamedTuple):
    """An example as a document."""

    record: Record
    cuts: list[np.ndarray]  # for each span, where sentences begin
    why: str  # it is bad; "" = it is not


@lru_cache
def open_(name: str, features: tuple[str, ...] = ()) -> SeqioMixture:
    """A registered task or mixture, by its name or address; `features` are by default all of integers.

    Raises `UserError` where there is none, and where its features are not ids of one vocabulary.
    """
    name = name.removeprefix(PREFIX)
    seqio, tensorflow = require()
    try:
        provider = seqio.get_mixture_or_task(name)
    except ValueError as error:
        raise UserError(
            f"{PREFIX}{name}: {error} Import the module that registers it: in the configuration's file, or for "
            "`mot data prepare` with --seqio-module"
        ) from None
    offered = provider.output_features

    def is_ids(f):
        return tensorflow.as_dtype(f.dtype).is_integer and f.rank == 1 and hasattr(f, "vocabulary")

    usual = [key for key in ("inputs", "targets") if key in offered]
    able = [key for key in [*usual, *(key for key in offered if key not in usual)] if is_ids(offered[key])]
    chosen = features or tuple(able)
    if not chosen or set(chosen) - set(able):
        raise UserError(
            f"{PREFIX}{name}: features {', '.join(chosen) or 'by default'}; of its features {', '.join(offered)} only "
            f"{', '.join(able) or 'none'} are lists of ids; --seqio-features chooses among them"
        )
    vocabulary = offered[chosen[0]].vocabulary
    if other := next((key for key in chosen if offered[key].vocabulary != vocabulary), None):
        raise UserError(
            f"{PREFIX}{name}: {chosen[0]} and {other} have different vocabularies ({vocabulary}, "
            f"{offered[other].vocabulary}); a dataset has one; choose features of one with --seqio-features"
        )
    return SeqioMixture(name, provider, chosen, _vocabulary(vocabulary))


def documents(mixture: SeqioMixture, split: str, endless: bool = False) -> Iterator[Read]:
    """A split's examples in seqio's own order, which is the same each time."""
    _, tensorflow = require()
    address = f"{PREFIX}{mixture.name}"
    if split not in mixture.splits:
        raise UserError(f"{address} has no split {split}; it has {', '.join(mixture.splits)}; choose one")
    try:
        # For preprocessors that draw: seqio takes a seed, but not every source of it does.
        tensorflow.random.set_seed(0)
        dataset = mixture.provider.get_dataset(split=split, shuffle=False, num_epochs=None if endless else 1)
        dataset = dataset.map(lambda example: {key: example[key] for key in mixture.features})
        for number, example in enumerate(dataset.as_numpy_iterator()):
            yield _read(f"{split}:{number}", [example[key] for key in mixture.features], mixture.vocabulary)
    except Exception as error:  # of the owner's code, through TensorFlow: of any type
        raise UserError(
            f"{address}, {split}: its pipeline failed ({type(error).__name__}: {error}); mend it"
        ) from error


def _read(id_: str, features: list[np.ndarray], vocabulary: Vocabulary) -> Read:
    pad, eos = vocabulary.endings
    spans, cuts, why = [], [], ""
    for ids in features:
        end = len(ids)
        while end and ids[end - 1] == pad:
            end -= 1
        ids = ids[: end - (end > 0 and ids[end - 1] == eos)]
        if not len(ids):
            continue
        if ids.min() < 0 or ids.max() >= vocabulary.size:
            why = f"ids from {ids.min()} to {ids.max()}, where the vocabulary has {vocabulary.size}"
            cuts.append(np.zeros(0, np.int64))
        else:
            ids = ids.astype(np.uint16 if len(vocabulary.byte_lengths) <= 2**16 else np.uint32)
            pieces = [vocabulary.pieces[i] for i in ids]
            starts = [0, *itertools.accumulate(map(len, pieces[:-1]))]
            cuts.append(text.sentences("".join(pieces), starts))
        spans.append(Span("text", ids))
    return Read(Record(id_, tuple(spans)), cuts, why if spans else "an empty document")


def _vocabulary(vocabulary) -> Vocabulary:
    seqio, _ = require()
    n = vocabulary.vocab_size
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        names, sizes = _sentencepieces(vocabulary.tokenizer)
    elif isinstance(vocabulary, seqio.ByteVocabulary):
        names = [*("\0pad", "\0eos", "\0unk"), *(f"<0x{byte:02X}>" for byte in range(256))]
        sizes = [int(3 <= i < 259) for i in range(n)]
    elif isinstance(vocabulary, seqio.PassThroughVocabulary):  # nobody knows what its ids stand for
        names = [f"<{i}>" for i in range(n)]
        sizes = [0] * n
    else:
        names = [vocabulary.decode([i]) for i in range(n)]
        sizes = [0 if i in (vocabulary.pad_id, vocabulary.eos_id) else len(names[i].encode()) for i in range(n)]
    names += [f"\0extra {i}" for i in range(len(names), n)]
    seen: set[str] = set()
    for i, name in enumerate(names):  # several ids may stand for one text, or for none
        names[i] = f"\0{i} {name}" if name in seen or not name else name
        seen.add(name)
    model = _unigram(vocabulary, names) if isinstance(vocabulary, seqio.SentencePieceVocabulary) else None
    tokenizer = model or Tokenizer(models.WordLevel(dict(zip(names, range(n), strict=True)), unk_token=names[0]))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = text.load(tokenizer.to_str(), special_tokens(MODALITIES))
    bytes_ = np.array([*sizes, *[0] * (tokenizer.get_vocab_size() - n)], np.int32)

    def as_text(name):
        return chr(int(name[1:-1], 16)) if name.startswith("<0x") else name.replace("\u2581", " ")

    return Vocabulary(
        n, tokenizer, model is not None, bytes_, tuple(map(as_text, names)), (vocabulary.pad_id, vocabulary.eos_id)
    )


def _sentencepieces(pieces) -> tuple[list[str], list[int]]:
    """Each piece, and the bytes of text that it stands for. A piece that no text spells begins with a NUL."""
    names, sizes = [], []
    for i in range(pieces.GetPieceSize()):
        name = pieces.IdToPiece(i)
        spelt = not (pieces.IsControl(i) or pieces.IsUnknown(i) or pieces.IsUnused(i) or "<extra_id_" in name)
        names.append(name if spelt else f"\0{name}")
        sizes.append((1 if pieces.IsByte(i) else len(name.replace("\u2581", " ").encode())) if spelt else 0)
    return names, sizes


def _unigram(vocabulary, names) -> Tokenizer | None:
    """SentencePiece's unigram model in the tokenizers library; None for its other models."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(vocabulary.sp_model)
    normalizer = proto.normalizer_spec
    unigram = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    suffix = proto.trainer_spec.treat_whitespace_as_suffix
    if proto.trainer_spec.model_type != unigram or suffix or not normalizer.escape_whitespaces:
        return None
    entries = [(name, piece.score) for name, piece in zip(names, proto.pieces, strict=True)]
    tokenizer = Tokenizer(models.Unigram(entries, vocabulary.unk_id, proto.trainer_spec.byte_fallback))
    steps = [normalizers.Precompiled(normalizer.precompiled_charsmap)] if normalizer.precompiled_charsmap else []
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        "\u2581",
        prepend_scheme="always" if normalizer.add_dummy_prefix else "never",
        split=proto.trainer_spec.split_by_whitespace,
    )
    return tokenizer


class SeqioStream:
    """A split with the methods of `records.Dataset`, read in order: one process reads it, and keeps the newest part.

    Endless, each document once, or with `most` only so many, and all of them held. What was read long ago, and
    everything after a resume, is read from the beginning once more: right, but slow.
    """

    modalities = MODALITIES

    def __init__(self, mixture: SeqioMixture, split: str, most: int | None = None):
        self.mixture, self.split, self.about = mixture, split, mixture.about()
        self.count = most
        self._begin()
        if most is not None:
            reads = documents(mixture, split) if split in mixture.splits else ()
            for read in itertools.islice((read for read in reads if read.record.spans), most):
                self._hold(read)
            self.count = self._next

    def _begin(self) -> None:
        self._held: dict[int, tuple[Read, np.ndarray]] = {}  # with atoms; the one asked for longest ago is first
        self._tokens = 0  # that these have
        self._next = 0  # the next document to be read
        self._documents = documents(self.mixture, self.split, endless=True) if self.count is None else iter(())

    def _hold(self, read: Read) -> None:
        self._held[self._next] = read, atoms(read.record, MODALITIES, read.cuts)
        self._tokens += int(self._held[self._next][1][:, 1].sum())
        self._next += 1
        while self.count is None and self._tokens > HELD and len(self._held) > FEWEST:
            _, dropped = self._held.pop(next(iter(self._held)))
            self._tokens -= int(dropped[:, 1].sum())

    def _get(self, i: int) -> tuple[Read, np.ndarray]:
        if i not in self._held and i < self._next:
            self._begin()
        while i >= self._next:
            read = next((r for r in itertools.islice(self._documents, EMPTY) if r.record.spans), None)
            if read is None:
                raise UserError(
                    f"{PREFIX}{self.mixture.name}, {self.split}: no example with an id after {self._next} documents; "
                    "is the split empty?"
                )
            self._hold(read)
        self._held[i] = held = self._held.pop(i)
        return held

    def lengths_of(self, i: int) -> np.ndarray:
        return lengths(self.atoms_of(i), len(MODALITIES))

    def atoms_of(self, i: int) -> np.ndarray:
        return self._get(i)[1]

    def __getitem__(self, i: int) -> Record:
        read = self._get(i)[0]
        if read.why:
            raise ValueError(f"{read.record.id}: {read.why}")
        return read.record

    def totals(self) -> np.ndarray:
        """Zeros if it is endless: nobody has counted."""
        return sum((self.lengths_of(i) for i in range(self.count or 0)), np.zeros(len(MODALITIES), np.int64))

    def identity(self) -> list:
        """The identity of the stream: its mixture, the versions that decide its order, its first documents."""
        seqio, tensorflow = require()
        provider = self.mixture.provider
        first = hashlib.sha256()
        tasks = getattr(provider, "tasks", [])
        for i in range(PROBED):
            first.update(b"".join(span.data.tobytes() + b";" for span in self._get(i)[0].record.spans))
        rates = [[task.name, float(provider.get_rate(task))] for task in tasks]
        versions = [seqio.__version__, tensorflow.__version__]
        return [self.mixture.name, self.mixture.features, json.dumps(rates), self.split, versions, first.hexdigest()]
