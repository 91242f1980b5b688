"""Frechet's distance and the kernel distance against torch-fidelity's, of the same features and subsets."""

import sys
from unittest import mock

import numpy as np
import pytest
import torch

from mot.measures import distances
from mot.measures.distances import Features

# Its metrics need no torchvision, and it imports one all the same.
VISION = [f"torchvision{part}" for part in ("", ".datasets", ".transforms", ".transforms.functional")]
with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in VISION}):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric


@pytest.mark.parametrize(("n", "features"), [(300, 16), (120, 64)])
def test_both_distances_are_those_of_torch_fidelity(n, features):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, features)) @ rng.standard_normal((features, features))
    y = rng.standard_normal((n + 40, features)) + 0.5
    tensors = [torch.tensor(a) for a in (x, y)]
    want = fid_statistics_to_metric(*map(fid_features_to_statistics, tensors), verbose=False)
    assert distances.frechet(Features(x, y)) == pytest.approx(want["frechet_inception_distance"], rel=1e-8)
    how = dict(kid_subsets=20, kid_subset_size=100, rng_seed=distances.SEED, verbose=False)
    want = kid_features_to_metric(*tensors, **how)
    got = distances.kernel(Features(x, y), 20, 100)
    assert got.mean() == pytest.approx(want["kernel_inception_distance_mean"], rel=1e-10)
    assert got.std() == pytest.approx(want["kernel_inception_distance_std"], rel=1e-10)
