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

A module that needs it has also
* `OUTSIDE`: how names of tensors begin that no parameter of ours is, and that a run keeps aside;
* `alone(config)`: what config.json says where none of those was kept; without it an export would not be whole;
* `NESTED`: the keys of config.json within which the embedding is described;
* `COPIES`: what stands in the paths of parameters of ours that must equal others, and in the paths of those;
* `OF_IDS`: tensors outside of our model that must have as many rows as the embedding has;
* `ALIASES`: patterns of names of tensors that are written otherwise, and what we call what they match;
* `STEM`: what its files are called by, where that is not as transformers has it.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mot.config import Config
from mot.errors import UserError
from mot.interop.families import bagel, chameleon, cosmos3, ernie, pi0, text
from mot.interop.families.fields import merged as merged
from mot.interop.families.rows import Piece as Piece
from mot.interop.families.rows import Row as Row
from mot.interop.families.rows import Said as Said
from mot.interop.families.rows import joined as joined
from mot.interop.families.rows import order_of_ids as order_of_ids
from mot.interop.families.rows import parts as parts
from mot.interop.families.rows import pieces as pieces
from mot.interop.families.rows import shape_of as shape_of
from mot.model import params
from mot.tokenizers.safetensors import STEMS

FAMILIES: dict[str, ModuleType] = dict.fromkeys(text.FAMILIES, text) | {"chameleon": chameleon, "pi0": pi0}
FAMILIES |= {"ernie4_5_vl_moe": ernie, "bagel": bagel, "Cosmos3OmniTransformer": cosmos3}
# What lacks more than a line of a table, and why.
REFUSED = {
    "deepseek_v2": "its attention compresses keys and values into latents (MLA), which the model has not",
    "deepseek_v3": "its attention compresses keys and values into latents (MLA), which the model has not; its router "
    "is there: score='sigmoid', groups, active_groups, weight_scale, and balance='bias' with balance_loss",
}
ADD = "the docstring of mot/interop/families has the steps to add one"


def of_theirs(about: Mapping[str, Any], where: str) -> tuple[str, Said]:
    """The name of the family of a `config.json`, and what it says in our words.

    Raises `UserError` for a family that is not in the table, and for what cannot be said of it.
    """
    name = about.get("model_type", about.get("_class_name"))  # diffusers writes the latter
    if isinstance(name, str) and name in REFUSED:
        raise UserError(
            f"{where}: model_type {name!r} cannot be said: {REFUSED[name]}; known are {', '.join(FAMILIES)}"
        )
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
        ours = {row.ours for row in rows_of(name, config)} if not reasons[name] else set()
        ours |= copies(name, config).keys() if ours else set()
        if not reasons[name] and (extra := params.table(config).keys() ^ ours):
            reasons[name] = [f"a {name} has nothing like {', '.join(sorted(extra)[:3])}"]
        if not reasons[name]:
            return name
    # One of other streams is far, however many of its reasons are told.
    nearest = min(reasons, key=lambda name: (reasons[name][0].startswith("streams:"), len(reasons[name])))
    listed = "\n  ".join(reasons[nearest])
    raise UserError(
        f"{where}: no family of published models that is known says this model; why it is no {nearest}:\n  {listed}\n"
        f"known are {', '.join(FAMILIES)}; export a run of these, or {ADD}"
    )


def rows_of(name: str, config: Config) -> tuple[Row, ...]:
    """The tensors of a family that a configuration has."""
    return FAMILIES[name].rows(name, config)


def about_alone(name: str, config: Config) -> dict[str, Any]:
    """What config.json says beside that, where nobody kept the publisher's."""
    return FAMILIES[name].alone(config) if hasattr(FAMILIES[name], "alone") else {}


def keeps_aside(name: str) -> bool:
    """Has a family tensors that no parameter of ours is?"""
    return hasattr(FAMILIES[name], "OUTSIDE")


def needs_aside(name: str) -> bool:
    """Would an export without them not be whole?"""
    return keeps_aside(name) and not hasattr(FAMILIES[name], "alone")


def rows_aside(name: str) -> tuple[str, ...]:
    """Those of them that must have as many rows as the embedding has."""
    return getattr(FAMILIES[name], "OF_IDS", ())


def aliases(name: str) -> tuple[tuple[str, str], ...]:
    """How names of its tensors may be written otherwise: patterns, and what we call what they match."""
    return getattr(FAMILIES[name], "ALIASES", ())


def card(name: str) -> str:
    """What a model card's head says of a family beside its tags: what loads it, and what a decoder of text is for."""
    return "library_name: transformers\npipeline_tag: text-generation\n" if FAMILIES[name] is text else ""


def stem(name: str) -> str:
    """What the names of a family's files begin with: one of `safetensors.STEMS`."""
    return getattr(FAMILIES[name], "STEM", STEMS[0])


def copies(name: str, config: Config) -> dict[str, str]:
    """Parameters of ours that must equal another one, by path, and that one's path."""
    copy, of = getattr(FAMILIES[name], "COPIES", ("", ""))
    return {path: path.replace(copy, of) for path in params.table(config) if copy and copy in path}


def about_theirs(
    name: str, config: Config, ids: int, special: Mapping[str, int], dtype: str = "float32"
) -> dict[str, Any]:
    """The `config.json` of a configuration that is of a family; `ids` are the rows of its embedding."""
    of_text = {"vocab_size": ids, "max_position_embeddings": config.length}
    of_text |= {f"{mark}_token_id": special.get(f"<{mark}>") for mark in ("bos", "eos", "pad")}
    for key in reversed(getattr(FAMILIES[name], "NESTED", ())):
        of_text = {key: of_text}
    about = {"model_type": name, "dtype": dtype, "torch_dtype": dtype}
    return merged(about | of_text, FAMILIES[name].about(name, config))
