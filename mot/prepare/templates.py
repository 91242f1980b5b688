"""Templates of --content: which document a row of fields becomes. They are judged before any document is read."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mot.config import modalities
from mot.config.modalities import TEXT
from mot.errors import UserError

# Ends the kind of a part that is ids of somebody's own tokenizer: "depth ids" are ids of the modality depth.
READY = " ids"
MODALITY = re.compile(r"[a-z][a-z0-9_]*")
# The kind of a template's part that is two fields: lists of texts and of images, as OBELICS and mmc4 name them.
INTERLEAVED = "interleaved"
TEXTS = "texts"  # the kind of the first of these fields
# (kind, field), or for text (kind, words with {field} in them), for an action (kind, fields joined by +). A kind is a
# modality, INTERLEAVED, or a modality and READY.
Template = tuple[tuple[str, str], ...]
NUMBERED = re.compile(r"([1-9]\d*)\.(.+)")  # a field of an input that is joined with others
BRACES = re.compile(r"\{([^{}]+)\}")


class Place(NamedTuple):
    """What a template's part reads of one input."""

    side: int  # of the inputs, from 0
    kind: str
    field: str  # as the input calls it; several joined by +


def modality_of(kind: str) -> str:
    return kind.removesuffix(READY)


def declared(content: Sequence[str], ready: Iterable[str]) -> list[str]:
    """Templates in which `depth:codes` reads `depth ids:codes`, for the modalities whose ids are ready."""
    ready = set(ready)

    def marked(part: str) -> str:
        kind, colon, field = part.partition(":")
        return f"{kind.strip()}{READY}:{field}" if colon and kind.strip() in ready else part

    return ["|".join(map(marked, template.split("|"))) for template in content]


def parse(content: Sequence[str]) -> tuple[Template, ...]:
    """Templates like "text:a drawing of {name}|image:image" or "text:caption|action:xy+pen_up"."""
    return tuple(_parse(template) for template in content)


def _parse(template: str) -> Template:
    parts = []
    for part in template.split("|"):
        kind, colon, field = part.partition(":")
        kind = kind.strip()
        braces = "{" in field or "}" in field
        balanced = not re.search(r"[{}]", BRACES.sub("", field))
        joined = kind in (*modalities.joined(), INTERLEAVED)
        names = [name.strip() for name in field.split("+")] if joined else [field.strip()]
        is_known = kind in (*modalities.names(), INTERLEAVED) or kind.endswith(READY)
        is_known = is_known and (kind != INTERLEAVED or len(names) == 2)
        if not is_known or not colon or not all(names) or (braces and (kind != TEXT or not balanced)):
            raise UserError(
                f"--content {template!r}: {part!r}; write kind:field, the kind one of {', '.join(modalities.names())} "
                "or a modality that --ids declares (--ids depth=64), text also with {field} among words, "
                f"{' or '.join(modalities.joined())} with fields joined by +, interleaved:texts+images for parallel "
                "lists, parts separated by |, e.g. 'text:a drawing of {name}|image:image'"
            )
        parts.append((kind, field if braces else "+".join(names)))
    return tuple(parts)


def needed(templates: Sequence[Template]) -> dict[str, str]:
    """The kind of each field that templates name."""
    names = [one for template in templates for kind, field in template for one in _kinds(kind, field)]
    kinds = dict(names)
    for name, kind in names:
        if kinds[name] != kind:
            raise UserError(f"content uses the field {name!r} as {kinds[name]} and as {kind}; choose one")
    return kinds


def _kinds(kind: str, field: str) -> list[tuple[str, str]]:
    """Each field of a part, and its kind; of parallel lists TEXTS, and "image"."""
    if kind == INTERLEAVED:
        return list(zip(field.split("+"), (TEXTS, "image"), strict=True))
    names = field.split("+") if kind in modalities.joined() else BRACES.findall(field) or [field]
    return [(name, kind) for name in names]


def places(templates: Sequence[Template]) -> list[Place]:
    """What templates read, each once."""
    return list(dict.fromkeys(place for template in templates for part in template for place in places_of(*part)))


def places_of(kind: str, field: str) -> list[Place]:
    """What a template's part reads. `2.NAME` is a field of the second input; without a number it is the first's."""
    if kind == TEXT:
        return [_place(kind, name) for name in BRACES.findall(field) or [field]]
    found = [_place(kind, name) for name in field.split("+")]
    if len({place.side for place in found}) > 1:
        raise UserError(f"--content {kind}:{field}: its fields are of several inputs; name fields of one")
    return [Place(found[0].side, kind, "+".join(place.field for place in found))]


def _place(kind: str, name: str) -> Place:
    numbered = NUMBERED.fullmatch(name)
    return Place(int(numbered[1]) - 1, kind, numbered[2]) if numbered else Place(0, kind, name)
