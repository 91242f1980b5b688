"""A run that goes on from another one's whole state is the run that was planned so from the start, to the bit."""

import shutil

import jax
import numpy as np
import pytest

from mot.errors import Damaged, UserError
from mot.train import loop
from tests.support.examples import CLOCK
from tests.support.training import restored, rows, smoke

WSD = dict(
    optim__schedule="wsd", optim__decay_steps=2, optim__ema=0.9, run__eval_every=2, run__save_every=2, run__keep=9
)


def timeless(path, kind):
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows(path, kind)]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory, one_device):
    return loop.run(smoke(tmp_path_factory.mktemp("trunk"), run__steps=8, **WSD), devices=one_device)


def test_a_branch_is_the_run_that_was_planned_so(tmp_path, trunk, one_device):
    planned = loop.run(smoke(tmp_path / "planned", run__steps=6, **WSD), devices=one_device)
    start = dict(init__run=str(trunk), init__step=4, init__state="all", run__name="branch")
    branch = loop.run(smoke(tmp_path, run__steps=6, **start, **WSD), devices=one_device)
    jax.tree.map(np.testing.assert_array_equal, restored(branch, 6), restored(planned, 6))
    for kind in ("train", "eval"):
        assert timeless(branch, kind) == timeless(planned, kind)
    (event,) = [row for row in rows(branch, "event") if row["event"] == "branched"]
    assert (event["step"], event["run"]) == (4, str(trunk))
    assert loop.run(smoke(tmp_path, run__steps=6, **start, **WSD), devices=one_device) == branch  # done


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(init__step=8), r"is at step 8 already, and cannot end at step 6"),
        (
            dict(init__step=4, optim__lr=1e-2),
            r"holds a run of another configuration(.|\n)*optim.lr(.|\n)*init.state=weights",
        ),
        (dict(init__step=3), r"has no checkpoint of step 3; it has 2, 4, 6, 8"),
        (dict(init__step=6), r"differ from step 5 on"),
    ],
)
def test_what_would_not_be_that_run_is_refused_and_nothing_written(tmp_path, trunk, one_device, changes, says):
    settings = dict(init__run=str(trunk), init__state="all", run__name="branch", run__steps=6) | WSD | changes
    with pytest.raises(UserError, match=says):
        loop.run(smoke(tmp_path, **settings), devices=one_device)
    assert not (tmp_path / "branch").exists()


@pytest.mark.parametrize("how", [dict(init__state="all"), dict(init__match="text")])
def test_a_source_that_is_damaged_is_told_once_and_nothing_written(tmp_path, trunk, one_device, how):
    source = shutil.copytree(trunk, tmp_path / "trunk")
    file = next((source / "checkpoints" / "4" / "params").rglob("d/*"))
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    settings = dict(init__run=str(source), init__step=4, run__name="branch", run__steps=6) | WSD | how
    with pytest.raises(Damaged) as caught:
        loop.run(smoke(tmp_path, **settings), devices=one_device)
    assert f"{file} is damaged: its digest is not the manifest's" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "branch").exists()


def test_all_needs_a_run():
    with pytest.raises(UserError, match=r"init.state: all, but init.run is ''"):
        smoke("runs", init__state="all")
