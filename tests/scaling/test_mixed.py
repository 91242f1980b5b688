"""The bimodal law of 2301.03728: a planted interaction comes back, and its lack is said."""

import numpy as np
import pytest

from scaling import fit, mixed, runs
from scaling.fit import Measured
from scaling.laws import Law, Points
from tests.support import laws as planted

PAIR = ("text", "image")
ADDED = Law(-0.15, 80.0, 60.0, 0.35, 0.25)  # C = 0.15
OF = (planted.TEXT, planted.IMAGE)


def made(noise, seeds=3, sizes=5):
    """Runs alone of each modality, and joint runs with as many tokens of each."""

    def measured(points, C, cell):
        names = np.array([f"{i}" for i in range(len(C))])
        return Measured(points, C, cell.astype(str), names, np.full(len(C), "fit"))

    how = dict(sizes=sizes, seeds=seeds, about=planted.TEXT, budgets=np.geomspace(1e15, 1e19, 5))
    alone = tuple(measured(*planted.grid(law, 8, noise=noise, seed=i, **how)) for i, law in enumerate(OF))
    points, C, cell = planted.grid(planted.TEXT, 8, **how)
    rng, added = np.random.default_rng(5), ADDED.loss(points.n, 2 * points.d)
    joint = []
    for law in OF:
        loss = (law.loss(points.n, points.d) + added) * np.exp(noise * rng.standard_normal(len(C)))
        joint.append(measured(Points(points.n, points.d, loss), C, cell))
    return alone, tuple(joint)


def test_a_planted_interaction_comes_back():
    found = mixed.law_of("dense", PAIR, *made(1e-3))
    assert (found.why, found.unsure) == ("", "")
    for name, truth in zip(("C", "A", "B", "alpha", "beta"), (0.15, *ADDED[1:]), strict=True):
        low, high = found.intervals[name]
        assert low <= truth <= high < 2 * low
    assert (-found.law.E, found.law.alpha, found.law.beta) == pytest.approx((0.15, 0.35, 0.25), rel=0.1)


def test_beyond_the_barrier_joint_runs_gain():
    found = mixed.law_of("dense", PAIR, *made(2e-4))
    for n, d in ((1e7, 1e9), (1e11, 1e14)):
        gain, (low, high) = found.gain(n, d)
        assert low < gain < high
        assert gain == pytest.approx(-ADDED.loss(n, d), rel=0.05)
        assert (gain > 0) == (n > 1e9)


def test_one_seed_has_no_interval():
    found = mixed.law_of("dense", PAIR, *made(0, seeds=1))
    assert found.law == pytest.approx(ADDED, rel=1e-3)
    assert "one seed" in found.unsure
    assert found.gain(1e7, 1e9)[1] is None


def test_from_runs(tmp_path):
    """Of a mixture sweep over sizes: runs alone are those in which the other loss has no weight."""
    together = {m: Law(law.E + 0.1, *law[1:]) for m, law in zip(PAIR, OF, strict=True)}
    for rung in ("0.3m", "1m", "3m"):
        for steps in (500, 1000, 2000):
            for seed in range(2):
                for alone in PAIR:
                    name = f"{rung}-{steps}-dense-{alone}-seed{seed}"
                    planted.run(tmp_path, rung, seed, steps, trained=[alone], name=name)
                planted.run(tmp_path, rung, seed, steps, of=together, name=f"{rung}-{steps}-dense-joint-seed{seed}")
    (found,) = mixed.mixed(runs.find([f"{tmp_path}/*"]), PAIR)
    assert found.arch == "dense"
    assert found.alone[0].law == pytest.approx(planted.TEXT, rel=1e-3)
    assert len(found.joint.loss) == 18
    gain, (low, high) = found.gain(2e6, 2e7)
    assert low <= gain <= high
    assert gain == pytest.approx(-0.1, rel=1e-3)


def test_what_lacks_is_said(tmp_path):
    alone, joint = made(0, seeds=1)
    few = joint[0].where(joint[0].points.n == joint[0].points.n[0])
    assert mixed.law_of("dense", PAIR, alone, (few, few)).why.startswith("of joint runs: all runs have one size")
    level = tuple(one._replace(points=one.points._replace(d=np.full(len(one.run), 1e9))) for one in joint)
    assert (
        mixed.law_of("dense", PAIR, alone, level).why
        == "of joint runs: all runs read one number of tokens, 2e+09; train others"
    )
    nothing = fit.measured([], "text")[0]
    found = mixed.law_of("dense", PAIR, (nothing, alone[1]), joint)
    assert found.why == "no law of text alone: no run to fit"
    assert found.law is None
