"""The ladders: sizes as published, budgets, twins, FLOPs; and that tiny rungs train."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from configs import chameleon, ladder, records, sizes, transfusion
from launch import flags
from mot import batches, errors, optim, sharding
from mot.config import load, resolve
from mot.data import packing, roles
from mot.model import flops
from mot.prepare import job
from mot.train import state
from mot.train.step import make_step
from tests.support import datasets

ARCHS = ("dense", "mot", "moe_ec4", "mot_moe", "moe_fine", "learned_mot", "loo_text", "mot_moe_both_total")
PUBLISHED = {  # setting: rung: width, layers, heads, millions of tokens a batch, thousands of steps, tokens
    "chameleon": {
        "37m": (256, 4, 8, 1.57, 160, 0.252e12),
        "94m": (512, 8, 8, 1.05, 160, 0.168e12),
        "443m": (1024, 24, 16, 1.57, 160, 0.252e12),
        "1.5b": (2048, 24, 16, 2.10, 120, 0.252e12),
        "7b": (4096, 32, 32, 3.15, 120, 0.377e12),
    },
    "transfusion": {
        "163m": (768, 16, 12, 2.10, 250, 0.524e12),
        "760m": (1536, 24, 24, 2.10, 250, 0.524e12),
        "1.4b": (2048, 24, 16, 2.10, 250, 0.524e12),
        "7b": (4096, 32, 32, 2.10, 250, 0.524e12),
    },
}
PUBLISHED["chameleon_speech"] = {rung: PUBLISHED["chameleon"][rung] for rung in ("443m", "1.5b", "7b")}
PUBLISHED["chameleon_speech"]["880m"] = (1536, 24, 24, 2.10, 120, 0.252e12)
RUNGS = [(setting, rung) for setting, rungs in ladder.SETTINGS.items() for rung in rungs]


def build(**arguments):
    tree = ladder.get_config(",".join(f"{k}={v}" for k, v in arguments.items()))
    return tree, flops.resolve_with_steps(tree, optim.uncovered)


def number(rung):
    return float(rung[:-1]) * {"m": 1e6, "b": 1e9}[rung[-1]]


@pytest.mark.parametrize(("setting", "rung"), RUNGS)
def test_every_rung_of_every_architecture_and_shape_builds_and_its_flops_are_counted(setting, rung):
    for arch in ARCHS:
        for shape in (
            ("paper", "tpu") if sizes.choose(ladder.SETTINGS[setting], rung)["width"] % 128 == 0 else ("paper",)
        ):
            c = build(setting=setting, rung=rung, arch=arch, shape=shape)[1]
            assert c.length == (512 if rung in sizes.TINY else 4096)
            assert all(s.budget % (64 if rung in sizes.TINY else 128) == 0 for s in c.streams.values())
            tokens = {name: c.data.batch * s.budget for name, s in c.streams.items()}
            latent = [s.budget for s in c.streams.values() if s.latent]
            pairs = c.length * (c.length + 1) // 2 + sum(n * (ladder.PICTURE[c.length] - 1) // 2 for n in latent)
            counted = flops.train_step(c, tokens, c.data.batch * pairs)
            assert abs(flops.full_step(c) / counted - 1) < 1e-6, arch
            assert c.run.name == f"{setting}-{arch}-{rung}" + ("-tpu" if shape == "tpu" else "")


@pytest.mark.parametrize(("setting", "rung"), RUNGS)
def test_a_rung_has_its_published_size_batch_and_budget(setting, rung):
    _, c = build(setting=setting, rung=rung, arch="dense")
    d, L, V, m = c.streams["text"].width, c.model.layers, c.vocab, c.model
    size = flops.active_parameters(c)["text"]
    assert abs(size / (12 * d**2 * L + 2 * V * d) - 1) < 0.03
    assert (m.heads * m.head_size, m.kv_heads, c.optim.beta1, c.optim.beta2) == (d, m.heads, 0.9, 0.95)
    assert (c.optim.eps, c.optim.clip, c.optim.base_rules[-1].decay, c.optim.schedule) == (1e-8, 1.0, 0.1, "cosine")
    if rung in sizes.TINY:
        assert abs(12 * d**2 * L / number(rung) - 1) < 0.11
        assert (m.dtype, m.scan, m.remat, m.attention) == ("float32", False, "none", "chunked")
        spent = c.run.steps * c.data.batch * c.length / (12 * d**2 * L)
        assert abs(spent - 20) < 0.1
        return
    width, layers, heads, batch, steps, tokens = PUBLISHED[setting][rung]
    assert abs(size / number(rung) - 1) < 0.06
    assert (d, L, m.heads, c.run.steps, c.length) == (width, layers, heads, 1000 * steps, 4096)
    assert round(c.data.batch * 4096 / 1e6, 2) == batch
    assert abs(c.data.batch * 4096 * c.run.steps / tokens - 1) < 0.005
    assert (m.dtype, m.scan, m.remat, m.attention, m.dispatch) == ("bfloat16", True, "block", "splash", "gmm")
    rate, end = (3e-4, 1.5e-5) if setting == "transfusion" else (1e-4, 5e-6)
    np.testing.assert_allclose((c.optim.lr, c.optim.end_lr, c.optim.warmup), (rate, end, 4000))
    assert {"transfusion": 32_000}.get(setting, 65_536) == V


def test_settings_have_their_objectives_and_norms():
    _, c = build(setting="transfusion", rung="760m")
    image = c.streams["image"]
    assert (image.latent, image.objective, image.loss_weight, image.copies) == (32, "ddpm", 5.0, 1)
    assert (c.objective.per, c.model.norm, image.diffusion.drop_rate) == ("modality", "pre", 0.1)
    _, c = build(setting="chameleon_speech", rung="880m")
    assert list(c.streams) == ["text", "image", "speech"]
    assert [s.ids for s in c.streams.values()] == [65_536 - 8192 - 500, 8192, 500]
    assert (c.objective.per, c.model.norm, c.model.qk_norm, c.streams["image"].budget) == ("all", "post", "layer", 2048)


def test_the_twin_for_tpu_has_heads_of_128_and_the_same_size():
    for setting, rung in RUNGS:
        if rung in ("0.3m", "1m"):
            with pytest.raises(ValueError, match=f"shape=tpu: rung {rung} is .* wide, no multiple of 128"):
                build(setting=setting, rung=rung, shape="tpu")
            continue
        (_, paper), (_, twin) = (build(setting=setting, rung=rung, shape=shape) for shape in ("paper", "tpu"))
        assert (twin.model.head_size, twin.model.heads * 128) == (128, paper.streams["text"].width)
        assert abs(flops.total_parameters(twin) / flops.total_parameters(paper) - 1) < 1e-3
        if paper.model.head_size == 128:
            assert dataclasses.replace(twin.model) == paper.model


def test_devices_choose_kernels_and_dtype():
    def chosen(**a):
        return (lambda m: (m.attention, m.dispatch, m.dtype, m.scan, m.remat))(build(**a)[1].model)

    assert chosen(rung="37m", device="cpu") == ("chunked", "blocked", "float32", True, "block")
    assert chosen(rung="37m", device="gpu") == ("triton", "triton", "bfloat16", True, "block")
    assert chosen(rung="1m", device="tpu") == ("splash", "gmm", "bfloat16", True, "block")


def test_budgets_of_tokens_and_of_flops_set_the_steps():
    _, c = build(rung="443m", tokens="0.252e12")
    assert abs(c.run.steps - 160_000) < 300
    assert c.optim.warmup == 4000
    _, c = build(rung="443m", tokens="2e10", setting="chameleon_speech")
    assert c.run.steps == round(2e10 / (384 * 4096))
    assert c.optim.warmup == c.run.steps // 10
    _, c = build(setting="transfusion", rung="163m", arch="mot_moe", flops="1e20")
    assert abs(c.run.steps * flops.full_step(c) / 1e20 - 1) < 1e-3
    assert (c.run.flops, c.optim.warmup) == (0, 4000)
    _, c = build(setting="chameleon", rung="37m", arch="dense", flops="1e18")
    assert c.optim.warmup == c.run.steps // 10 < 4000
    assert build(rung="1m", tokens="8192")[1].run.steps == 1


@pytest.mark.parametrize(
    ("setting", "rung"), [("chameleon", "0.3m"), ("transfusion", "760m"), ("chameleon_speech", "1.5b")]
)
def test_by_modality_a_run_goes_on_until_each_has_its_tokens_and_the_batch_follows(setting, rung):
    _, usual = build(setting=setting, rung=rung)
    _, c = build(setting=setting, rung=rung, tokens="wanted")
    trunk = 12 * c.streams["text"].width ** 2 * c.model.layers
    seen = {name: c.run.steps * c.data.batch * s.budget for name, s in c.streams.items()}
    wanted = {name: ladder.WANTED[name].of(trunk) for name in seen}
    assert (wanted["text"], wanted["image"]) == (20 * trunk, 200 * trunk)
    assert min(seen[name] / wanted[name] for name in seen) == pytest.approx(1, rel=2e-3)
    more = c.run.steps * c.data.batch / (usual.run.steps * usual.data.batch)
    rows = c.data.batch / usual.data.batch
    assert math.log2(rows).is_integer()
    assert abs(math.log2(rows) - 0.4 * math.log2(more)) < 0.51
    assert ladder.WANTED["speech"].of(1e9) == pytest.approx(20e9 * 10**0.6)


def test_tokens_may_be_written_by_modality():
    _, c = build(rung="443m", tokens="text:1e9+image:1e10")
    assert c.run.steps * c.data.batch * c.streams["image"].budget == pytest.approx(1e10, rel=1e-2)
    assert build(rung="443m", tokens="image:1e10")[1].run.steps == c.run.steps


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("rung=163m", "rung=163m: no such rung of chameleon; allowed: 0.3m, 1m, 3m, 10m, 37m, 94m, 443m, 1.5b, 7b"),
        ("setting=transfusion,rung=37m", "of transfusion; allowed: 0.3m, 1m, 3m, 10m, 163m, 760m, 1.4b, 7b"),
        ("setting=video", "setting=video: no such setting; allowed: chameleon, chameleon_speech, transfusion"),
        ("shape=round,rung=3m", "shape=round: no such shape; allowed: paper, tpu"),
        ("device=npu", "device=npu: no such device; allowed: auto, tpu, gpu, cpu"),
        ("arch=big", "arch=big: no such arch"),
        ("tokens=1e9,flops=1e15", "tokens=1e9,flops=1e15: two budgets of one run; leave one out"),
        ("tokens=many", "tokens=many: must be a number above 0"),
        ("flops=-1", "flops=-1: must be a number above 0"),
        ("flops=nan", "flops=nan: must be a number above 0"),
        ("tokens=100", "tokens=100: a step of 16 rows takes 8.19e\\+03; raise it"),
        ("tokens=1e300", "tokens=1e300: pays for .* steps, and 1e\\+09 is the most; lower it"),
        ("tokens=text:many", "tokens=text:many: must be a number above 0, as in tokens=text:1e12"),
        ("tokens=text:1e308", "pays for .* steps, and 1e\\+09 is the most; lower it"),
        ("tokens=text:5e-324", "a step of .* rows takes .*; raise it"),
        ("tokens=sound:1e9", "tokens=sound: no such tokens among the data's modalities; allowed: image, text"),
        ("tokens=text:1e9+text:2e9", "a modality stands there twice; leave one out"),
        ("tokens=text:1", "tokens=text:1: a step of .* rows takes .*; raise it"),
        ("tokens=text:1e300", "pays for .* steps, and 1e\\+09 is the most; lower it"),
        ("rung=", "config argument 'rung=' has no value; allowed"),
        ("rung=1m,rung=3m", "config argument 'rung' stands there 2 times"),
        ("foo=3,bar=4", "'foo=3' is unknown; config argument 'bar=4' is unknown; allowed"),
        ("size=443m", "'size=443m' is unknown; allowed, with their defaults: setting=chameleon"),
        ("data=nowhere", "data=nowhere: there is no nowhere/dataset.json; `mot data prepare` makes one"),
    ],
)
def test_bad_arguments_are_named_with_what_is_allowed(argument, says):
    with pytest.raises(ValueError, match=says):
        ladder.get_config(argument)


def test_a_rung_that_has_no_data_says_so_when_it_is_trained():
    with pytest.raises(errors.UserError, match=r"data.sources.none: names no data; write data=FOLDER"):
        flags.build(ladder.get_config("rung=443m"))


def test_the_settings_own_files_have_the_rungs_too():
    """Of the embedded data, and of prepared data with the ladder's batch and schedule."""
    for setting, rung in ((chameleon, "880m"), (transfusion, "163m"), (chameleon, "1m"), (transfusion, "10m")):
        c = resolve(setting.get_config(f"arch=mot,size={rung}"), optim.uncovered)
        size = setting.RUNGS[rung]
        assert (c.model.layers, c.data.batch, c.run.steps) == (size["layers"], size["rows"], size["steps"])
        assert c.model.dtype == ("float32" if rung in sizes.TINY else "bfloat16")


def test_prepared_data_at_a_rung(tmp_path):
    job.prepare(datasets.write_inputs(tmp_path / "in"), tmp_path / "pictures", 1, 0)
    tree, c = build(rung="94m", data=tmp_path / "pictures", tokens="1e10")
    flags.build(tree)
    assert c.run.name == "chameleon-pictures-mot-94m"
    assert (c.data.length, c.data.batch, c.run.steps) == (4096, 256, round(1e10 / 2**20))
    assert (c.streams["text"].ids, c.streams["image"].ids, c.model.norm) == (300, 12, "post")
    assert build(rung="94m", data=tmp_path / "pictures", flops="1e18")[1].run.steps > 100
    share = records.shares([str(tmp_path / "pictures")])
    assert sum(share.values()) == pytest.approx(1)
    _, c = build(rung="94m", data=tmp_path / "pictures", tokens="wanted")
    seen = c.run.steps * c.data.batch * 4096 * share["image"]
    assert seen >= 0.99 * ladder.WANTED["image"].of(12 * 512**2 * 8)


def row(c, seed, picture):
    """A document that fills a row: words, then whole pictures (or speech), stream by stream."""
    rng, stream, unit, values, token = np.random.default_rng(seed), [], [], {}, []
    for s, of in enumerate(c.streams.values()):
        stream += [s] * of.budget
        token += [0] * of.budget if of.latent else list(of.first_id + rng.integers(0, of.ids, of.budget))
        unit += list(1 + np.arange(of.budget) // picture) if s == 1 else [0] * of.budget
        if of.latent:
            values[s] = rng.standard_normal((of.budget, of.latent))
    d = packing.document(0, seed, np.array(token), np.array(stream), values, unit=np.array(unit))
    return [roles.assign(d, list(c.streams.values()), c.data.blocks, seed)]


def batch(c, rows):
    of = c.streams.values()
    picture = ladder.PICTURE[c.length]
    packed = [row(c, i, picture) for i in range(rows)]
    return packing.pack(packed, list(c.streams), [s.budget for s in of], [s.latent for s in of])


def test_the_formulas_pairs_are_those_of_a_row_that_is_one_document():
    for setting in ladder.SETTINGS:
        _, c = build(setting=setting, rung="0.3m")
        c = dataclasses.replace(c, data=dataclasses.replace(c.data, batch=2))
        pairs = flops.visible_pairs(batch(c, 2))
        tokens = {name: s.budget * 2 for name, s in c.streams.items()}
        assert abs(flops.full_step(c) / flops.train_step(c, tokens, pairs) - 1) < 0.01


def test_any_configuration_takes_a_budget_of_flops():
    overrides = {"run.steps": "0", "run.flops": "20000000000000"}
    c = flags.judged(load.read("configs/digits.py:arch=mot,size=smoke", overrides))
    assert abs(c.run.steps * flops.full_step(c) / 2e13 - 1) < 1e-2
    assert c.optim.warmup <= c.run.steps // 10


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(steps=5, flops=1e15), "run.flops: 1e\\+15, but run.steps is 5: two budgets of one run; set one to 0"),
        (dict(steps=0, flops=1e6), "run.flops: 1e\\+06; a step of 16 rows takes .*; raise it"),
        (dict(steps=0, flops=1e30), "run.flops: 1e\\+30; pays for .* steps, and 1e\\+09 is the most; lower it"),
        (dict(steps=0, flops=-1.0), "run.flops: -1.0; must be 0 or more; raise it"),
        (dict(steps=0), "run.steps: 0; must be above 0; raise it"),
        (dict(steps="", flops=1e15), "run.steps: '' is str; must be of type int"),
        (dict(steps=None, flops=1e15), "run.steps: None is NoneType; must be of type int"),
        (dict(steps=(), flops=1e15), "run.steps: \\(\\) is tuple; must be of type int"),
        (dict(steps=False, flops=1e15), "1 fault:\n  run.steps: False is bool; must be of type int"),
        (dict(steps="abc", flops=1e15), "1 fault:\n  run.steps: 'abc' is str; must be of type int"),
        (dict(steps=math.nan, flops=1e15), "1 fault:\n  run.steps: nan is float; must be of type int"),
        (dict(steps=-3, flops=1e15), "1 fault:\n  run.steps: -3; must be above 0; raise it"),
        (dict(steps=0.0, flops=1e6), "1 fault:\n  run.flops: 1e\\+06; a step of 16 rows takes .*; raise it"),
    ],
)
def test_a_budget_of_flops_that_is_none_is_refused(changes, says):
    tree = ladder.get_config("rung=1m").unlock()
    for key, value in changes.items():
        del tree.run[key]  # a ConfigDict refuses another type
        tree.run[key] = value
    with pytest.raises(errors.UserError, match=says):
        flags.judged(tree)


def test_faults_of_a_budget_of_flops_stand_among_all_others():
    """An unknown key, values out of range, and a rule without a parameter."""
    others = {"optim.lr": "-1", "data.batch": "0", "foo": "3"}
    others["optim.rules"] = "({'match': 'nothing', 'lr': 1.0, 'decay': 0.0},)"
    two = "run.flops: 1e+15, but run.steps is 5: two budgets of one run"
    small = "run.flops: 1000; a step of 16 rows takes"
    for changed, dropped, budget in (("5", "", two), ("0", "data.batch", small)):
        overrides = {key: text for key, text in others.items() if key != dropped}
        overrides |= {"run.flops": "1e15" if changed == "5" else "1000", "run.steps": changed}
        with pytest.raises(errors.UserError) as error:
            flags.judged(load.read("configs/ladder.py:rung=1m", overrides))
        told = str(error.value)
        kept = [key for key in others if key != dropped]
        assert all(f"  {key}" in told for key in kept), told
        assert budget in told


@pytest.mark.slow
def test_the_smallest_rung_trains_two_steps_at_its_real_size(one_device):
    _, c = build(rung="0.3m", arch="mot")
    mesh, given = sharding.make_mesh(c, one_device), batch(c, c.data.batch)
    quick = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)  # compiling takes long
    losses = []
    with jax.set_mesh(mesh):
        now = jax.jit(lambda: state.init_state(c), compiler_options=quick)()
        step = jax.jit(make_step(c, 1), donate_argnums=0, compiler_options=quick)
        for _ in range(2):
            now, measured = step(now, sharding.to_global(given, c, mesh))
            assert measured["ok"]
            losses.append(float(measured["loss"]))
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("setting", "rung", "arch"), [("chameleon_speech", "1m", "mot_moe"), ("transfusion", "163m", "mot")]
)
def test_a_step_is_traced_without_data(setting, rung, arch, one_device):
    _, c = build(setting=setting, rung=rung, arch=arch, device="cpu")
    with jax.set_mesh(sharding.make_mesh(c, one_device)):
        now = jax.eval_shape(lambda: state.init_state(c))
        after, measured = jax.eval_shape(make_step(c, 1), now, batches.abstract(c))
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, now)
    assert measured["loss"].shape == ()
