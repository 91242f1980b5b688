"""A tree of values to a `Config`: every fault is reported at once, by dotted key, value, what is allowed and remedy."""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from ml_collections import ConfigDict

from mot.config import checks, names
from mot.config.renames import renamed
from mot.config.schema import Config, ConfigError, Experts, Run, Sections, Stream
from mot.errors import Fault

LARGEST_FLOAT = 3e38  # what is greater is infinite in float32
LARGEST = 2**31  # no count, size or seed needs more; a random key takes 32 bits of a seed


class Check(Protocol):
    """Yields faults of a configuration, of which it reads the sections `reads`; its values may be out of range."""

    reads: set[str]

    def __call__(self, config: Sections) -> Iterator[str]: ...


def reads(*sections: str) -> Callable[[Callable], Check]:
    """Marks a function as a `Check` of these sections."""

    def mark(check: Callable) -> Check:
        check.reads = set(sections)
        return check

    return mark


def resolve(tree: ConfigDict | Mapping, *more: Check) -> Config:
    """A ConfigDict, or a nested mapping, to a `Config`.

    `more` are checks that need rooms above this one (`optim.uncovered`); each is run if the sections it reads could be
    read. Raises `ConfigError` with all faults.
    """
    tree = tree.to_dict() if isinstance(tree, ConfigDict) else tree
    faults: list[Fault] = []
    values = _fields(tree, Config, "", faults)
    broken = {fault.section for fault in faults}
    if values["run"]:
        values["run"] = _how_often(values["run"])
    if "streams" not in broken:
        values |= _in_order(values, broken)
    sections = Sections(**values)
    faults += checks.faults(sections, broken)
    # What cannot be counted on where towers, experts or a number of layers have a fault: the table of parameters.
    unreadable = broken | ({"towers", "attn", "ffn"} & {fault.section for fault in faults})
    unreadable |= {fault.section for fault in faults if fault.key.endswith(".layers")}
    beyond = [fault for check in more if not check.reads & unreadable for fault in check(sections)]
    if faults or beyond:
        raise ConfigError([*faults, *beyond])
    return Config(**values)


def _in_order(values: Mapping, broken: set[str]) -> dict:
    """Streams in the order of their ids, towers in that of streams. ConfigDict sorts by name, which has no meaning."""

    def by_id(item: tuple[str, Stream]) -> tuple:
        name, stream = item
        return stream.latent > 0, stream.first_id, name

    streams = dict(sorted(values["streams"].items(), key=by_id))
    order = {name: i for i, name in enumerate(streams)}

    def by_stream(item: tuple[str, Experts]) -> int:
        return order.get(item[0], len(order))

    components = {"attn", "ffn"} - broken
    return {"streams": streams} | {name: dict(sorted(values[name].items(), key=by_stream)) for name in components}


def _how_often(run: Run) -> Run:
    """With `eval_every` and `save_every` of 0 as they follow from the number of steps."""
    evaluated = max(run.steps // 10, 1) if run.eval_every == 0 else run.eval_every
    saved = max(run.steps // 4, 2) if run.save_every == 0 else run.save_every
    return dataclasses.replace(run, eval_every=evaluated, save_every=saved)


def differences(old: Mapping, new: Mapping, path: str = "") -> list[str]:
    """`dotted.key: old -> new` wherever two configurations (as nested mappings) differ.

    Of as many groups in a list, as rules are, each is compared with its like: `optim.rules[0].decay: 0.1 -> 0.2`.
    """
    if _are_groups(old) and _are_groups(new) and len(old) == len(new):
        each = [(f"{path}[{i}]", pair) for i, pair in enumerate(zip(old, new, strict=True))]
        return [d for inner, pair in each for d in differences(*pair, inner)]
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [d for k in keys for d in differences(old.get(k, "absent"), new.get(k, "absent"), _join(path, k))]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


def _are_groups(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _fields(value: Mapping, kind: type, path: str, faults: list[Fault]) -> dict:
    """Every field of a dataclass, converted; None where there is a fault."""
    hints = typing.get_type_hints(kind)
    for key in [key for key in value if key not in hints]:
        dotted = _join(path, key)
        now = renamed(dotted).rpartition(".")[2]
        remedy = f"it is called {now} now" if now else names.remedy(str(key), hints) or "remove it"
        text = f"unknown key, value {_shown(value[key])}; allowed: {', '.join(hints)}; {remedy}"
        faults.append(Fault(dotted, text))
    for key in [key for key in hints if key not in value]:
        faults.append(Fault(_join(path, key), "missing; configs/base.py shows every key; add it"))
    return {
        key: _convert(value[key], hint, _join(path, key), faults) if key in value else None
        for key, hint in hints.items()
    }


def _convert(value: Any, kind: Any, path: str, faults: list[Fault]) -> Any:
    """`value` as type `kind`: a dataclass, a dict or a tuple of dataclasses, or a plain type. None with a fault."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            return _wrong(value, "a group of keys", path, faults)
        before = len(faults)
        fields = _fields(value, kind, path, faults)
        return kind(**fields) if len(faults) == before else None
    if origin is dict:
        if not isinstance(value, Mapping) or not value:
            return _wrong(value, "a group of keys with at least one entry", path, faults)
        of_values = typing.get_args(kind)[1]
        return {str(key): _convert(one, of_values, f"{path}.{key}", faults) for key, one in value.items()}
    if origin is tuple:
        of_items = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)) and not dataclasses.is_dataclass(of_items):
            return _wrong(value, f"a tuple of {of_items.__name__}", path, faults)
        if not isinstance(value, (list, tuple)):
            keys = ", ".join(f"'{field.name}': ..." for field in dataclasses.fields(of_items))
            return _wrong(value, f"a tuple of groups, as ({{{keys}}},)", path, faults)
        return tuple(_convert(one, of_items, f"{path}[{i}]", faults) for i, one in enumerate(value))
    return _plain(value, kind, path, faults)


def _plain(value: Any, kind: type, path: str, faults: list[Fault]) -> Any:
    """A number, a truth value or a text, which is of its type; 3 may stand for 3.0, and 1e3 for 1000."""
    finite = f"a finite number, at most {LARGEST_FLOAT:g} in size"
    if type(value) is int and abs(value) >= LARGEST:
        return _wrong(value, f"less than {LARGEST} in size", path, faults)
    if kind is float and type(value) is int:
        value = float(value)
    if kind is int and type(value) is float and value.is_integer() and abs(value) < LARGEST:
        value = int(value)
    if kind is float and type(value) is str and value.strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return _wrong(value, finite, path, faults)
    if type(value) is not kind:
        return _wrong(value, f"of type {kind.__name__}", path, faults)
    if kind is float and not abs(value) <= LARGEST_FLOAT:
        return _wrong(value, finite, path, faults)
    return value


def _wrong(value: Any, allowed: str, path: str, faults: list[Fault]) -> None:
    faults.append(Fault(path, f"{_shown(value)} is {type(value).__name__}; must be {allowed}; give it such a value"))


def _shown(value: Any) -> str:
    """As a message shows it, which nobody wants to be as long as what was given."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
