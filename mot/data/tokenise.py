"""A document to records: its media decoded, everything tokenised, its places to be cut noted."""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from mot.data import media
from mot.data.about import BYTES, file_digest, files, read_json, special_tokens
from mot.data.raw import Part, Raw
from mot.data.records import Record, Span, atoms
from mot.errors import UserError
from mot.files import replacing, write_atomically
from mot.tokenizers import audio as audios
from mot.tokenizers import image as images
from mot.tokenizers import text as texts
from mot.tokenizers import vectors
from mot.tokenizers.audio import AudioTokenizer
from mot.tokenizers.image import ImageTokenizer
from mot.tokenizers.vectors import ActionVectors, AudioVectors, ImageVectors

MEDIA = ("image", "audio", "action", "latents")
FILES = {"text": ("text.json", BYTES), "latents": ()} | {kind: (f"{kind}.npz",) for kind in MEDIA[:3]}
VECTORS = {"image": ImageVectors, "audio": AudioVectors, "action": ActionVectors}
CHOSEN = "chosen.json"  # written last: the folder is complete
CORPUS = 64 << 20  # characters that a text tokenizer learns from at most
LEARNT = {"image": 2000, "audio": 2000, "action": 2000}  # that the others learn from at most
HEAVIEST = 512 << 20  # bytes of documents that are held to learn from
STRETCH = 256 << 10  # characters that are encoded at a time: the encoder takes hundreds of bytes for each
LARGEST = 256 << 20  # bytes of a document, decoded and tokenised
# The trainer's time grows with the square of a word's length.
_WORD = re.compile(r".*?\S{4096}|.+", re.DOTALL)


class Bad(NamedTuple):
    """A document that was left out."""

    id: str
    why: str


class Tools(NamedTuple):
    modalities: tuple[str, ...]  # of the dataset; text first
    text: Tokenizer
    image: ImageTokenizer | ImageVectors | None
    audio: AudioTokenizer | AudioVectors | None
    action: ActionVectors | None
    width: int  # P of latents; 0 = none


def choose(recipe, folder: Path, read: Callable[[], Iterator[Raw]]) -> None:
    """Writes the dataset's tokenizers, once: another dataset's, a file's, or trained on the first documents.

    Raises `UserError` where a tokenizer is not what it should be, or the documents do not yield one.
    """
    if (folder / CHOSEN).exists():
        return
    folder.mkdir(exist_ok=True)
    like = _like(Path(recipe.like)) if recipe.like else None
    console = Console(stderr=True)
    with console.status("looking at the first documents", spinner=spinner(console)):
        kinds, width, corpus, media_of = _look(recipe, read)
    modalities, of_vectors = ["text", *(kind for kind in MEDIA if kind in kinds)], []
    for kind in recipe.vectors:
        if kind not in kinds:
            raise UserError(f"--vectors={kind}: the first documents have no {kind}; leave it out, or raise --sample")
    try:
        for modality in modalities:
            if like and FILES[modality] and all((like / name).is_file() for name in FILES[modality]):
                of_vectors += {modality} & set(_chosen(like)["vectors"])
                for name in FILES[modality]:
                    write_atomically(folder / name, (like / name).read_bytes())
                continue
            of_vectors += {modality} & {*recipe.vectors, "action"}
            with console.status(f"learning the {modality} tokenizer", spinner=spinner(console)):
                if modality == "text":
                    _choose_text(recipe, folder, corpus, modalities)
                elif modality in of_vectors:
                    vectors.save(_vectors(modality, recipe, media_of), folder / f"{modality}.npz")
                elif modality == "image":
                    made = images.fit_image(media_of["image"], recipe.image_side, recipe.image_patch, recipe.image_ids)
                    images.save(made, folder / "image.npz")
                elif modality == "audio":
                    made = audios.fit_audio(media_of["audio"], recipe.audio_rate, ids=recipe.audio_ids)
                    audios.save(made, folder / "audio.npz")
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"the {modality} tokenizer: {error}") from None
    if lacks := set(special_tokens(modalities)) - _special(_text(folder)).keys():
        raise UserError(f"--like={recipe.like}: its text tokenizer has no {', '.join(sorted(lacks))}; train one anew")
    chosen = {"modalities": modalities, "latents": width, "vectors": of_vectors}
    write_atomically(folder / CHOSEN, json.dumps(chosen))


def spinner(console: Console) -> str:
    """The name of one that the terminal can show."""
    return "dots" if console.encoding.startswith("utf") else "line"


def _vectors(modality: str, recipe, media_of) -> vectors.Vectors:
    if modality == "image":
        return ImageVectors(recipe.image_side, recipe.image_patch)
    if modality == "audio":
        return vectors.fit_audio(media_of["audio"], recipe.audio_rate)
    return vectors.fit_action(media_of["action"], recipe.action_points, recipe.action_as == "offsets")


def _like(dataset: Path) -> Path:
    """The tokenizers of another dataset, looked at; raises `UserError` where they cannot be taken."""
    for name, _, digest in files(read_json(dataset)):
        file = dataset / name
        if file.parent.name == "tokenizers" and (not file.is_file() or file_digest(file) != digest):
            raise UserError(
                f"--like={dataset}: {file} is missing or damaged; copy it again, or prepare the dataset anew"
            )
    if not _chosen(dataset / "tokenizers")["encodes"]:
        raise UserError(f"--like={dataset}: its text is a seqio vocabulary's, with which mot cannot encode; seqio can")
    return dataset / "tokenizers"


def _look(recipe, read):
    """What the first documents hold: kinds, the width of latents, text, and media by kind as they are asked for."""
    first, heavy = [], 0
    for raw in itertools.islice(read(), recipe.sample):
        heavy += sum(weight_of(part) for part in raw.parts if not isinstance(part.content, Path))
        if heavy > HEAVIEST:
            break
        try:
            if not raw.bad and not is_held_out(raw, recipe.held_out):
                first.append(raw)
        except ValueError:  # told when its turn comes
            continue
    if not first:
        raise UserError(
            f"{', '.join(recipe.inputs)}: no document to train on among the first {recipe.sample}; name other inputs, "
            "or see what is wrong with these"
        )
    parts = lambda kind: (part for raw in first for part in raw.parts if part.kind == kind)
    kinds = {part.kind for raw in first for part in raw.parts}
    width = next((x.shape[1] for x in _good(media.latents, parts("latents"))), 0)
    corpus, left = [], CORPUS
    for part in parts("text"):
        corpus.append(part.content[:left])
        left -= len(corpus[-1])
        if left <= 0:
            break
    first_of = lambda kind, decode, **how: itertools.islice(_good(decode, parts(kind), **how), LEARNT[kind])
    media_of = {kind: first_of(kind, decode) for kind, decode in (("image", media.image), ("action", media.action))}
    return kinds, width, corpus, media_of | {"audio": first_of("audio", media.audio, rates=True)}


def weight_of(part: Part) -> int:
    """Bytes that a part takes in memory, about; of what is still in a file, the file's, 0 where that is not known."""
    if isinstance(part.content, Path):
        try:
            return os.stat(part.content).st_size
        except OSError:
            return 0
    return getattr(part.content, "nbytes", 0) or len(part.content)


def _good(decode, parts: Iterable[Part], rates: bool = False):
    """What can be decoded; the rest is reported when its document's turn comes."""
    for part in parts:
        try:
            yield decode(part.content, part.rate) if rates else decode(part.content)
        except ValueError:
            continue


def _choose_text(recipe, folder, corpus, modalities) -> None:
    special = special_tokens(modalities)
    if recipe.tokenizer:
        try:
            content = Path(recipe.tokenizer).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--tokenizer={recipe.tokenizer}: {error}; name a tokenizer.json") from None
    else:
        # Characters that UTF-8 cannot write are some document's fault, told in its turn.
        whole = [text.encode("utf-8", "ignore").decode() for text in corpus]
        whole = [words for text in whole for words in _WORD.findall(text)]
        content = texts.train(whole, recipe.text_ids, special).to_str()
    made = texts.load(content, special)
    ids = sorted(made.get_vocab().values())
    if ids != list(range(made.get_vocab_size())):
        raise UserError(
            f"--tokenizer={recipe.tokenizer}: {len(ids)} entries, of ids {ids[0]} to {ids[-1]}; each id from 0 on must "
            "belong to one entry; number them anew"
        )
    write_atomically(folder / "text.json", made.to_str())
    with replacing(folder / BYTES) as partial, open(partial, "wb") as file:
        np.save(file, texts.byte_lengths(made).astype(np.int32), allow_pickle=False)


def load(folder: Path) -> Tools:
    """The tokenizers that `choose` wrote; raises `UserError` where a file of theirs is not as it was written."""
    chosen = _chosen(folder)
    modalities, found = chosen["modalities"], {}
    try:
        for kind, of_ids in (("image", images.load), ("audio", audios.load), ("action", None)):
            file, of_vectors = folder / f"{kind}.npz", kind in chosen["vectors"]
            if kind in modalities:
                found[kind] = vectors.load(VECTORS[kind], file) if of_vectors else of_ids(file)
    except ValueError as error:
        raise UserError(f"{error}; copy it again, or prepare the dataset anew") from None
    return Tools(modalities, _text(folder), *map(found.get, ("image", "audio", "action")), chosen["latents"])


def _chosen(folder: Path) -> dict:
    """What is there: modalities, those but latents that are vectors, the latents' width, can text be encoded."""
    file = folder / CHOSEN
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        modalities, width = tuple(found["modalities"]), found["latents"]
        of_vectors = tuple(found.get("vectors", ()))  # earlier versions had none
        if modalities[:1] != ("text",) or set(modalities) - FILES.keys() or type(width) is not int or width < 0:
            raise ValueError(f"modalities {modalities!r:.60}, latents of {width!r:.60} features")
        if set(of_vectors) - (set(modalities) & VECTORS.keys()) or "action" in set(modalities) - set(of_vectors):
            raise ValueError(f"vectors {of_vectors!r:.60}, of the modalities {modalities!r:.60}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is missing or damaged ({error}); copy it again, or prepare the dataset anew") from None
    encodes = found.get("encodes", True)
    return {"modalities": modalities, "latents": width, "vectors": of_vectors, "encodes": encodes}


def _text(folder: Path) -> Tokenizer:
    file = folder / "text.json"
    try:
        return texts.load(file.read_text(encoding="utf-8"), ())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is missing or damaged ({error}); copy it again, or prepare the dataset anew") from None


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    return {token.content: i for i, token in sorted(tokenizer.get_added_tokens_decoder().items()) if token.special}


def about(folder: Path) -> dict:
    """What dataset.json says of the tokenizers."""
    tools, found = load(folder), {}
    for modality in tools.modalities:
        files = [folder / name for name in (*FILES[modality], *[CHOSEN] * (modality == "text"))]
        found[modality] = {
            "digest": file_digest(files[0])[:16] if files else f"width-{tools.width}",
            "files": [{"file": f.name, "bytes": f.stat().st_size, "digest": file_digest(f)} for f in files],
        }
    found["text"] |= {"ids": tools.text.get_vocab_size(), "special": _special(tools.text)}
    for kind in found.keys() - {"text", "latents"}:
        tool = getattr(tools, kind)
        found[kind] |= {"width": tool.width} if isinstance(tool, vectors.Vectors) else {"ids": tool.ids}
        if tokens := getattr(tool, "tokens", 0):
            found[kind] |= {"tokens": tokens}
    if "latents" in found:
        found["latents"] |= {"width": tools.width}
    return found


def records(raw: Raw, tools: Tools, recipe) -> tuple[bool, list[tuple[Record, np.ndarray]]]:
    """Is the document held out, and its records with their atoms: several where it is longer than `recipe.longest`.

    Raises `ValueError` with what is wrong with the document.
    """
    if raw.bad:
        raise ValueError(raw.bad)
    spans, cuts, size = [], [], 0
    for part in raw.parts:
        data, inner = _span(part, tools)
        if (size := size + data.nbytes) > LARGEST:
            raise ValueError(
                f"more than {LARGEST:,} bytes when it is decoded, which is the most; make several documents of it"
            )
        if len(data):
            spans.append(Span(part.kind, data))
            cuts.append(inner)
    if not spans:
        raise ValueError("an empty document")
    made = cut(Record(raw.id, tuple(spans)), cuts, tools.modalities, recipe.longest)
    return is_held_out(raw, recipe.held_out), made


def is_held_out(raw: Raw, fraction: float) -> bool:
    """As the input says, or by a hash of the content, so that equal documents are on one side.

    Raises `ValueError` where a file is too large or cannot be read.
    """
    if raw.held_out is not None:
        return raw.held_out
    if fraction == 0:
        return False
    content = hashlib.sha256()
    for kind, x, rate in raw.parts:
        content.update(f"{kind} {rate} ".encode())
        if isinstance(x, Path):
            try:
                media.check_file(x, media.MAX_FILE[kind])
                content.update(file_digest(x).encode())
            except OSError as error:
                raise ValueError(f"{x.name} cannot be read: {error.strerror}") from None
        elif isinstance(x, np.ndarray):
            content.update(f"{x.dtype} {x.shape} ".encode() + x.tobytes())
        else:
            content.update(x.encode(errors="surrogatepass") if isinstance(x, str) else x)
    return int.from_bytes(content.digest()[:8], "big") < fraction * 2**64


def _span(part: Part, tools: Tools) -> tuple[np.ndarray, np.ndarray]:
    """A part's data, and the places where it may be cut."""
    if part.kind not in tools.modalities:
        raise ValueError(f"it has {part.kind}, and the first documents had none; raise --sample")
    nowhere = np.zeros(0, np.int64)
    if part.kind == "text":
        try:
            part.content.encode()
        except UnicodeEncodeError:
            raise ValueError("its text holds characters that UTF-8 cannot write") from None
        return _words(part.content if part.content.strip() else "", tools.text)
    if part.kind == "image":
        return _narrow(tools.image.encode(media.image(part.content)), tools.image), nowhere
    if part.kind == "audio":
        return _narrow(tools.audio.encode(*media.audio(part.content, part.rate)), tools.audio), nowhere
    if part.kind == "action":
        return _narrow(tools.action.encode(media.action(part.content)), tools.action), nowhere
    x = media.latents(part.content)
    if x.shape[1] != tools.width:
        raise ValueError(f"latents of {x.shape[1]} features, where the first ones had {tools.width}")
    return x, nowhere


def _words(text: str, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """A text's ids, and the tokens that begin a sentence, but the first, or a stretch of a long text."""
    ids, begin, count, place = [], [], 0, 0
    while place < len(text) or not ids:
        end = place + STRETCH
        if end < len(text):  # before a word's space, which belongs to the word
            spaces = (text.rfind(space, place + STRETCH // 2, end) for space in " \n\t")
            end = at if (at := max(spaces)) > 0 else end
        stretch, place = text[place:end], end
        try:
            encoding = tokenizer.encode(stretch, add_special_tokens=False)
        except Exception as error:  # of no type of its own
            raise ValueError(f"its text cannot be encoded by the tokenizer: {error}") from None
        ids.append(_ids(encoding.ids, tokenizer.get_vocab_size()))
        inner = texts.sentences(stretch, [start for start, _ in encoding.offsets]) + count
        if count and len(ids[-1]):
            begin.append(np.array([count], np.int64))
        begin.append(inner)
        count += len(ids[-1])
    return np.concatenate(ids), np.concatenate(begin)


def _narrow(tokens: np.ndarray, tool) -> np.ndarray:
    """Ids in two or four bytes; features in two, which moves a pixel by a thirtieth of one of its 256 levels."""
    return tokens.astype(np.float16) if isinstance(tool, vectors.Vectors) else _ids(tokens, tool.ids)


def _ids(ids, most: int) -> np.ndarray:
    return np.asarray(ids, np.uint16 if most <= 2**16 else np.uint32)


def cut(record: Record, cuts, modalities, longest: int) -> list[tuple[Record, np.ndarray]]:
    """The record with its atoms, or several of at most `longest` tokens, if an atom alone is not longer."""
    whole = atoms(record, modalities, cuts)
    if whole[:, 1].sum() <= longest:
        return [(record, whole)]
    span_of = np.repeat(np.arange(len(cuts)), [len(inner) + 1 for inner in cuts])
    begins = np.concatenate([np.append(0, inner) for inner in cuts])  # of each atom, in its span
    pieces, first, size = [], 0, 0
    for a, (_, tokens) in enumerate(whole):
        if size and size + tokens > longest:
            pieces.append((first, a))
            first, size = a, 0
        size += tokens
    pieces.append((first, len(whole)))
    found = []
    for number, (a, b) in enumerate(pieces):
        spans = []
        for s in np.unique(span_of[a:b]):
            mine = np.flatnonzero(span_of[a:b] == s) + a
            begin, end = begins[mine[0]], begins[mine[-1]] + whole[mine[-1], 1]
            spans.append(Span(record.spans[s].modality, record.spans[s].data[begin:end]))
        found.append((Record(f"{record.id}#{number}", tuple(spans)), whole[a:b]))
    return found
