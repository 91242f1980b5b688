"""Vectors that lie side by side in a token: documents, cuts and counts of folded sources."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import transfusion
from mot.config import resolve
from mot.data import embedded, folding, packing, sources
from tests.support import vectors


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 99))
def test_a_folded_document_keeps_every_vector_in_its_unit(fold, parts, seed):
    """Parts are words, or units of so many folds."""
    rng = np.random.default_rng(seed)
    stream, of_unit, values = [0], [0], []
    for number, n in enumerate(parts, 1):
        count = n * fold or 2
        stream += [1 if n else 0] * count
        of_unit += [number if n else 0] * count
        values += [rng.standard_normal((count, 3))] * bool(n)
    stream = np.array(stream)
    values = {1: np.concatenate(values)} if values else {}
    d = packing.document(0, 0, np.arange(len(stream)), stream, values, unit=of_unit)
    got = folding.document(d, (1, fold))
    assert (got.stream == 1).sum() * fold == (stream == 1).sum()
    np.testing.assert_array_equal(got.token[got.stream == 0], d.token[stream == 0])
    for number, n in enumerate(parts, 1):
        mine = got.unit[got.stream == 1] == number
        assert mine.sum() == n
        if n:
            theirs = d.values[1][d.unit[stream == 1] == number]
            np.testing.assert_array_equal(folding.undone(got.values[1][mine], fold), theirs)


def test_a_folded_source_counts_and_cuts_what_it_reads():
    tree = transfusion.get_config("size=smoke").unlock()
    plain = embedded.load(resolve(tree))[0]
    tree.streams.image.update(objective="none", max_tokens=4, budget=20)
    tree.streams.image.entry.fold = 4
    c = resolve(tree, sources.faults)
    folded = sources.open_(c)[0]
    for source, other in zip(folded.all, plain.all, strict=True):
        np.testing.assert_array_equal(source.totals(), other.totals() // [1, 4])
        d = source.read(3)
        assert (np.bincount(d.stream, minlength=2) == source.lengths(3)).all()
        np.testing.assert_array_equal(source.cuts(3)[-1], [len(d.token), *source.lengths(3)])
    assert folded.all[1].read(3).values[1].shape == (4, 16)
    np.testing.assert_array_equal(embedded.labelled(folded)[0], embedded.labelled(plain)[0])
    one = folding.Folded(plain.all[1], [1, 4])
    np.testing.assert_array_equal(one.cuts(3), folded.all[1].cuts(3))
    np.testing.assert_array_equal(one.units, folded.all[1].units)
    np.testing.assert_array_equal(one.read(3).token, folded.all[1].read(3).token)


@pytest.mark.parametrize(
    ("entry", "tokens", "says"),
    [
        (dict(fold=3), 16, "the data has 16 vectors in a unit of image; it must have a multiple of 3"),
        (dict(fold=2), 0, "units of different lengths"),
        (dict(kind="resampler", fold=2, queries=4, layers=1), 16, r"must have fold \* queries = 2 \* 4 = 8"),
    ],
)
def test_a_fold_that_divides_no_unit_is_refused(entry, tokens, says):
    tree = vectors.tree()
    tree.streams.image.objective = "none"
    tree.streams.image.entry.update(entry)
    (fault,) = folding.unit_faults(resolve(tree), {"text": 0, "image": tokens})
    assert re.search(says, fault)
