"""Several runs in one program: each is what it would be alone."""

import os
import shutil
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from launch import arguments, cli, flags
from mot import checkpoint
from mot.config import differences, load, resolve
from mot.config.varied import put
from mot.data import embedded
from mot.errors import UserError
from mot.model import ops
from mot.runs import rundir
from mot.runs.log import Diverged
from mot.train import ensemble, loop
from mot.train.signals import Stopped
from mot.train.state import init_state
from mot.train.step import make_step
from tests.conftest import ROOT
from tests.support import examples
from tests.support.examples import CLOCK


def with_(c, others=(), **values):
    """With other values, by key in which __ stands for a dot, or by dotted key in `others`."""
    for key, value in {**{key.replace("__", "."): value for key, value in values.items()}, **dict(others)}.items():
        c = put(c, key, value)
    return c


SEEDS = ({"model__seed": 5}, {"model__seed": 7})
RATES = ({"optim__lr": 1e-3}, {"optim__lr": 2e-3})
ALL = dict(optim__lr=4e-3, optim__end_lr=1e-3, optim__beta1=0.8, optim__beta2=0.99, optim__eps=1e-6, optim__clip=0.1)
ALL |= dict(optim__warmup=2, streams__image__loss_weight=3.0)
ALL["others"] = {"optim.base_rules[1].decay": 0.3}
OTHERS = ({"model__seed": 1}, {"model__seed": 2} | ALL)


def stepper(configs, at_once):
    """The first state of all, and a step."""
    each = ensemble.for_each(configs, ensemble.make_mesh(configs[0], len(configs), jax.devices()[:1]), at_once)
    state = jax.jit(each(lambda c, _: init_state(c)))(np.arange(len(configs)))
    return state, jax.jit(each(lambda c, state, batch: make_step(c, 2)(state, batch)))


@pytest.mark.parametrize(
    ("arch", "varied", "at_once"),
    [
        pytest.param("dense", SEEDS, True, id="dense, seeds", marks=pytest.mark.slow),
        pytest.param("mot", OTHERS, True, id="mot, everything"),
        pytest.param("mot", OTHERS, False, id="mot, everything, in turn"),
        pytest.param("moe_tc4", RATES, True, id="moe, rates", marks=pytest.mark.slow),
    ],
)
def test_losses_of_ten_steps_equal_those_of_separate_runs(arch, varied, at_once):
    tree = examples.tree(arch, layers=1)
    tree.run.steps, tree.optim.warmup = 10, 4
    configs = [with_(resolve(tree), **values) for values in varied]
    together, step = stepper(configs, at_once)
    alone = jax.jit(lambda: init_state(configs[-1]))()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), jax.tree.map(lambda x: x[-1], together), alone)
    single = jax.jit(make_step(configs[-1], 2))
    losses = []
    for n in range(10):
        batch = examples.batch(n)
        together, measured = step(together, batch)
        alone, of_one = single(alone, batch)
        np.testing.assert_allclose(measured["loss"][-1], of_one["loss"], rtol=1e-5)
        np.testing.assert_allclose(measured["lr"][-1], of_one["lr"], rtol=1e-5)
        losses.append(measured["loss"])
    assert len({float(x) for x in losses[-1]}) == len(configs)
    broken = jax.tree.map(lambda x: x, together)
    broken.params["head"]["out"] = broken.params["head"]["out"].at[0, 0].set(jnp.nan)
    after, measured = step(broken, examples.batch())
    assert measured["ok"].tolist() == [False, True]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), after, broken)
    assert (after.updates - broken.updates).tolist() == [0, 1]
    batch = examples.batch()
    nothing = batch["text"].replace(weight=np.where(batch["text"].weight > 0, np.nan, 0).astype("f"))
    after, measured = step(together, batch | {"text": nothing})
    assert measured["ok"].tolist() == [False, False]
    jax.tree.map(np.testing.assert_array_equal, after, together)


def predicates(jaxpr):
    """Shapes of what the conditions of loops compute, and of what branches are chosen by."""
    for e in jaxpr.eqns:
        if e.primitive.name == "while":
            yield from (v.aval.shape for inner in e.params["cond_jaxpr"].jaxpr.eqns for v in inner.outvars)
        if e.primitive.name == "cond":
            yield e.invars[0].aval.shape
        for p in jax.tree.leaves(e.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(p, "jaxpr", p)
            if hasattr(inner, "eqns"):
                yield from predicates(inner)


@pytest.mark.parametrize("arch", ["mot", "moe_ec4", "learned_mot"])
def test_no_loop_ends_and_no_branch_is_taken_by_what_a_run_computes(arch):
    configs = [with_(examples.make(arch, layers=1), **values) for values in SEEDS]
    each = ensemble.for_each(configs, ensemble.make_mesh(configs[0], 2, jax.devices()[:1]), at_once=True)
    state = jax.eval_shape(each(lambda c, _: init_state(c)), np.arange(2))
    step = each(lambda c, state, batch: make_step(c, 2)(state, batch))
    jaxpr = jax.make_jaxpr(step)(state, examples.batch()).jaxpr
    shapes = list(predicates(jaxpr))
    assert shapes
    assert set(shapes) == {()}


ROWS = 4096  # from some 4,000 on XLA hands reductions on CPU to YNNPACK


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scales", ["one each", "one for all"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_of_several_runs_are_each_ones(kind, scales, dtype):
    """jaxlib 0.10.2 on CPU gets `jit(vmap(vjp))` of these norms wrong where all share x; runs never do.

    Where the next test fails too, `launch/cores.py` needs --xla_cpu_experimental_ynn_fusion_type= (empty).
    """
    runs, heads = 4, () if kind == "rms" else (2,)
    own = (runs,) if scales == "one each" else ()
    shapes = [(runs, ROWS, *heads, 32), (runs, ROWS, *heads, 32), (*own, *heads, 32), (*own, *heads, 32)]
    x, g, scale, bias = map(jax.random.normal, jax.random.split(jax.random.key(0), 4), shapes)
    x, g = x.astype(dtype), g.astype(dtype)

    def norm(x, scale, bias):
        return ops.rms_norm(x, scale, 1e-5) if kind == "rms" else ops.layer_norm(x, scale, bias, 1e-5)

    def both(x, g, scale, bias):
        y, back = jax.vjp(norm, x, scale, bias)
        return y, *back(g)

    axis = 0 if own else None
    together, one = jax.jit(jax.vmap(both, in_axes=(0, 0, axis, axis))), jax.jit(both)
    of_all = together(x, g, scale, bias)
    for i in range(runs):
        of_one = one(x[i], g[i], *((scale[i], bias[i]) if own else (scale, bias)))
        for a, b in zip(of_all, of_one, strict=True):
            assert examples.leaf_error(np.asarray(a[i], "f"), np.asarray(b, "f")) < (
                1e-5 if dtype == "float32" else 1e-2
            )


def test_gradients_of_many_rows_equal_those_of_separate_runs():
    """Both kinds of norms, on queries and keys and on branches, over 4,096 rows of each stream."""
    tree = examples.tree("mot", (ROWS // 16, ROWS // 16), layers=1, qk_norm="layer", norm="post")
    tree.data.batch, tree.optim.clip = 16, 1e9
    configs = [with_(resolve(tree), **values) for values in SEEDS]
    state, step = stepper(configs, at_once=True)
    batch = examples.batch(rows=16, budgets=(ROWS // 16, ROWS // 16))
    after, _ = step(state, batch)
    single = jax.jit(make_step(configs[0], 2))
    for i in range(len(configs)):
        alone, _ = single(jax.tree.map(lambda x, i=i: x[i], state), batch)
        found = [x[i] for x in jax.tree.leaves(after.opt[1].mu)]
        assert examples.leaf_error(found, jax.tree.leaves(alone.opt[1].mu)) < 1e-5


def pair(root, **values):
    tree = digits.get_config("arch=dense,size=smoke").unlock()
    tree.run.update(root=str(root), steps=4, eval_every=2, save_every=4)
    c = with_(resolve(tree, embedded.faults), **values)
    return [with_(c, run__name=f"smoke-seed{n}", model__seed=n) for n in (3, 4)]


def rows(c, kind="train"):
    return [row for row in rundir.read_metrics(rundir.folder(c)) if row["kind"] == kind]


def assert_alike(mine, other):
    assert len(mine) == len(other)
    for a, b in zip(mine, other, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - set(CLOCK) - {k for k in a if k.startswith(("router", "experts"))}:
            if isinstance(a[key], float):
                assert a[key] == pytest.approx(b[key], rel=1e-5), key
            else:
                assert a[key] == b[key], key


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """Two runs that stopped at step 2 of 4; one trained to the end by itself."""
    root = tmp_path_factory.mktemp("together")
    paths = ensemble.run(pair(root), until=2, devices=jax.devices()[:2])
    assert [p.name for p in paths] == ["smoke-seed3", "smoke-seed4"]
    alone = pair(tmp_path_factory.mktemp("alone"))[1]
    loop.run(alone, devices=jax.devices()[:1])
    return root, alone


def moved(halfway, folder):
    shutil.copytree(halfway[0], folder)
    return pair(folder)


def test_runs_resume_together_as_what_each_would_be_alone(halfway, tmp_path):
    configs, alone = moved(halfway, tmp_path / "runs"), halfway[1]
    ensemble.run(configs, devices=jax.devices()[:2])
    for kind in ("train", "eval"):
        assert_alike(rows(configs[1], kind), rows(alone, kind))
        assert len(rows(configs[0], kind)) == len(rows(alone, kind))
    assert rows(configs[0])[-1]["loss"] != rows(configs[1])[-1]["loss"]
    mine, other = (rundir.read_config(rundir.folder(c)) for c in (configs[1], alone))
    assert [d.partition(":")[0] for d in differences(mine, other)] == ["run.root"]
    assert checkpoint.steps(rundir.folder(configs[0]) / "checkpoints") == [2, 4]
    ensemble.run(configs, devices=jax.devices()[:2])  # done: nothing more to do
    assert len(rows(configs[0])) == 4


def test_one_of_them_resumes_alone_and_then_they_differ(halfway, tmp_path):
    configs, alone = moved(halfway, tmp_path / "runs"), halfway[1]
    loop.run(configs[1], devices=jax.devices()[:1])
    assert_alike(rows(configs[1]), rows(alone))
    with pytest.raises(UserError, match=r"different steps: .*smoke-seed3 at 2, .*smoke-seed4 at 4; leave out"):
        ensemble.run(configs, devices=jax.devices()[:2])


@pytest.mark.slow
def test_runs_begin_from_another_ones_weights(halfway, tmp_path):
    source = pair(halfway[0])[0]
    configs = pair(tmp_path, init__run=str(rundir.folder(source)))
    ensemble.run(configs, until=1, devices=jax.devices()[:2])
    first = [rows(c, "eval")[0]["loss"] for c in configs]
    assert first == pytest.approx([rows(source, "eval")[-1]["loss"]] * 2, rel=1e-5)


def test_a_signal_saves_them_all(halfway, tmp_path, monkeypatch):
    configs = moved(halfway, tmp_path / "runs")
    advance = ensemble.Logs.advance

    def interrupt(self, *args):
        rows = advance(self, *args)
        os.kill(os.getpid(), signal.SIGINT)
        return rows

    monkeypatch.setattr(ensemble.Logs, "advance", interrupt)
    with pytest.raises(Stopped):
        ensemble.run(configs, devices=jax.devices()[:2])
    saved = [checkpoint.steps(rundir.folder(c) / "checkpoints") for c in configs]
    assert saved[0] == saved[1]
    assert saved[0][-1] in (3, 4)


def test_one_that_diverges_stops_by_itself(tmp_path, monkeypatch):
    configs = pair(tmp_path, optim__patience=1)
    true_init = ensemble.init_state

    def poisoned(c):
        state = true_init(c)
        state.params["head"]["out"] *= jnp.where(c.model.seed == 3, jnp.nan, 1.0)
        return state

    monkeypatch.setattr(ensemble, "init_state", poisoned)
    ensemble.run(configs, until=2, devices=jax.devices()[:2])
    assert [len(rows(c)) for c in configs] == [1, 2]
    assert [row["event"] for row in rows(configs[0], "event")] == ["start", "skipped", "diverged", "saved"]
    assert all(rows(c, "event")[0]["host"] for c in configs), "each says where it comes from"
    assert [checkpoint.steps(rundir.folder(c) / "checkpoints") for c in configs] == [[2], [2]], "as it stood"
    shutil.rmtree(rundir.folder(configs[1]))
    shutil.rmtree(rundir.folder(configs[0]))
    monkeypatch.setattr(ensemble, "init_state", lambda c: jax.tree.map(lambda x: x * jnp.nan, true_init(c)))
    with pytest.raises(Diverged):
        ensemble.run(configs, until=2, devices=jax.devices()[:2])


SMOKE = ["train", "--config=configs/digits.py:arch=mot,size=smoke"]


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ("0", "--runs 0: must be KEY=V1,V2,... or how many seeds, 2 to 1024"),
        ("1", "--runs 1: must be KEY=V1,V2,..."),
        ("many", "--runs many: must be KEY=V1,V2,..."),
        ("data.seed=0,1", "data.seed draws other batches; runs in one program may differ in model.seed"),
        ("data.batch=1,2", "data.batch makes another program, or other batches; runs in one program may differ in"),
        ("optim.lr=1e-3,2e-3 --runs optim.lr=3e-3,4e-3", "optim.lr stands there twice; every run needs its own"),
        ("64 --runs optim.lr=" + ",".join(f"{n}e-4" for n in range(1, 18)), "1088 runs; must be 2 to 1024; give fewer"),
        ("optim.lr=1e-3,1e-5 --runs 2", "of optim.lr=1e-5 model.seed=0, optim.lr=1e-5 model.seed=1: optim.end_lr: 0.0"),
        ("optim.base_rules[7].decay=0,1", "the configuration has no optim.base_rules[7].decay"),
        ("optim.base_rules[1].decay=0,-1", "optim.base_rules[1].decay: -1.0; must be 0 or more"),
        ("streams.sound.loss_weight=1,2", "the configuration has no streams.sound.loss_weight"),
        ("optim.momentum=0,1", "optim.momentum makes another program"),
        ("run.flops=1.5e9,1 --config.run.steps=0", "--runs run.flops=1.5e9,1: run.flops makes another program"),
        ("optim.lr=1e-3", "--runs optim.lr=1e-3: 1 values; must be 2 to 1024"),
        ("optim.lr=1e-3,", "--runs optim.lr=1e-3,: 2 values, 1 of them empty"),
        ("optim.lr=1e-3,2e-3,0.001", "0.001 stands there twice"),
        ("optim.lr=1e-3,fast", "optim.lr: 'fast' is str; must be of type float"),
        ("optim.beta2=0.9,2.0", "optim.beta2: 2.0"),
        ("model.seed=1,1.5", "model.seed: 1.5 is float; must be of type int"),
    ],
)
def test_runs_that_cannot_be_get_one_message(tmp_path, capsys, monkeypatch, runs, says):
    monkeypatch.chdir(ROOT)
    root = tmp_path / "runs"
    assert cli.main([*SMOKE, f"--config.run.root={root}", "--runs", *runs.split()]) == 2
    assert says in capsys.readouterr().err
    assert not root.exists()


def test_what_runs_cannot_differ_in_and_devices_that_do_not_divide(tmp_path):
    a, b = pair(tmp_path)
    with pytest.raises(UserError, match=r"data.seed: 0 -> 3: runs in one program train on the same batches; start"):
        ensemble.run([a, with_(b, data__seed=3)])
    with pytest.raises(UserError, match=r"optim.moments: .* share everything but model.seed, optim.lr, .*; start"):
        ensemble.run([a, with_(b, optim__moments="bfloat16")])
    with pytest.raises(UserError, match=r"run.name: smoke-seed3, smoke-seed3; every run needs its own"):
        ensemble.run([a, with_(b, run__name=a.run.name)])
    with pytest.raises(UserError, match=r"mesh.fsdp: 2; of runs in one program each stands whole on one device"):
        ensemble.run([with_(x, mesh__fsdp=2) for x in (a, b)])
    three = [with_(a, run__name=f"r{n}", model__seed=n) for n in range(3)]
    with pytest.raises(UserError, match=r"3 runs do not divide among 2 devices; run a multiple of 2, or fewer"):
        ensemble.run(three, devices=jax.devices()[:2])
    assert not list(tmp_path.iterdir())


def test_runs_names_and_short_forms(monkeypatch):
    monkeypatch.chdir(ROOT)
    given = SMOKE[1].removeprefix("--config="), {"model.seed": "2"}
    base = flags.build(load.read(*given))
    seeds = arguments.several(["3"], *given, base, flags.build)
    assert [(c.run.name, c.model.seed) for c in seeds] == [(f"digits-mot-smoke-seed{n}", n) for n in (2, 3, 4)]
    rates = arguments.several(["optim.lr=1e-3,2e-3"], *given, base, flags.build)
    assert [(c.run.name, c.optim.lr, c.model.seed) for c in rates] == [
        ("digits-mot-smoke-lr0.001", 1e-3, 2),
        ("digits-mot-smoke-lr0.002", 2e-3, 2),
    ]
    several = ["optim.lr=1e-3,2e-3", "streams.image.loss_weight=1,5", "optim.base_rules[1].decay=0,0.3"]
    product = arguments.several(several, *given, base, flags.build)
    assert len({c.run.name for c in product}) == 8
    last = product[-1]
    assert last.run.name == "digits-mot-smoke-lr0.002-loss_weight5.0-decay0.3"
    assert (last.optim.lr, last.streams["image"].loss_weight, last.optim.base_rules[1].decay) == (2e-3, 5.0, 0.3)
    alike = ["streams.image.loss_weight=1,5", "streams.text.loss_weight=1,5"]
    names = [c.run.name for c in arguments.several(alike, *given, base, flags.build)]
    assert names[1] == "digits-mot-smoke-image.loss_weight1.0-text.loss_weight5.0"
