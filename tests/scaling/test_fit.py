"""From run directories to laws, best sizes and predictions; and what is said where there is none."""

import numpy as np
import pytest

from launch import sweep_rows
from mot.errors import UserError
from mot.model import flops
from scaling import fit, laws, runs
from scaling.fit import Measured
from scaling.laws import Points
from tests.support import laws as planted

RUNGS, STEPS = ("0.3m", "1m", "3m"), (500, 1000, 2000, 4000)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three sizes at four lengths, with three seeds, and a larger size that is held out; one run diverged."""
    root = tmp_path_factory.mktemp("sweep")
    for rung in RUNGS:
        for steps in STEPS:
            for seed in range(3):
                planted.run(root, rung, seed, steps, noise=5e-4)
    for seed in range(2):
        planted.run(root, "10m", seed, 4000, noise=5e-4, role="test")
    planted.run(root, "1m", 3, 1000, events=["diverged"])
    return root


@pytest.fixture(scope="module")
def found(sweep):
    return {one.modality: one for one in fit.scalings(runs.find([f"{sweep}/*"]))}


@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_sweep_s_planted_laws_come_back(found, modality):
    law, one = {"text": planted.TEXT, "image": planted.IMAGE}[modality], found[modality]
    assert (one.arch, one.fit.why, one.fit.unsure) == ("dense", "", "")
    assert len(one.fit.measured.points.loss) == len(RUNGS) * len(STEPS) * 3
    for name in ("alpha", "beta", "a", "b", "E", "A", "B"):
        low, high = one.fit.intervals[name]
        assert low < getattr(one.fit.law, name) < high
        assert low <= getattr(law, name) <= high
    assert one.fit.law.alpha == pytest.approx(law.alpha, rel=0.1)
    assert np.abs(one.fit.residuals).max() < 3e-3


def test_what_was_held_out_is_predicted_and_compared(found):
    (test,) = found["text"].ahead
    assert (test.role, test.why) == ("test", "")
    assert test.n > found["text"].fit.measured.points.n.max()
    assert abs(test.error) < 0.005
    assert test.interval.low < test.measured < test.interval.high
    ahead = fit.predict(found["text"].fit, 2 * test.n, test.d)  # a rung that has not run
    assert ahead.loss < test.loss
    assert np.isnan(ahead.error)
    assert ahead.interval.low < planted.TEXT.loss(ahead.n, ahead.d) < ahead.interval.high


def test_a_rung_that_has_not_ended_is_predicted(found, tmp_path):
    run = runs.read(planted.run(tmp_path, "10m", 0, 8000, role="test"))
    whole = fit.measured([run], "text")[0].points
    unfinished = run._replace(faults=("unfinished",))
    (one,) = fit.held_out(found["text"].fit, fit.measured([unfinished], "text")[0], [unfinished], "text", "active")
    assert (one.n, one.d) == (whole.n[0], whole.d[0])
    assert one.interval.low < whole.loss[0] < one.interval.high
    assert np.isnan(one.error)
    (known,) = fit.held_out(found["text"].fit, fit.measured([run], "text")[0], [run, unfinished], "text", "active")
    assert known.error == pytest.approx(0, abs=0.01)


def test_each_size_is_predicted_by_the_others():
    found = fit.fitted(given(SIZES, LENGTHS))
    without = fit.leave_one_size_out(found)
    assert len(without) == len(SIZES)
    assert {one.why for one in without} == {""}
    losses = planted.TEXT.loss(SIZES, LENGTHS)
    assert [one.loss for one in without] == pytest.approx(sorted_by_place(losses), rel=0.01)


def sorted_by_place(values):
    return values[np.lexsort((LENGTHS, SIZES))].tolist()


def test_without_one_of_three_sizes_nothing_is_predicted(found):
    """Two sizes tell two of E, A and alpha: any exponent fits them as well."""
    assert {one.why for one in found["image"].without} == {
        "without it: 2 sizes, and E, A and alpha need 3 or more; train more"
    }


def test_a_run_that_diverged_is_left_out_with_the_reason(found, sweep):
    assert 0 < found["text"].fit.intervals["a"].low < found["text"].fit.intervals["a"].high < 1
    assert found["text"].left_out == [(f"{sweep}/1m-1000-dense-seed3", "diverged at step 1000")]


def test_a_loss_of_0_is_left_out_with_the_reason(tmp_path):
    planted.run(tmp_path, of={"text": laws.Law(0.0, 0.0, 0.0, 0.3, 0.3), "image": planted.IMAGE})
    text = {one.modality: one for one in fit.scalings(runs.find([f"{tmp_path}/*"]))}["text"]
    assert [why for _, why in text.left_out] == ["its last held-out text loss is not above 0, and has no logarithm"]


def test_which_parameters_are_counted(found, sweep):
    config = runs.read(next(sweep.glob("1m-*"))).config
    active, total, blocks = (fit.parameters_of(config, "text", which) for which in fit.PARAMETERS)
    assert active == total == flops.total_parameters(config)  # of a dense model
    assert blocks == total - 2 * config.vocab * config.streams["text"].width
    mot = runs.read(planted.run(sweep.parent / "mot", arch="mot")).config
    assert fit.parameters_of(mot, "text", "active") < fit.parameters_of(mot, "text", "total")
    with pytest.raises(UserError, match="parameters=all: must be one of active, total, blocks"):
        fit.parameters_of(config, "text", "all")


def test_cells_are_of_runs_that_differ_in_their_seeds_wherever_a_name_has_them(tmp_path):
    for seed in range(2):
        for rung in RUNGS[:2]:
            planted.run(tmp_path, rung, seed, name=f"dense-seed{seed}-{rung}")
    found = runs.find([f"{tmp_path}/*"])
    assert not [fault for run in found for fault in run.faults]
    cells = fit.cells_of(found)
    assert len(set(cells.values())) == 2
    assert {name: len(group) for name, group in runs.grouped(found).items()} == {
        "dense (rate 0.0032)": 2,
        "dense (rate 0.00533333)": 2,
    }


def test_one_seed_has_a_law_and_no_interval(tmp_path):
    for rung in RUNGS:
        for steps in STEPS[:2]:
            planted.run(tmp_path, rung, 0, steps)
    one = fit.scalings(runs.find([f"{tmp_path}/*"]))[0]
    assert one.fit.law.alpha == pytest.approx(planted.TEXT.alpha, rel=0.02)
    assert one.fit.unsure.startswith("one seed: no interval")
    assert one.fit.intervals == {}
    assert fit.predict(one.fit, 1e7, 1e8).interval is None


def test_a_ladder_has_a_law_of_size_alone(tmp_path):
    """Equal tokens for all rungs, and of other tokens nothing is told."""
    for rung, steps in {"0.3m": 4000, "1m": 4000, "3m": 2000, "10m": 1000}.items():
        for seed in range(2):
            planted.run(tmp_path, rung, seed, steps, noise=1e-4)
    one = fit.scalings(runs.find([f"{tmp_path}/*"]))[0]
    assert one.fit.form == laws.SIZE
    assert one.fit.law.alpha == pytest.approx(planted.TEXT.alpha, rel=0.1)
    assert set(one.fit.intervals) == {"E", "A", "alpha"}
    assert one.budgets == []
    d = float(one.fit.measured.points.d[0])
    assert fit.predict(one.fit, 2e7, d).loss == pytest.approx(planted.TEXT.loss(2e7, d), rel=0.01)
    assert "does not tell of others" in fit.predict(one.fit, 2e7, 10 * d).why


def test_values_that_are_alike_have_one_number():
    assert fit.alike(np.array([3.0, 1.0, 1.01, 2.0, 3.001])).tolist() == [2, 0, 0, 1, 2]
    assert fit.alike(np.array([])).tolist() == []


# --- what cannot be fitted --------------------------------------------------------------------------------------------


def given(n, d, loss=None):
    n, d = (np.broadcast_to(np.array(x, float), np.broadcast(n, d).shape).copy() for x in (n, d))
    loss = planted.TEXT.loss(n, d) if loss is None else np.broadcast_to(loss, n.shape)
    names = np.array([str(i) for i in range(len(n))])
    return Measured(Points(n, d, loss), 6 * n * d, names, names, np.full(len(n), "fit"))


SEVEN = np.geomspace(1e6, 1e8, 7)
SIZES, LENGTHS = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e8, 4), np.geomspace(1e8, 1e10, 4)))


@pytest.mark.parametrize(
    ("points", "why"),
    [
        (given([], []), "no run to fit"),
        (given([1e6, 1e6, 1e6, 1e6, 1e6], np.geomspace(1e8, 1e10, 5)), "all runs have one size, 1e+06 parameters"),
        (given([1e6, 1e6, 4e6, 4e6], [1e8, 4e8, 1e8, 4e8]), "4 sizes and lengths for the law's 5 numbers"),
        (given([1e6] * 3 + [4e6] * 3, [1e8, 4e8, 16e8] * 2), "2 sizes, and E, A and alpha need 3 or more"),
        (given([1e6, 4e6, 16e6] * 2, [1e8] * 3 + [4e8] * 3), "2 lengths, and E, B and beta need 3 or more"),
        (given([1e6, 2e6], 1e8), "2 sizes and lengths for the law's 3 numbers (E, A and alpha)"),
        (given(np.repeat([1e6, 2e6, 4e6], 3), 1e8)._replace(), ""),
        (
            given(np.geomspace(1e6, 1e8, 7), 1e15 / np.geomspace(1e6, 1e8, 7)),
            "tokens follow from sizes, as in one budget",
        ),
        (given(SIZES, LENGTHS, 2 + 1e-9 * SIZES**0.5 + LENGTHS**-0.3), "the losses do not fall with parameters"),
        (given(SIZES, LENGTHS, 2 + 50 * SIZES**-0.3), "the losses do not fall with tokens"),
        (given(SIZES, LENGTHS, 2 + 1e19 * SIZES**-3.0 + LENGTHS**-0.3), "the losses do not tell the exponent of param"),
    ],
)
def test_a_law_that_points_cannot_tell_is_not_told(points, why):
    found = fit.fitted(points)
    assert found.why.startswith(why) or why in found.why
    assert (found.law is None) == bool(why)
    if why:
        assert len(found.residuals) == 0
        assert fit.leave_one_size_out(found) == []
        prediction = fit.predict(found, 1e7, 1e9, [3.0])
        assert np.isnan(prediction.loss)
        assert prediction.why == found.why


def test_a_size_without_which_the_others_tell_nothing_is_said_so():
    found = fit.fitted(given([1e6, 1e6, 1e6, 4e6, 4e6, 4.4e6], [1e8, 4e8, 16e8, 1e8, 8e8, 4e8]))
    assert found.law is not None
    assert {one.why for one in fit.leave_one_size_out(found)} == {
        "without it: 3 sizes and lengths for the law's 5 numbers (E, A, B, alpha and beta); train more",
        "without it: 4 sizes and lengths for the law's 5 numbers (E, A, B, alpha and beta); train more",
        "without it: 2 sizes, and E, A and alpha need 3 or more; train more",
    }


def test_a_role_that_was_fixed_beforehand_stays(tmp_path):
    """The folder of a sweep refuses rows in which a size changed its role."""
    first, later = ("configs/sweeps.py:ladder,archs=mot,rungs=0.3m+1m+3m," + rest for rest in ("test=3m", "test=1m"))
    sweep_rows.claim(tmp_path, first, sweep_rows.read(first))
    with pytest.raises(UserError, match=r"run\.role"):
        sweep_rows.refuse_other(tmp_path, later, sweep_rows.read(later))
