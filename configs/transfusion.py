"""The Transfusion setting (2408.11039): text by next token, images by flow in the same stack.

mot train --config=configs/transfusion.py:arch=mot                    captioned digits in 2x2 patches, Python's manual
mot train --config=configs/transfusion.py:size=draw                   captioned digits alone: to draw and to read them
mot train --config=configs/transfusion.py:data=data/emoji,size=demo   your own (docs/howto/own-data.md)
mot train --config=configs/transfusion.py:data=data/web,size=163m     a rung of the ladder; more in configs/ladder.py

Of arch=mot, size=smoke takes 19 s on two AVX2 cores with an empty cache, and ends at held-out text 7.22 nats and image
1.56 (a squared error). size=draw with --config.run.steps=2000 takes 6 CPU-minutes and draws 50 of 50 digits as asked.
The cost and loss of the other sizes are not measured.

`predicts=flow|x|ddpm` chooses the objective of all vectors; `copies=both` gives images that later text reads a clean
copy (BAGEL, 2505.14683), where the default has it read what is noised.
"""

from ml_collections import ConfigDict

from configs import base, chameleon, digits, records, sizes

PATCHES, FEATURES = 16, 4  # of an embedded digit
RUNGS = sizes.LAPTOP | sizes.TINY | sizes.TRANSFUSION
SIZES = RUNGS | {name: digits.SIZES[name] for name in ("smoke", "demo", "draw")}
COPIES = {"noised": 1, "both": 2}
ARGUMENTS = chameleon.ARGUMENTS | {
    "size": base.Argument("demo", SIZES),
    "predicts": base.Argument("flow", ("flow", "x", "ddpm")),
    "copies": base.Argument("noised", COPIES),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    for name in ("predicts", "copies"):
        base.chosen(name, arg[name], ARGUMENTS[name].allowed)
    embedded = arg["data"] == "embedded"
    if embedded and arg["length"] != "auto":
        raise ValueError(f"length={arg['length']}: the embedded data has rows of its own; leave it out, or name data")
    size = sizes.choose(SIZES if embedded else RUNGS, arg["size"])
    kind = of_images(arg["predicts"], arg["copies"])
    if embedded:
        shape = dict(latent=FEATURES, max_tokens=PATCHES * COPIES[arg["copies"]])
        image = base.stream("image", size["width"], size["ffn"], **shape, **kind)
        c = digits.build(arg["arch"], arg["size"], size, image, "transfusion")
    else:
        length = str(size.get("length", 1024)) if arg["length"] == "auto" else arg["length"]
        c = records.build(arg["data"], arg["arch"], arg["size"], size, length, kind)
        c.run.name = f"transfusion-{c.run.name}"
    options(c)
    return c.lock()


def of_images(predicts: str, copies: str) -> dict:
    """What a stream of images has beside its size: Transfusion's choices, but for `drop_rate` (guidance).

    The loss of images weighs 5, one that text follows keeps half of its signal.
    """
    diffusion = dict(copies=copies, max_noise=0.5, drop_rate=0.1)
    if predicts == "ddpm":
        diffusion["time_distribution"] = "uniform"
    return dict(objective=predicts, loss_weight=5.0, diffusion=diffusion)


def options(c: ConfigDict) -> None:
    c.objective.per = "modality"
