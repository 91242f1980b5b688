r"""Semantic latents (RAE, 2510.11690): a picture is drawn as features that an encoder makes of it, not as its pixels.

python -m bench.features ../shared/data/mnist10k_28.npz digits.npz
mot data prepare digits.npz --content 'text:name|image:images|latents:features' --also image=latents --vectors=image \
    --image-side 28 --image-patch 4 --out data/digits
mot train --config=configs/recipes/rae.py:data=data/digits               draws features
mot train --config=configs/recipes/rae.py:data=data/digits,draws=pixels   the control: the same patches' pixels
mot evaluate runs/rae-latents-digits-mot-cpu --what distances --features bench/features.py:pooled
mot evaluate runs/rae-pixels-digits-mot-cpu --what distances --features bench/features.py:pooled

The latents are supplied, the model predicts the data (x), and times are moved towards noise by the dimension of a
picture: shift = sqrt(tokens * features / 4096), at least 1 here (after 2403.03206).
`bench/features.py` makes features of patches without any weights from elsewhere.
"""

from math import sqrt

from ml_collections import ConfigDict

from configs import archs, base, digits, records, sizes
from configs.transfusion import FEATURES, PATCHES

SIZES = {
    "smoke": sizes.LAPTOP["smoke"],
    "cpu": sizes.LAPTOP["demo"] | dict(steps=400, warmup=20, every=100, length=512, lr=4e-3),
}
RUNGS = sizes.LAPTOP | sizes.TINY | sizes.TRANSFUSION
ARGUMENTS = {
    "size": base.Argument("cpu", RUNGS | SIZES),
    "data": base.Argument("embedded", about=f"embedded (no features: digits' patches), or {records.OWN}"),
    "arch": archs.ARGUMENT,
    "draws": base.Argument("latents", ("latents", "pixels")),
    "tokens": base.Argument("49", about="of a picture, of whose dimension the shift of times follows"),
}
DIMENSION = 4096  # of which times are not moved


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(RUNGS | SIZES, arg["size"])
    if not arg["tokens"].isdecimal() or not int(arg["tokens"]):
        raise ValueError(f"tokens={arg['tokens']}: must be a number of tokens, 1 or more")
    if arg["data"] == "embedded":
        image = base.stream("image", size["width"], size["ffn"], **_drawn(PATCHES, FEATURES), max_tokens=PATCHES)
        c = digits.build(arg["arch"], "draw", size, image, "rae")
        c.run.name = f"rae-{arg['size']}"
    else:
        c = _records(arg, size)
    c.objective.per = "modality"
    return c.lock()


def _drawn(tokens: int, features: int) -> dict:
    shift = max(sqrt(tokens * features / DIMENSION), 1.0)
    return dict(latent=features, objective="x", diffusion=dict(shift=shift, drop_rate=0.1))


def _records(arg: dict, size: dict) -> ConfigDict:
    """Of a picture's two forms the one that is drawn; the other has no stream."""
    c = records.build(arg["data"], arg["arch"], arg["size"], size, str(size.get("length", 1024)))
    name, other = ("latents", "image") if arg["draws"] == "latents" else ("image", "latents")
    if not c.streams.get(name, {}).get("latent"):
        raise ValueError(
            f"data={arg['data']}: its pictures have no vectors called {name}; see the recipe's first lines"
        )
    drawn = _drawn(int(arg["tokens"]), c.streams[name].latent)
    c.streams[name].diffusion.update(drawn.pop("diffusion"))
    c.streams[name].update(drawn)
    if other in c.streams:
        del c.streams[other]
    archs.choose(c, arg["arch"])
    c.run.name = f"rae-{arg['draws']}-{c.run.name}"
    return c
