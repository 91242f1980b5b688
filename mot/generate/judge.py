"""Is a drawn digit the one that was asked for? A classifier of the same real digits that models train on decides."""

from collections.abc import Callable

import numpy as np
from sklearn.svm import SVC

from mot.data import embedded
from mot.data.mixture import Sources


def judge(training: Sources, held_out: Sources) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """A function from grey levels `[n, 64]` to digits `[n]`, and its accuracy on held-out digits."""
    classifier = trained(training)
    return classifier.predict, float(classifier.score(*embedded.labelled(held_out)))


def trained(training: Sources) -> SVC:
    """The classifier. Its `decision_function` of grey levels `[n, 64]` says of each digit how much one is like it."""
    return SVC(gamma=1e-3).fit(*embedded.labelled(training))
