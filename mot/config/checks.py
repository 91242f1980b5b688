"""Every check of a configuration's values. Each yields faults: dotted key, value, what is allowed, remedy."""

import itertools
import re
from collections.abc import Iterator

from mot.config.allowed import ABOVE_0, AT_LEAST_0, FRACTION, Allowed, Range, choice, meant, within
from mot.config.axes import LOGICAL_AXES, MESH_AXES, TOGETHER, names
from mot.config.objectives import OBJECTIVES, OF_IDS, OF_VECTORS
from mot.config.routers import ROUTERS


def faults(c, broken: set[str]) -> Iterator[str]:
    """The faults of every check whose sections were readable."""
    for check, needs in (
        (_run, {"run"}),
        (_streams, {"streams"}),
        (_towers, {"streams", "towers"}),
        (_model, {"model"}),
        (_experts, {"streams", "towers", "attn", "ffn"}),
        (_layers, {"model", "attn", "ffn"}),
        (_init, {"init"}),
        (_mesh, {"mesh", "attn", "ffn"}),
        (_slices, {"mesh", "data", "optim"}),
        (_rules, {"mesh"}),
        (_objective, {"objective"}),
        (_data, {"data"}),
        (_budgets, {"streams", "data"}),
        (_blocks, {"streams", "data"}),
        (_optim, {"optim"}),
        (_steps, {"run", "optim"}),
        (_accumulate, {"data", "optim"}),
    ):
        if not needs & broken:
            yield from check(c)


# Whole matrices, pairs of chunks; kernels for TPU (splash) and GPU (`kernels.py`).
ATTENTION = ("chunked", "reference", "splash", "triton", "mosaic", "cudnn")
NAME = r"[A-Za-z0-9][A-Za-z0-9._=,+-]*"

# By class of `schema.py` and key: what the value may be, whatever the others are. `mot config` shows it.
VALUES: dict[str, dict[str, Allowed]] = {
    "Run": dict.fromkeys(("steps", "eval_every", "eval_batches", "save_every", "keep"), ABOVE_0)
    | {"flops": AT_LEAST_0},
    "Stream": dict.fromkeys(("width", "ffn"), ABOVE_0)
    | dict.fromkeys(("budget", "max_tokens", "first_id", "latent", "loss_weight"), AT_LEAST_0)
    | {"objective": (*OBJECTIVES, "none")},
    "Diffusion": {
        "time": ("add", "norm"),
        "copies": ("noised", "both"),
        "time_distribution": ("uniform", "logit_normal", "beta"),
        "shift": ABOVE_0,
        "max_noise": Range(most=1, above=True),
        "drop_rate": FRACTION,
        "loss_centre": AT_LEAST_0,
    },
    "Model": {
        "layers": Range(most=10_000, above=True),
        "dense_layers": AT_LEAST_0,
        "sparse_every": ABOVE_0,
        "heads": ABOVE_0,
        "kv_heads": ABOVE_0,
        "head_size": ABOVE_0,
        "norm": ("pre", "post"),
        "norm_eps": ABOVE_0,
        "qk_norm": ("none", "rms", "layer"),
        "rope_theta": ABOVE_0,
        "remat": ("none", "dots", "block", "offload"),
        "dtype": ("float32", "bfloat16"),
        "attention": ATTENTION,
        "dispatch": ("blocked", "einsum", "ragged", "gmm", "triton", "mosaic"),
        "seed": AT_LEAST_0,
    },
    "Experts": {
        "experts": AT_LEAST_0,
        "active": ABOVE_0,
        "width": AT_LEAST_0,
        "shared": AT_LEAST_0,
        "router": tuple(ROUTERS),
        "score": ("softmax", "sigmoid"),
        "capacity": AT_LEAST_0,
        "overflow": ("earliest", "highest"),
        "balance": ("none", "loss", "bias"),
        "balance_rate": AT_LEAST_0,
        "z_loss": AT_LEAST_0,
        "jitter": FRACTION,
    },
    "Mesh": dict.fromkeys(("fsdp", "expert", "context", "tensor", "slices", "buffer"), ABOVE_0)
    | {"data": AT_LEAST_0, "exchange": ("gather", "all_to_all")},
    "Init": dict.fromkeys(("step", "noise"), AT_LEAST_0),
    "Objective": {"z_loss": AT_LEAST_0, "chunk": ABOVE_0, "per": ("all", "modality")},
    "Data": {
        "batch": ABOVE_0,
        "seed": AT_LEAST_0,
        "lookahead": Range(most=512, above=True),  # every checkpoint holds all of them
        "length": AT_LEAST_0,
        "blocks": ("units", "prefix", "document"),
        "workers": AT_LEAST_0,
        "timeout": Range(most=10**6, above=True),
        "max_skipped": AT_LEAST_0,
    },
    "Optim": dict.fromkeys(("lr", "eps", "clip", "accumulate", "patience"), ABOVE_0)
    | dict.fromkeys(("end_lr", "warmup", "decay_steps"), AT_LEAST_0)
    | dict.fromkeys(("beta1", "beta2", "ema"), FRACTION)
    | {"schedule": ("cosine", "linear", "constant", "wsd"), "moments": ("float32", "bfloat16")},
    "Rule": dict.fromkeys(("lr", "decay"), AT_LEAST_0),
}


def _run(c):
    yield from within("run", c.run, VALUES["Run"])
    if not re.fullmatch(NAME, c.run.name):
        yield f"run.name: {c.run.name!r}; must be one folder name matching {NAME}; rename the run"
    if not c.run.root:
        yield "run.root: ''; must be a folder; give one"


def _streams(c):
    for name, s in c.streams.items():
        path = f"streams.{name}"
        yield from within(path, s, VALUES["Stream"], apart=["objective"])
        yield from _kind(path, s)
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            yield f"{path}: a stream's name is lower-case letters, digits and _; rename it"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", s.modality):
            yield f"{path}.modality: {s.modality!r}; must be lower-case letters, digits and _; rename it"
        if s.max_tokens > s.budget > 0:
            yield (
                f"{path}.budget: {s.budget} tokens do not hold this stream's longest document, {path}.max_tokens = "
                f"{s.max_tokens}; raise the budget to at least {s.max_tokens}"
            )
    names = list(c.streams)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            x, y = c.streams[a], c.streams[b]
            if _are_unlike(x.width, y.width) and not x.latent and not y.latent:
                yield (
                    f"streams.{b}.width: {y.width}, but streams.{a}.width is {x.width}; discrete streams share "
                    "embedding and head, so one width; set both alike"
                )
            if x.modality == y.modality and x.loss_weight != y.loss_weight:
                yield (
                    f"streams.{b}.loss_weight: {y.loss_weight}, but streams.{a}'s is {x.loss_weight} and both are of "
                    f"modality {x.modality}, which has one weight; set both alike"
                )
            both_learn = "none" not in (x.objective, y.objective)
            if x.modality == y.modality and both_learn and bool(x.latent) != bool(y.latent):
                yield (
                    f"streams.{b}.modality: {y.modality!r}, also that of streams.{a}; losses of ids and of vectors do "
                    "not add up; name another, or give one of them objective='none'"
                )
            both_ids = not (x.latent or y.latent)
            if both_ids and x.first_id < y.first_id + y.ids and y.first_id < x.first_id + x.ids:
                yield (
                    f"streams.{b}.first_id: ids {y.first_id}..{y.first_id + y.ids - 1} overlap streams.{a}'s "
                    f"{x.first_id}..{x.first_id + x.ids - 1}; move first_id to a free range"
                )


def _kind(path, s):
    """Ids or vectors, and what is made of them."""
    if s.latent < 0:
        return  # said already
    if not s.latent:
        yield from within(path, s, {"ids": ABOVE_0})
        if s.objective not in OF_IDS:
            yield (
                f"{path}.objective: {s.objective!r}, but its tokens are {s.ids} ids ({path}.latent = 0); allowed: "
                f"{', '.join(OF_IDS)}; write one, or make it a stream of vectors: latent=P, ids=0, first_id=0"
            )
        return
    if s.ids or s.first_id:
        yield (
            f"{path}.ids, first_id: {s.ids}, {s.first_id}, but its tokens are vectors of {path}.latent = {s.latent}; "
            "write 0, 0, or latent=0"
        )
    yield from choice(path, s, "objective", *OF_VECTORS)
    yield from within(f"{path}.diffusion", s.diffusion, VALUES["Diffusion"])


def _towers(c):
    names = list(c.streams)
    if all(s.latent for s in c.streams.values()):
        yield f"streams: {', '.join(names)} are all of vectors; documents begin and end with ids; add a stream of text"
    for component in ("attn", "ffn", "norm"):
        towers = getattr(c.towers, component)
        path = f"towers.{component}"
        for stream in [s for s in towers if s not in names]:
            yield f"{path}.{stream}: {towers[stream]!r}; no such stream; allowed: {', '.join(names)}; remove the key"
        for stream in [s for s in names if s not in towers]:
            yield f"{path}.{stream}: missing; every stream needs a tower; add it (a stream's own name gives it its own)"
        known = {s: t for s, t in towers.items() if s in names}
        for stream, tower in known.items():
            sharers = [s for s in names if known.get(s) == tower]
            if tower not in names:
                yield f"{path}.{stream}: {tower!r}; a tower is named by a stream: {', '.join(names)}; choose one"
            elif sharers[0] != tower:
                yield (
                    f"{path}.{stream}: {tower!r}; a tower is named by the first stream that maps to it, here "
                    f"{sharers[0]!r}; write {sharers[0]!r}"
                )
            elif component == "ffn" and _are_unlike(c.streams[stream].ffn, c.streams[tower].ffn):
                yield (
                    f"streams.{stream}.ffn: {c.streams[stream].ffn}, but it shares its FFN tower with {tower}, whose "
                    f"ffn is {c.streams[tower].ffn}; set both alike or untie {path}.{stream}"
                )
            elif _is_width_apart(c.streams[stream], c.streams[tower]):
                yield (
                    f"streams.{stream}.width: {c.streams[stream].width}, but it shares its {component} tower with "
                    f"{tower}, whose width is {c.streams[tower].width}; set both alike or untie {path}.{stream}"
                )
    for i, wall in enumerate(c.towers.stop_gradients):
        path = f"towers.stop_gradients[{i}]"
        attn = c.towers.attn
        for key in ("queries", "keys"):
            yield from choice(path, wall, key, *names)
        if wall.queries in attn and attn[wall.queries] == attn.get(wall.keys):
            yield (
                f"{path}: {wall.queries} and {wall.keys} share the attention tower {attn[wall.keys]!r}, which the loss "
                f"of {wall.queries} trains as it is; untie towers.attn.{wall.queries}, or remove the wall"
            )


def _are_unlike(a: int, b: int) -> bool:
    """Numbers that differ, and are not out of range, which is said already."""
    return a != b and a > 0 and b > 0


def _is_width_apart(a, b) -> bool:
    """Of two streams that share a tower; that all streams of ids have one width is said elsewhere."""
    return _are_unlike(a.width, b.width) and bool(a.latent or b.latent)


def _model(c):
    m = c.model
    yield from within("model", m, VALUES["Model"], apart=["dense_layers", "sparse_every"])
    if m.kv_heads > 0 and m.heads > 0 and m.heads % m.kv_heads:
        yield (
            f"model.heads: {m.heads} query heads do not divide among model.kv_heads = {m.kv_heads}; "
            "make heads a multiple of kv_heads"
        )
    if m.head_size > 0 and m.head_size % 2:
        yield f"model.head_size: {m.head_size}; RoPE turns pairs, so it must be even; add or take one"


def _experts(c):
    for component in ("attn", "ffn"):
        sets = getattr(c, component)
        towers = dict.fromkeys(getattr(c.towers, component).values())
        for tower in [t for t in sets if t not in towers]:
            yield f"{component}.{tower}: no such tower; towers.{component} names {', '.join(towers)}; remove the key"
        for tower in [t for t in towers if t not in sets]:
            yield f"{component}.{tower}: missing; every tower needs its experts; base.moe() is a single set"
        for tower, s in sets.items():
            if s.experts:
                yield from _sets(f"{component}.{tower}", s, component)


def _sets(path, s, component):
    yield from within(path, s, VALUES["Experts"], apart=["active"])
    if s.experts < 0:
        return  # said already
    if not 1 <= s.active <= s.experts:
        yield f"{path}.active: {s.active}; a token passes through 1 to {path}.experts = {s.experts}; change either"
    if component == "attn":
        for key in ("width", "shared"):
            if getattr(s, key):
                yield f"{path}.{key}: {getattr(s, key)}; sets of QKV and O have heads, no hidden size; write 0"
        if s.capacity or (s.router in ROUTERS and not ROUTERS[s.router].serves_all):
            yield (
                f"{path}.router, capacity: {s.router!r}, {s.capacity}; a token without a place would be without QKV; "
                "write 'token', 0.0"
            )
    if s.shared_gate and not s.shared:
        yield f"{path}.shared_gate: True, but {path}.shared is 0; a shared expert needs a hidden size; give it one"
    if 0 < s.capacity < 1 / max(s.experts, 1):
        yield (
            f"{path}.capacity: {s.capacity}; with {s.experts} experts it must be 0 (dropless) or at least "
            f"{1 / s.experts:.4g}, one in {s.experts}; raise it"
        )
    router = ROUTERS.get(s.router)
    if router and (wrong := [key for key, value in router.fixed.items() if getattr(s, key) != value]):
        has = ", ".join(f"{key} {getattr(s, key)!r}" for key in wrong)
        yield (
            f"{path}: {has}, which router {s.router!r} does not read ({router.about}); write "
            f"{', '.join(f'{key}={router.fixed[key]!r}' for key in wrong)}"
        )
    if s.active == 1 and s.normalise:
        yield (
            f"{path}.normalise: True with {path}.active = 1; every weight would be 1 and the router learn nothing from "
            "the loss; write False, or activate more"
        )
    if s.balance == "none" and s.balance_rate:
        yield f"{path}.balance_rate: {s.balance_rate}, but {path}.balance is 'none'; write 0.0, or choose loss or bias"


def _layers(c):
    m = c.model
    routed = any(s.experts for s in (*c.attn.values(), *c.ffn.values()))
    if not 0 <= m.dense_layers < max(m.layers, 1) or m.sparse_every < 1:
        yield (
            f"model.dense_layers, sparse_every: {m.dense_layers}, {m.sparse_every}; allowed: 0 to {m.layers - 1} "
            "(model.layers less one), and 1 or more; change them"
        )
    elif (m.layers - m.dense_layers) % m.sparse_every:
        yield (
            f"model.sparse_every: {m.sparse_every} does not divide the {m.layers - m.dense_layers} layers after the "
            f"first {m.dense_layers}; change model.layers, dense_layers or sparse_every"
        )
    elif not routed and (m.dense_layers, m.sparse_every) != (0, 1):
        yield (
            f"model.dense_layers, sparse_every: {m.dense_layers}, {m.sparse_every}, but no tower has experts; "
            "write 0, 1, or give attn or ffn experts"
        )


def _init(c):
    yield from within("init", c.init, VALUES["Init"])
    if not c.init.run and (c.init.step > 0 or c.init.noise > 0):
        yield f"init.step, noise: {c.init.step}, {c.init.noise}, but init.run is ''; name a run, or write 0, 0.0"


def _objective(c):
    yield from within("objective", c.objective, VALUES["Objective"])


def _mesh(c) -> Iterator[str]:
    m = c.mesh
    yield from within("mesh", m, VALUES["Mesh"])
    used = {name for text in m.rules.values() for name in names(text)}
    for axis in [axis for axis in MESH_AXES if getattr(m, axis) > 1 and axis not in used]:
        yield (
            f"mesh.{axis}: {getattr(m, axis)}, and no rule in mesh.rules splits anything by it: its devices would all "
            "do the same; write 1, or name it in a rule"
        )
    for component in ("attn", "ffn"):
        for tower, s in getattr(c, component).items():
            if s.experts and m.expert > 0 and s.experts % m.expert:
                yield (
                    f"{component}.{tower}.experts: {s.experts} do not divide among mesh.expert = {m.expert} "
                    "devices; make one a multiple of the other"
                )
            if component == "attn" and s.experts and m.tensor > 1:
                yield (
                    f"mesh.tensor: {m.tensor}, but attn.{tower} has {s.experts} experts, whose heads are not split; "
                    "write 1"
                )


def _slices(c) -> Iterator[str]:
    rows = max(c.data.batch // max(c.optim.accumulate, 1), 1)
    if c.mesh.slices > rows:
        yield f"mesh.slices: {c.mesh.slices}, and a microbatch has {rows} rows; each slice needs one; make it smaller"


def _rules(c) -> Iterator[str]:
    rules = c.mesh.rules
    path = "mesh.rules"
    for axis in [a for a in rules if a not in LOGICAL_AXES]:
        remedy = meant(axis, LOGICAL_AXES) or "remove it"
        yield f"{path}.{axis}: no such logical axis; allowed: {', '.join(LOGICAL_AXES)}; {remedy}"
    for axis in [a for a in LOGICAL_AXES if a not in rules]:
        yield f"{path}.{axis}: missing; '' does not split it; add it"
    for axis, text in rules.items():
        for name in [n for n in names(text) if n not in MESH_AXES]:
            yield f"{path}.{axis}: {name!r} is no axis of the mesh; allowed: {', '.join(MESH_AXES)}; choose of them"
        if len(set(names(text))) < len(names(text)):
            yield f"{path}.{axis}: {text!r} splits it twice by one axis; name each once"
    for axes in TOGETHER:
        for a, b in itertools.combinations([a for a in axes if a in rules], 2):
            if twice := set(names(rules[a])) & set(names(rules[b])):
                yield (
                    f"{path}.{a}, {b}: {rules[a]!r}, {rules[b]!r}; one array has both axes, and {twice.pop()!r} cannot "
                    "split it twice; take it out of one"
                )
    for axis, allowed in (("length", ("", "context")), ("expert", ("", "expert")), ("head", ("",)), ("layer", ("",))):
        if rules.get(axis, "").strip() not in allowed:
            yield f"{path}.{axis}: {rules[axis]!r}; allowed: {', '.join(map(repr, allowed))}; choose one"
    if rules.get("heads") != rules.get("kv_heads"):
        yield (
            f"{path}.heads, kv_heads: {rules.get('heads')!r}, {rules.get('kv_heads')!r}; a query head meets its own "
            "key head, so they are split alike; write the same"
        )
    if rules.get("expert") and "expert" not in names(rules.get("batch", "")):
        yield (
            f"{path}.batch: {rules.get('batch')!r}; who shares experts has rows of its own; add 'expert', or write "
            "expert=''"
        )


def _data(c):
    d = c.data
    yield from within("data", d, VALUES["Data"])
    for name in d.sources:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            yield f"data.sources.{name}: a source's name is letters, digits, _ and -; rename it"
    every = [("data.shares", d.shares), *((f"data.stages[{i}].shares", s.shares) for i, s in enumerate(d.stages))]
    for path, shares in every:
        for source, share in shares.items():
            if source not in d.sources:
                yield f"{path}.{source}: no such source; data.sources names {', '.join(d.sources)}; remove it"
            if share < 0:
                yield f"{path}.{source}: {share}; must be 0 or more; raise it"
        if not any(share > 0 for share in shares.values()):
            yield f"{path}: {dict(shares)}; at least one source must have a share above 0; raise one"
    steps = [0, *(s.step for s in d.stages)]
    if any(b <= a for a, b in itertools.pairwise(steps)):
        yield f"data.stages: begin at steps {steps[1:]}; each must begin later than the one before, after 0; order them"


def _budgets(c):
    auto = [name for name, s in c.streams.items() if not s.budget]
    if auto and not c.data.length:
        yield f"streams.{auto[0]}.budget: 0, but data.length is 0; give it a budget, or data.length for all to share"
    modalities = [s.modality for s in c.streams.values()]
    yield from choice("data", c.data, "per", *dict.fromkeys(["documents", "tokens", *modalities]))


def _blocks(c):
    for name, s in c.streams.items():
        if c.data.blocks == "document" and s.copies > 1:
            yield (
                f"data.blocks: 'document', but streams.{name}.diffusion.copies is 'both'; what comes before a unit "
                "would see its clean copy, and the noised one that: it would read its answer; write 'noised'"
            )


LONGEST_IN_BFLOAT16 = 0.99  # numbers are up to 2^-7 apart: smaller steps would be lost


def _optim(c):
    o = c.optim
    yield from within("optim", o, VALUES["Optim"])
    for key in ("beta1", "beta2"):
        if o.moments == "bfloat16" and getattr(o, key) > LONGEST_IN_BFLOAT16:
            yield (
                f"optim.moments: 'bfloat16', but a step moves them by 1 - optim.{key} = {1 - getattr(o, key):.2g} of "
                f"themselves, which 8 bits round away; write float32, or a {key} of at most {LONGEST_IN_BFLOAT16}"
            )
    if o.end_lr > o.lr > 0 and o.schedule != "constant":
        yield f"optim.end_lr: {o.end_lr} is above optim.lr = {o.lr}; the rate decays; lower end_lr"
    for key in ("rules", "base_rules"):
        for i, rule in enumerate(getattr(o, key)):
            yield from within(f"optim.{key}[{i}]", rule, VALUES["Rule"])
            try:
                re.compile(rule.match)
            except re.error as error:
                yield f"optim.{key}[{i}].match: {rule.match!r} is no regular expression ({error}); mend it"


def _steps(c):
    if c.run.steps < 1 or c.optim.warmup < 0:
        return  # said already
    if c.run.steps < c.optim.warmup:
        yield (
            f"run.steps: {c.run.steps} is less than optim.warmup = {c.optim.warmup}; the rate would never reach its "
            "peak; raise steps or lower warmup"
        )
    elif c.optim.schedule == "wsd" and not 0 < c.optim.decay_steps <= c.run.steps - c.optim.warmup:
        yield (
            f"optim.decay_steps: {c.optim.decay_steps}; wsd needs 1 to {c.run.steps - c.optim.warmup} (run.steps less "
            "optim.warmup); change it"
        )


def _accumulate(c):
    if c.optim.accumulate > 0 and c.data.batch % c.optim.accumulate:
        yield (
            f"data.batch: {c.data.batch} rows do not divide into optim.accumulate = {c.optim.accumulate} microbatches; "
            "make batch a multiple of it"
        )
