"""One target for all modalities' losses, against plain numbers, in the real step, and through a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import checkpoint, optim, sharding
from mot.config import resolve
from mot.objectives import balance, latent
from mot.train import restore, state
from mot.train.step import make_step
from tests.support import examples, vectors

DECAY = 0.9


def make(common_target=DECAY, accumulate=1):
    tree = vectors.tree("mot", layers=1)
    tree.objective.common_target = common_target
    tree.optim.accumulate = accumulate
    return resolve(tree)


def reference(losses, lambdas):
    """The mean and the factors before each step, in plain numbers; None where a modality is absent."""
    target, own, before = 0.0, [0.0] * len(lambdas), []
    for of_step in losses:
        before.append([target / mean if mean else 1.0 for mean in own])
        there = [m for m, x in enumerate(of_step) if x is not None]
        mean = sum(lambdas[m] * of_step[m] for m in there) / sum(lambdas[m] for m in there)
        target = DECAY * target + (1 - DECAY) * mean if target else mean
        for m in there:
            own[m] = DECAY * own[m] + (1 - DECAY) * of_step[m] if own[m] else of_step[m]
    return target, own, before


def test_means_and_factors_are_those_of_plain_numbers():
    c = make()
    losses = [(4.0, 0.5, None), (3.0, 0.25, 2.0), (None, 0.2, 1.5)]
    found, factors = balance.first(c), []
    for of_step in losses:
        factors.append(np.asarray(balance.factors(found, c)))
        weight_MO = np.array([[0, 0] if x is None else [3.0, 1.0] for x in of_step], np.float32)
        loss_MO = np.array([[0, 0] if x is None else [2 * x, 2 * x] for x in of_step], np.float32)
        found = balance.after(found, jnp.asarray(loss_MO), jnp.asarray(weight_MO), c)
    target, own, expected = reference(losses, [1.0, 5.0, 0.5])
    np.testing.assert_allclose(found["target"], target, rtol=1e-6)
    np.testing.assert_allclose([found["own"][m] for m in c.modalities], own, rtol=1e-6)
    np.testing.assert_allclose(factors, expected, rtol=1e-6)


def steps(c, batch, n=2):
    weights = vectors.weights(c)
    opt = optim.make(c).init(weights)
    now = state.State(weights, opt, {}, jnp.zeros((), jnp.int32), {}, {}, balance.first(c))
    step, after = jax.jit(make_step(c, 2)), []
    for _ in range(n):
        now, measured = step(now, batch)
        after.append((now, measured))
    return after


@pytest.fixture(scope="module")
def trained():
    batch = vectors.batch(make())
    return batch, steps(make(), batch)


def modality_losses(measured):
    return np.asarray(measured["sums"]["loss_sum"]).sum(1) / np.asarray(measured["sums"]["weight"]).sum(1)


def test_the_second_steps_losses_are_scaled_to_the_target(trained):
    """As `objective` says it: the sum over modalities of lambda times the loss, scaled, and the z-loss of text."""
    _, ((_, one), (now, two)) = trained
    lambdas = np.array([1.0, 5.0, 0.5])
    first, second = modality_losses(one), modality_losses(two)
    target = (lambdas * first).sum() / lambdas.sum()
    z = two["loss"] - (lambdas * second * target / first).sum()
    assert 0 <= z < 0.05 * two["loss"]
    np.testing.assert_allclose(now.balance["own"]["image"], DECAY * first[1] + (1 - DECAY) * second[1], rtol=1e-5)


def test_what_keeps_states_apart_is_scaled_with_their_prediction(monkeypatch):
    """Three times the loss of a modality is three times its SIGReg, too: what it weighs beside the loss stays."""
    tree = vectors.tree("mot", layers=1)
    tree.streams.image.objective = "latent"
    tree.streams.image.prediction.update(targets="own", sigreg=0.5, slices=4)
    c = resolve(tree)
    tokens = vectors.batch(c)["image"]
    states = jnp.asarray(np.random.default_rng(0).standard_normal((*tokens.unit.shape, 4)), jnp.float32)
    monkeypatch.setattr(latent, "of_tokens", lambda *_: jnp.asarray(tokens.weight))

    def loss(factor):
        factor_M = jnp.where(jnp.arange(3) == c.modalities.index("image"), factor, 1.0)
        return latent.loss("image", {}, states, tokens, states, jnp.ones(3) / factor_M, c, 2, 0, factor_M)[0]

    np.testing.assert_allclose(loss(3.0), 3 * loss(1.0), rtol=1e-6)


def test_accumulation_equals_the_whole_batch(trained):
    batch, whole = trained
    parts = steps(make(accumulate=2), batch)
    for (a, one), (b, two) in zip(whole, parts, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a.balance, b.balance)
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-4)


def test_without_a_target_nothing_is_kept_and_nothing_changes():
    c = make(0.0)
    assert balance.first(c) == {}
    assert (balance.factors({}, c) == 1).all()
    assert "balance" not in state.trees(jax.eval_shape(lambda: state.init_state(c)))["opt"]


def test_the_means_go_on_from_a_checkpoint(trained, tmp_path, one_device):
    _, ((first, _), _) = trained
    checkpoint.save(tmp_path / "checkpoints", 1, state.trees(first), vars(checkpoint.Position(step=1)), 1)
    found, _ = restore.start(make(), tmp_path, sharding.one_device(one_device))
    jax.tree.map(np.testing.assert_array_equal, found.balance, first.balance)
    assert examples.leaf_error(found.params, first.params) == 0
