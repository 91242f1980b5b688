"""The time of a compiled step at peak figures: its operations one after another, each as long as what binds it takes.

A core runs one operation at a time. One that multiplies little waits for memory however idle the multipliers are.
Collectives are waited for: at once, or where the program needs what an earlier operation began to send. So this is
closer to a step than the largest of all matmuls, all traffic and all that is sent, which is the bound if everything
overlapped.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

from mot.plan import hlo
from mot.plan.chips import Topology

UNITS = ("compute", "memory", "interconnect", "network")


def seconds(
    program: hlo.Program,
    topology: Topology,
    flops: Callable[[hlo.Operation], float],
    is_attention: Callable[[hlo.Operation], bool],
    attention: float,
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each unit's whole work; and of the step by the unit that binds an operation.

    `flops` are those of an operation. Operations that are attention's count as one, of `attention` FLOPs, beside which
    nothing is sent.
    """
    whole, spent = dict.fromkeys(UNITS, 0.0), dict.fromkeys(UNITS, 0.0)
    joint = dict.fromkeys(UNITS, 0.0) | {"compute": attention / topology.flops}
    for _, of_computation in itertools.groupby(program.operations, lambda operation: operation.computation):
        operations = list(of_computation)
        took = []
        for operation in operations:
            needed = {"compute": flops(operation) / topology.flops, "memory": operation.bytes / topology.bandwidth}
            needed |= _sent([c for c in operation.collectives if not c.awaited], topology)
            for unit in UNITS:
                whole[unit] += needed[unit]
            if is_attention(operation):
                joint = {unit: joint[unit] + needed[unit] for unit in UNITS}
                took.append((0.0, needed["interconnect"]))
            else:
                took.append((_spend(needed, spent), needed["interconnect"]))
        meanwhile = [c for operation in operations for c in operation.collectives if c.awaited]
        whole["interconnect"] += _sent(meanwhile, topology)["interconnect"]
        spent["interconnect"] += _waited(operations, took, topology)
    whole["compute"] += attention / topology.flops
    _spend(joint, spent)
    return whole, spent


def _spend(needed: dict[str, float], spent: dict[str, float]) -> float:
    """How long an operation takes, counted as the time of the unit that binds it."""
    unit = max(needed, key=needed.get)
    spent[unit] += needed[unit]
    return needed[unit]


def _waited(operations: Sequence[hlo.Operation], took: Iterable[tuple[float, float]], topology: Topology) -> float:
    """How long a computation waits for what it sends while it goes on, one collective after another.

    Of each operation `took` tells how long it is, and for how long it sends itself: meanwhile others stand still.
    """
    now = free = waited = 0.0  # `free` is when all that has begun is sent
    ready: dict[str, float] = {}  # when each collective that has begun is sent
    for operation, (seconds, sending) in zip(operations, took, strict=True):
        for collective in operation.collectives:
            if collective.awaited:
                free = max(free, now) + _sent([collective], topology)["interconnect"]
                ready[collective.awaited] = free
        now += seconds
        free += sending
        ready = {name: at + sending for name, at in ready.items()}
        late = max([0.0, *(ready.pop(name, 0.0) - now for name in operation.waits)])
        now += late
        waited += late
    return waited + max([0.0, *(at - now for at in ready.values())])  # what has no end here is waited for here


def _sent(collectives: Sequence[hlo.Collective], topology: Topology) -> dict[str, float]:
    return {
        "interconnect": sum(c.wire for c in collectives if not c.between) / topology.sends,
        "network": sum(c.wire for c in collectives if c.between) / topology.sends_between,
    }
