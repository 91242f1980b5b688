"""RoPE of a `config.json` whose wavelengths are stretched, as `model.rope_scaling`, and back."""

import math
from collections.abc import Mapping
from typing import Any

from mot.config import RopeScaling
from mot.interop.families.fields import is_number

# By transformers' `rope_type`: its fields and the keys of ours that they are. A field that is absent has its own value
# in USUAL; it must be there where it has none.
FIELDS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "length",
        "low_freq_factor": "least_turns",
        "high_freq_factor": "most_turns",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "length",
        "beta_slow": "least_turns",
        "beta_fast": "most_turns",
        "attention_factor": "amplitude",
    },
}
USUAL = {"yarn": {"beta_slow": 1.0, "beta_fast": 32.0}}
ONLY = {"partial_rotary_factor": (1,), "truncate": (True,)}  # other fields, and the values that can be said


def said(scaling: Any) -> tuple[dict[str, Any], list[str]]:
    """The values of `model.rope_scaling` by dotted key, and what cannot be said of it."""
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, Mapping) else scaling
    if kind is None or kind == "default":
        return {}, []
    if not isinstance(kind, str) or kind not in FIELDS:
        return {}, [f"rope_scaling: {scaling!r:.80}; allowed: null, or of rope_type {', '.join(FIELDS)}"]
    given = USUAL.get(kind, {}) | {key: value for key, value in scaling.items() if value is not None}
    scale = {key: given.pop(key, None) for key in ("mscale", "mscale_all_dim")}
    if kind == "yarn" and is_number(given.get("factor")):
        given.setdefault("attention_factor", _amplitude(given["factor"], scale))
    faults = []
    for key in given.keys() - FIELDS[kind].keys() - {"rope_type", "type", "rope_theta"}:
        if given[key] not in ONLY.get(key, ()):
            allowed = " or ".join(map(repr, ONLY.get(key, ()))) or f"no such field of {kind}"
            faults.append(f"rope_scaling.{key}: {given[key]!r:.80}; allowed: {allowed}")
    for key in FIELDS[kind]:
        if not is_number(given.get(key)):
            faults.append(f"rope_scaling.{key}: {given.get(key)!r:.80}; must be a number above 0")
    values = {f"model.rope_scaling.{ours}": given.get(key) for key, ours in FIELDS[kind].items()}
    return values | {"model.rope_scaling.kind": kind}, faults


def _amplitude(factor: float, scale: Mapping[str, Any]) -> float:
    """YaRN's (2309.00071, equation 22); DeepSeek's has two weights of the logarithm, of which one is divided out."""

    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    above, below = (scale[key] for key in ("mscale", "mscale_all_dim"))
    return grown(above) / grown(below) if is_number(above) and is_number(below) else grown(1.0)


def about(theta: float, scaling: RopeScaling) -> dict[str, Any]:
    """What transformers 5 calls `rope_parameters`."""
    fields = {theirs: getattr(scaling, ours) for theirs, ours in FIELDS.get(scaling.kind, {}).items()}
    return {"rope_type": scaling.kind or "default", "rope_theta": theta} | fields
