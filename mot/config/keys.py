"""The configuration's keys: what each is for, as `schema.py`'s comments say, and what it may be, by `checks.VALUES`."""

import ast
import dataclasses
import inspect
import io
import tokenize
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from mot.config import checks, schema
from mot.config.allowed import Allowed, Range
from mot.config.schema import Sections

TYPES = {int: "a whole number", float: "a number", bool: "True, False", str: ""}


class Key(NamedTuple):
    path: str  # dotted; a group of keys, or a value
    value: Any
    comment: str
    allowed: str  # in words; "" where the comment says it
    group: bool


@cache
def comments() -> dict[str, dict[str, str]]:
    """The comment of each field of each dataclass of `schema.py`: on its lines, and going on in those below it."""
    source = inspect.getsource(schema)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {t.start[0]: (t.string.lstrip("# "), t.line) for t in tokens if t.type == tokenize.COMMENT}
    result: dict[str, dict[str, str]] = {}
    for kind in [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]:
        result[kind.name] = {}
        for field in [node for node in kind.body if isinstance(node, ast.AnnAssign)]:
            lines = list(range(field.lineno, field.end_lineno + 1))
            n = field.end_lineno + 1
            while n in said and said[n][1].lstrip().startswith("#"):
                lines.append(n)
                n += 1
            result[kind.name][field.target.id] = " ".join(said[line][0] for line in lines if line in said)
    return result


def keys(value: Any, kind: Any = Sections, path: str = "", comment: str = "") -> Iterator[Key]:
    """Every key of a configuration, in order, each group before what is in it."""
    if dataclasses.is_dataclass(kind):
        if path:
            yield Key(path, value, comment or _about(kind), "", True)
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            own = comments()[kind.__name__][field.name] or _about(hints[field.name])
            limits = checks.VALUES.get(kind.__name__, {}).get(field.name)
            inner = f"{path}.{field.name}" if path else field.name
            yield from _field(getattr(value, field.name), hints[field.name], inner, own, limits)
    else:
        yield from _field(value, kind, path, comment, None)


def _about(kind: Any) -> str:
    """What a group of keys is, or one of a tuple of groups: the first line of its docstring."""
    kind = next(iter(typing.get_args(kind)), kind)
    return (kind.__doc__ or "").partition("\n")[0].rstrip(".") if dataclasses.is_dataclass(kind) else ""


def _field(value: Any, kind: Any, path: str, comment: str, limits: Allowed | None) -> Iterator[Key]:
    if dataclasses.is_dataclass(kind):
        yield from keys(value, kind, path, comment)
    elif isinstance(value, Mapping):
        yield Key(path, value, comment, "", True)
        for name, inner in value.items():
            yield from keys(inner, typing.get_args(kind)[1], f"{path}.{name}")
    else:
        if isinstance(value, tuple):
            value = tuple(dataclasses.asdict(one) if dataclasses.is_dataclass(one) else one for one in value)
        yield Key(path, value, comment, _allowed(kind, limits), False)


def _allowed(kind: Any, limits: Allowed | None) -> str:
    if isinstance(limits, Range):
        return f"{TYPES[kind]} {limits}" if limits.least or limits.above else f"{TYPES[kind]}, {limits}"
    if isinstance(limits, Mapping):
        return "; ".join(f"{name}: {about}" for name, about in limits.items())
    if limits:
        return ", ".join(limits)
    if typing.get_origin(kind) is tuple:
        of_items = typing.get_args(kind)[0]
        if not dataclasses.is_dataclass(of_items):
            return f"a tuple, of each {TYPES[of_items]}"
        names = ", ".join(f"{f.name!r}: ..." for f in dataclasses.fields(of_items))
        return f"a tuple of groups, as ({{{names}}},)"
    return TYPES.get(kind, "")
