"""Configuration files: `FILE:arg` is a program that is run, and gives a tree of values; `key=value` changes one."""

import ast
import re
import runpy
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mot.config.allowed import meant
from mot.errors import UserError

# Those that come with mot: beside the package in a checkout, inside it where it is installed.
SHIPPED = next(
    folder for parent in Path(__file__).parents[1:3] if (folder := parent / "configs" / "base.py").is_file()
).parent
RECIPES = "configs/recipes"

# A value of one of a tuple of groups.
ITEM = re.compile(r"(?P<section>\w+)\.(?P<name>\w+)\[(?P<i>\d{1,3})\]\.(?P<key>\w+)", re.ASCII)


def read(file_and_arg: str, overrides: dict[str, str]) -> ConfigDict:
    """The configuration of `FILE:arg` with overrides; keys and types are judged later, with everything else.

    FILE is a program, and is run here. Nothing else that a user names is, but for `--seqio-module`.
    """
    arg = file_and_arg.partition(":")[2]
    file = file_of(file_and_arg)
    get_config = run(file, file_and_arg).get("get_config")
    if not callable(get_config):
        raise UserError(f"--config={file_and_arg}: {file} defines no get_config(arg); see configs/digits.py")
    try:
        config = get_config(arg) if arg else get_config()
    except ValueError as error:  # the file's own message, as for an unknown size
        raise UserError(f"--config={file_and_arg}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"--config={file_and_arg}: get_config failed: {error!r}; mend {file}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={file_and_arg}: get_config returned {type(config).__name__}; it must be a ConfigDict"
        )
    config = config.unlock()
    for key, text in overrides.items():
        if item := ITEM.fullmatch(key):
            _change_item(config, item, text)
            continue
        *groups, name = key.split(".")
        group = config
        for inner in groups:
            if inner not in group or not isinstance(group[inner], ConfigDict):
                _drop(group, inner)
                group[inner] = ConfigDict()  # no such group: `build` reports it, with all other faults
            group = group[inner]
        is_text = name in group and isinstance(group[name], str)
        _drop(group, name)
        group[name] = text if is_text else _literal(text)
    return config


def _change_item(config: ConfigDict, item: re.Match, text: str) -> None:
    """Changes a value of one of a tuple of groups; one that is absent raises `UserError`."""
    section, name, i = item["section"], item["name"], int(item["i"])
    group = config.get(section)
    items = group.get(name) if isinstance(group, ConfigDict) else None
    if not isinstance(items, (list, tuple)) or i >= len(items):
        there = f"{len(items)} of them, from 0" if isinstance(items, (list, tuple)) else "no tuple of groups there"
        raise UserError(f"{item[0]}: there is no {section}.{name}[{i}]: {there}; `mot config FILE:arg` shows each key")
    changed = {**items[i], item["key"]: _literal(text)}
    group[name] = (*items[:i], changed, *items[i + 1 :])


def file_of(file_and_arg: str) -> Path:
    """The file that `FILE:arg` names: the user's own, or else, as `configs/NAME.py`, the one that ships with mot."""
    file = Path(file_and_arg.partition(":")[0])
    shipped = SHIPPED.joinpath(*file.parts[1:])
    if file.is_file():
        if file.suffix != ".py":
            raise UserError(f"--config={file_and_arg}: {_no_program(file)}")
        return file
    if file.parts[:1] == ("configs",) and ".." not in file.parts and shipped.is_file():
        return shipped
    known = [f"configs/{path.relative_to(SHIPPED)}" for path in shipped_files()]
    near = asked(str(file), [*known, *(str(path) for path in file.parent.glob("*.py"))])
    told = ", ".join(path for path in known if not path.startswith(RECIPES))
    raise UserError(
        f"--config={file_and_arg}: there is no file {file}{near}; with mot come {told}, and those of {RECIPES}"
    )


def shipped_files() -> list[Path]:
    """The configurations that come with mot, recipes last."""
    files = [*sorted(SHIPPED.glob("*.py")), *sorted((SHIPPED / "recipes").glob("*.py"))]
    return [path for path in files if "\ndef get_config(arg" in path.read_text(encoding="utf-8")]


def _no_program(file: Path) -> str:
    """Why a file that is there is not run, and what to do."""
    if file.name == "config.json":
        return (
            f"{file} is what a run wrote, and is never run; `mot evaluate {file.parent}` reads the run; to train, name "
            "the .py file that its configuration came from"
        )
    return f"{file} is not run, as its name does not end in .py; name a configuration's .py file, as configs/digits.py"


def run(file: Path, said: str, flag: str = "--config", what: str = "configuration file") -> dict[str, Any]:
    """What a user's file defines; it is a program, and is run."""
    try:
        return runpy.run_path(str(file))
    except (Exception, SystemExit) as error:
        raise UserError(f"{flag}={said}: {file} is no {what}: {error!r}; mend it") from error


def arguments(namespace: Mapping[str, Any]) -> str:
    """What a configuration's file says of its arguments: ARGUMENTS, or else its docstring."""
    stated = namespace.get("ARGUMENTS")
    if not isinstance(stated, Mapping):
        return (namespace.get("__doc__") or "it does not state them").strip()
    lines = []
    for name, argument in stated.items():
        described = {}
        if isinstance(argument.allowed, Mapping):
            described = {value: what for value, what in argument.allowed.items() if isinstance(what, str)}
        about = "; ".join(filter(None, [argument.about, "" if described else ", ".join(argument.allowed)]))
        lines += textwrap.wrap(f"{name}={argument.default}: {about}", 110, subsequent_indent="    ")
        lines += [f"    {value:14} {what}" for value, what in described.items()]
    return "\n".join(lines)


def asked(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean '--out'?`, or "" where nothing that is allowed looks like it."""
    question = meant(given.partition("=")[0], allowed)
    return f"; {question}" if question else ""


def _drop(group: ConfigDict, name: str) -> None:
    """A ConfigDict refuses a value of another type; `build` says what is wrong with it."""
    if name in group:
        del group[name]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
