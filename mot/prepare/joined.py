"""Documents of several inputs: a row of each, those that have one value of a field, paired at random within a split."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mot.config.modalities import TEXT
from mot.config.options import DROP_MEDIUM
from mot.errors import UserError
from mot.prepare import readers
from mot.prepare.inputs import Notes
from mot.prepare.raw import Part, Raw, weight_of, whole
from mot.prepare.sides import Sides, is_held_out
from mot.prepare.templates import BRACES, Place, Template, declared, parse, places, places_of

ROW_NUMBER = "row_number"  # in place of a field: rows of one number belong together
HEAVIEST = 4 << 30  # bytes of rows, which are all held
NAMED = 8  # values that a message names


class _Row(NamedTuple):
    id: str
    value: str  # of the field that joins
    held_out: bool | None  # as the input says
    parts: dict[Place, tuple[Part, ...]]


def read(recipe, ids: Iterable[str], notes: Notes | None = None) -> Iterator[Raw]:
    """The documents of a recipe's inputs, joined by its `join`; templates take turns.

    Where every input has a value once, its rows are a document. Else rows of a value are paired at random within a
    split, each row of the largest input once unless `join_documents` says how many there are; rows of the smaller ones
    come again. The same from the same recipe. Raises `UserError` where a value has no row in one of the inputs.
    """
    templates = parse(declared(list(recipe.content), ids))
    inputs = [Path(given) for given in recipe.inputs]
    fields = recipe.join * (len(inputs) if len(recipe.join) == 1 else 1)
    notes = notes or Notes()
    sides = []
    for side, (path, field) in enumerate(zip(inputs, fields, strict=True)):
        wanted = [place for place in places(templates) if place.side == side]
        rows = []
        for row in _rows(path, field, wanted, recipe, ids, notes):
            if isinstance(row, Raw):
                yield row
            else:
                rows.append(row)
        _check_weight(path, rows)
        sides.append(rows)
    yield from _documents(sides, templates, recipe, [path.name for path in inputs])


def _rows(path: Path, field: str, wanted: Sequence[Place], recipe, ids, notes: Notes) -> Iterator[_Row | Raw]:
    """The rows of an input; a `Raw` for one that is bad. It is read once for each thing that is wanted of it."""

    def of(content: str) -> Iterator[Raw]:
        return readers.read([path], recipe.format, [content], "", ids, notes)

    columns = {place: of(f"{place.kind}:{place.field}") for place in wanted}
    if field != ROW_NUMBER:
        columns |= {None: of(f"{TEXT}:{field}")}
    if not columns:
        raise UserError(f"{path}: --content names no field of it; name one, or leave the input out")
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        found = dict(zip(columns, row, strict=True))
        bad = next((raw for raw in row if raw.bad and not raw.rest), None)
        if bad is not None:
            yield bad
            continue
        value = str(number) if field == ROW_NUMBER else found.pop(None).parts[0].content
        parts = {place: raw.parts or raw.rest for place, raw in found.items()}
        yield _Row(row[0].id, value, row[0].held_out, parts)


def _check_weight(path: Path, rows: Sequence[_Row]) -> None:
    bytes_ = sum(weight_of(part) for row in rows for parts in row.parts.values() for part in parts)
    if bytes_ > HEAVIEST:
        raise UserError(
            f"{path}: {bytes_:,} bytes of rows; at most {HEAVIEST:,} are held to be joined; join it in parts, or write "
            "JSON lines that name the files of both"
        )


def _documents(sides: Sequence[Sequence[_Row]], templates, recipe, names: Sequence[str]) -> Iterator[Raw]:
    groups = _groups(sides, recipe)
    _refuse_alone(groups, names, recipe.join)
    rng = np.random.default_rng(recipe.join_seed)
    counts = _counts([max(map(len, group)) for group in groups.values()], recipe.join_documents)
    joined = []
    for ((_, held_out), group), count in zip(groups.items(), counts, strict=True):
        orders = [_in_turn(rows, count, rng) for rows in group]
        joined += [(held_out, rows) for rows in zip(*orders, strict=True)]
    for i, place in enumerate(rng.permutation(len(joined))):
        held_out, rows = joined[place]
        yield _document(f"{'+'.join(row.id for row in rows)}#{i}", templates[i % len(templates)], rows, held_out)


def _groups(sides, recipe) -> dict[tuple[str, bool | None], list[list[_Row]]]:
    """By value and by what is held out, the rows of each input; a value that each input has once is a group."""
    by_value: dict[str, list[list[_Row]]] = {}
    for side, rows in enumerate(sides):
        for row in rows:
            by_value.setdefault(row.value, [[] for _ in sides])[side].append(row)
    groups: dict[tuple[str, bool | None], list[list[_Row]]] = {}
    below = Sides(int(recipe.held_out * 2**64))
    for value, of_sides in by_value.items():
        if all(len(rows) == 1 for rows in of_sides):
            said = [rows[0].held_out for rows in of_sides if rows[0].held_out is not None]
            groups[value, any(said) if said else None] = of_sides
            continue
        for side, rows in enumerate(of_sides):
            for row in rows:
                parts = tuple(part for parts in row.parts.values() for part in parts)
                held_out = is_held_out(Raw(row.id, parts, row.held_out), below, DROP_MEDIUM)
                groups.setdefault((value, held_out), [[] for _ in sides])[side].append(row)
    return groups


def _refuse_alone(groups, names: Sequence[str], join: Sequence[str]) -> None:
    """Raises `UserError` with every value that has no row in some input."""
    lacking: dict[tuple[int, bool | None], list[str]] = {}
    for (value, held_out), of_sides in groups.items():
        for side, rows in enumerate(of_sides):
            if not rows:
                lacking.setdefault((side, held_out), []).append(value)
    if not lacking:
        return
    told = []
    for (side, held_out), values in lacking.items():
        more = f" and {len(values) - NAMED:,} more" if len(values) > NAMED else ""
        split = {True: "held-out ", False: "training ", None: ""}[held_out]
        told.append(
            f"{names[side]} has no {split}row of {', '.join(map(repr, values[:NAMED]))}{more}, which another input has"
        )
    told.append("a document needs a row of each; leave those rows out, add their partners, or join by another field")
    raise UserError(f"--join={','.join(join)}: " + "\n  ".join(told))


def _counts(sizes: Sequence[int], total: int) -> list[int]:
    """How many documents each group gives: its size, or its share of `total`, the largest remainders rounded up."""
    if not total:
        return list(sizes)
    shares = total * np.array(sizes) / sum(sizes)
    counts = np.floor(shares).astype(int)
    most = np.argsort(counts - shares, kind="stable")[: total - counts.sum()]
    counts[most] += 1
    return counts.tolist()


def _in_turn(rows: Sequence[_Row], count: int, rng: np.random.Generator) -> list[_Row]:
    """So many of the rows: all in a random order, then all in another one, ..."""
    rounds = [rng.permutation(len(rows)) for _ in range(-(-count // len(rows)))]
    return [rows[i] for order in rounds for i in order][:count]


def _document(id: str, template: Template, rows: Sequence[_Row], held_out: bool | None) -> Raw:
    parts: list[Part] = []
    for kind, field in template:
        read_ = [rows[place.side].parts[place] for place in places_of(kind, field)]
        if kind == TEXT and "{" in field:
            words = iter(read_)
            parts.append(Part(TEXT, BRACES.sub(lambda _, words=words: next(words)[0].content, field)))
        else:
            parts += [part for found in read_ for part in found]
    try:
        return whole(id, parts, held_out)
    except ValueError as error:
        return Raw(id, (), None, str(error))
