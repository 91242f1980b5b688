"""Every key there is, with the values that most experiments keep. An experiment's file changes the others."""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict


class Argument(NamedTuple):
    """An argument of a configuration's file, as `arch` in `configs/digits.py:arch=mot`. `mot train --help` shows it."""

    default: str
    allowed: Collection[str] = ()  # the values; where there are none, any that `about` tells of
    about: str = ""


def parse(arg: str, arguments: Mapping[str, Argument]) -> dict[str, str]:
    """`arch=mot,size=demo` over the defaults; unknown names are refused, and values that `Argument.allowed` lacks."""
    pairs = [(name, value) for name, _, value in (part.partition("=") for part in arg.split(",") if part)]
    names = [name for name, _ in pairs]
    faults = []
    for name, value in pairs:
        if name not in arguments:
            faults.append(f"config argument '{name}={value}' is unknown{meant(name, arguments)}")
        elif not value:
            faults.append(f"config argument '{name}=' has no value")
    faults += [
        f"config argument '{name}' stands there {names.count(name)} times"
        for name in arguments
        if names.count(name) > 1
    ]
    if faults:
        allowed = ", ".join(f"{name}={argument.default}" for name, argument in arguments.items())
        faults = [f"{'; '.join(faults)}; allowed, with their defaults: {allowed}"]
    for name, value in dict(pairs).items():
        if name in arguments and value and not _is_allowed(value, arguments[name].allowed):
            faults.append(_none_such(name, value, arguments[name].allowed))
    if faults:
        raise ValueError("\n  ".join(faults))
    return {name: argument.default for name, argument in arguments.items()} | dict(pairs)


def _is_allowed(value: str, allowed: Collection[str]) -> bool:
    """`*` and `<stream>` in what is allowed stand for any name; the file judges such values itself."""
    patterns = [re.sub(r"\\\*|<\w+>", r"\\w*", re.escape(one)) for name in allowed for one in name.split(", ")]
    return not allowed or any(re.fullmatch(pattern, value) for pattern in patterns)


def _none_such(what: str, name: str, allowed: Collection[str], where: str = "") -> str:
    remedy = meant(name, allowed) or "; choose one"
    return f"{what}={name}: no such {what}{where}; allowed: {', '.join(allowed)}{remedy}"


def budget(name: str, text: str, sign: str = "=") -> float:
    """A number above 0, which was given as `name` `sign` `text`; raises `ValueError` for another text."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise ValueError(f"{name}{sign}{text}: must be a number above 0, as in {name}{sign}1e12")
    return found


def chosen(what: str, name: str, allowed: Collection[str], where: str = "") -> str:
    """One of the allowed names; raises `ValueError` for another."""
    if name not in allowed:
        raise ValueError(_none_such(what, name, allowed, where))
    return name


def meant(given: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'mot'?`, or "" where nothing that is allowed looks like it."""
    near = difflib.get_close_matches(given, list(allowed), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def stream(
    modality: str,
    width: int,
    ffn: int,
    diffusion: dict | None = None,
    masking: dict | None = None,
    prediction: dict | None = None,
    entry: dict | None = None,
    **changes,
) -> dict:
    """A kind of token: ids (first_id, ids), or vectors of `latent` features with objective flow, x, ddpm or latent."""
    return (
        dict(
            modality=modality,
            width=width,
            ffn=ffn,
            budget=0,
            max_tokens=0,
            first_id=0,
            ids=0,
            latent=0,
            place_table=0,
            rope_seconds=0.0,
            rope_gap=0,
            objective="next_token",
            loss_weight=1.0,
            representation="",
            ends_prefix=False,
            diffusion=dict(
                time="norm",
                time_features="small",
                time_of_clean=False,
                copies="noised",
                time_distribution="logit_normal",
                shift=1.0,
                max_noise=1.0,
                drop_rate=0.0,
                loss_centre=0.0,
            )
            | (diffusion or {}),
            masking=dict(
                by="unit",
                distribution="uniform",
                least=1e-3,
                most=1.0,
                weighting="elbo",
                shift=False,
                before_text=0.0,
                drop_rate=0.0,
            )
            | (masking or {}),
            # I-JEPA's masks (2301.08243, A.1); its predictor has 12 layers, and 384 of 1280 features.
            prediction=dict(
                targets="ema",
                sigreg=0.0,
                slices=256,
                columns=1,
                blocks=4,
                least_block=0.15,
                most_block=0.2,
                least_aspect=0.75,
                most_aspect=1.5,
                least_context=0.85,
                most_context=1.0,
                layers=2,
                width=64,
                ffn=176,
            )
            | (prediction or {}),
            entry=dict(kind="linear", bias=False, fold=1, queries=0, layers=0) | (entry or {}),
            cross_every=0,
        )
        | changes
    )


def moe(experts: int = 0, **changes) -> dict:
    """The parameter sets of one tower's FFN, or of its QKV and O: a single one, or experts and their router."""
    return (
        dict(
            experts=experts,
            active=1,
            width=0,
            shared=0,
            shared_gate=False,
            router="token",  # "expert" looks at LATER tokens of the row: no model to generate from, but see causal_loss
            score="softmax",
            normalise=False,
            weight_scale=1.0,
            groups=1,
            active_groups=1,
            capacity=0.0,
            overflow="earliest",
            balance="none",
            balance_rate=0.0,
            balance_loss=0.0,
            z_loss=0.0,
            jitter=0.0,
        )
        | changes
    )


def rope_scaling(kind: str = "", factor: float = 1.0, **changes) -> dict:
    """How RoPE's wavelengths are stretched: not at all, all alike (linear), or long ones (llama3, yarn).

    The numbers of turns are Llama 3.1's, and of yarn those of 2309.00071, which also has the amplitude.
    """
    least, most = {"llama3": (1.0, 4.0), "yarn": (1.0, 32.0)}.get(kind, (0.0, 0.0))
    amplitude = 0.1 * math.log(factor) + 1 if kind == "yarn" else 1.0
    return dict(kind=kind, factor=factor, length=0, least_turns=least, most_turns=most, amplitude=amplitude) | changes


def contrastive(kind: str = "", **changes) -> dict:
    """The contrastive term: none, CLIP's (infonce), or SigLIP's (sigmoid), with the first values of their papers."""
    return (
        dict(
            kind=kind,
            weight=1.0,
            streams="text,image",
            pool="mean",
            width=256,
            pairs=0,
            temperature=0.1 if kind == "sigmoid" else 0.07,  # 2303.15343: t' = log 10; 2103.00020
            bias=-10.0,
            skip_equal=False,
        )
        | changes
    )


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.run = dict(root="runs", name="run", steps=1000, flops=0.0, eval_every=100, eval_batches=8)
    c.run.update(save_every=500, save_minutes=0.0, keep=3, keep_every=0, keep_best="")
    c.run.update(probe_every=0, check_every=0, hang_timeout=3600.0, peer_timeout=60.0, trackers="", role="fit")
    c.streams = ConfigDict()  # the experiment's: `stream(...)` by name
    c.towers = ConfigDict()  # the experiment's: configs/archs.py
    c.update(attn=ConfigDict(), ffn=ConfigDict())  # the experiment's: `sets()` by tower
    c.model = dict(
        layers=8,
        dense_layers=0,
        sparse_every=1,
        heads=8,
        kv_heads=8,
        head_size=64,
        tied=False,
        scan=False,  # accelerators want True
        remat="none",
        dtype="float32",  # accelerators want bfloat16
        attention="chunked",
        dispatch="blocked",  # accelerators want ragged
        seed=0,
    )
    c.model.update(norm="pre", norm_eps=1e-5, qk_norm="rms")
    # geglu, norm_offset and embed_scale make Gemma's block, with norm="both", caps and query_size Gemma 2's; qkv_bias
    # Qwen2's
    c.model.update(query_size=0, attention_cap=0.0, logits_cap=0.0)
    c.model.update(dropout=0.0, activation="swiglu", norm_offset=False, embed_scale=False, qkv_bias=False)
    c.model.update(rope_theta=10_000.0, rope_features=0, rope_scaling=rope_scaling(), rope_sections=())
    c.model.update(rope_interleaved=False, rope_time_last=False, rope_reset=False, rope_per_second=0.0)
    c.init = dict(run="", step=0, state="weights", match="", noise=0.0, deeper="", wider="")  # of another run
    c.mesh = dict(data=0, fsdp=1, expert=1, context=1, tensor=1, slices=1, exchange="gather", buffer=1.5)
    c.mesh.rules = dict(batch="data,fsdp,expert", length="context", embed="fsdp", vocab="tensor", layer="")
    c.mesh.rules.update(heads="tensor", kv_heads="tensor", head="", mlp="tensor", expert="expert")
    c.objective = dict(z_loss=1e-5, per="all", chunk=2048, contrastive=contrastive(), common_target=0.0)
    c.data = dict(
        batch=8,
        seed=0,
        lookahead=256,
        sources=dict(),  # the experiment's: name -> "embedded", a folder, an address
        shares=dict(),
        per="documents",
        stages=(),  # dict(step=..., shares=dict(...)): another mixture from a step on
        length=0,
        blocks="units",  # prefix: all before a document's last noised unit sees itself both ways; document: all does
        verify=True,
        workers=0,
        timeout=600.0,
        max_skipped=100,
        roles=(),  # dict(streams="drawn,seen", place="last", source=""): which streams hold a unit that lies so
    )
    c.optim = dict(
        name="adamw",
        muon="/w[qkvo123]$|/shared_w",
        momentum=0.95,
        transfer="",  # mup: a rate tuned at base_width serves every width (docs/howto/transfer.md)
        base_width=0,
        base_head_size=0,
        base_layers=0,
        lr=1e-3,
        end_lr=1e-4,
        warmup=100,
        schedule="cosine",
        decay_steps=0,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        **dict.fromkeys(("moments", "reduce_dtype"), "float32"),  # bfloat16: half of what is kept, of what is sent
        clip=1.0,
        accumulate=1,
        ema=0.0,
        ema_end=0.0,  # 1: an average that comes to rest, as I-JEPA's
        skip_above=0.0,
        patience=5,
        freeze="",  # "text": all that text uses; "text.ffn,text.attn": these parts of it
        rules=(),  # one's own, which come first: dict(match="/image/", lr=0.1, decay=0.1)
        # Weights decay; norms' scales and biases do not.
        base_rules=(dict(match="norm", lr=1.0, decay=0.0), dict(match=".*", lr=1.0, decay=0.1)),
    )
    return c
