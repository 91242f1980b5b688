"""Joint attention: the one place where towers meet, and it knows nothing of them.

Who sees whom follows from four integers a token (DESIGN: `rank`, `segment`, `span`, `private`). Two backends
stand behind `attend`: `reference` holds the whole score matrix and is obvious; `chunked` visits only pairs of chunks
that can see each other, in whatever order the tokens come, with memory linear in T.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

CHUNK = 64  # 64 x 64 score tiles stay in a core's cache; 128 measured 1.5 times slower on CPU
FAR = jnp.iinfo(jnp.int32).max
UNSEEN = -1e30  # finite, so that a masked row's exp(score - max) is exp(0) and never NaN; the mask zeroes it


class Info(NamedTuple):
    """What visibility is decided from; each `[B, T]`."""

    rank: jax.Array  # place in the row's document order
    segment: jax.Array  # document in the row; 0 = padding
    span: jax.Array  # a group that sees itself both ways; 0 = none
    private: jax.Array  # bool: seen inside its own span alone


def visible(q: Info, k: Info) -> jax.Array:
    """`[..., T, S]` bool: does query t see key s?  DESIGN, idea 3."""
    q = Info(*(field[..., :, None] for field in q))
    k = Info(*(field[..., None, :] for field in k))
    same_document = (q.segment == k.segment) & (q.segment != 0)
    causal = (k.rank <= q.rank) & ~k.private
    same_span = (q.span == k.span) & (q.span != 0)
    return same_document & (causal | same_span)


def attend(q_BTNH, k_BSKH, v_BSKH, q_info: Info, k_info: Info, how: str = "chunked"):
    """Softmax attention of T queries over S keys; N query heads share K key/value heads, N a multiple of K.

    Scores are scaled by H ** -0.5 and, like the softmax and all accumulation, float32; the result `[B, T, N, H]` has
    the queries' dtype. A query that sees no key gives 0 and gradient 0. T and S may differ.
    """
    if how not in BACKENDS:
        raise ValueError(f"attention '{how}' is unknown; allowed: {', '.join(BACKENDS)}")
    # 0 * NaN is NaN: whatever lies in padded tokens stops here, and so does what lies in their cotangents.
    clean = lambda x_BTNH, info: jnp.where((info.segment != 0)[..., None, None], x_BTNH, 0)
    q_BTNH, k_BSKH, v_BSKH = clean(q_BTNH, q_info), clean(k_BSKH, k_info), clean(v_BSKH, k_info)
    return clean(BACKENDS[how](q_BTNH, k_BSKH, v_BSKH, q_info, k_info), q_info)


def _reference(q_BTNH, k_BSKH, v_BSKH, q_info, k_info):
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    s_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32) * H**-0.5
    seen_B11TS = visible(q_info, k_info)[:, None, None]
    # Two wheres: a row that sees nothing has probability 0 everywhere, not 1/S, and no gradient.
    p_BKGTS = jax.nn.softmax(jnp.where(seen_B11TS, s_BKGTS, UNSEEN), axis=-1)
    p_BKGTS = jnp.where(seen_B11TS, p_BKGTS, 0).astype(v_BSKH.dtype)
    o_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", p_BKGTS, v_BSKH, preferred_element_type=jnp.float32)
    return o_BTKGH.reshape(B, T, N, H).astype(q_BTNH.dtype)


# --- chunked -----------------------------------------------------------------------------------------------------
# Heads come before tokens, the query heads of one key head together: q [B, K, G, T, H], k and v [B, K, S, H]. In a tile
# C are the queries of a chunk and J the keys of one.


def _chunked(q_BTNH, k_BSKH, v_BSKH, q_info, k_info):
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTNH, q_info = _pad((q_BTNH, q_info))
    k_BSKH, v_BSKH, k_info = _pad((k_BSKH, v_BSKH, k_info))
    q_BKGTH = q_BTNH.transpose(0, 2, 1, 3).reshape(B, K, N // K, -1, H)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    o_BKGTH = _flash(q_BKGTH, k_BKSH, v_BKSH, q_info, k_info)
    return o_BKGTH.reshape(B, N, -1, H).transpose(0, 2, 1, 3)[:, :T]


def _pad(arrays):
    """Every `[B, T, ...]` array to a whole number of chunks; zeros mean segment 0, which nobody sees."""
    pad = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK), *((0, 0),) * (x.ndim - 2)))
    return jax.tree.map(pad, arrays)


def chunk_pairs(q: Info, k: Info) -> jax.Array:
    """`[B, T/64, S/64]` bool: may some query of the one chunk see some key of the other?  Never wrongly False.

    Bounds are taken over the tokens that count: padding neither widens a chunk's segments nor its ranks.
    """

    def bounds(x_BT, counts_BT):
        chunks = lambda fill: jnp.where(counts_BT, x_BT, fill).reshape(x_BT.shape[0], -1, CHUNK)
        return chunks(FAR).min(-1), chunks(-1).max(-1)

    def overlap(q_bounds, k_bounds):
        (q_low, q_high), (k_low, k_high) = q_bounds, k_bounds
        return (q_low[:, :, None] <= k_high[:, None, :]) & (k_low[:, None, :] <= q_high[:, :, None])

    real = lambda x: x.segment != 0
    segments = overlap(bounds(q.segment, real(q)), bounds(k.segment, real(k)))
    spans = overlap(bounds(q.span, real(q) & (q.span != 0)), bounds(k.span, real(k) & (k.span != 0)))
    last_query = bounds(q.rank, real(q))[1]
    first_key = bounds(k.rank, real(k) & ~k.private)[0]
    return segments & (spans | (last_query[:, :, None] >= first_key[:, None, :]))


def _lists(pairs_BIJ):
    """For each (b, i): the visible j, first in the list, and how many they are."""
    return jnp.argsort(~pairs_BIJ, axis=-1, stable=True).astype(jnp.int32), pairs_BIJ.sum(-1, dtype=jnp.int32)


def _tile(x, b, chunk):
    """Row b and chunk `chunk` of an array whose tokens are its last axis but one."""
    start = (b, *(0,) * (x.ndim - 3), chunk * CHUNK, 0)
    return lax.dynamic_slice(x, start, (1, *x.shape[1:-2], CHUNK, x.shape[-1]))[0]


def _put(x, tile, b, chunk):
    return lax.dynamic_update_slice(x, tile[None].astype(x.dtype), (b, *(0,) * (x.ndim - 3), chunk * CHUNK, 0))


def _info_tile(info, b, chunk):
    return Info(*(lax.dynamic_slice(field, (b, chunk * CHUNK), (1, CHUNK))[0] for field in info))


_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _flash(q_BKGTH, k_BKSH, v_BKSH, q_info, k_info):
    return _flash_forward(q_BKGTH, k_BKSH, v_BKSH, q_info, k_info)[0]


def _flash_forward(q_BKGTH, k_BKSH, v_BKSH, q_info, k_info):
    """Online softmax over the listed chunks (FlashAttention-2, 2307.08691); keeps the log-sum-exp for the way back."""
    B, K, G, T, H = q_BKGTH.shape
    chunks = T // CHUNK
    lists, counts = _lists(chunk_pairs(q_info, k_info))

    def one_query_chunk(n, carry):
        o_BKGTH, lse_BKGT1 = carry
        b, i = n // chunks, n % chunks
        q_KGCH = _tile(q_BKGTH, b, i)
        q_tile = _info_tile(q_info, b, i)

        def one_key_chunk(n, carry):
            m_KGC1, l_KGC1, acc_KGCH = carry
            j = lists[b, i, n]
            k_KJH, v_KJH, k_tile = _tile(k_BKSH, b, j), _tile(v_BKSH, b, j), _info_tile(k_info, b, j)
            seen_CJ = visible(q_tile, k_tile)
            s_KGCJ = jnp.where(seen_CJ, _dot("KGCH,KJH->KGCJ", q_KGCH, k_KJH) * H**-0.5, UNSEEN)
            new_m_KGC1 = jnp.maximum(m_KGC1, s_KGCJ.max(-1, keepdims=True))
            p_KGCJ = jnp.where(seen_CJ, jnp.exp(s_KGCJ - new_m_KGC1), 0)
            shrink_KGC1 = jnp.exp(m_KGC1 - new_m_KGC1)
            return (
                new_m_KGC1,
                l_KGC1 * shrink_KGC1 + p_KGCJ.sum(-1, keepdims=True),
                acc_KGCH * shrink_KGC1 + _dot("KGCJ,KJH->KGCH", p_KGCJ.astype(v_KJH.dtype), v_KJH),
            )

        start = (jnp.full((K, G, CHUNK, 1), UNSEEN), jnp.zeros((K, G, CHUNK, 1)), jnp.zeros((K, G, CHUNK, H)))
        m_KGC1, l_KGC1, acc_KGCH = lax.fori_loop(0, counts[b, i], one_key_chunk, start)
        l_KGC1 = jnp.where(l_KGC1 == 0, 1, l_KGC1)
        return _put(o_BKGTH, acc_KGCH / l_KGC1, b, i), _put(lse_BKGT1, m_KGC1 + jnp.log(l_KGC1), b, i)

    start = (jnp.zeros_like(q_BKGTH), jnp.zeros((B, K, G, T, 1), jnp.float32))
    o_BKGTH, lse_BKGT1 = lax.fori_loop(0, B * chunks, one_query_chunk, start)
    return o_BKGTH, (q_BKGTH, k_BKSH, v_BKSH, q_info, k_info, o_BKGTH, lse_BKGT1)


def _flash_backward(residuals, g_BKGTH):
    """Scores are made again tile by tile, once, a key chunk at a time; dq is gathered over the key chunks."""
    q_BKGTH, k_BKSH, v_BKSH, q_info, k_info, o_BKGTH, lse_BKGT1 = residuals
    B, K, _, _, H = q_BKGTH.shape
    chunks = k_BKSH.shape[2] // CHUNK
    lists, counts = _lists(chunk_pairs(q_info, k_info).swapaxes(1, 2))
    delta_BKGT1 = jnp.sum(g_BKGTH.astype(jnp.float32) * o_BKGTH.astype(jnp.float32), -1, keepdims=True)
    dtype = q_BKGTH.dtype

    def one_key_chunk(n, carry):
        dq_BKGTH, dk_BKSH, dv_BKSH = carry
        b, j = n // chunks, n % chunks
        k_KJH, v_KJH, k_tile = _tile(k_BKSH, b, j), _tile(v_BKSH, b, j), _info_tile(k_info, b, j)

        def one_query_chunk(n, carry):
            dq_BKGTH, dk_KJH, dv_KJH = carry
            i = lists[b, j, n]
            q_tile = _info_tile(q_info, b, i)
            q_KGCH, g_KGCH = _tile(q_BKGTH, b, i), _tile(g_BKGTH, b, i)
            s_KGCJ = _dot("KGCH,KJH->KGCJ", q_KGCH, k_KJH) * H**-0.5
            p_KGCJ = jnp.where(visible(q_tile, k_tile), jnp.exp(s_KGCJ - _tile(lse_BKGT1, b, i)), 0)
            dp_KGCJ = _dot("KGCH,KJH->KGCJ", g_KGCH, v_KJH)
            ds_KGCJ = (p_KGCJ * (dp_KGCJ - _tile(delta_BKGT1, b, i)) * H**-0.5).astype(dtype)
            dq_KGCH = _tile(dq_BKGTH, b, i) + _dot("KGCJ,KJH->KGCH", ds_KGCJ, k_KJH)
            return (
                _put(dq_BKGTH, dq_KGCH, b, i),
                dk_KJH + _dot("KGCJ,KGCH->KJH", ds_KGCJ, q_KGCH),
                dv_KJH + _dot("KGCJ,KGCH->KJH", p_KGCJ.astype(dtype), g_KGCH),
            )

        zeros_KJH = jnp.zeros((K, CHUNK, H))
        dq_BKGTH, dk_KJH, dv_KJH = lax.fori_loop(0, counts[b, j], one_query_chunk, (dq_BKGTH, zeros_KJH, zeros_KJH))
        return dq_BKGTH, _put(dk_BKSH, dk_KJH, b, j), _put(dv_BKSH, dv_KJH, b, j)

    start = (jnp.zeros(q_BKGTH.shape, jnp.float32), jnp.zeros_like(k_BKSH), jnp.zeros_like(v_BKSH))
    dq_BKGTH, dk_BKSH, dv_BKSH = lax.fori_loop(0, B * chunks, one_key_chunk, start)
    return dq_BKGTH.astype(dtype), dk_BKSH, dv_BKSH, None, None


_flash.defvjp(_flash_forward, _flash_backward)

BACKENDS = {"reference": _reference, "chunked": _chunked}
