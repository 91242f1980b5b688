"""The families of published models that this model can say: a module for each kind, a name for each `model_type`.

To add a family:
1. See that the model code says it: copy a tiny model's weights by hand, as tests/parity/test_huggingface.py does. What
   it lacks is a change of mot/model, and not of these tables.
2. Where it is a decoder of text like those of `text.py`, add a line to the table there. Else write a module with the
   functions below, and name it in FAMILIES.
3. A field of `config.json` that changes the model and cannot be said is refused by its name.
4. A tensor that lies otherwise than ours needs a transform (mot/interop/transforms.py) with its inverse.
5. Add its class to tests/parity/test_interop.py, which compares logits and gradients, and tensors there and back.

A module has, each with the family's name first:
* `said(name, about, where)`: what a `config.json` says in our words (`Said`); raises `UserError` for what cannot be.
* `rows(name, config)`: its tensors (`Row`) of a configuration.
* `faults(name, config)`: why a configuration is not of the family, in words; nothing where it is.
* `about(name, config)`: the `config.json` of a configuration, but for what all have: ids, rows of the embedding, dtype.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mot.config import Config
from mot.errors import UserError
from mot.interop.families import text
from mot.interop.families.rows import Piece as Piece
from mot.interop.families.rows import Row as Row
from mot.interop.families.rows import Said as Said
from mot.interop.families.rows import pieces as pieces
from mot.interop.families.rows import shape_of as shape_of
from mot.model import params

FAMILIES: dict[str, ModuleType] = dict.fromkeys(text.FAMILIES, text)
ADD = "the docstring of mot/interop/families has the steps to add one"


def of_theirs(about: Mapping[str, Any], where: str) -> tuple[str, Said]:
    """The name of the family of a `config.json`, and what it says in our words.

    Raises `UserError` for a family that is not in the table, and for what cannot be said of it.
    """
    name = about.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"{where}: model_type {name!r} is no family that is known; known are {', '.join(FAMILIES)}; {ADD}"
        )
    return name, FAMILIES[name].said(name, about, where)


def of_ours(config: Config, where: str) -> str:
    """The name of the family that a configuration is; raises `UserError`, with the reasons, where it is none."""
    reasons: dict[str, list[str]] = {}
    for name, module in FAMILIES.items():
        reasons[name] = [*module.faults(name, config)]
        if not reasons[name] and (extra := params.table(config).keys() ^ {row.ours for row in rows_of(name, config)}):
            reasons[name] = [f"a {name} has nothing like {', '.join(sorted(extra)[:3])}"]
        if not reasons[name]:
            return name
    nearest = min(reasons, key=lambda name: len(reasons[name]))
    listed = "\n  ".join(reasons[nearest])
    raise UserError(
        f"{where}: no family of published models that is known says this model; why it is no {nearest}:\n  {listed}\n"
        f"known are {', '.join(FAMILIES)}; export a run of these, or {ADD}"
    )


def rows_of(name: str, config: Config) -> tuple[Row, ...]:
    """The tensors of a family that a configuration has."""
    return FAMILIES[name].rows(name, config)


def about_theirs(name: str, config: Config, ids: int, special: Mapping[str, int], dtype: str) -> dict[str, Any]:
    """The `config.json` of a configuration that is of a family; `ids` are the rows of its embedding."""
    about = {"model_type": name, "vocab_size": ids, "max_position_embeddings": config.length}
    about |= {f"{mark}_token_id": special.get(f"<{mark}>") for mark in ("bos", "eos", "pad")}
    about |= {"dtype": dtype, "torch_dtype": dtype}
    return about | FAMILIES[name].about(name, config)
