import numpy as np
import pytest

from launch import coords
from mot import optim
from mot.config import resolve
from mot.errors import UserError
from mot.model import params
from tests.support import examples
from tests.support.commands import run, succeeds

STEPS = [0, 1, 2, 4]
WIDER = pytest.param((64, 256, 1024), marks=pytest.mark.slow)
FLAT, STEEP = 0.25, 0.5  # powers of the width; without mup they are about 1 after a step


def slopes(arch, transfer, widths=(64, 256), **optimiser):
    tree = examples.tree(arch, budgets=(24, 24))
    tree.optim.update(dict(lr=4e-3, transfer="mup", base_width=64) | optimiser)
    configs = {width: resolve(coords.at_width(tree, width, transfer), optim.uncovered) for width in widths}
    batch = examples.batch(rows=4)
    return coords.slopes({width: coords.measure(config, batch, 2, STEPS) for width, config in configs.items()})


def steepest(slope):
    return float(max(np.abs(slope.value).max(), np.abs(slope.moved[1:]).max()))


@pytest.mark.parametrize("widths", [(64, 256), WIDER])
@pytest.mark.parametrize("arch", [pytest.param("dense", marks=pytest.mark.slow), "mot", "moe_tc4"])
def test_with_mup_every_block_is_flat_in_width(arch, widths):
    assert steepest(slopes(arch, "mup", widths)) < FLAT


@pytest.mark.parametrize("widths", [(64, 256), WIDER])
def test_without_mup_they_are_not(widths):
    assert steepest(slopes("dense", "", widths)) > STEEP


def test_with_mup_muons_steps_are_flat_too():
    assert steepest(slopes("dense", "mup", name="muon")) < FLAT


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_without_the_rule_of_rates_they_are_not(monkeypatch, name):
    whole = params._transferred

    def without(path, spec, config):
        row = whole(path, spec, config)
        return row._replace(lr=1.0) if params.is_hidden(spec) else row

    monkeypatch.setattr(params, "_transferred", without)
    assert steepest(slopes("dense", "mup", name=name)) > FLAT


def moved_by_depth(base_layers, depths=(2, 8)):
    """How steeply the first step's move of the last block's residual grows with the number of layers."""
    sizes = {}
    for depth in depths:
        tree = examples.tree("mot", layers=depth)
        tree.optim.update(
            lr=4e-3, warmup=0, schedule="constant", transfer="mup", base_width=16, base_layers=base_layers
        )
        found = coords.measure(resolve(tree, optim.uncovered), examples.batch(rows=4), 2, STEPS)
        sizes[depth] = coords.Sizes(found.value[:, -1:], found.moved[:, -1:])
    return float(coords.slopes(sizes).moved[1].max())


def test_with_a_base_depth_steps_do_not_grow_with_depth():
    """Later steps of so small a model shrink with depth, as its residual does while branches are drawn at random."""
    assert -FLAT < moved_by_depth(base_layers=2) < FLAT
    assert moved_by_depth(base_layers=0) > STEEP


def test_all_widths_grow_in_proportion():
    tree = examples.tree("moe_fine")
    c = resolve(coords.at_width(tree, 64, "mup"))
    before = resolve(tree)
    assert c.streams["image"].ffn == 4 * before.streams["image"].ffn
    assert c.ffn["text"].width == 4 * before.ffn["text"].width
    assert (c.model.heads, c.model.kv_heads, c.model.head_size) == (16, 8, before.model.head_size)
    assert (c.optim.transfer, c.optim.base_width) == ("mup", 16)


@pytest.mark.parametrize("text", ["64", "128,64", "64,x", "0,64", ""])
def test_widths_ascend(text):
    with pytest.raises(UserError, match=r"--widths: .* two or more whole numbers from 1 on"):
        coords.numbers("--widths", text, 1)


def test_a_width_without_room_is_refused():
    with pytest.raises(UserError, match=r"--widths: 50000000 has no room here; leave it out: .* parameters"):
        coords.built(examples.tree(budgets=(24, 24)), 50_000_000, "mup")


@pytest.mark.parametrize(("out", "says"), [(".", "is a folder; name a file in it"), ("file/a.png", "is a file, not a")])
def test_a_picture_that_cannot_be_written_is_told_first(tmp_path, out, says):
    (tmp_path / "file").touch()
    code, _, said = run("coords", "--config=configs/digits.py:size=smoke", "--out", tmp_path / out)
    assert code == 2
    assert says in said
    assert "opening the data" not in said


def test_the_command_draws_and_tells(tmp_path):
    out = tmp_path / "a.png"
    config = "--config=configs/digits.py:arch=mot,size=smoke"
    told, _ = succeeds("coords", config, "--widths=16,32", "--steps=1,2", f"--out={out}")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "mup" in told
