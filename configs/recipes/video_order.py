r"""Video order: the same films in order, reversed and shuffled, and what a model of their ids makes of it.

Which order frames stand in is a signal of its own (Shuffle and Learn, 1603.08561). A film is one unit of frames, rows
and columns, and RoPE reads all three (2409.12191). By the chain rule films in order and reversed hold as many bits, so
a gap between their losses is the model's; shuffled ones of n different frames hold at most log2(n!) more.

mot data prepare ../shared/data/omniglot_video16_32.npz ../shared/data/omniglot.jsonl \
  --content video:bits --video-frames 8 --video-patch 8 --video-ids 128 --out data/order/ordered
mot data prepare ../shared/data/omniglot_video16_32.npz ../shared/data/omniglot.jsonl \
  --content video:bits --video-frames 8 --video-patch 8 --like data/order/ordered \
  --video-order reversed --out data/order/reversed
mot data prepare ../shared/data/omniglot_video16_32.npz ../shared/data/omniglot.jsonl \
  --content video:bits --video-frames 8 --video-patch 8 --like data/order/ordered \
  --video-order shuffled --out data/order/shuffled
mot train --config=configs/recipes/video_order.py:data=data/order/ordered
mot train --config=configs/recipes/video_order.py:data=data/order/reversed
mot train --config=configs/recipes/video_order.py:data=data/order/shuffled
mot train --config=configs/recipes/video_order.py:data=data/order/ordered+data/order/reversed+data/order/shuffled
mot evaluate runs/order-mixed-cpu --what=labels

The held-out figure is `loss/video` of each run, in nats a token. Of the last run, which sees all three, a linear probe
tells from a film's states which order it is in (chance 1/3).
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import archs, base, records, sizes

SIZES = {
    "smoke": sizes.LAPTOP["smoke"] | dict(length=512),
    "cpu": dict(width=64, layers=2, heads=2, head_size=32, ffn=176, rows=8, steps=1500, warmup=50, every=300, lr=4e-3)
    | dict(length=560),
}
ARGUMENTS = {
    "size": base.Argument("cpu", SIZES),
    "arch": base.Argument("dense", archs.ARGUMENT.allowed),
    "data": base.Argument("data/order/ordered", about=records.OWN),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(SIZES, arg["size"])
    c = records.build(arg["data"], arg["arch"], arg["size"], size, str(size["length"]), needs="video")
    name = "mixed" if "+" in arg["data"] else Path(arg["data"]).name
    c.run.name = f"order-{name}-{arg['size']}"
    quarter = c.model.head_size // 8
    c.model.rope_sections = (2 * quarter, quarter, quarter)  # of H / 2 pairs: time, row, column
    return c.lock()
