"""Every key there is, with the values that most experiments keep. An experiment's file changes the others."""

from ml_collections import ConfigDict


def parse(arg: str, **defaults: str) -> dict[str, str]:
    """`arch=mot,size=demo` over the defaults; unknown names are refused."""
    given = dict(part.split("=", 1) if "=" in part else (part, "") for part in arg.split(",") if part)
    for name, value in given.items():
        if name not in defaults or not value:
            allowed = ", ".join(f"{k}={v}" for k, v in defaults.items())
            raise ValueError(f"config argument '{name}={value}' is unknown; allowed, with their defaults: {allowed}")
    return {**defaults, **given}


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.run = dict(root="runs", name="run", steps=1000, eval_every=100, eval_batches=8, save_every=500, keep=3)
    c.streams = ConfigDict()  # the experiment's: modality, width, ffn, budget, longest, first_id, ids, loss_weight
    c.towers = ConfigDict()  # the experiment's: configs/archs.py
    c.model = dict(
        layers=8,
        heads=8,
        kv_heads=8,
        head_size=64,
        norm="pre",
        norm_eps=1e-5,
        qk_norm="rms",
        rope_theta=10_000.0,
        tied=False,
        scan=False,  # accelerators want True
        remat="none",
        dtype="float32",  # accelerators want bfloat16
        attention="chunked",
        seed=0,
    )
    c.objective = dict(z_loss=1e-5, per="all", chunk=256)
    c.data = dict(batch=8, seed=0, lookahead=256, shares=dict())
    c.optim = dict(
        lr=1e-3,
        end_lr=1e-4,
        warmup=100,
        schedule="cosine",
        decay_steps=0,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        clip=1.0,
        accumulate=1,
        ema=0.0,
        patience=5,
        # Weights decay; norms' scales and biases do not.
        rules=(dict(match="norm", lr=1.0, decay=0.0), dict(match=".*", lr=1.0, decay=0.1)),
    )
    return c
