"""What generation remembers of each row: tokens in the order in which they came, and no padding."""

import jax.numpy as jnp
import numpy as np

from mot.batches import Info
from mot.model import caches
from tests.support import examples


def test_rows_grow_by_their_own_tokens_and_padding_is_overwritten():
    c = examples.make()
    cache = caches.empty(c, 2, 8)
    assert len(cache.kv) == c.model.layers
    assert cache.kv[0][0].size == 2 * 8 * c.model.kv_heads * c.model.head_size
    rows = [[], []]
    for step, real in enumerate(([2, 1], [0, 3], [1, 1])):
        T = 3
        is_real = np.arange(T) < np.array(real)[:, None]
        position = np.array([[len(row)] for row in rows]) + np.arange(T)
        info = Info(*map(jnp.asarray, (position, is_real.astype(int), np.where(is_real, 10 + step, 99), is_real)))
        new_BTKH = np.zeros((2, T, c.model.kv_heads, c.model.head_size), np.float32) + position[..., None, None]
        kv = tuple((caches.place(k, new_BTKH, cache.used), v) for k, v in cache.kv)
        cache = caches.keep(cache.replace(kv=kv, info=caches.place_info(cache, info)))
        rows = [row + [10 + step] * n for row, n in zip(rows, real, strict=True)]
        np.testing.assert_array_equal(cache.used, [len(row) for row in rows])
        for b, row in enumerate(rows):
            np.testing.assert_array_equal(cache.info.span[b, : len(row)], row)
            np.testing.assert_array_equal(cache.info.position[b, : len(row)], np.arange(len(row)))
            assert not cache.info.segment[b, len(row) :].any()
            np.testing.assert_array_equal(cache.kv[0][0][b, 0, : len(row), 0], np.arange(len(row)))
