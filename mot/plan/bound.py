"""The time of a compiled step at peak figures: its operations one after another, each as long as what binds it takes.

A core runs one operation at a time. One that multiplies little waits for memory however idle the multipliers are, and
most collectives are waited for. So this is closer to a step than the largest of all matmuls, all traffic and all that
is sent, which is the bound if everything overlapped.
"""

from collections.abc import Callable

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

    `flops` are those of an operation. Operations that are attention's count as one, of `attention` FLOPs. What the
    program does not wait for is in the first alone.
    """
    whole, spent = dict.fromkeys(UNITS, 0.0), dict.fromkeys(UNITS, 0.0)
    joint = dict.fromkeys(UNITS, 0.0) | {"compute": attention / topology.flops}
    for operation in program.operations:
        needed = {"compute": flops(operation) / topology.flops, "memory": operation.bytes / topology.bandwidth}
        hidden = _sent(operation, topology, hidden=True)
        needed |= _sent(operation, topology, hidden=False)
        for unit in UNITS:
            whole[unit] += needed[unit] + hidden.get(unit, 0)
        if is_attention(operation):
            joint = {unit: joint[unit] + needed[unit] for unit in UNITS}
        else:
            _spend(needed, spent)
    whole["compute"] += attention / topology.flops
    _spend(joint, spent)
    return whole, spent


def _spend(needed: dict[str, float], spent: dict[str, float]) -> None:
    unit = max(needed, key=needed.get)
    spent[unit] += needed[unit]


def _sent(operation: hlo.Operation, topology: Topology, hidden: bool) -> dict[str, float]:
    sent = [c for c in operation.collectives if c.hidden == hidden]
    return {
        "interconnect": sum(c.wire for c in sent if not c.between) / topology.sends,
        "network": sum(c.wire for c in sent if c.between) / topology.sends_between,
    }
