"""What a run's towers and experts amount to: the names of configs/archs.py, which a run does not keep, and colours.

A model that none of these names is spelt out, so that no label is wrong. A test holds these names and those of
configs/archs.py, of published slopes and of the planner's table equal.
"""

from mot.config import COMPONENTS, Config, Experts, depth
from mot.config.routers import ROUTERS

# (what the maps amount to, the experts of its towers) -> name
NAMED = {
    ("dense", "ffn:ec4"): "moe_ec4",
    ("dense", "ffn:tc4"): "moe_tc4",
    ("dense", "ffn:tc64a16w1"): "moe_fine",
    ("mot", "ffn.text:ec4"): "mot_moe",
    ("mot", "ffn.text:ec4 ffn.image:ec4"): "mot_moe_both",
}
# Okabe and Ito's colours, which the colour-blind tell apart; all are legible on white and on near-black.
COLOURS = {
    "dense": "#0072B2",
    "mot": "#D55E00",
    "mot_ffn": "#009E73",
    "mot_attn_ffn": "#CC79A7",
    "moe_ec4": "#E69F00",
    "moe_tc4": "#56B4E9",
    "mot_moe": "#B8A800",
    "moe_fine": "#999999",
}


def name(config: Config) -> str:
    """What the maps and the experts amount to, as configs/archs.py names it where it has a name.

    dense, mot, mot_ffn, mot_attn_ffn, loo_<stream>, mot_ends, mot_middle, or the maps themselves, by ranges of layers
    where these differ, as `mot 0:4, dense 4:24`. A tower with experts is named with how they
    are chosen (ec: experts choose, tc: tokens do, else the router's own name), how many there are, how many are active
    if not one (`a2`), their width in sixteenths of the dense FFN's if it is another (`w1`), and what is not usual.
    """
    towers = maps(config)
    marks = []
    for component in ("attn", "ffn"):
        experts_of = config.component(component).experts
        for tower, experts in ((s, experts_of[s]) for s in config.streams if s in experts_of):
            if experts.experts:
                mark = f"{ROUTERS[experts.router].short}{experts.experts}"
                mark += f"a{experts.active}" if experts.active > 1 else ""
                sixteenths = 16 * experts.width / config.streams[tower].ffn
                mark += f"w{sixteenths:.3g}" if sixteenths not in (0, 16) else ""
                marks.append((component, tower, mark + _unusual(experts)))
    if not marks:
        return towers
    learned = f"attn:tc{len(config.streams)} ffn:tc{len(config.streams)}"

    def single(component):
        return len(config.component(component).towers) == 1

    spelt = " ".join(f"{c}:{mark}" if single(c) else f"{c}.{t}:{mark}" for c, t, mark in marks)
    named = NAMED | {("dense", learned): "learned_mot"}
    return named.get((towers, spelt)) or f"{towers} {spelt}"


def _unusual(experts: Experts) -> str:
    """`,capacity=1.25` of experts that differ in it from what is usual with their router."""
    usual = ROUTERS[experts.router].usual
    return "".join(f",{key}={getattr(experts, key)}" for key, value in usual.items() if getattr(experts, key) != value)


def maps(config: Config) -> str:
    """Which streams share a tower, as configs/archs.py names it where it has a name: experts are not looked at."""
    written = {(c, stream): text for c in COMPONENTS for stream, text in config.component(c).written.items()}
    by_layers = {layers: _of_layers(served, list(config.streams)) for layers, served in depth.parts(written).items()}
    if len(by_layers) == 1:
        return by_layers.popitem()[1]
    ends = [int(layers.partition(":")[2]) for layers in by_layers]
    if [end - first for first, end in zip([0, *ends], ends, strict=False)] == [n for n in untied_ends(ends[-1]) if n]:
        shapes = list(by_layers.values())
        for name, outer, inner in (("mot_ends", "mot", "dense"), ("mot_middle", "dense", "mot")):
            if shapes == [outer, inner, outer][: len(shapes)]:
                return name
    return ", ".join(f"{name} {layers}" for layers, name in by_layers.items())


def untied_ends(layers: int) -> tuple[int, int, int]:
    """Of mot_ends the first layers, those between and the last: a third and a sixth, as configs/archs.py has them."""
    first = min(max(layers // 3, 1), layers - 1)
    last = min(max(layers // 6, 1), layers - first - 1)
    return first, layers - first - last, last


def _of_layers(served: dict[tuple[str, str], str], streams: list[str]) -> str:
    """The name of what the maps of some layers amount to; `served` is the tower by component and stream."""
    parts = {}  # component -> the streams that share a tower, as a set of sets
    for component in COMPONENTS:
        mapping = {stream: tower for (c, stream), tower in served.items() if c == component}
        parts[component] = frozenset(frozenset(s for s in streams if mapping[s] == t) for t in mapping.values())
    one, own = frozenset([frozenset(streams)]), frozenset(frozenset([s]) for s in streams)
    shapes = {
        (one, one, one): "dense",
        (own, own, own): "mot",
        (one, own, one): "mot_ffn",
        (own, own, one): "mot_attn_ffn",
    }
    for s in streams if len(streams) > 2 else []:
        out = frozenset([frozenset([s]), frozenset(streams) - {s}])
        shapes[out, out, out] = f"loo_{s}"

    def spell(part):
        return "|".join(sorted("+".join(sorted(group)) for group in part))

    return shapes.get(tuple(parts.values())) or " ".join(f"{c}:{spell(p)}" for c, p in parts.items())
