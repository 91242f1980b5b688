"""Sizes: two for a laptop, and the published ladders (MoT, 2411.04996, tables 1 and 2; rows of 4,096 tokens)."""

LAPTOP = {
    "smoke": dict(width=32, layers=2, heads=2, head_size=16, ffn=64, rows=2, steps=2, warmup=1, every=1, lr=2e-3),
    "demo": dict(width=128, layers=4, heads=4, head_size=32, ffn=352, rows=4, steps=400, warmup=40, every=50, lr=2e-3),
    "small": dict(
        width=512, layers=8, heads=8, head_size=64, ffn=1408, rows=16, steps=10_000, warmup=500, every=500, lr=2e-3
    ),
}


def _rung(width: int, layers: int, heads: int, mtokens: float, steps: int, lr: float) -> dict:
    """A rung of a ladder: `mtokens` million tokens a batch; F is 8/3 of D, rounded up to a multiple of 128."""
    ffn = -(-8 * width // 3 // 128) * 128
    sizes = dict(width=width, layers=layers, heads=heads, head_size=width // heads, ffn=ffn)
    schedule = dict(rows=round(mtokens * 1e6 / 4096), steps=steps, warmup=4000, every=1000, lr=lr, length=4096)
    return sizes | schedule


# Chameleon's peak rate is that of 2405.09818 and MoMa (2407.21770).
CHAMELEON = LAPTOP | {
    "37m": _rung(256, 4, 8, 1.57, 160_000, 1e-4),
    "94m": _rung(512, 8, 8, 1.05, 160_000, 1e-4),
    "443m": _rung(1024, 24, 16, 1.57, 160_000, 1e-4),
    "880m": _rung(1536, 24, 24, 2.10, 120_000, 1e-4),
    "1.5b": _rung(2048, 24, 16, 2.10, 120_000, 1e-4),
    "7b": _rung(4096, 32, 32, 3.15, 120_000, 1e-4),
}
TRANSFUSION = LAPTOP | {
    "163m": _rung(768, 16, 12, 2.10, 250_000, 3e-4),
    "760m": _rung(1536, 24, 24, 2.10, 250_000, 3e-4),
    "1.4b": _rung(2048, 24, 16, 2.10, 250_000, 3e-4),
    "7b": _rung(4096, 32, 32, 2.10, 250_000, 3e-4),
}


def choose(sizes: dict[str, dict], name: str) -> dict:
    if name not in sizes:
        raise ValueError(f"size={name}: no such size; allowed: {', '.join(sizes)}; choose one")
    return sizes[name]


def apply(c, size: dict) -> None:
    """Writes a size's model, batch and schedule into a configuration; streams have theirs from `width` and `ffn`."""
    c.model.update({k: size[k] for k in ("layers", "heads", "head_size")}, kv_heads=size["heads"])
    if "length" in size:  # of a ladder: not for a laptop
        c.model.update(scan=True, dtype="bfloat16", remat="dots")
        c.optim.end_lr = size["lr"] / 20
    c.data.batch = size["rows"]
    c.optim.update(lr=size["lr"], warmup=size["warmup"])
    c.run.update(steps=size["steps"], eval_every=size["every"], save_every=max(size["steps"] // 4, 2))
