"""What every command reads from its command line: `--config=FILE:arg` and `--config.key=value`."""

import argparse
import ast
import runpy
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mot import config as configs
from mot import optim
from mot.config import Config
from mot.data import sources
from mot.errors import UserError


def parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
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


def parse(p: argparse.ArgumentParser, argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """Arguments, and the overrides by dotted key."""
    options, rest = p.parse_known_args(argv)
    overrides = {}
    for argument in rest:
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals or not key:
            p.error(f"{argument!r} is unknown; overrides look like --config.optim.lr=1e-3")
        overrides[key] = value
    return options, overrides


def progress(console: Console) -> Progress:
    """A bar of what takes minutes a piece: how many are done, the time so far and left, what is at work."""
    times = TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(BarColumn(), MofNCompleteColumn(), *times, TextColumn("{task.description}"), console=console)


def read(file_and_arg: str, overrides: dict[str, str]) -> ConfigDict:
    """The configuration of `FILE:arg` with overrides; keys and types are judged later, with everything else.

    FILE is a program, and is run here. Nothing else that a user names is, but for `--seqio-module`.
    """
    name, _, arg = file_and_arg.partition(":")
    file = Path(name)
    if not file.is_file():
        raise UserError(f"--config={file_and_arg}: there is no file {file}; configs/ holds those that ship with mot")
    try:
        found = runpy.run_path(str(file)).get("get_config")
    except (Exception, SystemExit) as error:
        raise UserError(f"--config={file_and_arg}: {file} is no configuration file: {error!r}; mend it") from error
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


def _drop(group, name):
    """A ConfigDict refuses a value of another type; `build` says what is wrong with it."""
    if name in group:
        del group[name]


def build(config: ConfigDict) -> Config:
    """Checked by every room that has a say."""
    return configs.build(config, sources.faults, optim.uncovered)


def _literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
