"""Every check of a configuration's values. Each yields faults: dotted key, value, what is allowed, remedy."""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mot.config import depth
from mot.config.allowed import ABOVE_0, AT_LEAST_0, FRACTION, Allowed, Range, choice, meant, within
from mot.config.axes import LOGICAL_AXES, MESH_AXES, TOGETHER, names
from mot.config.objectives import NONE, OBJECTIVES, OF_IDS, OF_VECTORS
from mot.config.options import TRACKERS
from mot.config.routers import ROUTERS
from mot.errors import Fault
from mot.files import fault_of, is_address

if TYPE_CHECKING:  # it imports this file
    from mot.config.schema import Experts, Optim, Role, Sections, Stream


def faults(c: "Sections", broken: set[str]) -> Iterator[Fault]:
    """The faults of every check whose sections could be read; `broken` are the names of those that could not."""
    for check, needs in (
        (_run, {"run"}),
        (_trackers, {"run"}),
        (_probes, {"run", "streams"}),
        (_keep_best, {"run", "streams", "attn", "ffn", "data"}),
        (_streams, {"streams"}),
        (_predictions, {"streams", "optim"}),
        (_towers, {"streams", "towers"}),
        (_depth, {"towers", "model"}),
        (_stop_gradients, {"streams", "towers"}),
        (_crossed, {"streams", "towers", "model"}),
        (_model, {"model"}),
        (_rope, {"model", "streams"}),
        (_experts, {"streams", "towers", "attn", "ffn"}),
        (_layers, {"model", "attn", "ffn"}),
        (_init, {"init"}),
        (_mesh, {"mesh", "attn", "ffn"}),
        (_slices, {"mesh", "data", "optim"}),
        (_rules, {"mesh"}),
        (_objective, {"objective", "streams"}),
        (_contrastive, {"objective", "streams", "data", "model"}),
        (_data, {"data"}),
        (_budgets, {"streams", "data"}),
        (_blocks, {"streams", "data"}),
        (_roles, {"streams", "data"}),
        (_optim, {"optim"}),
        (_steps, {"run", "optim"}),
        (_accumulate, {"data", "optim"}),
    ):
        if not needs & broken:
            yield from check(c)


# Whole matrices, pairs of chunks; kernels for TPU (splash) and GPU (`kernels.py`).
ATTENTION = ("chunked", "reference", "splash", "triton", "mosaic", "cudnn")
CAPPED = ("chunked", "reference")  # those that know `model.attention_cap`
NAME = r"[A-Za-z0-9][A-Za-z0-9._=,+-]*"  # of a run
WORD = r"[a-z][a-z0-9_]{0,63}"  # a name of a stream or a modality
# Of a regular expression, which a config.json from elsewhere may hold: Python tries every way in which one can match.
# With these a path of 100 characters takes some milliseconds at most.
LONGEST_PATTERN, MOST_REPEATS, MOST_WAYS = 200, 3, 64
MOST_RULES = 100

LAYERS = Range(most=10_000, above=True)
# By class of `schema.py` and key: what the value may be, whatever the others are. `mot config` shows it.
VALUES: dict[str, dict[str, Allowed]] = {
    "Run": dict.fromkeys(("steps", "eval_every", "eval_batches", "save_every", "keep"), ABOVE_0)
    | dict.fromkeys(("flops", "save_minutes", "keep_every", "probe_every", "check_every"), AT_LEAST_0)
    | dict.fromkeys(("hang_timeout", "peer_timeout"), AT_LEAST_0)
    | {"role": ("fit", "validation", "test")},
    "Stream": dict.fromkeys(("width", "ffn"), ABOVE_0)
    | dict.fromkeys(("budget", "max_tokens", "first_id", "latent", "loss_weight"), AT_LEAST_0)
    | {"place_table": Range(most=4096), "rope_seconds": Range(most=3600), "rope_gap": Range(most=10**6)}
    | {"cross_every": AT_LEAST_0}
    | {"objective": {name: f"for {row.of}, {row.about}" for name, row in OBJECTIVES.items()} | {NONE: "inputs only"}},
    "Diffusion": {
        "time": ("add", "norm", "mlp"),
        "time_features": {
            "small": "64 waves, the quickest of 1000 radians from data to noise, and 256 hidden units",
            "dit": "256 waves, the quickest of 1 radian, as many hidden units as a token is wide, biases (2212.09748)",
        },
        "copies": ("noised", "both"),
        "time_distribution": ("uniform", "logit_normal", "beta"),
        "shift": ABOVE_0,
        "max_noise": Range(most=1, above=True),
        "drop_rate": FRACTION,
        "loss_centre": AT_LEAST_0,
    },
    "Masking": {
        "by": ("unit", "document"),
        "distribution": {"uniform": "all alike (LLaDA)", "cosine": "mostly high ones (MaskGIT, 2202.04200)"},
        "least": Range(most=1, above=True, below=True),
        "most": Range(0.01, 1),  # of ratios near 0 nothing would be hidden, and nothing learnt
        "weighting": {"elbo": "1 / t: a bound of the likelihood (LLaDA)", "even": "1 / the mean of t (MaskGIT, BERT)"},
        "before_text": Range(most=1),
        "drop_rate": FRACTION,
    },
    "Prediction": dict.fromkeys(("columns", "blocks", "width", "ffn", "slices"), ABOVE_0)
    | dict.fromkeys(("least_block", "most_block"), Range(most=1, above=True, below=True))
    | dict.fromkeys(("least_context", "most_context"), Range(most=1, above=True))
    | dict.fromkeys(("least_aspect", "most_aspect"), ABOVE_0)
    | {"targets": ("ema", "own"), "sigreg": FRACTION, "layers": LAYERS},
    "Entry": {
        "kind": {
            "linear": "a matrix",
            "none": "nothing: vectors as wide as a token enter as they are",
            "mlp": "two layers with GELU between (LLaVA-1.5, 2310.03744)",
            "resampler": "learned queries that attend to a unit's vectors (Flamingo, 2204.14198)",
        },
        "fold": ABOVE_0,
        "queries": AT_LEAST_0,
        "layers": LAYERS._replace(above=False),
    },
    "Model": {
        "layers": LAYERS,
        "dense_layers": AT_LEAST_0,
        "sparse_every": ABOVE_0,
        "heads": ABOVE_0,
        "kv_heads": ABOVE_0,
        "head_size": ABOVE_0,
        "norm": {
            "pre": "x + f(norm(x))",
            "post": "x + norm(f(x)), the MoT paper's (Swin) form",
            "both": "x + norm(f(norm(x))) (Gemma 2)",
        },
        "norm_eps": ABOVE_0,
        "qk_norm": {
            "none": "no norm",
            "rms": "RMSNorm of each head",
            "rms_flat": "RMSNorm of all heads' features at once (OLMoE)",
            "layer": "LayerNorm of each head (Chameleon)",
        },
        "rope_theta": ABOVE_0,
        "rope_features": AT_LEAST_0,
        "rope_per_second": Range(most=10**6),
        "query_size": AT_LEAST_0,
        "attention_cap": AT_LEAST_0,
        "logits_cap": AT_LEAST_0,
        "remat": ("none", "dots", "block", "offload"),
        "dtype": ("float32", "bfloat16"),
        "attention": ATTENTION,
        "dispatch": ("blocked", "einsum", "ragged", "gmm", "triton", "mosaic"),
        "seed": AT_LEAST_0,
        "dropout": FRACTION,
        "activation": {"swiglu": "SiLU (2002.05202)", "geglu": "GELU by tanh (Gemma)"},
    },
    "RopeScaling": {
        "kind": {
            "": "none",
            "linear": "all, alike",
            "llama3": "long ones, by a ramp in their turns (Llama 3.1)",
            "yarn": "long ones, by a ramp in their number (2309.00071)",
        },
        "factor": Range(1, 1e6),
        "length": AT_LEAST_0,
        "least_turns": AT_LEAST_0,
        "most_turns": AT_LEAST_0,
        "amplitude": ABOVE_0,
    },
    "Experts": {
        "experts": AT_LEAST_0,
        "active": ABOVE_0,
        "width": AT_LEAST_0,
        "shared": AT_LEAST_0,
        "router": {name: router.about for name, router in ROUTERS.items()},
        "score": ("softmax", "sigmoid"),
        "weight_scale": ABOVE_0,
        "groups": ABOVE_0,
        "active_groups": ABOVE_0,
        "capacity": AT_LEAST_0,
        "overflow": ("earliest", "highest"),
        "balance": {
            "none": "nothing",
            "loss": "a loss of each row and layer (2101.03961)",
            "pooled": "a loss over all rows and layers together, times `active` (transformers)",
            "bias": "a bias of the choice that no gradient moves (2408.15664)",
        },
        "balance_rate": AT_LEAST_0,
        "balance_loss": AT_LEAST_0,
        "z_loss": AT_LEAST_0,
        "jitter": FRACTION,
    },
    "Mesh": dict.fromkeys(("fsdp", "expert", "context", "tensor", "slices", "buffer"), ABOVE_0)
    | {"data": AT_LEAST_0, "exchange": ("gather", "all_to_all")},
    "Init": dict.fromkeys(("step", "noise"), AT_LEAST_0)
    | {"state": ("weights", "all"), "deeper": ("", "stack", "identity"), "wider": ("", "clone")},
    "Objective": {"z_loss": AT_LEAST_0, "chunk": ABOVE_0, "per": ("all", "modality"), "common_target": FRACTION},
    "Contrastive": dict.fromkeys(("width", "pairs"), AT_LEAST_0)
    | {"kind": ("", "infonce", "sigmoid"), "weight": ABOVE_0}
    | {"temperature": Range(least=0.01)},  # each step keeps it from falling lower (`contrastive.clamped`)
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
    "Role": {"place": ("", "first", "last", "only", "middle")},
    "Optim": dict.fromkeys(("lr", "eps", "clip", "accumulate", "patience"), ABOVE_0)
    | dict.fromkeys(("end_lr", "warmup", "decay_steps", "skip_above"), AT_LEAST_0)
    | dict.fromkeys(("base_width", "base_head_size", "base_layers"), AT_LEAST_0)
    | dict.fromkeys(("beta1", "beta2", "ema", "momentum"), FRACTION)
    | {"name": ("adamw", "muon"), "transfer": ("", "mup"), "ema_end": Range(most=1)}
    | {"schedule": ("cosine", "linear", "constant", "wsd"), "moments": ("float32", "bfloat16")}
    | {"reduce_dtype": ("float32", "bfloat16")},
    "Rule": dict.fromkeys(("lr", "decay"), AT_LEAST_0),
}


def _run(c: "Sections") -> Iterator[Fault]:
    yield from within("run", c.run, VALUES["Run"])
    if not re.fullmatch(NAME, c.run.name):
        yield Fault("run.name", f"{c.run.name!r}; must be one folder name matching {NAME}; rename the run")
    if not c.run.root:
        yield Fault("run.root", "''; must be a folder; give one")
    if fault := fault_of(c.run.root):
        yield Fault("run.root", fault)
    elif is_address(c.run.root) and not c.run.root.startswith("gs://"):
        yield Fault(
            "run.root", f"{c.run.root!r}; must be a folder that all processes share, or gs://BUCKET/FOLDER; name one"
        )


def _trackers(c: "Sections") -> Iterator[Fault]:
    given = names(c.run.trackers)
    for name in [name for name in given if name not in TRACKERS]:
        remedy = meant(name, TRACKERS) or "take it out"
        yield Fault("run.trackers", f"{name!r}: no such tracker; allowed: {', '.join(TRACKERS)}, or ''; {remedy}")
    if len(set(given)) < len(given):
        yield Fault("run.trackers", f"{c.run.trackers!r} names one twice; name each once")


def _probes(c: "Sections") -> Iterator[Fault]:
    """Probes compare modalities."""
    if c.run.probe_every > 0 and len(c.modalities) < 2:
        yield Fault(
            "run.probe_every",
            f"{c.run.probe_every}; probes compare modalities, and there is {', '.join(c.modalities)} alone; write 0",
        )


def _keep_best(c: "Sections") -> Iterator[Fault]:
    """A loss that evaluations have: of any other of their numbers the lowest is not the best."""
    sources = [f"/{name}" for name in c.data.sources]
    losses = ["loss", *(f"loss/{m}{source}" for m in c.modalities for source in ("", *sources))]
    losses += [] if c.causal else [f"causal_{loss}" for loss in losses]
    losses += [f"bits_per_byte{source}" for source in sources if "text" in c.modalities]
    losses += ["loss/contrastive"] if c.objective and c.objective.contrastive.kind else []
    yield from choice("run", c.run, "keep_best", "", *losses)


def _streams(c: "Sections") -> Iterator[Fault]:
    for name, stream in c.streams.items():
        yield from _stream(name, stream)
    for a, b in itertools.combinations(c.streams, 2):
        yield from _pair(a, b, c.streams)


def _stream(name: str, s: "Stream") -> Iterator[Fault]:
    path = f"streams.{name}"
    yield from within(path, s, VALUES["Stream"], apart=["objective"])
    if s.latent > 0:
        yield from _vectors(path, s)
    elif s.latent == 0:
        yield from _ids(path, s)
    if not re.fullmatch(WORD, name):
        yield Fault(path, "a stream's name is lower-case letters, digits and _; rename it")
    if not re.fullmatch(WORD, s.modality):
        yield Fault(f"{path}.modality", f"{s.modality!r}; must be lower-case letters, digits and _; rename it")
    if s.max_tokens > s.budget > 0:
        yield Fault(
            f"{path}.budget",
            f"{s.budget} tokens do not hold this stream's longest document, {path}.max_tokens = {s.max_tokens}; raise "
            f"the budget to at least {s.max_tokens}",
        )


def _ids(path: str, s: "Stream") -> Iterator[Fault]:
    yield from within(path, s, {"ids": ABOVE_0})
    if s.objective not in OF_IDS:
        yield Fault(
            f"{path}.objective",
            f"{s.objective!r}, but its tokens are {s.ids} ids ({path}.latent = 0); allowed: {', '.join(OF_IDS)}; write "
            "one, or make it a stream of vectors: latent=P, ids=0, first_id=0",
        )
    if s.masks:
        yield from _masking(path, s)


def _masking(path: str, s: "Stream") -> Iterator[Fault]:
    m = s.masking
    yield from within(f"{path}.masking", m, VALUES["Masking"])
    if 0 < m.most < m.least:
        yield Fault(f"{path}.masking.least", f"{m.least} is above {path}.masking.most = {m.most}; lower it")
    if m.by == "unit" and s.modality == "text":
        yield Fault(
            f"{path}.masking.by",
            "'unit', but text has no units, as images and clips are; write 'document', with data.blocks='document'",
        )
    if m.by == "unit" and m.shift:
        yield Fault(
            f"{path}.masking.shift",
            f"True, but {path}.masking.by is 'unit'; before its first id stands another stream's; write by='document', "
            "or False",
        )
    if m.by == "document" and (m.before_text or m.drop_rate):
        yield Fault(
            f"{path}.masking.before_text, drop_rate",
            f"{m.before_text}, {m.drop_rate}, but {path}.masking.by is 'document', which has no units; write 0.0, 0.0",
        )


def _vectors(path: str, s: "Stream") -> Iterator[Fault]:
    if s.ids or s.first_id:
        yield Fault(
            f"{path}.ids, first_id",
            f"{s.ids}, {s.first_id}, but its tokens are vectors of {path}.latent = {s.latent}; write 0, 0, or latent=0",
        )
    yield from choice(path, s, "objective", *OF_VECTORS)
    yield from within(f"{path}.diffusion", s.diffusion, VALUES["Diffusion"])
    if s.diffuses and s.diffusion.time == "mlp":
        if s.width % 2:
            yield Fault(f"{path}.width", f"{s.width}, but {path}.diffusion.time is 'mlp': half are sines; make it even")
        if s.diffusion.time_features != "small":
            yield Fault(
                f"{path}.diffusion.time_features",
                f"{s.diffusion.time_features!r}, but {path}.diffusion.time is 'mlp', which has its own; write 'small'",
            )
    yield from _entry(path, s)


def _entry(path: str, s: "Stream") -> Iterator[Fault]:
    """How vectors enter. What is folded or resampled is an input: nothing is predicted of it."""
    e = s.entry
    yield from within(f"{path}.entry", e, VALUES["Entry"])
    resampled = e.kind == "resampler"
    if resampled and not (e.queries and e.layers):
        yield Fault(
            f"{path}.entry.queries, layers",
            f"{e.queries}, {e.layers}, but {path}.entry.kind is 'resampler'; each must be above 0; Flamingo has 64, 6",
        )
    elif not resampled and (e.queries or e.layers):
        yield Fault(
            f"{path}.entry.queries, layers",
            f"{e.queries}, {e.layers}, but {path}.entry.kind is {e.kind!r}; write 0, 0, or kind='resampler'",
        )
    if e.kind == "none" and s.features != s.width:
        yield Fault(
            f"{path}.entry.kind",
            f"'none', but a token carries {s.features} numbers, and {path}.width is {s.width}; make them alike, or "
            "write 'linear'",
        )
    if e.bias and e.kind != "linear":
        yield Fault(
            f"{path}.entry.bias",
            f"True, but {path}.entry.kind is {e.kind!r}; mlp has biases as it is, a resampler none; write False, or "
            "kind='linear'",
        )
    if (resampled or e.fold > 1) and s.objective != NONE:
        yield Fault(
            f"{path}.entry",
            f"kind {e.kind!r}, fold {e.fold}, but {path}.objective is {s.objective!r}; what is resampled or folded is "
            "an input; write objective='none', or kind='linear' (or 'mlp'), fold=1",
        )


def _predictions(c: "Sections") -> Iterator[Fault]:
    """What a prediction of hidden parts' states needs, so that these do not become all alike."""
    for name, stream in c.streams.items():
        if not stream.predicts:
            continue
        path, p = f"streams.{name}.prediction", stream.prediction
        yield from within(path, p, VALUES["Prediction"])
        for key in ("block", "aspect", "context"):
            least, most = getattr(p, f"least_{key}"), getattr(p, f"most_{key}")
            if least > most:
                yield Fault(f"{path}.least_{key}", f"{least}, above {path}.most_{key} = {most}; exchange them")
        if p.targets == "ema" and not c.optim.ema:
            yield Fault(
                "optim.ema",
                f"0.0, but {path}.targets is 'ema': there is no average whose states could be predicted; write 0.996, "
                "or targets='own' with sigreg",
            )
        if p.targets == "own" and not p.sigreg:
            yield Fault(
                f"{path}.sigreg",
                "0.0 with targets 'own': states that are all alike would predict themselves, and nothing keeps them "
                "apart; write 0.05, or targets='ema'",
            )


def _pair(a: str, b: str, streams: Mapping[str, "Stream"]) -> Iterator[Fault]:
    """What two streams must have alike, or apart."""
    first, second = streams[a], streams[b]
    both_ids = not first.latent and not second.latent
    if both_ids and _are_unlike(first.width, second.width):
        yield Fault(
            f"streams.{b}.width",
            f"{second.width}, but streams.{a}.width is {first.width}; discrete streams share embedding and head, so "
            "one width; set both alike",
        )
    one_modality = first.modality == second.modality
    if one_modality and first.loss_weight != second.loss_weight:
        yield Fault(
            f"streams.{b}.loss_weight",
            f"{second.loss_weight}, but streams.{a}'s is {first.loss_weight} and both are of modality "
            f"{first.modality}, which has one weight; set both alike",
        )
    if one_modality and _do_not_add_up(first, second):
        yield Fault(
            f"streams.{b}.modality",
            f"{second.modality!r}, also that of streams.{a}; losses of ids and of vectors do not add up; name another, "
            "or give one of them objective='none'",
        )
    first_end = first.first_id + first.ids
    second_end = second.first_id + second.ids
    inside = first.first_id < second.first_id and second_end <= first_end and not (first.masks or second.masks)
    if both_ids and first.first_id < second_end and second.first_id < first_end and not inside:
        yield Fault(
            f"streams.{b}.first_id",
            f"ids {second.first_id}..{second_end - 1} overlap streams.{a}'s {first.first_id}..{first_end - 1}; move "
            "first_id to a free range, or so that all of them lie among the others, which no masked stream's may",
        )


def _towers(c: "Sections") -> Iterator[Fault]:
    streams = list(c.streams)
    if all(stream.latent for stream in c.streams.values()):
        yield Fault(
            "streams",
            f"{', '.join(streams)} are all of vectors; documents begin and end with ids; add a stream of text",
        )
    for component in ("attn", "ffn", "norm"):
        written = c.component(component).written
        path = f"towers.{component}"
        for stream in [stream for stream in written if stream not in streams]:
            yield Fault(
                f"{path}.{stream}",
                f"{written[stream]!r}; no such stream; allowed: {', '.join(streams)}; remove the key",
            )
        for stream in [stream for stream in streams if stream not in written]:
            yield Fault(
                f"{path}.{stream}", "missing; every stream needs a tower; add it (a stream's own name gives it its own)"
            )
        faults = [fault for stream in written if stream in streams for fault in _ranges(component, stream, c)]
        yield from faults
        if not faults:
            yield from _maps(component, c)


def _ranges(component: str, stream: str, c: "Sections") -> Iterator[Fault]:
    """The faults of a stream's towers by themselves: ranges that do not follow each other, and names of no stream."""
    key = f"towers.{component}.{stream}"
    written = c.component(component).written[stream]
    ranges = depth.ranges(written)
    if ranges is None:
        yield Fault(
            key,
            f"{written!r} is neither a tower's name nor ranges of layers; allowed: as '0:4 {stream}, 4:24 "
            f"{next(iter(c.streams))}', layers from 0 and the end of a range outside; mend it",
        )
        return
    for tower in [tower for tower in depth.towers(written) if tower not in c.streams]:
        yield Fault(key, f"{tower!r}; a tower is named by a stream: {', '.join(c.streams)}; choose one")
    expected = 0
    for first, end, _ in ranges:
        if first < end and first != expected:
            what = "layers in two ranges" if first < expected else "layers in no range"
            between = f"{min(first, expected)}:{max(first, expected)}"
            yield Fault(key, f"{written!r} has {what}, {between}; each begins where the one before ends; mend it")
        if first >= end:
            yield Fault(key, f"{written!r} has a range without a layer, {first}:{end}; mend it, or leave it out")
        expected = max(first, end)


def _depth(c: "Sections") -> Iterator[Fault]:
    """Ranges of layers end where the model does."""
    for component in ("attn", "ffn", "norm"):
        for stream, written in c.component(component).written.items():
            ranges = depth.ranges(written) or ()
            are_ranges = all(first < end for first, end, _ in ranges)  # else it is said already
            if ranges and are_ranges and ranges[-1].end != c.model.layers:
                beyond = "go past the depth" if ranges[-1].end > c.model.layers else "leave layers out"
                yield Fault(
                    f"towers.{component}.{stream}",
                    f"{written!r}; its ranges {beyond}: they end at layer {ranges[-1].end}, and model.layers is "
                    f"{c.model.layers}; end them there",
                )


def _maps(component: str, c: "Sections") -> Iterator[Fault]:
    """The faults of all streams' towers in each layer from which on they are others."""
    told = set()
    for layers, served in depth.parts(c.component(component).written).items():
        where = layers and f" in layers {layers}"
        towers = {stream: tower for stream, tower in served.items() if stream in c.streams}
        for stream in towers:
            if stream not in told and (found := [*_tower(component, stream, towers, where, c)]):
                told.add(stream)
                yield from found


def _tower(component: str, stream: str, towers: Mapping[str, str], where: str, c: "Sections") -> Iterator[Fault]:
    """The faults of a stream's tower in a layer: its name, and what those that share it must have alike."""
    key = f"towers.{component}.{stream}"
    tower = towers[stream]
    first = next(name for name in c.streams if towers.get(name) == tower)
    one, other = c.streams[stream], c.streams[tower]
    if first != tower:
        yield Fault(
            key,
            f"{tower!r}; a tower is named by the first stream that maps to it, here {first!r}{where}; write {first!r}",
        )
    elif component == "ffn" and _are_unlike(one.ffn, other.ffn):
        yield Fault(
            f"streams.{stream}.ffn",
            f"{one.ffn}, but it shares its FFN tower with {tower}{where}, whose ffn is {other.ffn}; set both alike or "
            f"untie {key}",
        )
    # That all streams of ids have one width is said elsewhere.
    elif (one.latent or other.latent) and _are_unlike(one.width, other.width):
        yield Fault(
            f"streams.{stream}.width",
            f"{one.width}, but it shares its {component} tower with {tower}{where}, whose width is {other.width}; set "
            f"both alike or untie {key}",
        )


def _stop_gradients(c: "Sections") -> Iterator[Fault]:
    every = [*depth.parts(c.towers.attn).values()]
    for i, pair in enumerate(c.towers.stop_gradients):
        path = f"towers.stop_gradients[{i}]"
        for key in ("queries", "keys"):
            yield from choice(path, pair, key, *c.streams)
        attn = next((m for m in every if pair.queries in m and m[pair.queries] == m.get(pair.keys)), None)
        if attn:
            yield Fault(
                path,
                f"{pair.queries} and {pair.keys} share the attention tower {attn[pair.queries]!r}, which the loss of "
                f"{pair.queries} trains as it is; untie towers.attn.{pair.queries}, or remove the wall",
            )


def _crossed(c: "Sections") -> Iterator[Fault]:
    """Streams that are seen by cross-attention alone pass through no layer, so they have no tower."""
    for name in c.crossed:
        s, path = c.streams[name], f"streams.{name}"
        if not s.latent or s.objective != NONE:
            yield Fault(
                f"{path}.cross_every",
                f"{s.cross_every}, but latent is {s.latent} and objective {s.objective!r}; what is seen by "
                "cross-attention alone is vectors that are inputs; write objective='none', or cross_every=0",
            )
        if s.cross_every > c.model.layers:
            yield Fault(
                f"{path}.cross_every",
                f"{s.cross_every}, but model.layers is {c.model.layers}; no layer would see it; lower it",
            )
        for other in [other for other in c.streams if other not in c.crossed]:
            if _are_unlike(s.width, c.streams[other].width):
                yield Fault(
                    f"{path}.width",
                    f"{s.width}, but streams.{other}.width is {c.streams[other].width}; who sees by cross-attention "
                    "has the width of what is seen; set both alike",
                )
        own = [x for x in ("attn", "ffn", "norm") if name in depth.towers(c.component(x).written.get(name, ""))]
        if own:
            yield Fault(
                ", ".join(f"towers.{component}.{name}" for component in own),
                f"{name!r}, but its tokens pass through no layer (cross_every = {s.cross_every}); map it to the "
                "tower of another stream, as arch=dense does",
            )


def _are_unlike(a: int, b: int) -> bool:
    """Do two numbers in range differ? What is out of range is said already."""
    return a != b and a > 0 and b > 0


def _model(c: "Sections") -> Iterator[Fault]:
    m = c.model
    yield from within("model", m, VALUES["Model"], apart=["dense_layers", "sparse_every"])
    if m.kv_heads > 0 and m.heads > 0 and m.heads % m.kv_heads:
        yield Fault(
            "model.heads",
            f"{m.heads} query heads do not divide among model.kv_heads = {m.kv_heads}; "
            "make heads a multiple of kv_heads",
        )
    if m.head_size > 0 and m.head_size % 2:
        yield Fault("model.head_size", f"{m.head_size}; RoPE turns pairs, so it must be even; add or take one")
    if m.attention_cap > 0 and m.attention in ATTENTION and m.attention not in CAPPED:
        yield Fault(
            "model.attention",
            f"{m.attention!r}, whose kernel has no cap, but model.attention_cap is {m.attention_cap}; write "
            f"{' or '.join(map(repr, CAPPED))}, or a cap of 0.0",
        )


ROPE_AXES = ("time", "row", "column")  # of model.rope_sections


def _rope(c: "Sections") -> Iterator[Fault]:
    """Which pairs turn by which axis, and what seconds and gaps mean."""
    m = c.model
    counts = m.rope_sections
    if m.rope_features > 0 and (m.rope_features % 2 or m.rope_features > m.head_size):
        yield Fault(
            "model.rope_features",
            f"{m.rope_features}; must be even, as RoPE turns pairs, and at most model.head_size = {m.head_size}; 0 "
            "turns all; change it",
        )
    elif counts and (len(counts) != len(ROPE_AXES) or min(counts) < 0 or sum(counts) != m.rope_pairs):
        of = "model.rope_features" if m.rope_features else "model.head_size"
        yield Fault(
            "model.rope_sections",
            f"{counts}; must be () or three numbers of 0 or more, of pairs that turn by {', '.join(ROPE_AXES)}, "
            f"which fill half of {of} = {2 * m.rope_pairs}: {m.rope_pairs} in all; change them",
        )
    yield from _rope_scaling(c)
    for key in ("rope_interleaved", "rope_time_last", "rope_reset"):
        if getattr(m, key) and not counts:
            yield Fault(f"model.{key}", "True, but model.rope_sections is (): there is one axis; write False")
    if m.rope_reset and counts and not counts[0]:
        yield Fault(
            "model.rope_reset",
            f"True, but model.rope_sections = {counts} has no time: units would all lie in one place; write False",
        )
    timed = [name for name, s in c.streams.items() if s.rope_seconds > 0]
    if m.rope_per_second > 0 and not timed:
        yield Fault("model.rope_per_second", f"{m.rope_per_second}, but no stream has rope_seconds; write 0")
    for name in timed if m.rope_per_second == 0 else ():
        yield Fault(
            f"streams.{name}.rope_seconds",
            f"{c.streams[name].rope_seconds}, but model.rope_per_second is 0: a second is no number of positions; give "
            "it one, or write 0",
        )
    for name, s in c.streams.items():
        if s.place_table > 0 and not s.latent:
            yield Fault(
                f"streams.{name}.place_table",
                f"{s.place_table}, but its tokens are ids; tables are for latents; write 0",
            )


def _rope_scaling(c: "Sections") -> Iterator[Fault]:
    """What each kind of scaling needs, and what means nothing to it."""
    s = c.model.rope_scaling
    path = "model.rope_scaling"
    yield from within(path, s, VALUES["RopeScaling"])
    by_turns = s.kind in ("llama3", "yarn")
    if by_turns and not (s.length > 0 and 0 < s.least_turns < s.most_turns):
        yield Fault(
            f"{path}.length, least_turns, most_turns",
            f"{s.length}, {s.least_turns}, {s.most_turns}, but kind is {s.kind!r}; length must be above 0, and "
            "least_turns above 0 and below most_turns; base.rope_scaling() has the published ones",
        )
    if not by_turns and (s.length or s.least_turns or s.most_turns):
        yield Fault(
            f"{path}.length, least_turns, most_turns",
            f"{s.length}, {s.least_turns}, {s.most_turns}, but kind is {s.kind!r}, which reads none; write 0, 0.0, 0.0",
        )
    if not s.kind and (s.factor != 1 or s.amplitude != 1):
        yield Fault(
            f"{path}.factor, amplitude",
            f"{s.factor}, {s.amplitude}, but kind is '': nothing is stretched; write 1.0, 1.0, or choose a kind",
        )
    if s.kind == "yarn" and c.model.rope_theta <= 1:
        yield Fault(
            "model.rope_theta", f"{c.model.rope_theta}, but {path}.kind is 'yarn', which needs one above 1; raise it"
        )


def _experts(c: "Sections") -> Iterator[Fault]:
    for component in ("attn", "ffn"):
        experts = c.component(component).experts
        towers = c.component(component).towers
        is_known = set(towers) <= set(c.streams)  # what is no tower is said already
        for tower in [tower for tower in experts if is_known and tower not in towers]:
            yield Fault(
                f"{component}.{tower}",
                f"no such tower; towers.{component} names {', '.join(towers)}; remove the key",
            )
        for tower in [tower for tower in towers if is_known and tower not in experts]:
            yield Fault(f"{component}.{tower}", "missing; every tower needs its experts; base.moe() is a single set")
        for tower, e in experts.items():
            path = f"{component}.{tower}"
            yield from within(path, e, VALUES["Experts"], apart=["active"])
            if e.experts > 0:
                yield from _experts_of(path, e, component)


def _experts_of(path: str, e: "Experts", component: str) -> Iterator[Fault]:
    if not 1 <= e.active <= e.experts:
        yield Fault(
            f"{path}.active",
            f"{e.active}; a token passes through 1 to {path}.experts = {e.experts}; change either",
        )
    if component == "attn":
        yield from _attention_experts(path, e)
    if e.shared_gate and not e.shared:
        yield Fault(
            f"{path}.shared_gate",
            f"True, but {path}.shared is 0; a shared expert needs a hidden size; give it one",
        )
    if 0 < e.capacity < 1 / e.experts:
        yield Fault(
            f"{path}.capacity",
            f"{e.capacity}; with {e.experts} experts it must be 0 (dropless) or at least {1 / e.experts:.4g}, one in "
            f"{e.experts}; raise it",
        )
    router = ROUTERS.get(e.router)
    if router and (unread := [key for key, value in router.fixed.items() if getattr(e, key) != value]):
        values = ", ".join(f"{key} {getattr(e, key)!r}" for key in unread)
        yield Fault(
            path,
            f"{values}, which router {e.router!r} does not read ({router.about}); write "
            f"{', '.join(f'{key}={router.fixed[key]!r}' for key in unread)}",
        )
    if e.active == 1 and e.normalise:
        yield Fault(
            f"{path}.normalise",
            f"True with {path}.active = 1; every weight would be 1 and the router learn nothing from the loss; write "
            "False, or activate more",
        )
    if e.balance == "none" and e.balance_rate:
        yield Fault(
            f"{path}.balance_rate",
            f"{e.balance_rate}, but {path}.balance is 'none'; write 0.0, or choose loss or bias",
        )
    if e.balance != "bias" and e.balance_loss > 0:
        yield Fault(
            f"{path}.balance_loss",
            f"{e.balance_loss}, but {path}.balance is {e.balance!r}; it is a loss beside a bias; write 0.0, or 'bias'",
        )
    yield from _expert_groups(path, e)


def _expert_groups(path: str, e: "Experts") -> Iterator[Fault]:
    """Groups are of equal size, two experts or more, and those of which a token chooses hold all that it chooses."""
    if e.groups < 1 or e.active_groups < 1:
        return  # said already
    size = e.experts // e.groups
    if e.groups > 1 and (e.experts % e.groups or size < 2):
        yield Fault(
            f"{path}.groups",
            f"{e.groups}; must be 1, or divide {path}.experts = {e.experts} into groups of two or more; change either",
        )
    elif e.active_groups > e.groups or (e.groups > 1 and e.active > e.active_groups * size):
        yield Fault(
            f"{path}.active_groups",
            f"{e.active_groups}; must be at most {path}.groups = {e.groups}, and hold {path}.active = {e.active} "
            f"experts, of which a group has {size}; change it",
        )


def _attention_experts(path: str, e: "Experts") -> Iterator[Fault]:
    """Experts of QKV and O have no hidden size, and every token needs one of them."""
    for key in ("width", "shared"):
        if getattr(e, key):
            yield Fault(f"{path}.{key}", f"{getattr(e, key)}; sets of QKV and O have heads, no hidden size; write 0")
    if e.capacity or (e.router in ROUTERS and not ROUTERS[e.router].serves_all):
        yield Fault(
            f"{path}.router, capacity",
            f"{e.router!r}, {e.capacity}; a token without a place would be without QKV; write 'token', 0.0",
        )


def _layers(c: "Sections") -> Iterator[Fault]:
    m = c.model
    routed = any(s.experts for s in (*c.attn.values(), *c.ffn.values()))
    if not 0 <= m.dense_layers < max(m.layers, 1) or m.sparse_every < 1:
        yield Fault(
            "model.dense_layers, sparse_every",
            f"{m.dense_layers}, {m.sparse_every}; allowed: 0 to {m.layers - 1} "
            "(model.layers less one), and 1 or more; change them",
        )
    elif (m.layers - m.dense_layers) % m.sparse_every:
        yield Fault(
            "model.sparse_every",
            f"{m.sparse_every} does not divide the {m.layers - m.dense_layers} layers after the "
            f"first {m.dense_layers}; change model.layers, dense_layers or sparse_every",
        )
    elif not routed and (m.dense_layers, m.sparse_every) != (0, 1):
        yield Fault(
            "model.dense_layers, sparse_every",
            f"{m.dense_layers}, {m.sparse_every}, but no tower has experts; write 0, 1, or give attn or ffn experts",
        )


def _init(c: "Sections") -> Iterator[Fault]:
    yield from within("init", c.init, VALUES["Init"])
    if c.init.state == "all" and (not c.init.run or c.init.noise > 0):
        yield Fault(
            "init.state",
            f"all, but init.run is {c.init.run!r} and init.noise {c.init.noise}; name a run, without noise",
        )
    elif not c.init.run and (c.init.step > 0 or c.init.noise > 0):
        yield Fault(
            "init.step, noise", f"{c.init.step}, {c.init.noise}, but init.run is ''; name a run, or write 0, 0.0"
        )
    if fault := fault_of(c.init.run):
        yield Fault("init.run", fault)
    if c.init.match and c.init.state == "all":
        yield Fault(
            "init.match", f"{c.init.match!r}, but init.state is all, which takes everything; write '', or state=weights"
        )
    if c.init.match and not c.init.run:
        yield Fault(
            "init.match", f"{c.init.match!r}, but init.run is ''; name the run that they come from, or write ''"
        )
    for key in ("deeper", "wider"):
        if (rule := getattr(c.init, key)) in VALUES["Init"][key][1:] and (c.init.state == "all" or not c.init.run):
            yield Fault(
                f"init.{key}",
                f"{rule!r}, but init.run is {c.init.run!r} and init.state {c.init.state!r}; name a run whose weights "
                "grow, or write ''",
            )
    yield from pattern("init.match", c.init.match)


def pattern(key: str, text: str) -> Iterator[Fault]:
    """The faults of a regular expression that is to match parameters' paths."""
    if len(text) > LONGEST_PATTERN:
        yield Fault(key, f"{len(text)} characters; must be at most {LONGEST_PATTERN}; shorten it, or write two rules")
        return
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        yield Fault(key, f"{text!r} is no regular expression ({error}); mend it")
        return
    if why := _endless(text):
        yield Fault(
            key,
            f"{text!r} {why}, so that matching may not end; allowed: at most {MOST_REPEATS} of * + ? {{}}, none of "
            f"them after a group, and alternatives that combine in at most {MOST_WAYS} ways; simplify it",
        )


def _endless(text: str) -> str:
    """Why matching a regular expression may take time that grows beyond bounds; "" where it does not."""
    bare = re.sub(
        r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", text, flags=re.DOTALL
    )  # what is escaped, and sets: one character
    bare = re.sub(r"\(\?[^)\s]?", "(", bare)  # what a group is for is no repeat
    if re.search(r"\)[*+?{]", bare):
        return "repeats a group"
    if (repeats := len(re.findall(r"[*+?{]+", bare))) > MOST_REPEATS:
        return f"repeats {repeats} times"
    ways = [1]  # of each open group: the alternatives, and how those inside combine
    combined = 1
    for character in bare:
        if character == "(":
            ways.append(1)
        elif character == "|":
            ways[-1] += 1
        elif character == ")" and len(ways) > 1:
            combined *= ways.pop()
    combined *= ways[0]
    return f"has alternatives that combine in {combined} ways" if combined > MOST_WAYS else ""


def _objective(c: "Sections") -> Iterator[Fault]:
    yield from within("objective", c.objective, VALUES["Objective"])
    centred = [name for name, s in c.streams.items() if s.diffuses and s.diffusion.loss_centre]
    if c.objective.common_target and centred:
        yield Fault(
            "objective.common_target",
            f"{c.objective.common_target}, but streams.{centred[0]}.diffusion.loss_centre scales that loss already; "
            "write 0.0 for either",
        )


POOLS = ("mean", "last")  # of a part's states; beside these, a token's id


def _contrastive(c: "Sections") -> Iterator[Fault]:
    """What is paired must be there, be able to be told apart, and have negatives."""
    term = c.objective.contrastive
    path = "objective.contrastive"
    yield from within(path, term, VALUES["Contrastive"])
    if not term.kind:
        return
    streams, pools = names(term.streams), names(term.pool)
    for name in [name for name in streams if name not in c.streams]:
        remedy = meant(name, c.streams) or "choose one"
        yield Fault(f"{path}.streams", f"{name!r}: no such stream; allowed: {', '.join(c.streams)}; {remedy}")
    for name in [name for name in streams if name in c.crossed]:
        yield Fault(
            f"{path}.streams",
            f"{name!r}, but streams.{name}.cross_every is {c.streams[name].cross_every}: it passes through no layer, "
            "and has no states to contrast; write cross_every=0, or name another stream",
        )
    if not 1 <= len(set(streams)) == len(streams) <= 2:
        yield Fault(
            f"{path}.streams",
            f"{term.streams!r}; must be two streams with a comma between, or one that passes twice; name them",
        )
    if len(pools) not in (1, len(streams)):
        yield Fault(
            f"{path}.pool", f"{term.pool!r} for {len(streams)} streams; write one for all, or one for each of them"
        )
    for name, pool in term.pools.items():
        if name in c.streams and pool not in POOLS:
            yield from _pool(f"{path}.pool", name, pool, c.streams[name])
    if len(streams) == 1 and not c.model.dropout:
        yield Fault(
            f"{path}.streams",
            f"{term.streams!r} alone, whose parts pass twice and differ in dropout, but model.dropout is 0; write 0.3 "
            "(2104.08821), or name two streams",
        )
    known = [c.streams[name] for name in streams if name in c.streams]
    if not term.width and len({s.width for s in known}) > 1:
        yield Fault(
            f"{path}.width",
            f"0, but the streams are {' and '.join(str(s.width) for s in known)} wide; states of other widths compare "
            "in no common space; write the features of one",
        )
    if term.skip_equal and known and all(s.latent for s in known):
        yield Fault(f"{path}.skip_equal", "True, but both streams are of vectors; ids alone are compared; write False")
    if c.data.batch * max(term.pairs, 1) == 1 and term.pairs == 1:
        yield Fault(
            f"{path}.pairs",
            "1, and data.batch is 1: a batch of one pair has no negatives; raise either, to many",
        )


def _pool(path: str, name: str, pool: str, s: "Stream") -> Iterator[Fault]:
    """The fault of a pool that is neither of POOLS nor the id of a token that the stream may hold."""
    allowed = ", ".join(POOLS)
    if not s.latent:
        allowed += f", or an id of {name}, {s.first_id} to {s.first_id + s.ids - 1}"
    if s.latent or not pool.isdecimal() or not s.first_id <= int(pool) < s.first_id + s.ids:
        yield Fault(path, f"{pool!r}: no such pool of {name}; allowed: {allowed}; choose one")


def _mesh(c: "Sections") -> Iterator[Fault]:
    m = c.mesh
    yield from within("mesh", m, VALUES["Mesh"])
    used = {name for text in m.rules.values() for name in names(text)}
    for axis in [axis for axis in MESH_AXES if getattr(m, axis) > 1 and axis not in used]:
        yield Fault(
            f"mesh.{axis}",
            f"{getattr(m, axis)}, and no rule in mesh.rules splits anything by it: its devices would all "
            "do the same; write 1, or name it in a rule",
        )
    for component in ("attn", "ffn"):
        for tower, s in getattr(c, component).items():
            if s.experts and m.expert > 0 and s.experts % m.expert:
                yield Fault(
                    f"{component}.{tower}.experts",
                    f"{s.experts} do not divide among mesh.expert = {m.expert} "
                    "devices; make one a multiple of the other",
                )
            if component == "attn" and s.experts and m.tensor > 1:
                yield Fault(
                    "mesh.tensor",
                    f"{m.tensor}, but attn.{tower} has {s.experts} experts, whose heads are not split; write 1",
                )


def _slices(c: "Sections") -> Iterator[Fault]:
    rows = max(c.data.batch // max(c.optim.accumulate, 1), 1)
    if c.mesh.slices > rows:
        yield Fault(
            "mesh.slices", f"{c.mesh.slices}, and a microbatch has {rows} rows; each slice needs one; make it smaller"
        )


def _rules(c: "Sections") -> Iterator[Fault]:
    rules = c.mesh.rules
    path = "mesh.rules"
    for axis in [a for a in rules if a not in LOGICAL_AXES]:
        remedy = meant(axis, LOGICAL_AXES) or "remove it"
        yield Fault(f"{path}.{axis}", f"no such logical axis; allowed: {', '.join(LOGICAL_AXES)}; {remedy}")
    for axis in [a for a in LOGICAL_AXES if a not in rules]:
        yield Fault(f"{path}.{axis}", "missing; '' does not split it; add it")
    for axis, text in rules.items():
        for name in [n for n in names(text) if n not in MESH_AXES]:
            yield Fault(
                f"{path}.{axis}", f"{name!r} is no axis of the mesh; allowed: {', '.join(MESH_AXES)}; choose of them"
            )
        if len(set(names(text))) < len(names(text)):
            yield Fault(f"{path}.{axis}", f"{text!r} splits it twice by one axis; name each once")
    for axes in TOGETHER:
        for a, b in itertools.combinations([a for a in axes if a in rules], 2):
            if twice := set(names(rules[a])) & set(names(rules[b])):
                yield Fault(
                    f"{path}.{a}, {b}",
                    f"{rules[a]!r}, {rules[b]!r}; one array has both axes, and {twice.pop()!r} cannot "
                    "split it twice; take it out of one",
                )
    for axis, allowed in (("length", ("", "context")), ("expert", ("", "expert")), ("head", ("",)), ("layer", ("",))):
        if rules.get(axis, "").strip() not in allowed:
            yield Fault(f"{path}.{axis}", f"{rules[axis]!r}; allowed: {', '.join(map(repr, allowed))}; choose one")
    if rules.get("heads") != rules.get("kv_heads"):
        yield Fault(
            f"{path}.heads, kv_heads",
            f"{rules.get('heads')!r}, {rules.get('kv_heads')!r}; a query head meets its own "
            "key head, so they are split alike; write the same",
        )
    if rules.get("expert") and "expert" not in names(rules.get("batch", "")):
        yield Fault(
            f"{path}.batch",
            f"{rules.get('batch')!r}; who shares experts has rows of its own; add 'expert', or write expert=''",
        )


def _data(c: "Sections") -> Iterator[Fault]:
    d = c.data
    yield from within("data", d, VALUES["Data"])
    for name in d.sources:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            yield Fault(f"data.sources.{name}", "a source's name is letters, digits, _ and -; rename it")
    every = [("data.shares", d.shares), *((f"data.stages[{i}].shares", s.shares) for i, s in enumerate(d.stages))]
    for path, shares in every:
        for source, share in shares.items():
            if source not in d.sources:
                yield Fault(f"{path}.{source}", f"no such source; data.sources names {', '.join(d.sources)}; remove it")
            if share < 0:
                yield Fault(f"{path}.{source}", f"{share}; must be 0 or more; raise it")
        if not any(share > 0 for share in shares.values()):
            yield Fault(path, f"{dict(shares)}; at least one source must have a share above 0; raise one")
    steps = [0, *(s.step for s in d.stages)]
    if any(b <= a for a, b in itertools.pairwise(steps)):
        yield Fault(
            "data.stages", f"begin at steps {steps[1:]}; each must begin later than the one before, after 0; order them"
        )


def _budgets(c: "Sections") -> Iterator[Fault]:
    auto = [name for name, s in c.streams.items() if not s.budget]
    if auto and not c.data.length:
        yield Fault(
            f"streams.{auto[0]}.budget", "0, but data.length is 0; give it a budget, or data.length for all to share"
        )
    modalities = [s.modality for s in c.streams.values()]
    yield from choice("data", c.data, "per", *dict.fromkeys(["documents", "tokens", *modalities]))


def _blocks(c: "Sections") -> Iterator[Fault]:
    for name, s in c.streams.items():
        if c.data.blocks == "document" and s.copies > 1:
            yield Fault(
                "data.blocks",
                f"'document', but streams.{name}.diffusion.copies is 'both'; what comes before a unit "
                "would see its clean copy, and the noised one that: it would read its answer; write 'noised'",
            )
        if s.ends_prefix and not (s.latent and s.objective == NONE and c.data.blocks == "prefix"):
            yield Fault(
                f"streams.{name}.ends_prefix",
                f"True, but its objective is {s.objective!r}, {s.latent} its latent and data.blocks {c.data.blocks!r}; "
                "write False, or make it vectors that are read (objective='none') of data.blocks='prefix'",
            )
        if s.masks == "document" and c.data.blocks != "document":
            yield Fault(
                "data.blocks",
                f"{c.data.blocks!r}, but streams.{name}.masking.by is 'document': what is hidden is predicted from "
                "both sides; write 'document'",
            )
    of_one = [pair for pair in itertools.combinations(c.streams, 2) if _show_one_unit(*(c.streams[s] for s in pair))]
    for a, b in of_one if c.data.blocks == "document" else ():
        yield Fault(
            "data.blocks",
            f"'document', but streams.{a} and {b} hold one unit in two forms; all tokens would see both, and what is "
            "learnt of one is read off the other; write 'units' or 'prefix'",
        )


def _do_not_add_up(a: "Stream", b: "Stream") -> bool:
    return NONE not in (a.objective, b.objective) and bool(a.latent) != bool(b.latent)


def _show_one_unit(a: "Stream", b: "Stream") -> bool:
    return a.modality == b.modality and a.holds != b.holds and (a.objective, b.objective) != (NONE, NONE)


def _roles(c: "Sections") -> Iterator[Fault]:
    """What rules of appearance need, and that each stream of a representation which another holds is named by one."""
    named = set()
    for i, role in enumerate(c.data.roles):
        path = f"data.roles[{i}]"
        yield from within(path, role, VALUES["Role"])
        yield from choice(path, role, "source", "", *c.data.sources)
        yield from _role(path, role, c)
        named |= {name for name, _ in role.named}
    by_holds: dict[str, str] = {}
    for name, s in c.streams.items():
        first = by_holds.setdefault(s.holds, name)
        if first != name and not {first, name} & named and not _do_not_add_up(s, c.streams[first]):
            yield Fault(
                f"streams.{name}.representation",
                f"{s.holds!r}, also that of streams.{first}, and nothing says which of them a unit appears in; name "
                "another representation, or the streams in data.roles",
            )


def _role(path: str, role: "Role", c: "Sections") -> Iterator[Fault]:
    """The faults of one rule's streams."""
    key = f"{path}.streams"
    media = [name for name, s in c.streams.items() if s.modality != "text"]
    for part in role.streams.split(","):
        name, colon, how = part.strip().partition(":")
        if name not in media or (colon and how != "input"):
            remedy = meant(name, media) if name not in media else f"write {name}:input, or {name}"
            yield Fault(key, f"{part!r}; allowed: {', '.join(media)}, or one of them and :input; {remedy or 'choose'}")
            return
    names_ = [name for name, _ in role.named]
    if len({c.streams[name].modality for name in names_}) > 1 or len(set(names_)) < len(names_):
        yield Fault(key, f"{role.streams!r}; must be of one modality, and none twice; write a rule for each modality")
        return
    learns = [not is_input and c.streams[name].objective != NONE for name, is_input in role.named]
    if learns != sorted(learns, reverse=True):
        late = names_[max(i for i, one in enumerate(learns) if one)]
        yield Fault(
            key,
            f"{role.streams!r}; {late} would see its answer, the input before it; write what learns first",
        )


LONGEST_IN_BFLOAT16 = 0.99  # numbers are up to 2^-7 apart: smaller steps would be lost


def _optim(c: "Sections") -> Iterator[Fault]:
    o = c.optim
    yield from within("optim", o, VALUES["Optim"])
    yield from _transfer(o)
    yield from pattern("optim.muon", o.muon)
    for key in ("beta1", "beta2", "momentum"):
        if o.moments == "bfloat16" and getattr(o, key) > LONGEST_IN_BFLOAT16:
            yield Fault(
                "optim.moments",
                f"'bfloat16', but a step moves them by 1 - optim.{key} = {1 - getattr(o, key):.2g} of "
                f"themselves, which 8 bits round away; write float32, or a {key} of at most {LONGEST_IN_BFLOAT16}",
            )
    if o.reduce_dtype == "bfloat16" and c.model.dtype != "bfloat16":
        yield Fault(
            "optim.reduce_dtype",
            f"'bfloat16', but model.dtype is {c.model.dtype!r}, and gradients are as precise as what they are made of; "
            "write float32, or model.dtype='bfloat16'",
        )
    if 0 < o.ema_end <= 1 and not 0 < o.ema <= o.ema_end:
        yield Fault("optim.ema_end", f"{o.ema_end}, and optim.ema is {o.ema}; it rises from above 0; write 0.0, or 1.0")
    if 0 < o.skip_above <= 1:
        yield Fault(
            "optim.skip_above",
            f"{o.skip_above}: half of all gradients are longer than their median; must be 0 (off) or above 1; 10 is "
            "far from the usual",
        )
    if o.end_lr > o.lr > 0 and o.schedule != "constant":
        yield Fault("optim.end_lr", f"{o.end_lr} is above optim.lr = {o.lr}; the rate decays; lower end_lr")
    for key in ("rules", "base_rules"):
        if len(getattr(o, key)) > MOST_RULES:
            yield Fault(f"optim.{key}", f"{len(getattr(o, key))} rules; must be at most {MOST_RULES}; join some")
        for i, rule in enumerate(getattr(o, key)):
            yield from within(f"optim.{key}[{i}]", rule, VALUES["Rule"])
            yield from pattern(f"optim.{key}[{i}].match", rule.match)


def _transfer(o: "Optim") -> Iterator[Fault]:
    """What a transfer needs, and what means nothing without one."""
    if o.transfer == "mup" and not o.base_width:
        yield Fault("optim.base_width", "0, but optim.transfer is 'mup'; write the width at which optim.lr was tuned")
    bases = {key: getattr(o, key) for key in ("base_width", "base_head_size", "base_layers")}
    unread = {f"optim.{key}": value for key, value in bases.items() if value > 0}
    if not o.transfer and unread:
        yield Fault(
            ", ".join(unread), f"{', '.join(map(str, unread.values()))}, but optim.transfer is ''; write 0, or 'mup'"
        )


def _steps(c: "Sections") -> Iterator[Fault]:
    if c.run.steps < 1 or c.optim.warmup < 0:
        return  # said already
    if c.run.steps < c.optim.warmup:
        yield Fault(
            "run.steps",
            f"{c.run.steps} is less than optim.warmup = {c.optim.warmup}; the rate would never reach its "
            "peak; raise steps or lower warmup",
        )
    elif c.optim.schedule == "wsd" and not 0 < c.optim.decay_steps <= c.run.steps - c.optim.warmup:
        yield Fault(
            "optim.decay_steps",
            f"{c.optim.decay_steps}; wsd needs 1 to {c.run.steps - c.optim.warmup} (run.steps less "
            "optim.warmup); change it",
        )


def _accumulate(c: "Sections") -> Iterator[Fault]:
    if c.optim.accumulate > 0 and c.data.batch % c.optim.accumulate:
        yield Fault(
            "data.batch",
            f"{c.data.batch} rows do not divide into optim.accumulate = {c.optim.accumulate} microbatches; "
            "make batch a multiple of it",
        )
