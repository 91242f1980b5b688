"""Templates of launch/targets/*.j2, of which every `{{ value }}` is quoted for the language that the file is in.

So no value that a user typed can end a string, start a command or add a key, and no template has to remember it.
"""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from mot.errors import UserError

HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """The text of `template`, as `slurm.sh` of slurm.sh.j2; raises `UserError` for values that are not UTF-8."""
    quote = QUOTES[template.rpartition(".")[2]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        finalize=quote,
        autoescape=False,  # which is HTML's; `finalize` quotes
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(f"{template}.j2").render(**values)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            "the command line holds bytes that are not UTF-8; a file for another machine must be UTF-8; "
            "rename what they name"
        ) from None
    return text


def of_shell(value: Any) -> str:
    """One word of a shell, or a list as so many words."""
    return shlex.join(map(str, value)) if isinstance(value, list | tuple) else shlex.quote(str(value))


def of_yaml(value: Any) -> str:
    """JSON on one line, which YAML reads; in strings what YAML's printers and readers disagree on is escaped."""
    return re.sub(r"[^\x00-\x7e]", _escaped, json.dumps(value, ensure_ascii=False))


def _escaped(found: re.Match) -> str:
    number = ord(found[0])
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


QUOTES: dict[str, Callable[[Any], str]] = {"sh": of_shell, "yaml": of_yaml}
