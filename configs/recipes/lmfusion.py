"""LMFusion (2412.15188): a trained text model gets a second tower for images, and loses nothing of what it knew.

mot train --config=configs/recipes/lmfusion.py:stage=text,size=cpu
mot train --config=configs/recipes/lmfusion.py:stage=fusion,size=cpu --config.init.run=runs/lmfusion-text-cpu
mot train --config=configs/recipes/lmfusion.py:stage=fusion,size=cpu,text=slow --config.init.run=runs/lmfusion-text-cpu

stage=text trains a dense model on Python's manual. stage=fusion begins both towers with its weights, images learn by
flow in theirs, and all that text uses is frozen; text=slow trains it at a tenth of the images' rate instead. Both runs
judge themselves on the same held-out batches, so the text's loss can be compared to the bit.
"""

from ml_collections import ConfigDict

from configs import base, digits, sizes, transfusion

STAGES = {"text": "a dense model, from random weights, on text alone", "fusion": "mot, from the text run (init.run)"}
TEXT = {"frozen": "what text uses stays to the bit", "slow": "it trains at a tenth of the rate"}
SIZES = {"smoke": digits.SIZES["smoke"], "cpu": digits.SIZES["demo"]}
ARGUMENTS = {
    "stage": base.Argument("text", STAGES),
    "text": base.Argument("frozen", TEXT),
    "size": base.Argument("cpu", SIZES),
}
SLOW = (
    dict(match="norm/text|/text/.*norm", lr=0.1, decay=0.0),
    dict(match="/text/|embed/|head/", lr=0.1, decay=0.1),
)


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(SIZES, arg["size"])
    shape = dict(latent=transfusion.FEATURES, max_tokens=transfusion.PATCHES)
    image = base.stream("image", size["width"], size["ffn"], **shape, **transfusion.of_images("flow", "noised"))
    arch = "dense" if arg["stage"] == "text" else "mot"
    c = digits.build(arch, arg["size"], size, image, "lmfusion")
    transfusion.options(c)
    c.data.lookahead = 16
    c.run.name = f"lmfusion-{arg['stage']}-{arg['size']}"
    if arg["stage"] == "text":
        # Held-out batches have the shares with which a run begins; documents are taken with others from step 1 on.
        c.data.stages = (dict(step=1, shares=dict(manual=1)),)
        c.streams.image.loss_weight = 0.0
    elif arg["text"] == "frozen":
        c.optim.freeze = "text"
    else:
        c.run.name = f"lmfusion-slow-{arg['size']}"
        c.optim.rules = SLOW
    return c.lock()
