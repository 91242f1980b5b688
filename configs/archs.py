"""Architectures: maps from streams to towers, and each tower's parameter sets. mot itself knows none of these names."""

import re
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from configs.base import Argument, meant, moe

COMPONENTS = ("attn", "ffn", "norm")
UNROUTED = {
    "dense": "one tower for all",
    "mot": "everything apart: QKV, O, FFN, norms (2411.04996)",
    "mot_ffn": "the FFN apart, the rest shared",
    "mot_attn_ffn": "QKV, O and FFN apart, norms shared",
    "mot_ends": "mot in the first third of layers and the last sixth, dense between (Uni-X, 2509.24365: 12, 6 of 36)",
    "mot_middle": "dense where mot_ends is mot, and mot where it is dense",
    "mot_role": "streams that are inputs only go with text, each that is generated apart (BAGEL, 2505.14683; Cosmos 3)",
    "loo_<stream>": "that stream apart, all others together (the paper's leave-one-out)",
    "loo_<stream>+<stream>": "these streams apart, in one tower, all others together",
}
ROUTED = {
    "moe_ec4": "4 FFNs, each chooses a quarter of a row's tokens: the MoT paper's baseline, which sees LATER tokens",
    "moe_tc4": "4 FFNs, a token chooses one",
    "moe_fine": "64 FFNs of a sixteenth, a token chooses 16",
    "mot_moe": "mot, 4 experts that choose in the first stream's FFN (text's)",
    "mot_moe_both": "mot, 4 experts that choose in every FFN",
    "learned_mot": "as many sets of QKV and O, and of FFNs, as mot has; a token chooses one of each",
    "moe_*_total, mot_moe*_total": "with as many parameters in all as mot has, by the experts' number and width",
}
ARGUMENT = Argument("mot", UNROUTED | ROUTED)


def choose(c: ConfigDict, arch: str) -> None:
    """Writes `towers`, `attn` and `ffn` of an architecture into a configuration whose streams and model are set.

    Those of UNROUTED have a single set in each tower; those of ROUTED have experts. `<name>_total`: where one tower has
    the attention of all, its experts get what mot spends on further attention, at equal active FLOPs; mot_moe's divide
    what mot has in one FFN, so that fewer are active.
    """
    name, total = arch.removesuffix("_total"), arch.endswith("_total")

    def by_id(s):
        return (c.streams[s].latent > 0, c.streams[s].first_id, s)  # ConfigDict sorts by name

    streams = sorted(c.streams, key=by_id)
    maps = dict.fromkeys(("moe_ec4", "moe_tc4", "moe_fine", "learned_mot"), "dense")
    maps |= dict.fromkeys(("mot_moe", "mot_moe_both"), "mot")
    routed = name in maps and arch != "learned_mot_total"  # learned_mot has that many as it is
    inputs = [s for s in streams if c.streams[s].objective == "none"]
    others = [*maps, "moe_*_total", "mot_moe*_total"]
    c.towers = towers(maps[name] if routed else arch, streams, others, inputs, c.model.layers)
    # dict(queries="action", keys="text"): action's loss stops before text's keys and values
    c.towers.stop_gradients = ()
    c.attn, c.ffn = ({t: moe() for t in _named(c.towers[component], streams)} for component in ("attn", "ffn"))
    if not routed:
        return
    first = streams[0]
    width = c.streams[first].ffn
    choosing = dict(router="expert", score="sigmoid")
    chosen = dict(router="token", score="softmax", balance="loss", balance_rate=0.01, z_loss=1e-3)
    if name.startswith("moe_"):
        active, options = {"moe_ec4": (1, choosing), "moe_tc4": (1, chosen), "moe_fine": (16, chosen)}[name]
        experts = 64 if name == "moe_fine" else 4
        each = width // active
        if total:
            # Of mot's parameters, the FFNs and what it has in attention beyond one tower's; the FFN's three matrices.
            attention = 2 * (c.model.heads + c.model.kv_heads) * c.model.head_size
            room = len(streams) * width + (len(streams) - 1) * attention / 3
            active = max(active, 2)  # halves come closer than wholes
            experts = round(active * room / width)
            each = round(room / experts)
        c.ffn[first] = moe(experts, active=active, width=each, normalise=name == "moe_fine", **options)
    elif name == "learned_mot":
        c.attn[first] = moe(len(streams), **chosen)
        c.ffn[first] = moe(len(streams), width=width, **chosen)
    else:
        for stream in streams if name == "mot_moe_both" else [first]:
            c.ffn[stream] = moe(4, width=c.streams[stream].ffn // (4 if total else 1), **choosing)


def towers(
    arch: str, streams: Sequence[str], others: Sequence[str] = (), inputs: Sequence[str] = (), layers: int = 0
) -> dict[str, dict[str, str]]:
    """The three maps of one of UNROUTED, written out. `inputs` are the streams that nothing is learned of."""
    own = {s: s for s in streams}
    shared = dict.fromkeys(streams, streams[0])
    first, between, _ = ends(layers)
    last = first + between
    apart_at_ends = {s: _ranges((0, first, s), (first, last, streams[0]), (last, layers, s)) for s in streams}
    apart_between = {s: _ranges((0, first, streams[0]), (first, last, s), (last, layers, streams[0])) for s in streams}
    by_role = {s: streams[0] if s in inputs else s for s in streams}
    presets = {
        "dense": (shared, shared, shared),
        "mot": (own, own, own),
        "mot_ffn": (shared, own, shared),
        "mot_attn_ffn": (own, own, shared),
        "mot_ends": (apart_at_ends,) * 3,
        "mot_middle": (apart_between,) * 3,
        "mot_role": (by_role,) * 3,
    }
    several = arch.removeprefix("loo_").split("+")
    for out in [*([s] for s in streams), *([several] if {*several} < {*streams} else [])]:
        first_out, first_in = (next((s for s in streams if (s in out) is gone), "") for gone in (True, False))
        left_out = {s: first_out if s in out else first_in for s in streams}
        presets[f"loo_{'+'.join(out)}"] = (left_out, left_out, left_out)
    if arch not in presets:
        remedy = meant(arch, [*presets, *others]) or "; choose one"
        raise ValueError(f"arch={arch}: no such architecture; allowed: {', '.join([*presets, *others])}{remedy}")
    if arch == "mot_role" and not inputs:
        raise ValueError(f"arch={arch}: none of {', '.join(streams)} is an input only, so it would be mot; choose that")
    return {component: dict(m) for component, m in zip(COMPONENTS, presets[arch], strict=True)}


def ends(layers: int) -> tuple[int, int, int]:
    """Of mot_ends the first layers, those between and the last: a third, a half and a sixth; some are between."""
    first = min(max(layers // 3, 1), layers - 1)
    last = min(max(layers // 6, 1), layers - first - 1)
    return first, layers - first - last, last


def _ranges(*parts: tuple[int, int, str]) -> str:
    """`0:4 image, 4:24 text`; one tower for all layers is its name alone, and a part without layers is left out."""
    parts = [part for part in parts if part[0] < part[1]]
    if len({tower for *_, tower in parts}) < 2:
        return parts[0][2] if parts else ""
    return ", ".join(f"{first}:{end} {tower}" for first, end, tower in parts)


def _named(towers: Mapping[str, str], streams: Sequence[str]) -> list[str]:
    """The streams that some tower is called by, in order."""
    words = {word for written in towers.values() for word in re.findall(r"\w+", written)}
    return [s for s in streams if s in words]
