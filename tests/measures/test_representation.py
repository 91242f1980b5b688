"""Gap, CKA, linear probe and components: what is known of clouds beforehand, and slow oracles in numpy."""

import functools
import itertools

import jax
import numpy as np
import pytest

from mot.measures import representation, states
from mot.measures.representation import Cloud
from tests.support import examples, vectors


def look(weights, batch, c, tokens):
    watching = {"it": functools.partial(representation.watch, tokens=tokens)}
    return states.look(weights, batch, c, watching)["it"]


def cloud(n=64, d=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def turned(x, seed=1):
    """Rotated, scaled and moved."""
    q, _ = np.linalg.qr(cloud(x.shape[1], x.shape[1], seed))
    return 3 * x @ q + 5


# --- known answers ---------------------------------------------------------------------------------------------------


def test_the_gap_of_identical_clouds_is_0():
    unit = cloud() / np.linalg.norm(cloud(), axis=1, keepdims=True)
    assert representation.gap(unit.mean(0), unit.mean(0)) == pytest.approx((0, 1))


def test_the_gap_of_opposite_points_is_2():
    assert representation.gap(np.array([0.0, 1]), np.array([0.0, -1])) == pytest.approx((2, -1))
    assert representation.gap(np.array([1.0, 0]), np.array([0.0, 1])) == pytest.approx((2**0.5, 0))


@pytest.mark.parametrize("measure", [representation.cka, representation.cka_debiased])
def test_cka_sees_no_rotation_no_scale_and_no_shift(measure):
    x = cloud()
    assert measure(x, x) == pytest.approx(1)
    assert measure(x, turned(x)) == pytest.approx(1)
    assert measure(x, x * np.logspace(-3, 3, 8)) < 0.9


def test_of_few_pairs_of_wide_states_only_the_debiased_cka_is_near_0():
    x, y = cloud(20, 200, 0), cloud(20, 200, 1)
    assert representation.cka(x, y) > 0.8
    assert abs(representation.cka_debiased(x, y)) < 0.2


def test_a_cloud_without_variance_has_no_cka():
    assert np.isnan(representation.cka(np.ones((9, 3)), cloud(9, 3)))
    assert np.isnan(representation.cka_debiased(np.ones((9, 3)), cloud(9, 3)))


def documents(n):
    return np.arange(n) // 4


def test_a_linear_probe_tells_separated_clouds():
    x = np.concatenate([cloud(), cloud(seed=1) + 20])
    assert representation.linear(x, np.repeat([0, 1], 64), documents(128)) == 1


def test_a_linear_probe_cannot_tell_what_is_alike():
    x = cloud(800)
    modality = np.random.default_rng(2).integers(0, 2, 800)
    assert representation.linear(x, modality, documents(800)) == pytest.approx(0.5, abs=0.08)


def test_a_linear_probe_is_judged_on_documents_that_it_has_not_seen():
    """Each document has a mark of its own by which its modality could be learnt by heart."""
    document = np.repeat(np.arange(60), 10)
    x = np.eye(60)[document] + 0.01 * cloud(600, 60)
    modality = np.random.default_rng(0).integers(0, 2, 60)[document]
    assert representation.linear(x, modality, document) < 0.75
    assert representation.linear(x, modality, np.arange(600)) == 1  # as if each token were a document


def test_a_linear_probe_needs_both_modalities_in_both_halves():
    x, modality = cloud(8), np.repeat([0, 1], 4)
    assert representation.linear(x, modality, np.repeat([0, 1], 4)) is None


def test_components_are_those_of_a_singular_value_decomposition():
    x = cloud(50) * np.logspace(0, 2, 8)
    points, explained = representation.components(x)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(u * s)[:, :2], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(explained, (s**2 / (s**2).sum())[:2], rtol=1e-6)


# --- oracles ---------------------------------------------------------------------------------------------------------


def test_cka_is_that_of_features():
    """1905.00414, equation of section 3, which sums over features in place of pairs."""
    x, y = cloud(30, 5), cloud(30, 7, 1)
    x, y = x - x.mean(0), y - y.mean(0)
    want = np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert representation.cka(x + 3, y - 2) == pytest.approx(want)


def test_unbiased_hsic_is_a_mean_over_all_different_indices():
    """Song et al. 2012: of k_ij (l_ij + l_qr - 2 l_iq)."""
    x, y = cloud(7, 3), cloud(7, 4, 1)
    k, l = x @ x.T, y @ y.T
    found = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(7), 4)]
    assert representation._hsic(k, l) == pytest.approx(np.mean(found))


def whole(c, batch, weights):
    """Residuals `[L, B, T, D]` by position, and each token's modality and document, by loops."""
    found = jax.device_get(jax.jit(lambda w: representation.residuals(w, batch, c))(weights))
    B = next(iter(batch.values())).token.shape[0]
    parts = [x.reshape(len(x), B, -1, x.shape[-1]) for x in found]
    names = list(batch)
    position = np.concatenate([batch[name].position for name in names], axis=1)
    segment = np.take_along_axis(
        np.concatenate([batch[name].segment for name in names], axis=1), np.argsort(position, axis=1), axis=1
    )
    kind = np.concatenate([np.full(batch[name].position.shape, i) for i, name in enumerate(names)], axis=1)
    kind = np.take_along_axis(kind, np.argsort(position, axis=1), axis=1)
    if len(parts) == 1:  # merged, in document order
        return parts[0], kind, segment
    x = np.concatenate(parts, axis=2)  # in the order of streams
    order = np.argsort(position, axis=1)[None, ..., None]
    return np.take_along_axis(x, order, axis=2), kind, segment


@pytest.mark.parametrize("arch", ["dense", pytest.param("mot", marks=pytest.mark.slow)])
def test_clouds_hold_what_loops_over_tokens_find(arch):
    c, batch = examples.make(arch, attention="reference"), examples.batch(rows=3)
    weights = examples.weights(c)
    states, kind, segment = whole(c, batch, weights)
    clouds = representation.joined([jax.jit(lambda w: look(w, batch, c, 1000))(weights)])
    for m, found in enumerate(clouds):
        own = [(b, t) for b, t in np.ndindex(kind.shape) if kind[b, t] == m and segment[b, t]]
        assert found.count == len(own)
        every = np.stack([states[:, b, t] for b, t in own], axis=1)
        want = (every / np.linalg.norm(every, axis=-1, keepdims=True)).sum(1)
        np.testing.assert_allclose(found.unit_LD, want, atol=1e-4)
        # All of them are sampled, as there are fewer than may be.
        assert found.x_LRD.shape == every.shape
        np.testing.assert_allclose(np.sort(found.x_LRD, axis=1), np.sort(every, axis=1), atol=1e-5)
        assert sorted(np.unique(found.document_R, return_counts=True)[1]) == sorted(
            np.unique([100 * b + segment[b, t] for b, t in own], return_counts=True)[1]
        )
    pairs = []
    for b, s in itertools.product(range(3), range(1, segment.max() + 1)):
        both = [(segment[b] == s) & (kind[b] == m) for m in (0, 1)]
        if all(x.any() for x in both):
            pairs.append(np.concatenate([states[-1, b][x].mean(0) for x in both]))
    there = (clouds[0].count_P > 0) & (clouds[1].count_P > 0)
    got = [x.sum_LPD[-1][there] / x.count_P[there, None] for x in clouds]
    got = np.concatenate(got, axis=1)
    assert len(pairs) == there.sum() > 5
    np.testing.assert_allclose(got[np.argsort(got[:, 0])], sorted(pairs, key=lambda x: x[0]), atol=1e-5)


def test_a_sample_is_bounded_and_the_same_tokens_whatever_the_weights():
    c, batch = examples.make("dense", attention="reference"), examples.batch(rows=3)
    of_weights = jax.jit(lambda w: look(w, batch, c, 5))
    one = of_weights(examples.weights(c))
    other = of_weights(jax.tree.map(lambda x: 2 * x, examples.weights(c)))
    for a, b in zip(one, other, strict=True):
        assert a.x_LRD.shape[1] == 5
        np.testing.assert_array_equal(a.document_R, b.document_R)


# --- what is told ----------------------------------------------------------------------------------------------------


def made(x, document, mean, seed=0):
    """A cloud of one layer whose documents have these means."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return Cloud(unit.sum(0)[None], len(x), x[None], document, mean[None], np.ones(len(mean)))


def test_equal_clouds_have_no_gap_and_cka_1():
    c, x = examples.make("dense"), cloud()
    found, arrays = representation.numbers([made(x, documents(64), x[:20]), made(x, documents(64), x[:20])], c)
    assert found["representation/gap/text/image/0"] == pytest.approx(0)
    assert found["representation/cosine/text/image/0"] == pytest.approx(1)
    assert found["representation/cka/text/image/0"] == pytest.approx(1)
    assert found["representation/pairs/text/image"] == 20
    assert arrays["points_LR2"].shape == (1, 128, 2)
    assert arrays["modality_R"].tolist() == ["text"] * 64 + ["image"] * 64


def test_modalities_of_other_widths_have_cka_alone():
    x, y = cloud(), cloud(d=5)
    c = examples.make("dense")
    found, arrays = representation.numbers([made(x, documents(64), x[:20]), made(y, documents(64), y[:20])], c)
    assert {name.split("/")[1] for name in found} == {"pairs", "cka", "cka_debiased"}
    assert not arrays


def test_of_too_few_pairs_there_is_no_cka():
    x = cloud()
    c = examples.make("dense")
    found, _ = representation.numbers([made(x, documents(64), x[:4]), made(x, documents(64), x[:4])], c)
    assert found["representation/pairs/text/image"] == 4
    assert not [name for name in found if "/cka" in name]


def test_an_absent_modality_is_left_out():
    x = cloud()
    absent = made(x, documents(64), x)._replace(count=0, x_LRD=x[None, :0], document_R=documents(0))
    found, _ = representation.numbers([made(x, documents(64), x), absent], examples.make("dense"))
    assert not found


@pytest.mark.parametrize("width", [pytest.param(16, marks=pytest.mark.slow), 24])
def test_streams_of_vectors_are_looked_at_too(width):
    c = vectors.make("mot", width, attention="reference")
    batch = vectors.batch(c)
    clouds = representation.joined([jax.jit(lambda w: look(w, batch, c, 16))(vectors.weights(c))])
    found, _ = representation.numbers(clouds, c)
    assert np.isfinite([*found.values()]).all()
    assert ("representation/gap/text/image/0" in found) == (width == 16)
    assert "representation/gap/text/sound/1" in found
