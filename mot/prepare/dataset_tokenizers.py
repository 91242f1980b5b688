"""The tokenizers of a dataset, as they lie in its folder `tokenizers`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mot.config import modalities
from mot.config.modalities import IDS, MODALITIES, TEXT, VECTORS, row_of
from mot.data.manifest import BYTES, file_digest, files, read_json
from mot.errors import UserError
from mot.files import replacing, write_atomically
from mot.prepare import codecs
from mot.prepare.templates import MODALITY, READY
from mot.tokenizers import archive, networked, text
from mot.tokenizers.given import GivenIds, GivenVectors
from mot.tokenizers.networked import Known, Networked

CHOSEN = "chosen.json"  # written last: the folder is complete


class Tokenizers(NamedTuple):
    text: Tokenizer
    media: dict[str, Any]  # by modality, in the dataset's order
    further: dict[str, str] = {}  # modalities that are other representations of another one's units, and of which

    @property
    def modalities(self) -> tuple[str, ...]:
        return (TEXT, *self.media)

    def of(self, modality: str) -> Any:
        return self.text if modality == TEXT else self.media[modality]

    def decode(self, modality: str, data: np.ndarray) -> Any:
        """What the tokens of a part stand for, as its codec shows it; text is a string."""
        return self.text.decode(data.tolist()) if modality == TEXT else self.media[modality].decode(data)

    def kind(self, modality: str) -> str:
        """The kind of a part of a document: a modality whose ids are ready has READY in it."""
        return modality + READY * isinstance(self.media.get(modality), GivenIds)


def file_names(modality: str) -> tuple[str, ...]:
    """Those of what is learnt."""
    if modality == TEXT:
        return "text.json", BYTES
    row = MODALITIES.get(row_of(modality))
    return (f"{modality}.npz",) if row and row.learns_from else ()


def save(tokenizer: Any, folder: Path, modality: str) -> None:
    """What has no file is known by its size, which `write_chosen` keeps."""
    for name in file_names(modality):
        archive.save(tokenizer, folder / name)


def save_text(tokenizer: Tokenizer, sizes: np.ndarray, folder: Path) -> None:
    """With the bytes `[ids]` that each id stands for."""
    json_file, sizes_file = (folder / name for name in file_names(TEXT))
    write_atomically(json_file, tokenizer.to_str())
    with replacing(sizes_file) as partial, open(partial, "wb") as file:
        np.save(file, sizes.astype(np.int32), allow_pickle=False)


def load(folder: Path) -> Tokenizers:
    """Raises `UserError` where a file is not as it was written."""
    choice = chosen(folder)
    media: dict[str, Any] = {}
    try:
        for name in choice.modalities[1:]:
            if name in choice.ids:
                media[name] = GivenIds(choice.ids[name])
            elif name in choice.networks:
                media[name] = networked.tokenizer(choice.networks[name])
            elif name in choice.widths:
                media[name] = GivenVectors(choice.widths[name], tuple(choice.shapes.get(name, ())))
            else:
                media[name] = archive.load(codecs.of(name).TOKENIZERS[choice.form(name)], folder / file_names(name)[0])
    except ValueError as error:
        raise UserError(f"{error}; copy it again, or prepare the dataset anew") from None
    return Tokenizers(load_text(folder), media, choice.of)


def load_text(folder: Path) -> Tokenizer:
    file = folder / "text.json"
    try:
        return text.load(file.read_text(encoding="utf-8"), ())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is missing or damaged ({error}); copy it again, or prepare the dataset anew") from None


class ChosenTokenizers(NamedTuple):
    """What a dataset's tokenizers are, beside their own files."""

    modalities: tuple[str, ...]  # text first
    widths: dict[str, int]  # of vectors that are given
    vectors: tuple[str, ...]  # modalities whose tokenizer makes vectors
    ids: dict[str, int]  # modalities whose ids are ready, and how many each has
    lossy: dict  # what the text tokenizer loses, {} = nothing
    encodes: bool = True  # False: text is a seqio vocabulary's
    of: dict[str, str] = {}  # further representations of another modality's units, and of which
    shapes: dict[str, Sequence[int]] = {}  # of vectors that are given with rows and columns, the most of these
    networks: dict[str, Known] = {}  # modalities whose tokens a network makes that lies elsewhere

    def form(self, modality: str) -> str:
        """Of what a tokenizer of ours makes: ids or vectors; a modality's other form is called by it."""
        row = row_of(modality)
        return modality.removeprefix(f"{row}_") if row != modality else VECTORS if modality in self.vectors else IDS


def write_chosen(folder: Path, found: ChosenTokenizers) -> None:
    # Those that were always there are kept also where the documents have none.
    kept = [name for name in modalities.given() if name in found.modalities or not MODALITIES[name].codec]
    widths = {name: found.widths.get(name, 0) for name in kept}
    rest = {"vectors": found.vectors, "lossy": found.lossy, "ids": found.ids}
    rest |= {"of": found.of} if found.of else {}
    rest |= {"shapes": found.shapes} if found.shapes else {}
    rest |= {"networks": {name: known._asdict() for name, known in found.networks.items()}} if found.networks else {}
    write_atomically(folder / CHOSEN, json.dumps({"modalities": found.modalities} | widths | rest))


def chosen(folder: Path) -> ChosenTokenizers:
    """What `write_chosen` wrote; raises `UserError` for anything else."""
    file = folder / CHOSEN
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = ChosenTokenizers(
            tuple(content["modalities"]),
            {name: content[name] for name in modalities.given() if name in content},
            tuple(content.get("vectors", ())),
            dict(content.get("ids", {})),  # earlier versions had none
            content.get("lossy", {}),
            content.get("encodes", True),
            dict(content.get("of", {})),
            dict(content.get("shapes", {})),
            {name: networked.read(told) for name, told in content.get("networks", {}).items()},
        )
        _check(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is missing or damaged ({error}); copy it again, or prepare the dataset anew") from None
    return found


def _check(found: ChosenTokenizers) -> None:
    """Raises `ValueError` unless these belong together."""
    names = found.modalities
    if any(name not in names or of not in names or of in found.of for name, of in found.of.items()):
        raise ValueError(f"representations {found.of!r:.60}, of the modalities {names!r:.60}")
    ours = {name for name in names if name not in found.ids and row_of(name) == name}
    if odd := set(names) - found.ids.keys() - ours - found.of.keys():
        raise ValueError(f"modalities {odd!r:.60} of no other")
    if names[:1] != (TEXT,) or ours - MODALITIES.keys() or TEXT in found.ids:
        raise ValueError(f"modalities {names!r:.60}")
    if not found.widths or ours & {*modalities.given()} - found.widths.keys():
        raise ValueError(f"it lacks the width of {', '.join(modalities.given())}")
    for name, width in found.widths.items():
        if type(width) is not int or width < 0:
            raise ValueError(f"{name} of {width!r:.60} features")
    for name, shape in found.shapes.items():
        if name not in found.widths or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"{name} of {shape!r:.60} rows and columns")
    learnt = {name: MODALITIES[name].forms for name in ours if MODALITIES[name].learns_from}
    may_be = {name for name, forms in learnt.items() if VECTORS in forms}
    must_be = {name for name in may_be if IDS not in learnt[name]}
    if not must_be <= set(found.vectors) <= may_be:
        raise ValueError(f"vectors {found.vectors!r:.60}, of the modalities {names!r:.60}")
    for name, known in found.networks.items():
        if name not in names or row_of(name) != known.medium or known.is_of_ids != (found.form(name) == IDS):
            raise ValueError(f"a network of {name!r:.60}, which makes {known.medium!r:.60}")
    for name, count in found.ids.items():
        if name not in names or not MODALITY.fullmatch(name) or type(count) is not int:
            raise ValueError(f"{count!r:.60} ids of {name!r:.60}")


def of_dataset(dataset: Path) -> Path:
    """The tokenizers of another dataset, looked at; raises `UserError` where they cannot be taken."""
    for name, _, digest in files(read_json(dataset)):
        file = dataset / name
        if file.parent.name == "tokenizers" and (not file.is_file() or file_digest(file) != digest):
            raise UserError(
                f"--like={dataset}: {file} is missing or damaged; copy it again, or prepare the dataset anew"
            )
    if not chosen(dataset / "tokenizers").encodes:
        raise UserError(f"--like={dataset}: its text is a seqio vocabulary's, with which mot cannot encode; seqio can")
    return dataset / "tokenizers"


def special(tokenizer: Tokenizer) -> dict[str, int]:
    return {token.content: i for i, token in sorted(tokenizer.get_added_tokens_decoder().items()) if token.special}


def about(folder: Path) -> dict:
    """What dataset.json says of the tokenizers."""
    tokenizers = load(folder)
    entries = {}
    text_files = [folder / name for name in (*file_names(TEXT), CHOSEN)]
    entries[TEXT] = {"digest": file_digest(text_files[0])[:16], "ids": tokenizers.text.get_vocab_size()}
    entries[TEXT] |= {"special": special(tokenizers.text), "files": [_about_file(file) for file in text_files]}
    if lossy := chosen(folder).lossy:
        entries[TEXT]["lossy"] = lossy
    for modality, tokenizer in tokenizers.media.items():
        is_elsewhere = isinstance(tokenizer, GivenIds | Networked)
        own = [] if is_elsewhere else [folder / name for name in file_names(modality)]
        size = {"ids": tokenizer.ids} if hasattr(tokenizer, "ids") else {"width": tokenizer.width}
        # What has no file is known by its size.
        digest = file_digest(own[0])[:16] if own else "-".join(map(str, *size.items()))
        if isinstance(tokenizer, Networked):
            digest = tokenizer.digest
            size |= {"network": {"folder": tokenizer.known.folder, "digest": tokenizer.known.digest}}
        entries[modality] = {"digest": digest, "files": [_about_file(file) for file in own]} | size
        if tokens := getattr(tokenizer, "tokens", 0):
            entries[modality] |= {"tokens": tokens}
        if of := tokenizers.further.get(modality):
            entries[modality] |= {"of": of}
        if shape := getattr(tokenizer, "shape", ()):
            entries[modality] |= {"shape": list(shape)}
    return entries


def is_ready(entry: dict) -> bool:
    """Is what dataset.json says of a modality that its ids were ready?"""
    return entry["digest"] == f"ids-{entry.get('ids')}"


def _about_file(file: Path) -> dict:
    return {"file": file.name, "bytes": file.stat().st_size, "digest": file_digest(file)}
