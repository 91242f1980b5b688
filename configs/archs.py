"""Architectures as maps from streams to towers. mot itself knows none of these names."""

from collections.abc import Sequence

COMPONENTS = ("attn", "ffn", "norm")


def towers(arch: str, streams: Sequence[str]) -> dict[str, dict[str, str]]:
    """The three maps of a preset, written out.

    dense         one tower for all
    mot           everything apart: QKV, O, FFN, norms (2411.04996)
    mot_ffn       the FFN apart, the rest shared
    mot_attn_ffn  QKV, O and FFN apart, norms shared
    loo_<stream>  that stream apart, all others together (the paper's leave-one-out)
    """
    own = {s: s for s in streams}
    shared = dict.fromkeys(streams, streams[0])
    presets = {
        "dense": (shared, shared, shared),
        "mot": (own, own, own),
        "mot_ffn": (shared, own, shared),
        "mot_attn_ffn": (own, own, shared),
    }
    for s in streams:
        rest = [x for x in streams if x != s]
        one_out = {x: s if x == s else rest[0] for x in streams}
        presets[f"loo_{s}"] = (one_out, one_out, one_out)
    if arch not in presets:
        raise ValueError(f"arch={arch}: no such architecture; allowed: {', '.join(presets)}; choose one")
    return {component: dict(m) for component, m in zip(COMPONENTS, presets[arch], strict=True)}
