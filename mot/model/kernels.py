"""Kernels of other libraries, for TPU and GPU: the one file that imports what they call private or experimental.

Each such import stands in the function that needs it, with the reason beside it. What the kernels mean is said by
`attention.attend(backend="reference")` and `lax.ragged_dot`, and checked against these by tests/plan. Queries and keys
come sorted by position, keys as whole rows, so a key's index is its position; padding comes last.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mot.batches import Info, visible
from mot.config import Config
from mot.errors import UserError

LANES = 128  # the width of a TPU's registers: block sizes are multiples of it
FAR = jnp.iinfo(jnp.int32).max
LEAST = -1e30  # far below any score, and far above the kernels' own masked one, which is below -1e38


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
# A query sees keys of its segment up to one: itself, or the last of its span; private ones only of its own span. Spans
# are runs of tokens. So are segments, but for others that lie amid them, as units trained alone do: these have higher
# numbers than the row's documents. Padding, also amid a run, is nobody's.


def _first_of_run(number_S, real_S) -> jax.Array:
    """`[S]`: where the run of equal numbers begins that a token lies in. Padding ends no run."""
    S = number_S.size
    before_S = jnp.append(-1, lax.cummax(jnp.where(real_S, jnp.arange(S), -1))[:-1])
    begins_S = real_S & ((before_S < 0) | (number_S[before_S] != number_S))
    return lax.cummax(jnp.where(begins_S, jnp.arange(S), 0)).astype(jnp.int32)


def _run(number_S, real_S) -> tuple[jax.Array, jax.Array]:
    """The first and the last token of the run of equal numbers that a token lies in."""
    return _first_of_run(number_S, real_S), number_S.size - 1 - _first_of_run(number_S[::-1], real_S[::-1])[::-1]


def own_span(k: Info) -> tuple[jax.Array, jax.Array]:
    """`[S]` each, of one row's keys: the first and the last token of a token's span; without one, the token itself."""
    real_S = k.segment != 0
    index_S = jnp.arange(real_S.size, dtype=jnp.int32)
    return tuple(jnp.where(k.span != 0, x_S, index_S) for x_S in _run(k.span, real_S))


def _host(k: Info) -> jax.Array:
    """`[S]`: the document that a token lies amid, of padding the one that follows. Documents' numbers rise in a row."""
    return lax.cummin(jnp.where(k.segment != 0, k.segment, FAR), reverse=True)


def _of_queries(x_S, q: Info) -> jax.Array:
    """`[T]`, of one row: what keys have, of the queries."""
    return x_S[jnp.minimum(q.position, x_S.size - 1)]


def intervals(q: Info, k: Info) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Of one row: the first and the last key of each query `[T]`, and the first and the last query of each key `[S]`.

    Queries are some of the row's tokens. A query sees a key where both intervals hold. Who sees nobody has itself
    there. Not for rows in which several runs that lie amid others are of one segment.
    """
    real_S = k.segment != 0
    index_S = jnp.arange(real_S.size, dtype=jnp.int32)
    host_S = _host(k)
    amid_S = real_S & (k.segment != host_S)
    span_first_S, span_last_S = own_span(k)
    amid_first_S, amid_last_S = _run(k.segment, real_S)
    first_S, last_S = _run(host_S, jnp.ones_like(real_S))
    first_S = jnp.where(amid_S, amid_first_S, first_S)
    last_S = jnp.minimum(jnp.where(amid_S, amid_last_S, last_S), span_last_S)
    from_S = jnp.maximum(jnp.where(amid_S, amid_first_S, 0), jnp.where(k.private, span_first_S, 0))
    to_S = jnp.where(amid_S, amid_last_S, real_S.size - 1)
    to_S = jnp.where(k.private, jnp.minimum(to_S, span_last_S), to_S)

    def seen(x_S):
        return jnp.where(real_S, x_S, index_S)

    keys = tuple(_of_queries(seen(x_S), q) for x_S in (first_S, last_S))
    queries = (
        jnp.searchsorted(q.position, seen(from_S)),
        jnp.searchsorted(q.position, seen(to_S), side="right") - 1,
    )
    return keys, queries


def block_states(sees_T, first_T, last_T, seen_S, bq: int, bk: int) -> jax.Array:
    """`[U, W]`, of one row, in blocks of queries and keys: 0 nobody sees anybody, 2 `last_T` hides no key, 1 else.

    Queries for which `sees_T` see keys from `first_T` to `last_T`, of those for which `seen_S`. From bounds alone, so a
    1 may be a 0.
    """
    sees_UQ = sees_T.reshape(-1, bq)

    def least(x_T):
        return jnp.where(sees_UQ, x_T.reshape(-1, bq), FAR).min(1)[:, None]

    most_last_U1 = jnp.where(sees_UQ, last_T.reshape(-1, bq), -1).max(1)[:, None]
    begin_1W = jnp.arange(0, seen_S.size, bk)[None]
    end_1W = begin_1W + bk - 1
    some_UW = (least(first_T) <= end_1W) & (most_last_U1 >= begin_1W) & seen_S.reshape(-1, bk).any(1)[None]
    return jnp.where(some_UW, 1 + (least(last_T) >= end_1W), 0).astype(jnp.int32)


# --- TPU: splash attention -------------------------------------------------------------------------------------------


def _block(T: int, blocks: int, bytes: int) -> int:
    """The largest block of which at least so many make T; `bytes` are a head's vector's.

    1024 for 128 numbers of bfloat16, as public training configurations for v5p and v6e have it (512 to 2048, these
    with more VMEM than XLA gives unasked); for longer vectors less, to fit the 16 MiB of v4 and v5e.
    """
    limit = min(1024 * 256 // max(bytes, 256), T // blocks)
    return next(b for b in range(limit // LANES * LANES, 0, -LANES) if T % b == 0)


def _whole_blocks(T: int, S: int) -> tuple[int, int]:
    """How many tokens of padding a row's queries and keys get.

    Gradients of keys and queries are added up in place over the grid: what was written must have left before it is read
    again, which takes three steps. A block of queries is read again with the third block of keys after this one, and
    each between, of whatever row, is visited once at least. A block of keys is, of a group's next head, after as many
    steps as there are blocks of keys: three of every row.
    """
    return -T % LANES, max(-S % LANES, 3 * LANES - S)


def _blocks(T: int, S: int, bytes: int) -> tuple[int, int]:
    """Of queries and of keys. Of some of a row's tokens, as one group's, a block covers more of it: half as many."""
    return _block(T, 1, bytes if T == S else 2 * bytes), _block(S, 3, bytes)


def causal_work(T: int, parts: int, bytes: int) -> int:
    """(query, key) pairs in the blocks that `splash` visits of the last of a row's parts, the row one causal document.

    `bytes` are a head's vector's. The last part of a row sees all of it: its device has the most to do.
    """
    own = T // parts
    more_T, more_S = _whole_blocks(own, T)
    bq, bk = _blocks(own + more_T, T + more_S, bytes)
    ends = [min(first + bq, own) + T - own for first in range(0, own, bq)]
    return sum(-(-end // bk) for end in ends) * bq * bk


class Told(NamedTuple):
    """What a call of splash is told: a query sees keys of its number, up to the last."""

    q_number: jax.Array  # [T]
    k_number: jax.Array  # [S]
    last: jax.Array | None  # [T], an index; None: numbers say all
    states: jax.Array  # of blocks, as in `block_states`


class Visits(NamedTuple):
    """The pairs of blocks that a call of splash visits, one after another, `[n]` each; -1 past their number."""

    row: jax.Array
    column: jax.Array
    state: jax.Array  # as in `block_states`
    number: jax.Array  # [1]


class Call(NamedTuple):
    """What a call of splash takes beside q, k and v, of all rows end to end."""

    q_number: jax.Array  # [B * T]
    k_number: jax.Array  # [B * S]
    last: jax.Array | None  # [B * T]
    forward: Visits  # whose rows are blocks of queries
    backward: Visits  # whose rows are blocks of keys


class Calls(NamedTuple):
    """What `splash` is told of the tokens: the same in every layer, and made once for all of them."""

    everyone: Call
    among_own: Call | None  # of what is private; None: nothing is
    own: tuple[jax.Array, jax.Array] | None  # its indices among each row's queries and keys, [B, P]


def _numbers(q_number, k_number) -> tuple[jax.Array, jax.Array]:
    """Where they are 0, numbers that the other side lacks."""
    return jnp.where(q_number != 0, q_number, -1), jnp.where(k_number != 0, k_number, -2)


def told(q: Info, k: Info, parts: bool, bq: int, bk: int) -> Told:
    """Of all queries of one row, and the keys that are not private."""
    last_T = _of_queries(own_span(k)[1], q)
    first_T = jnp.zeros_like(last_T) if parts else _of_queries(_first_of_run(_host(k), True), q)
    numbers = _numbers(q.segment, jnp.where(k.private, 0, k.segment))
    return Told(*numbers, last_T, block_states(q.segment != 0, first_T, last_T, numbers[1] > 0, bq, bk))


def private_tokens(x: Info, most: int) -> jax.Array:
    """`[P]`, of one row: the indices of what is private, at most so many, then such as no token has."""
    there_T = x.private & (x.segment != 0) & (x.span != 0)
    index_P = jnp.nonzero(there_T, size=most, fill_value=there_T.size)[0]
    return jnp.where(index_P < there_T.size, index_P, there_T.size + jnp.arange(most)).astype(jnp.int32)


def told_of_private(q: Info, k: Info, own: tuple[jax.Array, jax.Array], bq: int, bk: int) -> Told:
    """Of the private queries and keys of one row, whose indices are `own`: they see what is private in their span."""
    first_S, last_S = own_span(k)
    index_P = own[1]

    def of_queries(x_S):
        return _of_queries(x_S, q).at[own[0]].get(mode="fill", fill_value=-1)

    # A span's number is that of its first token, from 1; where it lies among the keys is counted.
    numbers = _numbers(of_queries(first_S) + 1, first_S.at[index_P].get(mode="fill", fill_value=-1) + 1)
    first_P = jnp.searchsorted(index_P, of_queries(first_S)).astype(jnp.int32)
    last_P = jnp.searchsorted(index_P, of_queries(last_S)).astype(jnp.int32)
    return Told(*numbers, None, block_states(numbers[0] > 0, first_P, last_P, numbers[1] > 0, bq, bk))


def splash_calls(q_info: Info, k_info: Info, private: int, parts: bool, bytes: int) -> Calls:
    """Of rows `[B, T]` and `[B, S]`, of which at most `private` tokens are private; `bytes` are a head's vector's.

    The kernel compares one number of a query with one of a key, so what is private takes a call of its own.
    """
    q_info, k_info = _whole(q_info, k_info)
    bq, bk = _blocks(q_info.position.shape[1], k_info.position.shape[1], bytes)
    everyone = _call(jax.vmap(partial(told, parts=parts, bq=bq, bk=bk))(q_info, k_info))
    if not private:
        return Calls(everyone, None, None)
    private = min(private, k_info.position.shape[1])
    most = private + _whole_blocks(private, private)[1]
    own = tuple(jax.vmap(partial(private_tokens, most=most))(x) for x in (q_info, k_info))
    bq, bk = _blocks(most, most, bytes)
    return Calls(everyone, _call(jax.vmap(partial(told_of_private, bq=bq, bk=bk))(q_info, k_info, own)), own)


def _whole(q, k):
    """Arrays of queries `[B, T, ...]` and of keys `[B, S, ...]`, each row with padding up to whole blocks."""
    T, S = (jax.tree.leaves(x)[0].shape[1] for x in (q, k))

    def longer(tree, more):
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * (x.ndim - 2))), tree)

    more_T, more_S = _whole_blocks(T, S)
    return longer(q, more_T), longer(k, more_S)


def _call(told: Told) -> Call:
    """One call for all rows, by which each field of `told` has a first axis."""
    B, S = told.k_number.shape
    first_B1 = S * jnp.arange(B, dtype=jnp.int32)[:, None]
    last = None if told.last is None else (told.last + first_B1).reshape(-1)
    # A block of queries that sees nothing is visited all the same, or its output would stay uninitialised.
    visits = _visits(told.states, idle=1), _visits(told.states.swapaxes(1, 2), idle=0)
    return Call(told.q_number.reshape(-1), told.k_number.reshape(-1), last, *visits)


def _visits(states_BUW, idle: int) -> Visits:
    """The visits of all rows of tokens, one after another: of each first block one at least, if need be as `idle`."""
    _, U, W = states_BUW.shape
    first = jnp.arange(W) == 0
    visits_BUW = (states_BUW > 0) | (~(states_BUW > 0).any(2, keepdims=True) & first[None, None])
    b, u, w = jnp.nonzero(visits_BUW, size=visits_BUW.size, fill_value=-1)
    state = jnp.where(b < 0, 0, jnp.maximum(states_BUW[b, u, w], idle))
    row, column = (jnp.where(b < 0, -1, x).astype(jnp.int32) for x in (b * U + u, b * W + w))
    return Visits(row, column, state, visits_BUW.sum(dtype=jnp.int32)[None])


def splash(q_BTNH, k_BSKH, v_BSKH, calls: Calls) -> jax.Array:
    """Attention on TPU, in memory linear in T. What lies in padding must be finite.

    All rows lie end to end, as one for the kernel, which visits no blocks of two rows. T and S that are no multiples of
    128 are padded. The gradient of the queries is added up in their dtype, three sums of every third block of keys.
    """
    T = q_BTNH.shape[1]
    q_BTNH = (q_BTNH.astype(jnp.float32) * q_BTNH.shape[-1] ** -0.5).astype(q_BTNH.dtype)
    q_BTNH, kv = _whole(q_BTNH, (k_BSKH, v_BSKH))
    heads_first = [x.transpose(2, 0, 1, 3) for x in (q_BTNH, *kv)]
    return _joint_softmax(*heads_first, calls).transpose(1, 2, 0, 3)[:, :T]


@jax.custom_vjp
def _joint_softmax(q_NBTH, k_KBSH, v_KBSH, calls: Calls) -> jax.Array:
    """Attention to everyone's keys, and of what is private to its own."""
    if calls.own is None:  # what the way back needs takes as much memory traffic as all else
        return _splash_forward(calls.everyone, q_NBTH, k_KBSH, v_KBSH, save_residuals=False)[0]
    return _joint_softmax_forward(q_NBTH, k_KBSH, v_KBSH, calls)[0]


@partial(jax.vmap, in_axes=(1, 0), out_axes=1)
def _some(x_NT, index_P) -> jax.Array:
    """`[N, B, P, ...]` of `[N, B, T, ...]`; past a row's last index there is a token that nobody sees."""
    return x_NT.at[:, index_P].get(mode="clip", indices_are_sorted=True)


_AT_SOME = dict(mode="drop", indices_are_sorted=True, unique_indices=True)


@partial(jax.vmap, in_axes=(1, 0, 1), out_axes=1)
def _placed(x_NT, index_P, some_NP) -> jax.Array:
    return x_NT.at[:, index_P].set(some_NP, **_AT_SOME)


@partial(jax.vmap, in_axes=(1, 0, 1), out_axes=1)
def _added(x_NT, index_P, some_NP) -> jax.Array:
    return x_NT.at[:, index_P].add(some_NP, **_AT_SOME)


def _joint_softmax_forward(q_NBTH, k_KBSH, v_KBSH, calls: Calls):
    """Two softmaxes become one by their logarithms of sums, base 2."""
    o_NBTH, log_NBT = _splash_forward(calls.everyone, q_NBTH, k_KBSH, v_KBSH)
    if calls.own is not None:
        q_BP, k_BP = calls.own
        of_own = (_some(q_NBTH, q_BP), _some(k_KBSH, k_BP), _some(v_KBSH, k_BP))
        own_NBPH, own_NBP = _splash_forward(calls.among_own, *of_own)
        log_NBP = _some(log_NBT, q_BP)
        both_NBP = jnp.logaddexp2(log_NBP, own_NBP)
        joint_NBPH = jnp.exp2(log_NBP - both_NBP)[..., None] * _some(o_NBTH, q_BP)
        joint_NBPH += jnp.exp2(own_NBP - both_NBP)[..., None] * own_NBPH
        o_NBTH = _placed(o_NBTH, q_BP, joint_NBPH.astype(o_NBTH.dtype))
        log_NBT = _placed(log_NBT, q_BP, both_NBP)
    return o_NBTH, (q_NBTH, k_KBSH, v_KBSH, calls, o_NBTH, log_NBT)


def _joint_softmax_backward(residuals, g_NBTH):
    q_NBTH, k_KBSH, v_KBSH, calls, o_NBTH, log_NBT = residuals
    grads = _splash_backward(calls.everyone, q_NBTH, k_KBSH, v_KBSH, o_NBTH, log_NBT, g_NBTH)
    if calls.own is not None:
        q_BP, k_BP = calls.own
        places = (q_BP, k_BP, k_BP, q_BP, q_BP, q_BP)
        of_own = map(_some, (q_NBTH, k_KBSH, v_KBSH, o_NBTH, log_NBT, g_NBTH), places)
        own_grads = _splash_backward(calls.among_own, *of_own)
        grads = [_added(*x) for x in zip(grads, places, own_grads, strict=False)]
    return *grads, None


# Where the backward pass makes this again, the forward pass runs the function itself.
_joint_softmax.defvjp(_joint_softmax_forward, _joint_softmax_backward, optimize_remat=True)


def _splash_forward(
    call: Call, q_NBTH, k_KBSH, v_KBSH, save_residuals: bool = True
) -> tuple[jax.Array, jax.Array | None]:
    """The output, and with `save_residuals` the logarithm of each query's sum, base 2.

    Every query sees one key more, of the least score and of value 0. Beside any other it weighs exactly 0. A query that
    sees no other gets 0, and as its sum is that key's, all gradients by way of it are 0 too.
    """
    splash = _of_tokamax("tpu", _load_splash)
    options = _splash_options(splash, call, q_NBTH, k_KBSH) | dict(save_residuals=save_residuals)
    blocks = _mask_info(splash, call.forward, call.last)
    ids = splash.SegmentIds(call.q_number, call.k_number)
    qkv = map(_end_to_end, (q_NBTH, k_KBSH, v_KBSH))
    sinks_N = jnp.full(len(q_NBTH), LEAST)
    found = splash._splash_attention_forward(blocks, *qkv, ids, sinks_N, **options)
    o, log = (found[0], found[1]["logsumexp"].reshape(q_NBTH.shape[:3])) if save_residuals else (found, None)
    return o.reshape(q_NBTH.shape), log


def _splash_backward(call: Call, q_NBTH, k_KBSH, v_KBSH, o_NBTH, log_NBT, g_NBTH) -> list[jax.Array]:
    """The gradients of q, k and v. The logarithm may be of a sum over more keys than these."""
    splash = _of_tokamax("tpu", _load_splash)
    options = _splash_options(splash, call, q_NBTH, k_KBSH)
    blocks = _mask_info(splash, call.backward, call.last)
    ids = splash.SegmentIds(call.q_number, call.k_number)
    *qkv, o, log, g = map(_end_to_end, (q_NBTH, k_KBSH, v_KBSH, o_NBTH, log_NBT, g_NBTH))
    options |= dict(dkv_mask_sparsity=1.0, res=(*qkv, ids, None, o, log, blocks), grads=(g, None))
    grads = splash._splash_attention_bwd(**options)[2:5]
    return [grad.reshape(x.shape) for grad, x in zip(grads, (q_NBTH, k_KBSH, v_KBSH), strict=True)]


def _end_to_end(x_NBT) -> jax.Array:
    """`[N, B * T, ...]` of `[N, B, T, ...]`."""
    return x_NBT.reshape(len(x_NBT), -1, *x_NBT.shape[3:])


def _load_splash():
    # Private, because the public makers of kernels take either a mask known when they are called, or whole `[T, S]`
    # masks; the kernels themselves take a threshold for each query and lists of blocks, computed. And theirs is the one
    # way back for a softmax over the keys of two calls.
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel

    return splash_attention_kernel


def _splash_options(splash, call: Call, q_NBTH, k_KBSH) -> dict:
    T, H = q_NBTH.shape[2:]
    bq, bk = _blocks(T, k_KBSH.shape[2], H * q_NBTH.dtype.itemsize)
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
    return dict(
        mask_value=splash.base.DEFAULT_MASK_VALUE,
        is_mqa=False,
        config=config,
        mask_function=None if call.last is None else _up_to,
        save_residuals=True,
        fwd_mask_sparsity=1.0,
    )


def _up_to(last, index) -> jax.Array:
    return index <= last


def _mask_info(splash, visits: Visits, last: jax.Array | None):
    return splash.MaskInfo(
        mask_next=None,
        active_rows=visits.row,
        active_cols=visits.column,
        block_mask=visits.state,
        num_active_blocks=visits.number,
        partial_mask_blocks=None,
        q_sequence=last,
    )


# --- GPU -------------------------------------------------------------------------------------------------------------

QUERIES = 4096  # taken at once by kernels that make a mask of them and all keys, as Triton's does on the way back


def gpu(
    q_BTNH, k_BSKH, v_BSKH, q_info: Info, k_info: Info, private: int, alone: bool, parts: bool, kernel: str
) -> jax.Array:
    """Attention on GPU by `triton`, `mosaic` (Hopper, Blackwell) or `cudnn`, in bfloat16.

    By intervals, in linear memory: of keys for each query, and where something is private or alone also of queries for
    each key, of which tokamax makes masks of `QUERIES` queries at a time (of all where no such part divides T). A mask
    `[B, 1, T, S]` with cuDNN, and where `parts`. A query that sees nothing sees itself here, and is cleared after:
    kernels make NaN of none.
    """
    T = q_BTNH.shape[1]
    if kernel == "cudnn" or parts:
        mask_BTS = visible(q_info, k_info)
        sees_BT = mask_BTS.any(-1)
        mask_BTS |= ~sees_BT[..., None] & (q_info.position[..., None] == k_info.position[:, None])
        o_BTNH = _GPU[kernel](q_BTNH, k_BSKH, v_BSKH, mask_BTS[:, None], None)
    else:
        (first_BT, last_BT), (from_BS, to_BS) = jax.vmap(intervals)(q_info, k_info)
        sees_BT = q_info.segment != 0
        size = next((n for n in range(min(T, QUERIES), QUERIES // 4 - 1, -LANES) if T % n == 0), T)

        def attend(begin, q, first, last):
            seen = dict(k_start=first[:, None], k_end=last[:, None] + 1)
            if private or alone:
                seen |= dict(q_start=from_BS[:, None] - begin, q_end=to_BS[:, None] + 1 - begin)
            return _GPU[kernel](q, k_BSKH, v_BSKH, None, seen)

        if size < T and (kernel == "triton" or private or alone):

            def cut(x):
                return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

            o = lax.map(lambda part: attend(*part), (jnp.arange(0, T, size), *map(cut, (q_BTNH, first_BT, last_BT))))
            o_BTNH = jnp.moveaxis(o, 0, 1).reshape(q_BTNH.shape)
        else:
            o_BTNH = attend(0, q_BTNH, first_BT, last_BT)
    return jnp.where(sees_BT[..., None, None], o_BTNH, 0)


def _tokamax_gpu(name: str, q_BTNH, k_BSKH, v_BSKH, mask, intervals) -> jax.Array:
    def load():
        # Private, because the public function chooses by the device that it finds, not by the one compiled for.
        from tokamax._src.ops.attention import base, pallas_mosaic_gpu, pallas_triton

        _spare_the_command_line()
        triton = pallas_triton.PallasTritonFlashAttention
        mosaic = pallas_mosaic_gpu.PallasMosaicGpuFlashAttention
        return base.Mask, {"triton": triton, "mosaic": mosaic}[name]

    Mask, Kernel = _of_tokamax("cuda", load)
    seen = Mask(mask) if intervals is None else Mask(**intervals)
    return Kernel()(q_BTNH, k_BSKH, v_BSKH, mask=seen)


def _cudnn(q_BTNH, k_BSKH, v_BSKH, mask, intervals) -> jax.Array:
    return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask, implementation="cudnn")


_GPU = {"triton": partial(_tokamax_gpu, "triton"), "mosaic": partial(_tokamax_gpu, "mosaic"), "cudnn": _cudnn}


# --- matrices by group -----------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped(x_SD, w_EDF, size_E, kernel: str) -> jax.Array:
    """`[S, F]`: rows by group times the group's matrix, as `lax.ragged_dot`, by `gmm` (TPU), `triton` or `mosaic`.

    In the dtype of x, accumulated in float32; gradients come in the dtypes of x and w. Rows past the last group may
    hold anything: they take no part in other rows, nor in the gradient of w. Those of the result and of the gradient
    of x are unwritten: they hold anything, too. On TPU D and F are at least 128.
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
    if product == "contracted" and name == "mosaic":  # it multiplies other groups' rows by 0, and 0 * NaN is NaN
        held_S1 = (jnp.arange(x.shape[0]) < size_E.sum())[:, None]
        x, w = jnp.where(held_S1, x, 0), jnp.where(held_S1, w, 0)
    y = Kernel()(x, w, group_sizes=size_E, ragged_dot_dimension_numbers=dimensions, preferred_element_type=dtype)
    # Triton's, of 0.0.12, takes the rows before an empty group for its own.
    return jnp.where((size_E > 0)[:, None, None], y, 0) if product == "contracted" else y


_GROUPED = {"gmm": _gmm, "triton": partial(_ragged_gpu, "triton"), "mosaic": partial(_ragged_gpu, "mosaic")}
