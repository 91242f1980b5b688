"""Which tensor of theirs is which parameter of ours: rows of names, and the pieces that they become for one model."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mot.config import Config
from mot.interop.transforms import TRANSFORMS, Shape
from mot.model import params


class Row(NamedTuple):
    """A tensor of theirs, and the parameter of ours that it is, or a layer of, or an expert of a layer.

    {layer} in their name is the number of a layer in the whole model, {expert} that of an expert. Where several rows
    have one name, the tensor holds what they say one after the other, along its first axis.
    """

    theirs: str
    ours: str  # the path of a parameter
    transform: str  # of transforms.TRANSFORMS


class Said(NamedTuple):
    """What a config.json says in our words."""

    arch: str  # of configs/archs.py: the family's own
    values: Mapping[str, Any]  # of our configuration, by dotted key


class Piece(NamedTuple):
    """What a tensor of theirs has of a parameter: all of it, a layer, or an expert of a layer."""

    ours: str
    index: tuple[int, ...]
    shape: Shape  # of ours, at the index
    transform: str

    @property
    def shape_of_theirs(self) -> Shape:
        return TRANSFORMS[self.transform].shape(self.shape)


def pieces(rows: Iterable[Row], config: Config, vocab: int) -> dict[str, list[Piece]]:
    """The pieces of each tensor of theirs, layer after layer; `vocab` is how many rows their embedding has."""
    specs = params.table(config)
    inside: dict[int, list[Row]] = {layer: [] for layer in range(config.model.layers)}
    found: dict[str, list[Piece]] = {}
    for row in rows:
        if "{layer}" in row.theirs:
            stack = params.parse(row.ours).stack
            for layer in (i for i, name in enumerate(config.stacks) if name == stack):
                inside[layer].append(row)
        else:
            _add(found, row, specs[row.ours], (), vocab)
    for layer, own in inside.items():
        for row in own:
            place = config.stacks[:layer].count(config.stacks[layer])  # among the layers of its stack
            _add(found, row, specs[row.ours], (place,), vocab, layer)
    return found


def _add(
    found: dict[str, list[Piece]], row: Row, spec: params.Spec, at: tuple[int, ...], vocab: int, layer: int = 0
) -> None:
    shape = tuple(vocab if axis == "vocab" else n for axis, n in zip(spec.axes, spec.shape, strict=True))[len(at) :]
    if "{expert}" not in row.theirs:
        found.setdefault(row.theirs.format(layer=layer), []).append(Piece(row.ours, at, shape, row.transform))
        return
    for expert in range(shape[0]):
        piece = Piece(row.ours, (*at, expert), shape[1:], row.transform)
        found.setdefault(row.theirs.format(layer=layer, expert=expert), []).append(piece)


def shape_of(pieces: list[Piece]) -> Shape:
    """That of the tensor of theirs which these pieces are."""
    first, *others = (piece.shape_of_theirs for piece in pieces)
    return (first[0] + sum(shape[0] for shape in others), *first[1:])
