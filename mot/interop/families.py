"""The families of transformers' text decoders that this model can say, as data: their `config.json`, their tensors.

To add a family:
1. See that the model code says it: copy a tiny model's weights by hand, as tests/parity/test_huggingface.py does. What
   it lacks (soft caps, windows) is a change of mot/model, and not of this table.
2. Add a row to FAMILIES: its `model_type`, the class that `architectures` names, the values of our `model` that make
   it, what its own class takes where `config.json` lacks a field, and its tensors.
3. A field that changes the model and cannot be said goes to ONLY, with the values that can.
4. A tensor that lies otherwise than ours needs a transform (transforms.py) with its inverse.
5. Add its class to tests/parity/test_interop.py, which compares logits and gradients, and tensors there and back.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mot.config import Config
from mot.errors import UserError
from mot.model import params


class Row(NamedTuple):
    """A tensor of theirs, where {layer} is its number, and the parameter of ours that it is, or a layer of."""

    theirs: str
    ours: str
    transform: str  # of transforms.TRANSFORMS


class Family(NamedTuple):
    architecture: str  # the class that `architectures` names
    activation: str  # their name of it
    model: Mapping[str, Any]  # keys of our `model` that make the family
    usual: Mapping[str, Any]  # what its class takes for fields that config.json lacks
    rows: tuple[Row, ...]


class Field(NamedTuple):
    """A field of config.json, and the key of our configuration that it is."""

    theirs: str
    ours: str
    kind: type


FIELDS = (
    Field("hidden_size", "streams.text.width", int),
    Field("intermediate_size", "streams.text.ffn", int),
    Field("num_hidden_layers", "model.layers", int),
    Field("num_attention_heads", "model.heads", int),
    Field("num_key_value_heads", "model.kv_heads", int),
    Field("head_dim", "model.head_size", int),
    Field("rms_norm_eps", "model.norm_eps", float),
    Field("rope_theta", "model.rope_theta", float),
    Field("tie_word_embeddings", "model.tied", bool),
)
# Fields that change the model, and the values that can be said. Where a field is absent or null it has one of them.
ONLY = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0,),
    "use_sliding_window": (False,),
    "use_bidirectional_attention": (False,),
    "partial_rotary_factor": (1,),
    "rope_scaling": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "quantization_config": (),
    "auto_map": (),
    "pretraining_tp": (1,),
}
# Fields that change nothing of what the model computes of a text.
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
    "max_window_layers",  # of windows, which use_sliding_window switches on
    "sliding_window",
}

BLOCK = "blocks/main"
DECODER = (
    Row("model.embed_tokens.weight", "embed/tokens", "same"),
    Row("model.layers.{layer}.self_attn.q_proj.weight", f"{BLOCK}/attn/text/wq", "split_heads"),
    Row("model.layers.{layer}.self_attn.k_proj.weight", f"{BLOCK}/attn/text/wk", "split_heads"),
    Row("model.layers.{layer}.self_attn.v_proj.weight", f"{BLOCK}/attn/text/wv", "split_heads"),
    Row("model.layers.{layer}.self_attn.o_proj.weight", f"{BLOCK}/attn/text/wo", "join_heads"),
    Row("model.layers.{layer}.mlp.gate_proj.weight", f"{BLOCK}/ffn/text/w1", "transpose"),
    Row("model.layers.{layer}.mlp.up_proj.weight", f"{BLOCK}/ffn/text/w3", "transpose"),
    Row("model.layers.{layer}.mlp.down_proj.weight", f"{BLOCK}/ffn/text/w2", "transpose"),
    Row("model.layers.{layer}.input_layernorm.weight", f"{BLOCK}/norm/text/attn", "same"),
    Row("model.layers.{layer}.post_attention_layernorm.weight", f"{BLOCK}/norm/text/ffn", "same"),
    Row("model.norm.weight", "final_norm/text/scale", "same"),
    Row("lm_head.weight", "head/out", "transpose"),  # of models that are not tied
)
BIASES = tuple(
    Row(f"model.layers.{{layer}}.self_attn.{x}_proj.bias", f"{BLOCK}/attn/text/{x}_bias", "split_bias") for x in "qkv"
)
QK_NORMS = tuple(
    Row(f"model.layers.{{layer}}.self_attn.{x}_norm.weight", f"{BLOCK}/attn/text/{x}_norm", "same") for x in "qk"
)
LLAMA = dict(qk_norm="none", activation="swiglu", norm_offset=False, embed_scale=False, qkv_bias=False)
USUAL = dict(rms_norm_eps=1e-6, rope_theta=10_000.0, tie_word_embeddings=False)
FAMILIES = {
    "llama": Family("LlamaForCausalLM", "silu", LLAMA, USUAL, DECODER),
    "qwen2": Family("Qwen2ForCausalLM", "silu", LLAMA | dict(qkv_bias=True), USUAL, (*DECODER, *BIASES)),
    "qwen3": Family(
        "Qwen3ForCausalLM", "silu", LLAMA | dict(qk_norm="rms"), USUAL | dict(head_dim=128), (*DECODER, *QK_NORMS)
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        "gelu_pytorch_tanh",
        LLAMA | dict(activation="geglu", norm_offset=True, embed_scale=True),
        USUAL | dict(head_dim=256, tie_word_embeddings=True),
        DECODER,
    ),
}
ADD = "the docstring of mot/interop/families.py has the steps to add one"


def of_theirs(about: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """The name of the family of a `config.json`, and the values of our configuration by dotted key.

    Raises `UserError` for a family that is not in the table, and for what cannot be said of it.
    """
    name = about.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"{where}: model_type {name!r} is no family that is known; known are {', '.join(FAMILIES)}; {ADD}"
        )
    family = FAMILIES[name]
    given = _flat(about)
    if unsaid := _unsaid(given, family):
        raise UserError(f"{where}: this model cannot be said:\n  " + "\n  ".join(unsaid))
    given = dict(family.usual) | {key: value for key, value in given.items() if value is not None}
    given.setdefault("num_key_value_heads", given.get("num_attention_heads"))
    if "head_dim" not in given and all(type(given.get(k)) is int for k in ("hidden_size", "num_attention_heads")):
        given["head_dim"] = given["hidden_size"] // max(given["num_attention_heads"], 1)
    values = {field.ours: _typed(field, given.get(field.theirs), where) for field in FIELDS}
    return name, values | {f"model.{key}": value for key, value in family.model.items()}


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with those of `rope_parameters` among them, as transformers 5 writes what was `rope_theta`."""
    given = dict(about)
    rope = given.pop("rope_parameters", None)
    if rope is None:
        return given
    if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default":
        return given | {"rope_scaling": rope}
    extra = {key: value for key, value in rope.items() if key not in ("rope_type", "rope_theta", "type")}
    return given | {"rope_theta": rope.get("rope_theta", given.get("rope_theta"))} | extra


def _unsaid(given: Mapping[str, Any], family: Family) -> list[str]:
    """What of the fields cannot be said: each with its value, and what is allowed."""
    found = []
    known = {field.theirs for field in FIELDS} | IGNORED
    for key, value in given.items():
        if key in known or value is None:
            continue
        if key in ("hidden_act", "hidden_activation"):
            allowed: tuple = (family.activation,)
        elif key == "layer_types":
            if not isinstance(value, list) or any(kind != "full_attention" for kind in value):
                found.append(f"layer_types: {value!r:.80}; allowed: 'full_attention' alone")
            continue
        elif key in ONLY:
            allowed = ONLY[key]
        elif value in (False, "", [], {}):
            continue
        else:
            found.append(
                f"{key}: {value!r:.80}; it is not known what it changes; remove it from config.json if nothing"
            )
            continue
        if value not in allowed:
            found.append(f"{key}: {value!r:.80}; allowed: {' or '.join(map(repr, allowed)) or 'null, or none at all'}")
    return found


def _typed(field: Field, value: Any, where: str) -> Any:
    """A field's value; raises `UserError` for one of another type, and where it is absent."""
    is_number = type(value) in (int, float) and math.isfinite(value) and value > 0
    if not (type(value) is bool if field.kind is bool else is_number and type(value) in (int, field.kind)):
        what = {int: "a whole number above 0", float: "a number above 0", bool: "true or false"}[field.kind]
        raise UserError(f"{where}: {field.theirs} is {value!r:.80}; must be {what}; repair the file")
    return field.kind(value)


def of_ours(config: Config, where: str) -> str:
    """The name of the family that a configuration is; raises `UserError`, with all reasons, where it is none."""
    reasons = list(_odd(config))
    near = [name for name, family in FAMILIES.items() if not _differences(config, family)]
    if not near and not reasons:
        shown = ", ".join(f"model.{key}={getattr(config.model, key)!r}" for key in LLAMA)
        reasons.append(f"no family has {shown}")
    if near and not reasons and (extra := params.table(config).keys() ^ {*rows_of(FAMILIES[near[0]], config)}):
        reasons.append(f"a {near[0]} has nothing like {', '.join(sorted(extra)[:3])}")
    if reasons:
        listed = "\n  ".join(reasons)
        raise UserError(
            f"{where}: no family of transformers that is known says this model:\n  {listed}\nknown are "
            f"{', '.join(FAMILIES)}: decoders of text alone; export a run of these, or {ADD}"
        )
    return near[0]


def _differences(config: Config, family: Family) -> list[str]:
    return [key for key, value in family.model.items() if getattr(config.model, key) != value]


def _odd(config: Config):
    """Why a configuration is no decoder of text in one tower."""
    if list(config.streams) != ["text"]:
        kinds = ", ".join(f"{name} ({s.objective})" for name, s in config.streams.items())
        yield f"streams: {kinds}; it must have text alone"
        return
    for component, sets in (("attn", config.attn), ("ffn", config.ffn)):
        if any(experts.experts for experts in sets.values()):
            yield f"{component}.text.experts: it has experts; no mixture of experts is in the table yet"
    if config.streams["text"].objective != "next_token":
        yield f"streams.text.objective: {config.streams['text'].objective!r}; must be 'next_token'"
    for key, wanted in (("norm", "pre"), ("rope_sections", ())):
        if (value := getattr(config.model, key)) != wanted:
            yield f"model.{key}: {value!r}; must be {wanted!r}"
    if config.data.blocks == "document":
        yield "data.blocks: 'document'; its tokens see later ones"
    if any(spec.multiplier != 1 for spec in params.table(config).values()):
        yield f"optim.transfer: {config.optim.transfer!r}; it multiplies what matrices give, which no family does"


def rows_of(family: Family, config: Config) -> dict[str, Row]:
    """The family's rows that a configuration has, by our path: a tied model has no head."""
    return {row.ours: row for row in family.rows if not (row.ours == "head/out" and config.model.tied)}


def about_theirs(name: str, config: Config, ids: int, special: Mapping[str, int]) -> dict[str, Any]:
    """The `config.json` of a configuration that is of a family; `ids` are the rows of its embedding."""
    family = FAMILIES[name]
    values = {
        "streams.text.width": config.streams["text"].width,
        "streams.text.ffn": config.streams["text"].ffn,
    }
    fields = {f.theirs: values.get(f.ours, getattr(config.model, f.ours.rpartition(".")[2], None)) for f in FIELDS}
    about = {"architectures": [family.architecture], "model_type": name, "hidden_act": family.activation, **fields}
    about |= {"rope_parameters": {"rope_type": "default", "rope_theta": config.model.rope_theta}}  # transformers 5
    about |= {"vocab_size": ids, "max_position_embeddings": config.length, "attention_dropout": 0.0}
    about |= {f"{mark}_token_id": special.get(f"<{mark}>") for mark in ("bos", "eos", "pad")}
    return about | {"dtype": "float32", "torch_dtype": "float32"}
