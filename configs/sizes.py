"""Sizes: for a laptop, the published ladders (MoT, 2411.04996, tables 1 and 2), and rungs below them for a CPU."""

from configs.base import chosen

LAPTOP = {
    "smoke": dict(width=32, layers=2, heads=2, head_size=16, ffn=64, rows=2, steps=2, warmup=1, every=0, lr=2e-3),
    "demo": dict(width=128, layers=4, heads=4, head_size=32, ffn=352, rows=4, steps=400, warmup=40, every=50, lr=2e-3),
    "small": dict(
        width=512, layers=8, heads=8, head_size=64, ffn=1408, rows=16, steps=10_000, warmup=500, every=500, lr=2e-3
    ),
}
LENGTH, TINY_LENGTH = 4096, 512  # tokens of a row


def _rung(width: int, layers: int, heads: int, rows: int, steps: int, lr: float) -> dict:
    """A published rung; F is 8/3 of D, rounded up to what a TPU's tile takes. 4,000 steps of warm-up: 2408.11039."""
    sizes = dict(width=width, layers=layers, heads=heads, head_size=width // heads, ffn=_round(width, 128))
    return sizes | dict(rows=rows, steps=steps, warmup=4000, every=1000, lr=lr, length=LENGTH, device="tpu")


def _tiny(width: int, layers: int, heads: int, rows: int) -> dict:
    """A rung of the same family for a CPU: 20 tokens for each of the trunk's parameters (2203.15556).

    The rate falls as 1 / D from the one that did best for digits' demo, 4e-3 at D = 128.
    """
    steps = round(20 * 12 * width**2 * layers / (rows * TINY_LENGTH))
    sizes = dict(width=width, layers=layers, heads=heads, head_size=width // heads, ffn=_round(width, 32))
    schedule = dict(rows=rows, steps=steps, warmup=steps // 20, every=steps // 20, lr=4e-3 * 128 / width)
    return sizes | schedule | dict(length=TINY_LENGTH, device="cpu")


def _round(width: int, to: int) -> int:
    return -(-8 * width // 3 // to) * to


# By the trunk's parameters, 12 d^2 L. The published trunks begin at 3.1M: the 37M rung is 256 wide and has 4 layers.
TINY = {
    "0.3m": _tiny(96, 3, 3, 16),
    "1m": _tiny(160, 3, 5, 16),
    "3m": _tiny(256, 4, 8, 32),
    "10m": _tiny(384, 6, 12, 64),
}
# Rows of 4,096 tokens: 384 are the table's 1.57M, 256 its 1.05M, 512 its 2.10M, 768 its 3.15M.
# The peak rate is that of Chameleon (2405.09818) and MoMa (2407.21770).
CHAMELEON = {
    "37m": _rung(256, 4, 8, 384, 160_000, 1e-4),
    "94m": _rung(512, 8, 8, 256, 160_000, 1e-4),
    "443m": _rung(1024, 24, 16, 384, 160_000, 1e-4),
    "1.5b": _rung(2048, 24, 16, 512, 120_000, 1e-4),
    "7b": _rung(4096, 32, 32, 768, 120_000, 1e-4),
}
SPEECH = {"443m": CHAMELEON["443m"], "880m": _rung(1536, 24, 24, 512, 120_000, 1e-4)} | {
    rung: CHAMELEON[rung] for rung in ("1.5b", "7b")
}
TRANSFUSION = {
    "163m": _rung(768, 16, 12, 512, 250_000, 3e-4),
    "760m": _rung(1536, 24, 24, 512, 250_000, 3e-4),
    "1.4b": _rung(2048, 24, 16, 512, 250_000, 3e-4),
    "7b": _rung(4096, 32, 32, 512, 250_000, 3e-4),
}
# What each device runs best. `block` keeps the least: it fits everywhere, and `mot plan --search` proposes others.
DEVICES = {
    "tpu": dict(attention="splash", dispatch="gmm", dtype="bfloat16"),
    "gpu": dict(attention="triton", dispatch="triton", dtype="bfloat16"),
    "cpu": dict(attention="chunked", dispatch="blocked", dtype="float32"),
}


def choose(sizes: dict[str, dict], name: str, what: str = "size", where: str = "") -> dict:
    return sizes[chosen(what, name, sizes, where)]


def apply(c, size: dict) -> None:
    """Writes a size's model, batch and schedule into a configuration; streams have theirs from `width` and `ffn`."""
    c.model.update({k: size[k] for k in ("layers", "heads", "head_size")}, kv_heads=size["heads"])
    c.data.batch = size["rows"]
    c.optim.lr = size["lr"]
    schedule(c, size, size["steps"])
    if "device" in size:
        # As Transfusion's: down to 1.5e-5 of 3e-4. Its AdamW (0.9, 0.95, eps 1e-8, decay 0.1, clip 1) is base's.
        c.optim.end_lr = size["lr"] / 20
        place(c, size, size["device"])


def schedule(c, size: dict, steps: int) -> None:
    """So many steps, with a warm-up of at most a tenth of a run that was shortened.

    Where it is saved, 0, follows from the steps, also where they are changed later; so it is with `every` = 0.
    """
    c.optim.warmup = size["warmup"] if steps >= size["steps"] else min(size["warmup"], steps // 10)
    c.run.update(steps=steps, eval_every=min(size["every"], steps), save_every=0)


def place(c, size: dict, device: str) -> None:
    """How a rung is computed on a device; a CPU runs unrolled layers faster, where they are few."""
    deep = device != "cpu" or size["length"] == LENGTH
    c.model.update(choose(DEVICES, device, "device"), scan=deep, remat="block" if deep else "none")
    c.objective.chunk = 4096 if device == "tpu" else 2048  # with fewer rows v6e's matmuls wait for memory
