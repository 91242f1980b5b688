"""Without the extras: what a user is told who asks for a kernel that is not there. The kernels: tests/plan."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot.batches import Info, visible
from mot.errors import UserError
from mot.model import kernels
from tests.support.arrays import qkv, row_of_units


@pytest.fixture(autouse=True)
def _absent(monkeypatch):
    """As in the core's environment, also where tests/plan's is used."""
    monkeypatch.setitem(sys.modules, "tokamax", None)
    monkeypatch.setitem(sys.modules, "tokamax._src", None)


INFO = Info(*(jnp.ones((2, 128), dtype) for dtype in (int, int, int, bool)))


@pytest.mark.parametrize("private", [0, 64])
def test_splash_without_its_extra_tells_what_to_install(private):
    with pytest.raises(UserError, match=r"tokamax's, and tokamax.* is not installed.*extra 'tpu'.*chunked"):
        kernels.splash(*qkv(128, 128), kernels.splash_calls(INFO, INFO, private, False, 32))


@pytest.mark.parametrize("how", ["triton", "mosaic"])
def test_gpu_attention_without_its_extra_tells_what_to_install(how):
    with pytest.raises(UserError, match=r"tokamax.* is not installed.*extra 'cuda'"):
        kernels.gpu(*qkv(128, 128), INFO, INFO, 0, False, False, how)


@pytest.mark.parametrize(("how", "extra"), [("gmm", "tpu"), ("triton", "cuda"), ("mosaic", "cuda")])
def test_grouped_without_its_extra_tells_what_to_install(how, extra):
    with pytest.raises(UserError, match=rf"tokamax.* is not installed.*extra '{extra}'"):
        kernels.grouped(jnp.ones((8, 4)), jnp.ones((2, 4, 3)), jnp.array([5, 3]), how)


def test_importing_the_room_imports_none_of_the_libraries():
    code = "import sys, mot.model.kernels; print([x for x in sys.modules if x.split('.')[0] in ('tokamax', 'libtpu')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[]\n", done.stdout + done.stderr


# --- what a query sees, as numbers: these need no library ---------------------------------------------------------


S, BQ, BK = 384, 32, 64
KINDS = [
    pytest.param({}, id="plain"),
    pytest.param(dict(alone=True), id="alone"),
    pytest.param(dict(hidden=True), id="hidden"),
    pytest.param(dict(private=True), id="private"),
    pytest.param(dict(private=True, alone=True, hidden=True), id="all"),
]


def some_of(k, seed):
    """Every token of a row, or as a context shard has them."""
    if seed % 2 == 0:
        return k
    some = np.sort(np.random.default_rng(seed).choice(S, 128, replace=False))
    return Info(*(x[some] for x in k))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_queries_and_keys_have_intervals_of_each_other(seed, kind):
    k = row_of_units(S, seed, **kind)
    q = some_of(k, seed)
    (first, last), (begin, end) = jax.tree.map(np.asarray, jax.jit(kernels.intervals)(q, k))
    query, key = np.arange(q.position.size)[:, None], np.arange(S)[None]
    got = (first[:, None] <= key) & (key <= last[:, None]) & (begin[None] <= query) & (query <= end[None])
    assert got.any(1).all()  # kernels make NaN of a query that sees nothing
    np.testing.assert_array_equal(got & (q.segment != 0)[:, None], seen_by_rule(q, k))


seen_by_rule = jax.jit(visible)


@partial(jax.jit, static_argnums=2)
def told(q, k, parts):
    """Which keys have a query's number, which it sees, and what is known of blocks."""
    seen = kernels.told(q, k, parts, BQ, BK)
    same = seen.q_number[:, None] == seen.k_number[None]
    return same, same & (jnp.arange(S)[None] <= seen.last[:, None]), seen.states


@jax.jit
def told_of_private(q, k):
    """Which keys a query sees as private tokens, of all, and of those that are private with what is known of blocks."""
    own = tuple(kernels.private_tokens(x, 256) for x in (q, k))
    seen = kernels.told_of_private(q, k, own, BQ, BK)
    same = seen.q_number[:, None] == seen.k_number[None]
    everywhere = jnp.zeros((q.position.size, S), bool)
    return everywhere.at[own[0][:, None], own[1][None]].set(same, mode="drop"), same, seen.states


def check_blocks(same, sees, states):
    same, sees = (x.reshape(-1, BQ, x.shape[1] // BK, BK).swapaxes(1, 2) for x in (same, sees))
    assert not sees[states == 0].any()
    np.testing.assert_array_equal(sees[states == 2], same[states == 2])
    assert (states > 0).sum() <= 1.3 * sees.any((2, 3)).sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_what_splash_is_told_is_what_is_visible(seed, kind):
    """By one of two calls. A block without a mask needs none, and few are visited in vain."""
    k = row_of_units(S, seed, **kind)
    q = some_of(k, seed)
    same, sees, states = jax.tree.map(np.asarray, told(q, k, False))
    check_blocks(same, sees, states)
    assert (states == 2).any()
    if "private" in kind:
        own, same, states = jax.tree.map(np.asarray, told_of_private(q, k))
        assert own.any()
        assert not (sees & own).any()
        check_blocks(same, same, states)
        sees = sees | own
    np.testing.assert_array_equal(sees, seen_by_rule(q, k))


def test_splash_is_told_of_a_segment_of_several_parts():
    """As all units of one stream are where two parts are contrasted, also where they end the document."""
    k = row_of_units(S, 0)
    first, last = 40, int((k.segment != 0).sum()) - 4
    parts = k.segment.at[first : first + 4].set(10**4).at[last:].set(jnp.where(k.segment[last:] != 0, 10**4, 0))
    k = k._replace(segment=parts, span=k.span.at[first : first + 4].set(0))
    _, sees, states = jax.tree.map(np.asarray, told(k, k, True))
    truth = np.asarray(seen_by_rule(k, k))
    assert truth[last, first]
    np.testing.assert_array_equal(sees, truth)
    assert not truth.reshape(-1, BQ, S // BK, BK).any((1, 3))[states == 0].any()


@pytest.mark.parametrize("some", [False, True])
def test_splash_visits_each_row_by_itself_and_leaves_none_of_its_blocks_out(some, monkeypatch):
    """The second row has no tokens. Queries may be some of a row's, as one tower's are."""
    monkeypatch.setattr(kernels, "_blocks", lambda *_: (BQ, BK))
    rows = [row_of_units(S, seed) for seed in range(3)]
    k = Info(*(jnp.stack(x) for x in zip(*rows, strict=True)))
    k = k._replace(segment=k.segment.at[1].set(0))
    q = Info(*(x[:, ::3] for x in k)) if some else k
    call = jax.jit(kernels.splash_calls, static_argnums=(2, 3, 4))(q, k, 0, False, 128).everyone
    T = q.position.shape[1]
    seen = np.zeros((3 * T, 3 * S), bool)
    for b in range(3):
        seen[b * T : (b + 1) * T, b * S : (b + 1) * S] = seen_by_rule(*(Info(*(x[b] for x in y)) for y in (q, k)))
    same = np.asarray(call.q_number)[:, None] == np.asarray(call.k_number)[None]
    visible = same & (np.arange(3 * S)[None] <= np.asarray(call.last)[:, None])
    for visits, U, W, of_keys in ((call.forward, T // BQ, S // BK, False), (call.backward, S // BK, T // BQ, True)):
        n = int(visits.number[0])
        row, column, state = (np.asarray(x)[:n] for x in visits[:3])
        assert (np.asarray(visits.row)[n:] == -1).all()
        assert (row // U == column // W).all()
        assert (np.diff(row) >= 0).all()
        assert set(row.tolist()) == set(range(3 * U))
        states = np.zeros((3 * U, 3 * W), int)
        states[row, column] = state
        states = np.kron(states.T if of_keys else states, np.ones((BQ, BK), int))
        np.testing.assert_array_equal(visible & (states > 0), seen)
        np.testing.assert_array_equal(same & (states == 2), seen & (states == 2))


@pytest.mark.parametrize(("T", "parts"), [(4096, 1), (48, 1), (1000, 1), (4096, 4), (1536, 3)])
def test_a_causal_rows_work_is_what_its_blocks_say(T, parts):
    mine = T // parts
    more_T, more_S = kernels._whole_blocks(mine, T)
    bq, bk = kernels._blocks(mine + more_T, T + more_S, 128)

    def info(first, n, more):
        def pad(x):
            return jnp.pad(x, (0, more))

        return Info(pad(first + jnp.arange(n)), pad(jnp.ones(n, int)), *(jnp.zeros(n + more, x) for x in (int, bool)))

    q, k = info(T - mine, mine, more_T), info(0, T, more_S)
    states_XY = kernels.told(q, k, False, bq, bk).states
    assert kernels.causal_work(T, parts, 128) == int((states_XY > 0).sum()) * bq * bk
    assert kernels.causal_work(T, parts, 128) >= mine * (T - mine) + mine * (mine + 1) // 2


def test_blocks_divide_and_leave_enough():
    for T, least, bytes, want in ((4096, 3, 256, 1024), (2048, 3, 128, 512), (384, 3, 256, 128), (2176, 1, 256, 128)):
        assert kernels._block(T, least, bytes) == want
    assert kernels._block(4096, 1, 128 * 4) == 512  # float32: half
