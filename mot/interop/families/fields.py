"""Fields of a `config.json`: which are keys of ours, which change nothing, and which cannot be said."""

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mot.config import Config
from mot.errors import UserError


class Field(NamedTuple):
    """A field of config.json, and the key of our configuration that it is."""

    theirs: str
    ours: str
    kind: type


LARGEST = 2**20  # of widths, layers, heads and experts; no model that is known has so many
# Of every decoder.
DECODER = (
    Field("hidden_size", "streams.text.width", int),
    Field("intermediate_size", "streams.text.ffn", int),
    Field("num_hidden_layers", "model.layers", int),
    Field("num_attention_heads", "model.heads", int),
    Field("num_key_value_heads", "model.kv_heads", int),
    Field("rms_norm_eps", "model.norm_eps", float),
    Field("rope_theta", "model.rope_theta", float),
)
HEAD_DIM = Field("head_dim", "model.head_size", int)
# Of every family: what changes nothing of what the model computes of its tokens.
IGNORED = {
    "architectures",
    "model_type",
    "vocab_size",
    "max_position_embeddings",
    "_name_or_path",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
}


def flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with `rope_theta` and `rope_scaling` among them, which transformers 5 writes as `rope_parameters`."""
    given = dict(about)
    rope = given.pop("rope_parameters", None)
    if rope is None:
        return given
    if not isinstance(rope, Mapping):
        return given | {"rope_scaling": rope}
    given |= {"rope_theta": rope.get("rope_theta", given.get("rope_theta"))}
    if rope.get("rope_type", "default") != "default":
        return given | {"rope_scaling": rope}
    return given | {key: value for key, value in rope.items() if key not in ("rope_type", "rope_theta", "type")}


def unsaid(given: Mapping[str, Any], known: Collection[str], only: Mapping[str, Sequence[Any]]) -> list[str]:
    """What of the fields cannot be said: each with its value, and what is allowed.

    `known` are fields that are said or change nothing, `only` those that have some values alone. A field may be null or
    absent, and one that nobody knows may be empty or false.
    """
    found = []
    for key, value in given.items():
        if key in known or key in IGNORED or value is None:
            continue
        if key not in only:
            if value not in (False, "", [], {}):
                found.append(
                    f"{key}: {value!r:.80}; it is not known what it changes; remove it from config.json if nothing"
                )
        elif value not in only[key]:
            allowed = " or ".join(map(repr, only[key])) or "null, or none at all"
            found.append(f"{key}: {value!r:.80}; allowed: {allowed}")
    return found


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of both, also of configurations within them; the second's where both have one."""
    found = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def refuse(faults: Sequence[str], where: str) -> None:
    """Raises `UserError` with all that cannot be said of a config.json, if anything."""
    if faults:
        raise UserError(f"{where}: this model cannot be said:\n  " + "\n  ".join(faults))


def is_number(value: Any) -> bool:
    """Is it a number above 0 that a float can be?"""
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def is_size(value: Any) -> bool:
    """Is it a whole number from 1 to LARGEST?"""
    return type(value) is int and 0 < value <= LARGEST


def typed(field: Field, value: Any, where: str) -> Any:
    """A field's value; raises `UserError` for one of another type, and where it is absent."""
    fits = {int: is_size(value), float: is_number(value), bool: type(value) is bool}[field.kind]
    if not fits:
        allowed = {int: f"a whole number from 1 to {LARGEST}", float: "a number above 0", bool: "true or false"}
        raise UserError(f"{where}: {field.theirs} is {value!r:.80}; must be {allowed[field.kind]}; repair the file")
    return field.kind(value)


def value_at(config: Config, key: str) -> Any:
    """What a configuration has at a dotted key."""
    found: Any = config
    for part in key.split("."):
        found = found[part] if isinstance(found, Mapping) else getattr(found, part)
    return found


def of_ours(fields: Sequence[Field], config: Config) -> dict[str, Any]:
    """The fields of a configuration."""
    return {field.theirs: value_at(config, field.ours) for field in fields}
