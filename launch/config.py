"""Shows a configuration as it is resolved: every key with its value, what it is for, what it may be, its default."""

import dataclasses
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from launch import arguments, flags
from launch.process import guarded
from mot.config import Config, load
from mot.config.allowed import meant
from mot.config.keys import Key, keys
from mot.config.renames import renamed
from mot.errors import UserError

WIDE = 34  # columns of `key = value`
NONE = object()


def main(argv: list[str] | None = None) -> int:
    options, overrides = flags.parse(arguments.config(), argv)
    config = resolved(flags.judged(load.read(options.file, overrides)))
    found = list(keys(config))
    usual = defaults()
    if not options.key:
        print("\n".join(line for key in found for line in shown(key, default_of(key.path, usual))))
        return 0
    chosen = [key for key in found if key.path == options.key or key.path.startswith(f"{options.key}.")]
    if not chosen:
        raise UserError(unknown(options.key, [key.path for key in found]))
    if len(chosen) == 1 and not chosen[0].group:
        print("\n".join(alone(chosen[0], default_of(options.key, usual))))
    else:
        print("\n".join(line for key in chosen for line in shown(key, default_of(key.path, usual))))
    return 0


def resolved(config: Config) -> Config:
    """With what follows from the configuration alone. Budgets of 0 follow from the data's mixture, and stay."""
    streams = {
        name: dataclasses.replace(stream, max_tokens=stream.max_tokens or stream.budget)
        for name, stream in config.streams.items()
    }
    return dataclasses.replace(config, streams=streams)


def defaults() -> dict[str, Any]:
    """configs/base.py's value of every key that has one, those of a stream or a tower under `*`."""
    base = load.run(load.SHIPPED / "base.py", "configs/base.py")
    tree = base["get_config"]().to_dict()
    streams = base["stream"](*(NONE for _ in ("modality", "width", "ffn")))
    tree |= {"streams": {"*": streams}, "attn": {"*": base["moe"]()}, "ffn": {"*": base["moe"]()}}
    return tree


def default_of(path: str, usual: dict[str, Any]) -> Any:
    """A key's default; NONE where an experiment has to say it."""
    found: Any = usual
    for part in path.split("."):
        if not isinstance(found, dict):
            return NONE
        found = found.get(part, found.get("*", NONE))
    return found


def shown(key: Key, default: Any) -> list[str]:
    """A line `key = value  # comment [allowed] (default)`, in a terminal wrapped."""
    if key.group:
        return ["", f"# {key.path}: {key.comment}"] if key.comment else [f"# {key.path}"]
    said = " ".join(filter(None, [key.comment, key.allowed and f"[{key.allowed}]", _default(key.value, default)]))
    left = f"{key.path} = {key.value!r}"
    line = f"{left:{WIDE}}  # {said}" if said else left
    if not sys.stdout.isatty() or len(left) > WIDE:
        return [line]
    return textwrap.wrap(line, shutil.get_terminal_size().columns, subsequent_indent=" " * (WIDE + 2) + "# ")


def alone(key: Key, default: Any) -> list[str]:
    said = [f"{key.path} = {key.value!r}"]
    said += [f"  {key.comment}"] if key.comment else []
    said += [f"  allowed: {key.allowed}"] if key.allowed else []
    said += [f"  default: {default!r}" if default is not NONE else "  default: none; the configuration's file says it"]
    return [*said, f"  change it: --config.{key.path}=VALUE"]


def _default(value: Any, default: Any) -> str:
    if default is NONE:
        return ""
    return "(default)" if value == default else f"(default {default!r})"


def unknown(asked: str, paths: Sequence[str]) -> str:
    """Why there is no such key: with what it is called now, or those that end as it does, or look like it."""
    if now := renamed(asked).rpartition(".")[2]:
        return f"{asked}: there is no such key; it is called {now} now"
    last = asked.rpartition(".")[2]
    ending = [path for path in paths if path.rpartition(".")[2] == last]
    near = f"did you mean {' or '.join(map(repr, ending[:5]))}?" if ending else meant(asked, paths)
    groups = ", ".join(dict.fromkeys(path.partition(".")[0] for path in paths))
    return f"{asked}: there is no such key; the groups are {groups}; {near or '`mot config FILE:arg` shows all keys'}"


if __name__ == "__main__":
    sys.exit(guarded(main))
