"""Names that a configuration may write stand again where they are computed: each list is the other."""

import dataclasses

import pytest

from mot import optim
from mot.config import checks, resolve
from mot.config.objectives import NONE, OBJECTIVES
from mot.config.routers import ROUTERS
from mot.model import attention, dispatch, kernels, router
from mot.objectives import diffusion
from tests.support import examples


@pytest.mark.parametrize(
    ("section", "key", "table"),
    [
        ("Model", "attention", attention.BACKENDS | attention.KERNELS),
        ("Model", "dispatch", dispatch.BACKENDS | dispatch.KERNELS),
        ("Diffusion", "time_distribution", diffusion.TIME_DISTRIBUTIONS),
        ("Stream", "objective", OBJECTIVES | {NONE: None}),
        ("Experts", "router", ROUTERS),
    ],
)
def test_what_is_allowed_is_what_is_there(section, key, table):
    assert set(checks.VALUES[section][key]) == set(table)


def test_every_kernel_says_what_it_runs_on():
    assert set(kernels.RUN_ON) == set(attention.KERNELS) | set(dispatch.KERNELS)


def test_every_row_has_its_file():
    assert all(router.implementation(name).choose for name in ROUTERS)
    assert all(diffusion.implementation(name).mix for name in diffusion.PREDICTS)


@pytest.mark.parametrize("name", checks.VALUES["Optim"]["schedule"])
def test_every_schedule_is_one(name):
    c = resolve(examples.tree("dense"))
    c = dataclasses.replace(c, optim=dataclasses.replace(c.optim, schedule=name, decay_steps=1))
    assert 0 < optim.schedule(c)(c.run.steps - 1) <= c.optim.lr
