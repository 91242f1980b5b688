"""The real commands, with their own defaults, on several devices: every axis of the mesh and every kind of start."""

import itertools

import jax
import numpy as np
import pytest

from mot import checkpoint, sharding
from mot.config.axes import MESH_AXES
from mot.data import pipeline
from mot.model import params
from mot.runs import rundir
from mot.train import loop, restore
from tests.conftest import ROOT
from tests.support.commands import succeeds
from tests.support.devices import devices
from tests.support.training import rows, smoke


def run(number, commands):
    """Runs the commands, by name, on so many devices; what each said."""
    with devices(number):
        return {name: "".join(succeeds(*argv)) for name, argv in commands.items()}


def train(root, name, *flags, arch="mot", rows=8):
    config = f"--config={ROOT}/configs/digits.py:size=smoke,arch={arch}"
    return [
        "train",
        config,
        f"--config.run.root={root}",
        f"--config.run.name={name}",
        f"--config.data.batch={rows}",
        *flags,
    ]


def meshes(root, axes_of_each):
    """A command for each choice of axes, each of them 2 wide; data takes what they leave of eight devices."""
    commands = {}
    for axes in axes_of_each:
        flags = [f"--config.mesh.{axis}=2" for axis in axes if axis != "data"]
        if "tensor" in axes:
            flags.append("--config.mesh.rules.vocab=")  # the digits' vocabulary is odd
        arch = "moe_ec4" if "expert" in axes else "mot"
        commands["+".join(axes)] = train(root, "-".join(axes), *flags, arch=arch)
    return commands


def test_every_axis_of_the_mesh_trains(tmp_path):
    """Two at a time, beside data."""
    together = [("fsdp", "tensor"), ("expert", "context")]
    assert {"data", *itertools.chain(*together)} == set(MESH_AXES)
    run(8, meshes(tmp_path / "runs", together))


@pytest.mark.slow
def test_every_pair_of_axes_trains(tmp_path):
    others = [axis for axis in MESH_AXES if axis != "data"]
    run(8, meshes(tmp_path / "runs", itertools.combinations(others, 2)))


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_kind_of_start(tmp_path, number):
    root = tmp_path / "runs"
    dense, mot = root / "dense", root / "mot"
    commands = {
        "fresh": train(root, "dense", "--config.optim.ema=0.9", arch="dense"),
        "finished": train(root, "dense", "--config.optim.ema=0.9", arch="dense"),
        "mot from dense": train(root, "mot", f"--config.init.run={dense}"),
        "a frozen tower": train(root, "frozen", f"--config.init.run={mot}", "--config.optim.freeze=text"),
        "experts from dense": train(root, "experts", f"--config.init.run={dense}", arch="moe_ec4"),
        "several runs": train(root, "several", f"--config.init.run={mot}", "--runs", number),
        "evaluate": ["evaluate", mot],
        "sample": ["sample", mot, "--prompt", "a handwritten seven", "--n", "1", "--read", "1"],
        "report": ["report", dense, mot, "--out", tmp_path / "report"],
    }
    if number > 2:
        commands |= {
            "an average": train(root, "average", f"--config.init.run={mot}", "--config.optim.ema=0.9"),
            "the same from itself": train(root, "again", f"--config.init.run={mot}"),
            "mot and experts from mot": train(root, "both", f"--config.init.run={mot}", arch="mot_moe"),
        }
    run(number, commands)


def test_faults_6_other_meshes_restore_the_same_bits_and_see_the_same_stream(tmp_path, monkeypatch, capfd):
    """8 -> 4 -> 2 -> 8 devices, split in other ways, a step on each; three sources are mixed and packed."""
    splits = [(8, {}), (4, {"fsdp": 2}), (2, {"context": 2}), (8, {"fsdp": 4, "context": 2})]
    trained = []
    counted = loop.counted  # which sees what each step trains on, and nothing else
    monkeypatch.setattr(loop, "counted", lambda batch, c: trained.append(batch) or counted(batch, c))

    def make(axes, steps):
        settings = dict(run__steps=steps, run__keep=9, run__save_every=1, run__eval_every=9, data__batch=8)
        mesh = {f"mesh__{axis}": n for axis, n in axes.items()}
        return smoke(tmp_path, optim__schedule="constant", run__eval_batches=1, **settings, **mesh)

    for step, (number, axes) in enumerate(splits, 1):
        with devices(number) as those:
            c = make(axes, step)
            mesh = sharding.make_mesh(c, those)
            if step > 1:
                with jax.set_mesh(mesh):
                    state, _ = restore.start(c, rundir.folder(c), mesh)
                for name, x in params.paths(state.params).items():
                    kept = rundir.folder(c) / "checkpoints" / str(step - 1)
                    np.testing.assert_array_equal(x, checkpoint.arrays.read(kept, f"params/{name}"), name)
            path = loop.run(c, devices=those)
    said = capfd.readouterr().err
    assert "resuming at step 1, on 4 devices (data 2, fsdp 2) of 1 processes; before on 8 devices (data 8)" in said
    assert (
        "resuming at step 3, on 8 devices (fsdp 4, context 2) of 1 processes; before on 2 devices (context 2)" in said
    )
    starts = [row for row in rows(path, "event") if row["event"] == "start"]
    assert [row["mesh"] for row in starts] == [{"data": 8}, {"data": 2, "fsdp": 2}, splits[2][1], splits[3][1]]
    c, training, _ = restore.open_data(make({}, 4))
    batches = pipeline.Batches(training, c, c.data.seed, 4)
    for step in range(4):
        for name, tokens in batches[step].batch.items():
            for field in ("doc_id", "source", "token", "segment"):
                np.testing.assert_array_equal(getattr(trained[step][name], field), getattr(tokens, field), field)


@pytest.mark.slow
def test_a_run_resumes_on_other_devices(tmp_path):
    """From two devices to eight, split otherwise, and back to one, by the same command but for its mesh: as above, by
    the command."""
    schedule = "--config.optim.schedule=constant"
    for number, steps, *flags in ((2, 1), (8, 2, "--config.mesh.fsdp=4", "--config.mesh.context=2"), (1, 3)):
        longer = train(tmp_path, "run", schedule, f"--config.run.steps={steps}", *flags)
        assert f"step {steps}: held-out" in run(number, {"longer": longer})["longer"]


def test_a_run_whose_rows_do_not_divide_among_the_devices_is_read_on_some(tmp_path):
    """Under a path that libraries would take for a pattern."""
    root = tmp_path / "runs [of three] \\ gs:"
    run(1, {"train": train(root, "three", rows=3)})
    commands = {
        "evaluate": ["evaluate", root / "three"],
        "sample": ["sample", root / "three", "--prompt", "a handwritten one", "--n", "1", "--read", "1"],
        "report": ["report", root / "three"],
    }
    run(8, commands)
