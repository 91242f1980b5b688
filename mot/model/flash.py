"""Attention by pairs of chunks that can see each other: FlashAttention in plain JAX, forward and backward.

Tokens may come in any order. Memory is linear in T: a pair's scores are made where they are used, and made again on
the way back. A tile is one block of memory: q [B, U, K, Q, H], k and v [B, W, K, J, H]. U chunks of J queries and W of
J keys make a row; Q are the queries of a chunk, for each query head of one key head.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mot.batches import Info, visible
from mot.model import ops

# Tokens of a chunk. Short chunks visit fewer pairs that see nothing, and take more turns of a loop. On CPU they took
# 0.71 to 0.94 of the long ones' time up to 8 heads of 64; at 12 heads 0.86 with ten documents a row, but 1.17 with one.
SHORT, LONG = 64, 128
NARROW = 512  # features of all heads, up to which chunks are short
FAR = jnp.iinfo(jnp.int32).max
UNSEEN = -1e30  # added to a masked score; finite, so that no difference is NaN
# Where running maxima start: far above UNSEEN, so that exp(UNSEEN - max) is 0 also in a row that sees nothing.
LEAST = -1e20


def attend(q_BTNH, k_BSKH, v_BSKH, q_info: Info, k_info: Info, cap: float = 0.0) -> jax.Array:
    """`attention.attend` of clean arrays, `[B, T, N, H]`."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    size = SHORT if N * H <= NARROW else LONG
    q_BUKQH, k_BWKJH, v_BWKJH = (_tiles(x, K, size) for x in (q_BTNH, k_BSKH, v_BSKH))
    o_BUKQH = _flash(q_BUKQH, k_BWKJH, v_BWKJH, chunks(q_info, size), chunks(k_info, size), cap)
    o_BUKGJH = o_BUKQH.reshape(*o_BUKQH.shape[:3], N // K, -1, H)
    return o_BUKGJH.transpose(0, 1, 4, 2, 3, 5).reshape(B, -1, N, H)[:, :T]


def chunks(arrays: Info | jax.Array, size: int) -> Info | jax.Array:
    """Every `[B, T, ...]` array as `[B, U, J, ...]`, J at most `size`; zeros at the end mean segment 0, which nobody
    sees."""

    def cut(x):
        J = min(size, x.shape[1])
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % J), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(x.shape[0], -1, J, *x.shape[2:])

    return jax.tree.map(cut, arrays)


def _tiles(x_BTNH, K: int, size: int) -> jax.Array:
    """Heads `[B, U, K, Q, H]` of a chunk by key head, each with the tokens of its G query heads one after another."""
    B, _, N, H = x_BTNH.shape
    x_BUJNH = chunks(x_BTNH, size)
    U, J = x_BUJNH.shape[1:3]
    return x_BUJNH.reshape(B, U, J, K, N // K, H).transpose(0, 1, 3, 4, 2, 5).reshape(B, U, K, N // K * J, H)


def chunk_pairs(q: Info, k: Info) -> jax.Array:
    """`[B, U, W]` bool: may some query of the one chunk see some key of the other?  Never wrongly False.

    Bounds are taken over the tokens that count: padding neither widens a chunk's segments nor its positions.
    """

    def bounds(x_BUJ, counts_BUJ):
        def chosen(otherwise):
            return jnp.where(counts_BUJ, x_BUJ, otherwise)

        return chosen(FAR).min(-1), chosen(-1).max(-1)

    def overlap(q_bounds, k_bounds):
        (q_low, q_high), (k_low, k_high) = q_bounds, k_bounds
        return (q_low[:, :, None] <= k_high[:, None, :]) & (k_low[:, None, :] <= q_high[:, :, None])

    def real(x):
        return x.segment != 0

    segments = overlap(bounds(q.segment, real(q)), bounds(k.segment, real(k)))
    spans = overlap(bounds(q.span, real(q) & (q.span != 0)), bounds(k.span, real(k) & (k.span != 0)))
    last_query = bounds(q.position, real(q))[1]
    first_key = bounds(k.position, real(k) & ~k.private)[0]
    return segments & (spans | (last_query[:, :, None] >= first_key[:, None, :]))


def _visible_chunks(pairs_BUW) -> tuple[jax.Array, jax.Array]:
    """For each (b, i): the visible j, first in the list, and how many they are."""
    return jnp.argsort(~pairs_BUW, axis=-1, stable=True).astype(jnp.int32), pairs_BUW.sum(-1, dtype=jnp.int32)


def _tile(x, b, chunk) -> jax.Array:
    return lax.dynamic_slice(x, (b, chunk, *(0,) * (x.ndim - 2)), (1, 1, *x.shape[2:]))[0, 0]


def _with_tile(x, tile, b, chunk) -> jax.Array:
    return lax.dynamic_update_slice(x, tile[None, None].astype(x.dtype), (b, chunk, *(0,) * tile.ndim))


def _info_of(info: Info, *index) -> Info:
    return Info(*(field[index] for field in info))


def _bias(q: Info, k: Info, groups: int) -> jax.Array:
    """`[Q, J]`: 0 where visible, UNSEEN elsewhere, of a chunk of queries to one of keys.

    Fenced, or XLA fuses it into every use and evaluates it for every head. Made where it is used: of all chunks it
    would be a row's whole mask, which JAX keeps for a scan of layers, as it is the same in all of them.
    """
    bias_JJ = jnp.where(visible(q, k), 0.0, UNSEEN)
    return lax.optimization_barrier(jnp.concatenate([bias_JJ] * groups, axis=-2))


_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _flash(q_BUKQH, k_BWKJH, v_BWKJH, q_info: Info, k_info: Info, cap: float) -> jax.Array:
    return _flash_forward(q_BUKQH, k_BWKJH, v_BWKJH, q_info, k_info, cap)[0]


def _flash_forward(q_BUKQH, k_BWKJH, v_BWKJH, q_info: Info, k_info: Info, cap: float):
    """Online softmax over the listed chunks (FlashAttention-2, 2307.08691); keeps the log-sum-exp for the way back."""
    B, U, K, Q, H = q_BUKQH.shape
    J = q_info.position.shape[2]
    lists, counts = _visible_chunks(chunk_pairs(q_info, k_info))

    def one_query_chunk(n, carry):
        o_BUKQH, lse_BUKQ = carry
        b, i = n // U, n % U
        q_KQH = _tile(q_BUKQH, b, i)

        def one_key_chunk(n, carry):
            m_KQ1, l_KQ1, acc_KQH = carry
            j = lists[b, i, n]
            score_KQJ = ops.capped(_dot("KQH,KJH->KQJ", q_KQH, _tile(k_BWKJH, b, j)) * H**-0.5, cap)
            s_KQJ = score_KQJ + _bias(_info_of(q_info, b, i), _info_of(k_info, b, j), Q // J)[None]
            new_m_KQ1 = jnp.maximum(m_KQ1, s_KQJ.max(-1, keepdims=True))
            p_KQJ = jnp.exp(s_KQJ - new_m_KQ1)
            shrink_KQ1 = jnp.exp(m_KQ1 - new_m_KQ1)
            pv_KQH = _dot("KQJ,KJH->KQH", p_KQJ.astype(v_BWKJH.dtype), _tile(v_BWKJH, b, j))
            return new_m_KQ1, l_KQ1 * shrink_KQ1 + p_KQJ.sum(-1, keepdims=True), acc_KQH * shrink_KQ1 + pv_KQH

        start = (jnp.full((K, Q, 1), LEAST), jnp.zeros((K, Q, 1)), jnp.zeros((K, Q, H)))
        m_KQ1, l_KQ1, acc_KQH = lax.fori_loop(0, counts[b, i], one_key_chunk, start)
        l_KQ1 = jnp.where(l_KQ1 == 0, 1, l_KQ1)
        return _with_tile(o_BUKQH, acc_KQH / l_KQ1, b, i), _with_tile(lse_BUKQ, (m_KQ1 + jnp.log(l_KQ1))[..., 0], b, i)

    start = (jnp.zeros_like(q_BUKQH), jnp.zeros((B, U, K, Q)))
    o_BUKQH, lse_BUKQ = lax.fori_loop(0, B * U, one_query_chunk, start)
    return o_BUKQH, (q_BUKQH, k_BWKJH, v_BWKJH, q_info, k_info, o_BUKQH, lse_BUKQ)


def _flash_backward(cap: float, residuals, g_BUKQH):
    """Scores are made again tile by tile, once, a key chunk at a time; dq is gathered over the key chunks.

    Keys come first in a tile here, so that no product needs its left side transposed.
    """
    q_BUKQH, k_BWKJH, v_BWKJH, q_info, k_info, o_BUKQH, lse_BUKQ = residuals
    B, U, K, Q, H = q_BUKQH.shape
    J = q_info.position.shape[2]
    W = k_BWKJH.shape[1]
    lists, counts = _visible_chunks(chunk_pairs(q_info, k_info).swapaxes(1, 2))
    delta_BUKQ = jnp.sum(g_BUKQH.astype(jnp.float32) * o_BUKQH.astype(jnp.float32), -1)
    dtype = q_BUKQH.dtype

    def one_key_chunk(n, carry):
        dq_BUKHQ, dk_BWKJH, dv_BWKJH = carry
        b, j = n // W, n % W
        k_KJH, v_KJH = _tile(k_BWKJH, b, j), _tile(v_BWKJH, b, j)
        # Unfenced, XLA may fold this into its product, and then the CPU refuses that product in bfloat16.
        k_KHJ = lax.optimization_barrier(k_KJH.swapaxes(1, 2))

        def one_query_chunk(n, carry):
            dq_BUKHQ, dk_KJH, dv_KJH = carry
            i = lists[b, j, n]
            q_KQH, g_KQH = _tile(q_BUKQH, b, i), _tile(g_BUKQH, b, i)
            lse_K1Q, delta_K1Q = _tile(lse_BUKQ, b, i)[:, None], _tile(delta_BUKQ, b, i)[:, None]
            score_KJQ = ops.capped(_dot("KJH,KQH->KJQ", k_KJH, q_KQH) * H**-0.5, cap)
            bias_JQ = _bias(_info_of(q_info, b, i), _info_of(k_info, b, j), Q // J).T
            p_KJQ = jnp.exp(score_KJQ + bias_JQ[None] - lse_K1Q)
            ds_KJQ = p_KJQ * (_dot("KJH,KQH->KJQ", v_KJH, g_KQH) - delta_K1Q)
            if cap:
                ds_KJQ *= 1 - (score_KJQ / cap) ** 2
            ds_KJQ = ds_KJQ.astype(dtype)
            dq_KHQ = _tile(dq_BUKHQ, b, i) + _dot("KHJ,KJQ->KHQ", k_KHJ, ds_KJQ)
            return (
                _with_tile(dq_BUKHQ, dq_KHQ, b, i),
                dk_KJH + _dot("KJQ,KQH->KJH", ds_KJQ, q_KQH),
                dv_KJH + _dot("KJQ,KQH->KJH", p_KJQ.astype(dtype), g_KQH),
            )

        zeros_KJH = jnp.zeros(k_KJH.shape)
        dq_BUKHQ, dk_KJH, dv_KJH = lax.fori_loop(0, counts[b, j], one_query_chunk, (dq_BUKHQ, zeros_KJH, zeros_KJH))
        return dq_BUKHQ, _with_tile(dk_BWKJH, dk_KJH * H**-0.5, b, j), _with_tile(dv_BWKJH, dv_KJH, b, j)

    start = (jnp.zeros((B, U, K, H, Q)), jnp.zeros_like(k_BWKJH), jnp.zeros_like(v_BWKJH))
    dq_BUKHQ, dk_BWKJH, dv_BWKJH = lax.fori_loop(0, B * W, one_key_chunk, start)
    return (dq_BUKHQ.swapaxes(3, 4) * H**-0.5).astype(dtype), dk_BWKJH, dv_BWKJH, None, None


_flash.defvjp(_flash_forward, _flash_backward)
