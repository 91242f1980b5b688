"""Architectures: maps from streams to towers, and each tower's parameter sets. mot itself knows none of these names."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from configs.base import Argument, meant, moe

COMPONENTS = ("attn", "ffn", "norm")
UNROUTED = {
    "dense": "one tower for all",
    "mot": "everything apart: QKV, O, FFN, norms (2411.04996)",
    "mot_ffn": "the FFN apart, the rest shared",
    "mot_attn_ffn": "QKV, O and FFN apart, norms shared",
    "loo_<stream>": "that stream apart, all others together (the paper's leave-one-out)",
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
    c.towers = towers(maps[name] if routed else arch, streams, [*maps, "moe_*_total", "mot_moe*_total"])
    # dict(queries="action", keys="text"): action's loss stops before text's keys and values
    c.towers.stop_gradients = ()
    c.attn, c.ffn = ({t: moe() for t in c.towers[component].values()} for component in ("attn", "ffn"))
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


def towers(arch: str, streams: Sequence[str], others: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """The three maps of one of UNROUTED, written out."""
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
        remedy = meant(arch, [*presets, *others]) or "; choose one"
        raise ValueError(f"arch={arch}: no such architecture; allowed: {', '.join([*presets, *others])}{remedy}")
    return {component: dict(m) for component, m in zip(COMPONENTS, presets[arch], strict=True)}
