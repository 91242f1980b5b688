"""What several configurations differ in, and what of it one program can hold: numbers that it computes with."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mot.config.options import VARIED
from mot.config.schema import Sections

ABSENT = "absent"  # the value of a key that another configuration has
PATTERNS = [re.compile(re.sub(r"<\w+>", r"\\w+", re.escape(key))) for key in VARIED]


def varies(key: str) -> bool:
    """True of a dotted key in which runs of one program may differ."""
    return any(pattern.fullmatch(key) for pattern in PATTERNS)


def flat(config: Sections) -> dict[str, Any]:
    """Every value by its dotted key; one of a tuple of groups as `optim.base_rules[1].decay`."""
    return dict(_leaves(dataclasses.asdict(config), ""))


def _leaves(value: Any, path: str):
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, tuple) and value:
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{i}]")
    else:
        yield path, value


def differing(configs: Sequence[Sections]) -> dict[str, list]:
    """By dotted key in which configurations differ, the value of each; ABSENT where one lacks it."""
    every = [flat(config) for config in configs]
    keys = dict.fromkeys(key for one in every for key in one)
    values = {key: [one.get(key, ABSENT) for one in every] for key in keys}
    return {key: of_all for key, of_all in values.items() if any(x != of_all[0] for x in of_all)}


def put(node: Any, key: str, value: Any) -> Any:
    """A configuration, or a part of one, with another value at a dotted key.

    A `Config` checks itself anew; `Sections` do not, and take values that are traced.
    """
    return _put(node, re.findall(r"\w+", key), value)


def _put(node: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    name, *rest = path
    if isinstance(node, tuple):
        i = int(name)
        return (*node[:i], _put(node[i], rest, value), *node[i + 1 :])
    if isinstance(node, Mapping):
        return {**node, name: _put(node[name], rest, value)}
    return dataclasses.replace(node, **{name: _put(getattr(node, name), rest, value)})
