"""LLaDA in small (2502.09992): text by masked diffusion, beside the same model that predicts the next token.

What makes it that system: a ratio t is drawn for each document, evenly from 0 to 1, and each token is hidden with
probability t. All tokens see each other. The model predicts what is hidden, and its cross-entropy is divided by t, so
that the loss is an upper bound of -log p. Text is written by unmasking: in each step the tokens stay that the model is
surest of, of the whole text or of a block after the other.

mot data prepare ../shared/data/books.train.txt --out=data/books --text-ids=1024
mot train --config=configs/recipes/llada.py:size=cpu,data=data/books
mot train --config=configs/recipes/llada.py:size=cpu,data=data/books,text=next_token     as much work, and a likelihood
mot evaluate runs/llada-cpu --what=bits
mot sample runs/llada-cpu --text="The house was" --max-text=32 --steps=32 --block=8

Measured at size=cpu (49 CPU-seconds each): 3.16 bits a byte of held-out books (an upper bound), by next token 2.23. As
many tokens are as many FLOPs, but for attention, which sees twice as many pairs both ways.
"""

from ml_collections import ConfigDict

from configs import base, records, sizes

SIZES = {
    "smoke": sizes.LAPTOP["smoke"],
    "cpu": sizes.LAPTOP["demo"] | dict(rows=4, steps=400, warmup=40, every=100, lr=4e-3),
}
LENGTHS = {"smoke": 64, "cpu": 256}  # tokens of a row
TEXT = {"masked": dict(objective="masked", masking=dict(by="document")), "next_token": {}}
ARGUMENTS = {
    "size": base.Argument("cpu", SIZES),
    "data": base.Argument("data/books", about=records.OWN),
    "text": base.Argument("masked", TEXT),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = SIZES[arg["size"]]
    c = records.build(arg["data"], "dense", arg["size"], size, str(LENGTHS[arg["size"]]))
    c.streams.text = base.stream("text", size["width"], size["ffn"], ids=c.streams.text.ids, **TEXT[arg["text"]])
    c.data.max_skipped = 10_000  # of books: sentences longer than a row
    c.data.blocks = "document" if arg["text"] == "masked" else "units"
    c.run.name = "-".join(["llada", arg["size"], *["next"] * (arg["text"] == "next_token")])
    return c.lock()
