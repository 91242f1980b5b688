"""Attention mass between streams, against a dense softmax by loops, and where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot.batches import Info
from mot.config import resolve
from mot.measures import attention, states
from mot.model import params
from tests.oracles import reference
from tests.support import examples, vectors
from tests.support.arrays import copies, qkv, random_info


def loops(q, k, info, stream, streams):
    """Mass by key head, uniform mass and queries, token by token."""
    B, T, N, H = q.shape
    K = k.shape[2]
    mass, uniform, queries = np.zeros((K, streams, streams)), np.zeros((streams, streams)), np.zeros(streams)
    for b in range(B):
        see = reference.visible(*(np.asarray(x[b]) for x in info))
        for t in range(T):
            keys = np.flatnonzero(see[t])
            if not len(keys):
                continue
            queries[stream[b, t]] += 1
            for s in keys:
                uniform[stream[b, t], stream[b, s]] += 1 / len(keys)
            for n in range(N):
                score = np.array([q[b, t, n] @ k[b, s, n * K // N] for s in keys], np.float64) / np.sqrt(H)
                p = np.exp(score - score.max())
                for s, share in zip(keys, p / p.sum(), strict=True):
                    mass[n * K // N, stream[b, t], stream[b, s]] += share / (N // K)
    return mass, uniform, queries


@pytest.mark.parametrize("scores", [2**23, 2 * 4 * 37 * 5])
@pytest.mark.parametrize(("N", "K"), [(4, 2), (4, 4), (3, 1)])
def test_mass_is_that_of_a_dense_softmax(monkeypatch, scores, N, K):
    """Packed rows with spans, private tokens and padding; the second size leaves a last chunk that is not full."""
    monkeypatch.setattr(attention, "SCORES", scores)
    T = 37
    q, k, _ = qkv(T, T, N, K)
    info, stream = random_info(3, T), np.random.default_rng(0).integers(0, 3, (2, T))
    found = attention.shares(3 * q, k, info, jnp.asarray(stream), 3)
    for got, want in zip(found, loops(3 * np.asarray(q), np.asarray(k), info, stream, 3), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_equal_scores_have_ratio_1():
    T = 40
    q, k, _ = qkv(T, T)
    stream = jnp.asarray(np.random.default_rng(0).integers(0, 2, (2, T)))
    found = attention.shares(0 * q, k, random_info(0, T), stream, 2)
    np.testing.assert_allclose(found.mass_LKMM, np.broadcast_to(found.uniform_MM, (2, 2, 2)), rtol=1e-5)


def test_memory_is_bounded_by_chunks():
    T = 4096
    shapes = [jax.ShapeDtypeStruct((1, T, 4, 8), "f4"), jax.ShapeDtypeStruct((1, T, 2, 8), "f4")]
    info = Info(*(jax.ShapeDtypeStruct((1, T), kind) for kind in ("i4", "i4", "i4", "bool")))
    stream = jax.ShapeDtypeStruct((1, T), "i4")
    program = jax.jit(lambda *x: attention.shares(*x, 2)).lower(*shapes, info, stream).compile()
    whole = 4 * T * T * 4
    assert program.memory_analysis().temp_size_in_bytes < whole


def told(c, weights, batch):
    found = jax.device_get(jax.jit(lambda w: states.look(w, batch, c, {"it": attention.watch})["it"])(weights))
    return attention.numbers(found, c)


def test_a_model_whose_queries_are_0_looks_evenly():
    c, batch = examples.make("mot", attention="reference"), examples.batch(rows=2)
    flat = params.paths(examples.weights(c))
    flat = {path: 0 * x if path.endswith("/wq") else x for path, x in flat.items()}
    found, arrays = told(c, params.nest(flat), batch)
    assert {name.rpartition("/")[0] for name in found} == {
        f"attention/{a}/{b}" for a in examples.STREAMS for b in examples.STREAMS
    }
    np.testing.assert_allclose([*found.values()], 1, rtol=1e-5)
    assert arrays["share_LKMM"].shape == (2, 2, 2, 2)
    np.testing.assert_allclose(arrays["share_LKMM"].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("arch", ["mot", pytest.param("mot_ffn", marks=pytest.mark.slow)])
def test_tied_towers_look_as_dense_does(arch):
    dense, tied, batch = examples.make("dense"), examples.make(arch), examples.batch(rows=2)
    weights = examples.weights(dense)
    one, _ = told(dense, weights, batch)
    other, _ = told(tied, copies(weights, params.table(tied)), batch)
    assert one == pytest.approx(other, rel=1e-5)
    assert max(abs(x - 1) for x in one.values()) > 0.01


@pytest.mark.parametrize("arch", [pytest.param("dense", marks=pytest.mark.slow), "mot"])
def test_a_models_mass_is_that_of_the_oracles_queries_and_keys(arch):
    """Of one layer, whose queries and keys the oracle makes token by token."""
    c, batch = examples.make(arch, layers=1, attention="reference"), examples.batch(rows=2)
    weights = examples.weights(c)
    flat = params.paths(jax.device_get(weights))
    m = c.model
    tokens = jax.tree.map(lambda *x: np.concatenate(x, 1), *batch.values())
    stream = np.repeat([[0] * 24 + [1] * 24], 2, axis=0)

    def project(b, weight):
        rows = []
        for t, kind in enumerate(stream[b]):
            name = examples.STREAMS[kind]
            x = flat["embed/tokens"][tokens.token[b, t]]
            x = reference.rms(x[None], flat[f"blocks/main/norm/{c.towers.norm[name]}/attn"][0], m.norm_eps)
            tower = f"blocks/main/attn/{c.towers.attn[name]}"
            y = jnp.einsum("td,dnh->tnh", x, flat[f"{tower}/w{weight}"][0])
            y = reference.rms(y, flat[f"{tower}/{weight}_norm"][0], m.norm_eps)
            rows.append(reference.rope(y, tokens.rope_position[b, t], m.rope_theta)[0])
        return np.stack(rows)

    q, k = (np.stack([project(b, weight) for b in range(2)]) for weight in "qk")
    mass, uniform, _ = loops(q, k, tokens.info, stream, 2)
    found, _ = told(c, weights, batch)
    for a, one in enumerate(examples.STREAMS):
        for b, other in enumerate(examples.STREAMS):
            want = mass[:, a, b].mean() / uniform[a, b]
            assert found[f"attention/{one}/{other}/0"] == pytest.approx(want, rel=1e-4)
    assert max(abs(x - 1) for x in found.values()) > 0.01


def test_streams_of_vectors_and_experts_of_attention_are_looked_at_too():
    c = vectors.make("mot", 24, attention="reference")
    found, _ = told(c, vectors.weights(c), vectors.batch(c))
    assert np.isfinite([*found.values()]).all()
    assert "attention/text/image/1" in found
    c = examples.make("learned_mot", attention="reference")
    found, _ = told(c, examples.weights(c), examples.batch(rows=2))
    assert np.isfinite([*found.values()]).all()


def test_queries_and_keys_are_those_after_a_cross_attention():
    c = vectors.tree("dense", image={"copies": "noised"}, layers=1, attention="reference")
    c.streams.image.update(objective="none", cross_every=1)
    c = resolve(c)
    flat = params.paths(vectors.weights(c))
    shut, opened = (
        told(c, params.nest({p: 0 * x + gate if params.is_gate(p) else x for p, x in flat.items()}), vectors.batch(c))
        for gate in (0.0, 5.0)
    )
    name = "attention/text/sound/0"
    assert abs(shut[0][name] - opened[0][name]) > 1e-3


def test_what_is_never_seen_is_absent():
    c = examples.make("dense")
    mass = np.ones((1, 2, 2, 2))
    found, _ = attention.numbers(attention.Mass(mass, np.array([[2.0, 0], [1, 1]]), np.ones(2)), c)
    assert found == {"attention/text/text/0": 0.5, "attention/image/text/0": 1, "attention/image/image/0": 1}
