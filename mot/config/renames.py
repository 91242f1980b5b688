"""Keys that earlier versions named otherwise, or lacked: a run written then is read with the keys of now."""

import fnmatch
from collections.abc import Mapping

# Dotted keys, `*` for any one part; the new name replaces the last part.
RENAMED = {
    "streams.*.longest": "max_tokens",
    "streams.*.diffusion.times": "time_distribution",
    "streams.*.diffusion.cap": "max_noise",
    "streams.*.diffusion.drop": "drop_rate",
    "streams.*.diffusion.centre": "loss_centre",
    "towers.walls": "stop_gradients",
    "attn.*.wins": "overflow",
    "ffn.*.wins": "overflow",
    "data.most_left_out": "max_skipped",
}

# Keys that came later, and what a run without them did; `*` for any one part.
ADDED = {
    "run.flops": 0.0,
    "run.save_minutes": 0.0,
    "run.keep_every": 0,
    "run.keep_best": "",
    "run.probe_every": 0,
    "run.check_every": 0,
    "run.hang_timeout": 3600.0,
    "run.peer_timeout": 60.0,
    "run.trackers": "",
    "run.role": "fit",
    "streams.*.entry": {"kind": "linear", "bias": False, "fold": 1, "queries": 0, "layers": 0},
    "streams.*.entry.bias": False,
    "streams.*.diffusion.time_features": "small",
    "streams.*.diffusion.time_of_clean": False,
    "streams.*.cross_every": 0,
    **dict.fromkeys(("attn.*.weight_scale", "ffn.*.weight_scale"), 1.0),
    **dict.fromkeys(("attn.*.groups", "ffn.*.groups", "attn.*.active_groups", "ffn.*.active_groups"), 1),
    **dict.fromkeys(("attn.*.balance_loss", "ffn.*.balance_loss"), 0.0),
    "model.dropout": 0.0,
    "model.activation": "swiglu",
    "model.norm_offset": False,
    "model.embed_scale": False,
    "model.qkv_bias": False,
    "init.state": "weights",
    "init.deeper": "",
    "init.wider": "",
    "init.match": "",
    "optim.skip_above": 0.0,
    "optim.name": "adamw",
    "optim.muon": "/w[qkvo123]$|/shared_w",
    "optim.momentum": 0.95,
    "optim.transfer": "",
    "optim.base_width": 0,
    "optim.base_head_size": 0,
    "optim.base_layers": 0,
    "streams.*.representation": "",
    "streams.*.ends_prefix": False,
    "data.roles": (),
    "objective.contrastive": {
        "kind": "",
        "weight": 1.0,
        "streams": "text,image",
        "pool": "mean",
        "width": 256,
        "pairs": 0,
        "temperature": 0.07,
        "bias": -10.0,
        "skip_equal": False,
    },
    "objective.common_target": 0.0,
    "optim.ema_end": 0.0,
    "optim.reduce_dtype": "float32",
    "streams.*.prediction": {
        "targets": "ema",
        "sigreg": 0.0,
        "slices": 256,
        "columns": 1,
        "blocks": 4,
        "least_block": 0.15,
        "most_block": 0.2,
        "least_aspect": 0.75,
        "most_aspect": 1.5,
        "least_context": 0.85,
        "most_context": 1.0,
        "layers": 2,
        "width": 64,
        "ffn": 176,
    },
    "streams.*.masking": dict(
        by="unit",
        distribution="uniform",
        least=1e-3,
        most=1.0,
        weighting="elbo",
        shift=False,
        before_text=0.0,
        drop_rate=0.0,
    ),
    "model.query_size": 0,
    "model.attention_cap": 0.0,
    "model.logits_cap": 0.0,
    "model.rope_features": 0,
    "model.rope_scaling": dict(kind="", factor=1.0, length=0, least_turns=0.0, most_turns=0.0, amplitude=1.0),
    "model.rope_sections": (),
    "model.rope_interleaved": False,
    "model.rope_time_last": False,
    "model.rope_reset": False,
    "model.rope_per_second": 0.0,
    "streams.*.place_table": 0,
    "streams.*.rope_seconds": 0.0,
    "streams.*.rope_gap": 0,
}


def renamed(key: str) -> str:
    """What a dotted key is called now; "" where it never had another name."""
    for old, new in RENAMED.items():
        if key.count(".") == old.count(".") and fnmatch.fnmatchcase(key, old):
            return ".".join([*key.split(".")[:-1], new])
    return ""


def modern(tree: Mapping, path: str = "") -> tuple[dict, list[str]]:
    """The tree with the keys of now, and `old -> new` for each that was another. New names win over old ones."""
    result, told = {}, []
    for name, value in tree.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            value, below = modern(value, key)
            told += below
        now = renamed(key)
        if now:
            told.append(f"{key} -> {now}")
        result.setdefault(now.rpartition(".")[2] or name, value)
    for key, value in ADDED.items():
        section, _, name = key.rpartition(".")
        if section.count(".") == path.count(".") and fnmatch.fnmatchcase(path, section):
            result.setdefault(name, value)
    return result, told
