"""Joint attention: the one place where towers meet, and it knows nothing of them.

Who sees whom follows from four integers a token (`position`, `segment`, `span`, `private`; `batches.visible`, and in
words docs/concepts/streams-and-units.md). Two backends stand behind `attend` on every machine: `reference` holds the
whole score matrix and is obvious; `chunked` visits only pairs of chunks that can see each other (`flash.py`).
`kernels.py` has those of accelerators.
"""

from functools import partial

import jax
import jax.numpy as jnp

from mot.batches import Info, visible
from mot.model import flash, kernels, ops
from mot.model.flash import FAR, UNSEEN

FEW = 256  # queries; of so few the whole score matrix is small


def attend(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    q_info: Info,
    k_info: Info,
    backend: str = "chunked",
    private: int = FAR,
    alone: bool = True,
    parts: bool = True,
    cap: float = 0.0,
    calls: kernels.Calls | None = None,
) -> jax.Array:
    """Softmax attention of T queries over S keys; N query heads share K key/value heads, N a multiple of K.

    Scores are scaled by H ** -0.5 and, like the softmax and all accumulation, float32; the result `[B, T, N, H]` has
    the queries' dtype. A query that sees no key gives 0 and gradient 0. T and S may differ. With a `cap` scores are
    capped (`ops.capped`), which no kernel does. Padding may hold anything, for kernels anything finite.

    Kernels want queries and keys sorted by position, and all keys of a row, of which queries are some. They do less
    where it is known that at most so many tokens of a row are `private`, that none lies amid a segment that it is not
    of, as a unit trained `alone` and padding in place of what is hidden do, or that no such segment has several
    `parts`: runs of tokens. `splash` also takes what follows from these and the tokens, where they attend in many
    layers (`kernels.splash_calls`).
    """
    if backend not in BACKENDS | KERNELS:
        raise ValueError(f"attention '{backend}' is unknown; allowed: {', '.join(BACKENDS | KERNELS)}")

    # 0 * NaN is NaN: whatever lies in padded tokens stops here, and so does what lies in their cotangents. For kernels
    # that would be a pass over each array in every layer; padding enters the model as 0 (`embed`), and stays finite.
    def clean(x_BTNH, info):
        return jnp.where((info.segment != 0)[..., None, None], x_BTNH, 0)

    if backend in BACKENDS:
        q_BTNH, k_BSKH, v_BSKH = clean(q_BTNH, q_info), clean(k_BSKH, k_info), clean(v_BSKH, k_info)
        return clean(BACKENDS[backend](q_BTNH, k_BSKH, v_BSKH, q_info, k_info, cap), q_info)
    if cap:
        raise ValueError(f"attention '{backend}' has no cap of scores; allowed: {', '.join(BACKENDS)}")
    known = dict(private=private, alone=alone, parts=parts) | ({} if calls is None else {"calls": calls})
    return KERNELS[backend](q_BTNH, k_BSKH, v_BSKH, q_info, k_info, **known)


def _reference(q_BTNH, k_BSKH, v_BSKH, q_info: Info, k_info: Info, cap: float) -> jax.Array:
    return attend_few(q_BTNH, k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2), q_info, k_info, cap)


def attend_few(q_BTNH, k_BKSH, v_BKSH, q_info: Info, k_info: Info, cap: float = 0.0) -> jax.Array:
    """`attend` for a few queries over a cache, whose heads come first: its products need no transposed copy of it.

    What lies in slots that nobody sees must be finite. On CPU 5 times faster than `attend` at 8 rows of 576 slots.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    s_BKGTS = jnp.einsum("BTKGH,BKSH->BKGTS", q_BTKGH, k_BKSH, preferred_element_type=jnp.float32) * H**-0.5
    s_BKGTS = ops.capped(s_BKGTS, cap)
    seen_B11TS = visible(q_info, k_info)[:, None, None]
    # Two wheres: a row that sees nothing has probability 0 everywhere, not 1/S, and no gradient.
    p_BKGTS = jax.nn.softmax(jnp.where(seen_B11TS, s_BKGTS, UNSEEN), axis=-1)
    p_BKGTS = jnp.where(seen_B11TS, p_BKGTS, 0).astype(v_BKSH.dtype)
    o_BTKGH = jnp.einsum("BKGTS,BKSH->BTKGH", p_BKGTS, v_BKSH, preferred_element_type=jnp.float32)
    return o_BTKGH.reshape(B, T, N, H).astype(q_BTNH.dtype)


BACKENDS = {"reference": _reference, "chunked": flash.attend}


def _splash(
    q_BTNH, k_BSKH, v_BSKH, q_info: Info, k_info: Info, private: int, alone: bool, parts: bool, calls=None
) -> jax.Array:
    if calls is None:  # whatever is alone
        calls = kernels.splash_calls(q_info, k_info, private, parts, q_BTNH.shape[-1] * q_BTNH.dtype.itemsize)
    return kernels.splash(q_BTNH, k_BSKH, v_BSKH, calls)


KERNELS = {kernel: partial(kernels.gpu, kernel=kernel) for kernel in ("triton", "mosaic", "cudnn")}
KERNELS |= {"splash": _splash}
