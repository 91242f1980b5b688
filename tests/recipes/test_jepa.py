"""JEPA in small: two steps of each form, and that SIGReg is what keeps states apart where nothing else does."""

import jax
import pytest

from mot.train import loop
from tests.support import recipes
from tests.support.training import rows


def test_two_steps_by_the_command(tmp_path):
    run = recipes.as_command("jepa", tmp_path)
    last = rows(run)[-1]
    assert {key for key in last if key.startswith("loss/")} == {"loss/image", "loss/image/read"}, "pictures alone teach"
    assert "states/image/rank" in last
    assert not [key for key in last if key == "grad_norm/head" and last[key]]


@pytest.mark.parametrize("form", [pytest.param("flow", marks=pytest.mark.slow)])
def test_two_steps_of_what_it_is_compared_with(form, tmp_path):
    recipes.two_steps("jepa", tmp_path, f"form={form}")


@pytest.mark.slow  # its gradient, and what a run says of a collapse, are tested by themselves
def test_sigreg_keeps_states_apart_where_nothing_else_does(tmp_path):
    """Forty steps of predicting its own states: without SIGReg these become all alike, and the run says so."""
    last = {}
    for weight in (0.05, 1e-6):
        changed = {"streams__image__prediction__sigreg": weight, "run__steps": 40, "run__eval_every": 40}
        c = recipes.config("jepa", tmp_path, "form=sigreg", run__name=f"w{weight}", optim__warmup=4, **changed)
        run = loop.run(c, devices=jax.devices()[:1])
        told = [row["stream"] for row in rows(run, "event") if row["event"] == "collapsed"]
        last[weight] = rows(run)[-1]["states/image/std"], told
    assert last[0.05][0] > 0.8
    assert last[0.05][1] == []
    assert last[1e-6][0] < 0.1
    assert last[1e-6][1] == ["image"]
