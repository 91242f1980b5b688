"""A document to records: its media decoded, everything tokenised, its places to be cut noted."""

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from mot.config.options import DROP_DOCUMENT, DROP_MEDIUM, USUAL
from mot.data.manifest import BYTES, file_digest, files, read_json, special_tokens
from mot.data.records import Record, Span, atoms
from mot.errors import UserError, reason
from mot.files import replacing, write_atomically
from mot.prepare import media
from mot.prepare.raw import Part, Raw
from mot.prepare.templates import MODALITY, READY, modality_of
from mot.tokenizers import audio as audios
from mot.tokenizers import image as images
from mot.tokenizers import text as texts
from mot.tokenizers import vectors
from mot.tokenizers.audio import AudioTokenizer
from mot.tokenizers.given import MOST, GivenIds, GivenVectors
from mot.tokenizers.image import ImageTokenizer
from mot.tokenizers.vectors import ActionVectors, AudioVectors, ImageVectors

MEDIA = ("image", "audio", "action", "latents")
FILES = {"text": ("text.json", BYTES)} | {kind: (f"{kind}.npz",) for kind in MEDIA[:3]}  # of what is learned
VECTORS = {"image": ImageVectors, "audio": AudioVectors, "action": ActionVectors}
OPENS = {"action": media.action, "latents": media.latents}
LEARNED = {"image": images.load, "audio": audios.load}  # codebooks, from their files
LEFT_OUT = "left_out.jsonl"
CHOSEN = "chosen.json"  # written last: the folder is complete
CORPUS = 64 << 20  # characters that a text tokenizer learns from at most
LEARNT = {"image": 2000, "audio": 2000, "action": 2000}  # that the others learn from at most
HEAVIEST = 512 << 20  # bytes of documents that are held to learn from
STRETCH = 256 << 10  # characters that are encoded at a time: the encoder takes hundreds of bytes for each
LARGEST = 256 << 20  # bytes of a document, decoded and tokenised
# The trainer's time grows with the square of a word's length.
_WORD = re.compile(r".*?\S{4096}|.+", re.DOTALL)


class Bad(NamedTuple):
    """A document that was left out, or one of its media."""

    id: str
    why: str
    medium: str = ""  # the modality of what is missing; "" = the document itself


class Sides(NamedTuple):
    """Which documents are held out, where the input does not say, by the hash of their content."""

    below: int  # those whose hash is less
    other: frozenset[int] = frozenset()  # hashes of documents that are on the other side than `below` says


Tool = ImageTokenizer | AudioTokenizer | vectors.Vectors | GivenIds | GivenVectors


class Tools(NamedTuple):
    """A dataset's tokenizers."""

    text: Tokenizer
    media: dict[str, Tool]  # by modality, in the dataset's order

    @property
    def modalities(self) -> tuple[str, ...]:
        return ("text", *self.media)


def choose(recipe, folder: Path, read: Callable[[], Iterator[Raw]], sides: Sides) -> None:
    """Writes the dataset's tokenizers, once: another dataset's, a file's, or trained on the first documents.

    `sides` are those of `is_held_out`, as tokenizers learn nothing of what is held out.

    Raises `UserError` where a tokenizer is not what it should be, or the documents do not yield one.
    """
    if (folder / CHOSEN).exists():
        return
    folder.mkdir(exist_ok=True)
    like = _like(Path(recipe.like)) if recipe.like else None
    known = _chosen(like) if like else {}
    ids = declared(recipe)
    console = Console(stderr=True)
    with console.status("looking at the first documents", spinner=spinner(console)):
        first = _look(recipe, read, sides, ids, folder.parent / LEFT_OUT)
    modalities = _modalities(recipe, first, ids)
    of_vectors, lossy = [], {}
    try:
        for modality in (m for m in modalities if m not in ids):
            made_of = FILES.get(modality, ())
            if like and made_of and all((like / name).is_file() for name in made_of):
                of_vectors += {modality} & set(known["vectors"])
                lossy = known["lossy"]
                for name in made_of:
                    write_atomically(folder / name, (like / name).read_bytes())
                continue
            of_vectors += {modality} & {*recipe.vectors, "action"}
            with console.status(f"learning the {modality} tokenizer", spinner=spinner(console)):
                if modality == "text":
                    lossy = _choose_text(recipe, folder, first.corpus, modalities)
                    if not recipe.tokenizer:
                        _tell_fewer("text", recipe.text_ids, _text(folder).get_vocab_size(), console)
                elif modality in of_vectors:
                    vectors.save(_vectors(modality, recipe, first.media), folder / f"{modality}.npz")
                elif modality in LEARNED:
                    _learn(modality, recipe, first.media[modality], folder / f"{modality}.npz", console)
    except UserError:
        raise
    except ValueError as error:
        bad = _undecoded(recipe, read, modality)
        write_left_out(folder.parent / LEFT_OUT, bad)
        raise UserError(f"the {modality} tokenizer: {error}{first_of(bad, folder.parent / LEFT_OUT)}") from None
    if lacks := set(special_tokens(modalities)) - _special(_text(folder)).keys():
        raise UserError(f"--like={recipe.like}: its text tokenizer has no {', '.join(sorted(lacks))}; train one anew")
    if lossy:
        console.print(f"warning: {texts.told(lossy)}", markup=False, soft_wrap=True)
    chosen = {"modalities": modalities, "latents": first.width, "vectors": of_vectors, "lossy": lossy}
    chosen["ids"] = {modality: ids[modality] for modality in modalities if modality in ids}
    write_atomically(folder / CHOSEN, json.dumps(chosen))


def declared(recipe) -> dict[str, int]:
    """Modalities whose ids are ready, and how many each has: the recipe's, and those of the dataset it is `like`.

    Raises `UserError` where these disagree.
    """
    found = dict(recipe.ids)
    if recipe.like:
        known = _chosen(_like(Path(recipe.like)))
        for modality, n in found.items():
            if modality in known["modalities"] and known["ids"].get(modality) != n:
                has = known["ids"].get(modality) or "a tokenizer that mot learned"
                raise UserError(f"--ids {modality}={n}: {recipe.like} has {has}; leave --ids out, or --like")
        found = known["ids"] | found
    return found


def _modalities(recipe, first: "First", ids: dict[str, int]) -> list[str]:
    """Those of the first documents, text first; raises `UserError` where ids are not declared, or are not there."""
    kinds = set(first.kinds)
    for kind in sorted(kinds):
        name = modality_of(kind)
        if kind.endswith(READY) and name not in ids:
            raise UserError(
                f"documents have ids of {name}, and nothing says how many there are; write --ids {name}=COUNT (those "
                f"of the first documents go up to {first.greatest[name]})"
            )
        if name in ids and name in kinds:
            raise UserError(
                f"--ids {name}={ids[name]}: the first documents have {name} that are no ids of one's own; leave --ids "
                'out, or write {"ids": [...], "modality": "' + name + '"}'
            )
    for name in (*recipe.vectors, *dict(recipe.ids)):
        if name in ids and name + READY not in kinds:
            raise UserError(
                f"--ids {name}={ids[name]}: the first documents have no {name}; leave it out, say which field has them "
                f"(--content 'text:caption|{name}:codes'), or raise --sample"
            )
        if name in recipe.vectors and name not in kinds:
            raise UserError(f"--vectors={name}: the first documents have no {name}; leave it out, or raise --sample")
    seen = {modality_of(kind) for kind in kinds}
    return ["text", *(m for m in MEDIA if m in seen), *(m for m in ids if m in seen and m not in MEDIA)]


def _learn(modality: str, recipe, found, file: Path, console: Console) -> None:
    """A codebook, of as many ids as the recipe says; where it does not, of the usual number or what the data yield."""
    asked = getattr(recipe, f"{modality}_ids")
    usual = USUAL[modality]
    if modality == "image":
        made = images.fit_image(found, recipe.image_side, recipe.image_patch, asked or usual, fewer=not asked)
        images.save(made, file)
    else:
        made = audios.fit_audio(found, recipe.audio_rate, ids=asked or usual, fewer=not asked)
        audios.save(made, file)
    _tell_fewer(modality, asked, made.ids, console)


def _tell_fewer(modality: str, asked: int | None, ids: int, console: Console) -> None:
    if asked is None and ids < (usual := USUAL[modality]):
        why = f"the usual {usual} are more than the first documents yield (--{modality}-ids)"
        console.print(f"{modality}: {ids} ids; {why}", soft_wrap=True)


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


class First(NamedTuple):
    """What the first documents hold."""

    kinds: set[str]  # of their parts
    width: int  # P of latents; 0 = none
    corpus: list[str]
    media: dict[str, Iterator]  # decoded, as they are asked for, by kind
    greatest: dict[str, int]  # of ready ids, by modality


def _look(recipe, read, sides: Sides, ids: Mapping[str, int], left_out: Path) -> First:
    """Raises `UserError` where there is nothing to learn from, and where all media of a kind are missing.

    `left_out`: the file that lists the bad documents where there are no others.
    """
    first, good, bad, lost, held_out = [], 0, [], {}, {}
    for raw in first_documents(recipe, read):
        found = parts_of(raw, recipe.missing)
        try:
            if found and is_held_out(raw, sides, recipe.missing):
                for kind in _kinds(raw, recipe.missing, ids) if _seen(found) - held_out.keys() else ():
                    held_out.setdefault(kind, raw.id)
            elif found:
                first += found
                good += 1
            else:
                bad.append(Bad(raw.id, raw.bad))
                for modality in sorted({*raw.lost, *(modality_of(part.kind) for part in raw.rest)} - {"text"}):
                    lost.setdefault(modality, []).append(bad[-1])
        except ValueError as error:  # told again when its turn comes
            bad.append(Bad(raw.id, str(error)))
    if not first:
        write_left_out(left_out, bad)
        raise UserError(
            f"{', '.join(recipe.inputs)}: {_none_to_train_on(recipe.sample, bad, held_out)}{first_of(bad, left_out)}"
        )
    there = [part for part in first if not isinstance(part.content, ValueError)]
    kinds = {part.kind for part in there}
    if missing := next((part for part in first if part.kind not in kinds), None):
        raise UserError(
            f"every {modality_of(missing.kind)} of the first documents is missing (the first: {missing.content}); see "
            "where they lie, or prepare documents that name none"
        )
    for kind, id_ in held_out.items():
        if kind not in kinds:
            raise UserError(
                f"{modality_of(kind)} is in held-out documents alone (the first: {id_}), as the input's split says, "
                "and tokenizers learn from what is trained on; put a document that has it into train, or raise --sample"
            )
    for modality, of_it in lost.items():
        if modality not in map(modality_of, kinds) and len(of_it) >= good:
            write_left_out(left_out, bad)
            raise UserError(
                f"{len(of_it)} of the first {good + len(bad)} documents have {modality}, and all of these are bad; "
                f"mend them, or prepare documents that have none{first_of(of_it, left_out)}"
            )

    def of(kind: str) -> Iterator[Part]:
        return (part for part in there if part.kind == kind)

    width = next((x.shape[1] for x in _good(of("latents"))), 0)
    media_of = {kind: itertools.islice(_good(of(kind)), most) for kind, most in LEARNT.items()}
    ready = [kind for kind in kinds if kind.endswith(READY)]
    greatest = {modality_of(kind): max([int(x.max()) for x in _good(of(kind))] or [0]) for kind in ready}
    return First(kinds, width, _corpus(of("text")), media_of, greatest)


def _none_to_train_on(sample: int, bad: Sequence[Bad], held_out: Mapping[str, str]) -> str:
    """Why the first documents have none to learn from: `bad` ones, and those held out, the first by kind."""
    if not bad and not held_out:
        return "it is empty: there is no document in it; name another input"
    none = f"no document to train on among the first {sample} ({len(bad)} are bad"
    if not held_out:
        return f"{none}); mend them, or name other inputs"
    first = next(iter(held_out.values()))
    return f"{none}, the others are held out, as the input's split says, the first {first}); put some into train"


def _undecoded(recipe, read, modality: str) -> list[Bad]:
    """The first documents whose medium cannot be decoded."""
    bad = []
    for raw in itertools.islice(read(), recipe.sample):
        for part in parts_of(raw, recipe.missing):
            try:
                if modality_of(part.kind) == modality:
                    opened(part)
            except ValueError as error:
                bad.append(Bad(raw.id, str(error)))
    return bad


def write_left_out(file: Path, left_out: Sequence[Bad]) -> None:
    lines = [{"id": bad.id, "why": bad.why} | ({"medium": bad.medium} if bad.medium else {}) for bad in left_out]
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))


def first_of(bad: Sequence[Bad], file: Path) -> str:
    """How a message that counts bad documents goes on: which are the first, and that `file` lists all."""
    if not bad:
        return ""
    told = [f"{one.id}: {one.why}" for one in bad[:3]]
    return "\n  ".join([f"; {file} lists what is bad, the first:", *told])


def _corpus(parts: Iterable[Part]) -> list[str]:
    """The texts, up to a length in all."""
    corpus, left = [], CORPUS
    for part in parts:
        corpus.append(part.content[:left])
        left -= len(corpus[-1])
        if left <= 0:
            break
    return corpus


def parts_of(raw: Raw, missing: str) -> tuple[Part, ...]:
    """A document's parts, also those of one that is bad for its media alone where these may be `missing`."""
    return raw.rest if raw.bad and missing == DROP_MEDIUM else raw.parts


def weight_of(part: Part) -> int:
    """Bytes that a part takes in memory, about; of what is still in a file, the file's, 0 where that is not known."""
    if isinstance(part.content, Path):
        try:
            return os.stat(part.content).st_size
        except OSError:
            return 0
    if isinstance(part.content, ValueError):
        return 0
    return getattr(part.content, "nbytes", 0) or len(part.content)


def _good(parts: Iterable[Part]):
    """What can be decoded; the rest is reported when its document's turn comes."""
    for part in parts:
        try:
            yield opened(part)
        except ValueError:
            continue


def _choose_text(recipe, folder, corpus, modalities) -> dict:
    """Writes the text tokenizer; what it loses of the first documents' text, {} = nothing."""
    special = special_tokens(modalities)
    if recipe.tokenizer:
        try:
            content = Path(recipe.tokenizer).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--tokenizer={recipe.tokenizer}: {reason(error)}; name a tokenizer.json") from None
    else:
        # Characters that UTF-8 cannot write are some document's fault, told in its turn.
        whole = [text.encode("utf-8", "ignore").decode() for text in corpus]
        whole = [words for text in whole for words in _WORD.findall(text)]
        content = texts.train(whole, recipe.text_ids or USUAL["text"], special).to_str()
    made = texts.load(content, special)
    ids = sorted(made.get_vocab().values())
    if ids != list(range(made.get_vocab_size())):
        raise UserError(
            f"--tokenizer={recipe.tokenizer}: {len(ids)} entries, of ids {ids[0]} to {ids[-1]}; each id from 0 on must "
            "belong to one entry; number them anew"
        )
    sizes = texts.byte_lengths(made)
    lossy = texts.loss(made, corpus) if recipe.tokenizer else {}
    if lossy:
        sizes = texts.measured(made, corpus, sizes)
        lossy |= {"counted": round(texts.counted(made, corpus, sizes), 4)}
    write_atomically(folder / "text.json", made.to_str())
    with replacing(folder / BYTES) as partial, open(partial, "wb") as file:
        np.save(file, sizes.astype(np.int32), allow_pickle=False)
    return lossy


def load(folder: Path) -> Tools:
    """The tokenizers that `choose` wrote; raises `UserError` where a file of theirs is not as it was written."""
    chosen = _chosen(folder)
    found: dict[str, Tool] = {}
    try:
        for kind in chosen["modalities"][1:]:
            file = folder / f"{kind}.npz"
            if kind in chosen["ids"]:
                found[kind] = GivenIds(chosen["ids"][kind])
            elif kind == "latents":
                found[kind] = GivenVectors(chosen["latents"])
            else:
                found[kind] = vectors.load(VECTORS[kind], file) if kind in chosen["vectors"] else LEARNED[kind](file)
    except ValueError as error:
        raise UserError(f"{error}; copy it again, or prepare the dataset anew") from None
    return Tools(_text(folder), found)


def _chosen(folder: Path) -> dict:
    """What is there: modalities, which are ready ids (and how many), which vectors, the latents' width, the text's."""
    file = folder / CHOSEN
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        modalities = tuple(found["modalities"])
        width = found["latents"]
        of_vectors = tuple(found.get("vectors", ()))
        ids = dict(found.get("ids", {}))  # earlier versions had none
        learned = set(modalities) - ids.keys()
        unknown = learned - {"text", *MEDIA}
        if modalities[:1] != ("text",) or unknown or "text" in ids or type(width) is not int or width < 0:
            raise ValueError(f"modalities {modalities!r:.60}, latents of {width!r:.60} features")
        if set(of_vectors) - (learned & VECTORS.keys()) or "action" in learned - set(of_vectors):
            raise ValueError(f"vectors {of_vectors!r:.60}, of the modalities {modalities!r:.60}")
        for name, n in ids.items():
            if name not in modalities or not MODALITY.fullmatch(name) or type(n) is not int:
                raise ValueError(f"{n!r:.60} ids of {name!r:.60}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is missing or damaged ({error}); copy it again, or prepare the dataset anew") from None
    of_text = {"encodes": found.get("encodes", True), "lossy": found.get("lossy", {})}
    return {"modalities": modalities, "latents": width, "vectors": of_vectors, "ids": ids} | of_text


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
    tools = load(folder)
    found = {}
    files = [folder / name for name in (*FILES["text"], CHOSEN)]
    found["text"] = {"digest": file_digest(files[0])[:16], "ids": tools.text.get_vocab_size()}
    found["text"] |= {"special": _special(tools.text), "files": [_about_file(file) for file in files]}
    if lossy := _chosen(folder)["lossy"]:
        found["text"]["lossy"] = lossy
    for modality, tool in tools.media.items():
        files = [folder / name for name in FILES.get(modality, ()) if not isinstance(tool, GivenIds)]
        size = {"ids": tool.ids} if hasattr(tool, "ids") else {"width": tool.width}
        # What has no file is known by its size.
        digest = file_digest(files[0])[:16] if files else "-".join(map(str, *size.items()))
        found[modality] = {"digest": digest, "files": [_about_file(file) for file in files]} | size
        if tokens := getattr(tool, "tokens", 0):
            found[modality] |= {"tokens": tokens}
    return found


def is_ready(known: dict) -> bool:
    """Is what dataset.json says of a modality that its ids were ready?"""
    return known["digest"] == f"ids-{known.get('ids')}"


def _about_file(file: Path) -> dict:
    return {"file": file.name, "bytes": file.stat().st_size, "digest": file_digest(file)}


class Made(NamedTuple):
    """A document's records."""

    records: list[tuple[Record, np.ndarray]]  # with their atoms; several where it is longer than a record may be
    missing: list[Bad]  # media of it that are missing, and were dropped
    seen: Counter[str]  # its "images", and how many of them are "cropped" to a square, or "animated"


def records(raw: Raw, tools: Tools, max_tokens: int, missing: str = DROP_DOCUMENT) -> Made:
    """Records of at most `max_tokens` tokens; raises `ValueError` with what is wrong with the document."""
    if raw.bad and not (raw.rest and missing == DROP_MEDIUM):
        raise ValueError(raw.bad)
    spans = []
    cuts = []
    size = 0
    dropped = []
    seen = Counter()
    for part in parts_of(raw, missing):
        try:
            x = opened(part, seen)
        except ValueError as error:
            if part.kind == "text" or missing == DROP_DOCUMENT:
                raise
            dropped.append(Bad(raw.id, str(error), modality_of(part.kind)))
            continue
        data, inner = _span(part, x, tools)
        if (size := size + data.nbytes) > LARGEST:
            raise ValueError(
                f"more than {LARGEST:,} bytes when it is decoded, which is the most; make several documents of it"
            )
        if len(data):
            spans.append(Span(modality_of(part.kind), data))
            cuts.append(inner)
    if not spans:
        raise ValueError(f"an empty document: {dropped[0].why}" if dropped else "an empty document")
    return Made(cut(Record(raw.id, tuple(spans)), cuts, tools.modalities, max_tokens), dropped, seen)


def opened(part: Part, seen: Counter | None = None):
    """A part decoded, as its tokenizer takes it: text, a picture, ...; raises `ValueError` where it cannot be.

    `seen` counts pictures, and those of which a tokenizer sees a part.
    """
    if isinstance(part.content, ValueError):
        raise part.content
    if part.kind == "text":
        try:
            part.content.encode()
        except UnicodeEncodeError:
            raise ValueError("its text holds characters that UTF-8 cannot write") from None
        return part.content
    if part.kind == "audio":
        return media.audio(part.content, part.rate)
    if part.kind == "image":
        pixels = media.image(part.content, seen)
        if seen is not None:
            seen.update(images=1, cropped=int(pixels.shape[0] != pixels.shape[1]))
        return pixels
    return (media.ids if part.kind.endswith(READY) else OPENS[part.kind])(part.content)


def is_held_out(raw: Raw, sides: Sides, missing: str = DROP_DOCUMENT) -> bool:
    """As the input says, or as the hash of the content decides: equal documents are on one side.

    Raises `ValueError` where a file is too large or cannot be read, unless media may be `missing`.
    """
    return decided(raw, sides, missing)[0]


def decided(raw: Raw, sides: Sides, missing: str) -> tuple[bool, int | None]:
    """`is_held_out`, and the hash that decided it, if one did."""
    if raw.held_out is not None or sides.below == 0:
        return bool(raw.held_out), None
    hash_ = _hash(raw, missing)
    return (hash_ < sides.below) != (hash_ in sides.other), hash_


def _hash(raw: Raw, missing: str) -> int:
    """64 bits of a document's content."""
    content = hashlib.sha256()
    for part in parts_of(raw, missing):
        kind, x, rate = part
        content.update(f"{kind} {rate} ".encode())
        try:
            content.update(_bytes(kind, x))
        except ValueError:
            if missing == DROP_DOCUMENT:
                raise
    return int.from_bytes(content.digest()[:8], "big")


def _bytes(kind: str, x) -> bytes:
    """What tells a part's content from others."""
    if isinstance(x, ValueError):
        raise x
    if isinstance(x, Path):
        try:
            media.check_file(x, media.MAX_FILE["ids" if kind.endswith(READY) else kind])
            return file_digest(x).encode()
        except OSError as error:
            raise ValueError(f"{x.name} cannot be read: {error.strerror}") from None
    if isinstance(x, np.ndarray):
        return f"{x.dtype} {x.shape} ".encode() + x.tobytes()
    return x.encode(errors="surrogatepass") if isinstance(x, str) else x


def held_out_below(raws: Iterable[Raw], fraction: float, missing: str, ids: Mapping[str, int]) -> int:
    """Documents whose hash is less are held out: `fraction` of all hashes.

    It is moved where that would leave no document on one of the sides: the least hash alone is held out then, or the
    greatest alone trained on. One document, or several that are equal, are trained on. Documents that are bad do not
    count, as far as that shows without a tokenizer, and no more are looked at than it takes to find one on each side;
    none, where the input says itself which are held out.
    """
    if fraction == 0:
        return 0
    below = int(fraction * 2**64)
    hashes = set()
    for raw in raws:
        if raw.held_out is not None:
            return below
        try:
            hash_ = _hash(raw, missing)
            if hash_ not in range(min(hashes, default=1), max(hashes, default=0) + 1):
                _kinds(raw, missing, ids)
                hashes = {min(hashes | {hash_}), max(hashes | {hash_})}
        except ValueError:  # told when its turn comes
            continue
        if min(hashes) < below <= max(hashes):
            return below
    if hashes and max(hashes) < below:
        return max(hashes)
    if len(hashes) == 2:
        return min(hashes) + 1
    return below


def sides_of(recipe, read: Callable[[], Iterator[Raw]], ids: Mapping[str, int]) -> Sides:
    """`held_out_below`, and what it takes that tokenizers, which learn from the first documents that are trained on,
    meet every modality that these documents have.

    Of a modality that is held out alone, the document of the greatest hash is trained on. Where nothing is held out
    then, another is, which is not the only one of a modality.
    """
    below = held_out_below(read(), recipe.held_out, recipe.missing, ids)
    if below == 0 or not _is_lost(recipe, read, below, ids):
        return Sides(below)
    kinds_of = {}
    trained = set()
    says = False  # by hash, what a document has; what the input trains on
    for raw in first_documents(recipe, read):
        says = says or raw.held_out is not None
        with contextlib.suppress(ValueError):  # told when its turn comes
            kinds = _kinds(raw, recipe.missing, ids)
            if raw.held_out is None:
                kinds_of[_hash(raw, recipe.missing)] = kinds
            elif not raw.held_out:
                trained |= kinds
    held_out = {hash_ for hash_ in kinds_of if hash_ < below}
    other = set()
    for kind in sorted(set().union(*kinds_of.values()) - trained):
        having = {hash_ for hash_, kinds in kinds_of.items() if kind in kinds}
        if having <= held_out:
            other.add(max(having))
            held_out.remove(max(having))
    if other and not held_out and not says:
        other |= _spared(kinds_of, other)
    return Sides(below, frozenset(other))


def _spared(kinds_of: dict[int, set[str]], kept: set[int]) -> set[int]:
    """The least hash of a document that is not `kept` and all of whose modalities others have, too, if there is one."""
    have = Counter(kind for kinds in kinds_of.values() for kind in kinds)
    spared = (h for h in sorted(kinds_of.keys() - kept) if all(have[kind] > 1 for kind in kinds_of[h]))
    return set(itertools.islice(spared, 1))


def _is_lost(recipe, read, below: int, ids: Mapping[str, int]) -> bool:
    """May there be a modality that the first documents have on the held-out side alone? Few are decoded to tell."""
    trained, held_out = set(), set()
    for raw in first_documents(recipe, read):
        with contextlib.suppress(ValueError):  # told when its turn comes
            kinds = _seen(parts_of(raw, recipe.missing))
            if kinds <= trained:
                continue
            if is_held_out(raw, Sides(below), recipe.missing):
                held_out |= kinds
            else:
                trained |= _kinds(raw, recipe.missing, ids)
    return not held_out <= trained


def first_documents(recipe, read: Callable[[], Iterator[Raw]]) -> Iterator[Raw]:
    """Those from which tokenizers learn: as many as the recipe says, unless they are too heavy to be held."""
    heavy = 0
    for number, raw in enumerate(itertools.islice(read(), recipe.sample)):
        heavy += sum(weight_of(x) for x in parts_of(raw, recipe.missing) if not isinstance(x.content, Path))
        if heavy > HEAVIEST and number:
            return
        yield raw


def _seen(parts: Iterable[Part]) -> set[str]:
    """The kinds of parts that are there, before any is decoded."""
    return {part.kind for part in parts if not isinstance(part.content, ValueError)}


def _kinds(raw: Raw, missing: str, ids: Mapping[str, int]) -> set[str]:
    """The kinds of a document's parts; raises `ValueError` where it will be bad, as far as that shows without a
    tokenizer."""
    if raw.bad and not (raw.rest and missing == DROP_MEDIUM):
        raise ValueError(raw.bad)
    found = set()
    for part in parts_of(raw, missing):
        try:
            x = opened(part)
        except ValueError:
            if part.kind == "text" or missing == DROP_DOCUMENT:
                raise
            continue
        if part.kind.endswith(READY):
            GivenIds(ids.get(modality_of(part.kind), MOST)).encode(x)
        found.add(part.kind)
    return found


def _span(part: Part, x, tools: Tools) -> tuple[np.ndarray, np.ndarray]:
    """The data of a part as it was opened, and the places where it may be cut."""
    modality = modality_of(part.kind)
    if modality not in tools.modalities:
        unseen = "and the first documents had none; raise --sample, or move one that has it to the front"
        if part.kind.endswith(READY):
            raise ValueError(f"it has ids of {modality}, {unseen}")
        raise ValueError(f"it has {modality}, {unseen}")
    if modality == "text":
        return _words(x if x.strip() else "", tools.text)
    tool = tools.media[modality]
    if isinstance(tool, GivenIds) != part.kind.endswith(READY):
        has = "ids of one's own" if isinstance(tool, GivenIds) else "what a tokenizer of mot takes"
        raise ValueError(f"its {modality} is not like that of other documents, which is {has} (--ids)")
    try:
        data = tool.encode(*x) if modality == "audio" and isinstance(x, tuple) else tool.encode(x)
    except ValueError as error:
        raise ValueError(f"{modality}: {error}" if isinstance(tool, GivenIds) else str(error)) from None
    return _narrow(data, tool), np.zeros(0, np.int64)


def _words(text: str, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """A text's ids, and the tokens that begin a sentence, but the first, or a stretch of a long text."""
    ids, begin, count, place = [], [], 0, 0
    while place < len(text) or not ids:
        end = place + STRETCH
        if end < len(text):  # before a word's space, which belongs to the word
            spaces = (text.rfind(space, place + STRETCH // 2, end) for space in " \n\t")
            end = at if (at := max(spaces)) > 0 else end
        stretch = text[place:end]
        place = end
        try:
            encoding = tokenizer.encode(stretch, add_special_tokens=False)
        except Exception as error:  # of no type of its own
            raise ValueError(f"its text cannot be encoded by the tokenizer: {reason(error)}") from None
        ids.append(_ids(encoding.ids, tokenizer.get_vocab_size()))
        inner = texts.sentences(stretch, [start for start, _ in encoding.offsets]) + count
        if count and len(ids[-1]):
            begin.append(np.array([count], np.int64))
        begin.append(inner)
        count += len(ids[-1])
    return np.concatenate(ids), np.concatenate(begin)


def _narrow(tokens: np.ndarray, tool) -> np.ndarray:
    """Ids in two or four bytes, given vectors as they are; features of ours in two, which moves a pixel by a thirtieth
    of one of its 256 levels."""
    if isinstance(tool, GivenVectors):
        return tokens
    return tokens.astype(np.float16) if isinstance(tool, vectors.Vectors) else _ids(tokens, tool.ids)


def _ids(ids, most: int) -> np.ndarray:
    return np.asarray(ids, np.uint16 if most <= 2**16 else np.uint32)


def cut(record: Record, cuts, modalities, max_tokens: int) -> list[tuple[Record, np.ndarray]]:
    """The record with its atoms, or several of at most `max_tokens` tokens, if an atom alone is not longer."""
    whole = atoms(record, modalities, cuts)
    if whole[:, 1].sum() <= max_tokens:
        return [(record, whole)]
    span_of = np.repeat(np.arange(len(cuts)), [len(inner) + 1 for inner in cuts])
    begins = np.concatenate([np.append(0, inner) for inner in cuts])  # of each atom, in its span
    pieces, first, size = [], 0, 0
    for a, (_, tokens) in enumerate(whole):
        if size and size + tokens > max_tokens:
            pieces.append((first, a))
            first, size = a, 0
        size += tokens
    pieces.append((first, len(whole)))
    found = []
    for number, (a, b) in enumerate(pieces):
        spans = []
        for s in np.unique(span_of[a:b]):
            mine = np.flatnonzero(span_of[a:b] == s) + a
            begin = begins[mine[0]]
            end = begins[mine[-1]] + whole[mine[-1], 1]
            spans.append(Span(record.spans[s].modality, record.spans[s].data[begin:end]))
        found.append((Record(f"{record.id}#{number}", tuple(spans)), whole[a:b]))
    return found
