r"""LLM2Vec in small (2404.05961): a model of text becomes one of embeddings, in three steps, each from the one before.

mot data prepare ../shared/data/books.train.txt --separator="\n\n" --text-ids=1024 --max-tokens=256 \
    --out=data/passages
mot train --config=configs/recipes/llm2vec.py:size=cpu,step=text       it predicts the next token
mot train --config=configs/recipes/llm2vec.py:size=cpu,step=mntp       sees both ways, 20 % hidden
mot train --config=configs/recipes/llm2vec.py:size=cpu,step=simcse     tells passages apart
mot evaluate runs/llm2vec-cpu-text --what=retrieval --pool=100
mot evaluate runs/llm2vec-cpu-simcse --what=retrieval --pool=100

A hidden token is predicted by the token before it, as in the first step. In the last step each passage is passed twice
with dropout of 0.3, at a fixed temperature of 0.05. All parameters train in each step, where the paper trains LoRAs;
hidden tokens have an id of their own, where the paper takes one that the model knows.
"""

from ml_collections import ConfigDict

from configs import base, records, sizes

SIZES = {
    "smoke": sizes.LAPTOP["smoke"],
    "cpu": dict(width=96, layers=3, heads=3, head_size=32, ffn=256, rows=8, steps=400, warmup=20, every=100, lr=3e-3),
}
LENGTHS = {"smoke": 128, "cpu": 512}  # tokens of a row
FEWER = {"text": 1, "mntp": 2, "simcse": 4}  # of a step's steps, and times a lower rate
BEFORE = {"mntp": "text", "simcse": "mntp"}  # the step from which one begins
ARGUMENTS = {
    "size": base.Argument("cpu", SIZES),
    "step": base.Argument("text", FEWER),
    "data": base.Argument("data/passages", about=records.OWN),
    "runs": base.Argument("runs", about="the folder of the run of the step before"),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    step, name = arg["step"], arg["size"]
    size = sizes.choose(SIZES, name)
    fewer = FEWER[step]
    size = size | dict(steps=max(size["steps"] // fewer, 2), lr=size["lr"] / fewer)
    c = records.build(arg["data"], "dense", name, size, str(LENGTHS[name]))
    text = dict(ids=c.streams.text.ids, max_tokens=LENGTHS[name] // 2)
    if step == "mntp":
        hidden = dict(by="document", shift=True, least=0.2, most=0.2, weighting="even")
        text |= dict(objective="masked", masking=hidden)
    if step == "simcse":
        text |= dict(objective="none")
        c.model.dropout = 0.3
        c.objective.contrastive = base.contrastive("infonce", streams="text", width=0, temperature=0.05)
        c.optim.rules = (dict(match="^contrast/scale$", lr=0.0, decay=0.0),)
    c.streams.text = base.stream("text", size["width"], size["ffn"], **text)
    c.data.blocks = "units" if step == "text" else "document"
    c.run.name = f"llm2vec-{name}-{step}"
    if step in BEFORE:
        c.init.run = f"{arg['runs']}/llm2vec-{name}-{BEFORE[step]}"
    return c.lock()
