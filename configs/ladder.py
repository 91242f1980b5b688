"""The ladders of the MoT paper (2411.04996), every rung of every architecture, and tiny rungs of the same family.

mot plan --config=configs/ladder.py:rung=443m,arch=mot                             compiled and counted; no data needed
mot train --config=configs/ladder.py:setting=transfusion,rung=760m,data=data/web   trained (docs/howto/own-data.md)
mot train --config=configs/ladder.py:rung=3m,arch=mot_moe,tokens=1e9,data=data/web on a CPU, for so many tokens
mot plan --config=configs/ladder.py:rung=7b,shape=tpu,flops=1e21                   heads of 128, for so many model FLOPs

tokens   one number for all; by modality, as text:2e9+image:2e10; or wanted: each modality's figure of WANTED. By
         modality, a run goes on until each has had its own, and the rows of a batch follow the budget

setting  chameleon (37m 94m 443m 1.5b 7b), chameleon_speech (443m 880m 1.5b 7b), transfusion (163m 760m 1.4b 7b); each
         has 0.3m 1m 3m 10m too, named by the trunk's parameters, with rows of 512 tokens and a vocabulary in proportion
arch     any of configs/archs.py
shape    paper, or tpu: heads of 128, which fill a TPU's tile, in the same number of parameters
device   tpu (of published rungs), gpu, cpu (of tiny ones): kernels and dtype
data     prepared datasets, as in configs/records.py; the embedded ones: configs/chameleon.py:size=1m

docs/reference/plan.md bounds what a rung costs on TPUs: memory, time of a step, chip-hours. No rung's loss is measured
yet.

The mesh stays one of rows; `--config.mesh.fsdp=16` or `mot plan --search` chooses another.
"""

import math
from typing import NamedTuple

from ml_collections import ConfigDict

from configs import archs, base, chameleon, records, sizes, transfusion

SETTINGS = {
    "chameleon": sizes.TINY | sizes.CHAMELEON,
    "chameleon_speech": sizes.TINY | sizes.SPEECH,
    "transfusion": sizes.TINY | sizes.TRANSFUSION,
}
SHAPES = ("paper", "tpu")
HEAD = 128  # a TPU's tile

# What a row holds where no data says it: as many picture tokens as text (Transfusion trains on 1:1; Chameleon's share
# is ours), whole pictures, and a seventh of speech (the paper samples 1:6), all multiples of 128 for kernels.
BUDGETS = {
    sizes.LENGTH: {
        "chameleon": dict(text=2048, image=2048),
        "chameleon_speech": dict(text=1408, image=2048, speech=640),
        "transfusion": dict(text=2048, image=2048),
    },
    sizes.TINY_LENGTH: {
        "chameleon": dict(text=256, image=256),
        "chameleon_speech": dict(text=192, image=256, speech=64),
        "transfusion": dict(text=256, image=256),
    },
}
# Chameleon: 65,536 ids, 8,192 of them a picture's (1,024 tokens). Speech: 500 units at 25 Hz; they take their ids from
# text's, so that V still divides among devices. Transfusion: Llama 2's 32,000 ids.
IDS = {
    sizes.LENGTH: dict(chameleon=65_536, chameleon_speech=65_536, transfusion=32_000, image=8192, speech=500),
    sizes.TINY_LENGTH: dict(chameleon=1024, chameleon_speech=1024, transfusion=512, image=128, speech=64),
}
# Transfusion's VAE makes 32 x 32 x 8 of 256 x 256 pixels; patches of 2 x 2: 256 tokens of 32 features.
FEATURES = 32
PICTURE = {sizes.LENGTH: 256, sizes.TINY_LENGTH: 64}
MOST_STEPS = 1e9
MOST_TOKENS = 1e30  # more than any run has; by these a batch still counts its rows


class Wanted(NamedTuple):
    """Tokens for each of the trunk's parameters (12 d^2 L) at which a larger model serves as well as more of them."""

    tokens: float
    growth: float = 0.0  # beyond SIZE the figure grows as the size to this power

    def of(self, size: float) -> float:
        return self.tokens * size * max(1.0, size / SIZE) ** self.growth


SIZE = 1e8
# 20 is a figure of text (2203.15556); images want about ten times as many (2608.17286). Of audio the best data grow 1.6
# times as fast as the best size (2602.16687): so its figure grows with the size; where it begins is ours, as text's.
WANTED = {"text": Wanted(20), "image": Wanted(200), "speech": Wanted(20, 0.6), "audio": Wanted(20, 0.6)}
# The best batch grows with the tokens of a run, and hardly with the size of the model (2505.13738).
BATCH_GROWTH = 0.4
ARGUMENTS = {
    "setting": base.Argument("chameleon", SETTINGS),
    "rung": base.Argument(
        "1m", about="; ".join(f"{setting}: {', '.join(rungs)}" for setting, rungs in SETTINGS.items())
    ),
    "arch": archs.ARGUMENT,
    "shape": base.Argument("paper", SHAPES, "tpu: heads of 128, which fill a TPU's tile, in the same parameters"),
    "device": base.Argument("auto", ("auto", *sizes.DEVICES), "kernels and dtype"),
    "tokens": base.Argument(
        "auto", about="how many to train on, as 1e9; by modality, as text:2e9+image:2e10, or wanted; auto: the rung's"
    ),
    "flops": base.Argument("auto", about="how many model FLOPs to spend, as 1e21; auto: the rung's"),
    "data": base.Argument("none", about=f"none: to be planned; or {records.OWN}"),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    setting, arch, rung = arg["setting"], arg["arch"], arg["rung"]
    size = sizes.choose(sizes.choose(SETTINGS, setting, "setting"), rung, "rung", f" of {setting}")
    if arg["shape"] != "paper":
        size = _twin(size, rung, arg["shape"])
        rung = f"{rung}-{arg['shape']}"
    # The paper's objective, and the unit trained alone now and then that its sampler's guidance wants.
    of_vectors = transfusion.of_images("ddpm", "noised") if setting == "transfusion" else None
    if arg["data"] == "none":
        c = _planned(setting, arch, size, of_vectors)
        c.run.name = f"{setting}-{arch}-{rung}"
    else:
        c = records.build(arg["data"], arch, rung, size, str(size["length"]), of_vectors)
        c.run.name = f"{setting}-{c.run.name}"
    (transfusion if setting == "transfusion" else chameleon).options(c)
    if arg["device"] != "auto":
        sizes.place(c, size, arg["device"])
    if budgets := {k: arg[k] for k in ("tokens", "flops") if arg[k] != "auto"}:
        _spend(c, size, budgets)
    return c.lock()


def _twin(size: dict, rung: str, shape: str) -> dict:
    """The same size with heads that fill a TPU's tile."""
    base.chosen("shape", shape, SHAPES)
    if size["width"] % HEAD:
        raise ValueError(
            f"shape={shape}: rung {rung} is {size['width']} wide, no multiple of {HEAD}; choose shape=paper, or a rung "
            "that is"
        )
    return size | dict(heads=size["width"] // HEAD, head_size=HEAD)


def _planned(setting: str, arch: str, size: dict, of_vectors: dict | None) -> ConfigDict:
    """A rung without data, its streams as the paper has them."""
    c = base.get_config()
    sizes.apply(c, size)
    budgets = BUDGETS[size["length"]][setting]
    ids = IDS[size["length"]]
    by_ids = [name for name in budgets if name != "text" and not of_vectors]
    counts = {"text": ids[setting] - sum(ids[name] for name in by_ids)} | {name: ids[name] for name in by_ids}
    c.streams, first = ConfigDict(), 0
    for name, budget in budgets.items():
        kind = dict(first_id=first, ids=counts[name]) if name in counts else dict(latent=FEATURES) | of_vectors
        first += counts.get(name, 0)
        longest = budget if name in counts else PICTURE[size["length"]]  # a document has one picture
        c.streams[name] = base.stream(name, size["width"], size["ffn"], budget=budget, max_tokens=longest, **kind)
    archs.choose(c, arch)
    # Sources cannot be empty; whoever trains this is told that it names no data.
    c.data.update(sources=dict(none=""), shares=dict(none=1.0))
    return c


def _spend(c: ConfigDict, size: dict, budgets: dict[str, str]) -> None:
    """Instead of the size's steps, those that a budget of tokens, or of model FLOPs, pays for."""
    if len(budgets) > 1:
        raise ValueError(f"tokens={budgets['tokens']},flops={budgets['flops']}: two budgets of one run; leave one out")
    ((name, text),) = budgets.items()
    if name == "tokens" and (text == "wanted" or ":" in text):
        return _spend_by_modality(c, size, text)
    budget = base.budget(name, text)
    if name == "flops":  # mot counts them; a shorter run has a shorter warm-up, as in `sizes.schedule`
        c.run.update(flops=budget, steps=0, eval_every=size["every"], save_every=0)
        return
    step = c.data.batch * (c.data.length or sum(stream.budget for stream in c.streams.values()))
    if budget < step:
        raise ValueError(f"{name}={text}: a step of {c.data.batch} rows takes {step:.3g}; raise it, or lower the rung")
    _schedule(c, size, budget / step, f"{name}={text}")


def _schedule(c: ConfigDict, size: dict, steps: float, given: str) -> None:
    if steps > MOST_STEPS:
        raise ValueError(f"{given}: pays for {steps:.1g} steps, and {MOST_STEPS:.0g} is the most; lower it")
    sizes.schedule(c, size, round(steps))


def _spend_by_modality(c: ConfigDict, size: dict, text: str) -> None:
    """Steps until each modality has had its tokens, in batches whose rows follow the budget."""
    share = _shares(c)
    wanted = _wanted(size, text, share)
    length = c.data.length or sum(stream.budget for stream in c.streams.values())
    total = max(tokens / share[modality] for modality, tokens in wanted.items())
    usual = size["steps"] * size["rows"] * length
    growth = min(max(total, 1.0), MOST_TOKENS) / usual
    doublings = round(BATCH_GROWTH * math.log2(growth))  # rows stay a number that devices divide
    c.data.batch = max(1, round(size["rows"] * 2.0**doublings))
    step = c.data.batch * length
    if total < step:
        raise ValueError(f"tokens={text}: a step of {c.data.batch} rows takes {step:.3g}; raise it, or lower the rung")
    _schedule(c, size, total / step, f"tokens={text}")


def _shares(c: ConfigDict) -> dict[str, float]:
    """By modality, its share of a row's tokens: as budgets are written, or as the datasets have it."""
    budgets: dict[str, float] = {}
    for stream in c.streams.values():
        budgets[stream.modality] = budgets.get(stream.modality, 0) + stream.budget
    if not c.data.length:
        return {modality: budget / sum(budgets.values()) for modality, budget in budgets.items()}
    return {modality: n for modality, n in records.shares([*c.data.sources.values()]).items() if n}


def _wanted(size: dict, text: str, share: dict[str, float]) -> dict[str, float]:
    """Tokens by modality."""
    trunk = 12 * size["width"] ** 2 * size["layers"]
    if text == "wanted":
        if unknown := [modality for modality in share if modality not in WANTED]:
            raise ValueError(
                f"tokens=wanted: what {', '.join(unknown)} wants is not known ({', '.join(WANTED)} are); write tokens "
                f"by modality, as tokens={'+'.join(f'{modality}:1e9' for modality in share)}"
            )
        return {modality: WANTED[modality].of(trunk) for modality in share}
    pairs = [part.partition(":")[::2] for part in text.split("+")]
    named = [modality for modality, _ in pairs]
    for modality in named:
        base.chosen("tokens", modality, share, " among the data's modalities")
    if len(set(named)) < len(named):
        raise ValueError(f"tokens={text}: a modality stands there twice; leave one out")
    return {modality: base.budget(f"tokens={modality}", number, ":") for modality, number in pairs}
