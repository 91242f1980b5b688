"""Decoders of text in one tower, as transformers writes them: a line of FAMILIES for each `model_type`."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from mot.config import Config
from mot.interop.families import moe, rope
from mot.interop.families.fields import (
    DECODER,
    HEAD_DIM,
    Field,
    flat,
    is_number,
    of_ours,
    refuse,
    typed,
    unsaid,
    value_at,
)
from mot.interop.families.moe import Moe
from mot.interop.families.rows import Row, Said
from mot.model import params


class Family(NamedTuple):
    architecture: str  # the class that `architectures` names
    activation: str  # their name of it
    model: Mapping[str, Any]  # keys of our `model` that make the family
    usual: Mapping[str, Any]  # what its class takes for fields that config.json lacks
    rows: tuple[Row, ...]  # of every layer, but for its FFN
    moe: Moe | None = None  # None: it has no experts
    windows: str = ""  # where a `sliding_window` counts: in all layers, or in those that `layer_types` names
    own: Mapping[str, str] = MappingProxyType({})  # fields that are our key; null is 0, which is none


FIELDS = (*DECODER, HEAD_DIM, Field("tie_word_embeddings", "model.tied", bool))
# Fields that change the model, and the values that can be said.
ONLY = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0,),
    "use_sliding_window": (False,),
    "use_bidirectional_attention": (False,),
    "partial_rotary_factor": (1,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "quantization_config": (),
    "auto_map": (),
    "pretraining_tp": (1,),
}
OF_WINDOWS = {"max_window_layers", "sliding_window"}  # use_sliding_window switches them on, but for `Family.windows`

ENDS = (
    Row("model.embed_tokens.weight", "embed/tokens", "same"),
    Row("model.norm.weight", "final_norm/text/scale", "same"),
    Row("lm_head.weight", "head/out", "transpose"),  # of models that are not tied
)
BLOCK = "blocks/{stack}"
ATTENTION = (
    Row("model.layers.{layer}.self_attn.q_proj.weight", f"{BLOCK}/attn/text/wq", "split_heads"),
    Row("model.layers.{layer}.self_attn.k_proj.weight", f"{BLOCK}/attn/text/wk", "split_heads"),
    Row("model.layers.{layer}.self_attn.v_proj.weight", f"{BLOCK}/attn/text/wv", "split_heads"),
    Row("model.layers.{layer}.self_attn.o_proj.weight", f"{BLOCK}/attn/text/wo", "join_heads"),
)
NORMS = (
    Row("model.layers.{layer}.input_layernorm.weight", f"{BLOCK}/norm/text/attn", "same"),
    Row("model.layers.{layer}.post_attention_layernorm.weight", f"{BLOCK}/norm/text/ffn", "same"),
)
BOTH_NORMS = (
    Row("model.layers.{layer}.input_layernorm.weight", f"{BLOCK}/norm/text/attn", "same"),
    Row("model.layers.{layer}.post_attention_layernorm.weight", f"{BLOCK}/norm/text/attn_post", "same"),
    Row("model.layers.{layer}.pre_feedforward_layernorm.weight", f"{BLOCK}/norm/text/ffn", "same"),
    Row("model.layers.{layer}.post_feedforward_layernorm.weight", f"{BLOCK}/norm/text/ffn_post", "same"),
)
POST_NORMS = (
    Row("model.layers.{layer}.post_attention_layernorm.weight", f"{BLOCK}/norm/text/attn", "same"),
    Row("model.layers.{layer}.post_feedforward_layernorm.weight", f"{BLOCK}/norm/text/ffn", "same"),
)
FFN = (
    Row("model.layers.{layer}.mlp.gate_proj.weight", f"{BLOCK}/ffn/text/w1", "transpose"),
    Row("model.layers.{layer}.mlp.up_proj.weight", f"{BLOCK}/ffn/text/w3", "transpose"),
    Row("model.layers.{layer}.mlp.down_proj.weight", f"{BLOCK}/ffn/text/w2", "transpose"),
)
BIASES = tuple(
    Row(f"model.layers.{{layer}}.self_attn.{x}_proj.bias", f"{BLOCK}/attn/text/{x}_bias", "split_bias") for x in "qkv"
)
# The scales of a norm over all heads are [N H]; of each head they are [H], and lie alike.
QK_NORMS, FLAT_QK_NORMS = (
    tuple(Row(f"model.layers.{{layer}}.self_attn.{x}_norm.weight", f"{BLOCK}/attn/text/{x}_norm", how) for x in "qk")
    for how in ("same", "split_bias")
)
LAYER = (*ATTENTION, *NORMS)
PLAIN = dict(norm="pre", qk_norm="none", activation="swiglu", norm_offset=False, embed_scale=False, qkv_bias=False)
LLAMA = PLAIN | dict(attention_cap=0.0, logits_cap=0.0, query_size=0)
GEMMA = dict(activation="geglu", norm_offset=True, embed_scale=True)
USUAL = dict(rms_norm_eps=1e-6, rope_theta=10_000.0, tie_word_embeddings=False)
OLMO = USUAL | dict(rms_norm_eps=1e-5)
OF_GEMMA = USUAL | dict(head_dim=256, tie_word_embeddings=True)
OF_GEMMA2 = OF_GEMMA | dict(sliding_window=4096, query_pre_attn_scalar=256)
OF_GEMMA2 |= dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
FAMILIES = {
    "llama": Family("LlamaForCausalLM", "silu", LLAMA, USUAL, LAYER),
    "mistral": Family("MistralForCausalLM", "silu", LLAMA, USUAL | dict(sliding_window=4096), LAYER, windows="all"),
    "mixtral": Family(
        "MixtralForCausalLM",
        "silu",
        LLAMA,
        USUAL | dict(rms_norm_eps=1e-5, rope_theta=1e6),
        LAYER,
        moe.MIXTRAL,
        windows="all",
    ),
    "qwen2": Family("Qwen2ForCausalLM", "silu", LLAMA | dict(qkv_bias=True), USUAL, (*LAYER, *BIASES)),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM", "silu", LLAMA | dict(qkv_bias=True), USUAL, (*LAYER, *BIASES), moe.QWEN2
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM", "silu", LLAMA | dict(qk_norm="rms"), USUAL | dict(head_dim=128), (*LAYER, *QK_NORMS)
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM", "silu", LLAMA | dict(qk_norm="rms"), USUAL, (*LAYER, *QK_NORMS), moe.QWEN3
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        "silu",
        LLAMA | dict(norm="post", qk_norm="rms_flat"),
        OLMO,
        (*ATTENTION, *POST_NORMS, *FLAT_QK_NORMS),
    ),
    "olmoe": Family(
        "OlmoeForCausalLM", "silu", LLAMA | dict(qk_norm="rms_flat"), OLMO, (*LAYER, *FLAT_QK_NORMS), moe.OLMOE
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        "gelu_pytorch_tanh",
        LLAMA | GEMMA,
        OF_GEMMA,
        LAYER,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "gelu_pytorch_tanh",
        PLAIN | GEMMA | dict(norm="both"),
        OF_GEMMA2,
        (*ATTENTION, *BOTH_NORMS),
        windows="layers",
        own={
            "query_pre_attn_scalar": "model.query_size",
            "attn_logit_softcapping": "model.attention_cap",
            "final_logit_softcapping": "model.logits_cap",
        },
    ),
}


def said(name: str, about: Mapping[str, Any], where: str) -> Said:
    family = FAMILIES[name]
    given = flat(about)
    layer_types = given.pop("layer_types", None)
    stretched, faults = rope.said(given.pop("rope_scaling", None))
    only = ONLY | dict.fromkeys(("hidden_act", "hidden_activation"), (family.activation,))
    known = {field.theirs for field in FIELDS} | OF_WINDOWS | family.own.keys()
    experts: dict[str, Any] = {}
    if family.moe:
        experts, more = moe.said(family.moe, given)
        faults += more
        known |= moe.fields(family.moe)
        only = only | family.moe.only
    faults += unsaid(given, known, only)
    window, more = _window(family, given, layer_types)
    own, further = _own(family, given)
    refuse([*faults, *more, *further], where)
    given = dict(family.usual) | {key: value for key, value in given.items() if value is not None}
    given.setdefault("num_key_value_heads", given.get("num_attention_heads"))
    if "head_dim" not in given and all(type(given.get(k)) is int for k in ("hidden_size", "num_attention_heads")):
        given["head_dim"] = given["hidden_size"] // max(given["num_attention_heads"], 1)
    values = {field.ours: typed(field, given.get(field.theirs), where) for field in FIELDS}
    values |= own | stretched | experts
    return Said("dense", values | {f"model.{key}": value for key, value in family.model.items()}, window=window)


def _window(family: Family, given: Mapping[str, Any], layer_types: Any) -> tuple[int, list[str]]:
    """How many tokens its attention looks back, 0 for all, and what cannot be said of it.

    Where the field is null there is no window, and where it is absent the class has its own.
    """
    kinds = ["full_attention", "sliding_attention"] if family.windows == "layers" else ["full_attention"]
    if layer_types is not None and not (isinstance(layer_types, list) and {*map(str, layer_types)} <= {*kinds}):
        allowed = " and ".join(map(repr, kinds))
        return 0, [f"layer_types: {layer_types!r:.80}; allowed: {allowed}" + " alone" * (len(kinds) == 1)]
    window = (dict(family.usual) | given).get("sliding_window")
    none_named = family.windows == "layers" and layer_types is not None and "sliding_attention" not in layer_types
    if not family.windows or window is None or none_named:
        return 0, []
    if type(window) is not int or window < 1:
        return 0, [f"sliding_window: {window!r:.80}; must be a whole number above 0, or null"]
    return window, []


def _own(family: Family, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values of the family's own fields by dotted key, and those that are no numbers."""
    found = {key: (dict(family.usual) | given).get(key) for key in family.own}
    faults = [
        f"{key}: {x!r:.80}; must be a number above 0, or null"
        for key, x in found.items()
        if x is not None and not is_number(x)
    ]
    return {ours: found[key] or 0 for key, ours in family.own.items()}, faults


def rows(name: str, config: Config) -> tuple[Row, ...]:
    """A tied model has no head."""
    family = FAMILIES[name]
    found = [row for row in ENDS if not (row.ours == "head/out" and config.model.tied)]
    for stack in dict.fromkeys(config.stacks):
        is_sparse = config.sparse[config.stacks.index(stack)]
        ffn = family.moe.rows if family.moe and is_sparse else FFN
        found += [row._replace(ours=row.ours.format(stack=stack)) for row in (*family.rows, *ffn)]
    return tuple(found)


def faults(name: str, config: Config) -> Iterator[str]:
    family = FAMILIES[name]
    if list(config.streams) != ["text"]:
        kinds = ", ".join(f"{name} ({s.objective})" for name, s in config.streams.items())
        yield f"streams: {kinds}; it must have text alone"
        return
    if family.moe:
        yield from moe.faults(family.moe, config)
    yield from unlike(config, family.model, () if family.moe else ("ffn",))
    if config.streams["text"].objective != "next_token":
        yield f"streams.text.objective: {config.streams['text'].objective!r}; must be 'next_token'"


def unlike(config: Config, model: Mapping[str, Any], without: Sequence[str] = ("ffn",)) -> Iterator[str]:
    """Why a configuration has not these values of `model`, or experts in attention or what else is `without` them."""
    for component in ("attn", *without):
        for tower, experts in config.component(component).experts.items():
            if experts.experts:
                yield f"{component}.{tower}.experts: it has experts; must be 0"
    for key, wanted in (dict(rope_sections=(), rope_features=0) | model).items():
        if (found := getattr(config.model, key)) != wanted:
            yield f"model.{key}: {found!r}; must be {wanted!r}"
    scaling = config.model.rope_scaling
    if scaling.amplitude != 1 and scaling.kind != "yarn":
        yield f"model.rope_scaling.amplitude: {scaling.amplitude}; of {scaling.kind!r} it must be 1.0"
    if config.data.blocks == "document":
        yield "data.blocks: 'document'; its tokens see later ones"
    if any(spec.multiplier != 1 for spec in params.table(config).values()):
        yield f"optim.transfer: {config.optim.transfer!r}; it multiplies what matrices give, which no family does"


def about(name: str, config: Config) -> dict[str, Any]:
    family = FAMILIES[name]
    found = fields_of(config) | {"architectures": [family.architecture], "hidden_act": family.activation}
    found |= {key: value_at(config, ours) or None for key, ours in family.own.items()}
    if "query_pre_attn_scalar" in found and not config.model.query_size:
        found |= {"query_pre_attn_scalar": config.model.head_size}
    if family.windows == "all":
        found |= {"sliding_window": None}
    if family.windows == "layers":  # its class wants a window, also where no layer has one
        found |= {"sliding_window": config.length, "layer_types": ["full_attention"] * config.model.layers}
    return found | (moe.about(family.moe, config) if family.moe else {})


def fields_of(config: Config) -> dict[str, Any]:
    """What FIELDS and RoPE are of a configuration."""
    found = of_ours(FIELDS, config)
    found |= {"rope_parameters": rope.about(config.model.rope_theta, config.model.rope_scaling)}
    return found | {"attention_dropout": 0.0}
