"""The Chameleon setting (2405.09818): every modality in ids of one vocabulary.

mot train --config=configs/chameleon.py:arch=mot                   captioned digits as 64 ids, and Python's manual
mot train --config=configs/chameleon.py:data=data/emoji,size=demo  your own (docs/howto/own-data.md)
mot train --config=configs/chameleon.py:data=data/web,size=443m    a rung of the ladder; more in configs/ladder.py

Of arch=mot, size=smoke takes 22 s on two loaded AVX2 cores with an empty cache, and ends at held-out text 7.18 and
image 5.77 nats a token. The cost and loss of the other sizes are not measured.

Its stability: norms of queries and keys by head, norms on the branches' outputs (Swin), and a z-loss.
"""

from ml_collections import ConfigDict

from configs import archs, base, digits, records, sizes

RUNGS = sizes.LAPTOP | sizes.TINY | sizes.CHAMELEON | sizes.SPEECH
SIZES = RUNGS | digits.SIZES
LENGTH = "tokens of a row of your own data; auto: the size's"
ARGUMENTS = {
    "arch": archs.ARGUMENT,
    "size": base.Argument("demo", SIZES),
    "data": base.Argument("embedded", about=f"embedded, or {records.OWN}"),
    "length": base.Argument("auto", about=LENGTH),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    embedded = arg["data"] == "embedded"
    if embedded and arg["length"] != "auto":
        raise ValueError(f"length={arg['length']}: the embedded data has rows of its own; leave it out, or name data")
    size = sizes.choose(SIZES if embedded else RUNGS, arg["size"])
    if embedded:
        image = base.stream("image", size["width"], size["ffn"], max_tokens=64, first_id=1024, ids=17)
        c = digits.build(arg["arch"], arg["size"], size, image, "chameleon")
    else:
        length = str(size.get("length", 1024)) if arg["length"] == "auto" else arg["length"]
        c = records.build(arg["data"], arg["arch"], arg["size"], size, length)
        c.run.name = f"chameleon-{c.run.name}"
    options(c)
    return c.lock()


def options(c: ConfigDict) -> None:
    c.model.update(norm="post", qk_norm="layer")
    c.objective.z_loss = 1e-5
