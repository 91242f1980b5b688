"""Decoders of text in one tower, as transformers writes them: a line of FAMILIES for each `model_type`."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mot.config import Config
from mot.interop.families.fields import Field, flat, refuse, typed, unsaid
from mot.interop.families.rows import Row, Said
from mot.model import params


class Family(NamedTuple):
    architecture: str  # the class that `architectures` names
    activation: str  # their name of it
    model: Mapping[str, Any]  # keys of our `model` that make the family
    usual: Mapping[str, Any]  # what its class takes for fields that config.json lacks
    rows: tuple[Row, ...]


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
# Fields that change the model, and the values that can be said.
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
OF_WINDOWS = {"max_window_layers", "sliding_window"}  # use_sliding_window switches them on

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


def said(name: str, about: Mapping[str, Any], where: str) -> Said:
    family = FAMILIES[name]
    given = flat(about)
    layer_types = given.pop("layer_types", None)
    only = ONLY | dict.fromkeys(("hidden_act", "hidden_activation"), (family.activation,))
    faults = unsaid(given, {field.theirs for field in FIELDS} | OF_WINDOWS, only)
    if layer_types is not None and not (
        isinstance(layer_types, list) and {*map(str, layer_types)} <= {"full_attention"}
    ):
        faults.append(f"layer_types: {layer_types!r:.80}; allowed: 'full_attention' alone")
    refuse(faults, where)
    given = dict(family.usual) | {key: value for key, value in given.items() if value is not None}
    given.setdefault("num_key_value_heads", given.get("num_attention_heads"))
    if "head_dim" not in given and all(type(given.get(k)) is int for k in ("hidden_size", "num_attention_heads")):
        given["head_dim"] = given["hidden_size"] // max(given["num_attention_heads"], 1)
    values = {field.ours: typed(field, given.get(field.theirs), where) for field in FIELDS}
    return Said("dense", values | {f"model.{key}": value for key, value in family.model.items()})


def rows(name: str, config: Config) -> tuple[Row, ...]:
    """A tied model has no head."""
    return tuple(row for row in FAMILIES[name].rows if not (row.ours == "head/out" and config.model.tied))


def faults(name: str, config: Config) -> Iterator[str]:
    if list(config.streams) != ["text"]:
        kinds = ", ".join(f"{name} ({s.objective})" for name, s in config.streams.items())
        yield f"streams: {kinds}; it must have text alone"
        return
    for component, sets in (("attn", config.attn), ("ffn", config.ffn)):
        if any(experts.experts for experts in sets.values()):
            yield f"{component}.text.experts: it has experts; must be 0"
    if config.streams["text"].objective != "next_token":
        yield f"streams.text.objective: {config.streams['text'].objective!r}; must be 'next_token'"
    for key, wanted in (FAMILIES[name].model | dict(norm="pre", rope_sections=())).items():
        if (value := getattr(config.model, key)) != wanted:
            yield f"model.{key}: {value!r}; must be {wanted!r}"
    if config.data.blocks == "document":
        yield "data.blocks: 'document'; its tokens see later ones"
    if any(spec.multiplier != 1 for spec in params.table(config).values()):
        yield f"optim.transfer: {config.optim.transfer!r}; it multiplies what matrices give, which no family does"


def about(name: str, config: Config) -> dict[str, Any]:
    family = FAMILIES[name]
    values = {"streams.text.width": config.streams["text"].width, "streams.text.ffn": config.streams["text"].ffn}
    found = {f.theirs: values.get(f.ours, getattr(config.model, f.ours.rpartition(".")[2], None)) for f in FIELDS}
    found |= {"architectures": [family.architecture], "hidden_act": family.activation, "attention_dropout": 0.0}
    return found | {"rope_parameters": {"rope_type": "default", "rope_theta": config.model.rope_theta}}
