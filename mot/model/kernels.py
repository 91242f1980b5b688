"""Kernels of other libraries, for TPU and GPU: the one file that imports what they call private or experimental.

Each such import stands in the function that needs it, with the reason beside it. What the kernels mean is said by
`attention.attend(backend="reference")` and `lax.ragged_dot`, and checked against these by tests/plan. Queries and keys
come sorted by position, keys as whole rows, so a key's index is its position; padding comes last.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mot.batches import Info, visible
from mot.config import Config
from mot.errors import UserError

LANES = 128  # the width of a TPU's registers: block sizes are multiples of it
FAR = jnp.iinfo(jnp.int32).max
UNMASKED = -1e30  # a largest score above it saw a key; the kernels' own masked score is below -1e38


RUN_ON = {"splash": "tpu", "gmm": "tpu", "triton": "gpu", "mosaic": "gpu", "cudnn": "gpu"}
EXTRAS = {"tpu": "tpu", "gpu": "cuda"}


def refuse_absent(config: Config, platform: str) -> None:
    """`UserError` where a kernel that `config` asks for is not for this platform's devices, or is not installed."""

    def load():
        import tokamax

        return tokamax

    m = config.model
    faults = []
    asked = [("attention", m.attention, "chunked")]
    if any(s.experts for s in (*config.attn.values(), *config.ffn.values())):
        asked.append(("dispatch", m.dispatch, "ragged"))
    for key, kernel, instead in asked:
        needed = RUN_ON.get(kernel, platform)
        if needed != platform:
            faults.append(
                f"model.{key}: {kernel!r} runs on {needed}, and the devices are {platform}; choose {instead!r}"
            )
        elif kernel in RUN_ON and kernel != "cudnn":
            _of_tokamax(EXTRAS[needed], load)
    if faults:
        raise UserError("; ".join(faults))


def _of_tokamax(extra, load):
    """What `load` imports, or what to install where that is absent."""
    try:
        return load()
    except ModuleNotFoundError as error:
        raise UserError(
            f"this kernel is tokamax's, and {error.name} is not installed; install mot with its extra '{extra}' "
            f"(pip install -e '.[{extra}]'), or choose attention chunked and dispatch ragged"
        ) from None


def _spare_the_command_line() -> None:
    """tokamax's operators for GPU take the process's arguments for flags of theirs unless these are parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


# --- what a query sees, as numbers -----------------------------------------------------------------------------------
# Without private tokens a query sees the keys of its segment up to one: itself, or the last of its span. Without a
# unit trained alone a segment is an interval, too, and then so is what a query sees.


def _differs(a) -> jax.Array:
    """`[S - 1]`: is each element another than the one before it?"""
    return a[1:] != a[:-1]


def last_seen(q: Info, k: Info) -> jax.Array:
    """`[T]`, of one row: the largest index of a key that a query may see."""
    S = k.position.shape[0]
    ends_S = jnp.append(_differs(k.span) | _differs(k.segment) | (k.span[:-1] == 0), True)
    last_S = lax.cummin(jnp.where(ends_S, jnp.arange(S), S), reverse=True)
    return last_S[jnp.minimum(q.position, S - 1)].astype(jnp.int32)


def first_seen(q: Info, k: Info) -> jax.Array:
    """`[T]`, of one row: where the query's segment begins among the keys; for rows without a unit alone."""
    S = k.position.shape[0]
    begins_S = jnp.append(True, _differs(k.segment))
    first_S = lax.cummax(jnp.where(begins_S, jnp.arange(S), 0))
    return first_S[jnp.minimum(q.position, S - 1)].astype(jnp.int32)


def block_states(q: Info, k: Info, last_T, bq: int, bk: int) -> jax.Array:
    """`[U, W]`, of one row, in blocks of queries and keys: 0 nobody sees anybody, 2 `last_T` hides no key, 1 else.

    From bounds alone, so a 1 may be a 0. Padding counts for none of them.
    """
    q_segment_UQ = q.segment.reshape(-1, bq)
    k_segment_WJ = k.segment.reshape(-1, bk)

    def bounds(values, segments):
        return jnp.where(segments != 0, values, FAR).min(1), jnp.where(segments != 0, values, -1).max(1)

    q_low_U, q_high_U = bounds(q_segment_UQ, q_segment_UQ)
    k_low_W, k_high_W = bounds(k_segment_WJ, k_segment_WJ)
    low_U, high_U = bounds(last_T.reshape(-1, bq), q_segment_UQ)
    first_W = jnp.arange(k_low_W.size) * bk
    meet_UW = (q_low_U[:, None] <= k_high_W[None]) & (k_low_W[None] <= q_high_U[:, None])
    some_UW = meet_UW & (high_U[:, None] >= first_W[None])
    every_UW = low_U[:, None] >= (first_W + bk - 1)[None]
    return jnp.where(some_UW, 1 + every_UW, 0).astype(jnp.int32)


# --- TPU: splash attention -------------------------------------------------------------------------------------------


def _block(T: int, blocks: int, bytes: int) -> int:
    """The largest block of which at least so many make T; `bytes` are a head's vector's.

    1024 for 128 numbers of bfloat16, as public training configurations for v5p and v6e have it (512 to 2048, these
    with more VMEM than XLA gives unasked); for longer vectors less, to fit the 16 MiB of v4 and v5e.
    """
    limit = min(1024 * 256 // max(bytes, 256), T // blocks)
    return next(b for b in range(limit // LANES * LANES, 0, -LANES) if T % b == 0)


def _whole_blocks(T: int, S: int) -> tuple[int, int]:
    """How many tokens of padding queries and keys get.

    Gradients of keys and queries are added up in place over the grid: what was written must have left before it is read
    again, which takes three steps, so three blocks of keys.
    """
    return -T % LANES, max(-S % LANES, 3 * LANES - S)


def _blocks(T: int, S: int, bytes: int) -> tuple[int, int]:
    """Of queries and of keys."""
    return _block(T, 1, bytes), _block(S, 3, bytes)


def causal_work(T: int, parts: int, bytes: int) -> int:
    """(query, key) pairs in the blocks that `splash` visits of the last of a row's parts, the row one causal document.

    `bytes` are a head's vector's. The last part of a row sees all of it: its device has the most to do.
    """
    own = T // parts
    more_T, more_S = _whole_blocks(own, T)
    bq, bk = _blocks(own + more_T, T + more_S, bytes)
    ends = [min(first + bq, own) + T - own for first in range(0, own, bq)]
    return sum(-(-end // bk) for end in ends) * bq * bk


def _after_last(last, index) -> jax.Array:
    return index <= last


def splash(q_BTNH, k_BSKH, v_BSKH, q_info: Info, k_info: Info, private: bool) -> jax.Array:
    """Attention on TPU, in memory linear in T unless tokens may be private: then one row's `[T, S]` mask at a time.

    Rows one after another, each with its own list of blocks. T and S that are no multiples of 128 are padded.
    The gradient of the queries is added up in their dtype, three sums of every third block of keys.
    """
    T = q_BTNH.shape[1]
    S = k_BSKH.shape[1]
    H = q_BTNH.shape[-1]
    more_T, more_S = _whole_blocks(T, S)

    def longer(x, more):
        return jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2)))

    q_info = jax.tree.map(lambda x: longer(x, more_T), q_info)
    k_info = jax.tree.map(lambda x: longer(x, more_S), k_info)
    q_BTNH = (q_BTNH.astype(jnp.float32) * H**-0.5).astype(q_BTNH.dtype)

    def heads_first(x, more):
        return longer(x, more).swapaxes(1, 2)

    rows = (heads_first(q_BTNH, more_T), heads_first(k_BSKH, more_S), heads_first(v_BSKH, more_S), q_info, k_info)
    o_BNTH = lax.map(lambda row: _splash_row(*row, private), rows)
    return o_BNTH.swapaxes(1, 2)[:, :T]


def _splash_row(q_NTH, k_KSH, v_KSH, q_info: Info, k_info: Info, private: bool) -> jax.Array:
    """One row, its heads first."""

    def load():
        # Private, because the public makers of kernels take either a mask known when they are called, or whole
        # `[T, S]` masks; the kernels themselves take a threshold for each query and lists of blocks, computed.
        from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel

        return splash_attention_kernel

    splash = _of_tokamax("tpu", load)
    bq, bk = _blocks(q_NTH.shape[1], k_KSH.shape[1], q_NTH.shape[-1] * q_NTH.dtype.itemsize)
    inner = next(b for b in (512, 384, 256, 128) if bk % b == 0)
    config = splash.SplashConfig(
        block_q=bq,
        block_kv=bk,
        block_kv_compute=inner,
        block_q_dkv=bq,
        block_kv_dkv=bk,
        block_kv_dkv_compute=inner,
        dq_reduction_steps=3,  # the only way that takes lists of blocks
    )
    if private:
        seen_UWQJ = visible(q_info, k_info).reshape(-1, bq, k_info.position.size // bk, bk).swapaxes(1, 2)
        states_UW = seen_UWQJ.any((2, 3)).astype(jnp.int32) + seen_UWQJ.all((2, 3))
        masks = (seen_UWQJ, seen_UWQJ.swapaxes(2, 3))
        last_T = None
        ids = None
    else:
        masks = (None, None)
        last_T = last_seen(q_info, k_info)
        states_UW = block_states(q_info, k_info, last_T, bq, bk)

        # Padding has a number on either side that the other side lacks.
        def number(x, none):
            return jnp.where(x.segment != 0, x.segment, none)

        ids = splash.SegmentIds(number(q_info, -1), number(k_info, -2))
    numbers_UW = jnp.arange(states_UW.size, dtype=jnp.int32).reshape(states_UW.shape)
    kernel = splash.SplashAttentionKernel(
        # A block of queries that sees nothing is visited all the same, or its output would stay uninitialised.
        _schedule(splash.MaskInfo, states_UW, numbers_UW, masks[0], last_T, idle=1),
        _schedule(splash.MaskInfo, states_UW.T, numbers_UW.T, masks[1], last_T, idle=0),
        config=config,
        is_mqa=False,
        save_residuals=True,
        mask_value=splash.base.DEFAULT_MASK_VALUE,
        mask_function=None if private else _after_last,
        fwd_mask_sparsity=1.0,
        dkv_mask_sparsity=1.0,
    )
    o_NTH, found = kernel(q_NTH, k_KSH, v_KSH, ids)
    # Of a query that sees nothing it made the mean of some values.
    return jnp.where((found["max_logits"] > UNMASKED)[..., None], o_NTH, 0)


def _schedule(MaskInfo, states, numbers, mask, last_T, idle):
    """The pairs of blocks to visit, row by row of `states`: every row is visited, one that needs none as `idle`."""
    first = jnp.arange(states.shape[1]) == 0
    visits = (states > 0) | (~(states > 0).any(1, keepdims=True) & first[None])
    row, column = jnp.nonzero(visits, size=visits.size, fill_value=-1)
    state = jnp.maximum(states[row, column], idle)
    return MaskInfo(
        mask_next=None if mask is None else numbers[row, column],
        active_rows=row.astype(jnp.int32),
        active_cols=column.astype(jnp.int32),
        block_mask=jnp.where(row < 0, 0, state),
        num_active_blocks=visits.sum(dtype=jnp.int32)[None],
        partial_mask_blocks=None if mask is None else lax.collapse(mask.astype(jnp.int8), 0, 2),
        q_sequence=last_T,
    )


# --- GPU -------------------------------------------------------------------------------------------------------------

QUERIES = 4096  # that Triton's kernel takes at once: on the way back it makes a mask of them and all keys


def gpu(q_BTNH, k_BSKH, v_BSKH, q_info: Info, k_info: Info, private: bool, alone: bool, kernel: str) -> jax.Array:
    """Attention on GPU by `triton`, `mosaic` (Hopper, Blackwell) or `cudnn`, in bfloat16.

    Where nothing is private and no unit alone, an interval of keys for each query: linear memory with the first two.
    Else, and with cuDNN always, a mask `[B, 1, T, S]`. A query that sees nothing sees itself here, and is cleared
    after: kernels make NaN of none.
    """
    T = q_BTNH.shape[1]
    if kernel == "cudnn" or private or alone:
        mask_BTS = visible(q_info, k_info)
        sees_BT = mask_BTS.any(-1)
        mask_BTS |= ~sees_BT[..., None] & (q_info.position[..., None] == k_info.position[:, None])
        o_BTNH = _GPU[kernel](q_BTNH, k_BSKH, v_BSKH, mask_BTS[:, None], None)
    else:
        first_BT, last_BT = jax.vmap(first_seen)(q_info, k_info), jax.vmap(last_seen)(q_info, k_info)
        sees_BT = q_info.segment != 0
        first_BT = jnp.where(sees_BT, first_BT, q_info.position)
        end_BT = jnp.where(sees_BT, last_BT, q_info.position) + 1

        def attend(q, first, end):
            return _GPU[kernel](q, k_BSKH, v_BSKH, None, (first[:, None], end[:, None]))

        if kernel == "triton" and T > QUERIES and T % QUERIES == 0:

            def cut(x):
                return jnp.moveaxis(x.reshape(x.shape[0], -1, QUERIES, *x.shape[2:]), 1, 0)

            o = lax.map(lambda part: attend(*part), (cut(q_BTNH), cut(first_BT), cut(end_BT)))
            o_BTNH = jnp.moveaxis(o, 0, 1).reshape(q_BTNH.shape)
        else:
            o_BTNH = attend(q_BTNH, first_BT, end_BT)
    return jnp.where(sees_BT[..., None, None], o_BTNH, 0)


def _tokamax_gpu(name: str, q_BTNH, k_BSKH, v_BSKH, mask, interval) -> jax.Array:
    def load():
        # Private, because the public function chooses by the device that it finds, not by the one compiled for.
        from tokamax._src.ops.attention import base, pallas_mosaic_gpu, pallas_triton

        _spare_the_command_line()
        triton = pallas_triton.PallasTritonFlashAttention
        mosaic = pallas_mosaic_gpu.PallasMosaicGpuFlashAttention
        return base.Mask, {"triton": triton, "mosaic": mosaic}[name]

    Mask, Kernel = _of_tokamax("cuda", load)
    seen = Mask(mask) if interval is None else Mask(k_start=interval[0], k_end=interval[1])
    return Kernel()(q_BTNH, k_BSKH, v_BSKH, mask=seen)


def _cudnn(q_BTNH, k_BSKH, v_BSKH, mask, interval) -> jax.Array:
    return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask, implementation="cudnn")


_GPU = {"triton": partial(_tokamax_gpu, "triton"), "mosaic": partial(_tokamax_gpu, "mosaic"), "cudnn": _cudnn}


# --- matrices by group -----------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped(x_SD, w_EDF, size_E, kernel: str) -> jax.Array:
    """`[S, F]`: rows by group times the group's matrix, as `lax.ragged_dot`, by `gmm` (TPU), `triton` or `mosaic`.

    In the dtype of x, accumulated in float32; gradients come in the dtypes of x and w. Rows past the last group, of
    the result and of the gradient of x, are uninitialised. On TPU D and F are at least 128.
    """
    return _GROUPED[kernel](x_SD, w_EDF.astype(x_SD.dtype), size_E, "plain", x_SD.dtype)


def _grouped_forward(x_SD, w_EDF, size_E, kernel):
    return grouped(x_SD, w_EDF, size_E, kernel), (x_SD, w_EDF, size_E)


def _grouped_backward(kernel, residuals, g_SF):
    x_SD, w_EDF, size_E = residuals
    g_SF = g_SF.astype(x_SD.dtype)
    dx_SD = _GROUPED[kernel](g_SF, w_EDF.astype(x_SD.dtype), size_E, "transposed", x_SD.dtype)
    dw_EDF = _GROUPED[kernel](x_SD, g_SF, size_E, "contracted", w_EDF.dtype)
    return dx_SD, dw_EDF, None


grouped.defvjp(_grouped_forward, _grouped_backward)


def _gmm(x, w, size_E, product: str, dtype) -> jax.Array:
    """TPU. Tiles of at most 512 rows and 1024 columns, as MaxText has them; the library's own 128 starve the MXU."""

    def load():
        # Private, because the public function chooses by the device that it finds, not by the one compiled for.
        from tokamax._src.ops.ragged_dot import pallas_mosaic_tpu_kernel

        return pallas_mosaic_tpu_kernel

    kernel = _of_tokamax("tpu", load)
    S = x.shape[0]
    rows = min(512, -(-S // 8) * 8)

    def longer(x):
        return jnp.pad(x, ((0, -S % rows), (0, 0)))

    def columns(size):
        return min(1024, size)

    if product == "contracted":
        tiling = (rows, columns(x.shape[1]), columns(w.shape[1]))
        return kernel.tgmm(longer(x).T, longer(w), size_E, None, dtype, tiling)
    turned = product == "transposed"
    tiling = (rows, columns(x.shape[1]), columns(w.shape[1 if turned else 2]))
    return kernel.gmm(longer(x), w, size_E, None, dtype, tiling, transpose_rhs=turned)[:S]


def _ragged_gpu(name: str, x, w, size_E, product: str, dtype) -> jax.Array:
    def load():
        # Private, for the reason above.
        from tokamax._src.ops.ragged_dot import base, pallas_mosaic_gpu, pallas_triton

        _spare_the_command_line()
        triton = pallas_triton.PallasTritonRaggedDot
        mosaic = pallas_mosaic_gpu.PallasMosaicGpuRaggedDot
        return base, {"triton": triton, "mosaic": mosaic}[name]

    base, Kernel = _of_tokamax("cuda", load)
    dimensions = {
        "plain": base.DEFAULT_RAGGED_DOT_DIM_NUMS,
        "transposed": base.TRANS_RHS_RAGGED_DOT_DIM_NUMS,
        "contracted": base.RAGGED_CONTRACTING_DOT_DIM_NUMS,
    }[product]
    y = Kernel()(x, w, group_sizes=size_E, ragged_dot_dimension_numbers=dimensions, preferred_element_type=dtype)
    # Triton's, of 0.0.12, takes the rows before an empty group for its own.
    return jnp.where((size_E > 0)[:, None, None], y, 0) if product == "contracted" else y


_GROUPED = {"gmm": _gmm, "triton": partial(_ragged_gpu, "triton"), "mosaic": partial(_ragged_gpu, "mosaic")}
