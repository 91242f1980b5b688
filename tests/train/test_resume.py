"""FAULTS 1: three steps, a stop and three more are six steps, to the bit, of every kind of model."""

import numpy as np
import pytest

from launch import flags
from mot import checkpoint
from mot.config import load
from mot.train import loop
from tests.conftest import ROOT
from tests.support.examples import CLOCK
from tests.support.training import rows

SETTINGS = {"run.steps": "6", "run.save_every": "3", "run.eval_every": "3", "run.eval_batches": "1"}
EMA = {"optim.ema": "0.9"}
KINDS = {
    "dense": ("digits.py:size=smoke,arch=dense", EMA),
    "mot": ("digits.py:size=smoke,arch=mot", {}),
    "experts choose": ("digits.py:size=smoke,arch=moe_ec4", {}),
    "tokens choose, biases balance": ("digits.py:size=smoke,arch=moe_tc4", {}),
    "muon with mup": (
        "digits.py:size=smoke,arch=mot_moe",
        {"optim.name": "muon", "optim.transfer": "mup", "optim.base_width": "16", "model.tied": "True"},
    ),
    "flow, centred losses": (
        "transfusion.py:size=smoke,arch=mot",
        EMA | {"streams.image.diffusion.loss_centre": "0.5"},
    ),
}


def make(kind, root):
    file, changes = KINDS[kind]
    return flags.build(load.read(f"{ROOT}/configs/{file}", SETTINGS | changes | {"run.root": str(root)}))


def timeless(path):
    kept = [row for row in rows(path) + rows(path, "eval")]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in kept]


def arrays(path):
    folder = path / "checkpoints" / "6"
    described = checkpoint.manifest.read(folder)["arrays"]
    return {name: checkpoint.arrays.read(folder, name) for name in described}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, x in one.items():
        np.testing.assert_array_equal(x, other[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_in_the_middle_changes_no_bit(tmp_path, one_device, kind):
    whole = loop.run(make(kind, tmp_path / "whole"), devices=one_device)
    halves = make(kind, tmp_path / "halves")
    loop.run(halves, until=3, devices=one_device)
    path = loop.run(halves, devices=one_device)
    assert_equal(arrays(path), arrays(whole))
    assert timeless(path) == timeless(whole)
