"""What every command reads from its command line: `--config=FILE:arg` and `--config.key=value`."""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mot import optim
from mot.config import Config, resolve
from mot.config.load import arguments, asked, file_of, run
from mot.errors import UserError


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


def refuse_absent(path: Path, what: str, flag: str = "") -> None:
    """Raises `UserError` where there is no such path; `flag` is what a message begins with."""
    if path.exists() or "://" in str(path):
        return
    near = asked(path.name, sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
    raise UserError(f"{flag}{path}: there is no such {what}; name one that exists{near}")


def judged(config: ConfigDict) -> Config:
    """Checked without a look at its data, and without JAX, so that a typing error is answered at once."""
    return resolve(config, optim.uncovered)


def build(config: ConfigDict) -> Config:
    """Checked by every room that has a say; first `judged`."""
    judged(config)
    from mot.data import sources  # which imports JAX: it takes seconds

    return resolve(config, sources.faults, optim.uncovered)
