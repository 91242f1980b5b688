"""Encoded media, tones, and the comparison of packed batches."""

import io

import jax
import numpy as np
import soundfile
from PIL import Image


def encoded(picture, form, **options) -> bytes:
    file = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(file, form, **options)
    return file.getvalue()


def sound(samples, form, subtype=None, rate=16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype, format=form)
    return file.getvalue()


def npy(array, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def tone(hertz, seconds=0.5, rate=16000):
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate).astype(np.float32)


def clips(rate=16000):
    """Sliding tones in some noise."""
    rng = np.random.default_rng(0)
    for f in (200, 500, 1100, 2300, 3100):
        slide = tone(np.linspace(f, 1.2 * f, rate // 2), 0.5, rate) * np.linspace(0.02, 1, rate // 2)
        yield (slide + 0.01 * rng.standard_normal(rate // 2)).astype(np.float32), rate


def same(a, b):
    """Two packed batches, states and all."""
    jax.tree.map(np.testing.assert_array_equal, a.batch, b.batch)
    assert a.state == b.state
    assert a.left_out == b.left_out
