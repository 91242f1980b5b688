"""Run directories without training, whose losses are planted, and the page that is made of them."""

import html
import json
import re

import numpy as np

from configs import digits
from mot.config import resolve
from mot.runs import rundir
from scaling import report, runs

STEPS, EVERY = 60, 10
LAYERS = 4  # of probes that are made by hand
BASES = {"text": 2, "image": 1, "speech": 1.5}


def planted(
    root,
    arch="dense",
    seed=0,
    speed=1.0,
    steps=None,
    data="d1",
    name=None,
    events=(),
    setting=digits,
    keys=(),
    above=(),
    sources=(),
    cost=10**9,
    **changes,
):
    """A run directory without training: losses that fall `speed` times as fast as dense's, a number or by modality.

    `keys` are values by dotted key, `above` what is added to a modality's losses, and `sources` of a modality what is
    added to those of each of its sources; `cost` are the model FLOPs of a step, and `changes` of the
    optimiser. Without `steps` it has all of its steps.
    """
    tree = setting.get_config(f"arch={arch},size=smoke").unlock()
    tree.run.update(root=str(root), name=name or f"{arch}-seed{seed}", steps=STEPS)
    tree.model.seed = tree.data.seed = seed
    for key, value in changes.items():
        tree.optim[key] = value
    for key, value in dict(keys).items():
        _put(tree, key, value)
    config = resolve(tree)
    path = rundir.open_run(config)
    steps = config.run.steps if steps is None else steps
    rng = np.random.default_rng(seed)
    rows = [{"kind": "event", "step": 0, "event": "start", "data": data, "matmul_peak": 1e11}]
    bases = {m: base + dict(above).get(m, 0) for m, base in BASES.items() if m in config.modalities}
    speeds_of = speed if isinstance(speed, dict) else dict.fromkeys(bases, speed)
    for step in range(steps + 1):
        loss = {f"loss/{m}": base + 4 * (step * speeds_of[m] + 2) ** -0.5 for m, base in bases.items()}
        common = {"step": step, "flops": step * cost, "seconds": 0.5 * step}
        noisy = {k: v + 0.01 * rng.standard_normal() for k, v in loss.items()}
        speeds = {"step_seconds": 0.5, "tokens_per_s": 5e3, "mfu": 0.4, "fill/text": 0.99, "fill/image": 1.0}
        if step:
            counts = {f"tokens/{m}": 1280 * step for m in bases}
            rows.append({"kind": "train", "loss": sum(noisy.values()) / len(noisy)} | common | noisy | speeds | counts)
        if step % EVERY == 0:
            each = {f"loss/{m}/{s}": loss[f"loss/{m}"] + x for m, of in dict(sources).items() for s, x in of.items()}
            rows.append({"kind": "eval", "loss": sum(loss.values()) / len(loss)} | common | loss | each)
    rows += [{"kind": "event", "step": steps, "event": event} for event in events]
    write(path, rows)
    return path


def _put(tree, key, value):
    *path, last = key.split(".")
    for name in path:
        tree = tree[name]
    tree[last] = value


def write(path, rows):
    """metrics.jsonl of these rows."""
    lines = [json.dumps({"schema": 1} | row) + "\n" for row in rows]
    (path / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")


def rewritten(path, change):
    """The run's rows, each as `change(row)` gives it."""
    file = path / "metrics.jsonl"
    rows = [change(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def probed(path, shift=0.0, steps=(20, 60)):
    """probes.jsonl made by hand: cosines fall with depth and rise over training, by `shift` higher."""
    lines = []
    for step in steps:
        late = step / 100
        numbers = {}
        for layer in range(LAYERS):
            for component in ("attn", "ffn"):
                numbers[f"gradients/cosine/text/image/{component}/{layer}"] = 0.1 * (3 - layer) + late + shift
                numbers[f"gradients/ratio/text/image/{component}/{layer}"] = 1.5
            numbers[f"representation/gap/text/image/{layer}"] = 0.2 * layer
            numbers[f"representation/linear/{layer}"] = 0.9
            for one in ("text", "image"):
                numbers |= {f"attention/{one}/{other}/{layer}": 0.7 + (one == other) for other in ("text", "image")}
                numbers[f"experts/ffn/text/share/{one}/{layer}"] = 1 + 0.1 * layer
            numbers[f"experts/ffn/text/overlap/{layer}"] = 0.5
        lines.append(rundir.line_of({"schema": rundir.SCHEMA, "step": step, "what": "all"} | numbers))
    (path / "probes.jsonl").write_text("".join(lines), encoding="utf-8")


def swept(root, text):
    """The sweep.json of the runs that lie in `root`, as `mot sweep` writes it."""
    rows = [{"config": "configs/digits.py", "run.name": p.parent.name} for p in sorted(root.glob("*/config.json"))]
    (root / "sweep.json").write_text(json.dumps({"sweep": text, "rows": rows}), encoding="utf-8")


def page(root, *patterns, out=None):
    """The report's sentence and its page."""
    out = out or root
    sentence = report.write(runs.find(patterns or [f"{root}/*"]), out)
    return sentence, (out / "report.html").read_text(encoding="utf-8")


def prose(text):
    """What a page says, without its marks and pictures."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"data:image[^\"]+", "", text))))
