"""Without the extras: what a user is told who asks for a kernel that is not there. The kernels: tests/plan."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mot.batches import Info, visible
from mot.errors import UserError
from mot.model import kernels
from tests.support.arrays import qkv, row


@pytest.fixture(autouse=True)
def _absent(monkeypatch):
    """As in the core's environment, also where tests/plan's is used."""
    monkeypatch.setitem(sys.modules, "tokamax", None)
    monkeypatch.setitem(sys.modules, "tokamax._src", None)


INFO = Info(*(jnp.ones((2, 128), dtype) for dtype in (int, int, int, bool)))


@pytest.mark.parametrize("private", [False, True])
def test_splash_without_its_extra_tells_what_to_install(private):
    with pytest.raises(UserError, match=r"tokamax's, and tokamax.* is not installed.*extra 'tpu'.*chunked"):
        kernels.splash(*qkv(128, 128), INFO, INFO, private)


@pytest.mark.parametrize("how", ["triton", "mosaic"])
def test_gpu_attention_without_its_extra_tells_what_to_install(how):
    with pytest.raises(UserError, match=r"tokamax.* is not installed.*extra 'cuda'"):
        kernels.gpu(*qkv(128, 128), INFO, INFO, False, False, how)


@pytest.mark.parametrize(("how", "extra"), [("gmm", "tpu"), ("triton", "cuda"), ("mosaic", "cuda")])
def test_grouped_without_its_extra_tells_what_to_install(how, extra):
    with pytest.raises(UserError, match=rf"tokamax.* is not installed.*extra '{extra}'"):
        kernels.grouped(jnp.ones((8, 4)), jnp.ones((2, 4, 3)), jnp.array([5, 3]), how)


def test_importing_the_room_imports_none_of_the_libraries():
    code = "import sys, mot.model.kernels; print([x for x in sys.modules if x.split('.')[0] in ('tokamax', 'libtpu')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[]\n", done.stdout + done.stderr


# --- what a query sees, as numbers: these need no library ---------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_what_a_query_sees_is_an_interval(seed):
    k = row(256, seed)
    some = np.sort(np.random.default_rng(seed).choice(256, 100, replace=False))  # as a context shard has them
    q = Info(*(x[some] for x in k))
    first, last = kernels.first_seen(q, k)[:, None], kernels.last_seen(q, k)[:, None]
    index = jnp.arange(256)[None]
    got = (first <= index) & (index <= last) & (q.segment != 0)[:, None]
    np.testing.assert_array_equal(got, visible(q, k))


@pytest.mark.parametrize(("bq", "bk"), [(32, 64), (1, 8)])
@pytest.mark.parametrize("seed", range(5))
def test_a_block_is_left_out_only_where_nobody_sees_anybody(seed, bq, bk):
    """Also with a unit alone: a segment amid another."""
    T = 512
    k = row(T, seed)
    k = k._replace(segment=k.segment.at[72:80].set(9)) if seed % 2 else k
    states = np.asarray(kernels.block_states(k, k, kernels.last_seen(k, k), bq, bk))
    see = np.asarray(visible(k, k)).reshape(T // bq, bq, T // bk, bk).swapaxes(1, 2)
    assert not see[states == 0].any()
    assert (states == 0).sum() > 0.9 * (~see.any((2, 3))).sum() - 3 * (seed % 2) * states.shape[1]
    # 2 leaves the threshold out, for the numbers of segments tell the rest.
    same = np.asarray((k.segment[:, None] == k.segment[None]) & (k.segment != 0)[:, None])
    same = same.reshape(T // bq, bq, T // bk, bk).swapaxes(1, 2)
    np.testing.assert_array_equal(see[states == 2], same[states == 2])
    assert (states == 2).any()


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
    states_XY = kernels.block_states(q, k, kernels.last_seen(q, k), bq, bk)
    assert kernels.causal_work(T, parts, 128) == int((states_XY > 0).sum()) * bq * bk
    assert kernels.causal_work(T, parts, 128) >= mine * (T - mine) + mine * (mine + 1) // 2


def test_blocks_divide_and_leave_enough():
    for T, least, bytes, want in ((4096, 3, 256, 1024), (2048, 3, 128, 512), (384, 3, 256, 128), (2176, 1, 256, 128)):
        assert kernels._block(T, least, bytes) == want
    assert kernels._block(4096, 1, 128 * 4) == 512  # float32: half
