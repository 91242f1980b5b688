"""Attention by backend and mask, grouped matmuls by the number of experts: their time, and whether they are right."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import timing
from bench.device import machine
from bench.device.steps import told
from mot.batches import Info
from mot.model import attention, dispatch, flops, kernels
from mot.model.router import Choice

SECONDS = 1.0  # of timed calls


class Heads(NamedTuple):
    """What attention is measured at."""

    B: int
    T: int
    N: int  # of queries, and of keys and values
    H: int


class Experts(NamedTuple):
    """What grouped matmuls are measured at: R rows, evenly among experts, by matrices `[D, F]`."""

    R: int
    D: int
    F: int
    numbers: tuple[int, ...]  # of experts


HEADS, HEADS_OF_CPU, SMALL_HEADS = Heads(4, 4096, 16, 128), Heads(1, 1024, 8, 64), Heads(1, 384, 2, 128)
EXPERTS, EXPERTS_OF_CPU = Experts(32_768, 1024, 2816, (4, 16, 64)), Experts(2048, 256, 704, (4, 16, 64))
SMALL_EXPERTS = Experts(512, 128, 256, (2, 4))
DOCUMENTS = 8  # of a packed row
MASKS, FEW_MASKS = ("causal", "packed", "units", "copies"), ("causal", "copies")


def attention_backends(platform: str) -> list[str]:
    """The platform's kernels first."""
    return [name for name in attention.KERNELS if kernels.RUN_ON[name] == platform] + [*attention.BACKENDS][::-1]


def dispatch_kinds(platform: str) -> list[str]:
    own = [name for name in dispatch.KERNELS if kernels.RUN_ON[name] == platform]
    return own + [name for name in dispatch.BACKENDS if name != "einsum"][::-1]


def _tried(measure: Callable[..., dict], *args) -> dict:
    try:
        return measure(*args)
    except Exception as error:  # a library's, of any kind: the next row may work
        return {"failed": told(error)}


# --- attention -------------------------------------------------------------------------------------------------------


def info(mask: str, B: int, T: int) -> Info:
    """Rows of one causal document; of several; of several of which half is a unit that sees itself both ways; and of
    such in which a noised copy stands before each unit, seen by itself alone."""
    position_T = np.arange(T)
    length = T if mask == "causal" else T // DOCUMENTS
    number_T, within_T = np.divmod(position_T, length)
    span_T, private_T = np.zeros(T, np.int32), np.zeros(T, bool)
    if mask == "units":
        span_T = np.where(within_T >= length // 2, number_T + 1, 0)
    if mask == "copies":  # a third of text, a copy, the unit
        part_T = 3 * within_T // length
        span_T = np.where(part_T > 0, 2 * number_T + part_T, 0)
        private_T = part_T == 1
    fields = (position_T, number_T + 1, span_T)
    return Info(*(jnp.asarray(np.tile(x, (B, 1)), jnp.int32) for x in fields), jnp.asarray(np.tile(private_T, (B, 1))))


def pairs(who: Info) -> int:
    """How many pairs of all rows see each other: rows are alike, so one of them is counted."""
    row = jax.tree.map(lambda x: np.asarray(x[:1]), who)
    return flops.visible_pairs({"row": row}) * who.position.shape[0]


def attend(backend: str, smoke: bool) -> Iterator[dict]:
    """A row for each mask: seconds of the forward pass, and of it with the backward pass."""
    sizes = SMALL_HEADS if smoke else HEADS_OF_CPU if machine.platform() == "cpu" else HEADS
    for mask in FEW_MASKS if smoke else MASKS:
        yield {"backend": backend, "mask": mask} | _tried(_attended, backend, mask, sizes, smoke)


def _attended(backend: str, mask: str, sizes: Heads, smoke: bool) -> dict:
    forward, both, who = _of_attention(backend, mask, sizes)
    unlike = None
    if backend != "reference":  # which may have no memory for what is timed
        small = both if sizes == SMALL_HEADS else _of_attention(backend, mask, SMALL_HEADS)[1]
        unlike = difference(small, _of_attention("reference", mask, SMALL_HEADS)[1])
    seconds = 0.0 if smoke else SECONDS
    found = {"forward": timing.of_a_call(forward, seconds), "both": timing.of_a_call(both, seconds)}
    work = 4 * pairs(who) * sizes.N * sizes.H * flops.FORWARD_AND_BACKWARD
    return found | {"flops": work, "difference": unlike, "sizes": sizes._asdict()}


def _of_attention(backend: str, mask: str, sizes: Heads) -> tuple[Callable, Callable, Info]:
    """Calls of the forward pass, and of the result with the gradients of q, k and v; and who sees whom."""
    B, T, N, H = sizes
    x = [jax.random.normal(jax.random.key(n), (B, T, N, H), machine.dtype()) for n in range(4)]
    who = info(mask, B, T)
    private = int(who.private[0].sum())

    def attended(q, k, v, who):
        return attention.attend(q, k, v, who, who, backend, private=private, alone=False, parts=False)

    @jax.jit
    def both(q, k, v, g, who):
        o, backward = jax.vjp(partial(attended, who=who), q, k, v)
        return o, *backward(g)

    forward = jax.jit(attended)
    return (lambda: forward(*x[:3], who)), (lambda: both(*x, who)), who


def difference(call: Callable, reference: Callable) -> float:
    """The largest difference of any result, of the largest number of the reference's.

    Raises `ValueError` where a result is not finite.
    """
    worst = 0.0
    for got, wanted in zip(call(), reference(), strict=True):
        got, wanted = (np.asarray(x, np.float32) for x in (got, wanted))
        if not np.isfinite(got).all():
            raise ValueError("a result or a gradient is not finite")
        worst = max(worst, float(np.abs(got - wanted).max() / np.abs(wanted).max()))
    return worst


# --- grouped matmuls -------------------------------------------------------------------------------------------------


def group(kind: str, smoke: bool) -> Iterator[dict]:
    """A row for each number of experts: seconds with the backward pass, of as many rows by a single matrix, too."""
    sizes = SMALL_EXPERTS if smoke else EXPERTS_OF_CPU if machine.platform() == "cpu" else EXPERTS
    for number in sizes.numbers:
        yield {"kind": kind, "experts": number} | _tried(_grouped, kind, number, sizes, smoke)


def _grouped(kind: str, experts: int, sizes: Experts, smoke: bool) -> dict:
    unlike = difference(*(_of_experts(name, 4, SMALL_EXPERTS) for name in (kind, "einsum")))
    seconds = 0.0 if smoke else SECONDS
    found = timing.of_a_call(_of_experts(kind, experts, sizes), seconds)
    single = timing.of_a_call(_of_one_matrix(sizes), seconds)
    work = 2 * sizes.R * sizes.D * sizes.F * flops.FORWARD_AND_BACKWARD
    return {"both": found, "single": single, "flops": work, "difference": unlike, "sizes": sizes._asdict()}


def _of_experts(kind: str, experts: int, sizes: Experts) -> Callable:
    R, D, F, _ = sizes
    x_RD, g_RF = _rows(R, D, 0), _rows(R, F, 1)
    w_EDF = jax.random.normal(jax.random.key(2), (experts, D, F)) * D**-0.5
    expert_RX = jnp.asarray(np.random.default_rng(0).permutation(R)[:, None] % experts, jnp.int32)

    @jax.jit
    def both(x_RD, w_EDF, g_RF, expert_RX):
        layout, _ = dispatch.plan_dispatch(Choice(expert_RX, jnp.ones((R, 1))), experts, R, kind)

        def multiplied(x_RD, w_EDF):
            y_ZF = dispatch.grouped(dispatch.permute(x_RD, layout), w_EDF, layout, kind)
            return dispatch.combine(y_ZF, layout)

        y_RF, backward = jax.vjp(multiplied, x_RD, w_EDF)
        return y_RF, *backward(g_RF)

    return lambda: both(x_RD, w_EDF, g_RF, expert_RX)


def _of_one_matrix(sizes: Experts) -> Callable:
    R, D, F, _ = sizes
    x_RD, g_RF = _rows(R, D, 0), _rows(R, F, 1)
    w_DF = jax.random.normal(jax.random.key(2), (D, F)) * D**-0.5

    @jax.jit
    def both(x_RD, w_DF, g_RF):
        y_RF, backward = jax.vjp(lambda x, w: x @ w.astype(x.dtype), x_RD, w_DF)
        return y_RF, *backward(g_RF)

    return lambda: both(x_RD, w_DF, g_RF)


def _rows(R: int, width: int, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (R, width), machine.dtype())
