"""Rows without padding, of documents that are alike."""

import numpy as np

from mot.batches import Batch
from mot.config import Config
from mot.data.packing import document, pack

RUNS = 8  # of each stream in a document


def filled(config: Config, documents: int = 1) -> Batch:
    """Rows of so many documents of random ids, which go from stream to stream `RUNS` times."""
    rng = np.random.default_rng(0)
    streams = list(config.streams.values())
    sizes = [s.budget // (documents * RUNS) for s in streams] * RUNS
    stream = np.repeat(np.tile(np.arange(len(streams)), RUNS), sizes)
    first, ids = (np.array([getattr(s, name) for s in streams])[stream] for name in ("first_id", "ids"))
    rows = [
        [document(0, n, first + rng.integers(0, ids), stream) for n in range(documents)]
        for _ in range(config.data.batch)
    ]
    return pack(rows, list(config.streams), [s.budget for s in streams])
