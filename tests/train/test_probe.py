"""Probes of a run as it trains and of its checkpoints: the same numbers, and training that stays as it was."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from configs import transfusion
from mot import sharding
from mot.config import ConfigError, resolve
from mot.data import embedded
from mot.errors import Damaged, UserError
from mot.measures import gradients
from mot.model import params
from mot.objectives import losses
from mot.runs import lock, probed, written
from mot.train import ensemble, evaluate, loop, probe, restore
from mot.train.state import init_state
from mot.train.step import make_gradients
from tests.support.commands import run, succeeds
from tests.support.examples import CLOCK
from tests.support.training import rows, smoke

SETTINGS = dict(run__steps=4, run__save_every=2, run__eval_every=2, run__eval_batches=1, run__probe_every=2)
ARCH = "moe_tc4"  # with all that there is to measure


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_device):
    return loop.run(smoke(tmp_path_factory.mktemp("runs"), ARCH, **SETTINGS), devices=one_device)


@pytest.fixture
def own(trained, tmp_path):
    """A copy of the run that a test may change."""
    path = tmp_path / trained.name
    shutil.copytree(trained, path)
    return path


def numbers(path):
    """What was measured, by step and kind."""
    return {
        (row["step"], row["what"]): {name: x for name, x in row.items() if "/" in name} for row in probed.read(path)
    }


def test_a_run_is_probed_at_its_beginning_and_every_so_many_steps(trained):
    found = numbers(trained)
    assert [*found] == [
        (step, what) for step in (0, 2, 4) for what in ("gradients", "representation", "attention", "experts")
    ]
    for (_, what), row in found.items():
        assert row
        assert all(name.startswith(f"{what}/") for name in row)
        assert all(np.isfinite(x) for x in row.values())
    assert found[0, "gradients"] != found[4, "gradients"]
    for step, what in found:
        with np.load(trained / "probes" / f"{step}-{what}.npz", allow_pickle=False) as file:
            assert all(np.isfinite(file[name]).all() for name in file.files if file[name].dtype.kind == "f")


def test_training_is_what_it_would_have_been(trained, tmp_path, one_device):
    plain = loop.run(smoke(tmp_path, ARCH, **SETTINGS | {"run__probe_every": 0}), devices=one_device)
    for kind in ("train", "eval"):
        mine, other = (
            [{key: x for key, x in row.items() if key not in CLOCK} for row in rows(path, kind)]
            for path in (trained, plain)
        )
        assert mine == other
    assert not (plain / "probes.jsonl").exists()


def test_a_checkpoint_has_the_numbers_that_training_found(own):
    """To rounding, as the command splits rows over other devices."""
    before = numbers(own)
    found = probe.run(own, [2], [])
    assert [*found] == [2]
    assert numbers(own).keys() == before.keys()
    for key, row in numbers(own).items():
        assert row == pytest.approx(before[key], rel=1e-3, abs=1e-4), key


def test_the_command_tells_and_writes(own):
    (own / "probes.jsonl").unlink()
    out, err = succeeds("probe", own, "--steps", "2,4", "--what", "experts,attention")
    assert "step 4: attention" in out
    assert "ffn/text/overlap" in out
    assert "--steps all" in err
    assert [*numbers(own)] == [(2, "attention"), (2, "experts"), (4, "attention"), (4, "experts")]
    succeeds("probe", own, "--what=experts")
    assert len(numbers(own)) == 4  # the newest's row is replaced


REFUSED = {
    ("--what", "gradient"): "--what=gradient: 'gradient' is no kind of probe; allowed: gradients, representation, ",
    ("--what", ""): "'' is no kind of probe",
    ("--steps", "3"): "has no checkpoint of step 3; it has 2, 4; choose one",
    ("--steps", "2,x"): "--steps=2,x: must be whole numbers",
    ("--steps", ""): "must be whole numbers",
}


@pytest.mark.parametrize("argv", REFUSED, ids=" ".join)
def test_a_command_that_cannot_be_meant_is_refused(trained, argv):
    before = (trained / "probes.jsonl").read_bytes()
    code, _, err = run("probe", trained, *argv)
    assert code == 2
    assert REFUSED[argv] in err
    assert (trained / "probes.jsonl").read_bytes() == before


def test_what_is_no_run_or_has_no_checkpoint_is_refused(own, tmp_path):
    code, _, err = run("probe", tmp_path)
    assert code == 2
    assert "no run directory" in err
    shutil.rmtree(own / "checkpoints")
    code, _, err = run("probe", own)
    assert code == 2
    assert "no checkpoint yet" in err


def test_a_run_without_experts_says_so(tmp_path, own):
    config = json.loads((own / "config.json").read_text(encoding="utf-8"))
    config["ffn"]["text"]["experts"] = 0
    del config["digest"]
    (own / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code, _, err = run("probe", own, "--what=experts")
    assert code == 2
    assert f"experts: {own} has none; its probes are gradients, representation, attention" in err


def one_modality(tree):
    for name, stream in tree["streams"].items():
        stream.update(modality="text", representation=name)
    return tree


def test_a_run_of_one_modality_has_nothing_to_compare(tmp_path, own):
    config = one_modality(json.loads((own / "config.json").read_text(encoding="utf-8")))
    del config["digest"]
    config["run"]["probe_every"] = 0
    (own / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code, _, err = run("probe", own)
    assert code == 2
    assert "a run of text alone; there is nothing to compare" in err
    with pytest.raises(ConfigError, match=r"run.probe_every: 2; probes compare modalities, and there is text alone"):
        resolve(one_modality(dataclasses.asdict(smoke(tmp_path, **SETTINGS))))


def test_a_run_that_another_process_trains_is_left_alone(own):
    before = (own / "probes.jsonl").read_bytes()
    with lock.held(own), pytest.raises(UserError, match="trained by another process"):
        probe.run(own, [2], ["experts"])
    assert (own / "probes.jsonl").read_bytes() == before


@pytest.mark.parametrize("line", ["{}\n", "nothing\n", '{"schema": 1, "step": "2", "what": "experts"}\n', "[1]\n"])
def test_probes_that_are_not_ours_are_told(own, line):
    (own / "probes.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(Damaged, match=r"probes.jsonl is damaged or foreign \(line 1"):
        probe.run(own, [2], ["experts"])
    assert (own / "probes.jsonl").read_text(encoding="utf-8") == line


def test_a_bit_that_flips_is_noticed(own):
    text = (own / "probes.jsonl").read_text(encoding="utf-8")
    (own / "probes.jsonl").write_text(text.replace('"step": 2', '"step": 3', 1), encoding="utf-8")
    with pytest.raises(Damaged, match="checksum"):
        probed.read(own)


# --- in training -----------------------------------------------------------------------------------------------------


def test_a_probe_that_fails_leaves_training_alone(trained, tmp_path, one_device, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(probe, "make_gradients_probe", broken)
    path = loop.run(smoke(tmp_path, ARCH, **SETTINGS), devices=one_device)
    said = capsys.readouterr().err
    assert "ALARM: step 2 was not probed (RuntimeError: no memory left); training goes on" in said
    mine, other = ([row["loss"] for row in rows(p)] for p in (path, trained))
    assert mine == other
    assert not probed.read(path)


def test_what_was_measured_after_the_step_that_a_run_goes_on_from_is_measured_again(own, one_device):
    before = numbers(own)
    shutil.rmtree(own / "checkpoints" / "4")
    probed.write(own, 4, {"experts": probed.Found({"experts/stale/1": 1.0}, {})})
    loop.run(smoke(own.parent, ARCH, **SETTINGS), devices=one_device)
    assert numbers(own) == before  # to the bit, as all of training is


def test_what_is_forgotten_takes_its_arrays_along(own):
    probed.forget_after(own, 2)
    assert {step for step, _ in numbers(own)} == {0, 2}
    assert {file.name.partition("-")[0] for file in (own / "probes").iterdir()} == {"0", "2"}


def test_runs_in_one_program_are_probed_each(tmp_path, monkeypatch):
    monkeypatch.setattr(written, "PROBES", ("gradients",))  # each takes seconds to compile
    config = smoke(tmp_path, "dense", **SETTINGS | {"run__steps": 2})
    both = [
        dataclasses.replace(
            config,
            run=dataclasses.replace(config.run, name=f"seed{n}"),
            model=dataclasses.replace(config.model, seed=n),
        )
        for n in (0, 1)
    ]
    paths = ensemble.run(both, devices=jax.devices()[:2])
    found = [numbers(path) for path in paths]
    assert [*found[0]] == [(0, "gradients"), (2, "gradients")]
    assert found[0][2, "gradients"] != found[1][2, "gradients"]
    alone = probe.run(paths[1], [2], ["gradients"])[2]["gradients"].numbers
    assert found[1][2, "gradients"] == pytest.approx(alone, rel=1e-2, abs=1e-3)


# --- the gradients of a step -----------------------------------------------------------------------------------------


def judged(config, mesh, held_out, sources):
    """The scalar products that are measured of a first state, and those of the whole loss's gradient with itself."""
    state = jax.jit(lambda: init_state(config))()
    batches, _ = evaluate.held_out(config, held_out, mesh)
    found = probe.make_gradients_probe(config, sources, mesh)(state, batches[0], probe.nothing)

    @jax.jit
    def whole(state, batch):
        trained, frozen = params.split(state.params, lambda path: path in found_paths)
        plain = gradients.without_routers(config)
        return make_gradients(plain, sources)(state, trained, frozen, batch, losses.totals(batch, config))[1]

    found_paths = {name.removesuffix("_LMM") for name in found.arrays if name.endswith("_LMM")}
    return found, params.paths(whole(state, batches[0]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_noise_microbatches_and_frozen_parts_they_add_up(tmp_path, accumulate):
    """|a + b|^2 of each parameter is that of the whole loss, over two devices."""
    tree = transfusion.get_config("arch=dense,size=smoke").unlock()
    tree.run.update(root=str(tmp_path), eval_batches=1)
    tree.data.batch = 4
    tree.objective.per = "all"  # a modality's own total is another one
    tree.optim.update(accumulate=accumulate, freeze="text.ffn")
    config, training, held_out = restore.open_data(resolve(tree, embedded.faults))
    mesh = sharding.make_mesh(config, jax.devices()[:2])
    with jax.set_mesh(mesh):
        found, whole = judged(config, mesh, held_out, len(training.names))
    assert not [name for name in found.numbers if "/ffn/" in name]  # frozen
    assert [name for name in found.numbers if "/attn/" in name]
    assert whole
    for path, x in whole.items():
        x = np.asarray(x, np.float64)
        x = x if params.parse(path).stack else x[None]
        want = (x**2).sum(tuple(range(1, x.ndim)))
        got = found.arrays[f"{path}_LMM"].sum((1, 2))
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-9, err_msg=path)
