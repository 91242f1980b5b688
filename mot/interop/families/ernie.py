"""ERNIE 4.5 VL: text and images through one attention, and in most layers through experts of their own.

Streams: `text`, and `latents`, which are what the vision tower and its resampler (`model.vision_model`,
`model.resampler_model`, outside of our model) make of an image, as wide as a token: they enter as they are. The first
layers have one FFN for both; the others have as many experts of text as of images, of other widths, with a router for
each. The FFN that all tokens of such a layer pass is the same for both; ours has it twice.

RoPE turns neighbours, the first pairs by row and column in turn, and the last by time.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mot.config import Config
from mot.interop.families import text
from mot.interop.families.fields import Field, flat, is_size, refuse, typed, unsaid
from mot.interop.families.rows import Row, Said

MODEL = dict(norm="pre", qk_norm="none", activation="swiglu", norm_offset=False, embed_scale=False, qkv_bias=False)
MODEL |= dict(rope_interleaved=True, rope_time_last=True, rope_reset=False, sparse_every=1)
USUAL = dict(rms_norm_eps=1e-5, rope_theta=500_000.0, tie_word_embeddings=True, mrope_section=[22, 22, 20])
NUMBERS = ("moe_num_experts", "moe_k", "moe_num_shared_experts")
TOP = {"image_start_token_id", "image_end_token_id", "image_token_id", "video_start_token_id", "video_end_token_id"}
TOP |= {"video_token_id", "text_config", "vision_config", "tie_word_embeddings"}
# A bias keeps loads even; the loss beside it is of training.
IGNORED = {*NUMBERS, "moe_intermediate_size", "moe_norm_min", "mlp_layer_types", "mrope_section"}
IGNORED |= {"router_aux_loss_coef", "output_router_logits"}
ONLY = text.ONLY | {"hidden_act": ("silu",), "use_bias": (False,), "rope_scaling": ()}
OUTSIDE = ("model.vision_model.", "model.resampler_model.")
TOWERS = ("text", "latents")  # of experts, as their tensors have them
EXPERTS = dict(router="token", score="softmax", normalise=True, balance="bias", capacity=0.0, shared_gate=False)
EXPERTS |= dict(weight_scale=1.0, groups=1)
NESTED = ("text_config",)
# The FFN that all tokens pass, for images as for text.
COPIES = ("/ffn/latents/shared_", "/ffn/text/shared_")
LAYER = "model.layers.{layer}.mlp"
PROJECTIONS = (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))


def said(name: str, about: Mapping[str, Any], where: str) -> Said:
    inside = about.get("text_config")
    given = {key: x for key, x in flat(inside if isinstance(inside, Mapping) else {}).items() if x is not None}
    faults = unsaid(about, TOP, {}) + unsaid(given, {f.theirs for f in text.FIELDS} | IGNORED, ONLY)
    given = USUAL | given
    layers, kinds, sections = (given.get(key) for key in ("num_hidden_layers", "mlp_layer_types", "mrope_section"))
    kinds = ["dense", *["sparse"] * (layers - 1)] if kinds is None and is_size(layers) else kinds
    listed = kinds if isinstance(kinds, list) else []
    dense = listed.count("dense")
    if listed != ["dense"] * dense + ["sparse"] * (len(listed) - dense) or not 0 < dense < len(listed):
        faults.append(f"mlp_layer_types: {kinds!r:.80}; allowed: 'dense' first, then 'sparse', some of each")
    if not _are_sections(sections):
        faults.append(f"mrope_section: {sections!r:.80}; allowed: as many rows as columns, and time")
    widths = given.get("moe_intermediate_size", [1536, 512])
    if not isinstance(widths, list) or len(widths) != 2 or not all(map(is_size, widths)):
        faults.append(
            f"moe_intermediate_size: {widths!r:.80}; must be two whole numbers above 0, of text and of images"
        )
    refuse(faults, where)
    given.setdefault("num_key_value_heads", given.get("num_attention_heads"))
    if "head_dim" not in given and all(type(given.get(k)) is int for k in ("hidden_size", "num_attention_heads")):
        given["head_dim"] = given["hidden_size"] // max(given["num_attention_heads"], 1)
    values = {field.ours: typed(field, given.get(field.theirs), where) for field in text.FIELDS}
    rows, columns, time = sections
    values |= {f"model.{key}": x for key, x in (MODEL | dict(rope_sections=(time, rows, columns))).items()}
    values |= {"model.dense_layers": dense, "towers.ffn.latents": f"0:{dense} text, {dense}:{layers} latents"}
    values |= {f"streams.latents.{key}": values[f"streams.text.{key}"] for key in ("width", "ffn")}
    values |= {"streams.latents.objective": "none", "streams.latents.entry.kind": "none"}
    experts, active, shared = (typed(Field(key, "", int), given.get(key), where) for key in NUMBERS)
    for tower, width in zip(TOWERS, widths, strict=True):
        own = EXPERTS | dict(experts=experts, active=active, width=width, shared=shared * widths[0], balance_rate=1e-3)
        values |= {f"ffn.{tower}.{key}": x for key, x in own.items()}
    return Said("mot_ffn", values, OUTSIDE, needs={"latents": values["streams.text.width"]})


def _are_sections(sections: Any) -> bool:
    """Are they pairs of RoPE: of rows, as many of columns, and of time?"""
    fits = isinstance(sections, list) and len(sections) == 3 and all(map(is_size, sections))
    return fits and sections[0] == sections[1]


def rows(name: str, config: Config) -> tuple[Row, ...]:
    found = [row for row in text.ENDS if not (row.ours == "head/out" and config.model.tied)]
    for stack in dict.fromkeys(config.stacks):
        is_sparse = config.sparse[config.stacks.index(stack)]
        pairs = {"q_proj": "split_pairs", "k_proj": "split_pairs"}
        for row in (*text.LAYER, *(() if is_sparse else text.FFN)):
            how = pairs.get(row.theirs.split(".")[-2], row.transform)
            found.append(Row(row.theirs, row.ours.format(stack=stack), how))
        found += _experts(f"blocks/{stack}/ffn", config) if is_sparse else []
    return tuple(found)


def _experts(block: str, config: Config) -> list[Row]:
    """Experts of text, then of images; the routers' matrices and biases have a number, or a row, each."""
    found = []
    for number, tower in enumerate(TOWERS):
        first = number * config.ffn["text"].experts
        for theirs, ours in PROJECTIONS:
            expert = f"{LAYER}.experts.{{expert}}.{theirs}.weight"
            found.append(Row(expert, f"{block}/{tower}/{ours}", "transpose", first))
        found.append(Row(f"{LAYER}.gate.weight{f'_{number}' * (number > 0)}", f"{block}/{tower}/router", "same"))
        found.append(Row(f"{LAYER}.moe_statics.e_score_correction_bias", f"{block}/{tower}/router_bias", "row"))
    for theirs, ours in PROJECTIONS:
        found.append(Row(f"{LAYER}.shared_experts.{theirs}.weight", f"{block}/text/shared_{ours}", "transpose"))
    return found


def faults(name: str, config: Config) -> Iterator[str]:
    if list(config.streams) != [*TOWERS]:
        yield f"streams: {', '.join(config.streams)}; must be text, latents"
        return
    latents = config.streams["latents"]
    if (latents.objective, latents.entry.kind) != ("none", "none"):
        yield f"streams.latents.objective, entry.kind: {latents.objective!r}, {latents.entry.kind!r}; must be 'none'"
    if config.streams["text"].objective != "next_token":
        yield f"streams.text.objective: {config.streams['text'].objective!r}; must be 'next_token'"
    of_text, of_images = (config.ffn.get(tower) for tower in TOWERS)
    if of_images is None or not of_text.experts:
        yield "ffn: text and latents must have experts of their own"
        return
    for key in ("experts", "active", "shared"):
        if getattr(of_text, key) != getattr(of_images, key):
            yield f"ffn.latents.{key}: {getattr(of_images, key)}; must be {getattr(of_text, key)}, as ffn.text has it"
    for tower in TOWERS:
        for key, wanted in EXPERTS.items():
            if (value := getattr(config.ffn[tower], key)) != wanted:
                yield f"ffn.{tower}.{key}: {value!r}; must be {wanted!r}"
    width = of_text.width or config.streams["text"].ffn
    if not of_text.shared or of_text.shared % width:
        yield f"ffn.text.shared: {of_text.shared}; must be a multiple of an expert's width, {width}"
    sections = config.model.rope_sections
    if len(sections) != 3 or sections[1] != sections[2]:
        yield f"model.rope_sections: {sections}; rows and columns must have as many"
    yield from text.unlike(config, MODEL | dict(rope_sections=sections), ())


def about(name: str, config: Config) -> dict[str, Any]:
    of_text, of_images = (config.ffn[tower] for tower in TOWERS)
    width = of_text.width or config.streams["text"].ffn
    time, rows_, columns = config.model.rope_sections
    inside = text.fields_of(config)
    inside["rope_parameters"] = inside["rope_parameters"] | {"mrope_section": [rows_, columns, time]}
    del inside["attention_dropout"]  # its class knows none
    inside |= {"moe_num_experts": of_text.experts, "moe_k": of_text.active, "hidden_act": "silu"}
    inside |= {"moe_num_shared_experts": of_text.shared // width}
    inside |= {"moe_intermediate_size": [width, of_images.width or config.streams["latents"].ffn]}
    inside |= {"mlp_layer_types": ["sparse" if is_sparse else "dense" for is_sparse in config.sparse]}
    found = {"architectures": ["Ernie4_5_VLMoeForConditionalGeneration"], "text_config": inside}
    return found | {"tie_word_embeddings": config.model.tied}
