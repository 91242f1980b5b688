r"""Text as pixels (PIXEL, 2207.06991; decoded here): the same books as text, and as pictures of their lines.

Each line is a picture of one row of letters in Pillow's default font, as long as the line is (`--image-aspect native`),
of patches of half a letter. The patches that occur are few, so each is an id of its own and nothing is lost: a line's
patches and its letters say the same, and both models are judged in bits for each byte of the text. RoPE by row and
column tells the model of pictures what stands below what.

head -c 2000000 ../shared/data/books.train.txt > books.txt
mot data prepare books.txt --format text --separator '\n\n' --text-ids 512 --held-out 0.05 --out data/pixels/text
mot data prepare books.txt --format text --separator '\n\n' --image-render 48 --image-aspect native --image-patch 6 \
  --image-side 288 --held-out 0.05 --out data/pixels/lines
mot train --config=configs/recipes/text_as_pixels.py:data=data/pixels/text
mot train --config=configs/recipes/text_as_pixels.py:data=data/pixels/lines

Both have the same FLOPs (`run.flops`). Text's held-out figure is `bits_per_byte/text`; that of lines is what
`bits_per_byte` below makes of `loss/image`, `loss/text` and the dataset's counts.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from configs import base, records, sizes

SIZES = {
    "smoke": sizes.LAPTOP["smoke"] | dict(length=512),
    "cpu": dict(width=96, layers=3, heads=3, head_size=32, ffn=256, rows=8, steps=0, warmup=1, every=0, lr=4e-3)
    | dict(length=1024, flops=6e12),
}
ARGUMENTS = {
    "size": base.Argument("cpu", SIZES),
    "data": base.Argument("data/pixels/lines", about=records.OWN),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(SIZES, arg["size"])
    c = records.build(arg["data"], "dense", arg["size"], size, str(size["length"]))
    c.run.update(name=f"pixels-{Path(arg['data']).name}-{arg['size']}", flops=size.get("flops", 0.0), eval_batches=4)
    quarter = c.model.head_size // 8
    c.model.rope_sections = (2 * quarter, quarter, quarter)  # of H / 2 pairs: time, row, column
    return c.lock()


def bits_per_byte(losses: Mapping[str, float], split: Mapping) -> float:
    """Of lines as pictures, of a split as dataset.json has it: two patches are a letter, and a line ends in a byte."""
    patches, lines, documents = split["tokens"]["image"], split["spans"]["image"], split["documents"]
    markers = split["tokens"]["text"] - documents  # all but <bos> are predicted
    nats = patches * losses["loss/image"] + markers * losses["loss/text"]
    return nats / math.log(2) / (patches / 2 + lines)
