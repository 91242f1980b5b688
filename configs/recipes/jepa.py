"""I-JEPA (2301.08243) and LeJEPA's SIGReg (2511.08544): what is hidden of a picture is predicted as states, not pixels.

mot train --config=configs/recipes/jepa.py:size=cpu                 the states of an average of the model are predicted
mot train --config=configs/recipes/jepa.py:size=cpu,form=sigreg     its own states, which SIGReg keeps apart
mot train --config=configs/recipes/jepa.py:size=cpu,form=flow       the same model, to compare: Transfusion's objective
mot evaluate runs/jepa-ema-cpu --what=labels                        how well a linear probe tells the digits
mot evaluate runs/jepa-flow-cpu --what=labels
mot evaluate runs/jepa-sigreg-cpu --what=labels

Captions come after the pictures and teach nothing. The 1,000 steps of size=cpu take two CPU-minutes. The mean of a
picture's states is probed, and the model tells places by RoPE alone.
"""

from ml_collections import ConfigDict

from configs import base, digits, sizes, transfusion

FORMS = {
    "ema": "states of an average of the parameters, by smooth L1 (I-JEPA)",
    "sigreg": "the model's own states, by squared error and SIGReg (LeJEPA)",
    "flow": "no states: the velocity of noised patches, which the other two are compared with",
}
SIZES = {
    "smoke": digits.SIZES["smoke"],
    "cpu": sizes.LAPTOP["demo"]
    | dict(width=48, layers=3, heads=3, head_size=16, ffn=128, rows=8, steps=1000, every=250, lr=2e-3),
}
ARGUMENTS = {"size": base.Argument("cpu", SIZES), "form": base.Argument("ema", FORMS)}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(SIZES, arg["size"])
    shape = dict(latent=transfusion.FEATURES, max_tokens=transfusion.PATCHES)
    kind = {"flow": dict(objective="flow")}.get(arg["form"], dict(objective="latent"))
    prediction = dict(columns=4, layers=2, width=size["width"] // 2, ffn=size["ffn"] // 2)
    if arg["form"] == "sigreg":
        prediction |= dict(targets="own", sigreg=0.05)
    image = base.stream("image", size["width"], size["ffn"], prediction=prediction, **shape, **kind)
    c = digits.build("dense", arg["size"], size, image, "jepa")
    c.run.name = f"jepa-{arg['form']}-{arg['size']}"
    # Pictures alone teach: captions come after them, and nothing is learnt of these.
    c.data.sources, c.data.shares = dict(read="embedded"), dict(read=1)
    c.streams.text.objective = "none"
    c.streams.text.budget = 128
    c.streams.image.budget = 8 * transfusion.PATCHES
    c.objective.per = "modality"
    if arg["form"] == "ema":
        c.optim.update(ema=0.98, ema_end=1.0)  # 0.996 over 300 epochs: of a short run the average must keep up
    return c.lock()
