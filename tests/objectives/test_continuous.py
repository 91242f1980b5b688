"""Vectors in the stack: noise, losses, masks, conditions and walls, against oracles and exact facts."""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import batches, checkpoint, optim, sharding
from mot.config import resolve
from mot.model import attention, flash, params, transformer
from mot.objectives import denoising, losses
from mot.objectives import x as x_objective
from mot.train import restore, state
from mot.train.step import make_step, running_means
from tests.oracles import reference
from tests.support import examples, vectors

WALL = (("image", "text"),)
QUICK = dict(attention="reference")  # to compile; so are two groups of streams, and code that is not optimised
compiled = partial(
    jax.jit, compiler_options=dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)
)


def join(batch, *names):
    """Fields of all streams, end to end."""
    return [np.concatenate([np.asarray(getattr(t, name)) for t in batch.values()], axis=1) for name in names]


@lru_cache
def judged(arch, **choices):
    """A configuration, and its compiled loss with sums and gradients: (weights, batch, step)."""
    c = vectors.make(arch, **QUICK, **choices)

    def loss(weights, batch, step):
        given = losses.noised(batch, c, step)
        output = transformer.forward(weights, given.batch, c)
        return losses.loss(weights, output, given, losses.totals(batch, c), c, 2)

    return c, compiled(jax.value_and_grad(loss, has_aux=True))


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attends():
    """Each backend and the oracle: value and gradients of q, k and v; one compilation each."""
    shape = (1, 69, 4, 8)
    q, g = (jax.random.normal(jax.random.key(i), shape) for i in range(2))
    k, v = (jax.random.normal(jax.random.key(i), (1, 69, 2, 8)) for i in (2, 3))

    def oracle(q, k, v, see):
        return reference.attention(q[0], k[0], v[0], see)[None]

    def ours(how):
        return lambda q, k, v, info: attention.attend(q, k, v, info, info, how)

    def one(f):
        return compiled(jax.value_and_grad(lambda q, k, v, x: (f(q, k, v, x) * g).sum(), (0, 1, 2)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "SHORT", 16)  # five chunks, so that pairs of them are left out
        yield [partial(one(f), q, k, v) for f in (ours("reference"), ours("chunked"), oracle)]


@pytest.mark.parametrize(
    "kind", [dict(), dict(blocks="prefix"), dict(blocks="document", image=dict(copies="noised")), dict(drop_rate=True)]
)
def test_every_mask_equals_the_whole_matrix(attends, kind):
    tree = vectors.tree(image=kind.get("image"))
    tree.data.blocks = kind.get("blocks", "units")
    c = resolve(tree)
    batch = vectors.batch(c, 1) if "drop_rate" in kind else vectors.pack(c, [MIXED(c)])
    batches.check(batch)
    info = batches.Info(*join(batch, "position", "segment", "span", "private"))
    see = reference.visible(*(x[0] for x in info))
    assert (np.asarray(batches.visible(info, info))[0] == see).all()
    by_reference, by_chunks, oracle = attends
    want, want_grads = oracle(jnp.asarray(see))
    for f in (by_reference, by_chunks):
        got, got_grads = f(info)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        for a, b in zip(got_grads, want_grads, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def MIXED(c):
    parts = ("tIt", "ISt", "tS")
    return [vectors.assign(c, vectors.document(i, p, i % 2)) for i, p in enumerate(parts)]


# --- who feels whom --------------------------------------------------------------------------------------------------


def influence(c, weights, batch):
    """`[T, T]` of the first row, streams end to end: how much the output of token q changes with what enters at k.

    Every id gets a row of the embedding of its own; vectors enter by their values.
    """
    ids = batch["text"].token.shape[1]
    table = weights["embed"]["tokens"][np.asarray(batch["text"].token[0])]
    relabelled = batch | {"text": batch["text"].replace(token=np.arange(ids)[None])}
    values = {name: jnp.asarray(t.value) for name, t in batch.items() if name != "text"}

    @compiled
    @partial(jax.grad, argnums=(0, 1))
    def row(table, values, q):
        entering = {n: t.replace(value=values[n]) if n in values else t for n, t in relabelled.items()}
        output = transformer.forward(weights | {"embed": {"tokens": table}}, entering, c)
        ((h_RD, _),) = output.hidden
        every = [h_RD[None], *(output.latents[name] for name in values)]
        return jnp.concatenate([(x * (1 + jnp.arange(x.shape[-1]))[None, None]).sum(-1) for x in every], axis=1)[0, q]

    def size(grads):
        return [np.abs(g).sum(-1).reshape(-1) for g in (grads[0], *(grads[1][n] for n in values))]

    T = c.length
    return np.stack([np.concatenate(size(row(table, values, q))) for q in range(T)])


@pytest.mark.parametrize(("arch", "width"), [("dense", 16), ("mot", 12)])
def test_tokens_feel_exactly_whom_they_may_see(arch, width):
    """Two layers: q feels k if a chain of visible pairs leads from one to the other, and to the bit nothing else."""
    c = vectors.make(arch, width)
    batch = vectors.batch(c, 1)
    found = influence(c, vectors.weights(c), batch)
    position, segment, span, private = (x[0] for x in join(batch, "position", "segment", "span", "private"))
    see = reference.visible(position, segment, span, private)
    real = segment != 0
    chain = (see | np.eye(len(see), dtype=bool)).astype(int)
    reach = (chain @ chain > 0) & real[:, None] & real[None]
    found = np.where(real[:, None] & real[None], found, 0)
    assert ((found > 0) == reach).all()
    # What that says of roles, in words.
    own = span[:, None] == span[None]
    assert private.any()
    assert (found[:, private][~own[:, private]] == 0).all(), "a private noised copy is felt in its own span alone"
    assert (found[private][:, private][own[private][:, private]] > 0).all()
    later = position[:, None] < position[None]
    together = own & (span != 0)[:, None] & (segment[:, None] == segment[None])
    assert (found[later & ~together] == 0).all(), "nothing earlier feels what is later"
    lone = segment == segment[batch["text"].position.shape[1] + batch["image"].position.shape[1]]  # the first sound
    assert 0 < lone.sum() == 3
    assert (found[np.ix_(lone, ~lone)] == 0).all()
    assert (found[np.ix_(~lone, lone)] == 0).all()
    assert (found[np.ix_(lone, lone)] > 0).all()


# --- the oracle ------------------------------------------------------------------------------------------------------


def oracle(c, flat, batch):
    """Hidden states and predictions of the first row, by stream in its order."""
    m, s = c.model, c.streams
    time = {name: x.diffusion.time if x.diffuses else None for name, x in s.items()}
    walls = [(w.queries, w.keys) for w in c.towers.stop_gradients]
    o = dict(
        layers=m.layers, eps=m.norm_eps, theta=m.rope_theta, norm=m.norm, qk_norm=m.qk_norm, time=time, walls=walls
    )
    o["clean"] = [name for name, x in s.items() if x.diffusion.time_of_clean]
    if m.rope_sections:
        o["sections"] = (m.rope_sections, m.rope_interleaved)
    stream = np.repeat(np.arange(len(batch)), [t.token.shape[1] for t in batch.values()])
    ends = np.cumsum([0, *(t.token.shape[1] for t in batch.values())])
    names = ("token", "position", "segment", "span", "private", "noise", "rope_position", "place")
    row = {n: x[0] for n, x in zip(names, join(batch, *names), strict=True)}
    where = row["rope_position"] if m.rope_sections else row["rope_position"][:, 0]
    row |= {"stream": stream, "rope_position": where, "value": {}}
    for i, (name, t) in enumerate(batch.items()):
        if s[name].latent:
            row["value"][name] = jnp.zeros((c.length, s[name].latent)).at[ends[i] : ends[i + 1]].set(t.value[0])
    towers = {x: getattr(c.towers, x) for x in ("attn", "ffn", "norm")}
    found = reference.states(flat, row, towers, list(batch), o)
    mine = {name: found[name][ends[i] : ends[i + 1]] for i, name in enumerate(batch)}
    return {n: _leaves(flat, n, x) if s[n].diffuses else x for n, x in mine.items()}


def _leaves(flat, stream, x):
    bias = flat.get(f"latent/{stream}/out_bias")
    return x @ flat[f"latent/{stream}/out"] + (0 if bias is None else bias[None])


def ours(c, weights, batch):
    output, found = transformer.forward(weights, batch, c), {}
    for h_RD, tokens in output.hidden:
        found["text"] = h_RD if tokens.token.shape[1] == c.streams["text"].budget else None
    return found | {name: x[0] for name, x in output.latents.items()}


SAME = dict(image=dict(time="add"), sound=dict(time="norm"))
# As BAGEL and Cosmos 3 have it.
DIT = dict(time="add", time_features="dit")


@pytest.mark.parametrize(
    ("arch", "choices"),
    [
        ("mot", dict(width=12, walls=WALL, norm="post", layers=1)),
        ("dense", dict(qk_norm="layer", layers=1, **SAME)),
        (
            "mot_attn_ffn",
            dict(scan=True, remat="dots"),
        ),  # norms of one tower, of which one group is modulated
        ("mot", dict(layers=1, table=3, rope_sections=(2, 1, 1), **SAME)),
        (
            "mot",
            dict(
                layers=1,
                width=12,
                image=DIT | dict(time_of_clean=True),
                sound=DIT | dict(time="norm"),
                entry=dict(bias=True),
            ),
        ),
        ("mot", dict(layers=1, width=12, image=dict(time="mlp"))),
    ],
)
def test_grouped_streams_equal_the_per_token_oracle(arch, choices):
    c = vectors.make(arch, **choices)
    batch = dict(vectors.batch(c, 1))

    def level(t):
        return t.replace(noise=t.noise * np.where(t.unit % 2, 0.6, 0.3).astype("f"))

    batch = {name: level(t) for name, t in batch.items()}
    weights = vectors.weights(c)
    rng = np.random.default_rng(0)
    g = {n: rng.standard_normal((t.token.shape[1], t.value.shape[-1] or 16)) for n, t in batch.items()}
    g = {n: np.where(np.asarray(batch[n].segment[0] != 0)[:, None], x, 0).astype("f") for n, x in g.items()}

    def total(f):
        return lambda w: (lambda found: (sum((found[n] * g[n]).sum() for n in g), found))(f(c, w, batch))

    def grad(f):
        return compiled(jax.value_and_grad(total(f), has_aux=True))

    (got, states), got_grads = grad(ours)(weights)
    (want, want_states), want_grads = grad(oracle)(params.paths(weights))
    assert abs(got - want) < 1e-4 * max(abs(want), 1)
    for name, x in states.items():
        real = np.asarray(batch[name].segment[0] != 0)
        np.testing.assert_allclose(x[real], want_states[name][real], atol=2e-4, err_msg=name)
    got_grads = params.paths(got_grads)
    for path in want_grads:
        error = examples.leaf_error(got_grads[path], want_grads[path])
        assert error < 5e-4, (path, error)
    used = [p for p in got_grads if "head" not in p and "causal" not in p]
    assert not [p for p in used if not np.asarray(got_grads[p]).any()], "every parameter has a gradient"


# --- walls -----------------------------------------------------------------------------------------------------------


def alone_judged(batch, name):
    """The batch in which only one modality has weight."""
    return {n: t.replace(weight=np.asarray(t.weight) * (n == name)) for n, t in batch.items()}


def test_walls_stop_gradients_exactly_and_change_nothing_else():
    (c, open_), (_, shut) = judged("loo_text"), judged("loo_text", walls=WALL)
    weights, batch = vectors.weights(c), vectors.batch(c)

    def text(grads):
        return {p: np.asarray(g) for p, g in params.paths(grads).items() if "/text/" in p or "embed" in p}

    ((a, sums), without), ((b, walled_sums), walled) = (f(weights, batch, 0) for f in (open_, shut))
    np.testing.assert_allclose(b, a, rtol=1e-6)
    np.testing.assert_allclose(walled_sums["loss_sum"], sums["loss_sum"], rtol=1e-6)
    of_image = alone_judged(batch, "image")
    without, walled = (text(f(weights, of_image, 0)[1]) for f in (open_, shut))
    assert len(walled) > 10
    for path, g in walled.items():
        assert (g == 0).all(), path
        assert without[path].any() != path.startswith("final_norm"), path
    # The loss of words that read no vectors goes where it went; of others also that through images' queries stops.
    words = alone_judged(batch, "text")
    segment, position = join({n: t for n, t in batch.items() if n != "text"}, "segment", "position")
    of = batch["text"]
    reads = (segment[:, None] == of.segment[..., None]) & (position[:, None] < of.position[..., None])
    words["text"] = of.replace(weight=np.where(reads.any(-1), 0, of.weight))
    assert words["text"].weight.sum() > 8
    without, walled = (f(weights, words, 0)[1] for f in (open_, shut))
    assert examples.leaf_error(walled, without) < 1e-5
    assert any(g.any() for g in text(walled).values())


@pytest.fixture(scope="module")
def steps():
    """Two training steps with text frozen behind a wall and images' loss centred, for accumulate 1 and 2."""
    found = {}
    for accumulate in (1, 2):
        tree = vectors.tree("loo_text", walls=WALL, image=dict(loss_centre=0.5), **QUICK)
        frozen = dict(match="/text/|embed|head", lr=0.0, decay=0.0)
        tree.optim.update(accumulate=accumulate, rules=(frozen, dict(match=".*", lr=1.0, decay=0.1)))
        c = resolve(tree, optim.uncovered)
        rows = [MIXED(c), *([d] for d in MIXED(c)[:2]), [vectors.alone_at(c, vectors.document(7, "tS"))]]
        weights = vectors.weights(c)
        trained = params.split(weights, optim.trainable(c))[0]
        no_mean = {"image": jnp.zeros(())}
        now = state.State(weights, optim.make(c).init(trained), {}, jnp.zeros((), jnp.int32), no_mean)
        batch = vectors.pack(c, rows)
        step, after = compiled(make_step(c, 2)), []
        for _ in range(2):
            now, measured = step(now, batch)
            after.append((now, measured))
        found[accumulate] = weights, after
        if accumulate == 1:
            found |= {"config": c, "step": step, "batch": batch}
    return found


def test_a_frozen_tower_stays_bit_equal(steps):
    before, after = steps[1]
    before, (now, measured) = params.paths(before), after[-1]
    assert measured["ok"]
    for path, x in params.paths(now.params).items():
        frozen = "/text/" in path or path.split("/")[0] in ("embed", "head")
        assert np.array_equal(before[path], x) == frozen, path


def test_accumulation_equals_the_whole_batch(steps):
    (_, whole), (_, parts) = steps[1], steps[2]
    (a, measured_a), (b, measured_b) = whole[0], parts[0]
    assert examples.leaf_error(jax.tree.leaves(b.opt[1].mu), jax.tree.leaves(a.opt[1].mu)) < 1e-4
    np.testing.assert_allclose(measured_a["loss"], measured_b["loss"], rtol=1e-5)
    np.testing.assert_allclose(measured_a["sums"]["loss_sum"], measured_b["sums"]["loss_sum"], rtol=1e-5)
    np.testing.assert_array_equal(measured_a["sums"]["weight"], measured_b["sums"]["weight"])
    for (x, _), (y, _) in zip(whole, parts, strict=True):
        np.testing.assert_allclose(x.means["image"], y.means["image"], rtol=1e-5)


def test_the_running_mean_centres_the_loss(steps):
    _, ((first, one), (second, two)) = steps[1]
    mse = [
        float(m["sums"]["streams"]["image"]["loss_sum"] / m["sums"]["streams"]["image"]["weight"]) for m in (one, two)
    ]
    np.testing.assert_allclose(first.means["image"], mse[0], rtol=1e-6)
    np.testing.assert_allclose(second.means["image"], 0.99 * mse[0] + 0.01 * mse[1], rtol=1e-6)
    # The first loss weighs as it is, the second 0.5 / mean; of each modality the mean, weighed.
    for measured, centred in ((one, 1), (two, 0.5 / mse[0])):
        nats, weight = (np.asarray(measured["sums"][x]).sum(1) for x in ("loss_sum", "weight"))
        z = measured["loss"] - (np.array([0, 5 * centred, 0.5]) * nats / weight).sum()
        assert 0 <= z - nats[0] / weight[0] < 0.1 * z  # text, with its z-loss


def test_a_mean_begins_with_the_first_loss_and_stays_where_a_stream_is_absent():
    means = {"new": 0.0, "old": 2.0, "absent": 2.0}
    sums = {name: {"loss_sum": 12.0, "weight": 4.0} for name in ("new", "old")}
    after = running_means(jax.tree.map(jnp.float32, means), sums | {"absent": {"loss_sum": 0.0, "weight": 0.0}})
    assert after == pytest.approx({"new": 3.0, "old": 2.01, "absent": 2.0})


def test_a_saved_state_goes_on_bit_for_bit_running_means_too(steps, tmp_path, one_device):
    c, step, batch = steps["config"], steps["step"], steps["batch"]
    _, ((first, _), (second, _)) = steps[1]
    checkpoint.save(tmp_path / "checkpoints", 1, state.trees(first), vars(checkpoint.Position(step=1)), 1)
    found, position = restore.start(c, tmp_path, sharding.one_device(one_device))
    assert position.step == 1
    assert found.means["image"] == first.means["image"] > 0
    after, _ = step(jax.tree.map(np.asarray, found), batch)
    jax.tree.map(np.testing.assert_array_equal, after, second)


# --- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["dense", "moe_tc4"])
def test_losses_do_not_depend_on_how_rows_are_packed(arch):
    c, f = judged(arch)
    weights = vectors.weights(c)
    docs = [*MIXED(c), vectors.alone_at(c, vectors.document(7, "S"))]
    ways = [
        [[d] for d in docs],
        [[docs[1], docs[3]], [docs[2], docs[0]], [], []],
        [[], [docs[2]], [docs[3], docs[0], docs[1]], []],
    ]
    found = [f(weights, vectors.pack(c, rows), 5) for rows in ways]
    (loss, sums), grads = found[0]
    assert (np.asarray(sums["weight"]).sum(1) > 0).all()
    for (other, others_sums), others_grads in found[1:]:
        np.testing.assert_allclose(other, loss, rtol=1e-5)
        for key in ("loss_sum", "weight"):
            np.testing.assert_allclose(others_sums[key], sums[key], rtol=2e-5, atol=1e-6)
        assert examples.leaf_error(others_grads, grads) < 1e-4


# --- noise and losses ------------------------------------------------------------------------------------------------

C = vectors.make()
noised = compiled(lambda batch, step: losses.noised(batch, C, step))


def by_unit(batch, given, stream):
    """{(seed, private): (noise [n], values [n, P], target [n, P])} of a stream's units."""
    tokens, found = batch[stream], {}
    for b, r in zip(*np.nonzero(tokens.segment), strict=True):
        key = (int(tokens.unit_seed[b, r]), bool(tokens.private[b, r]))
        parts = given.batch[stream].noise[b, r], given.batch[stream].value[b, r], given.target[stream][b, r]
        found.setdefault(key, []).append(parts)
    return {key: [np.stack(x) for x in zip(*parts, strict=True)] for key, parts in found.items()}


def test_noise_is_of_a_unit_and_a_step_wherever_it_lies():
    docs = [*MIXED(C), vectors.assign(C, vectors.document(9, "I"))]
    together, apart = vectors.pack(C, [docs, []]), vectors.pack(C, [[docs[3], docs[1]], [docs[2], docs[0]]])
    assert {n: t.token.shape for n, t in together.items()} == {n: t.token.shape for n, t in apart.items()}
    given = {name: noised(b, 5) for name, b in (("together", together), ("apart", apart))}
    levels = []
    for stream in ("image", "sound"):
        a, b = by_unit(together, given["together"], stream), by_unit(apart, given["apart"], stream)
        assert a.keys() == b.keys()
        assert len(a) == {"image": 6, "sound": 2}[stream]
        for key, (t, value, target) in a.items():
            for x, y in zip((t, value, target), b[key], strict=True):
                np.testing.assert_array_equal(x, y)
            assert len(set(t)) == 1, "one level a unit"
            levels += [t[0]] if t[0] else []
            assert (t[0] == 0) == (stream == "image" and not key[1]), "clean copies alone have none"
    assert len(set(levels)) == len(levels) == 5, "units differ"
    later = noised(together, 6).batch
    for stream in ("image", "sound"):
        t = given["together"].batch[stream].noise
        assert (np.asarray(t != later[stream].noise) == np.asarray(t > 0)).all(), "steps differ"
    assert (np.asarray(given["together"].batch["sound"].noise) <= together["sound"].noise).all(), "the cap holds"


def test_what_is_noised_and_what_is_to_be_predicted():
    batch = vectors.batch(C)
    given = noised(batch, 2)
    for stream, predicts in (("image", "flow"), ("sound", "x")):
        x, t = batch[stream].value, given.batch[stream].noise
        clean = np.asarray(t == 0)
        np.testing.assert_array_equal(given.batch[stream].value[clean], x[clean])
        noise = (np.asarray(given.batch[stream].value) - (1 - t[..., None]) * x) / np.where(t > 0, t, 1)[..., None]
        want = noise - x if predicts == "flow" else x
        np.testing.assert_allclose(given.target[stream][~clean], want[~clean], atol=1e-4)
        real = ~clean & (np.asarray(batch[stream].segment) != 0)
        assert abs(noise[real].mean()) < 0.6
        assert 0.5 < noise[real].std() < 1.5
    np.testing.assert_array_equal(given.batch["text"].token, batch["text"].token)


def test_the_loss_is_the_squared_error_by_hand():
    batch, rng = vectors.batch(C), np.random.default_rng(0)
    given, Z = noised(batch, 2), losses.totals(batch, C)
    predicted = {n: rng.standard_normal(batch[n].value.shape).astype("f") for n in ("image", "sound")}
    want = {}
    for m, (name, p) in enumerate(predicted.items(), 1):
        total, nats, weight = 0.0, np.zeros(2), np.zeros(2)
        for b, r in zip(*np.nonzero(batch[name].weight), strict=True):
            square = ((p[b, r] - given.target[name][b, r]) ** 2).mean()
            t = float(given.batch[name].noise[b, r])
            nats[batch[name].source[b, r]] += square * (1 / max(t, x_objective.LEAST_T) ** 2 if name == "sound" else 1)
            weight[batch[name].source[b, r]] += 1
        total = {"image": 5.0, "sound": 0.5}[name] * nats.sum() / weight.sum()
        loss, sums = denoising.loss(name, p, given.batch[name], given.target[name], Z, C, 2)
        np.testing.assert_allclose(loss, total, rtol=1e-5)
        np.testing.assert_allclose(sums["loss_sum"][m], nats, rtol=1e-5)
        np.testing.assert_array_equal(sums["weight"][m], weight)
        assert (np.delete(sums["loss_sum"], m, 0) == 0).all()
        want[name] = weight.sum()
    words = sum((t.weight * (n == "text")).sum() for n, t in batch.items())
    np.testing.assert_array_equal(Z, [words, want["image"], want["sound"]])
    every = dataclasses.replace(C, objective=dataclasses.replace(C.objective, per="all"))
    np.testing.assert_array_equal(losses.totals(batch, every), [words + sum(want.values())] * 3)


def test_nan_in_paddings_vectors_changes_nothing():
    """FAULTS 11: in padding's vectors."""
    c, f = judged("dense")
    batch, weights = vectors.batch(c), vectors.weights(c)

    def fill(t):
        return t.replace(value=np.where((t.segment == 0)[..., None], np.nan, t.value))

    poisoned = {name: fill(t) for name, t in batch.items()}
    assert all(np.isnan(poisoned[name].value).any() for name in ("image", "sound"))

    # Four rows as in the packing test: nothing is compiled anew.
    def four(batch):
        return jax.tree.map(lambda x: np.concatenate([x, x]), batch)

    jax.tree.map(np.testing.assert_array_equal, f(weights, four(batch), 0), f(weights, four(poisoned), 0))


def test_an_absent_modality_of_vectors_gives_zero_and_stays_finite():
    """FAULTS 9: with vectors."""
    c, f = judged("dense")
    rows = [[vectors.assign(c, vectors.document(1, "tt"))], [], [], []]
    (loss, sums), grads = f(vectors.weights(c), vectors.pack(c, rows), 0)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert (np.asarray(sums["weight"])[1:] == 0).all()
    for path, g in params.paths(grads).items():
        assert not (path.startswith("latent/") and np.asarray(g).any()), path
