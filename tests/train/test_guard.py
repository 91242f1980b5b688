"""Which steps are skipped, that they change nothing, and what is told of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import optim, sharding
from mot.config import ConfigError, resolve
from mot.config.renames import modern
from mot.model import params
from mot.objectives import losses
from mot.train import guard, loop, step
from mot.train.state import init_state, of_trees, trees
from tests.support import examples
from tests.support.training import restored, rows, smoke

QUICK = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)  # to compile


def make(arch="mot", **settings):
    tree = examples.tree(arch, attention="reference", layers=1)
    tree.optim.update(dict(warmup=1, ema=0.5) | settings)
    return resolve(tree)


def first(config):
    return jax.jit(lambda: init_state(config))()


def jitted(config):
    return jax.jit(step.make_step(config, 2), compiler_options=QUICK)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def of_norms(config, norms):
    """A state that has applied gradients of these norms."""
    window = guard.first_norms(config)
    for n, norm in enumerate(norms):
        window = guard.with_norm(window, jnp.float32(norm), n)
    return window


# --- a gradient that is far longer than those of late ----------------------------------------------------------------


@pytest.mark.parametrize("n", [guard.ENOUGH, guard.ENOUGH + 1, guard.WINDOW, 2 * guard.WINDOW + 7])
def test_the_limit_is_a_multiple_of_the_median_of_the_last_norms(n):
    c = make(skip_above=3.0)
    norms = np.random.default_rng(n).lognormal(size=n).astype("f")
    late = np.sort(norms[-guard.WINDOW :])
    assert guard.greatest(of_norms(c, norms), c) == 3 * late[(len(late) - 1) // 2]


def test_nothing_is_judged_before_enough_norms_are_known():
    c = make(skip_above=3.0)
    assert guard.greatest(of_norms(c, np.ones(guard.ENOUGH - 1)), c) == np.inf
    assert guard.greatest(of_norms(c, np.ones(guard.ENOUGH)), c) == 3


def test_a_gradient_above_the_limit_is_skipped_to_the_bit_and_does_not_move_it(one_device):
    c = make(skip_above=10.0)
    batch = examples.batch()
    with jax.set_mesh(sharding.make_mesh(c, one_device)):
        state, run = first(c), jitted(c)
        usual = float(run(state, batch)[1]["grad_norm"])
        steady = state.replace(norms=of_norms(c, np.full(guard.ENOUGH, usual)))
        after, measured = run(steady, batch)
        assert measured["ok"]
        assert after.norms["last"][0] == measured["grad_norm"]
        assert not measured["leaves"]["norm"].any()
        small = state.replace(norms=of_norms(c, np.full(guard.ENOUGH, usual / 10.1)))
        after, measured = run(small, batch)
        assert not measured["ok"]
        assert np.isfinite(measured["grad_norm"])
        assert measured["grad_norm_limit"] < measured["grad_norm"]
        assert_same(after, small)
        assert not measured["leaves"]["not_finite"].any()
        np.testing.assert_allclose(np.linalg.norm(measured["leaves"]["norm"]), measured["grad_norm"], rtol=1e-5)


def test_a_state_without_the_option_has_the_tree_that_it_had():
    without = jax.eval_shape(lambda: init_state(make()))
    assert trees(without)["opt"].keys() == {"optax", "updates"}
    state = jax.eval_shape(lambda: init_state(make(skip_above=2.0)))
    assert trees(state)["opt"].keys() == {"optax", "updates", "norms"}
    assert of_trees(trees(state)) == state
    assert modern({"optim": {}})[0]["optim"]["skip_above"] == 0.0


def test_the_norms_are_saved_and_go_on_where_they_were(tmp_path, one_device):
    settings = dict(run__steps=6, run__eval_every=6, run__save_every=6, optim__skip_above=50.0)
    whole, halves = smoke(tmp_path / "a", **settings), smoke(tmp_path / "b", **settings)
    a = loop.run(whole, devices=one_device)
    loop.run(halves, until=3, devices=one_device)
    b = loop.run(halves, devices=one_device)
    assert_same(restored(a, 6), restored(b, 6))
    kept = restored(b, 6)["opt"]["norms"]["last"]
    assert kept[:6].tolist() == [row["grad_norm"] for row in rows(b)]
    assert not kept[6:].any()


@pytest.mark.parametrize("value", [0.5, 1.0, -2.0, float("nan")])
def test_a_limit_that_would_skip_usual_steps_is_refused(value):
    with pytest.raises(ConfigError, match=r"optim\.skip_above"):
        make(skip_above=value)


# --- what is not finite ----------------------------------------------------------------------------------------------


def with_bad(batch, name, field, bad):
    x = np.array(getattr(batch[name], field))
    x[np.nonzero(x)[0][0], np.nonzero(x)[1][0]] = bad
    return batch | {name: batch[name].replace(**{field: x})}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_skipped_to_the_bit_and_the_next_step_applied(one_device, monkeypatch, bad):
    """FAULTS 8: in one gradient leaf, in the loss alone, in one sample's weight; then a clean step."""
    c = make(skip_above=10.0)
    true_gradients = step.make_gradients

    def injected(config, sources):
        gradients = true_gradients(config, sources)

        def faulty(state, trained, frozen, batch, Z_M):
            (loss, sums), grads = gradients(state, trained, frozen, batch, Z_M)
            fault = batch["text"].source[0, 0]  # says which: it is 0 or 1 otherwise
            flat = params.paths(grads)
            flat[LEAF] = flat[LEAF].at[0, 0, 0].add(jnp.where(fault == 7, bad, 0))
            return (loss + jnp.where(fault == 8, bad, 0), sums), params.nest(flat)

        return faulty

    def marked(batch, fault):
        source = np.array(batch["text"].source)
        source[0, 0] = fault
        return batch | {"text": batch["text"].replace(source=source)}

    monkeypatch.setattr(step, "make_gradients", injected)
    batch = examples.batch()
    with jax.set_mesh(sharding.make_mesh(c, one_device)):
        run = jitted(c)
        state, measured = run(first(c), batch)
        assert measured["ok"]
        for name, faulty in {
            "leaf": marked(batch, 7),
            "loss": marked(batch, 8),
            "sample": with_bad(batch, "image", "weight", bad),
        }.items():
            after, measured = run(state, faulty)
            assert not measured["ok"], name
            assert_same(after, state)
            counts = dict(zip(optim.trained(c), measured["leaves"]["not_finite"].tolist(), strict=True))
            if name == "leaf":
                assert {path: n for path, n in counts.items() if n} == {LEAF: 1}
            if name == "loss":
                assert not any(counts.values())
        after, measured = run(state, batch)
        assert measured["ok"]
        assert after.updates == state.updates + 1 == 2


LEAF = "blocks/main/ffn/image/w1"


# --- batches that lack something -------------------------------------------------------------------------------------


def only(batch, keep):
    """The batch with padding in place of all tokens that `keep(name, tokens)` does not keep."""

    def kept(name, t):
        stays = keep(name, t) & (t.segment != 0)
        return t.replace(segment=np.where(stays, t.segment, 0), weight=np.where(stays, t.weight, 0).astype("f"))

    return {name: kept(name, t) for name, t in batch.items()}


def first_token(name, t):
    return (np.cumsum((t.segment != 0) & (t.weight > 0), 1) == 1) & (t.weight > 0) & (name == "text") & FIRST_ROW


FIRST_ROW = np.arange(4)[:, None] == 0


@pytest.mark.parametrize("arch", ["mot", pytest.param("mot_moe", marks=pytest.mark.slow)])
def test_what_a_batch_lacks_gets_exactly_no_gradient(one_device, arch):
    """FAULTS 9: one modality is absent, the other one is, and one token is all there is."""
    c = make(arch)
    batch = examples.batch(spans=False)
    text = {n: t.replace(weight=np.where(t.target < examples.IDS, t.weight, 0)) for n, t in batch.items()}
    image = {n: t.replace(weight=np.where(t.target >= examples.IDS, t.weight, 0)) for n, t in batch.items()}
    cases = {
        "image": only(text, lambda name, t: name == "text"),
        "text": only(image, lambda name, t: name == "image"),
        "image ": only(text, first_token),
    }
    assert sum((t.segment != 0).sum() for t in cases["image "].values()) == 1
    with jax.set_mesh(sharding.make_mesh(c, one_device)):
        state, run = first(c), jitted(c)
        gradients = jax.jit(partial(gradients_of, c), compiler_options=QUICK)
        for absent, some in cases.items():
            assert run(state, some)[1]["ok"], absent
            grads = params.paths(gradients(state, some))
            assert all(np.isfinite(x).all() for x in grads.values()), absent
            of_absent = {path: x for path, x in grads.items() if params.users(path, c) == [absent.strip()]}
            assert len(of_absent) > 5
            assert not any(np.asarray(x).any() for x in of_absent.values()), absent
            assert any(np.asarray(x).any() for path, x in grads.items() if path not in of_absent), absent


def gradients_of(c, state, batch):
    trained, frozen = params.split(state.params, optim.trainable(c))
    return step.make_gradients(c, 2)(state, trained, frozen, batch, losses.totals(batch, c))[1]
