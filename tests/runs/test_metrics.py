"""What is reported of sums over targets."""

import numpy as np
import pytest

from mot.runs import metrics


def test_a_loss_is_the_mean_of_all_targets_and_what_is_absent_is_left_out():
    loss_sum_MO, weight_MO = np.array([[30.0, 2.0], [0.0, 0.0]]), np.array([[10.0, 1.0], [0.0, 0.0]])
    found = metrics.losses(loss_sum_MO, weight_MO, ("text", "image"), ("books", "web"))
    wanted = {"loss": 32 / 11, "loss/text": 32 / 11, "loss/text/books": 3.0, "loss/text/web": 2.0}
    assert found == pytest.approx(wanted)
    loss_sum_MO[1, 1], weight_MO[1, 1] = 4.0, 4.0
    found = metrics.losses(loss_sum_MO, weight_MO, ("text", "image"), ("books", "web"))
    assert found == pytest.approx(wanted | {"loss": 36 / 15, "loss/image": 1.0, "loss/image/web": 1.0})


def test_weights_that_are_nan_are_not_absent():
    found = metrics.losses(np.array([[1.0]]), np.array([[np.nan]]), ("text",), ("books",))
    assert np.isnan(found["loss/text"])
