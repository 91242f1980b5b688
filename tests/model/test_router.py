"""Every router and dispatch against a loop over tokens: outputs, gradients, and what was counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import moe
from mot.config import ConfigError, Experts, resolve
from mot.model import dispatch, kernels, router
from mot.model.experts import ffn_of_experts
from tests.oracles import reference
from tests.support import examples
from tests.support.unwritten import leaves_nan

B, C, D, E, F = 2, 12, 8, 4, 6
ALONE = examples.make().mesh


def spec(**changes):
    return Experts(**moe(**(dict(experts=E, active=1, width=F) | changes)))


SPECS = {
    "top1": spec(),
    "top2 normalised": spec(active=2, normalise=True),
    "all experts, sigmoid": spec(active=E, score="sigmoid"),
    "bias": spec(active=2, score="sigmoid", normalise=True, balance="bias"),
    "groups": spec(score="sigmoid", weight_scale=2.5, groups=2, active_groups=1, balance="bias", balance_loss=0.1),
    "capacity, earliest": spec(active=2, capacity=0.7),
    "capacity, highest": spec(active=2, capacity=0.7, overflow="highest", normalise=True),
    "experts choose": spec(router="expert", score="sigmoid"),
    "experts choose two": spec(router="expert", active=2),
}
PADDING = 2  # tokens of each row


def weights(seed=0, experts=E):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        "router": normal(D, experts),
        "w1": normal(experts, D, F),
        "w3": normal(experts, D, F),
        "w2": normal(experts, F, D),
        "router_bias": 0.3 * normal(experts),
        "causal_in": normal(D, D),
        "causal_out": normal(D, experts),
    }


def traffic(kind, seed=0):
    """Rows, their padding, their positions (out of order in the array), their modalities, and the weights."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((B, C, D)).astype("f"), weights()
    real, modality = np.tile(np.arange(C) < C - PADDING, (B, 1)), rng.integers(0, 2, (B, C))
    if kind == "one hot expert":
        x[..., 0] = 5
        w["router"] = w["router"].at[0].set(jnp.array([5.0, 0, 0, 0]))
    if kind == "an expert without tokens":
        x[..., 0] = 5
        w["router"] = w["router"].at[0].set(jnp.array([-5.0, 0, 0, 0]))
    if kind == "all tokens alike":
        x[:] = x[0, 0]
    if kind == "exact ties":
        w["router"], w["router_bias"] = jnp.zeros((D, E)), jnp.zeros(E)
    if kind == "one token":
        real[:, 1:] = False
    if kind == "no token":
        real[0] = False
    if kind == "one modality":
        modality[:] = 1
    position = np.stack([rng.permutation(C - PADDING).tolist() + list(range(C - PADDING, C)) for _ in range(B)])
    return x, real, position.astype(np.int32), modality, w


KINDS = ("balanced", "one hot expert", "an expert without tokens", "all tokens alike", "exact ties", "one token")
KINDS += ("no token", "one modality")


HOW = [*dispatch.BACKENDS, "gmm"]


@pytest.fixture(autouse=True)
def kernel_that_leaves_nan(monkeypatch):
    """FAULTS 11: in the places that no expert's rows fill, forward and backward."""
    monkeypatch.setitem(kernels._GROUPED, "gmm", leaves_nan)


def route(x_BCD, w, spec, real, position, modality, causal=False):
    traffic = router.Traffic(x_BCD, None, jnp.zeros_like(position), real, position, modality)
    return router.route(traffic, w, spec, 2, causal)


def forward(x_BCD, w, spec, real, position, modality, how, causal=False):
    choice, report = route(x_BCD, w, spec, real, position, modality, causal)
    experts = {name: w[name] for name in ("w1", "w2", "w3")}
    most = router.most_choices(spec, x_BCD.shape[1], causal)
    rows = x_BCD.reshape(-1, x_BCD.shape[-1])
    of_experts = functools.partial(ffn_of_experts, activation="swiglu")
    y_RD, _ = dispatch.apply_experts(of_experts, rows, experts, choice, x_BCD.shape[0], most, how, ALONE)
    return y_RD.reshape(x_BCD.shape), report


G = np.random.default_rng(9).standard_normal((B, C, D)).astype("f")


@functools.cache
def truth(name):
    """For each kind of traffic: the loss, its gradients, and the wanted and found choices of each row."""
    s = SPECS[name]
    read = ("router", "active", "capacity", "overflow", "score", "normalise", "weight_scale", "groups", "active_groups")
    o = {key: getattr(s, key) for key in read}
    scores = jax.jit(lambda x, w: reference.scores(x, w, o))

    @jax.jit
    def loss(x, w, wanted, found):
        return (jnp.stack([reference.routed(x[b], w, wanted[b], found[b], o) for b in range(B)]) * G).sum()

    result = {}
    for kind in KINDS:
        x, real, position, _, w = traffic(kind)
        score = np.asarray(scores(x, w))
        liked = score + np.asarray(w["router_bias"]) if s.balance == "bias" else score
        rows = [reference.choices(score[b], liked[b], real[b], position[b], o) for b in range(B)]
        wanted, found = (np.stack(x) for x in zip(*rows, strict=True))
        result[kind] = (*jax.value_and_grad(loss, (0, 1))(jnp.asarray(x), w, wanted, found), wanted, found)
    return result


LEARNED = ("router", "w1", "w2", "w3")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", SPECS)
def test_routing_equals_a_loop_over_tokens(name, how):
    @jax.jit
    def ours(x, w, real, position, modality):
        y, report = forward(x, w, SPECS[name], real, position, modality, how)
        return (y * G).sum(), (y, report)

    run = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))
    for kind, (want, (want_dx, want_dw), wanted, found) in truth(name).items():
        x, real, position, modality, w = traffic(kind)
        (loss, (y, report)), (dx, dw) = run(x, w, real, position, modality)
        np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-4, err_msg=kind)
        np.testing.assert_allclose(dx, want_dx, atol=1e-5 * max(np.abs(want_dx).max(), 1), err_msg=kind)
        for leaf in LEARNED:
            most = max(np.abs(want_dw[leaf]).max(), 1)
            np.testing.assert_allclose(dw[leaf], want_dw[leaf], atol=1e-5 * most, err_msg=f"{kind} {leaf}")
        np.testing.assert_array_equal(report.load_BME.sum(1), found.sum(1), err_msg=kind)
        np.testing.assert_array_equal(report.wanted_BM.sum(1), wanted.sum((1, 2)), err_msg=kind)
        for m in range(2):
            mine = (modality == m)[..., None] & found
            np.testing.assert_array_equal(report.load_BME[:, m], mine.sum(1), err_msg=kind)
        assert (np.asarray(y)[~real] == 0).all()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["top2 normalised", "capacity, earliest", "experts choose"])
def test_nan_in_padding_changes_nothing(name, how):
    """FAULTS 11: what padding holds is stopped at the door (model.py). What kernels leave unwritten nobody reads."""
    s = SPECS[name]
    x, real, position, modality, w = traffic("balanced")

    def loss(x, w):
        clean = jnp.where(real[..., None], x, 0)
        return (forward(clean, w, s, real, position, modality, how)[0] * G).sum()

    poisoned = np.where(real[..., None], x, np.nan)
    run = jax.jit(jax.value_and_grad(loss, (0, 1)))
    jax.tree.map(np.testing.assert_array_equal, run(poisoned, w), run(x, w))


@pytest.mark.parametrize("how", HOW)
def test_nan_in_empty_places_changes_nothing(how):
    """FAULTS 11: in the padding rows of a grouped matmul, forward and backward."""
    x, real, position, modality, w = traffic("one hot expert")
    choice, _ = route(x, w, SPECS["top1"], real, position, modality)
    layout, _ = dispatch.plan_dispatch(choice, E, B * C, how)
    x_SD = dispatch.permute(jnp.asarray(x.reshape(-1, D)), layout)
    empty_S1 = np.asarray(layout.expert_Z)[:, None] == E
    assert empty_S1.any()
    g_SF = np.random.default_rng(0).standard_normal((len(empty_S1), F)).astype("f")

    def run(x_SD, g_SF):
        y_SF, back = jax.vjp(lambda x, w: dispatch.grouped(x, w, layout, how), x_SD, w["w1"])
        dx_SD, dw_EDF = back(g_SF)
        return jnp.where(empty_S1, 0, y_SF), jnp.where(empty_S1, 0, dx_SD), dw_EDF

    def poison(x):
        return jnp.where(empty_S1, jnp.nan, x)

    jax.tree.map(np.testing.assert_array_equal, run(poison(x_SD), poison(g_SF)), run(x_SD, jnp.asarray(g_SF)))


def test_combine_of_dispatch_is_the_identity():
    x, real, position, modality, w = traffic("balanced")
    choice, _ = route(x, w, SPECS["top2 normalised"], real, position, modality)
    layout, weight_RX = dispatch.plan_dispatch(choice, E, 2 * B * C, "blocked")
    x_SD = dispatch.permute(jnp.asarray(x.reshape(-1, D)), layout)
    y = dispatch.combine(x_SD * dispatch.weights_of_places(weight_RX, layout), layout)
    np.testing.assert_allclose(y, np.where(real[..., None], x, 0).reshape(-1, D), rtol=1e-6)


def influence(s, causal=False):
    """`[C, C]` in document order: does the output of the token at q change with the input of the one at k?"""
    x, real, position, modality, w = traffic("balanced", seed=3)
    run = jax.jit(lambda x: forward(x, w, s, real, position, modality, "einsum", causal)[0])
    before, moved = np.asarray(run(x)), np.zeros((C, C), bool)
    rng = np.random.default_rng(0)
    for k in range(C - PADDING):
        for scale in (3, -3, 10):  # large, so that decisions change
            other = x.copy()
            other[0, k] = scale * rng.standard_normal(D)
            change = (np.asarray(run(other))[0] != before[0]).any(-1)
            moved[position[0], position[0, k]] |= change
    return moved


@pytest.mark.parametrize("name", [n for n in SPECS if SPECS[n].causal])
def test_token_choice_is_causal(name):
    moved = influence(SPECS[name])
    assert not moved[np.triu_indices(C, 1)].any()
    assert np.diag(moved)[: (C - PADDING) // 2].all()  # later ones may find no place


@pytest.mark.parametrize("name", ["capacity, highest", "experts choose", "experts choose two"])
def test_experts_that_choose_and_highest_scores_see_later_tokens_and_their_causal_evaluation_does_not(name):
    assert not SPECS[name].causal
    assert influence(SPECS[name])[:, : C - PADDING][np.triu_indices(C, 1, C - PADDING)].any()
    assert not influence(SPECS[name], causal=True)[np.triu_indices(C, 1)].any()


@pytest.mark.parametrize("name", SPECS)
def test_a_row_does_not_depend_on_the_batchs_other_rows(name):
    x, real, position, modality, w = traffic("balanced")
    run = jax.jit(lambda x: forward(x, w, SPECS[name], real, position, modality, "blocked")[0])
    np.testing.assert_array_equal(run(x)[0], run(np.stack([x[0], 7 * x[1] + 1]))[0])


@pytest.mark.parametrize(("factor", "active", "experts"), [(1.3, 1, 4), (0.9, 1, 5), (1.25, 2, 8), (1.0, 16, 64)])
def test_capacity_is_the_stated_floor(factor, active, experts):
    from fractions import Fraction

    got = router.capacity(spec(experts=experts, active=active), jnp.arange(1001), 1000, factor)
    np.testing.assert_array_equal(got, [int(Fraction(str(factor)) * active * n / experts) for n in range(1001)])


def test_scores_that_are_all_zero_give_no_nan():
    x, real, position, modality, w = traffic("balanced")
    s = spec(active=2, score="sigmoid", normalise=True)
    x = np.abs(x) + 1
    choice, report = route(x, w | {"router": jnp.full((D, E), -1e3)}, s, real, position, modality)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((choice.weight_RX, report)))


def test_the_balance_loss_is_one_where_all_is_even_and_more_where_it_is_not():
    x, real, position, modality, w = traffic("exact ties")
    even = route(x, w, SPECS["all experts, sigmoid"], real, position, modality)[1]
    np.testing.assert_allclose(even.balance_B, real.sum(1), rtol=1e-6)
    x, real, position, modality, w = traffic("one hot expert")
    hot = route(x, w, SPECS["top1"], real, position, modality)[1]
    assert (np.asarray(hot.balance_B) > 2 * real.sum(1)).all()
    np.testing.assert_allclose(hot.tokens_BM.sum(1), real.sum(1))


def test_the_imitators_gradient_reaches_nothing_else():
    x, real, position, modality, w = traffic("balanced")
    s = SPECS["experts choose"]

    def loss(x, w):
        return route(x, w, s, real, position, modality)[1].imitation_B.sum()

    dx, dw = jax.grad(loss, (0, 1))(jnp.asarray(x), w)
    assert (np.asarray(dx) == 0).all()
    for name, g in dw.items():
        assert (np.asarray(g) != 0).any() == name.startswith("causal_"), name


@pytest.mark.usefixtures("optimised")
def test_memory_of_dispatch_grows_with_routed_rows_not_with_experts():
    def temporaries(experts, how="blocked", rows=1024, d=64):
        s = spec(experts=experts, width=F)
        w = jax.eval_shape(lambda: weights(0, experts)) | {
            "router": jax.ShapeDtypeStruct((d, experts), jnp.float32),
            "w1": jax.ShapeDtypeStruct((experts, d, F), jnp.float32),
            "w3": jax.ShapeDtypeStruct((experts, d, F), jnp.float32),
            "w2": jax.ShapeDtypeStruct((experts, F, d), jnp.float32),
        }
        i = jax.ShapeDtypeStruct((4, rows), jnp.int32)
        x, real = jax.ShapeDtypeStruct((4, rows, d), jnp.float32), jax.ShapeDtypeStruct((4, rows), bool)

        def f(x, w, real, position, m):
            return (forward(x, w, s, real, position, m, how)[0] ** 2).sum()

        lowered = jax.jit(jax.grad(f, (0, 1))).lower(x, w, real, i, i)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = temporaries(4), temporaries(32)
    added = 28 * dispatch.BLOCK * 64 * 4  # a block to fill for each further expert, in one [S, D] array
    assert many < few + 12 * added
    assert temporaries(32, "einsum") > 1.3 * temporaries(4, "einsum")


def test_bad_sets_are_refused_with_the_numbers():
    def faults(component="ffn", mesh_expert=1, **changes):
        tree = examples.tree("moe_tc4")
        getattr(tree, component)["text"] = moe(**(dict(experts=4, width=F if component == "ffn" else 0) | changes))
        tree.mesh.expert = mesh_expert
        with pytest.raises(ConfigError) as caught:
            resolve(tree)
        return " ".join(caught.value.faults)

    assert "ffn.text.active: 5; a token passes through 1 to ffn.text.experts = 4" in faults(active=5)
    assert "ffn.text.capacity: 0.2; with 4 experts it must be 0 (dropless) or at least 0.25" in faults(capacity=0.2)
    assert "ffn.text.experts: 4 do not divide among mesh.expert = 3" in faults(mesh_expert=3)
    assert "ffn.text.width: -1; must be 0 or more" in faults(width=-1)
    assert "ffn.text.shared_gate: True, but ffn.text.shared is 0" in faults(shared_gate=True)
    assert "ffn.text.shared: -1; must be 0 or more" in faults(shared=-1)
    assert "ffn.text.router: 'both'; allowed: token, expert" in faults(router="both")
    assert "ffn.text: capacity 1.0, normalise True, balance 'loss', which router 'expert' does not read" in faults(
        router="expert", capacity=1.0, normalise=True, balance="loss"
    )
    assert "attn.text.router, capacity: 'expert', 0.0; a token without a place" in faults("attn", router="expert")
    assert "attn.text.router, capacity: 'token', 1.0; a token without a place" in faults("attn", capacity=1.0)
    assert "attn.text.width: 3; sets of QKV and O have heads" in faults("attn", width=3)
    assert "ffn.text.normalise: True with ffn.text.active = 1" in faults(normalise=True)
    assert "ffn.text.jitter: 1.0; must be at least 0 and below 1" in faults(jitter=1.0)
    assert "ffn.text.balance_rate: 0.1, but ffn.text.balance is 'none'" in faults(balance_rate=0.1)
    assert "ffn.text.balance_loss: 0.1, but ffn.text.balance is 'loss'" in faults(balance="loss", balance_loss=0.1)
    assert "ffn.text.groups: 3; must be 1, or divide ffn.text.experts = 4 into groups of two" in faults(groups=3)
    assert "ffn.text.groups: 4; must be 1, or divide" in faults(groups=4)
    assert "ffn.text.active_groups: 2; must be at most ffn.text.groups = 1" in faults(active_groups=2)
    assert "and hold ffn.text.active = 3 experts, of which a group has 2" in faults(active=3, groups=2)
    assert "ffn.text.weight_scale: 0.0; must be above 0" in faults(weight_scale=0.0)


def test_bad_layers_are_refused():
    def faults(arch="moe_tc4", **model):
        with pytest.raises(ConfigError) as caught:
            examples.make(arch, **model)
        return " ".join(caught.value.faults)

    assert "model.sparse_every: 3 does not divide the 4 layers after the first 0" in faults(layers=4, sparse_every=3)
    assert "model.dense_layers, sparse_every: 2, 1; allowed: 0 to 1" in faults(layers=2, dense_layers=2)
    assert "but no tower has experts" in faults("dense", layers=2, sparse_every=2)
