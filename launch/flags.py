"""What every command reads from its command line: `--config=FILE:arg` and `--config.key=value`."""

import argparse
import glob
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mot import optim
from mot.config import Config
from mot.config.load import arguments, asked, file_of, run
from mot.config.names import key_like, keys_named
from mot.errors import UserError, shortened
from mot.files import is_address
from mot.model import flops


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
            message += self.near(rest.split()[0].partition("=")[0])
        self.exit(
            2, f"{self.prog}: {shortened(message)}; `{self.prog} --help` shows its options\n"
        )  # without all of its usage

    def takes_value(self, argument: str) -> bool:
        """Is this an option whose value is the next argument?"""
        action = self._option_string_actions.get(argument)
        return action is not None and action.nargs is None

    def begun(self, said: str) -> list[str]:
        """The options that begin so, as argparse would complete it."""
        return [flag for flag in self.flags() if flag.startswith(said) and len(said) > 2]

    def near(self, said: str) -> str:
        """`; did you mean '--out'?`, or ""."""
        begun = self.begun(said)
        return f"; did you mean {begun[0]!r}?" if begun else asked(said, self.flags())

    def flags(self) -> list[str]:
        return list(self._option_string_actions)


def command(*arguments: str) -> str:
    """A command line of mot that can be pasted where this process was started."""
    called = Path(sys.argv[0])
    found = shutil.which("mot")
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
        allow_abbrev=False,  # `--run 3` would be --runs
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config(p: argparse.ArgumentParser, default: str | None = None) -> None:
    text = "FILE:arg; default %(default)s" if default else "FILE:arg, as configs/digits.py:arch=mot,size=smoke"
    text += "; FILE is a program that is run: name only such as you trust (a run's config.json is read, and never run)"
    p.add_argument("--config", default=default, required=default is None, help=text)
    p.add_argument_group("overrides", "--config.KEY=VALUE changes a value, as in --config.optim.lr=1e-3")


def parse(p: Parser, argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """Arguments, and the overrides by dotted key. Help tells of the configuration's file, too, if one is named."""
    argv = _with_config(p, sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        _add_arguments(p, argv)
    # argparse takes a word with a space in it for no option, as "--config.towers.ffn.image=0:4 image, 4:8 text".
    changes = [argument for argument in argv if OVERRIDE.match(argument)]
    options, rest = p.parse_known_args([argument for argument in argv if not OVERRIDE.match(argument)])
    if rest:
        p.error(_unknown(p, rest[0], rest[1] if len(rest) > 1 else ""))
    written = (change.removeprefix("--config.").partition("=") for change in changes)
    return options, {key: value for key, _, value in written}


OVERRIDE = re.compile(r"--config\.[^=]+=")
CONFIG = re.compile(r"(?!-)[^=:]+\.py(:.*)?", re.DOTALL)


def _with_config(p: Parser, argv: Sequence[str]) -> Sequence[str]:
    """`FILE.py:arg` without `--config=`, where a configuration is taken and none is named, as that of --config."""
    if "--config" not in p.flags() or any(re.match(r"--config(=|$)", argument) for argument in argv):
        return argv
    for i, (before, argument) in enumerate(zip(["", *argv], argv, strict=False)):
        if CONFIG.fullmatch(argument) and not p.takes_value(before):
            return [*argv[:i], f"--config={argument}", *argv[i + 1 :]]
    return argv


def _unknown(p: Parser, argument: str, following: str) -> str:
    """Why an argument is none, and what may have been meant: an option, or a key of the configuration."""
    said, equals, value = argument.partition("=")
    name = said.removeprefix("--config.").lstrip("-")
    if argument.startswith("--config.") and name:
        shown = following if following and not following.startswith("--") else "VALUE"
        return f"{argument!r} lacks its value; write --config.{name}={shown}, with = and no space"
    begun = p.begun(said)
    near = p.near(said.partition(".")[0])
    last = name.rpartition(".")[2].replace("-", "_")
    if argument.startswith("-") and not begun and (keys_named(last) or not near) and (key := key_like(last)):
        value = value if equals else following if following and not following.startswith("-") else "VALUE"
        return f"{argument!r} is unknown; did you mean '--config.{key}={value}'?"
    return f"{argument!r} is unknown{near}; overrides look like --config.optim.lr=1e-3"


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


def of_this_machine(given: str) -> Path:
    """For argparse: a path that is no address, of which `Path` would make a folder called gs:."""
    if is_address(given):
        raise argparse.ArgumentTypeError(f"{given!r}: is an address; name a file or folder of this machine")
    return Path(given)


def refuse_absent(path: Path, what: str, flag: str = "") -> None:
    """Raises `UserError` where there is no such path; `flag` is what a message begins with."""
    if path.exists():
        return
    raise UserError(f"{flag}{path}: there is no such {what}; name one that exists{meant_path(path)}")


def meant_path(path: Path) -> str:
    """`; did you mean 'runs/a'?`: what lies beside it and looks like it, or has its name in runs/ or data/."""
    found = [
        x for root in ("runs", "data") for depth in ("", "*/") for x in Path(root).glob(f"{depth}{_escaped(path)}")
    ]
    if found:
        return f"; did you mean {str(found[0])!r}?"
    return asked(path.name, sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""


def _escaped(path: Path) -> str:
    return glob.escape(path.name) or "no name"


def judged(config: ConfigDict) -> Config:
    """Checked without a look at its data, and without JAX, so that a typing error is answered at once."""
    return flops.resolve_with_steps(config, optim.uncovered)


def build(config: ConfigDict) -> Config:
    """Checked by every room that has a say; first `judged`."""
    judged(config)
    from mot.data import sources  # which imports JAX: it takes seconds

    return flops.resolve_with_steps(config, sources.faults, optim.uncovered)
