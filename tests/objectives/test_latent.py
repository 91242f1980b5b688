"""Prediction of hidden states: masks, the loss and its gradient against oracles, and what a collapse looks like."""

import dataclasses
import zlib
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from mot import batches, optim
from mot.config import ConfigError, resolve
from mot.data import packing, sources
from mot.model import flops, params, predictor, transformer
from mot.objectives import latent, losses
from mot.runs import metrics
from mot.runs.log import counted
from mot.train.state import State, init_state
from mot.train.step import make_step
from tests.oracles import reference
from tests.support import examples, vectors

compiled = partial(
    jax.jit, compiler_options=dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)
)
STEP = 3
FORMS = {"ema": dict(targets="ema"), "own": dict(targets="own", sigreg=0.2, slices=8)}


def tree(form="ema", copies="noised", budgets=(36, 24, 12), **model):
    """Images whose hidden parts are predicted, and sounds that are noised as ever."""
    c = vectors.tree("mot", 12, budgets, attention="reference", layers=1, **model)
    c.streams.image.objective = "latent"
    c.streams.image.diffusion.copies = copies
    c.streams.image.prediction.update(columns=2, layers=1, width=8, ffn=12, **FORMS[form])
    c.optim.ema = 0.9
    return c


@cache
def made(form="ema", copies="noised"):
    """A configuration, and its compiled loss with sums and gradients: (weights, those that see units whole, batch)."""
    c = resolve(tree(form, copies))

    def loss(weights, whole, batch):
        given = losses.noised(batch, c, STEP, weights, whole)
        output = transformer.forward(weights, given.batch, c)
        return losses.loss(weights, output, given, losses.totals(batch, c), c, 2)

    return c, compiled(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


# --- masks -----------------------------------------------------------------------------------------------------------


def units(sizes, seed=0, budget=64):
    """A row of units of images of these many tokens, each in a document of its own."""
    documents = []
    for i, n in enumerate(sizes):
        stream, unit = [0] + [1] * n, [0] + [1] * n
        documents.append(
            packing.document(0, 100 * seed + i, [0] * (n + 1), stream, {1: np.zeros((n, 3))}, unit=unit, span=unit)
        )
    return packing.pack([documents], ["text", "image"], [len(sizes), budget], [0, 3])["image"]


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    columns=st.integers(1, 6),
    blocks=st.integers(1, 5),
    scale=st.sampled_from([(0.15, 0.2), (0.1, 0.9), (0.5, 0.5)]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25, deadline=None)
def test_masks_are_the_oracles_blocks(sizes, columns, blocks, scale, seed):
    p = dataclasses.replace(
        resolve(tree()).streams["image"].prediction,
        columns=columns,
        blocks=blocks,
        least_block=scale[0],
        most_block=scale[1],
    )
    tokens = units(sizes, seed)
    key = jax.random.key(seed)
    found = jax.tree.map(np.asarray, latent.masks(tokens, p, key))
    begin = 0
    for n in sizes:
        context, target = (set(np.flatnonzero(x[0, begin : begin + n]).tolist()) for x in found)
        draws = jax.random.uniform(jax.random.fold_in(key, tokens.unit_seed[0, begin]), (4 * (blocks + 1),))
        want = reference.blocks(n, columns, np.asarray(draws).reshape(-1, 4), vars(p))
        assert (context, target) == want
        assert not context & target
        assert context, "something is always seen"
        assert bool(target) == (n > 1 and bool(want[1]))
        begin += n
    assert not any(x[0, begin:].any() for x in found), "padding is neither"


def test_masks_depend_on_unit_and_step_alone():
    p = resolve(tree()).streams["image"].prediction
    alone, among = units([12], 5), units([12, 7], 5)
    keys = jax.random.key(0), jax.random.key(1)
    one, other, later = (latent.masks(t, p, k) for t, k in ((alone, keys[0]), (among, keys[0]), (alone, keys[1])))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a[0, :12], b[0, :12])
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(one, later, strict=True))


def test_blocks_are_as_large_as_they_should_be():
    """I-JEPA's numbers on its grid: targets take 15 to 20 % each, and the context is most of what they leave."""
    p = dataclasses.replace(resolve(tree()).streams["image"].prediction, columns=14)
    one = dataclasses.replace(p, blocks=1)
    shares, left = [], []
    for seed in range(20):
        tokens = units([196], seed, 196)
        shares.append(np.asarray(latent.masks(tokens, one, jax.random.key(7)).target).mean())
        left.append(np.asarray(latent.masks(tokens, p, jax.random.key(7)).context).mean())
    assert 0.13 < min(shares) < 0.16 < 0.18 < max(shares) < 0.22  # but for rounding to whole patches
    assert 0.3 < np.mean(left) < 0.7


def test_what_is_hidden_is_padding_and_a_unit_weighs_what_it_did():
    c, _ = made()
    batch = vectors.batch(c)
    before, after = batch["image"], losses.noised(batch, c, STEP).batch["image"]
    seen, target = (np.asarray(x) for x in (after.segment != 0, after.weight > 0))
    real = before.segment != 0
    assert not (seen & target).any()
    assert (seen | target)[real].mean() > 0.5
    assert not (seen | target)[~real].any()
    for row in range(len(real)):
        for unit in np.unique(before.unit[row][real[row]]):
            mine = before.unit[row] == unit
            np.testing.assert_allclose(after.weight[row][mine].sum(), before.weight[row][mine].sum(), rtol=1e-6)
    np.testing.assert_array_equal(losses.noised(batch, c, STEP).batch["text"].segment, batch["text"].segment)


# --- the oracle ------------------------------------------------------------------------------------------------------

NAMES = ("token", "position", "segment", "span", "private", "noise", "rope_position")


def states_of_row(c, flat, batch, there):
    """The oracle's states of the tokens of a row that are `there`, by stream: {place in the stream: [D]}."""
    m = c.model
    time = {name: x.diffusion.time if x.diffuses else None for name, x in c.streams.items()}
    o = dict(layers=m.layers, eps=m.norm_eps, theta=m.rope_theta, norm=m.norm, qk_norm=m.qk_norm, time=time)
    stream, place = (
        np.concatenate(x) for x in zip(*((np.full(n, i), np.arange(n)) for i, n in sizes(batch)), strict=True)
    )
    keep = np.concatenate([there[name] for name in batch])
    row = {n: np.concatenate([np.asarray(getattr(t, n))[0] for t in batch.values()])[keep] for n in NAMES}
    row |= {"stream": stream[keep], "rope_position": row["rope_position"][:, 0], "value": {}}
    for i, (name, t) in enumerate(batch.items()):
        if c.streams[name].latent:
            value = np.zeros((len(stream), c.streams[name].latent), "f")
            value[stream == i] = t.value[0]
            row["value"][name] = jnp.asarray(value[keep])
    towers = {x: getattr(c.towers, x) for x in ("attn", "ffn", "norm")}
    found = reference.states(flat, row, towers, list(batch), o)
    return {
        name: {int(place[keep][j]): found[name][j] for j in np.flatnonzero(row["stream"] == i)}
        for i, name in enumerate(batch)
    }


def sizes(batch):
    return [(i, t.token.shape[1]) for i, t in enumerate(batch.values())]


def oracle(c, flat, whole_flat, batch, given):
    """The first row's part of the loss that is of images, as it is before it is divided by Z. `given` is the batch as
    the model has it, for its masks, which other tests hold.
    """
    p = c.streams["image"].prediction
    image = given.batch["image"]
    real = {name: np.asarray(t.segment[0] != 0) for name, t in batch.items()}
    seen = real | {"image": np.asarray(image.segment[0] != 0)}
    weight = np.asarray(image.weight[0])
    # What is hidden is taken out of the row, which is run as any other.
    context = states_of_row(c, flat, given.batch, seen)["image"]
    noised = given.batch | {"image": batch["image"]}
    whole = states_of_row(c, flat if p.targets == "own" else whole_flat, noised, real)["image"]
    m = c.model
    o = dict(layers=p.layers, eps=m.norm_eps, theta=m.rope_theta, norm=m.norm, qk_norm=m.qk_norm)
    unit = np.asarray(batch["image"].unit[0])
    position = np.asarray(batch["image"].rope_position[0, :, 0])
    copy = np.asarray(batch["image"].private[0]) == (c.streams["image"].copies == 2)
    predicted = reference.predicted(flat, "image", context, seen["image"] & copy, weight > 0, unit, position, o)
    total = 0.0
    for t, y in predicted.items():
        want = whole[t]
        if p.targets == "ema":
            want = reference.layer(want, jnp.ones(()), jnp.zeros(()), latent.NORM_EPS)
            total += weight[t] * reference.smooth_l1(y - want).mean()
        else:
            total += weight[t] * ((y - want) ** 2).mean()
    return total, jnp.stack([whole[t] for t in sorted(whole)])


@pytest.mark.parametrize(("form", "copies"), [("ema", "both"), ("own", "noised")])
def test_loss_and_gradients_equal_the_oracle(form, copies):
    c, judged = made(form, copies)
    batch = vectors.batch(c, 1)
    batch = {name: t.replace(weight=t.weight * (name == "image")) for name, t in batch.items()}
    weights = vectors.weights(c)
    whole = jax.tree.map(lambda x: x * 1.1, weights)
    (loss, sums), (grads, whole_grads) = judged(weights, whole, batch)
    p = c.streams["image"].prediction
    Z = float(batch["image"].weight.sum())
    directions = _directions(c, p.slices) if p.sigreg else None
    given = jax.device_get(losses.noised(batch, c, STEP))

    @compiled
    @jax.value_and_grad
    def want(weights):
        total, states = oracle(c, params.paths(weights), params.paths(whole), batch, given)
        result = 5.0 * (1 - p.sigreg) * total / Z
        return result + (5.0 * p.sigreg * reference.sigreg(states, directions) if p.sigreg else 0)

    wanted, wanted_grads = want(weights)
    np.testing.assert_allclose(loss, wanted, rtol=2e-4)
    found, other = params.paths(grads), params.paths(wanted_grads)
    for path, g in other.items():
        if np.abs(g).max() > 1e-6:
            assert examples.leaf_error(found[path], g) < 2e-3, path
    assert all(np.asarray(found[path]).any() for path in found if path.startswith(("predictor/", "latent/image")))
    assert not any(np.asarray(g).any() for g in params.paths(whole_grads).values()), "an average gets no gradient"
    np.testing.assert_allclose(np.asarray(sums["weight"]).sum(), Z, rtol=1e-6)


def test_what_has_no_weight_has_no_loss_and_no_sigreg():
    """As where the gradients of one modality are measured by themselves."""
    c, judged = made("own")
    batch = {name: t.replace(weight=0 * t.weight) for name, t in vectors.batch(c, 1).items()}
    weights = vectors.weights(c)
    (loss, _), (grads, _) = judged(weights, weights, batch)
    assert loss == 0
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


def _directions(c, slices):
    key = jax.random.fold_in(jax.random.key(c.model.seed), zlib.crc32(b"sigreg"))
    D = c.streams["image"].width
    x = np.asarray(jax.random.normal(jax.random.fold_in(key, STEP), (D * slices,))).reshape(D, slices)
    return x / np.linalg.norm(x, axis=0)


def test_nothing_hidden_reaches_the_prediction():
    """What lies in a hidden patch changes the loss by its target alone, which gives no gradient."""
    c, _ = made()
    weights, batch = vectors.weights(c), vectors.batch(c)

    @compiled
    @jax.grad
    def of_values(value_BCP):
        entering = batch | {"image": batch["image"].replace(value=value_BCP)}
        given = losses.noised(entering, c, STEP, weights)
        output = transformer.forward(weights, given.batch, c)
        return losses.loss(weights, output, given, losses.totals(batch, c), c, 2)[0]

    felt = np.abs(of_values(jnp.asarray(batch["image"].value))).sum(-1) > 0
    given = losses.noised(batch, c, STEP).batch["image"]
    seen = np.asarray(given.segment != 0)
    assert not felt[~seen].any()
    assert felt[seen].mean() > 0.5  # but for units of which nothing is a target


def test_a_clean_copy_tells_the_predictor_nothing():
    c = resolve(tree("ema", "both"))
    weights, image = vectors.weights(c), losses.noised(vectors.batch(c), c, STEP).batch["image"]
    is_target = np.asarray(image.weight > 0)
    state = np.random.default_rng(0).standard_normal((*is_target.shape, 12)).astype("f")
    of = jax.jit(lambda state: predictor.predict(weights, "image", state, image, is_target, c))
    found = [np.asarray(of(np.where(image.private[..., None], state, by * state)))[is_target] for by in (1, 5)]
    assert len(found[0]) > 0
    np.testing.assert_array_equal(*found)


def test_the_predictors_row_is_its_stream_as_kernels_want_it(monkeypatch):
    """They take a key's position for its index."""
    c = resolve(tree())
    weights, image = vectors.weights(c), vectors.batch(c)["image"]
    rows = []
    join = predictor.joint.join
    monkeypatch.setattr(predictor.joint, "join", lambda *x: rows.append(join(*x)) or rows[-1])

    @jax.jit
    def position(state):
        predictor.predict(weights, "image", state, image, image.weight > 0, c)
        return rows[-1].k.position

    found = position(jnp.zeros((*image.token.shape, 12)))
    assert (np.asarray(image.position[0]) != np.asarray(found[0])).any()
    np.testing.assert_array_equal(found, np.broadcast_to(np.arange(found.shape[1]), found.shape))


# --- SIGReg and collapse ---------------------------------------------------------------------------------------------


def test_sigreg_is_low_for_a_gaussian_alone():
    rng = np.random.default_rng(0)
    real = np.ones((4, 64), bool)
    real[:, 60:] = False
    key = jax.random.key(0)

    def statistic(x):
        return float(latent.sigreg(jnp.asarray(np.where(real[..., None], x, np.nan), jnp.float32), real, 64, key))

    gauss = rng.standard_normal((4, 64, 16))
    good = statistic(gauss)
    assert 0 < good < 2
    for worse in (0 * gauss, 2 * gauss, gauss + 1, gauss * (np.arange(16) < 2), np.sign(gauss[..., :1]) * np.ones(16)):
        assert statistic(worse) > 5 * good


def test_a_unit_in_two_copies_counts_once(monkeypatch):
    """N states that lie there twice would make SIGReg, which grows with their number, twice as strong."""
    c = resolve(tree("own", "both"))
    tokens = vectors.batch(c)["image"]
    assert tokens.private.any()
    states = np.random.default_rng(0).standard_normal((*tokens.unit.shape, 12)).astype("f")
    monkeypatch.setattr(latent, "of_tokens", lambda *_: jnp.zeros(tokens.unit.shape))
    target = jnp.asarray(np.where(tokens.private[..., None], np.nan, states))  # what is not counted may hold anything
    total, _, spread = latent.loss("image", {}, target, tokens, target, jnp.ones(3), c, 2, STEP, jnp.ones(3))
    assert np.isfinite(total)
    assert 0.5 < spread["std"] < 1.5


def test_spread_tells_alike_states_from_others():
    rng = np.random.default_rng(0)
    real = np.arange(50)[None] < 40
    x = np.where(real[..., None], rng.standard_normal((1, 50, 8)), np.nan)
    line = np.where(real[..., None], rng.standard_normal((1, 50, 1)) * np.ones(8), np.nan)
    found = [latent.spread(jnp.asarray(y, jnp.float32), real) for y in (x, line, 0 * x + 3)]
    centred = x[real] - x[real].mean(0)
    values = np.linalg.eigvalsh(centred.T @ centred / 40)
    np.testing.assert_allclose(found[0]["rank"], values.sum() ** 2 / (values**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(found[0]["std"], np.sqrt(values.mean()), rtol=1e-4)
    assert found[1]["rank"] == pytest.approx(1, abs=1e-4)
    assert found[2]["std"] < 1e-5
    rows = [metrics.spread({"spread": {"image": jax.tree.map(lambda v: 2 * v, one)}}) for one in found]
    assert rows[0]["states/image/std"] == pytest.approx(float(found[0]["std"]))
    assert [metrics.collapsed(row) for row in rows] == [[], ["image"], ["image"]]


# --- steps -----------------------------------------------------------------------------------------------------------


def test_a_steps_average_sees_and_comes_to_rest():
    """Two steps: targets come from the average, whose decay rises to 1; microbatches add up to the batch."""
    after = {}
    for accumulate in (1, 2):
        t = tree()
        t.optim.update(accumulate=accumulate, ema=0.5, ema_end=1.0, warmup=0)
        t.run.steps = 2
        c = resolve(t, optim.uncovered)
        weights = vectors.weights(c)
        docs = [[vectors.assign(c, vectors.document(i, parts))] for i, parts in enumerate(("tIt", "It", "tI", "IS"))]
        batch = vectors.pack(c, docs)
        start = jax.eval_shape(lambda c=c: init_state(c))
        state = State(weights, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), start.opt), weights, 0, {})
        step = compiled(make_step(c, 2))
        one, first = step(state, batch)
        two, _ = step(one, batch)
        after[accumulate] = first
        path = "predictor/image/in"
        moved = [params.paths(x)[path] for x in (weights, one.params, one.ema, two.params, two.ema)]
        np.testing.assert_allclose(moved[2], (moved[0] + moved[1]) / 2, rtol=1e-5)
        np.testing.assert_allclose(moved[4], 0.75 * moved[2] + 0.25 * moved[3], rtol=1e-5)
    np.testing.assert_allclose(after[1]["loss"], after[2]["loss"], rtol=1e-5)
    np.testing.assert_allclose(after[1]["grad_norm"], after[2]["grad_norm"], rtol=1e-4)
    row = metrics.of_step(after[2], c.modalities, ["a", "b"])
    assert 0 < row["states/image/std"] <= 1
    assert "grad_norm/predictor" in row


def test_own_states_are_the_models_though_it_has_an_average():
    """An average that is kept to be evaluated has no part in it, and SIGReg has its gradient."""
    c = resolve(tree("own"), optim.uncovered)
    weights, batch = vectors.weights(c), vectors.batch(c)
    start = jax.eval_shape(lambda: init_state(c))
    opt = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), start.opt)
    step = compiled(make_step(c, 2))
    longer = jax.tree.map(lambda x: 1.5 * x, weights)
    norms = [step(State(weights, opt, average, 0, {}), batch)[1]["grad_norm"] for average in (weights, longer)]
    assert norms[0] == norms[1] > 0


def test_a_run_without_it_has_none_of_it():
    c = vectors.make()
    batch = vectors.batch(c)
    assert not [path for path in params.table(c) if "predictor" in path]
    given = losses.noised(batch, c, STEP, {})
    output = jax.eval_shape(lambda w: transformer.forward(w, given.batch, c), vectors.weights(c))
    assert output.latents["image"].shape[-1] == 3


def test_parameters_and_flops_of_the_predictor_are_counted():
    c = resolve(tree())
    rows = {path: spec for path, spec in params.table(c).items() if path.startswith("predictor/image/")}
    D, narrow, A, F = 12, 8, 4 * 8, 12
    K = 2 * 8
    matrices = 2 * D * narrow + narrow * (2 * A + 2 * K) + 3 * narrow * F
    assert params.count(rows) == matrices + narrow + narrow + 2 * narrow + 2 * 8  # hidden, norms, and those of q and k
    tokens = {"text": 0, "image": 10, "sound": 0}
    trunk = flops.matmul_weights(c)["image"] - matrices
    assert flops.train_step(c, tokens, 0) == 2 * 10 * (4 * trunk + 3 * matrices)
    # Its layer's scores and weighted values, forward and twice as much backward.
    assert flops.train_step(c, tokens, 0, {"image": 50}) == 2 * 10 * (4 * trunk + 3 * matrices) + 3 * 2 * 2 * A * 50
    own = resolve(tree("own"))
    assert flops.train_step(own, tokens, 0) == 2 * 10 * (6 * trunk + 3 * matrices)
    twice = tree(dropout=0.1)  # what is contrasted with itself passes once more; the predictor and whole units do not
    twice.objective.contrastive = base.contrastive("infonce", streams="text")
    assert flops.train_step(resolve(twice), tokens, 0) == 2 * 10 * (7 * trunk + 3 * matrices)
    assert params.users("predictor/image/blocks/main/attn/image/wq", c) == ["image"]
    assert params.part("predictor/image/final_norm") == "predictor"


def test_the_predictors_pairs_are_those_within_a_copy_of_a_unit():
    c = resolve(tree("ema", "both"))
    batch = vectors.batch(c)
    image, want = batch["image"], 0
    for row in range(len(image.unit)):
        unit, private = image.unit[row], image.private[row]
        want += ((unit[:, None] == unit) & (private[:, None] == private) & (unit > 0)).sum()
    assert flops.within_units(batch, c) == {"image": want}
    assert counted(batch, c).tolist()[-3:] == [flops.pairs(batch, c), 0, want]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(blocks=0), "streams.image.prediction.blocks: 0; must be above 0"),
        (dict(layers=0), "streams.image.prediction.layers: 0; must be above 0 and at most 10,000; raise it"),
        (dict(layers=10_001), "streams.image.prediction.layers: 10001; must be above 0 and at most 10,000; lower it"),
        (dict(least_block=0.0), "streams.image.prediction.least_block: 0.0; must be above 0 and below 1; raise it"),
        (dict(most_block=1.0), "streams.image.prediction.most_block: 1.0; must be above 0 and below 1; lower it"),
        (dict(least_block=0.5), "least_block: 0.5, above streams.image.prediction.most_block = 0.2; exchange them"),
        (dict(targets="own"), "streams.image.prediction.sigreg: 0.0 with targets 'own'"),
        (dict(targets="teacher"), "streams.image.prediction.targets: 'teacher'; allowed: ema, own"),
    ],
)
def test_bad_predictions_are_named_once(changes, says):
    t = tree()
    t.streams.image.prediction.update(changes)
    with pytest.raises(ConfigError) as caught:
        resolve(t)
    (fault,) = caught.value.faults
    assert says in fault


def test_blocks_are_cut_along_the_datas_rows():
    def told(columns, shape, **more):
        t = tree()
        t.streams.image.prediction.columns = columns
        about = dict(tokenizers=dict(image=dict(width=3, shape=shape, digest="x", **more)))
        found = sources._stream_faults("image", resolve(t).streams["image"], "photos", about, ids=True)
        return [fault for fault in found if "columns" in fault]

    assert told(4, (6, 4), tokens=24) == told(1, (6, 4), tokens=24) == told(1, (6, 4)) == told(5, ()) == []
    (fault,) = told(2, (6, 4), tokens=24)
    assert fault == ("streams.image.prediction.columns: 2; a row of its units has 4 tokens; write 4, or 1 (a sequence)")
    (fault,) = told(4, (6, 4))
    assert "its units have rows of their own, of up to 4 tokens" in fault
    assert any(
        "prediction.columns: 2; a row of its units has 4 tokens" in fault for fault in sources.faults(resolve(tree()))
    )


def test_an_average_is_needed_where_its_states_are_predicted():
    t = tree()
    t.optim.ema = 0.0
    t.optim.ema_end = 1.0
    with pytest.raises(ConfigError) as caught:
        resolve(t)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["optim.ema", "optim.ema_end"]


def test_total_in_unit_adds_up_a_copy_of_a_unit():
    c, _ = made("ema", "both")
    tokens = vectors.batch(c)["image"]
    x = np.arange(tokens.unit.size, dtype="f").reshape(tokens.unit.shape)
    found = np.asarray(batches.total_in_unit(jnp.asarray(x), tokens))
    for row in range(len(x)):
        for unit in np.unique(tokens.unit[row][tokens.unit[row] > 0]):
            for private in (False, True):
                mine = (tokens.unit[row] == unit) & (np.asarray(tokens.private[row]) == private)
                assert (found[row][mine] == x[row][mine].sum()).all()
