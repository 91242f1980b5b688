r"""Modalities one after another: a new one joins a trained model, of which nothing changes (Zipper, 2405.18669).

mot train --config=configs/recipes/asynchronous.py:stage=base,size=cpu
mot train --config=configs/recipes/asynchronous.py:stage=added,size=cpu \
    --config.init.run=runs/asynchronous-base-cpu

stage=base is a MoT of text and of digits as ids. stage=added brings a third stream, the same digits as patches of real
numbers, with a tower of its own that learns by flow, while it attends to the keys and values of the others. All that
text and ids use is frozen: their parameters stay to the bit, and so do the losses of documents that hold nothing new.
"""

from ml_collections import ConfigDict

from configs import archs, base, digits, sizes, transfusion

STAGES = {"base": "text and digits as ids, from random weights", "added": "and digits as vectors, from the base run"}
SIZES = {"smoke": digits.SIZES["smoke"], "cpu": digits.SIZES["demo"]}
ARGUMENTS = {"stage": base.Argument("base", STAGES), "size": base.Argument("cpu", SIZES)}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(SIZES, arg["size"])
    codes = base.stream("image", size["width"], size["ffn"], max_tokens=64, first_id=1024, ids=17)
    c = digits.build("mot", arg["size"], size, codes | dict(representation="image_ids"), "asynchronous")
    c.run.name = f"asynchronous-{arg['stage']}-{arg['size']}"
    c.objective.per = "modality"
    c.streams.codes = c.streams.image
    del c.streams.image
    if arg["stage"] == "added":
        shape = dict(latent=transfusion.FEATURES, max_tokens=transfusion.PATCHES, representation="image_vectors")
        kind = transfusion.of_images("flow", "noised") | dict(loss_weight=1.0)  # one weight for all of a modality
        budget = digits.DIGITS * transfusion.PATCHES
        c.streams.patches = base.stream("image", size["width"], size["ffn"], budget=budget, **shape, **kind)
        c.streams.codes.objective = "none"  # an input from now on: losses of ids and of vectors do not add up
        c.optim.freeze = "text,codes"
    archs.choose(c, "mot")
    return c.lock()
