"""Flamingo (2204.14198): a frozen language model that sees pictures by gated cross-attention.

What makes it that system: the language model does not train; a resampler makes a few tokens of a picture's features;
text sees the last picture before it by a cross-attention before every n-th layer, whose tanh gates begin at 0, so that
the first step is the language model's own. Here the features are patches of pixels, with no encoder.

mot train --config=configs/recipes/flamingo.py:size=cpu,stage=text    the language model: the manual, and captions
mot train --config=configs/recipes/flamingo.py:size=cpu,stage=see     from its run: resampler and cross-attention
mot evaluate runs/flamingo-see-cpu --what=retrieval --pool=10

What it cost and showed: docs/reference/recipes.md.
"""

from ml_collections import ConfigDict

from configs import base, digits, sizes, transfusion
from configs.recipes import llava

SIZES = llava.SIZES
STAGES = {
    "text": "a language model of captions and of Python's manual",
    "see": "what sees pictures, from the run of stage text, which is frozen",
}
ARGUMENTS = {"size": base.Argument("cpu", SIZES), "stage": base.Argument("text", STAGES)}
FOLD, QUERIES = 4, 4  # patches of a token, tokens of a digit


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    name, stage = arg["size"], base.chosen("stage", arg["stage"], STAGES)
    size = sizes.choose(SIZES, name)
    entry = dict(kind="resampler", fold=FOLD, queries=QUERIES, layers=2)
    kind = dict(latent=transfusion.FEATURES, max_tokens=QUERIES, objective="none", entry=entry, cross_every=1)
    image = base.stream("image", size["width"], size["ffn"], **kind)
    c = digits.build("dense", name, size, image, "flamingo")
    if stage == "text":
        digits.language(c, frozen="image")
    else:
        digits.reading(c, f"runs/flamingo-text-{name}", frozen="text")
    c.run.name = f"flamingo-{stage}-{name}"
    return c.lock()
