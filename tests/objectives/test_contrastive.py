"""The contrastive term against a slow oracle, on devices and in microbatches, and what of a batch it pairs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from mot import batches, optim, sharding
from mot.config import ConfigError, resolve
from mot.data import roles
from mot.model import flops, params, transformer
from mot.objectives import contrastive, losses
from mot.runs import metrics
from mot.train.state import init_state
from mot.train.step import make_gradients, make_step
from tests.oracles import reference
from tests.support import examples, vectors
from tests.support.devices import devices

PARTS = ["tIt", "It", "tI", "t", "tI", "tS", "ItI", "tIS", "It", "tI", "It", "tI"]


def make(kind="infonce", batch=4, arch="mot", accumulate=1, dropout=0.0, **term):
    """Captions and images that are inputs alone; sounds beside them."""
    inputs = dict(image=dict(copies="noised"), sound=dict(drop_rate=0.0))
    c = vectors.tree(arch, budgets=(40, 24, 9), dropout=dropout, **inputs)
    c.streams.image.update(objective="none", width=16)
    c.objective.contrastive = base.contrastive(kind, **(dict(width=8, pairs=4) | term))
    c.data.batch = batch
    c.optim.accumulate = accumulate
    return resolve(c, optim.uncovered)


def documents(c, numbers):
    streams = list(c.streams)
    paired = [streams.index(name) for name in c.objective.contrastive.pools]

    def one(i):
        d = vectors.assign(c, vectors.document(i, PARTS[i % len(PARTS)]))
        return roles.apart(d, paired) if len(paired) > 1 else d

    return [one(i) for i in numbers]


def batch(c, rows=None):
    rows = rows or [[0, 1, 3], [2, 4], [6, 5], [7]] * (c.data.batch // 4)
    rows = [[i + len(PARTS) * (r // 4) for i in row] for r, row in enumerate(rows)]
    found = vectors.pack(c, [documents(c, row) for row in rows])
    batches.check(found)
    return jax.tree.map(np.asarray, found)


def fields(found):
    return {name: {f: np.asarray(x) for f, x in vars(tokens).items()} for name, tokens in found.items()}


def states_of(c, found):
    """Last states by numpy, so that no model is compiled."""
    rng = np.random.default_rng(0)
    streams = [name for name in found if name in c.objective.contrastive.pools]
    return {s: rng.standard_normal((*found[s].token.shape, 16)).astype("f") for s in streams}


def sides(c, heads, states, found):
    output = transformer.Output([], {}, {}, None, states)
    return contrastive.sides({"contrast": heads}, (output, output), found, c)


@pytest.mark.parametrize(
    ("kind", "pool", "skip_equal"),
    [
        ("infonce", "mean", False),
        ("infonce", "last", True),
        ("infonce", f"{vectors.EOS},mean", False),
        ("sigmoid", "last,mean", False),
        pytest.param("sigmoid", "mean", True, marks=pytest.mark.slow),
    ],
)
def test_it_is_the_slow_loss_with_its_gradient(kind, pool, skip_equal):
    c = make(kind, pool=pool, skip_equal=skip_equal)
    found = batch(c)
    text = found["text"]  # two captions of different documents become equal
    same = [np.flatnonzero((text.doc_id[r] == i) & (text.segment[r] != 0)) for r, i in ((1, 2), (1, 4))]
    text.token[1, same[1]] = text.token[1, same[0]]
    states = states_of(c, found)
    heads = vectors.weights(c)["contrast"]

    def ours(states, heads):
        return contrastive.judge(heads, sides(c, heads, states, found), c)

    def theirs(states, heads):
        weights = {s: heads[s]["out"] for s in ("text", "image")} | {"scale": heads["scale"][0]}
        weights["bias"] = heads["bias"][0] if kind == "sigmoid" else 0.0
        pools = c.objective.contrastive.pools
        return reference.contrastive(states, fields(found), pools, weights, kind, skip_equal)

    (got, told), got_grads = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(states, heads)
    want, want_grads = jax.jit(jax.value_and_grad(theirs, (0, 1)))(states, heads)
    np.testing.assert_allclose(got, want, rtol=2e-6)
    assert examples.leaf_error(got_grads, want_grads) < 2e-5
    np.testing.assert_allclose(told.sums["loss"] / told.pairs, got, rtol=1e-6)
    whole = [p for p in reference.parts(states, fields(found), c.objective.contrastive.pools).values() if len(p) == 2]
    assert told.pairs == len(whole) > 4


def gradients(c, found, number):
    with devices(number) as there:
        mesh = sharding.make_mesh(c, there)
        with jax.set_mesh(mesh):
            state = jax.jit(lambda: init_state(c), out_shardings=sharding.replicated(mesh))()
            trained, frozen = params.split(state.params, optim.trainable(c))
            split = sharding.to_global(found, c, mesh)

            def of(trained):
                return make_gradients(c, 2)(state, trained, frozen, split, losses.totals(split, c))

            (loss, sums), grads = jax.jit(of)(trained)
            return jax.device_get((loss, sums["contrastive"], params.paths(grads)))


def assert_alike(a, b):
    np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a[1], b[1])
    for path, want in a[2].items():
        error = np.abs(b[2][path] - want).max() / max(np.abs(want).max(), 1e-6)
        assert error < 2e-5, f"{path}: {error}"
    assert np.abs(a[2]["contrast/text/out"]).max() > 0


@pytest.mark.parametrize("kind", ["infonce", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_devices_and_microbatches_change_nothing_leaf_by_leaf(kind):
    c = make(kind, batch=8, skip_equal=True)
    found = batch(c)
    one = gradients(c, found, 1)
    assert one[1].pairs > 8
    assert_alike(one, gradients(c, found, 8))
    two_parts = dataclasses.replace(c, optim=dataclasses.replace(c.optim, accumulate=4))
    assert_alike(one, gradients(two_parts, found, 2))


def test_a_part_is_paired_with_itself_in_a_pass_of_other_dropout():
    c = make(batch=8, streams="text", dropout=0.3, width=0)
    assert [path for path in params.table(c) if "contrast" in path] == ["contrast/scale"]
    found = batch(c)
    one = gradients(c, found, 1)
    _, told, grads = one
    assert told.pairs == 16  # every document has text
    assert told.left_out == 0
    assert told.sums["gap"] / told.pairs > 0.01  # with one dropout for both there is none
    assert set(told.sums) == {"loss", "temperature", "gap", "accuracy/text/text"}
    assert np.abs(grads["embed/tokens"]).max() > 0
    two_parts = dataclasses.replace(c, optim=dataclasses.replace(c.optim, accumulate=4))
    again = gradients(two_parts, found, 2)
    np.testing.assert_allclose(one[0], again[0], rtol=1e-6)
    for path, want in grads.items():
        assert np.abs(again[2][path] - want).max() <= 3e-5 * max(np.abs(want).max(), 1e-6), path
    with pytest.raises(ConfigError, match=r"parts pass twice and differ in dropout, but model.dropout is 0; write 0.3"):
        make(streams="text")


@pytest.mark.slow
def test_parts_of_rows_on_several_devices_change_nothing():
    c = make(batch=4)
    found = batch(c)
    split = dataclasses.replace(c, mesh=dataclasses.replace(c.mesh, context=2, fsdp=2))
    split = dataclasses.replace(
        split, streams={n: dataclasses.replace(s, budget=s.budget + s.budget % 2) for n, s in c.streams.items()}
    )
    assert_alike(
        gradients(split, batch(split), 1 * 4), gradients(dataclasses.replace(split, mesh=c.mesh), batch(split), 1)
    )
    assert found.keys() == split.streams.keys()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("tIS", min_size=1, max_size=4).filter(lambda x: "tt" not in x), min_size=1, max_size=4))
def test_parts_see_nothing_of_each_other(made):
    c = make()
    c = dataclasses.replace(c, streams={n: dataclasses.replace(s, budget=90) for n, s in c.streams.items()})
    found = [roles.apart(vectors.assign(c, vectors.document(i, x)), [0, 1]) for i, x in enumerate(made)]
    packed = vectors.pack(c, [found])
    batches.check(packed)
    text, image, sound = (packed[name].info for name in ("text", "image", "sound"))
    for a, b in ((text, image), (image, text), (image, sound), (sound, image)):
        assert not batches.visible(a, b).any()
    inside = batches.visible(image, image)[0]
    doc_id = packed["image"].doc_id[0]
    real = packed["image"].segment[0] != 0
    together = (doc_id[:, None] == doc_id) & real[:, None] & real
    np.testing.assert_array_equal(inside | inside.T, together)  # all images of a document are one part


def test_no_id_is_predicted_across_a_border():
    c = make()
    whole = vectors.pack(c, [[vectors.assign(c, vectors.document(1, "tIt"))]])["text"]
    split = vectors.pack(c, [documents(c, [0])])["text"]
    assert (whole.weight > 0).sum() == (split.weight > 0).sum()  # vectors are never predicted, </image> is forced
    c = resolve(contrastive_ids())
    d = examples_document()
    paired = roles.apart(vectors.assign(c, d), [0, 1])
    crossing = np.flatnonzero(np.diff(paired.alone)) + 1
    assert len(crossing) == 2
    assert (paired.weight[crossing] == 0).all()
    assert d.weight[crossing[0]] == 1


def contrastive_ids():
    c = examples.tree("mot")
    c.objective.contrastive = base.contrastive("infonce", width=8, pairs=4)
    return c


def examples_document():
    from mot.data.packing import document

    return document(0, 1, [1, 2, 14, 15, 3], [0, 0, 1, 1, 0], unit=[0, 0, 1, 1, 0])


def test_what_has_no_partner_is_left_out_and_counted():
    c = make()
    heads = vectors.weights(c)["contrast"]
    found = batch(c)
    paired = sides(c, heads, states_of(c, found), found)
    assert paired.there_I.sum() == 6
    assert paired.left_out == 2  # documents 3 and 5 have no image
    few = make(pairs=1)  # rows 0 and 1 hold two documents with an image
    paired = sides(few, heads, states_of(c, found), found)
    assert paired.there_I.sum() == 4
    assert paired.left_out == 2 + 2 * 2
    none = batch(c, [[3], [5], [3], [5]])
    paired = sides(c, heads, states_of(c, none), none)
    (loss, told), slopes = jax.value_and_grad(contrastive.judge, has_aux=True)(heads, paired, c)
    assert loss == told.pairs == 0
    assert all((x == 0).all() for x in jax.tree.leaves(slopes))
    assert metrics.contrastive({"contrastive": told}) == {"contrastive/pairs": 0.0, "contrastive/left_out": 4.0}


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_what_is_hidden_of_a_part_makes_no_other_part_of_it(pool):
    """As where the states of hidden tokens are predicted: these are padding amid what is seen."""
    c = make(pool=pool)
    found = batch(c)
    hides = np.arange(found["image"].segment.shape[1]) % 3 == 1
    found["image"] = found["image"].replace(segment=np.where(hides, 0, found["image"].segment))
    states = states_of(c, found)
    heads = vectors.weights(c)["contrast"]
    paired = sides(c, heads, states, found)
    whole = [p for p in reference.parts(states, fields(found), c.objective.contrastive.pools).values() if len(p) == 2]
    assert paired.there_I.sum() == len(whole) == 6
    assert paired.left_out == 2
    want = np.stack([p["image"] for p in whole]) @ heads["image"]["out"]
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    got = paired.key_IY[np.flatnonzero(paired.there_I)]
    np.testing.assert_allclose(np.sort(got, 0), np.sort(want, 0), rtol=1e-4, atol=1e-6)


def test_padding_may_hold_anything():
    c = make("sigmoid")
    found = batch(c)
    heads, states = vectors.weights(c)["contrast"], states_of(c, found)
    real = {name: (found[name].segment != 0)[..., None] for name in states}

    def loss(states, heads):
        return contrastive.judge(heads, sides(c, heads, states, found), c)[0]

    of = jax.jit(jax.grad(loss, (0, 1)))
    clean, bad = (of({s: np.where(real[s], x, fill) for s, x in states.items()}, heads) for fill in (0, np.nan))
    jax.tree.map(np.testing.assert_array_equal, clean, bad)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(clean))


def test_it_learns_and_its_heads_stay_within_bounds():
    c = make(weight=1.0)
    found = batch(c)
    # CLIP's bound is met from above.
    state = jax.jit(lambda: init_state(c))()
    state.params["contrast"]["scale"] = jnp.full(1, 4.62)
    step = jax.jit(make_step(c, 2))
    for n in range(15):
        state, measured = step(state, found)
        row = metrics.of_step(jax.device_get(measured), c.modalities, ["a", "b"])
        if not n:
            first = row
    assert state.params["contrast"]["scale"] <= contrastive.LARGEST_SCALE
    assert row["contrastive/temperature"] >= 0.00999
    assert row["loss/contrastive"] < first["loss/contrastive"] / 2
    assert row["contrastive/accuracy/text/image"] > first["contrastive/accuracy/text/image"]
    assert {"contrastive/gap", "contrastive/pairs", "contrastive/left_out"} <= row.keys()


def test_flops_of_the_product_and_the_projections_are_counted():
    c = make()
    found = batch(c)
    assert flops.contrasted(found, c) == 6  # as in `test_what_has_no_partner_is_left_out_and_counted`
    assert flops.contrasted(found, make(pairs=1)) == 4
    tokens = {name: t.token.size for name, t in found.items()}
    more = flops.train_step(c, tokens, 0, contrasted=6) - flops.train_step(c, tokens, 0)
    assert more == 3 * (2 * 6 * 16 * 8 * 2 + 2 * 6 * 6 * 8)  # both sides, 16 to 8 wide, and their 36 cosines
    unprojected = make(width=0)
    more = flops.train_step(unprojected, tokens, 0, contrasted=6) - flops.train_step(unprojected, tokens, 0)
    assert more == 3 * 2 * 6 * 6 * 16
    without = dataclasses.replace(
        c, objective=dataclasses.replace(c.objective, contrastive=make("").objective.contrastive)
    )
    assert flops.full_step(c) - flops.full_step(without) == 3 * (2 * 16 * 16 * 8 * 2 + 2 * 16 * 16 * 8)  # 4 rows of 4


def test_scale_and_bias_do_not_decay():
    table = params.table(make("sigmoid"))
    assert {path for path, spec in table.items() if not spec.decay} == {"contrast/scale", "contrast/bias"}
    c = make("sigmoid", temperature=0.05)
    weights = jax.jit(lambda: params.init(params.table(c), 0))()
    np.testing.assert_allclose(np.exp(weights["contrast"]["scale"]), 20, rtol=1e-6)
    assert weights["contrast"]["bias"] == -10

    def moved(weights):
        zeros = jax.tree.map(jnp.zeros_like, weights)
        return optim.make(c).update(zeros, optim.make(c).init(weights), weights, norm=0.0)[0]

    updates = jax.jit(moved)(weights)
    assert (updates["contrast"]["scale"] == 0).all()
    assert (updates["contrast"]["text"]["out"] != 0).any()


def test_off_it_leaves_no_trace():
    c = make("")
    assert not [path for path in params.table(c) if "contrast" in path]

    def told(weights, found):
        output = transformer.forward(weights, found, c)
        noised, Z_M = losses.noised(found, c, 0), losses.totals(found, c)
        return output.states, losses.loss(weights, output, noised, Z_M, c, 2)[1]

    states, sums = jax.eval_shape(told, vectors.weights(c), batch(make()))
    assert states == {}
    assert "contrastive" not in sums
    assert metrics.contrastive(sums) == {}


def test_faults_are_told_together():
    with pytest.raises(ConfigError) as found:
        make("infonse", weight=0.0, pairs=-1, temperature=0.005)
    assert "objective.contrastive.kind: 'infonse'; allowed: '', infonce, sigmoid; did you mean 'infonce'?" in str(
        found.value
    )
    assert "objective.contrastive.temperature: 0.005; must be 0.01 or more; raise it" in str(found.value)
    assert len(found.value.faults) >= 4
    with pytest.raises(ConfigError) as found:
        make(streams="text,picture", pool="max,12")
    told = str(found.value)
    assert "objective.contrastive.streams: 'picture': no such stream; allowed: text, image, sound; choose one" in told
    assert "'max': no such pool of text; allowed: mean, last, or an id of text, 0 to 11" in told
    with pytest.raises(ConfigError, match="'5': no such pool of image; allowed: mean, last; choose one"):
        make(pool="mean,5")
    with pytest.raises(ConfigError, match="must be two streams with a comma between, or one that passes twice"):
        make(streams="text,image,sound")
    with pytest.raises(ConfigError, match="a batch of one pair has no negatives"):
        make(batch=1, pairs=1)
    with pytest.raises(ConfigError, match="it passes through no layer, and has no states to contrast"):
        resolve(vectors_seen_apart())
    with pytest.raises(ConfigError, match="both streams are of vectors; ids alone are compared"):
        make(streams="image,sound", skip_equal=True)


def test_equal_captions_are_known_by_their_ids_in_order():
    c = make()
    found = batch(c)
    text = found["text"]
    text.token[...] = 5
    documents_ = contrastive._documents(found["image"], 4)
    hashed = np.asarray(contrastive._hashed(text, documents_, False)).reshape(4, 4)
    there = np.asarray(documents_.there_BX)
    # Documents 1 and 2 have as many words; 0 and 6 have more of them.
    assert hashed[0, 1] == hashed[1, 0] == hashed[1, 1]
    assert hashed[0, 0] != hashed[0, 1]
    assert there.sum() == 6
    text.token[1, 1:3] = [6, 7]
    swapped = text.replace(token=text.token.copy())
    swapped.token[1, 1:3] = [7, 6]
    a, b = (np.asarray(contrastive._hashed(x, documents_, False))[4] for x in (text, swapped))
    assert a != b


def vectors_seen_apart():
    c = vectors.tree("dense", budgets=(40, 24, 9), image=dict(copies="noised"))
    c.streams.image.update(objective="none", cross_every=1)
    c.objective.contrastive = base.contrastive("infonce", width=8, pairs=4)
    return c
