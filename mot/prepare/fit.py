"""The tokenizers of a dataset, learnt from its first documents."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from mot.config.modalities import (
    IDS,
    MODALITIES,
    TEXT,
    VECTORS,
    form_of,
    media,
    network_of,
    of_either_form,
    other_form,
    row_of,
)
from mot.data.manifest import special_tokens
from mot.errors import UserError
from mot.files import write_atomically
from mot.prepare import codecs, dataset_tokenizers, left_out
from mot.prepare.dataset_tokenizers import CHOSEN, ChosenTokenizers, chosen, file_names
from mot.prepare.encode import opened
from mot.prepare.left_out import Bad, first_of
from mot.prepare.raw import Part, Raw, parts_of
from mot.prepare.sides import Sides, first_documents, is_held_out, kinds_named, kinds_of
from mot.prepare.templates import READY, modality_of
from mot.tokenizers import networked, text
from mot.tokenizers.given import GivenVectors
from mot.tokenizers.networked import Known

CORPUS = 64 << 20  # characters that a text tokenizer learns from at most


def choose(recipe, folder: Path, read: Callable[[], Iterator[Raw]], sides: Sides) -> None:
    """Writes the dataset's tokenizers, once: another dataset's, a file's, or learnt from the first documents.

    `sides` are those of `is_held_out`, as tokenizers learn nothing of what is held out.

    Raises `UserError` where a tokenizer is not what it should be, or the documents do not yield one.
    """
    if (folder / CHOSEN).exists():
        return
    folder.mkdir(exist_ok=True)
    like = dataset_tokenizers.of_dataset(Path(recipe.like)) if recipe.like else None
    ids = declared(recipe)
    console = Console(stderr=True)
    with console.status("looking at the first documents", spinner=spinner(console)):
        first = look(recipe, read, sides, ids, folder.parent / left_out.NAME)
    names = _modalities(recipe, first, ids)
    of = _also(recipe, names, like)
    names += [name for name in of if name not in names]
    networks = _networks(recipe, [name for name in names if name not in ids], like, console)
    of_vectors, widths, shapes, lossy = [], {}, {}, {}
    for name in (name for name in names if name not in ids):
        form = _form(name, recipe, like)
        if form == VECTORS and file_names(name) and name not in of:
            of_vectors.append(name)
        if name in networks:
            continue
        if like and _copied(like, folder, name):
            lossy = chosen(like).lossy
            continue
        try:
            with console.status(f"learning the {name} tokenizer", spinner=spinner(console)):
                if name == TEXT:
                    lossy = _learn_text(recipe, folder, first.corpus, names, console)
                else:
                    made = _learn(name, form, recipe, first.media[name], folder, console)
                    widths[name] = made.width if form == VECTORS else 0
                    shapes |= {name: made.shape} if isinstance(made, GivenVectors) and made.shape else {}
        except UserError:
            raise
        except ValueError as error:
            opened_of_it, bad, documents = _decoded(recipe, read, name)
            file = folder.parent / left_out.NAME
            left_out.write(file, bad)
            if bad and not opened_of_it:
                raise UserError(_all_bad(name, bad, documents, file)) from None
            raise UserError(f"the {name} tokenizer: {error}{first_of(bad, file)}") from None
    marks = dataset_tokenizers.special(dataset_tokenizers.load_text(folder)).keys()
    if lacks := set(special_tokens(names)) - marks:
        raise UserError(
            f"--like={recipe.like}: its text tokenizer has no {', '.join(sorted(lacks))}; train one anew, there with "
            f"--markers={','.join(names[1:])}"
        )
    if lossy:
        console.print(f"warning: {text.told(lossy)}", markup=False, soft_wrap=True)
    ready = {name: ids[name] for name in names if name in ids}
    found = ChosenTokenizers(
        tuple(names), widths, tuple(of_vectors), ready, lossy, of=of, shapes=shapes, networks=networks
    )
    dataset_tokenizers.write_chosen(folder, found)


def _networks(recipe, names: Sequence[str], like: Path | None, console: Console) -> dict[str, Known]:
    """Of the modalities whose tokens networks make: another dataset's, or those that the recipe names."""
    found = dict(chosen(like).networks) if like else {}
    found = {name: known for name, known in found.items() if name in names}
    for name in (name for name in names if name not in found and not (like and _has(like, name))):
        form = _form(name, recipe, like)
        if folder := network_of(recipe, row_of(name), form):
            with console.status(f"opening {folder}", spinner=spinner(console)):
                found[name] = _network(folder, row_of(name), form, recipe)
    return found


def _network(folder: str, name: str, form: str, recipe) -> Known:
    """What a dataset keeps of a network; raises `UserError` where it makes something else."""
    found = networked.known(folder, **{key: getattr(recipe, option) for key, option in MODALITIES[name].opened_with})
    makes = IDS if found.is_of_ids else VECTORS
    if (found.medium, makes) != (name, form):
        option = MODALITIES[found.medium].networks.get(makes)
        remedy = f"--{option.replace('_', '-')} takes it" if option else "nothing takes it"
        asked = MODALITIES[name].networks[form].replace("_", "-")
        raise UserError(
            f"--{asked}={folder}: its network makes {makes} of {found.medium}, not {form} of {name}; {remedy}"
        )
    return found


def _also(recipe, names: Sequence[str], like: Path | None) -> dict[str, str]:
    """Modalities that are further representations of another one's units, and of which; raises `UserError` where the
    documents have neither, or a modality is its own other form already."""
    of = {}
    for given in recipe.also:
        base, _, form = given.partition("=")
        name = other_form(base, form) if form in (IDS, VECTORS) else form
        if missing := next((m for m in (base, form) if m not in (*names, IDS, VECTORS)), ""):
            raise UserError(f"--also {given}: the first documents have no {missing}; leave it out, or raise --sample")
        if form in (IDS, VECTORS) and _form(base, recipe, like) == form:
            other = VECTORS if form == IDS else IDS
            raise UserError(f"--also {given}: {base} are {form} as it is; write --also {base}={other}, or leave it out")
        of[name] = base
    return of


def _form(name: str, recipe, like: Path | None) -> str:
    """What the tokens of a modality are: as the dataset has it whose tokenizer is taken, as asked for, or as usual."""
    if like and (_has(like, name) or name in chosen(like).networks):
        return chosen(like).form(name)
    if row_of(name) != name:
        return name.removeprefix(f"{row_of(name)}_")
    return form_of(name, recipe.vectors)


def _has(folder: Path, name: str) -> bool:
    files = file_names(name)
    return bool(files) and all((folder / file).is_file() for file in files)


def _copied(like: Path, folder: Path, name: str) -> bool:
    if not _has(like, name):
        return False
    for file in file_names(name):
        write_atomically(folder / file, (like / file).read_bytes())
    return True


def declared(recipe) -> dict[str, int]:
    """Modalities whose ids are ready, and how many each has: the recipe's, and those of the dataset it is `like`.

    Raises `UserError` where these disagree.
    """
    counts = dict(recipe.ids)
    if recipe.like:
        other = chosen(dataset_tokenizers.of_dataset(Path(recipe.like)))
        for modality, n in counts.items():
            if modality in other.modalities and other.ids.get(modality) != n:
                has = other.ids.get(modality) or "a tokenizer that mot learned"
                raise UserError(f"--ids {modality}={n}: {recipe.like} has {has}; leave --ids out, or --like")
        counts = other.ids | counts
    return counts


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
    return [TEXT, *(m for m in media() if m in seen), *(m for m in ids if m in seen and m not in MODALITIES)]


def _learn_text(recipe, folder: Path, corpus: Sequence[str], names: Sequence[str], console: Console) -> dict:
    """Writes the text tokenizer; what it loses of the first documents' text, {} = nothing."""
    made, sizes, lossy = codecs.of(TEXT).fit(corpus, recipe, special_tokens((*names, *recipe.markers)))
    dataset_tokenizers.save_text(made, sizes, folder)
    if not recipe.tokenizer:
        _tell_fewer(TEXT, recipe, made.get_vocab_size(), console)
    return lossy


def _learn(name: str, form: str, recipe, contents: Iterator, folder: Path, console: Console) -> Any:
    """Writes a tokenizer of media, and gives it."""
    made = codecs.of(name).fit(form, contents, recipe)
    dataset_tokenizers.save(made, folder, name)
    if form != VECTORS:
        _tell_fewer(name, recipe, made.ids, console)
    return made


def _tell_fewer(name: str, recipe, ids: int, console: Console) -> None:
    """Says so where nobody asked for a number of ids, and there are fewer than usual."""
    usual = MODALITIES[row_of(name)].usual_ids
    if ids < usual and getattr(recipe, f"{row_of(name)}_ids", None) is None:
        why = f"the usual {usual} are more than the first documents yield (--{row_of(name)}-ids)"
        console.print(f"{name}: {ids} ids; {why}", soft_wrap=True)


def spinner(console: Console) -> str:
    """The name of one that the terminal can show."""
    return "dots" if console.encoding.startswith("utf") else "line"


class First(NamedTuple):
    """What the first documents hold."""

    kinds: set[str]  # of their parts
    corpus: list[str]
    media: dict[str, Iterator]  # what codecs read, as it is asked for, by modality: as much as is learnt from
    greatest: dict[str, int]  # of ready ids, by modality


def look(recipe, read: Callable[[], Iterator[Raw]], sides: Sides, ids: Mapping[str, int], file: Path) -> First:
    """Raises `UserError` where there is nothing to learn from, and where all media of a kind are missing.

    `file` lists the bad documents where there are no others.
    """
    first: list[Part] = []  # of documents that are trained on,
    good = 0  # of which there are so many
    bad: list[Bad] = []
    lost: dict[str, list[Bad]] = {}  # those of these that have a medium, by modality
    held_out: dict[str, str] = {}  # the first held-out document that has a kind
    for raw in first_documents(recipe, read):
        parts = parts_of(raw, recipe.missing)
        try:
            if parts and is_held_out(raw, sides, recipe.missing):
                for kind in kinds_of(raw, recipe.missing, ids) if kinds_named(parts) - held_out.keys() else ():
                    held_out.setdefault(kind, raw.id)
            elif parts:
                first += parts
                good += 1
            else:
                bad.append(Bad(raw.id, raw.bad))
                for modality in sorted(_lost(raw)):
                    lost.setdefault(modality, []).append(bad[-1])
        except ValueError as error:  # told again when its turn comes
            bad.append(Bad(raw.id, str(error)))
    if not first:
        left_out.write(file, bad)
        raise UserError(
            f"{', '.join(recipe.inputs)}: {_none_to_train_on(recipe.sample, bad, held_out)}{first_of(bad, file)}"
        )
    there = [part for part in first if not isinstance(part.content, ValueError)]
    kinds = {part.kind for part in there}
    _refuse_absent(first, kinds, held_out)
    for modality, of_it in lost.items():
        if modality not in map(modality_of, kinds) and len(of_it) >= good:
            left_out.write(file, bad)
            raise UserError(_all_bad(modality, of_it, good + len(bad), file))

    def of(kind: str) -> Iterator[Part]:
        return (part for part in there if part.kind == kind)

    learnt_of = {other_form(name, form): name for name in of_either_form() for form in (IDS, VECTORS)}
    contents = {
        name: itertools.islice(_good(of(row)), MODALITIES[row].learns_from or None)
        for name, row in ({row: row for row in media()} | learnt_of).items()
    }
    ready = [kind for kind in kinds if kind.endswith(READY)]
    greatest = {modality_of(kind): max([int(x.max()) for x in _good(of(kind))] or [0]) for kind in ready}
    return First(kinds, _corpus(of(TEXT)), contents, greatest)


def _refuse_absent(parts: Sequence[Part], kinds: set[str], held_out: Mapping[str, str]) -> None:
    """Raises `UserError` where the documents name a kind of media of which none is there to learn from."""
    if missing := next((part for part in parts if part.kind not in kinds), None):
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


def _none_to_train_on(sample: int, bad: Sequence[Bad], held_out: Mapping[str, str]) -> str:
    """Why the first documents have none to learn from: `bad` ones, and those held out, the first by kind."""
    if not bad and not held_out:
        return "it is empty: there is no document in it; name another input"
    none = f"no document to train on among the first {sample} ({len(bad)} are bad"
    if not held_out:
        return f"{none}); mend them, or name other inputs"
    first = next(iter(held_out.values()))
    return f"{none}, the others are held out, as the input's split says, the first {first}); put some into train"


def _all_bad(modality: str, bad: Sequence[Bad], documents: int, file: Path) -> str:
    """Why there is nothing to learn a modality from; `bad` are the documents that have it."""
    number = len({one.id for one in bad})
    return (
        f"{number} of the first {documents} documents have {modality}, and all of these are bad; mend them, or prepare "
        f"documents that have none{first_of(bad, file)}"
    )


def _lost(raw: Raw) -> set[str]:
    """The modalities of a bad document's media."""
    return {*raw.lost, *(modality_of(part.kind) for part in raw.rest)} - {TEXT}


def _decoded(recipe, read: Callable[[], Iterator[Raw]], modality: str) -> tuple[int, list[Bad], int]:
    """Of the first documents: how many of a medium can be decoded, the documents that have one that cannot be, and how
    many documents there are."""
    good = 0
    bad = []
    documents = 0
    for raw in itertools.islice(read(), recipe.sample):
        documents += 1
        parts = parts_of(raw, recipe.missing)
        if not parts and modality in _lost(raw):
            bad.append(Bad(raw.id, raw.bad))
        for part in parts:
            try:
                if modality_of(part.kind) == modality:
                    opened(part)
                    good += 1
            except ValueError as error:
                bad.append(Bad(raw.id, str(error)))
    return good, bad, documents


def _corpus(parts: Iterable[Part]) -> list[str]:
    """The texts, up to a length in all."""
    corpus, left = [], CORPUS
    for part in parts:
        corpus.append(part.content[:left])
        left -= len(corpus[-1])
        if left <= 0:
            break
    return corpus


def _good(parts: Iterable[Part]):
    """What can be decoded; the rest is reported when its document's turn comes."""
    for part in parts:
        try:
            yield opened(part)
        except ValueError:
            continue
