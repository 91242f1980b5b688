"""SigLIP: the loss of each pair by itself, on CLIP's numbers and towers."""

import math

from tests.support import recipes
from tests.support.training import rows


def test_two_towers_learn_and_at_first_nothing_belongs_together(tmp_path):
    first = rows(recipes.two_steps("siglip", tmp_path))[0]
    # 2303.15343, section 3.2: a pair costs about its logit's 10 nats, and all others nothing.
    assert first["contrastive/bias"] == -10
    assert math.isclose(first["contrastive/temperature"], 0.1, rel_tol=1e-5)
    assert 5 < first["loss/contrastive"] < 20
