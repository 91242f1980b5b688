"""Codes at random, for tests of tokenizers."""

import numpy as np

from mot.tokenizers import codebook


def random_codes(ids: int, features: int) -> np.ndarray:
    codes = np.random.default_rng(ids).integers(0, 256, (4 * ids, features), np.uint8)
    return codebook.ordered(np.unique(codes, axis=0)[::2][:ids])
