"""Cosmos 3 in small: one tower reads, the other generates pictures, sound and actions by flow, in one attention.

mot train --config=configs/recipes/cosmos3.py:size=cpu     embedded digits: to be read, and to be drawn
mot evaluate runs/cosmos3-cpu --what=judged --draws=100

Media of your own (`data=data/mine,size=demo`) are prepared with `--vectors=image --vectors=audio`.

A picture that nothing comes before is an input: it goes through the stream `seen`, which shares text's parameters.
Pictures that follow something are generated, and so are sounds and actions: their streams share a tower of their own (a
Mixture-of-Transformers by role, as 2505.14683). All of them learn flow, in a noised copy before the clean one that
later tokens read. Both streams of pictures hold the same patches: `data.roles` says which of them a picture is in.
"""

from ml_collections import ConfigDict

from configs import archs, base, digits, records, sizes
from configs.recipes.bagel import RUNGS, SIZES
from configs.transfusion import FEATURES, PATCHES

ARGUMENTS = {
    "size": base.Argument("cpu", RUNGS | SIZES),
    "data": base.Argument("embedded", about=f"embedded, or {records.OWN}"),
}
FLOW = dict(objective="flow", diffusion=dict(copies="both", drop_rate=0.1))


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(RUNGS | SIZES, arg["size"])
    if arg["data"] == "embedded":
        seen = _read(size, FEATURES) | dict(max_tokens=PATCHES)
        image = base.stream("image", size["width"], size["ffn"], latent=FEATURES, max_tokens=2 * PATCHES, **FLOW)
        c = digits.build("dense", "draw", size, image, "cosmos3", dict(seen=seen))
    else:
        c = records.build(arg["data"], "dense", arg["size"], size, str(size.get("length", 1024)), FLOW)
        if not c.streams.get("image", {}).get("latent"):
            raise ValueError(f"data={arg['data']}: its images are no vectors; prepare it with --vectors=image")
        c.streams.seen = _read(size, c.streams.image.latent)
    generated = sorted(name for name, stream in c.streams.items() if stream.objective == "flow")
    tower = {s: generated[0] if s in generated else "text" for s in c.streams}
    c.towers.update({component: dict(tower) for component in archs.COMPONENTS})
    c.attn, c.ffn = ({t: base.moe() for t in ("text", generated[0])} for _ in range(2))
    c.data.roles = (dict(streams="seen", place="first", source=""), dict(streams="image", place="", source=""))
    c.objective.per = "modality"
    c.run.name = f"cosmos3-{arg['size']}" if arg["data"] == "embedded" else f"cosmos3-{c.run.name}"
    return c.lock()


def _read(size: dict, features: int) -> dict:
    """The stream of pictures that are inputs."""
    return base.stream("image", size["width"], size["ffn"], latent=features, objective="none")
