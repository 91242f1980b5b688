"""BAGEL (2505.14683) as its public repository writes it: text, and pictures that are drawn as latents of FLUX.1's VAE.

A picture's latent `[channels, height, width]` becomes tokens of `latent_patch_size` by as many of its pixels, whose
features lie row, column, channel. A whole picture has one place of RoPE. What it reads pictures by (`vit_model`,
`connector`, `vit_pos_embed`) is outside of our model. Two things are otherwise here, of the data and not of the
weights: there the markers around a picture see all of it and have its place, and each of its copies has its own.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mot.config import Config
from mot.interop.families import mixtures
from mot.interop.families.fields import DECODER, Field, flat, of_ours, refuse, typed, unsaid
from mot.interop.families.rows import Row, Said
from mot.interop.families.text import OF_WINDOWS

STEM = "ema"
USUAL = dict(rms_norm_eps=1e-6, rope_theta=1e6)
ONLY = {
    "attention_dropout": (0,),
    "use_sliding_window": (False,),
    "rope_scaling": (),
    "hidden_act": ("silu",),
    "qk_norm": (True,),
    "layer_module": ("Qwen2MoTDecoderLayer",),
    "is_causal": (True,),
    "quantization_config": (),
}
SIDES = (Field("max_latent_size", "streams.{vectors}.place_table", int), Field("latent_patch_size", "", int))
USUAL_SIDES = dict(max_latent_size=64, latent_patch_size=2)
CHANNELS = 16
TIED = {"tie_word_embeddings"}  # its own code ties nothing, whatever is written
ONLY_OF_ALL = {"visual_gen": (True,), "interpolate_pos": (False,), "quantization_config": ()}
# Of what reads pictures, of the autoencoder, and of how noise levels are drawn.
ASIDE = {"vit_config", "vae_config", "connector_act", "vit_max_num_patch_per_side", "visual_und", "timestep_shift"}
MODEL = mixtures.MODEL | dict(qkv_bias=True, rope_interleaved=False, rope_reset=False)
DRAWN = mixtures.DRAWN | {"diffusion.time_of_clean": True, "rope_gap": 0}
NESTED = ("llm_config",)
OUTSIDE = ("vit_model.", "connector.", "vit_pos_embed.")  # by which it reads pictures

AT = "language_model.model.layers.{layer}"
TEXT = {
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "w1": "mlp.gate_proj",
    "w3": "mlp.up_proj",
    "w2": "mlp.down_proj",
    "attn": "input_layernorm",
    "ffn": "post_attention_layernorm",
}


def _of_pictures(theirs: str) -> str:
    """`mlp.up_proj` becomes `mlp_moe_gen.up_proj`, the others have it at their end."""
    whole, _, part = theirs.partition(".")
    return f"mlp_moe_gen.{part}" if whole == "mlp" else f"{theirs}_moe_gen"


PICTURES = {weight: _of_pictures(theirs) for weight, theirs in TEXT.items()}
ENDS = {"in": "vae2llm", "out": "llm2vae", "time_in": "time_embedder.mlp.0", "time_out": "time_embedder.mlp.2"}


def said(name: str, about: Mapping[str, Any], where: str) -> Said:
    given = {key: value for key, value in about.items() if value is not None}
    llm, vae = given.pop("llm_config", None), given.get("vae_config", {})
    if not isinstance(llm, Mapping) or not isinstance(vae, Mapping):
        refuse(["llm_config, vae_config: objects are needed, as in the publisher's config.json"], where)
    llm = {key: value for key, value in flat(llm).items() if value is not None}
    known = {field.theirs for field in SIDES} | ASIDE
    faults = unsaid(given, known, ONLY_OF_ALL)
    faults += [f"llm_config.{fault}" for fault in unsaid(llm, {f.theirs for f in DECODER} | OF_WINDOWS | TIED, ONLY)]
    refuse(faults, where)
    values = {field.ours: typed(field, (USUAL | llm).get(field.theirs), where) for field in DECODER}
    table, side = (typed(field, (USUAL_SIDES | given).get(field.theirs), where) for field in SIDES)
    channels = typed(Field("z_channels", "", int), vae.get("z_channels", CHANNELS), where)
    head_size = values["streams.text.width"] // values["model.heads"]
    values |= {"model.head_size": head_size, "model.rope_sections": (head_size // 2, 0, 0)}
    values |= {"streams.{vectors}.width": values["streams.text.width"]}
    values |= {"streams.{vectors}.ffn": values["streams.text.ffn"]}
    values |= {"streams.{vectors}.latent": channels * side**2, "streams.{vectors}.place_table": table}
    values |= {"streams.{vectors}.diffusion.copies": "both"}
    return Said("mot", values | mixtures.dotted(MODEL, DRAWN), OUTSIDE)


def rows(name: str, config: Config) -> tuple[Row, ...]:
    pictures = mixtures.drawn(config)
    return (
        Row("language_model.model.embed_tokens.weight", "embed/tokens", "same"),
        *mixtures.tower("text", AT, TEXT),
        *mixtures.biases("text", AT, TEXT),
        *mixtures.tower(pictures, AT, PICTURES),
        *mixtures.biases(pictures, AT, PICTURES),
        Row("language_model.model.norm.weight", "final_norm/text/scale", "same"),
        Row("language_model.model.norm_moe_gen.weight", f"final_norm/{pictures}/scale", "same"),
        Row("language_model.lm_head.weight", "head/out", "transpose"),
        *mixtures.ends(pictures, ENDS),
        Row("latent_pos_embed.pos_embed", f"latent/{pictures}/rows", "rows"),
        Row("latent_pos_embed.pos_embed", f"latent/{pictures}/columns", "columns"),
    )


def faults(name: str, config: Config) -> Iterator[str]:
    yield from mixtures.faults(config, mixtures.dotted(MODEL, DRAWN))
    m = config.model
    if m.rope_sections != (m.head_size // 2, 0, 0):
        yield f"model.rope_sections: {m.rope_sections}; must be ({m.head_size // 2}, 0, 0)"
    if m.heads * m.head_size != config.streams["text"].width:
        yield f"model.head_size: {m.head_size}; {m.heads} heads must fill the width, {config.streams['text'].width}"
    if (pictures := mixtures.drawn(config)) and not config.streams[pictures].place_table:
        yield f"streams.{pictures}.place_table: 0; must be above 0"


def about(name: str, config: Config) -> dict[str, Any]:
    stream = config.streams[mixtures.drawn(config)]
    llm = of_ours(DECODER, config)
    llm |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "layer_module": "Qwen2MoTDecoderLayer"}
    llm |= {"hidden_act": "silu", "qk_norm": True, "tie_word_embeddings": False}
    found = {"architectures": ["BagelForConditionalGeneration"], "llm_config": llm, "visual_gen": True}
    return found | {"max_latent_size": stream.place_table, "interpolate_pos": False}


def alone(config: Config) -> dict[str, Any]:
    """Nothing reads pictures. Latents are said to be cut 2 by 2, as the publisher's are, where their features allow."""
    P = config.streams[mixtures.drawn(config)].latent
    side = 1 if P % 4 else 2
    return {"visual_und": False, "latent_patch_size": side, "vae_config": {"z_channels": P // side**2, "downsample": 8}}
