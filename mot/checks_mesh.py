"""Checks of the mesh, and of the dict that says what its axes split."""

import itertools
from collections.abc import Iterator

from mot.limits import ABOVE_0, AT_LEAST_0, Allowed, meant, within

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")
VALUES: dict[str, Allowed] = dict.fromkeys(("fsdp", "expert", "context", "tensor", "slices", "buffer"), ABOVE_0)
VALUES |= {"data": AT_LEAST_0, "exchange": ("gather", "all_to_all")}
LOGICAL_AXES = ("batch", "length", "embed", "vocab", "heads", "kv_heads", "head", "mlp", "expert", "layer")
# Logical axes that one array has.
TOGETHER = (
    ("batch", "length", "vocab"),
    ("batch", "length", "heads", "head"),
    ("batch", "length", "mlp"),
    ("layer", "expert", "embed", "mlp"),
    ("layer", "expert", "embed", "heads", "head"),
    ("embed", "vocab"),
)


def names(text: str) -> tuple[str, ...]:
    """`"data,fsdp"` as its names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def mesh(c) -> Iterator[str]:
    m = c.mesh
    yield from within("mesh", m, VALUES)
    used = {name for text in m.rules.values() for name in names(text)}
    for axis in [axis for axis in MESH_AXES if getattr(m, axis) > 1 and axis not in used]:
        yield (
            f"mesh.{axis}: {getattr(m, axis)}, and no rule in mesh.rules splits anything by it: its devices would all "
            "do the same; write 1, or name it in a rule"
        )
    for component in ("attn", "ffn"):
        for tower, s in getattr(c, component).items():
            if s.experts and m.expert > 0 and s.experts % m.expert:
                yield (
                    f"{component}.{tower}.experts: {s.experts} do not divide among mesh.expert = {m.expert} "
                    "devices; make one a multiple of the other"
                )
            if component == "attn" and s.experts and m.tensor > 1:
                yield (
                    f"mesh.tensor: {m.tensor}, but attn.{tower} has {s.experts} experts, whose heads are not split; "
                    "write 1"
                )


def slices(c) -> Iterator[str]:
    rows = max(c.data.batch // max(c.optim.accumulate, 1), 1)
    if c.mesh.slices > rows:
        yield f"mesh.slices: {c.mesh.slices}, and a microbatch has {rows} rows; each slice needs one; make it smaller"


def rules(c) -> Iterator[str]:
    rules, path = c.mesh.rules, "mesh.rules"
    for axis in [a for a in rules if a not in LOGICAL_AXES]:
        remedy = meant(axis, LOGICAL_AXES) or "remove it"
        yield f"{path}.{axis}: no such logical axis; allowed: {', '.join(LOGICAL_AXES)}; {remedy}"
    for axis in [a for a in LOGICAL_AXES if a not in rules]:
        yield f"{path}.{axis}: missing; '' does not split it; add it"
    for axis, text in rules.items():
        for name in [n for n in names(text) if n not in MESH_AXES]:
            yield f"{path}.{axis}: {name!r} is no axis of the mesh; allowed: {', '.join(MESH_AXES)}; choose of them"
        if len(set(names(text))) < len(names(text)):
            yield f"{path}.{axis}: {text!r} splits it twice by one axis; name each once"
    for axes in TOGETHER:
        for a, b in itertools.combinations([a for a in axes if a in rules], 2):
            if twice := set(names(rules[a])) & set(names(rules[b])):
                yield (
                    f"{path}.{a}, {b}: {rules[a]!r}, {rules[b]!r}; one array has both axes, and {twice.pop()!r} cannot "
                    "split it twice; take it out of one"
                )
    for axis, allowed in (("length", ("", "context")), ("expert", ("", "expert")), ("head", ("",)), ("layer", ("",))):
        if rules.get(axis, "").strip() not in allowed:
            yield f"{path}.{axis}: {rules[axis]!r}; allowed: {', '.join(map(repr, allowed))}; choose one"
    if rules.get("heads") != rules.get("kv_heads"):
        yield (
            f"{path}.heads, kv_heads: {rules.get('heads')!r}, {rules.get('kv_heads')!r}; a query head meets its own "
            "key head, so they are split alike; write the same"
        )
    if rules.get("expert") and "expert" not in names(rules.get("batch", "")):
        yield (
            f"{path}.batch: {rules.get('batch')!r}; who shares experts has rows of its own; add 'expert', or write "
            "expert=''"
        )
