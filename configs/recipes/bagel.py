"""BAGEL in small (2505.14683): one picture in two forms, drawn as latents and read as patches, and a thought before it.

mot train --config=configs/recipes/bagel.py:size=cpu     embedded digits: captioned, to be read, and sums
mot evaluate runs/bagel-mot_role-cpu --what=judged --draws=100

Pictures of your own (`data=data/mine,size=demo`) are prepared with `--also image=vectors`.

A picture that is drawn stands in its row three times: as noised latents, which learn and which nobody else sees; as
clean latents; as what later words understand it by. A picture that is only read stands there once, as the last of
these. What is read shares the parameters of text, what is drawn has its own. The loss is 0.25 of cross-entropy and 1 of
the squared error, each a mean over its own tokens.

The documents of `thought` are "two plus five makes seven" and that digit, those of `summed` lack what it makes: the
model draws what a sum makes at once, or thinks first.
"""

from ml_collections import ConfigDict

from configs import archs, base, digits, records, sizes
from configs.transfusion import FEATURES, PATCHES

PIXELS, LEVELS = 64, 17  # of an embedded digit as it is read: grey levels
SIZES = {
    "smoke": sizes.LAPTOP["smoke"],
    "cpu": sizes.LAPTOP["demo"] | dict(steps=800, warmup=40, every=200, lr=4e-3),
}
RUNGS = sizes.LAPTOP | sizes.TINY | sizes.TRANSFUSION
ARGUMENTS = {
    "size": base.Argument("cpu", RUNGS | SIZES),
    "data": base.Argument("embedded", about=f"embedded, or {records.OWN}; with --also image=vectors"),
    "arch": archs.ARGUMENT._replace(default="mot_role"),  # what is read shares the parameters of text
}
CE, MSE = 0.25, 1.0
BUDGETS = dict(text=112, image=6 * 2 * PATCHES, seen=2 * PIXELS)  # of four documents one is read


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    build = _digits if arg["data"] == "embedded" else _records
    c = build(arg)
    c.streams.text.loss_weight = CE
    c.objective.per = "modality"
    return c.lock()


def roles(drawn: str, seen: str) -> tuple[dict, ...]:
    """Which of a picture's two streams hold it: a picture that nothing comes before is only read."""
    return (
        dict(streams=seen, place="first", source=""),
        dict(streams=drawn, place="last", source=""),  # nobody reads it any more
        dict(streams=f"{drawn},{seen}", place="", source=""),
    )


def drawn(features: int, **more) -> dict:
    """What a stream of latents that are drawn has beside its size."""
    diffusion = dict(copies="both", drop_rate=0.1)
    return dict(latent=features, objective="flow", loss_weight=MSE, diffusion=diffusion) | more


def _digits(arg: dict) -> ConfigDict:
    size = sizes.choose(RUNGS | SIZES, arg["size"])
    width, ffn = size["width"], size["ffn"]
    image = base.stream("image", width, ffn, **drawn(FEATURES, representation="image_vectors", max_tokens=2 * PATCHES))
    read = dict(representation="image_ids", first_id=1024, ids=LEVELS, max_tokens=PIXELS, objective="none")
    seen = base.stream("image", width, ffn, loss_weight=MSE, **read)
    c = digits.build(arg["arch"], "draw", size, image, "bagel", dict(seen=seen))
    for name, budget in BUDGETS.items():
        c.streams[name].budget = budget
    shares = dict(drawn=1, read=1, summed=1, thought=1)
    c.data.update(sources=dict.fromkeys(shares, "embedded"), shares=shares, roles=roles("image", "seen"))
    c.run.name = f"bagel-{arg['arch']}-{arg['size']}"
    return c


def _records(arg: dict) -> ConfigDict:
    size = sizes.choose(RUNGS, arg["size"])
    length = str(size.get("length", 1024))
    c = records.build(arg["data"], arg["arch"], arg["size"], size, length)
    if "image_vectors" not in c.streams:
        raise ValueError(f"data={arg['data']}: it has no image_vectors; prepare it with --also image=vectors")
    c.streams.image.update(objective="none", loss_weight=MSE)
    own = drawn(c.streams.image_vectors.latent)
    c.streams.image_vectors.diffusion.update(own.pop("diffusion"))
    c.streams.image_vectors.update(own)
    c.data.roles = roles("image_vectors", "image")
    c.run.name = f"bagel-{c.run.name}"
    return c
