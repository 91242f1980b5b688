"""How fast records become packed batches, by one core; `make bench` prints it, `python -m bench.data` alone."""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from configs import records as records_config
from mot.config import resolve
from mot.data import budgets, embedded, pipeline, sources
from mot.prepare import job
from tests.support.datasets import SMALL

RUNG = 163e6  # parameters; at the matmul peak itself it would train on peak / (6 * parameters) tokens a second


def write(folder: Path) -> dict[str, Path]:
    """Inputs: the manual's text, digits with captions, and sections of the manual with digits between them."""
    sections, (pixels, labels) = embedded._manual(), embedded._digits()
    for i, image in enumerate(pixels):
        Image.fromarray((image.reshape(8, 8) * 15).astype(np.uint8)).save(folder / f"{i}.png")

    def picture(i):
        return {"image": f"{i % len(pixels)}.png"}

    def text(s):
        return {"text": s}

    documents = {
        "text": [[text(s)] for s in sections],
        "image-text": [[text(embedded._caption(i, label)), picture(i)] for i, label in enumerate(labels)],
        "interleaved": [
            [part for k in range(4) for part in (text(sections[(4 * i + k) % len(sections)]), picture(4 * i + k))]
            for i in range(1500)
        ],
    }
    files = {}
    for name, some in documents.items():
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("\n".join(json.dumps({"content": content}) for content in some) + "\n", encoding="utf-8")
    return files


def throughput(length: int = 4096, rows: int = 8, seconds: float = 4.0) -> dict[str, float]:
    """Packed tokens a second of one core, by kind of data."""
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, file in write(Path(folder)).items():
            recipe = dataclasses.replace(
                SMALL, inputs=(str(file),), text_ids=4096, image_patch=1, image_ids=16, max_tokens=8192, shard=2048
            )
            out = Path(folder) / name
            job.prepare(recipe, out, 1, 0)
            tree = records_config.get_config(f"data={out},length={length}").unlock()
            tree.data.batch = rows
            c = resolve(tree, sources.faults)
            training, _ = sources.open_(c)
            c = budgets.resolve(c, training)
            made = pipeline.Batches(training, c, 0, 10**6)
            made[0]
            tokens = 0
            n = 1
            start = time.process_time()
            while time.process_time() - start < seconds:
                batch = made[n].batch
                tokens += sum(int((t.segment != 0).sum()) for t in batch.values())
                n += 1
            result[name] = tokens / (time.process_time() - start)
    return result


if __name__ == "__main__":
    for name, rate in throughput().items():
        print(f"{name}: {rate / 1e3:.0f} thousand packed tokens a second and core")
