"""Cosmos 3 as diffusers writes its transformer: text, and pictures that are drawn as latents of their autoencoder.

A picture's latent `[channels, height, width]` becomes tokens of `latent_patch_size` by as many of its pixels, whose
features lie row, column, channel. Films, sound and actions are not said: their positions of RoPE are fractions, and
actions have matrices of their own for each robot.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mot.config import Config
from mot.interop.families import mixtures
from mot.interop.families.fields import DECODER, HEAD_DIM, LARGEST, Field, of_ours, refuse, typed, unsaid
from mot.interop.families.rows import Row, Said

STEM = "diffusion_pytorch_model"
FIELDS = (*DECODER, HEAD_DIM)
FEATURES = Field("patch_latent_dim", "streams.{vectors}.latent", int)
USUAL = dict(
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=5e6,
    patch_latent_dim=192,
)
SECTIONS = [24, 20, 20]
RESET, GAP = "unified_3d_mrope_reset_spatial_ids", "unified_3d_mrope_temporal_modality_margin"
ONLY = {
    "attention_bias": (False,),
    "attention_dropout": (0,),
    "timestep_scale": (0.001,),  # levels of 0 to 1000 become those of 0 to 1
    "hidden_act": ("silu",),
    "qk_norm_for_text": (True,),
    "use_und_k_norm_for_gen": (False,),
    "quantization_config": (),
}
# Of films, of sound and of actions; and how a latent is cut into tokens, which the data do.
ASIDE = {"base_fps", "enable_fps_modulation", "sound_gen", "sound_dim", "sound_latent_fps", "action_gen", "action_dim"}
ASIDE |= {"num_embodiment_domains", "latent_channel", "latent_patch_size", "_class_name", "_diffusers_version"}
MODEL = mixtures.MODEL | dict(qkv_bias=False, rope_interleaved=True)
DRAWN = mixtures.DRAWN | {"diffusion.time_of_clean": False, "place_table": 0}
OUTSIDE = ("audio_", "action_")  # of sound and of actions

TEXT = {
    "wq": "self_attn.to_q",
    "wk": "self_attn.to_k",
    "wv": "self_attn.to_v",
    "wo": "self_attn.to_out",
    "q_norm": "self_attn.norm_q",
    "k_norm": "self_attn.norm_k",
    "w1": "mlp.gate_proj",
    "w3": "mlp.up_proj",
    "w2": "mlp.down_proj",
    "attn": "input_layernorm",
    "ffn": "post_attention_layernorm",
}
PICTURES = {
    "wq": "self_attn.add_q_proj",
    "wk": "self_attn.add_k_proj",
    "wv": "self_attn.add_v_proj",
    "wo": "self_attn.to_add_out",
    "q_norm": "self_attn.norm_added_q",
    "k_norm": "self_attn.norm_added_k",
    "w1": "mlp_moe_gen.gate_proj",
    "w3": "mlp_moe_gen.up_proj",
    "w2": "mlp_moe_gen.down_proj",
    "attn": "input_layernorm_moe_gen",
    "ffn": "post_attention_layernorm_moe_gen",
}
ENDS = {"in": "proj_in", "out": "proj_out", "time_in": "time_embedder.linear_1", "time_out": "time_embedder.linear_2"}


def said(name: str, about: Mapping[str, Any], where: str) -> Said:
    given = {key: value for key, value in about.items() if value is not None}
    scaling = given.pop("rope_scaling", None)
    sections = scaling.get("mrope_section", SECTIONS) if isinstance(scaling, Mapping) else SECTIONS
    sections = given.pop("rope_axes_dim", sections)
    reset, gap = given.pop(RESET, True), given.pop(GAP, 15_000)
    faults = unsaid(given, {field.theirs for field in (*FIELDS, FEATURES)} | ASIDE, ONLY)
    if not _are_sections(sections):
        faults.append(f"rope_axes_dim: {sections!r:.80}; allowed: [a, b, b] with a no less than b")
    if type(reset) is not bool:
        faults.append(f"{RESET}: {reset!r:.80}; allowed: True or False")
    if type(gap) is not int or not 0 <= gap <= LARGEST:
        faults.append(f"{GAP}: {gap!r:.80}; allowed: whole numbers from 0 to {LARGEST}")
    refuse(faults, where)
    values = {field.ours: typed(field, (USUAL | given).get(field.theirs), where) for field in (*FIELDS, FEATURES)}
    values |= {"streams.{vectors}.width": values["streams.text.width"]}
    values |= {"streams.{vectors}.ffn": values["streams.text.ffn"]}
    values |= {"model.rope_sections": tuple(sections), "model.rope_reset": reset, "streams.{vectors}.rope_gap": gap}
    return Said("mot", values | mixtures.dotted(MODEL, DRAWN), OUTSIDE)


def _are_sections(sections: Any) -> bool:
    """Do they take their pairs in turn as `ops.axes_of_pairs` has it?"""
    fits = isinstance(sections, list | tuple) and len(sections) == 3 and all(type(n) is int for n in sections)
    return fits and sections[0] >= sections[1] == sections[2] >= 0


def rows(name: str, config: Config) -> tuple[Row, ...]:
    pictures = mixtures.drawn(config)
    return (
        Row("embed_tokens.weight", "embed/tokens", "same"),
        *mixtures.tower("text", "layers.{layer}", TEXT),
        *mixtures.tower(pictures, "layers.{layer}", PICTURES),
        Row("norm.weight", "final_norm/text/scale", "same"),
        Row("norm_moe_gen.weight", f"final_norm/{pictures}/scale", "same"),
        Row("lm_head.weight", "head/out", "transpose"),
        *mixtures.ends(pictures, ENDS),
    )


def faults(name: str, config: Config) -> Iterator[str]:
    yield from mixtures.faults(config, mixtures.dotted(MODEL, DRAWN))
    if not _are_sections(config.model.rope_sections):
        yield f"model.rope_sections: {config.model.rope_sections}; must be (a, b, b) with a no less than b"


def about(name: str, config: Config) -> dict[str, Any]:
    stream = config.streams[mixtures.drawn(config)]
    found = of_ours(FIELDS, config) | {FEATURES.theirs: stream.latent}
    found |= {"_class_name": name, "rope_axes_dim": list(config.model.rope_sections)}
    return found | {RESET: config.model.rope_reset, GAP: stream.rope_gap, "hidden_act": "silu", "timestep_scale": 0.001}


def alone(config: Config) -> dict[str, Any]:
    """Latents are said to be cut 2 by 2, as the publisher's are, where their features allow it."""
    P = config.streams[mixtures.drawn(config)].latent
    side = 1 if P % 4 else 2
    return {"latent_patch_size": side, "latent_channel": P // side**2, "sound_gen": False, "action_gen": False}
