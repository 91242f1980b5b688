"""pi0 (2410.24164): PaliGemma's Gemma for text and images, a narrower expert for a state and actions, one attention.

Streams: `text`, `latents` (the features of SigLIP for each patch, made outside), `state` (one vector), and `chunk` (the
actions, which flow). Text and latents share a tower, state and chunk the other. Latents go through PaliGemma's
projector, which is their entry; a chunk's vectors and noise level through `action_time_mlp`. The prefix of images and
text is a block that does not see the state, which is a block of its own.

Outside of our model are the vision tower, and the expert's embedding, which nothing reads.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mot.config import Config
from mot.interop.families import text
from mot.interop.families.fields import flat, refuse, typed, unsaid, value_at
from mot.interop.families.rows import Row, Said

GEMMA = text.FAMILIES["gemma"]
MODEL = GEMMA.model | dict(tied=True)
VLM, EXPERT = "paligemma_with_expert.paligemma.model.", "paligemma_with_expert.gemma_expert."
OUTSIDE = (f"{VLM}vision_tower.", f"{EXPERT}lm_head.")
OF_IDS = (f"{EXPERT}lm_head.weight",)
NESTED = ("vlm_config", "text_config")
# As lerobot writes them: within another model, and the embedding as the head that it is tied to.
ALIASES = (
    (r"^model\.", ""),
    (r"^paligemma_with_expert\.paligemma\.lm_head\.", f"{VLM}language_model.model.embed_tokens."),
    (r"\.language_model\.(?!model\.)", ".language_model.model."),
)
# Of how it is trained and sampled; or of the file's own defaults.
IGNORED = {"chunk_size", "num_inference_steps", "loss_reduction", "vlm_config", "dit_config"}
ONLY = {
    "min_period": (0.004,),
    "max_period": (4.0,),
    "time_sampling_beta_alpha": (1.5,),
    "time_sampling_beta_beta": (1.0,),
    "time_sampling_scale": (0.999,),
    "time_sampling_offset": (0.001,),
}
# Both towers see as the block says; what a general configuration writes of labels and outputs changes nothing.
OF_TOWER = text.ONLY | {"use_bidirectional_attention": (True,), "is_causal": (True,), "hidden_act": (GEMMA.activation,)}
OF_TOWER |= {"hidden_activation": (GEMMA.activation,), "tie_word_embeddings": (True,)}
GENERAL = {"id2label", "label2id", "chunk_size_feed_forward", "return_dict", "num_image_tokens", "problem_type"}
SHARED = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta")
STREAMS = ("text", "chunk", "latents", "state")
READ = {"objective": "none", "entry.bias": True}
FLOWS = {"objective": "flow", "entry.bias": True, "diffusion.time": "mlp", "diffusion.time_distribution": "beta"}
FLOWS |= {"diffusion.copies": "noised", "diffusion.shift": 1.0, "diffusion.max_noise": 1.0}
OF_STREAMS = {
    "text": {"objective": "none"},
    "latents": READ,
    "state": READ | {"ends_prefix": True},
    "chunk": FLOWS,
}


def _tower(theirs: str, ours: str) -> tuple[Row, ...]:
    """The tensors of a Gemma whose names begin so, as those of one of our towers."""
    inside = [row for row in (*text.ENDS, *text.LAYER, *text.FFN) if row.theirs.startswith("model.")]
    return tuple(
        Row(
            theirs + row.theirs.removeprefix("model."),
            row.ours.replace("/text/", f"/{ours}/").format(stack="main"),
            row.transform,
        )
        for row in inside
    )


def _end(theirs: str, ours: str) -> tuple[Row, Row]:
    """A matrix with a bias, of what enters or leaves."""
    return Row(f"{theirs}.weight", f"latent/{ours}", "transpose"), Row(f"{theirs}.bias", f"latent/{ours}_bias", "same")


ROWS = (
    *_tower(f"{VLM}language_model.model.", "text"),
    *(row for row in _tower(f"{EXPERT}model.", "chunk") if row.ours != "embed/tokens"),
    *_end(f"{VLM}multi_modal_projector.linear", "latents/in"),
    *_end("state_proj", "state/in"),
    *_end("action_in_proj", "chunk/in"),
    *_end("action_time_mlp_in", "chunk/time_in"),
    *_end("action_time_mlp_out", "chunk/time_out"),
    *_end("action_out_proj", "chunk/out"),
)


def said(name: str, about: Mapping[str, Any], where: str) -> Said:
    text_, expert = (_nested(about, *path) for path in (("vlm_config", "text_config"), ("dit_config",)))
    vision = _nested(about, "vlm_config", "vision_config")
    widths = ("max_state_dim", "max_action_dim")
    faults = unsaid(about, IGNORED | {*widths}, ONLY)
    for path, given in (("vlm_config.text_config", text_), ("dit_config", expert)):
        faults += [f"{path}.{fault}" for fault in unsaid(given, {f.theirs for f in text.FIELDS} | GENERAL, OF_TOWER)]
    faults += [
        f"dit_config.{key}: {expert.get(key)!r}; allowed: {text_.get(key)!r}, as in vlm_config.text_config"
        for key in SHARED
        if expert.get(key) != text_.get(key)
    ]
    refuse(faults, where)
    given = dict(GEMMA.usual) | text_
    values = {field.ours: typed(field, given.get(field.theirs), where) for field in text.FIELDS}
    values |= {f"model.{key}": value for key, value in MODEL.items()} | {"data.blocks": "prefix"}
    for stream, own in OF_STREAMS.items():
        of = expert if stream in ("state", "chunk") else text_
        sizes = {"width": typed(text.FIELDS[0], of.get("hidden_size"), where)}
        sizes["ffn"] = typed(text.FIELDS[1], of.get("intermediate_size"), where)
        values |= {f"streams.{stream}.{key}": value for key, value in (sizes | own).items()}
    features = [(about, key) for key in widths] + [(vision, "hidden_size")]
    state, chunk, latents = (typed(text.Field(key, "", int), of.get(key), where) for of, key in features)
    return Said("loo_chunk+state", values, OUTSIDE, needs={"latents": latents, "state": state, "chunk": chunk})


def _nested(about: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """A configuration within another, flat; what it says of nothing is left out."""
    found: Any = about
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return {key: value for key, value in flat(found or {}).items() if value is not None}


def rows(name: str, config: Config) -> tuple[Row, ...]:
    return ROWS


def faults(name: str, config: Config) -> Iterator[str]:
    if {*config.streams} != {*STREAMS}:
        yield f"streams: {', '.join(config.streams)}; must be {', '.join(STREAMS)}"
        return
    for stream, own in OF_STREAMS.items():
        for key, wanted in own.items():
            if (found := value_at(config, f"streams.{stream}.{key}")) != wanted:
                yield f"streams.{stream}.{key}: {found!r}; must be {wanted!r}"
    if config.data.blocks != "prefix":
        yield f"data.blocks: {config.data.blocks!r}; must be 'prefix'"
    yield from text.unlike(config, MODEL)


def about(name: str, config: Config) -> dict[str, Any]:
    def of(stream: str) -> dict[str, Any]:
        sizes = {"hidden_size": config.streams[stream].width, "intermediate_size": config.streams[stream].ffn}
        return text.fields_of(config) | sizes

    widths = {"max_state_dim": config.streams["state"].latent, "max_action_dim": config.streams["chunk"].latent}
    found = {"architectures": ["PI0ForConditionalGeneration"], "dit_config": of("chunk")} | widths
    return found | {"vlm_config": {"text_config": of("text")}}
