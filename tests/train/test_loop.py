import dataclasses
import json
import os
import shutil
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import flags
from mot import checkpoint, errors, optim, sharding
from mot.config import load, resolve
from mot.data import budgets, embedded, pipeline, sources
from mot.errors import Damaged
from mot.model import params
from mot.prepare import job
from mot.runs import log, rundir
from mot.train import evaluate, loop
from mot.train.signals import Stopped
from mot.train.state import init_state
from mot.train.step import make_step
from tests.conftest import ROOT
from tests.support import datasets, examples, vectors
from tests.support.examples import CLOCK
from tests.support.training import one_step, restored, rows, smoke

EXPERIMENTS = [
    p.stem
    for p in (ROOT / "configs").glob("*.py")
    if p.stem not in ("__init__", "base", "archs", "sizes", "ladder", "search", "sweeps")
]


def data_for(name, folder):
    """What an experiment must be told besides its size."""
    if name != "records":
        return ""
    job.prepare(datasets.write_inputs(folder / "in"), folder / "pictures", 1, 0)
    return f",data={folder / 'pictures'}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_two_steps_at_smoke_size(tmp_path, name, one_device):
    tree = load.read(f"{ROOT}/configs/{name}.py:size=smoke{data_for(name, tmp_path)}", {"run.root": str(tmp_path)})
    path = loop.run(flags.build(tree), devices=one_device)
    assert [row["step"] for row in rows(path)] == [1, 2]


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param("dense", marks=pytest.mark.slow),
        "mot",
        pytest.param("mot_ffn", marks=pytest.mark.slow),
        pytest.param("mot_attn_ffn", marks=pytest.mark.slow),
        pytest.param("loo_text", marks=pytest.mark.slow),
        "loo_image",
    ],
)
def test_every_architecture_trains_two_steps(tmp_path, arch, one_device):
    c = smoke(tmp_path, arch)
    path = loop.run(c, devices=one_device)
    done = rows(path)
    assert [row["step"] for row in done] == [1, 2]
    assert done[1]["loss"] < done[0]["loss"]
    evals = rows(path, "eval")
    assert [row["step"] for row in evals] == [0, 1, 2]
    for modality in ("text", "image"):
        assert evals[2][f"loss/{modality}"] < evals[0][f"loss/{modality}"]
    for key in ("tokens/text", "flops", "loss/text/manual", "lr", "grad_norm/text", "seconds", "mfu", "fill/image"):
        assert np.isfinite(done[1][key]), key
    assert evals[2]["bits_per_byte/manual"] < evals[0]["bits_per_byte/manual"]
    assert checkpoint.steps(path / "checkpoints") == [2]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_real_sizes_are_shape_checked_and_lowered_on_virtual_devices(tmp_path, name):
    c = flags.build(load.read(f"{ROOT}/configs/{name}.py:size=demo{data_for(name, tmp_path)}", {}))
    training = sources.open_(c)[0]
    c = budgets.resolve(c, training)
    state = jax.eval_shape(lambda: init_state(c))
    assert params.count(params.table(c)) == sum(x.size for x in jax.tree.leaves(state.params))
    batch = pipeline.Batches(training, c, 0, 1)[0].batch
    mesh = sharding.make_mesh(c)
    with jax.set_mesh(mesh):
        jax.jit(make_step(c, 3), in_shardings=(None, sharding.of_batch(c, mesh))).lower(state, batch)


@pytest.mark.slow
def test_a_run_on_four_devices_resumes(tmp_path, capsys):
    c = smoke(tmp_path, data__batch=4, run__steps=4, run__eval_every=2)
    loop.run(c, until=2)
    capsys.readouterr()
    path = loop.run(c)
    assert f"{path}: resuming at step 2\n" in capsys.readouterr().err
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """The folder of a run that stopped at step 2 of 4."""
    root = tmp_path_factory.mktemp("halfway")
    loop.run(smoke(root, **FOUR_STEPS), until=2, devices=jax.devices()[:1])
    return root


FOUR_STEPS = dict(run__steps=4, run__eval_every=2)


def test_other_data_under_a_run_is_refused(halfway, one_device, monkeypatch):
    c = smoke(halfway, **FOUR_STEPS)
    monkeypatch.setattr(embedded, "CAPTIONS", ("the number {}",))
    with pytest.raises(errors.UserError, match="was trained on other data: its digest is"):
        loop.run(c, devices=one_device)


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_n_and_resume_and_n_equals_2n_bit_for_bit(tmp_path, n):
    devices = jax.devices()[:n]
    settings = dict(run__steps=6, run__eval_every=3, run__save_every=6, optim__ema=0.9)
    whole, halves = smoke(tmp_path / "a", **settings), smoke(tmp_path / "b", **settings)
    a = loop.run(whole, devices=devices)
    loop.run(halves, until=3, devices=devices)
    b = loop.run(halves, devices=devices)
    jax.tree.map(np.testing.assert_array_equal, restored(a, 6), restored(b, 6))

    def timeless(path, kind):
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows(path, kind)]

    for kind in ("train", "eval"):
        assert timeless(a, kind) == timeless(b, kind)
    assert loop.run(halves, devices=devices) == b  # done: nothing more to do
    assert len(rows(b)) == 6


def test_a_finished_run_that_gets_more_steps_is_one_that_had_them(tmp_path, one_device):
    settings = dict(run__eval_every=3, optim__schedule="constant", optim__ema=0.9)
    whole = smoke(tmp_path / "a", run__steps=5, **settings)
    a = loop.run(whole, devices=one_device)
    loop.run(smoke(tmp_path / "b", run__steps=3, **settings), devices=one_device)
    b = loop.run(smoke(tmp_path / "b", run__steps=5, run__save_every=4, **settings), devices=one_device)
    jax.tree.map(np.testing.assert_array_equal, restored(a, 5), restored(b, 5))

    def timeless(path, kind):
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows(path, kind)]

    for kind in ("train", "eval"):
        assert timeless(a, kind) == timeless(b, kind)
    (event,) = [row for row in rows(b, "event") if row["event"] == "changed"]
    assert event["step"] == 3
    assert event["keys"] == {"run.steps": [3, 5], "run.save_every": [2, 4]}
    assert rundir.config_of(b).run.steps == 5
    assert checkpoint.steps(b / "checkpoints") == [2, 3, 4, 5]


def stopped(root, at, **settings):
    """A run's folder as it is at a step, without the arrays."""
    c = smoke(root, **settings)
    step = rundir.open_run(c) / "checkpoints" / str(at)
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}", encoding="utf-8")
    return c


WSD = dict(optim__schedule="wsd", optim__decay_steps=20)


@pytest.mark.parametrize(
    ("before", "at", "after"),
    [
        (WSD, 80, dict(run__steps=200)),
        (WSD, 80, dict(run__steps=100, optim__decay_steps=5)),
        (WSD, 60, dict(run__steps=90)),
        (dict(optim__schedule="constant"), 100, dict(run__steps=150) | WSD),
        (dict(optim__schedule="constant"), 40, dict(run__steps=40)),
        (dict(optim__warmup=20), 20, dict(run__steps=300)),
        (dict(), 0, dict(run__steps=300)),
    ],
)
def test_steps_and_schedule_change_where_no_rate_so_far_does(tmp_path, before, at, after):
    stopped(tmp_path, at, run__steps=100, **before)
    c = smoke(tmp_path, **before | after)
    path = rundir.open_run(c)
    assert rundir.config_of(path).run.steps == c.run.steps
    assert rundir.config_of(path).optim == c.optim
    assert [row["event"] for row in rows(path, "event")] == ["changed"]
    assert rundir.open_run(c) == path
    assert len(rows(path, "event")) == 1


@pytest.mark.parametrize(
    ("before", "at", "after", "says"),
    [
        (
            dict(),
            100,
            dict(run__steps=200),
            r"rate is 0.0001\d* \(cosine over 100 steps\); .*from step 3 on.*init.run=",
        ),
        (dict(optim__schedule="linear"), 50, dict(run__steps=200), r"\(linear over 100 steps\).* from step 3 on"),
        (WSD, 90, dict(run__steps=200), r"from step 8[0-9] on.* wsd up to its last optim.decay_steps"),
        (WSD, 60, dict(run__steps=70), r"from step 5[0-9] on"),
        (
            dict(optim__schedule="constant"),
            50,
            dict(run__steps=40),
            r"is at step 50 already, and cannot end at step 40",
        ),
        (dict(optim__schedule="constant"), 50, dict(run__steps=200, optim__lr=1e-3), r"of another configuration"),
        (dict(optim__schedule="constant"), 50, dict(run__eval_batches=3), r"run.eval_batches: 2 -> 3"),
    ],
)
def test_what_more_steps_would_need_is_said_and_nothing_written(tmp_path, before, at, after, says):
    path = rundir.folder(stopped(tmp_path, at, run__steps=100, **before))
    there = tree_of(path)
    with pytest.raises(errors.UserError, match=says):
        rundir.open_run(smoke(tmp_path, **dict(run__steps=100) | before | after))
    assert tree_of(path) == there


def test_rows_after_the_checkpoint_are_written_once(halfway, tmp_path, one_device):
    """A run killed after its last checkpoint has rows that the resumed one writes again."""
    shutil.copytree(halfway, tmp_path, dirs_exist_ok=True)
    c = smoke(tmp_path, **FOUR_STEPS)
    path = rundir.folder(c)
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"schema": 1, "kind": "train", "step": 3, "loss": 99.0}) + "\n")
        file.write('{"schema": 1, "kind": "tr')  # cut off by a crash
    loop.run(c, devices=one_device)
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4]
    assert rows(path)[2]["loss"] < 99


def test_accumulation_over_microbatches_equals_the_whole_batch(one_device):
    c = examples.make()
    c = dataclasses.replace(c, optim=dataclasses.replace(c.optim, clip=1e9))
    split = dataclasses.replace(c, optim=dataclasses.replace(c.optim, accumulate=2))
    batch = examples.batch()
    (a, measured_a), (b, measured_b) = one_step(c, batch, one_device), one_step(split, batch, one_device)
    assert examples.leaf_error(jax.tree.leaves(a.opt[1].mu), jax.tree.leaves(b.opt[1].mu)) < 1e-5
    np.testing.assert_allclose(measured_a["loss"], measured_b["loss"], rtol=1e-6)
    np.testing.assert_allclose(measured_a["sums"]["loss_sum"], measured_b["sums"]["loss_sum"], rtol=1e-5)
    np.testing.assert_array_equal(measured_a["sums"]["weight"], measured_b["sums"]["weight"])


@pytest.mark.parametrize(
    ("arch", "accumulate"),
    [
        ("mot", 2),
        pytest.param("mot", 1, marks=pytest.mark.slow),
        pytest.param("dense", 1, marks=pytest.mark.slow),
        pytest.param("dense", 2, marks=pytest.mark.slow),
    ],
)
def test_one_device_equals_four(arch, accumulate, one_device):
    """The first moment after one step is a tenth of the gradient (clipping is off): no common factor hides in Adam."""
    c = examples.make(arch)
    c = dataclasses.replace(c, data=dataclasses.replace(c.data, batch=8))
    c = dataclasses.replace(c, optim=dataclasses.replace(c.optim, accumulate=accumulate, clip=1e9))
    batch = examples.batch(rows=8)
    (one, measured_one), (four, measured_four) = (one_step(c, batch, d) for d in (one_device, jax.devices()))
    assert len(jax.tree.leaves(four.params)[0].sharding.device_set) == 4
    assert examples.leaf_error(jax.tree.leaves(four.opt[1].mu), jax.tree.leaves(one.opt[1].mu)) < 1e-5
    np.testing.assert_allclose(measured_one["loss"], measured_four["loss"], rtol=1e-6)


def test_a_frozen_tower_gets_no_gradient_no_state_and_stays_bit_equal(one_device):
    tree = examples.tree()
    tree.optim.rules = (dict(match="/text/", lr=0.0, decay=0.0), dict(match=".*", lr=1.0, decay=0.1))
    c = resolve(tree, optim.uncovered)
    state = jax.jit(lambda: init_state(c))()
    after, measured = one_step(c, examples.batch(), one_device, state)
    assert not any("text" in path for path in params.paths(state.opt[1].mu))
    assert set(measured["grad_norms"]) == {"embed", "image", "head"}
    for path, before in params.paths(state.params).items():
        assert np.array_equal(before, params.paths(after.params)[path]) == ("/text/" in path), path


def test_a_step_that_is_not_finite_is_skipped_to_the_bit(one_device):
    c = examples.make()
    c = dataclasses.replace(c, optim=dataclasses.replace(c.optim, ema=0.9))
    state = jax.jit(lambda: init_state(c))()
    broken = jax.tree.map(lambda x: x, state)
    broken.params["blocks"]["main"]["ffn"]["image"]["w1"] = (
        broken.params["blocks"]["main"]["ffn"]["image"]["w1"] * jnp.nan
    )
    after, measured = one_step(c, examples.batch(), one_device, broken)
    assert not measured["ok"]
    jax.tree.map(np.testing.assert_array_equal, after, broken)
    after, measured = one_step(c, examples.batch(), one_device, state)
    assert measured["ok"]
    assert after.updates == 1


def test_the_average_moves_towards_new_weights(one_device):
    c = examples.make()
    c = dataclasses.replace(c, optim=dataclasses.replace(c.optim, ema=0.9))
    state = jax.jit(lambda: init_state(c))()
    after, _ = one_step(c, examples.batch(), one_device, state)
    expected = jax.tree.map(lambda before, now: 0.9 * before + 0.1 * now, state.params, after.params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.ema, expected)


def test_a_batch_that_is_not_finite_is_skipped_to_the_bit(one_device):
    """Each float field of each stream, in one row, so in one microbatch of two; a mean and an average are kept."""
    tree = vectors.tree("moe_tc4", sound={"loss_centre": 1.0}, attention="reference", layers=1)
    tree.optim.update(accumulate=2, ema=0.5, warmup=0)
    tree.data.batch = 2
    c = resolve(tree)
    mesh = sharding.make_mesh(c, one_device)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(c))()
        quick = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)  # to compile
        step, batch = jax.jit(make_step(c, 2), compiler_options=quick), vectors.batch(c)
        state, measured = step(state, batch)
        assert measured["ok"]
        assert not any(measured["broken"].values())
        fields = [("text", "weight")]
        fields += [(name, field) for name in ("image", "sound") for field in ("weight", "noise", "value")]
        for name, field in fields:
            for bad in (np.nan, np.inf, -np.inf):
                x = np.array(getattr(batch[name], field))
                x[(0, 0) + (0,) * (x.ndim - 2)] = bad
                after, measured = step(state, batch | {name: batch[name].replace(**{field: x})})
                assert not measured["ok"], (name, field, bad)
                assert not np.isfinite(measured["loss"]), (name, field, bad)
                assert measured["broken"][f"{name}.{field}"] == 1
                jax.tree.map(np.testing.assert_array_equal, after, state)
        large = {name: t.replace(weight=np.where(t.weight > 0, 3e38, 0).astype("f")) for name, t in batch.items()}
        after, measured = step(state, large)  # finite, but not their sum: every loss would be divided by infinity
        assert not measured["ok"]
        jax.tree.map(np.testing.assert_array_equal, after, state)

        def fill(t):
            return t.replace(value=np.where((t.segment == 0)[..., None], np.nan, t.value))

        padding = {name: fill(t) for name, t in batch.items()}
        assert step(state, padding)[1]["ok"]


def test_a_batch_that_is_not_finite_is_told(tmp_path, one_device, monkeypatch):
    c = smoke(tmp_path, run__steps=3, optim__patience=2)
    made = pipeline.Batches.__getitem__

    def second_is_broken(self, n):
        packed = made(self, n)
        if n == 1 and self.count == 3:
            packed.batch["text"].weight[0, :2] = np.nan
        return packed

    monkeypatch.setattr(pipeline.Batches, "__getitem__", second_is_broken)
    path = loop.run(c, devices=one_device)
    assert [e["event"] for e in rows(path, "event") if e["event"] != "saved"] == ["start", "skipped"]
    (skipped,) = [e for e in rows(path, "event") if e["event"] == "skipped"]
    assert {key: value for key, value in skipped.items() if key not in ("schema", "time")} == {
        "kind": "event",
        "step": 2,
        "event": "skipped",
        "why": "loss nan, gradient norm 0.0",
        "leaves": {},
        "towers": "none",
        "modalities": "text",
        "batch": "sum of weights (2), text.weight (2)",
        "documents": skipped["documents"],
        "broken_documents": skipped["broken_documents"],
    }
    ((source, (name,)),) = skipped["broken_documents"].items()
    assert name in skipped["documents"][source]
    assert [row["loss"] == "nan" for row in rows(path)] == [False, True, False]


def test_skips_in_a_row_stop_the_run_with_the_tower(tmp_path, one_device, monkeypatch):
    c = smoke(tmp_path, run__steps=8, run__eval_every=8, run__save_every=8, optim__patience=2)
    true_init = params.init

    def poisoned(specs, seed):
        tree = true_init(specs, seed)
        tree["blocks"]["main"]["ffn"]["image"]["w1"] *= jnp.nan
        return tree

    monkeypatch.setattr(params, "init", poisoned)
    with pytest.raises(log.Diverged, match=r"step 2 skipped: loss nan.*2 in a row, optim.patience is 2\. No skipped"):
        loop.run(c, devices=one_device)
    path = rundir.folder(c)
    events = [(e["event"], e["step"]) for e in rows(path, "event")]
    assert events == [("start", 0), ("skipped", 1), ("skipped", 2), ("diverged", 2), ("skipped", 3), ("saved", 3)]
    assert "image" in rows(path, "event")[1]["towers"]
    assert "blocks/main/ffn/image/w1" in rows(path, "event")[1]["leaves"]
    assert checkpoint.steps(path / "checkpoints") == [3], "where it stood: the third step was on its way"
    assert len(rows(path)) == 3
    assert restored(path, 3)["opt"]["updates"] == 0
    with pytest.raises(log.Diverged, match=r"step 4 skipped.* 4 in a row"):
        loop.run(c, devices=one_device)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 75)]
)
def test_a_signal_ends_with_a_saved_checkpoint(tmp_path, one_device, monkeypatch, number, code):
    c = smoke(tmp_path, run__steps=50, run__eval_every=50, run__save_every=50)
    advance = log.Log.advance

    def interrupt(self, *args):
        row = advance(self, *args)
        if self.position.step == 3:
            os.kill(os.getpid(), number)
        return row

    monkeypatch.setattr(log.Log, "advance", interrupt)
    before = signal.getsignal(number)  # a job in the background ignores SIGINT
    with pytest.raises(Stopped) as caught:
        loop.run(c, devices=one_device)
    assert caught.value.code == code
    (step,) = checkpoint.steps(rundir.folder(c) / "checkpoints")
    assert step in (3, 4)
    assert len(rows(rundir.folder(c))) == step
    assert signal.getsignal(number) is before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    c = smoke(tmp_path_factory.mktemp("runs"))
    return c, loop.run(c, devices=jax.devices()[:1])


def tree_of(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_run_of_another_configuration_is_refused_with_the_differences(finished, one_device):
    c, path = finished
    before = tree_of(path)
    other = dataclasses.replace(
        c, optim=dataclasses.replace(c.optim, lr=3e-3), data=dataclasses.replace(c.data, seed=5)
    )
    with pytest.raises(ValueError, match="holds a run of another configuration") as caught:
        loop.run(other, devices=one_device)
    assert f"optim.lr: {c.optim.lr} -> 0.003" in str(caught.value)
    assert "data.seed: 0 -> 5" in str(caught.value)
    assert tree_of(path) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"run": {}}'),
        ("metrics.jsonl", b"not json\n{}\n"),
        ("metrics.jsonl", b"\xff\n{}\n"),
    ],
)
def test_damaged_and_foreign_files_are_named_and_kept(tmp_path, one_device, name, content):
    c = smoke(tmp_path)
    path = rundir.open_run(c)
    (path / name).write_bytes(content)
    with pytest.raises(Damaged, match=name):
        loop.run(c, devices=one_device)
    assert (path / name).read_bytes() == content


def test_a_folder_that_is_no_run_is_refused(tmp_path, one_device):
    c = smoke(tmp_path)
    rundir.folder(c).mkdir()
    (rundir.folder(c) / "thesis.tex").write_text("precious", encoding="utf-8")
    with pytest.raises(Damaged, match=r"is no run directory: no config.json, but \['thesis.tex'\]; name a run"):
        loop.run(c, devices=one_device)
    assert [p.name for p in rundir.folder(c).iterdir()] == ["thesis.tex"]


def test_evaluate_gives_what_training_wrote(finished, one_device):
    c, path = finished
    step, row = evaluate.run(c, devices=one_device)
    assert step == 2
    np.testing.assert_allclose(row["loss/image"], rows(path, "eval")[-1]["loss/image"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"has no checkpoint of step 7; it has 2"):
        evaluate.run(c, 7, devices=one_device)


def test_what_a_pod_trained_is_read_on_any_machine(finished, tmp_path):
    """Its mesh and its kernels are not this machine's; its losses are."""
    path = rundir.folder(finished[0])
    there = tmp_path / path.name
    shutil.copytree(path, there)
    plain = json.loads((there / "config.json").read_text(encoding="utf-8"))
    del plain["digest"]  # of what is changed here
    plain["mesh"] |= {"fsdp": 64, "slices": 2}
    plain["model"] |= {"attention": "splash", "dispatch": "gmm", "remat": "block"}
    (there / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    here = rundir.config_of(there)
    assert (here.model.attention, here.model.dispatch, here.mesh.fsdp) == ("chunked", "blocked", 1)
    here = dataclasses.replace(here, run=dataclasses.replace(here.run, root=str(tmp_path)))
    _, row = evaluate.run(here, devices=jax.devices()[:1])
    assert row["loss"] == pytest.approx(rows(path, "eval")[-1]["loss"], rel=1e-6)


def test_rows_that_do_not_divide_among_devices_are_refused(finished):
    c, _ = finished
    with pytest.raises(ValueError, match=r"2 rows do not divide among the 4 parts of .* make the batch a multiple"):
        loop.run(c)
