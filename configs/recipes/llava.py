"""LLaVA (2304.08485, its projector as in LLaVA-1.5, 2310.03744): features of pictures enter a language model.

What makes it that system: a trained language model, features by two layers with GELU between, and two stages. In the
first the two layers alone train; in the second all does. Here the features are patches of pixels, with no encoder.

mot train --config=configs/recipes/llava.py:size=cpu,stage=text     the language model: the manual, and captions
mot train --config=configs/recipes/llava.py:size=cpu,stage=align    from its run: the entry alone
mot train --config=configs/recipes/llava.py:size=cpu,stage=all      from that run: everything
mot evaluate runs/llava-all-cpu --what=retrieval --pool=10

What it cost and showed: docs/reference/recipes.md.
"""

from ml_collections import ConfigDict

from configs import base, digits, sizes, transfusion

SIZES = {
    "smoke": sizes.LAPTOP["smoke"],
    "cpu": dict(width=64, layers=3, heads=4, head_size=16, ffn=176, rows=8, steps=300, warmup=30, every=100, lr=4e-3),
}
STAGES = {
    "text": "a language model of captions and of Python's manual",
    "align": "the entry alone, from the run of stage text",
    "all": "everything, from the run of stage align",
}
ARGUMENTS = {"size": base.Argument("cpu", SIZES), "stage": base.Argument("text", STAGES)}
BEFORE = {"align": "text", "all": "align"}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    name, stage = arg["size"], base.chosen("stage", arg["stage"], STAGES)
    size = sizes.choose(SIZES, name)
    kind = dict(latent=transfusion.FEATURES, max_tokens=transfusion.PATCHES, objective="none", entry=dict(kind="mlp"))
    image = base.stream("image", size["width"], size["ffn"], **kind)
    c = digits.build("dense", name, size, image, "llava")
    if stage == "text":
        digits.language(c, frozen="image.latent")
    else:
        digits.reading(c, f"runs/llava-{BEFORE[stage]}-{name}", frozen="text" if stage == "align" else "")
    c.run.name = f"llava-{stage}-{name}"
    return c.lock()
