r"""pi0.5 with knowledge insulation (2504.16054, 2505.23705): pictures and captions of characters to strokes of a pen.

A backbone reads text and pictures, and learns actions as FAST's ids (2501.09747) by next token. An action expert, a
tower of another width that shares the heads, learns chunks by flow. The wall keeps the expert's gradient out of the
backbone, which FAST's ids alone teach what actions need. A document has one of the two forms: neither sees the other.

mot data prepare ../shared/data/omniglot_images.npz ../shared/data/omniglot_strokes.npz --join row_number \
    --vectors image --image-side 32 --image-patch 8 --action-points 32 --fast-points 32 --fast-ids 512 --text-ids 512 \
    --content "text:{caption}, {duration_ms} ms|image:images_32|fast:2.xy_centi+2.pen_up" \
    --content "text:{caption}, {duration_ms} ms|image:images_32|action:2.xy_centi+2.pen_up" --out data/strokes
mot train --config=configs/recipes/pi05.py:data=data/strokes
mot train --config=configs/recipes/pi05.py:data=data/strokes,wall=off
mot sample runs/pi05-wall-on-cpu --prompt "Balinese character 1, 1 strokes, 900 ms" --draw action --guidance 2

How a chunk should be (its strokes, its time) is text, as pi0.7's metadata are (speed, quality), and since a tenth of
the chunks are trained without what precedes them, guidance leans on it.
"""

from ml_collections import ConfigDict

from configs import base, records, sizes

WALLS = {"on": "the flow of actions does not train the backbone (2505.23705)", "off": "it does, as in pi0 (2410.24164)"}
SIZES = {
    "smoke": sizes.LAPTOP["smoke"] | dict(length=256),
    "cpu": sizes.LAPTOP["demo"]
    | dict(width=64, layers=3, heads=4, head_size=16, ffn=176, rows=4, steps=800, every=200, lr=2e-3, length=512),
}
ARGUMENTS = {
    "data": base.Argument("data", about=records.OWN),
    "size": base.Argument("cpu", SIZES),
    "wall": base.Argument("on", WALLS),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(SIZES, arg["size"])
    # pi0's times, mostly noise, and pi0.5's way of telling the expert of them: by its norms.
    flow = dict(objective="flow", diffusion=dict(time="norm", time_distribution="beta", drop_rate=0.1))
    length = str(size["length"])
    c = records.build(arg["data"], "loo_action", arg["size"], size, length, flow, needs="action").unlock()
    expert = c.streams.action
    expert.update(width=size["width"] // 2, ffn=size["ffn"] // 2)
    for name in [name for name in c.streams if c.streams[name].latent and name != "action"]:
        c.streams[name].objective = "none"  # pictures are read
    if arg["wall"] == "on":
        c.towers.stop_gradients = (dict(queries="action", keys="text"),)
    c.objective.per = "modality"
    c.run.name = f"pi05-wall-{arg['wall']}-{arg['size']}"
    return c.lock()
