"""Losses at equal FLOPs, seconds and parameters: known answers, and reasons where there is nothing to compare."""

import json

import numpy as np
import pytest

from scaling import equal, fit, runs
from scaling.match import Curve
from tests.support import laws as planted

RUNGS = ("0.3m", "1m", "3m")


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Dense and mot at three sizes. The loss follows the active parameters, so mot is worse at equal total ones."""
    root = tmp_path_factory.mktemp("equal")
    for arch in ("dense", "mot"):
        for rung in RUNGS:
            for seed in range(3):
                planted.run(root, rung, seed, 1000, arch)
    return runs.sound(runs.find([f"{root}/*"]))


def of(groups, what, rung, kind="eval"):
    names = {label: group[0].config.run.name for label, group in groups.items()}
    found = [one for one in equal.equal(groups, kind) if one.what == what and one.modality == "text"]
    return next(one for one in found if names[one.group].startswith(f"{rung}-"))


@pytest.mark.parametrize("what", ["flops", "seconds", "active"])
@pytest.mark.parametrize("kind", ["eval", "train"])
def test_equals_are_equal(groups, what, kind):
    found = of(groups, what, "1m", kind)
    assert (found.pairs, found.why) == (3, "")
    assert found.ratio == pytest.approx(1, rel=1e-6)
    assert (found.low, found.high) == pytest.approx((1, 1), rel=1e-6)


def test_at_equal_parameters_dense_is_read_between_its_sizes(groups):
    found = of(groups, "total", "0.3m")
    mot = groups[found.group][0]
    n, d = found.at, planted.tokens(mot.config, 1000)["text"]
    assert n == fit.parameters_of(mot.config, "text", "total")
    assert found.dense == pytest.approx(planted.TEXT.loss(n, d), rel=0.02)  # straight between two sizes
    assert found.loss == pytest.approx(planted.TEXT.loss(fit.parameters_of(mot.config, "text"), d), rel=1e-6)
    assert found.ratio > 1.05


def test_nothing_is_read_beyond_what_was_trained(groups):
    found = of(groups, "total", "3m")
    assert found.why.startswith("dense was trained with")
    assert np.isnan(found.ratio)
    alone = {label: group for label, group in groups.items() if "mot" in label}
    assert {one.pairs for one in equal.equal(alone)} == {0}
    assert all("no dense" in one.why for one in equal.equal(alone))


def test_equal_cost_is_where_the_cheaper_run_ended(tmp_path):
    for arch, share in (("dense", 1.0), ("mot", 0.5)):
        path = planted.run(tmp_path, "0.3m", 0, 1000, arch)
        file = path / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        changed = [row | {"seconds": share * row["seconds"]} if "seconds" in row else row for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    groups = runs.sound(runs.find([f"{tmp_path}/*"]))
    found = next(one for one in equal.equal(groups) if one.what == "seconds" and one.modality == "text")
    assert found.group == "mot"
    assert found.at == 250  # where mot ended; dense was half-way then
    dense = groups["dense"][0]
    assert found.dense == pytest.approx(dense.curve("eval", "text", "step").loss[0])
    assert found.loss < found.dense
    assert (found.pairs, np.isnan(found.low)) == (1, True)  # one seed


def test_a_curve_is_read_straight_between_measurements():
    curve = Curve(np.array([1, 2, 3]), np.array([0.0, 10.0, 30.0]), np.array([3.0, 2.0, 1.0]))
    assert equal.loss_at(curve, 20.0, "eval") == 1.5


def test_intervals_are_of_ratios_over_pairs():
    found = equal.compared("mot", "text", "flops", 1.0, [(2.0, 1.0), (4.0, 2.0), (3.0, 1.5)])
    assert (found.ratio, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    found = equal.compared("mot", "text", "flops", 1.0, [(2.0, 1.0), (2.0, 1.5), (2.0, 2.0)])
    assert found.low < found.ratio < found.high
    assert found.high > 1
