"""Whisper in small (2212.04356): log-mel frames of speech in, its text out.

What makes it that system: 80 log-mel bands of 10 ms, made as Whisper makes them; an encoder of its own parameters that
sees a sound both ways; text by next token, which sees the sound. Here both share layers: sound and text have towers of
their own (MoT) and meet in one attention, where Whisper's decoder has a cross-attention. Two layers with GELU stand for
its two convolutions.

python -m bench.whisper ../shared/data/fsdd_8k.npz data/frames.npz
mot data prepare data/frames.npz --content "latents:latents|text:{labels}" --out data/spoken
mot train --config=configs/recipes/whisper.py:size=cpu,data=data/spoken
mot evaluate runs/whisper-cpu --what=retrieval --pool=10

Of ten spoken digits each finds its word among the ten words: `latents/text/spoken/recall_1`. What it cost and showed:
docs/reference/recipes.md.
"""

from ml_collections import ConfigDict

from configs import base, records, sizes

SIZES = {
    "smoke": sizes.LAPTOP["smoke"],
    "cpu": dict(width=64, layers=3, heads=4, head_size=16, ffn=176, rows=8, steps=300, warmup=30, every=100, lr=3e-3),
}
LENGTH = 512  # tokens of a row: some seven spoken digits
ARGUMENTS = {
    "size": base.Argument("cpu", SIZES),
    "data": base.Argument("data/spoken", about=records.OWN),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(SIZES, arg["size"])
    inputs = dict(objective="none", entry=dict(kind="mlp"))
    c = records.build(arg["data"], "mot", arg["size"], size, str(LENGTH), inputs, needs="latents")
    c.run.name = f"whisper-{arg['size']}"
    return c.lock()
