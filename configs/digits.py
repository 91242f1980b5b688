"""Handwritten digits and their captions beside Python's manual: the demo. All data is embedded; nothing is downloaded.

--config=configs/digits.py:arch=mot            the demo's size, some minutes on two cores
--config=configs/digits.py:arch=mot,size=smoke two steps in seconds
--config=configs/digits.py:arch=mot,size=draw  captioned digits alone: ten CPU-minutes to draw and to read them
"""

from ml_collections import ConfigDict

from configs import archs, base

SIZES = {
    "smoke": dict(width=32, layers=2, heads=2, head_size=16, ffn=64, rows=2, steps=2, warmup=1, every=1),
    "demo": dict(width=128, layers=4, heads=4, head_size=32, ffn=352, rows=4, steps=120, warmup=15, every=20),
    "draw": dict(width=128, layers=4, heads=4, head_size=32, ffn=352, rows=4, steps=800, warmup=40, every=100),
}
# Documents in these proportions fill the budgets: five digits a row, and manual text for the rest.
MIXTURE = dict(text=320, longest=128, shares=dict(manual=13, drawn=7, read=7))
CAPTIONED = dict(text=64, longest=32, shares=dict(drawn=1, read=1))


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, arch="mot", size="demo")
    if arg["size"] not in SIZES:
        raise ValueError(f"size={arg['size']}: no such size; allowed: {', '.join(SIZES)}; choose one")
    size, data = SIZES[arg["size"]], CAPTIONED if arg["size"] == "draw" else MIXTURE
    c = base.get_config()
    sizes = size["width"], size["ffn"]
    c.streams = dict(
        text=base.stream("text", *sizes, budget=data["text"], longest=data["longest"], ids=1024),
        image=base.stream("image", *sizes, budget=320, longest=64, first_id=1024, ids=17),
    )
    c.model.update({k: size[k] for k in ("layers", "heads", "head_size")}, kv_heads=size["heads"])
    archs.choose(c, arg["arch"])
    c.data.update(batch=size["rows"], sources={name: "embedded" for name in data["shares"]}, shares=data["shares"])
    # Of 2e-3, 4e-3 and 8e-3 the rate with the lowest image loss of dense (one seed, 320 steps, more pixels).
    c.optim.update(lr=4e-3, end_lr=1e-4, warmup=size["warmup"])
    c.run.update(
        name=f"digits-{arg['arch']}-{arg['size']}",
        steps=size["steps"],
        eval_every=size["every"],
        eval_batches=2 if arg["size"] == "smoke" else 4,
        save_every=max(size["steps"] // 4, 2),
        keep=4,
    )
    return c.lock()
