"""What a configuration will need and reach on TPUs that are not there: the real step, compiled ahead of time.

Memory and what is computed and sent are the compiler's. The step's time is from peak figures (`mot/plan/bound.py`).
"""

import dataclasses
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from mot import batches, sharding
from mot.config import Config, checks
from mot.errors import UserError
from mot.model import flops, kernels, params
from mot.plan import bound, hlo
from mot.plan.chips import Topology
from mot.train.state import abstract
from mot.train.step import jitted

DAY = 86_400
# Attention kernels have seven matmuls of queries by keys, of which the formula has six: backward needs scores again.
ATTENTION = 7 / 6
RECOMPUTED_ATTENTION = 2 / 6
REMAT = checks.VALUES["Model"]["remat"]  # policies, from the one that keeps most to the one that keeps least
RECOMPUTING = ("block", "offload")  # those that run a block forward once more
ROW = "each row is one causal document, so that a token sees half of it"
LISTED = 8
BYTES_OF_PARAMETER = 16  # in float32, with its gradient and both moments
NEGLIGIBLE = 1e-3  # of all FLOPs: float32 matmuls that take less, as those of noise levels, are not listed


class TooLarge(Exception):
    """The compiler found no room for a program; its message lists the largest buffers."""


# Files of mot that a program's operations come from, by what is known of them.
OF_ATTENTION = ("attention.py", "flash.py", "kernels.py")
IN_FLOAT32 = ("router.py", "sums.py", "optim.py")  # which multiply in float32 on purpose
EFFORT = "jax_exec_time_optimization_effort"  # a setting of JAX 0.10; 0.12 has levels alone


@dataclass(frozen=True)
class Compiled:
    text: str
    memory: Any  # with `argument_size_in_bytes` and so on
    seconds: float  # that the compiler took
    tracing: float  # that JAX took before


@dataclass(frozen=True)
class Forecast:
    """All figures of memory, matmuls and collectives are those of one device in one step."""

    topology: str
    chips: int
    devices: int
    mesh: dict[str, int]
    name: str  # the run's
    remat: str
    rows: int
    length: int
    accumulate: int
    versions: dict[str, str]
    parameters: int
    active: dict[str, int]  # by stream
    towers: dict[str, int]  # parameters, by component and tower
    flops_per_token: float  # the model's
    assumed: str
    memory_of_chip: int  # bytes of one device
    fits: bool
    trouble: str = ""  # what the compiler said where it does not fit
    memory: dict[str, int] = field(default_factory=dict)
    buffers: list[dict] = field(default_factory=list)  # the largest
    remedies: list[str] = field(default_factory=list)
    matmul_flops: float = 0.0  # with grouped kernels, without attention
    formula_flops: float = 0.0  # without attention
    recomputed_flops: float = 0.0  # that the remat policy asks for
    float32_matmuls: list[dict] = field(default_factory=list)  # outside routers and losses
    kernels: list[dict] = field(default_factory=list)
    places: float = 1.0  # of experts' buffers, for each row that balanced experts get
    collectives: dict[str, dict] = field(default_factory=dict)  # by kind
    collectives_by_source: list[dict] = field(default_factory=list)
    uncounted_loops: list[str] = field(default_factory=list)
    roofline: dict[str, float] = field(default_factory=dict)  # seconds: of each unit's whole work, of the step
    spent: dict[str, float] = field(default_factory=dict)  # seconds of the step, by what binds its operations
    binding: str = ""  # what binds most of them
    mfu_bound: float = 0.0
    tokens_per_day: float = 0.0
    days: float = 0.0  # of the run's steps
    chip_hours: float = 0.0
    compile_seconds: float = 0.0
    tracing_seconds: float = 0.0
    effort: float = 0.0  # of the compiler: as in training; -1 is the least

    @property
    def ratio(self) -> float:
        """Matmul FLOPs that the program has, of those it needs."""
        return self.matmul_flops / (self.formula_flops + self.recomputed_flops)

    def to_json(self) -> dict:
        return dataclasses.asdict(self) | ({"matmul_ratio": self.ratio} if self.fits else {})


def from_json(row: dict) -> Forecast:
    return Forecast(**{f.name: row[f.name] for f in dataclasses.fields(Forecast) if f.name in row})


def plan(config: Config, topology: Topology, compile: Callable[[Config, Topology], Compiled] | None = None) -> Forecast:
    """The forecast for a configuration on a topology. Tests give a `compile` of their own."""
    mesh = sharding.make_mesh(config, topology.devices)
    common = _of_model(config, topology, mesh)
    try:
        compiled = (compile or compile_step)(config, topology)
    except TooLarge as error:
        trouble, buffers = _allocations(str(error))
        buffers = buffers or _of_parameters(config, mesh)
        return Forecast(**common, fits=False, trouble=trouble, buffers=buffers, remedies=remedies(config, mesh))
    program = hlo.read(compiled.text)
    memory = _memory(compiled.memory)
    fits = memory["peak"] <= topology.memory
    tokens = {name: config.data.batch * s.budget for name, s in config.streams.items()}
    work = _work(config, topology, program, tokens, mesh.size)
    return Forecast(
        **common,
        **work,
        fits=fits,
        trouble="" if fits else f"it takes {memory['peak'] / 1e9:.1f} GB of {topology.memory / 1e9:.1f} GB",
        memory=memory,
        buffers=[dict(bytes=n, shape=shape, source=at.source) for n, shape, at in program.sizes[:LISTED]],
        remedies=[] if fits else remedies(config, mesh, memory),
        compile_seconds=compiled.seconds,
        tracing_seconds=compiled.tracing,
    )


def hurry() -> None:
    """Programs are compiled with the least effort from here on.

    Then it waits for every collective, whatever `sharding.OPTIONS` say.
    Measured on a 94M rung of MoT: 49 CPU-seconds for 133, the same matmuls and collectives, 10 % more temporaries, 9 %
    more memory traffic. libtpu 0.0.42 aborts so where several devices have 1 along fsdp, which full effort compiles.
    """
    if hasattr(jax.config, EFFORT):
        jax.config.update(EFFORT, -1.0)
    else:
        jax.config.update("jax_optimization_level", "O0")  # not measured


def _effort() -> float:
    """-1 after `hurry`, else 0."""
    if hasattr(jax.config, EFFORT):
        return getattr(jax.config, EFFORT)
    return -1.0 if jax.config.jax_optimization_level == "O0" else 0.0


def aborts(fsdp: int, devices: int) -> bool:
    """Does the compiler abort on a mesh with so many parts along fsdp? After `hurry` it may."""
    return _effort() < 0 and fsdp == 1 < devices


def _refuse_hurried(mesh: jax.sharding.Mesh) -> None:
    """Raises `UserError` for a mesh on which the compiler aborts."""
    if aborts(mesh.shape["fsdp"], mesh.size):
        raise UserError(
            f"--quick: with the least effort the compiler aborts where mesh.fsdp is 1 of {mesh.size} devices; leave "
            f"--quick out, or split state among them: --config.mesh.fsdp={mesh.size}"
        )


def compile_step(config: Config, topology: Topology) -> Compiled:
    """The training step as `loop.run` has it, for these devices. Raises `UserError` where the compiler would abort."""
    kernels.refuse_absent(config, "tpu")
    mesh = sharding.make_mesh(config, topology.devices)
    _refuse_hurried(mesh)
    rows = sharding.of_batch(config, mesh)
    # Outside of `set_mesh`: what JAX computes at once would be sent to devices that are not there.
    step = jitted(config, len(config.data.sources), mesh)
    state = abstract(config, mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), batches.abstract(config))
    began = time.monotonic()
    with jax.set_mesh(mesh):
        lowered = step.trace(state, batch).lower(lowering_platforms=("tpu",))
        traced = time.monotonic()
        try:
            compiled = lowered.compile(compiler_options=sharding.compiler_options(mesh))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error) or "Ran out of memory" in str(error):
                raise TooLarge(str(error)) from error
            raise
    text = compiled.as_text()
    return Compiled(text, compiled.memory_analysis(), time.monotonic() - traced, traced - began)


def _of_model(config: Config, topology: Topology, mesh: jax.sharding.Mesh) -> dict:
    """The figures that need no compiler."""
    rows = config.data.batch
    tokens = {name: rows * s.budget for name, s in config.streams.items()}
    step = flops.train_step(
        config, tokens, pairs(config), flops.most_within(config, tokens), rows * config.contrasted_pairs
    )
    table = params.table(config)
    towers: dict[str, int] = defaultdict(int)
    for path, spec in table.items():
        stack, component, tower, _ = params.parse(path)
        towers[f"{component}/{tower}" if stack else path.partition("/")[0]] += params.count({path: spec})
    return dict(
        topology=topology.name,
        chips=topology.chips,
        devices=mesh.size,
        mesh={axis: n for axis, n in mesh.shape.items() if n > 1},
        name=config.run.name,
        remat=config.model.remat,
        rows=rows,
        length=config.length,
        accumulate=config.optim.accumulate,
        versions=topology.versions,
        effort=_effort(),
        parameters=flops.total_parameters(config),
        active=flops.active_parameters(config),
        towers=dict(towers),
        flops_per_token=step / sum(tokens.values()),
        assumed=ROW,
        memory_of_chip=topology.memory,
    )


def pairs(config: Config) -> int:
    """Visible (query, key) pairs of a batch, as `ROW` says."""
    return config.data.batch * config.length * (config.length + 1) // 2


def attention_work(config: Config) -> int:
    """(query, key) pairs that attention computes of a batch.

    Splash computes those of the blocks it visits. A row that `mesh.context` splits counts as if all devices took as
    long as the one with its end.
    """
    m = config.model
    if m.attention != "splash":
        return pairs(config)
    shards = config.mesh.context
    bytes_of_head = m.head_size * jnp.dtype(m.dtype).itemsize
    return config.data.batch * shards * kernels.causal_work(config.length, shards, bytes_of_head)


def _memory(stats: Any) -> dict[str, int]:
    """Bytes of a device by what takes them, from the compiler's figures."""
    sizes = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,  # outputs that take arguments' place
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return sizes | {"peak": sum(sizes.values()) - 2 * sizes["aliased"]}


# --- matmuls, memory traffic, collectives, time ----------------------------------------------------------------------


def recomputed(config: Config, tokens: dict[str, int]) -> int:
    """FLOPs of matmuls that the backward pass runs once more: the blocks' forward ones, or none.

    A block's last matmul only where a norm follows, which asks for its result: a residual does not.
    """
    if config.model.remat not in RECOMPUTING:
        return 0
    weights = flops.matmul_weights(config)
    head = {name: 0 if s.latent else config.vocab * s.width for name, s in config.streams.items()}
    last = flops.last_weights(config) if config.model.norm == "pre" else dict.fromkeys(config.streams, 0)
    return sum(2 * n * (weights[name] - head[name] - last[name]) for name, n in tokens.items())


def places(config: Config) -> float:
    """Places in experts' buffers for each row that balanced experts get.

    Where devices share experts a buffer has room for more: with `gather` for all rows of all of them. Kernels skip
    places without a row; what is done element by element does not.
    """
    m = config.mesh
    if m.expert == 1:
        return 1.0
    return float(m.expert) if m.exchange == "gather" else m.buffer


def _is_grouped(kernel: hlo.Kernel) -> bool:
    return "gmm" in kernel.name or "ragged" in kernel.name or kernel.at.within("dispatch.py")


def _is_outside(matmul: hlo.Matmul) -> bool:
    """Of attention, and of loops whose length is not known."""
    return not (matmul.at.endless or matmul.at.within(*OF_ATTENTION))


def _is_attention(operation: hlo.Operation) -> bool:
    return any(not _is_grouped(k) and k.at.within(*OF_ATTENTION) for k in operation.kernels) or any(
        m.at.within(*OF_ATTENTION) for m in operation.matmuls
    )


def _work(config: Config, topology: Topology, program: hlo.Program, tokens: dict[str, int], devices: int) -> dict:
    """What a compiled step computes, moves and sends, and the time that it takes at peak figures."""
    outside = [m for m in program.matmuls if _is_outside(m)]
    room = places(config)

    def grouped(kernels):
        return sum(k.flops * k.at.times for k in kernels if _is_grouped(k)) / room

    def computed(operation):
        return sum(m.total * m.passes for m in operation.matmuls if _is_outside(m)) + grouped(operation.kernels)

    counted = sum(m.total for m in outside) + grouped(program.kernels)
    of_pair = flops.FORWARD_AND_BACKWARD * flops.attention_per_pair(config) / devices
    seen_again = RECOMPUTED_ATTENTION if config.model.remat in RECOMPUTING else 0
    formula = flops.train_step(config, tokens, 0, contrasted=config.data.batch * config.contrasted_pairs) / devices
    attention = of_pair * attention_work(config) * (ATTENTION + seen_again)
    whole, spent = bound.seconds(program, topology, computed, _is_attention, attention)
    overlapped = max(whole.values())
    step = max(sum(spent.values()), overlapped)
    narrow = config.model.dtype != "float32"  # else float32 is what was asked for
    total = sum(tokens.values())
    return dict(
        matmul_flops=counted,
        formula_flops=formula,
        recomputed_flops=recomputed(config, tokens) / devices,
        float32_matmuls=[
            dict(shape=m.shape, flops=m.total, source=m.at.source)
            for m in outside
            if narrow and m.dtype == "f32" and m.total > NEGLIGIBLE * counted and not m.at.within(*IN_FLOAT32)
        ],
        kernels=_kernels(program),
        places=room if any(map(_is_grouped, program.kernels)) else 1.0,
        collectives=by_kind(program),
        collectives_by_source=_by_source(program),
        uncounted_loops=sorted({at.source for at in program.endless}),
        roofline=whole | {"overlapped": overlapped, "step": step},
        spent=spent,
        binding=max(spent, key=spent.get),
        mfu_bound=(formula + of_pair * pairs(config)) / topology.flops / step,
        tokens_per_day=total / step * DAY,
        days=config.run.steps * step / DAY,
        chip_hours=config.run.steps * step / 3600 * topology.chips,
    )


def _kernels(program: hlo.Program) -> list[dict]:
    times: dict[tuple, float] = defaultdict(float)
    for k in program.kernels:
        times[k.name, k.flops, k.at.source] += k.at.times
    return [dict(name=name, times=n, flops=each, source=source) for (name, each, source), n in times.items()]


def by_kind(program: hlo.Program) -> dict[str, dict]:
    rows: dict[str, dict] = {}
    for c in program.collectives:
        row = rows.setdefault(_kind(c), {"number": 0, "bytes": 0, "wire": 0, "meanwhile": 0})
        row["number"] += c.at.times
        row["bytes"] += c.bytes * c.at.times
        row["wire"] += c.wire
        row["meanwhile"] += c.wire if c.awaited else 0  # that is sent while the program goes on
    return dict(sorted(rows.items()))


def _kind(collective: hlo.Collective) -> str:
    return f"{collective.kind} between slices" if collective.between else collective.kind


def _by_source(program: hlo.Program) -> list[dict]:
    rows: dict[tuple, dict] = {}
    for c in program.collectives:
        key = _kind(c), c.group, c.at.source
        row = rows.setdefault(
            key, dict(kind=_kind(c), group=c.group, source=c.at.source, shape=c.shape[:120], number=0, wire=0)
        )
        row["number"] += c.at.times
        row["wire"] += c.wire
    return sorted(rows.values(), key=lambda row: -row["wire"])


# --- what does not fit -----------------------------------------------------------------------------------------------

_SIZE = re.compile(r"Size: ([\d.]+)([KMGT]?)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _allocations(message: str) -> tuple[str, list[dict]]:
    """The compiler's sentence, and the largest buffers that it lists."""
    sentence = re.search(r"[^\n.]*(?:Ran out of memory|Used [\d.]+\w? of)[^\n]*", message)
    buffers = []
    for entry in re.split(r"\n\s*\d+\. ", message)[1:]:
        size = _SIZE.search(entry)
        shape = re.search(r"Shape: (\S+)", entry)
        if size and shape:
            source = re.search(r'op_name="([^"]*)"', entry)
            n = int(float(size[1]) * _UNITS.get(size[2], 1))
            buffers.append(dict(bytes=n, shape=shape[1], source=source[1] if source else ""))
    return (sentence[0] if sentence else message.splitlines()[0]).strip(), buffers[:LISTED]


def _of_parameters(config: Config, mesh: jax.sharding.Mesh) -> list[dict]:
    """The largest parameters on a device, with their moments and gradient: for a compiler that names no buffer."""
    rows = []
    for path, spec in params.table(config).items():
        shards = sharding.shard_count(spec.axes, config.mesh.rules, mesh)
        shape = f"{'x'.join(map(str, spec.shape))} in {shards} parts"
        size = BYTES_OF_PARAMETER * params.count({path: spec}) // shards
        rows.append(dict(bytes=size, shape=shape, source=f"{path} and its state"))
    return sorted(rows, key=lambda row: -row["bytes"])[:LISTED]


def remedies(config: Config, mesh: jax.sharding.Mesh, memory: dict[str, int] | None = None) -> list[str]:
    """What to change, most likely first; `memory` where it is known."""
    shard = "a larger mesh.fsdp (or mesh.tensor, mesh.expert), or a larger topology: state is split among more devices"
    of_activations = []
    if config.model.remat != REMAT[-1]:
        less = REMAT[REMAT.index(config.model.remat) + 1]
        of_activations.append(f"model.remat={less!r}: backward keeps less")
    accumulate = config.optim.accumulate
    rows = config.data.batch // accumulate // sharding.shard_count(("batch",), config.mesh.rules, mesh)
    if rows > 1 and rows % 2 == 0:
        of_activations.append(
            f"optim.accumulate={accumulate * 2}: a device's microbatch of {rows // 2} rows, now {rows}"
        )
    else:
        of_activations.append(f"mesh.context={config.mesh.context * 2}: each device takes a part of a row")
    if places(config) > config.mesh.buffer:
        m = config.mesh
        of_activations.insert(
            0, f"mesh.exchange='all_to_all': experts' buffers for {m.buffer:g} times an even load, now {m.expert}"
        )
    state_is_largest = memory is not None and memory["arguments"] > memory["temporaries"]
    return [shard, *of_activations] if state_is_largest else [*of_activations, shard]
