"""What every command reads from its command line: `--config=FILE:arg` and `--config.key=value`."""

import argparse
import ast
import runpy
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mot import config as configs
from mot import optim
from mot.config import Config
from mot.errors import UserError
from mot.limits import meant

SHIPPED = Path(__file__).parent.parent / "configs"


class Parser(argparse.ArgumentParser):
    """One that says what may have been meant."""

    def _check_value(self, action, value):
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += asked(value, action.choices)
            raise

    def error(self, message):
        what, _, rest = message.partition("unrecognized arguments: ")
        if not what:
            message += asked(rest.split()[0], self.flags())
        super().error(message)

    def flags(self) -> list[str]:
        return list(self._option_string_actions)


def asked(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean '--out'?`, or "" where nothing that is allowed looks like it."""
    found = meant(given.partition("=")[0], allowed)
    return f"; {found}" if found else ""


def command(*arguments: str) -> str:
    """A command line of mot that can be pasted where this process was started."""
    called, found = Path(sys.argv[0]), shutil.which("mot")
    if called.parts[-2:] == ("mot", "__main__.py"):
        program = [sys.executable, "-m", "mot"]
    else:  # as it was called, unless its short name is enough
        short = called.name != "mot" or (found and Path(found).resolve() == called.resolve())
        program = ["mot" if short else str(called)]
    return shlex.join([*program, *arguments])


def parser(name: str, description: str, example: str) -> Parser:
    return Parser(
        prog=f"mot {name}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config(p: argparse.ArgumentParser, default: str | None = None) -> None:
    text = "FILE:arg; default %(default)s" if default else "FILE:arg, as configs/digits.py:arch=mot,size=smoke"
    text += "; FILE is a program that is run: name only such as you trust (a run's config.json is read, and never run)"
    p.add_argument("--config", default=default, required=default is None, help=text)
    p.add_argument_group("overrides", "--config.KEY=VALUE changes a value, as in --config.optim.lr=1e-3")


def parse(p: Parser, argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """Arguments, and the overrides by dotted key. Help tells of the configuration's file, too, if one is named."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        _add_arguments(p, argv)
    options, rest = p.parse_known_args(argv)
    overrides = {}
    for argument in rest:
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals or not key:
            near = asked(argument.partition(".")[0], p.flags())
            p.error(f"{argument!r} is unknown{near}; overrides look like --config.optim.lr=1e-3")
        overrides[key] = value
    return options, overrides


def _add_arguments(p: Parser, argv: Sequence[str]) -> None:
    """The arguments of the file that `--config` names, as it states them, into the help."""
    which = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    if "--config" in p.flags():
        which.add_argument("--config", default=p.get_default("config"))
    else:  # `mot config FILE:arg`
        which.add_argument("config", nargs="?")
    if named := which.parse_known_args(argv)[0].config:
        told = arguments(run(file_of(named), named))
        p.add_argument_group(f"arguments of {named.partition(':')[0]}, as NAME=DEFAULT: what it may be", told)


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
        lines += [f"    {value:15}{what}" for value, what in described.items()]
    return "\n".join(lines)


def read(file_and_arg: str, overrides: dict[str, str]) -> ConfigDict:
    """The configuration of `FILE:arg` with overrides; keys and types are judged later, with everything else.

    FILE is a program, and is run here. Nothing else that a user names is, but for `--seqio-module`.
    """
    arg = file_and_arg.partition(":")[2]
    file = file_of(file_and_arg)
    found = run(file, file_and_arg).get("get_config")
    if not callable(found):
        raise UserError(f"--config={file_and_arg}: {file} defines no get_config(arg); see configs/digits.py")
    try:
        config = found(arg) if arg else found()
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
        *groups, name = key.split(".")
        group = config
        for part in groups:
            if part not in group or not isinstance(group[part], ConfigDict):
                _drop(group, part)
                group[part] = ConfigDict()  # no such group: `build` reports it, with all other faults
            group = group[part]
        is_text = name in group and isinstance(group[name], str)
        _drop(group, name)
        group[name] = text if is_text else _literal(text)
    return config


def file_of(file_and_arg: str) -> Path:
    """The file that `FILE:arg` names: the user's own, or else, as `configs/NAME.py`, the one that ships with mot."""
    file = Path(file_and_arg.partition(":")[0])
    shipped = SHIPPED / file.name
    if file.is_file():
        return file
    if file.parts == ("configs", file.name) and shipped.is_file():
        return shipped
    files = [
        path for path in sorted(SHIPPED.glob("*.py")) if "\ndef get_config(arg" in path.read_text(encoding="utf-8")
    ]
    known = [f"configs/{path.name}" for path in files]
    near = asked(str(file), [*known, *(str(path) for path in file.parent.glob("*.py"))])
    raise UserError(f"--config={file_and_arg}: there is no file {file}{near}; with mot come {', '.join(known)}")


def refuse_absent(path: Path, what: str) -> None:
    """Raises `UserError` where there is no such path."""
    if path.exists() or "://" in str(path):
        return
    near = asked(path.name, sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
    raise UserError(f"{path}: there is no such {what}; name one that exists{near}")


def run(file: Path, file_and_arg: str) -> dict[str, Any]:
    """What a configuration's file defines; it is a program, and is run."""
    try:
        return runpy.run_path(str(file))
    except (Exception, SystemExit) as error:
        raise UserError(f"--config={file_and_arg}: {file} is no configuration file: {error!r}; mend it") from error


def _drop(group, name):
    """A ConfigDict refuses a value of another type; `build` says what is wrong with it."""
    if name in group:
        del group[name]


def judged(config: ConfigDict) -> Config:
    """Checked without a look at its data, and without JAX, so that a typing error is answered at once."""
    return configs.build(config, optim.uncovered)


def build(config: ConfigDict) -> Config:
    """Checked by every room that has a say; first `judged`."""
    judged(config)
    from mot.data import sources  # which imports JAX: it takes seconds

    return configs.build(config, sources.faults, optim.uncovered)


def _literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
