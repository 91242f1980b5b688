"""The mesh, remat policy and microbatches with which a configuration's step is fastest on a slice.

Estimates rank every candidate, and the compiler judges the best few in full: since layers are scanned, a shallow model
takes it as long as the whole one.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from jax.sharding import AbstractMesh

from mot import sharding
from mot.config import Config
from mot.config.axes import MESH_AXES
from mot.errors import UserError
from mot.model import flops, params
from mot.plan.chips import Topology
from mot.plan.forecast import ATTENTION, RECOMPUTED_ATTENTION, RECOMPUTING, aborts, attention_work, recomputed
from mot.train.memory import BFLOAT16, FLOAT32, needed, of_device

REMAT = ("none", "dots", "block")
TENSOR, CONTEXT, PARTS = (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8, 16)
ROOM = 0.9  # of memory that an estimate may fill
FINISHED = 4  # candidates that fit, of which the fastest is taken
TRIED = 8  # candidates at most, where the first do not fit

COPIES_OF_LOGITS = 3  # the logits, their softmax, its gradient
# Memory that the compiler takes, to what is counted here. Fitted to 64 compiled steps: all rungs and architectures of
# docs/reference/plan.md, on v5p, v5e, v6e and tpu7x, remat `block`; these take 0.70 to 1.17 of the estimate, which so
# is on the safe side. `dots` and `none` are of 443m dense and MoT on v5p:2x2x4: within 8 %.
LIVE = 6.0  # of the projections of one layer, as its backward pass runs
GRADIENTS = 1.4  # of all gradients, float32
GATHERED = 1.75  # of one layer's weights, whole, float32
KEPT = {"block": 1.4, "offload": 1.4, "dots": 1.3, "none": 4.2}  # of a layer's input, or of its projections
# Traffic of operations that wait for memory, to the bytes of all projections: norms, activations, layouts. Compiled
# with `block`: from 443m 8 to 16 for dense, 14 to 17 for MoT, 18 to 34 for experts, on tpu7x twice as much; steps of
# these 64 rows take 0.87 to 1.2 of the estimated time, those of 37m, where the loss is most, 1.6. 443m on v5p: dense 15
# and MoT 21 with `dots`, 21 and 24 with `none`.
PASSES = {"block": 17, "offload": 17, "dots": 21, "none": 24}


@dataclass(frozen=True)
class Candidate:
    config: Config
    seconds: float  # both are estimates
    bytes: float

    @property
    def told(self) -> str:
        c = self.config
        sizes = {axis: getattr(c.mesh, axis) for axis in ("data", "fsdp", "expert", "context", "tensor")}
        axes = " ".join(f"{axis}={n}" for axis, n in sizes.items() if n > 1)
        n = c.optim.accumulate
        return f"{axes or 'one device'}, remat {c.model.remat}, {n} microbatch{'es' * (n > 1)}"


def candidates(config: Config, topology: Topology) -> list[Candidate]:
    """Those that divide and may fit, the fastest by estimate first; the expert axis stays as the configuration has it.

    `UserError` where none does.
    """
    variants = list(_variants(config, topology))
    if not variants:
        raise UserError(
            f"{topology.name}: no mesh divides data.batch = {config.data.batch} rows and every matrix among "
            f"{len(topology.devices)} devices; take a slice of another shape, or a batch that is a multiple of them"
        )
    found = []
    for variant in variants:
        held = memory(variant)
        if held <= ROOM * topology.memory:
            found.append(Candidate(variant, _seconds(variant, topology), held))
    if not found:
        raise UserError(
            f"{topology.name}: no mesh, remat policy and number of microbatches was found with which "
            f"{config.run.name} fits; take a larger slice, or mesh.expert where it has experts"
        )
    return sorted(found, key=lambda c: (c.seconds, c.bytes))


def _variants(config: Config, topology: Topology) -> Iterator[Config]:
    m, devices = config.mesh, len(topology.devices)
    for tensor, context, parts, remat in itertools.product(TENSOR, CONTEXT, PARTS, REMAT):
        left, rest = divmod(devices, tensor * context * m.expert)
        if rest or config.data.batch % parts:
            continue
        groups = [n for n in range(1, left + 1) if left % n == 0 and n % m.slices == 0]
        scattered = [n for n in groups if topology.chip.scatters_over(left // n, devices // m.slices)]
        # With the fewest groups memory is least; so is what is sent, of those whose gradients are reduce-scattered.
        for data in sorted({*groups[:1], *scattered[:1], *groups[-1:]}):
            changed = dataclasses.replace(
                config,
                mesh=dataclasses.replace(m, data=data, fsdp=left // data, context=context, tensor=tensor),
                model=dataclasses.replace(config.model, remat=remat),
                optim=dataclasses.replace(config.optim, accumulate=parts),
            )
            if _divides(changed) and not aborts(changed.mesh.fsdp, devices):
                yield changed


def _divides(config: Config) -> bool:
    """Do rows, tokens and every parameter divide among the parts?"""
    mesh, rules = _mesh(config), config.mesh.rules
    faults = itertools.chain(sharding.undivided(config, mesh), sharding.unsplit(params.table(config), rules, mesh))
    return next(faults, None) is None


def _mesh(config: Config) -> AbstractMesh:
    return AbstractMesh(tuple(getattr(config.mesh, axis) for axis in MESH_AXES), MESH_AXES)


def _weights(config: Config) -> tuple[int, int]:
    """How many numbers of the parameters a device has, and has where all are gathered along their width."""
    table, rules, mesh = params.table(config), config.mesh.rules, _mesh(config)
    return of_device(table, rules, mesh), of_device(table, {**rules, "embed": ""}, mesh)


def memory(config: Config) -> float:
    """Bytes of a device, an estimate.

    State, gradients, a layer's weights whole, what layers keep of a microbatch, and what one at work takes.
    """
    c = config.model
    own, whole = _weights(config)
    state = needed(config, _mesh(config))[0] + (GRADIENTS - 1) * FLOAT32 * own
    layer = GATHERED * FLOAT32 * whole / c.layers
    tokens = min(config.objective.chunk, _tokens(config) / config.optim.accumulate)
    logits = COPIES_OF_LOGITS * FLOAT32 * tokens * config.vocab / config.mesh.tensor
    entering, projected = _activations(config)
    kept = KEPT[c.remat] * c.layers * (entering if c.remat in RECOMPUTING else projected)
    # The loss is done with before the last layer's backward pass begins.
    return state + layer + kept + max(LIVE * projected, logits)


def _activations(config: Config) -> tuple[float, float]:
    """Bytes that a layer's input of a microbatch takes on a device, and its projections."""
    c = config.model
    width, hidden = _widths(config)
    heads = (c.heads + 2 * c.kv_heads) * c.head_size / config.mesh.tensor
    tokens = _tokens(config) / config.optim.accumulate
    return BFLOAT16 * width * tokens, BFLOAT16 * (2 * width + heads + 2 * hidden / config.mesh.tensor) * tokens


def _seconds(config: Config, topology: Topology) -> float:
    """Seconds of a step: matmuls, passes over memory, and sending, one after another as the compiler has them."""
    compute = _flops(config) / len(topology.devices) / topology.flops
    projections = _activations(config)[1] * config.model.layers * config.optim.accumulate
    passes = PASSES[config.model.remat] * projections / topology.bandwidth
    return compute + passes + _sent(config, topology) / topology.sends


def _flops(config: Config) -> float:
    """Of a step on all devices, with what is computed again."""
    counts = {name: config.data.batch * stream.budget for name, stream in config.streams.items()}
    seen = ATTENTION + (RECOMPUTED_ATTENTION if config.model.remat in RECOMPUTING else 0)
    attention = flops.FORWARD_AND_BACKWARD * attention_work(config) * flops.attention_per_pair(config) * seen
    further = flops.most_within(config, counts), config.data.batch * config.contrasted_pairs
    return flops.train_step(config, counts, 0, *further) + recomputed(config, counts) + attention


def _sent(config: Config, topology: Topology) -> float:
    """Bytes that a device sends in a step, by the axis along which it sends them.

    But for what experts exchange: their axis is the same in all candidates.
    """
    mesh = config.mesh
    c = config.model
    own, whole = _weights(config)
    microbatches = config.optim.accumulate
    # Each microbatch gathers a layer's weights twice, forward and backward, and scatters their gradients. Where the
    # compiler does not, it reduces them whole, which sends twice as much.
    scattered = topology.chip.scatters_over(mesh.fsdp, len(topology.devices) // mesh.slices)
    number = BFLOAT16 if config.optim.reduce_dtype == "bfloat16" else FLOAT32
    gradients = number * (1 if scattered else 2)
    fsdp = (2 * BFLOAT16 + gradients) * whole * _others(mesh.fsdp) * microbatches
    data = 2 * number * own * _others(mesh.data) * microbatches  # an all-reduce of gradients
    # Two all-reduces of the residual a layer and direction, and again where the forward pass is made again: as compiled
    # (443m MoT on v6e:8x8, tensor 2), in bfloat16.
    crossings = 12 if c.remat in RECOMPUTING else 8
    tensor = crossings * BFLOAT16 * _tokens(config) * _widths(config)[0] * c.layers * _others(mesh.tensor)
    keys_and_values = 2 * c.kv_heads * c.head_size / mesh.tensor
    # Each device's keys and values go to all others of a row: forward, again in the backward pass, and their gradients.
    context = 3 * BFLOAT16 * keys_and_values * _tokens(config) * c.layers * (mesh.context - 1)
    return fsdp + data + tensor + context


def _tokens(config: Config) -> float:
    """Tokens of a device in a step, of all microbatches; devices along `tensor` share them."""
    m = config.mesh
    return config.data.batch * config.length / (m.data * m.fsdp * m.expert * m.context)


def _widths(config: Config) -> tuple[int, float]:
    """The widest residual, and the most hidden units that a token passes through."""
    streams = config.streams.values()
    routed = max(experts.active * (experts.width or 0) for experts in config.ffn.values())
    return max(stream.width for stream in streams), max(routed, *(stream.ffn for stream in streams))


def _others(n: int) -> float:
    """The share of an array that lies on the other n - 1 devices of an axis."""
    return (n - 1) / n
