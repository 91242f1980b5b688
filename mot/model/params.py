"""One row per parameter: the table from which initial values, counts, freezing and checkpoints are read.

Paths are the public interface: `blocks/<stack>/<component>/<tower>/<weight>`, leading axis L always. The table needs no
JAX, which takes seconds to import; so a configuration is judged without.
"""

import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import NamedTuple

from mot.config import COMPONENTS, Config, Experts, Sections, Stream, Towers


class Spec(NamedTuple):
    shape: tuple[int, ...]
    axes: tuple[str, ...]  # logical: embed, vocab, heads, kv_heads, head, mlp, layer, expert, router, gate
    std: float | None = None  # of a normal distribution; None means ones (a norm's scale) ...
    fill: float = 1.0  # ... or another constant
    lr: float = 1.0  # factor on its learning rate, not on its decay
    multiplier: float = 1.0  # of queries (wq), of a branch (wo, w2), of the logits of a tied embedding
    decay: float = 1.0  # factor on its decay


Table = dict[str, Spec]


class Path(NamedTuple):
    """What a parameter's path says: `blocks/<stack>/<component>/<tower>/<weight>`, and those outside the blocks."""

    stack: str  # of layers that are alike, as `config.stacks` names it; "" outside the blocks
    component: str  # one of PARTS; of the final norm it is norm
    tower: str  # of what is a stream's own (BY_STREAM) the stream; of embedding and head the component once more
    weight: str


def parse(path: str) -> Path:
    match path.split("/"):
        case ["blocks", stack, component, tower, weight]:
            return Path(stack, component, tower, weight)
        case ["final_norm", tower, weight]:
            return Path("", "norm", tower, weight)
        case ["latent" | "contrast" | "cross" as component, stream, weight]:
            return Path("", component, stream, weight)
        case ["predictor", stream, *_, weight]:
            return Path("", "predictor", stream, weight)
        case [component, weight]:
            return Path("", component, component, weight)
    raise ValueError(f"{path!r} is no path of a parameter")


def table(config: Config) -> Table:
    """Every parameter of the model `config` describes, by path."""
    V = config.vocab
    D = next(iter(config.streams.values())).width  # of ids; the first stream has them
    rows: Table = {"embed/tokens": Spec((V, D), ("vocab", "embed"), scale(D))}
    for stack in dict.fromkeys(config.stacks):
        layers = config.stacks.count(stack)
        for path, spec in _layer(config, stack):
            rows[f"blocks/{stack}/{path}"] = spec._replace(shape=(layers, *spec.shape), axes=("layer", *spec.axes))
    for name in config.crossed:
        rows |= {f"cross/{name}/{weight}": spec for weight, spec in _cross(name, config)}
    for tower in _towers(config.last_norms):
        rows[f"final_norm/{tower}/scale"] = _scale(config, config.streams[tower].width, WHOLE)
    for name, stream in config.streams.items():
        rows |= {f"latent/{name}/{weight}": spec for weight, spec in _ends(stream, config)}
        if stream.predicts:
            rows |= {f"predictor/{name}/{path}": spec for path, spec in _predictor(config, name)}
    if not config.model.tied:
        rows["head/out"] = Spec((D, V), ("embed", "vocab"), scale(D))
    rows |= {f"contrast/{path}": spec for path, spec in _contrast(config)}
    if not config.optim.transfer:
        return rows
    return {path: _transferred(path, spec, config) for path, spec in rows.items()}


def scale(n: int) -> float:
    return max(n, 1) ** -0.5  # of fan-in n; sizes may not have been checked yet


WHOLE = "scale"  # of norms: not split, as gathering so little in every layer would take longer than keeping it
WIDE = {"embed", "narrow", "heads", "kv_heads", "mlp"}  # axes that grow with the width


def sides(spec: Spec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a matrix that it sums over (its fan-in), and those that it makes; layers and experts are neither."""
    own = tuple(i for i, axis in enumerate(spec.axes) if axis not in ("layer", "expert"))
    split = 2 if spec.axes[own[0]] == "heads" else 1  # wo sums over all heads' features
    return own[:split], own[split:]


def is_hidden(spec: Spec) -> bool:
    """Is it a matrix from width to width, such as a block's q, k, v, o and FFN?"""
    ins, outs = (WIDE & {spec.axes[i] for i in side} for side in sides(spec))
    return spec.std is not None and bool(ins and outs)


def _transferred(path: str, spec: Spec, config: Config) -> Spec:
    """A parameter's row by muP: what is tuned at `optim.base_width` then serves every width. At the base it is as ever.

    r is the width of the parameter's tower over the base's: towers may differ. FFNs' and experts' hidden units grow
    with it, fan-in and fan-out of an expert are its own, and the heads of all grow with the first stream. By what a
    matrix sums over and what it makes (2203.03466, tables 3 and 8, for Adam):

    from    to      which                                       initial std          rate
    finite  wide    embedding, latents' in, queries of a        as at the base       1
                    resampler, time to width, ada, and the
                    token for what is hidden
    wide    wide    q, k, v, o, w1, w2, w3, of experts, of a    fan-in ** -0.5       1 / r
                    resampler and of cross-attention too, in_2,
                    the hidden layer of causal routers, and
                    what enters and leaves a predictor
    wide    finite  untied head, latents' out, routers (causal  fan-in ** -0.5       1 / r
                    too), gate of shared experts                * r ** -0.5
    finite  finite  the small MLP of noise levels               as ever              1
    vectors         norms', queries' and keys' scales, biases   as ever              1

    A tied embedding is one from finite to wide, and its logits are multiplied by 1 / r (table 8). With
    `model.embed_scale` the root of the width grows by r ** 0.5, and the embedding itself, its rate and a tied head's
    logits have the inverse of it, so that what enters and what leaves are as without. Scores of attention
    fall as 1 / head size, not as its root, beyond `optim.base_head_size`: queries are multiplied, after their norm.
    Experts and routers: 2508.09752. Muon's matrices have a rate of r ** -0.5, as what moves them has a spectral norm of
    width ** 0.5 (2310.17813; `optim.py`).

    With `optim.base_layers` depth follows CompleteP (2505.01618, alpha 1): each branch is multiplied by base_layers /
    layers, and the last matrix of a branch begins as at the base's depth. Adam's eps is not scaled; gradients must stay
    far above it. Decay: `optim.make`.
    """
    o = config.optim
    if spec.std is None:
        return spec
    ins, outs = ({spec.axes[i] for i in side} for side in sides(spec))
    r = _growth(path, "heads" if "heads" in ins else "embed", config)
    if path == "embed/tokens":
        tied = config.model.tied
        if config.model.embed_scale:
            return spec._replace(lr=r**-0.5, multiplier=r**-0.5 if tied else 1.0)
        return spec._replace(std=spec.std * r**0.5, multiplier=1 / r if tied else 1.0)
    if not ins & WIDE:
        return spec
    if not outs & WIDE:
        return spec._replace(std=spec.std * r**-0.5, lr=1 / r)
    _, component, _, weight = parse(path)
    spec = spec._replace(lr=r**-0.5 if by_muon(path, spec, config) else 1 / r)
    if component in ("latent", "cross"):
        return spec  # an entry has its own depth, a cross-attention its gates: neither has a multiplier
    if weight == "wq" and o.base_head_size:
        return spec._replace(multiplier=(o.base_head_size / config.model.head_size) ** 0.5)
    if outs == {"embed"} and o.base_layers and parse(path).component != "predictor":
        deeper = config.model.layers / o.base_layers
        return spec._replace(std=spec.std * deeper**0.5, multiplier=1 / deeper)
    return spec


def _growth(path: str, axis: str, config: Config) -> float:
    """How many times as wide as the base's a parameter's tower is; of heads, which all towers share, the first's."""
    first = next(iter(config.streams))
    name = first if axis == "heads" else parse(path).tower
    return config.streams.get(name, config.streams[first]).width / max(config.optim.base_width, 1)


def by_muon(path: str, spec: Spec, config: Config) -> bool:
    """Is it a matrix that Muon moves? The others are moved by Adam."""
    o = config.optim
    return o.name == "muon" and is_hidden(spec) and re.search(o.muon, path) is not None


def multipliers(config: Config) -> dict[str, float]:
    """The multipliers that are not 1, by `component/tower/weight`: layers of all stacks have the same."""
    found = {parse(path): spec.multiplier for path, spec in table(config).items() if spec.multiplier != 1}
    return {f"{p.component}/{p.tower}/{p.weight}": multiplier for p, multiplier in found.items() if p.stack}


def _ends(stream: Stream, config: Config) -> Iterator[tuple[str, Spec]]:
    """How a stream's vectors, and their noise level, enter, and how what is predicted of them leaves."""
    if not stream.latent:
        return
    P, D = stream.features, stream.width
    if stream.entry.kind == "linear":
        yield "in", Spec((P, D), ("latent", "embed"), scale(P))
        if stream.entry.bias:
            yield "in_bias", Spec((D,), ("embed",), None, 0.0)
    elif stream.entry.kind == "none":
        pass  # they are residuals already
    elif stream.entry.kind == "mlp":  # its hidden units are as many as its tokens are wide
        yield "in", Spec((P, D), ("latent", "mlp"), scale(P))
        yield "in_bias", Spec((D,), ("mlp",), None, 0.0)
        yield "in_2", Spec((D, D), ("mlp", "embed"), scale(D))
        yield "in_2_bias", Spec((D,), ("embed",), None, 0.0)
    else:
        yield from _resampler(stream, config)
    if stream.place_table:
        for table in ("rows", "columns"):
            yield table, Spec((stream.place_table, D), ("place", "embed"), scale(D))
    if stream.diffuses:
        yield "out", Spec((D, P), ("embed", "latent"), scale(D))
        if stream.entry.bias:
            yield "out_bias", Spec((P,), ("latent",), None, 0.0)
        yield from _time(stream)


def _time(stream: Stream) -> Iterator[tuple[str, Spec]]:
    """The two layers that read a noise level's waves, alone or beside the vectors."""
    features, axis = (ADA, "ada") if by_norm(stream) else (stream.width, "embed")
    if stream.diffusion.time == "mlp":
        D = stream.width
        yield "time_in", Spec((2 * D, D), ("embed", "mlp"), scale(2 * D))
        yield "time_in_bias", Spec((D,), ("mlp",), None, 0.0)
        yield "time_out", Spec((D, D), ("mlp", "embed"), scale(D))
        yield "time_out_bias", Spec((D,), ("embed",), None, 0.0)
        return
    if stream.diffusion.time_features == "small":
        yield "time_in", Spec((WAVES["small"], TIME), ("wave", "time"), scale(WAVES["small"]))
        yield "time_out", Spec((TIME, features), ("time", axis), scale(TIME))
        return
    D, waves = stream.width, WAVES["dit"]
    yield "time_in", Spec((waves, D), ("wave", "mlp"), scale(waves))
    yield "time_in_bias", Spec((D,), ("mlp",), None, 0.0)
    yield "time_out", Spec((D, features), ("mlp", axis), scale(D))
    yield "time_out_bias", Spec((features,), (axis,), None, 0.0)


def predictor(config: Sections, name: str) -> Sections:
    """The predictor of a stream as a model of its own: one tower of the stream's tokens, narrower and less deep.

    It has the model's heads. It is not checked: `config` was.
    """
    p = config.streams[name].prediction
    stream = replace(config.streams[name], width=p.width, ffn=p.ffn)
    own = {name: name}
    single = {name: Experts(**dict.fromkeys((field.name for field in fields(Experts)), 0))}
    return Sections(
        **{field.name: getattr(config, field.name) for field in fields(Sections)}
        | dict(streams={name: stream}, towers=Towers(own, own, own, ()), attn=single, ffn=single)
        | dict(model=replace(config.model, layers=p.layers, dense_layers=0, sparse_every=1))
        | dict(optim=replace(config.optim, base_layers=0))  # its depth does not follow the model's
    )


def _predictor(config: Config, name: str) -> Iterator[tuple[str, Spec]]:
    """What enters a stream's predictor and leaves it, the token that stands for what is hidden, and its layers."""
    own = predictor(config, name)
    D, narrow = config.streams[name].width, own.streams[name].width
    yield "in", Spec((D, narrow), ("embed", "narrow"), scale(D))
    yield "hidden", Spec((1, narrow), ("token", "narrow"), 0.02)
    yield "out", Spec((narrow, D), ("narrow", "embed"), scale(narrow))
    yield "final_norm", _scale(config, narrow, WHOLE)
    for path, spec in _layer(own, "main"):
        layers = dict(shape=(own.model.layers, *spec.shape), axes=("layer", *spec.axes))
        yield f"blocks/main/{path}", spec._replace(**layers)


def _resampler(stream: Stream, config: Config) -> Iterator[tuple[str, Spec]]:
    """Learned queries, and layers of the model's heads in which they attend to a unit's vectors."""
    e, P, D = stream.entry, stream.latent, stream.width
    yield "in", Spec((P, D), ("latent", "embed"), scale(P))
    yield "queries", Spec((e.queries, D), ("query", "embed"), 0.02)
    norms = ((f"{name}_norm", _scale(config, D, WHOLE)) for name in ("vectors", "queries", "ffn"))
    matrices = ((name, spec) for name, spec in _attention(config, D) if name in QKVO)
    for weight, spec in (*norms, *matrices, *_swiglu(config, D, stream.ffn)):
        yield weight, spec._replace(shape=(e.layers, *spec.shape), axes=("layer", *spec.axes))
    yield "out_norm", _scale(config, D, WHOLE)


def _cross(stream: str, config: Config) -> Iterator[tuple[str, Spec]]:
    """The cross-attentions by which others see a stream, `[L // n, ...]`, with their FFNs and both gates (Flamingo)."""
    s = config.streams[stream]
    D, layers = s.width, config.model.layers // max(s.cross_every, 1)
    norms = ((f"{name}_norm", _scale(config, D, WHOLE)) for name in ("seen", "attn", "ffn"))
    gates = ((f"{name}_gate", Spec((1,), ("gate",), None, 0.0)) for name in ("attn", "ffn"))
    matrices = ((name, spec) for name, spec in _attention(config, D) if name in QKVO)
    for weight, spec in (*norms, *gates, *matrices, *_swiglu(config, D, s.ffn)):
        yield weight, spec._replace(shape=(layers, *spec.shape), axes=("layer", *spec.axes))


WAVES = {"small": 64, "dit": 256}  # sines and cosines of a noise level, by `diffusion.time_features`
TIME = 256  # hidden units that read the small one's
ADA = 64  # features of which norms' scales and shifts are made: few, as each token makes its own


def _contrast(config: Config) -> Iterator[tuple[str, Spec]]:
    """How pooled states enter the space in which they are compared, and what turns their cosines into logits."""
    term = config.objective.contrastive
    if not term.kind:
        return
    for name in [name for name in term.pools if name in config.streams and term.width > 0]:  # none may be checked yet
        D = config.streams[name].width
        yield f"{name}/out", Spec((D, term.width), ("embed", "contrast"), scale(D))
    # The log of what cosines are multiplied by. Decay would pull it and the bias to 0.
    yield "scale", Spec((1,), ("gate",), None, -math.log(max(term.temperature, 1e-6)), decay=0.0)
    if term.kind == "sigmoid":
        yield "bias", Spec((1,), ("gate",), None, term.bias, decay=0.0)


def _layer(config: Config, stack: str) -> Iterator[tuple[str, Spec]]:
    """The parameters of one layer of a stack, `component/tower/weight`."""
    maps, routed = config.towers_in(stack), config.sparse[config.stacks.index(stack)]
    for tower in _towers(maps["attn"]):
        experts = config.attn[tower]
        D = config.streams[tower].width
        for weight, spec in _attention(config, D):
            yield f"attn/{tower}/{weight}", _of_experts(spec, experts) if routed and weight in QKVO else spec
        if routed:
            yield from ((f"attn/{tower}/{weight}", spec) for weight, spec in _router(experts, D))
    for tower in _towers(maps["ffn"]):
        experts = config.ffn[tower]
        D = config.streams[tower].width
        F = (routed and experts.experts and experts.width) or config.streams[tower].ffn
        for weight, spec in _swiglu(config, D, F):
            yield f"ffn/{tower}/{weight}", _of_experts(spec, experts) if routed else spec
        if routed:
            yield from ((f"ffn/{tower}/{weight}", spec) for weight, spec in _router(experts, D))
        if routed and experts.experts and experts.shared:
            for weight, spec in _swiglu(config, D, experts.shared):
                yield f"ffn/{tower}/shared_{weight}", spec
            if experts.shared_gate:
                yield f"ffn/{tower}/shared_gate", Spec((D, 1), ("embed", "gate"), scale(D))
    for tower in _towers(maps["norm"]):
        D = config.streams[tower].width
        for branch in ("attn", "ffn"):
            yield f"norm/{tower}/{branch}", _scale(config, D, WHOLE)
            if config.model.norm == "both":
                yield f"norm/{tower}/{branch}_post", _scale(config, D, WHOLE)
            if any(t == tower and by_norm(config.streams[s]) for s, t in maps["norm"].items()):
                yield f"norm/{tower}/{branch}_ada", Spec((ADA, 2 * D), ("ada", "embed"), None, 0.0)


def by_norm(stream: Stream) -> bool:
    """Does the noise level of the stream's vectors enter by its norms?"""
    return stream.diffuses and stream.diffusion.time == "norm"


QKVO = ("wq", "wk", "wv", "wo")
# The axes of a tower's matrices; of experts `expert` stands before them.
MATRIX_AXES = {
    "wq": ("embed", "heads", "head"),
    "wk": ("embed", "kv_heads", "head"),
    "wv": ("embed", "kv_heads", "head"),
    "wo": ("heads", "head", "embed"),
    "w1": ("embed", "mlp"),
    "w3": ("embed", "mlp"),
    "w2": ("mlp", "embed"),
}


def _scale(config: Config, n: int, axis: str) -> Spec:
    """What an RMSNorm multiplies by: it begins as 1."""
    return Spec((n,), (axis,), None, 0.0 if config.model.norm_offset else 1.0)


def _attention(config: Config, D: int) -> Iterator[tuple[str, Spec]]:
    m = config.model
    N, K, H = m.heads, m.kv_heads, m.head_size
    yield "wq", Spec((D, N, H), MATRIX_AXES["wq"], scale(D))
    yield "wk", Spec((D, K, H), MATRIX_AXES["wk"], scale(D))
    yield "wv", Spec((D, K, H), MATRIX_AXES["wv"], scale(D))
    yield "wo", Spec((N, H, D), MATRIX_AXES["wo"], scale(N * H) * scale(2 * m.layers))
    if m.qkv_bias:
        for x, heads, axis in (("q", N, "heads"), ("k", K, "kv_heads"), ("v", K, "kv_heads")):
            yield f"{x}_bias", Spec((heads, H), (axis, "head"), None, 0.0)
    if m.qk_norm == "rms":
        yield from ((f"{x}_norm", _scale(config, H, "head")) for x in "qk")
    if m.qk_norm == "rms_flat":
        for x, heads, axis in (("q", N, "heads"), ("k", K, "kv_heads")):
            yield f"{x}_norm", _scale(config, H, "head")._replace(shape=(heads, H), axes=(axis, "head"))
    if m.qk_norm == "layer":
        for x, heads, axis in (("q", N, "heads"), ("k", K, "kv_heads")):
            yield f"{x}_norm", Spec((heads, H), (axis, "head"))
            yield f"{x}_norm_bias", Spec((heads, H), (axis, "head"), None, 0.0)


def _swiglu(config: Config, D: int, F: int) -> Iterator[tuple[str, Spec]]:
    yield "w1", Spec((D, F), MATRIX_AXES["w1"], scale(D))
    yield "w3", Spec((D, F), MATRIX_AXES["w3"], scale(D))
    # The residual sums 2 L branches (GPT-2).
    yield "w2", Spec((F, D), MATRIX_AXES["w2"], scale(F) * scale(2 * config.model.layers))


def _router(experts: Experts, D: int) -> Iterator[tuple[str, Spec]]:
    from mot.model.router import implementation  # which reads what is above

    if experts.experts:
        yield from implementation(experts.router).weights(experts, D)


def _of_experts(spec: Spec, experts: Experts) -> Spec:
    """A matrix of a tower, once for each of its experts, if it has some."""
    if not experts.experts:
        return spec
    return spec._replace(shape=(experts.experts, *spec.shape), axes=("expert", *spec.axes))


ROUTER_BIAS = "router_bias"  # moved by loads, not by gradients
CAUSAL = "causal"  # the routers that imitate experts that choose; they learn by themselves


def is_modulation(path: str) -> bool:
    """Is it a matrix that makes a norm's scales and shifts of a noise level?"""
    return path.endswith("_ada")


def is_reduced(path: str, spec: Spec) -> bool:
    """Is its gradient added up among devices in `optim.reduce_dtype`? Embedding, head and matrices from width to width.

    All that these multiply is in `model.dtype`. Others, as norms, routers and the layers of noise levels, are small.
    """
    in_float32 = parse(path).weight.startswith(("time_", CAUSAL))
    return "vocab" in spec.axes or (is_hidden(spec) and not in_float32)


def is_bias(path: str) -> bool:
    return parse(path).weight == ROUTER_BIAS


def is_added(path: str) -> bool:
    """Is it a bias, which is added and does not multiply?"""
    return parse(path).weight.endswith("_bias")


def is_gate(path: str) -> bool:
    """Is it a cross-attention's gate, whose tanh multiplies what is added?"""
    _, component, _, weight = parse(path)
    return component == "cross" and weight.endswith("_gate")


def is_causal(path: str) -> bool:
    return parse(path).weight.startswith(f"{CAUSAL}_")


def _towers(mapping: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(mapping.values()))


def init(specs: Table, seed: int) -> dict:
    """Initial values, each from its own path and the seed alone. Call under `jit`: eager differs in the last bit."""
    import jax
    import jax.numpy as jnp

    key = jax.random.key(seed)

    def value(path, spec):
        if spec.std is None:
            return jnp.full(spec.shape, spec.fill, jnp.float32)
        # Drawn flat: an n-d random.normal compiles ten times slower on CPU.
        flat = jax.random.normal(jax.random.fold_in(key, zlib.crc32(path.encode())), (math.prod(spec.shape),))
        return flat.reshape(spec.shape) * spec.std

    return nest({path: value(path, spec) for path, spec in specs.items()})


def nest(flat: Mapping) -> dict:
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(flat, sep="/")


def paths(tree: Mapping) -> dict:
    """A nested tree as `{path: leaf}`."""
    from flax.traverse_util import flatten_dict

    return flatten_dict(tree, sep="/")


def split(tree: Mapping, chosen: Callable[[str], bool]) -> tuple[dict, dict]:
    """The leaves whose path is chosen, and the others; `merge` undoes it."""
    flat = paths(tree)
    yes = {p: x for p, x in flat.items() if chosen(p)}
    return nest(yes), nest({p: x for p, x in flat.items() if p not in yes})


def merge(a: Mapping, b: Mapping) -> dict:
    return nest({**paths(a), **paths(b)})


def count(specs: Table) -> int:
    return sum(math.prod(spec.shape) for spec in specs.values())


def report(name: str, stack: str) -> str:
    """What the report of a router in the layers of a stack is called: `ffn/text`; of `sparse_4`, `ffn/text@4`."""
    first = stack.partition("_")[2]
    return f"{name}@{first}" if first else name


def of_report(reported: str) -> tuple[str, str]:
    """`component/tower` and the stack of the router that a report is of; undoes `report`."""
    name, _, first = reported.partition("@")
    return name, f"sparse_{first}" if first else "sparse"


PARTS = ("attn", "ffn", "norm", "embed", "head", "latent", "predictor", "contrast", "cross")
BY_STREAM = ("latent", "predictor", "contrast", "cross")  # those that are a stream's own, whatever towers it shares


def part(path: str) -> str:
    """Which of PARTS a parameter belongs to; the final norm is one of the norms."""
    return parse(path).component


def users(path: str, config: Config) -> list[str]:
    """The streams whose tokens pass through a parameter; embedding and head are of all that have ids.

    A cross-attention is of the stream that is seen: it is there for it.
    """
    stack, component, tower, _ = parse(path)
    if component in COMPONENTS:
        served = config.towers_in(stack)[component] if stack else config.last_norms
        return [s for s, name in served.items() if name == tower and s not in config.crossed]
    if component in BY_STREAM:
        return [tower] if tower in config.streams else []  # scale and bias of a contrastive loss are no stream's
    return [name for name, stream in config.streams.items() if not stream.latent]


def tower(path: str) -> str:
    """`text` of `blocks/main/ffn/text/w1`; the component of a path outside the towers."""
    parsed = parse(path)
    return parsed.component if parsed.component in BY_STREAM else parsed.tower
