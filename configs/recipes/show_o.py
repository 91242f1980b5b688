"""Show-o in small (2408.12528): text by next token, pictures by unmasking, in one model.

What makes it that system: ids of text and of pictures share one transformer. Text is causal. A picture's ids see each
other both ways, and all text before them; some of them are hidden, more often many than few (MaskGIT's cosine), and the
model predicts these. A picture that is read, with text after it, is never hidden. A picture of 64 ids is drawn in 8
steps in place of 64: in each the ids that the model is surest of stay.

mot train --config=configs/recipes/show_o.py:size=cpu
mot evaluate runs/show-o-cpu --what=judged --draws=100 --steps=8
mot train --config=configs/recipes/show_o.py:size=cpu,pictures=next_token     the same model, id after id

Measured at size=cpu, dense, 800 steps, about 5 CPU-minutes: with guidance 2 and 8 steps it draws 100 of 100 digits as
asked, by a classifier that is right on 98.8 % of real ones, and names 23 of 100 held-out ones. By next token, in 64
steps, configs/digits.py:arch=dense,size=draw draws 42 of 50.
"""

from ml_collections import ConfigDict

from configs import archs, base, digits

SIZES = {"smoke": "smoke", "cpu": "draw"}  # and those of configs/digits.py
PICTURES = {
    # Of 0.1 of all pictures the text is hidden, for guidance.
    "masked": dict(objective="masked", masking=dict(by="unit", distribution="cosine", weighting="even", drop_rate=0.1)),
    "next_token": {},
}
ARGUMENTS = {
    "size": base.Argument("cpu", SIZES),
    "pictures": base.Argument("masked", PICTURES),
    "arch": archs.ARGUMENT._replace(default="dense"),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    name = SIZES[arg["size"]]
    size = digits.SIZES[name]
    image = base.stream(
        "image", size["width"], size["ffn"], max_tokens=64, first_id=1024, ids=17, **PICTURES[arg["pictures"]]
    )
    c = digits.build(arg["arch"], name, size, image, "show-o")
    c.run.name = "-".join(["show-o", arg["size"], *["next"] * (arg["pictures"] == "next_token")])
    return c.lock()
