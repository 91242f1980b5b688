"""Writes the reference pages that follow from the code: `python -m docs.generate`, from the root of a checkout.

A page is committed, and `tests/test_docs.py` holds it equal to what is made here.
"""

import argparse
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch import arguments, cli
from launch.config import NONE, default_of, defaults
from launch.flags import judged
from mot.config import load, schema
from mot.config.keys import Key, comments, keys

PAGES = Path(__file__).parent / "reference"
EXAMPLE = "configs/digits.py:arch=mot,size=smoke"  # whose keys are listed; every configuration has the same
FILES = ("digits", "transfusion", "chameleon", "ladder", "records")  # of configs/, simplest first
# Keys that an experiment names itself: the first is listed, under what it is a name of.
NAMED = {
    "streams": "<stream>",
    "attn": "<tower>",
    "ffn": "<tower>",
    "towers.attn": "<stream>",
    "towers.ffn": "<stream>",
    "towers.norm": "<stream>",
    "data.sources": "<source>",
    "data.shares": "<source>",
}
MEANINGS = {
    "towers.attn.<stream>": "the tower of its attention projections, named by the first stream that shares it; or "
    "towers by ranges of layers, as `0:4 image, 4:24 text`",
    "towers.ffn.<stream>": "the tower of its FFN",
    "towers.norm.<stream>": "the tower of its norms",
    "data.sources.<source>": "where this source lies",
    "data.shares.<source>": "how much of this source the mixture takes, in what `data.per` counts",
    "mesh.rules.batch": "rows of a batch",
    "mesh.rules.length": "tokens of a row",
    "mesh.rules.embed": "the width of parameters",
    "mesh.rules.vocab": "ids of the vocabulary",
    "mesh.rules.heads": "query heads",
    "mesh.rules.kv_heads": "key and value heads",
    "mesh.rules.head": "features of a head",
    "mesh.rules.mlp": "hidden units of an FFN",
    "mesh.rules.expert": "experts of a tower",
    "mesh.rules.layer": "layers",
}
SAME = {"attn.<tower>": "ffn.<tower>"}  # groups that have the keys of another one
TUPLES = {"towers.stop_gradients": "StopGradient", "data.stages": "Stage", "optim.rules": "Rule"}
# Defaults that depend on the machine on which the page is made.
MACHINES = {("mot data prepare", "--workers"): "processes; default: the machine's cores"}
FROM_THE_CODE = "<!-- Written by `python -m docs.generate` from the code. Change the code, not this page. -->"


def main() -> None:
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """The text of every generated page, by its file name."""
    return {"configuration.md": configuration(), "commands.md": commands()}


# --- the keys of a configuration -------------------------------------------------------------------------------------


def configuration() -> str:
    head = f"""{FROM_THE_CODE}

# Configuration

A configuration is a Python file with a function `get_config(arg)`. `--config=FILE:arg` names the file and its
arguments, and the arguments choose the structure: which architecture, which size, which data. `--config.KEY=VALUE`
changes one value. `mot config FILE:arg` prints the result, and `mot config FILE:arg KEY` explains one key.

```sh
mot config {EXAMPLE} optim
mot train --config={EXAMPLE} --config.optim.lr=1e-3
```

A configuration is checked as a whole before anything is written. One message lists all faults. A run keeps its
resolved configuration in [`config.json`](run-directory.md). Words such as stream, tower and span are in the
[glossary](glossary.md).

## The files and their arguments
"""
    return "\n".join([head, *map(_file, FILES), _recipes(), "## The keys\n", _keys_about(), *_groups()])


def _file(name: str) -> str:
    path = f"configs/{name}.py"
    namespace = load.run(load.SHIPPED / f"{name}.py", path)
    title = namespace["__doc__"].partition("\n")[0].rstrip(".")
    lines = [f"### {path}\n", f"{title}.\n", "| argument | default | may be |", "|---|---|---|"]
    for argument, spec in namespace["ARGUMENTS"].items():
        allowed = ", ".join(f"`{value}`" for value in spec.allowed)
        if argument == "arch":
            allowed = "an architecture, below"
        lines.append(f"| `{argument}` | `{spec.default}` | {'; '.join(filter(None, [allowed, cell(spec.about)]))} |")
    if name == FILES[0]:
        lines += ["", "The architectures (`configs/archs.py`):\n", "| arch | what |", "|---|---|"]
        lines += [
            f"| {', '.join(f'`{one}`' for one in names.split(', '))} | {cell(about)} |"
            for names, about in namespace["ARGUMENTS"]["arch"].allowed.items()
        ]
    return "\n".join(lines) + "\n"


def _recipes() -> str:
    """A line for each recipe: what it is, and its arguments."""
    lines = [
        f"### {load.RECIPES}\n",
        "Systems of the literature, a file each; [what they showed](recipes.md).\n",
        "| file | what | arguments, with their defaults |",
        "|---|---|---|",
    ]
    for path in load.shipped_files():
        if path.parent != load.SHIPPED:
            namespace = load.run(path, path.name)
            title = namespace["__doc__"].partition("\n")[0].rstrip(".")
            arguments = ", ".join(f"`{name}={spec.default}`" for name, spec in namespace["ARGUMENTS"].items())
            lines.append(f"| `{load.RECIPES}/{path.name}` | {cell(title)} | {arguments} |")
    return "\n".join(lines) + "\n"


def _keys_about() -> str:
    return (
        "A key is written with its group: `lr` of the group `optim` is `--config.optim.lr`.\n"
        "The default is the one of `configs/base.py`. Where none is given, the configuration's file must say the value."
        "\nA name in angle brackets stands for each stream, tower or source of the configuration.\n"
    )


def _groups() -> Iterator[str]:
    """A section for each group of keys, with a table of the keys that are its own; groups in it follow."""
    listed = list(_listed())
    groups = [key for key in listed if key.group]
    for group in groups:
        own = [key for key in listed if not key.group and key.path.rpartition(".")[0] == group.path]
        level = "####" if "." in group.path else "###"
        yield f"{level} `{group.path}`\n"
        if group.path in SAME:
            yield f"It has the keys of `{SAME[group.path]}`.\n"
            continue
        if group.comment:
            yield f"{sentence(group.comment)}\n"
        if own:
            rows = [row for key in own for row in (_row(key), *_inner(key))]
            yield "\n".join(["| key | what it is for | may be | default |", "|---|---|---|---|", *rows]) + "\n"


def _listed() -> Iterator[Key]:
    """The keys of the example in order, of groups that the experiment names the first."""
    config = judged(load.read(EXAMPLE, {}))
    seen = set()
    for key in keys(config):
        path = key.path
        for group, name in NAMED.items():
            path = re.sub(rf"^{re.escape(group)}\.[^.]+", f"{group}.{name}", path)
        if path not in seen:
            seen.add(path)
            yield key._replace(path=path, comment=key.comment or MEANINGS.get(path, ""))


def _row(key: Key) -> str:
    default = default_of(key.path, DEFAULTS)
    shown = "" if default is NONE else f"`{_plain(default)!r}`"
    return f"| `{_name(key)}` | {cell(key.comment)} | {cell(key.allowed)} | {shown} |"


def _inner(key: Key) -> Iterator[str]:
    """The keys of each group in a tuple of groups."""
    if key.path in TUPLES:
        for field in dataclasses.fields(getattr(schema, TUPLES[key.path])):
            comment = comments()[TUPLES[key.path]][field.name]
            yield f"| `{field.name}` in one of `{_name(key)}` | {cell(comment)} | | |"


def _name(key: Key) -> str:
    """Without its group, which is the title of its table."""
    return key.path.rpartition(".")[2]


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


DEFAULTS = defaults()


# --- the commands ----------------------------------------------------------------------------------------------------

GROUPS = {"checkpoint": arguments.CHECKPOINT, "data": ("prepare", "inspect")}  # commands that have commands


def commands() -> str:
    head = f"""{FROM_THE_CODE}

# Commands

`mot COMMAND --help` shows the same. `mot` is `.venv/bin/mot` in a checkout.

| command | what it does |
|---|---|
"""
    rows = "\n".join(f"| [`mot {name}`](#mot-{name}) | {cell(about)} |" for name, about in cli.COMMANDS.items())
    tail = """
Exit codes: 0 is success. 2 is an error of the user or the machine, told in one message with the remedy. 1 is a bug of
mot, with a traceback, or the answer "it does not fit" of `mot plan`. 130 and 75 are a stop by Ctrl-C and by SIGTERM,
after a checkpoint is saved. 76 is a stop because something hung, or another process of the run is gone. `MOT_DEBUG=1`
in the environment shows tracebacks and what libraries log.
"""
    sections = [_command(name, inner) for name in cli.COMMANDS for inner in GROUPS.get(name, (name,))]
    return "\n".join([head + rows, tail, *sections])


def _command(name: str, parser: str) -> str:
    p = arguments.PARSERS[parser]()
    lines = [f"## {p.prog}" if name == parser else f"{_anchor(name, parser)}## {p.prog}", ""]
    lines += [" ".join((p.description or "").split()), "", "| option | what it is for |", "|---|---|"]
    lines += [_option(p, action) for action in p._actions if not isinstance(action, argparse._HelpAction)]
    lines += [f"\n{sentence(note)}" for note in _overrides(p)]
    example = (p.epilog or "").partition("\n")[2]
    return "\n".join([*lines, "", "```sh", *(line.strip() for line in example.splitlines()), "```", ""])


def _anchor(name: str, parser: str) -> str:
    return f'<a id="mot-{name}"></a>\n\n' if parser == GROUPS[name][0] else ""


def _option(p: argparse.ArgumentParser, action: argparse.Action) -> str:
    flag = action.option_strings[0] if action.option_strings else ""
    value = action.metavar or action.dest.upper()
    takes_value = action.nargs != 0
    shown = " ".join(filter(None, [flag, value if takes_value else ""]))
    if not flag and action.nargs in ("?", "*"):
        shown = f"[{shown}]"
    text = MACHINES.get((p.prog, flag)) or (action.help or "") % {**vars(action), "prog": p.prog}
    choices = f"one of {', '.join(action.choices)}" if action.choices else ""
    needed = "required" if flag and action.required else ""
    return f"| `{shown}` | {cell('; '.join(filter(None, [text, choices, needed])))} |"


def _overrides(p: argparse.ArgumentParser) -> list[str]:
    return [group.description for group in p._action_groups if group.title == "overrides" and group.description]


# --- text ------------------------------------------------------------------------------------------------------------


def cell(text: str) -> str:
    """Text that Markdown shows as it is, in one cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|")
    outside = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<\[\]])", r"\\\1", part) for part in outside)


def sentence(text: str) -> str:
    text = cell(text).rstrip(".")
    return text[:1].upper() + text[1:] + "."


if __name__ == "__main__":
    main()
