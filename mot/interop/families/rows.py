"""Which tensor of theirs is which parameter of ours: rows of names, and the pieces that they become for one model."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mot.config import Config
from mot.errors import UserError
from mot.interop.transforms import TRANSFORMS, Shape
from mot.model import params


class Row(NamedTuple):
    """A tensor of theirs, and the parameter of ours that it is, or a layer of, or an expert of a layer.

    {layer} in their name is the number of a layer in the whole model, {expert} that of an expert. Where several rows
    have one name, the tensor holds what they say one after the other, along its first axis, or their sum
    (`Transform.is_added`).
    """

    theirs: str
    ours: str  # the path of a parameter
    transform: str  # of transforms.TRANSFORMS
    first: int = 0  # the number that the first expert has in their name


class Said(NamedTuple):
    """What a config.json says in our words."""

    arch: str  # of configs/archs.py: the family's own
    values: Mapping[str, Any]  # of our configuration, by dotted key; a stream may be one that the data lack, and
    # {vectors} is the data's stream of vectors
    outside: tuple[str, ...] = ()  # how names of tensors begin that no parameter of ours is, and that are kept aside
    needs: Mapping[str, int] = {}  # streams of vectors that data must have, and their features
    ids: Mapping[str, tuple[int, ...]] = {}  # of streams whose ids lie amid text's: their id for each of the stream's
    window: int = 0  # how many tokens its attention looks back, itself included; 0 = all of a row


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
        place = config.stacks[:layer].count(config.stacks[layer])  # among the layers of its stack
        for row in own:
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
        found.setdefault(row.theirs.format(layer=layer, expert=row.first + expert), []).append(piece)


def order_of_ids(said: Said, config: Config, vocab: int) -> np.ndarray | None:
    """`[V]`: the row of their embedding that each of ours is, where some lie elsewhere; `vocab` is how many they have.

    A stream's ids lie together in both, in the order of its own in ours. Raises `UserError` where they are other ids
    than the configuration's, or have no row.
    """
    moved = {stream: ids for stream, ids in said.ids.items() if stream in config.streams}
    if not moved:
        return None
    order = np.arange(vocab)
    for stream, ids in moved.items():
        ours = config.streams[stream]
        if (min(ids), len(ids)) != (ours.first_id, ours.ids) or max(ids) >= vocab:
            raise UserError(
                f"ids {min(ids)} to {max(ids)} are those of {stream}'s codes in config.json (vocabulary_map); the "
                f"model has {ours.first_id} to {ours.first_id + ours.ids - 1}, and the embedding {vocab} rows; take "
                "the config.json that belongs to the weights"
            )
        order[min(ids) : min(ids) + len(ids)] = ids
    return order


def shape_of(pieces: list[Piece]) -> Shape:
    """That of the tensor of theirs which these pieces are."""
    first, *others = (piece.shape_of_theirs for piece in pieces)
    return first if _are_added(pieces) else (first[0] + sum(shape[0] for shape in others), *first[1:])


def parts(x: np.ndarray, pieces: list[Piece]) -> list[np.ndarray]:
    """What of a tensor of theirs each of its pieces is made of."""
    if _are_added(pieces):
        return [x] * len(pieces)
    return np.split(x, np.cumsum([piece.shape_of_theirs[0] for piece in pieces])[:-1])


def joined(parts: list[np.ndarray], pieces: list[Piece]) -> np.ndarray:
    """The tensor of theirs whose pieces were turned to these; undoes `parts`."""
    if len(parts) == 1:
        return parts[0]
    return sum(parts[1:], parts[0]) if _are_added(pieces) else np.concatenate(parts)


def _are_added(pieces: list[Piece]) -> bool:
    return TRANSFORMS[pieces[0].transform].is_added
