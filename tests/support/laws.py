"""Points of planted scaling laws, and run directories whose losses follow them without training."""

import json

import numpy as np

from configs import chameleon
from mot.config import resolve
from mot.model import flops
from mot.runs import rundir
from scaling import fit, isoflop
from scaling.laws import Law, Points

TEXT = Law(1.69, 406.4, 410.7, 0.34, 0.28)  # Chinchilla's (2203.15556, equation 10)
IMAGE = Law(2.5, 30.0, 3000.0, 0.2, 0.4)
BUDGETS = np.geomspace(1e17, 1e21, 5)


def grid(law, width, sizes=7, seeds=3, noise=5e-4, seed=0, about=None, budgets=BUDGETS):
    """Points, FLOPs and cells: sizes from a `width`-th to `width` times the best one of `about`, for each budget."""
    places = [(isoflop.best(about or law, C / 6, 1.0) * f, C) for C in budgets for f in spread(width, sizes)]
    n, C = np.repeat(places, seeds, axis=0).T
    d = C / 6 / n
    loss = law.loss(n, d) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
    return Points(n, d, loss), C, np.repeat(np.arange(len(places)), seeds)


def spread(width, sizes):
    return np.geomspace(1 / width, width, sizes)


def run(root, rung="0.3m", seed=0, steps=1000, arch="dense", of=None, noise=0.0, trained=None, **changes):
    """A finished run directory, whose last held-out losses are those of the laws `of`, by modality."""
    tree = chameleon.get_config(f"arch={arch},size={rung}").unlock()
    name = changes.pop("name", f"{rung}-{steps}-{arch}-seed{seed}")
    tree.run.update(root=str(root), name=name, steps=steps, role=changes.pop("role", "fit"))
    tree.model.seed = seed
    for stream in tree.streams:
        if trained and tree.streams[stream].modality not in trained:
            tree.streams[stream].loss_weight = 0.0
    c = resolve(tree)
    path = rundir.open_run(c)
    rng = np.random.default_rng([seed, steps, len(name)])
    of = of or {"text": TEXT, "image": IMAGE}
    start = {"kind": "event", "step": 0, "event": "start", "data": "d1", "matmul_peak": 1e11}
    rows = [start, *row(c, steps // 2, of, noise, rng), *row(c, steps, of, noise, rng)]
    rows += [{"kind": "event", "step": steps, "event": event} for event in changes.pop("events", ())]
    lines = "".join(json.dumps({"schema": 1} | one) + "\n" for one in rows)
    (path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return path


def tokens(c, steps):
    """By modality, after so many steps."""
    found = {}
    for stream in c.streams.values():
        found[stream.modality] = found.get(stream.modality, 0) + steps * c.data.batch * stream.budget
    return found


def row(c, step, of, noise, rng):
    seen = tokens(c, step)
    losses = {f"loss/{m}": float(law.loss(fit.parameters_of(c, m), seen[m])) for m, law in of.items()}
    losses = {key: loss * float(np.exp(noise * rng.standard_normal())) for key, loss in losses.items()}
    common = {"step": step, "flops": step * flops.full_step(c), "seconds": 0.5 * step}
    speeds = {"step_seconds": 0.5, "tokens_per_s": 5e3, "mfu": 0.4}
    whole = losses | common | {"loss": sum(losses.values()) / len(losses)}
    yield {"kind": "train"} | whole | speeds | {f"tokens/{m}": n for m, n in seen.items()}
    yield {"kind": "eval"} | whole
