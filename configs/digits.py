"""Handwritten digits and their captions beside Python's manual: the demo. All data is embedded; nothing is downloaded.

mot train --config=configs/digits.py:arch=mot            the demo's size, some minutes on two cores
mot train --config=configs/digits.py:arch=mot,size=smoke two steps in seconds
mot train --config=configs/digits.py:arch=mot,size=draw  captioned digits alone: to draw and to read them

Held-out losses to expect at the end, in nats a token, of seed 0 on two AVX2 cores:

size   cost                                  mot                      dense
smoke  15 s, 7 with a full cache             text 7.18, image 5.67    text 7.33, image 5.64
demo   minutes (`make demo` trains four)     text 3.36, image 1.39    text 3.42, image 1.40
draw   4 to 5 CPU-minutes                    not measured; it draws 47 of 50 digits as asked, dense's 42
"""

from ml_collections import ConfigDict

from configs import archs, base, sizes

SIZES = {
    "smoke": sizes.LAPTOP["smoke"] | dict(lr=4e-3),
    # Of 2e-3, 4e-3 and 8e-3 the rate with the lowest image loss of dense (one seed, 320 steps, more pixels).
    "demo": sizes.LAPTOP["demo"] | dict(steps=160, warmup=20, every=20, lr=4e-3),
    "draw": sizes.LAPTOP["demo"] | dict(steps=800, warmup=40, every=100, lr=4e-3),
}
# Documents in these proportions fill the budgets: five digits a row, and manual text for the rest.
MIXTURE = dict(text=320, max_tokens=128, shares=dict(manual=13, drawn=7, read=7))
CAPTIONED = dict(text=64, max_tokens=32, shares=dict(drawn=1, read=1))
DIGITS = 5  # a row
ARGUMENTS = {"arch": archs.ARGUMENT, "size": base.Argument("demo", SIZES)}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(SIZES, arg["size"])
    image = base.stream("image", size["width"], size["ffn"], max_tokens=64, first_id=1024, ids=17)
    return build(arg["arch"], arg["size"], size, image, "digits").lock()


def build(arch: str, name: str, size: dict, image: dict, setting: str, more: dict | None = None) -> ConfigDict:
    """The embedded data at a size, its images in the stream `image`; `more` are streams of their other forms."""
    data = CAPTIONED if name == "draw" else MIXTURE
    c = base.get_config()
    sizes.apply(c, size)
    text = dict(budget=data["text"], max_tokens=data["max_tokens"], ids=1024)
    c.streams = dict(
        text=base.stream("text", size["width"], size["ffn"], **text),
        **{key: s | dict(budget=DIGITS * s["max_tokens"]) for key, s in (dict(image=image) | (more or {})).items()},
    )
    archs.choose(c, arch)
    c.data.update(sources={source: "embedded" for source in data["shares"]}, shares=data["shares"])
    c.run.update(name=f"{setting}-{arch}-{name}", eval_batches=2 if name == "smoke" else 4, keep=4)
    return c


def language(c: ConfigDict, frozen: str) -> None:
    """A first stage: the manual, and captions before their digits, which so teach nothing; `frozen` does not train."""
    _only(c, dict(manual=13, drawn=7))
    c.optim.freeze = frozen


def reading(c: ConfigDict, run: str, frozen: str) -> None:
    """A later stage: digits before their captions, from another run's weights, of which `frozen` stays as it is."""
    c.streams.text.update(budget=CAPTIONED["text"], max_tokens=CAPTIONED["max_tokens"])
    _only(c, dict(read=1))
    c.init.run = run
    c.optim.freeze = frozen


def _only(c: ConfigDict, shares: dict[str, int]) -> None:
    """These sources alone."""
    c.data.sources = {source: "embedded" for source in shares}
    c.data.shares = shares
