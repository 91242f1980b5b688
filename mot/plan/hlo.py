"""What a compiled program does, read off its text (optimised HLO, of TPU, GPU and CPU).

A loop's body counts as often as the loop runs, a conditional as the costlier of its branches. `cost_analysis()` of the
compiler counts a scanned layer once.
"""

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mot.plan.hlo_text import CHANNEL, ENDS, STARTS, TARGET, Instruction, Module, arrays, bare, bits, group, size

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# Operations that read and write nothing where they stand.
STRUCTURE = (
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "constant",
    "after-all",
    "partition-id",
    "replica-id",
)
CONTROL = ("while", "conditional", "call", "opt-barrier", "domain")
ASYNC = ("async-start", "async-update", "async-done", "copy-done")
ASYNC_ENDS = tuple(f"{name}-done" for name in (*COLLECTIVES, "send", "recv", "slice"))
MOVE_NOTHING = {*STRUCTURE, *CONTROL, *ASYNC, *ASYNC_ENDS}
WHOLE = ("fusion", "async-start")  # one operation with all that they call
LARGE = 2**20  # bytes: smaller results are not listed
PLUMBING = {"AllocateBuffer", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked", "Sharding"}


@dataclass(frozen=True)
class Address:
    """Where in the program something stands."""

    times: float  # that it runs
    endless: bool  # in a loop whose number of turns the text does not tell: it counts as one
    op_name: str  # the path of names that JAX gave it
    frames: tuple[str, ...]  # "file.py:line function", innermost first

    @property
    def source(self) -> str:
        return self.frames[0] if self.frames else self.op_name

    def within(self, *files: str) -> bool:
        return any(frame.startswith(f"{file}:") for frame in self.frames for file in files)


@dataclass(frozen=True)
class Matmul:
    """A dot or a convolution."""

    dtype: str  # of what it multiplies, the wider one
    passes: int  # of bfloat16 that its precision takes
    flops: int  # each time
    shape: str
    at: Address

    @property
    def total(self) -> float:
        return self.flops * self.at.times


@dataclass(frozen=True)
class Collective:
    kind: str
    bytes: int  # that a device gives, each time
    group: int  # devices, or slices, that take part
    shape: str
    between: bool  # slices, over the data centre's network
    awaited: str  # the name by which an `Operation` waits for it, where the program goes on meanwhile; "" where not
    at: Address

    @property
    def wire(self) -> float:
        """Bytes that a device sends in all, by rings: all-reduce is a reduce-scatter and an all-gather."""
        n = self.group
        share = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(
            self.kind, (n - 1) / n
        )
        return self.bytes * share * self.at.times


@dataclass(frozen=True)
class Kernel:
    """A custom call that computes: a Pallas kernel, by the name it was given."""

    name: str
    flops: float  # as its author estimates them, each time, of attention without a mask; 0 where it does not say
    operands: tuple[str, ...]  # shapes
    at: Address


@dataclass(frozen=True)
class Operation:
    """An instruction that stands in no fusion, with all that is fused into it. A core runs one after another."""

    matmuls: tuple[Matmul, ...]
    collectives: tuple[Collective, ...]
    kernels: tuple[Kernel, ...]
    bytes: float  # of all its runs
    times: float = 1  # that it runs
    waits: tuple[str, ...] = ()  # for collectives that earlier ones of its computation began
    computation: str = ""  # in which it stands; a computation's operations follow one another as they run


@dataclass(frozen=True)
class Program:
    operations: tuple[Operation, ...]
    endless: tuple[Address, ...]  # loops whose number of turns the text does not tell
    sizes: tuple[tuple[int, str, Address], ...]  # of results: bytes, shape, place; largest first

    @property
    def matmuls(self) -> list[Matmul]:
        return [m for operation in self.operations for m in operation.matmuls]

    @property
    def collectives(self) -> list[Collective]:
        return [c for operation in self.operations for c in operation.collectives]

    @property
    def kernels(self) -> list[Kernel]:
        return [k for operation in self.operations for k in operation.kernels]

    @property
    def bytes(self) -> float:
        """Read and written in main memory: an upper bound, as fast memory may hold what two operations share."""
        return sum(operation.bytes for operation in self.operations)

    @property
    def flops(self) -> float:
        """Of matmuls, without those of endless loops and of kernels."""
        return sum(m.total for m in self.matmuls if not m.at.endless)


# --- how often a computation runs ------------------------------------------------------------------------------------

_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\})|(?:(?:true|false)_computation=%?([\w.\-]+))")
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def _turns(loop: Instruction, module: Module) -> int | None:
    """How often a loop runs: as the compiler notes it, or the constant that its condition compares a counter with."""
    if known := _KNOWN.search(loop.rest):
        return int(known[1])
    condition = module.computations.get(group(re.compile(r"condition=%?([\w.\-]+)"), loop.rest), [])
    number = re.compile(r"^(\d+)\)")
    bounds = [int(m[1]) for i in condition if i.opcode == "constant" and (m := number.match(i.rest))]
    return bounds[0] if len(bounds) == 1 else None


def is_endless(instruction: Instruction, module: Module) -> bool:
    return instruction.opcode == "while" and _turns(instruction, module) is None


def _calls(instruction: Instruction, module: Module) -> Iterator[tuple[tuple[str, ...], float]]:
    """The computations that an instruction runs, and how often; several are branches, of which one runs."""
    if instruction.opcode == "while":
        yield (group(re.compile(r"body=%?([\w.\-]+)"), instruction.rest),), _turns(instruction, module) or 1
    elif instruction.opcode == "conditional":
        found = _BRANCHES.findall(instruction.rest)
        yield tuple(n.strip().lstrip("%") for several, one in found for n in (several or one).split(",")), 1
    elif instruction.opcode in ("fusion", "call", "async-start", "custom-call") or "calls=" in instruction.rest:
        yield from (((name,), 1) for name in _CALLED.findall(instruction.rest))


def _times(module: Module) -> tuple[dict[str, float], set[str], dict[str, str]]:
    """How often each computation runs in one run of the program, which stand in endless loops, and their callers."""

    @functools.cache
    def cost(computation: str) -> tuple[float, float]:
        flops = moved = 0.0
        for i in module.computations.get(computation, ()):
            flops += _flops(i, module)
            moved += 0 if i.opcode in MOVE_NOTHING else size(i.shape)
            for branches, times in _calls(i, module):
                one = max(map(cost, branches))
                flops, moved = flops + times * one[0], moved + times * one[1]
        return flops, moved

    result: Counter[str] = Counter()
    endless = set()
    callers = {}

    def run(computation: str, times: float, unknown: bool) -> None:
        result[computation] += times
        if unknown:
            endless.add(computation)
        for i in module.computations.get(computation, ()):
            for branches, turns in _calls(i, module):
                chosen = max(branches, key=cost)
                callers[chosen] = i.rest
                run(chosen, times * turns, unknown or is_endless(i, module))

    run(module.entry, 1, False)
    return result, endless, callers


# --- matmuls ---------------------------------------------------------------------------------------------------------

# Calls of a GPU's library for matmuls, which tell the dimensions as JSON. Their further result is room to work in.
GEMMS = ("__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8")
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_DIMS = {name: re.compile(name + r"=\{([\d,]*)\}") for name in ("lhs_contracting_dims", "lhs_batch_dims")}
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_PRECISION = re.compile(r"operand_precision=\{([^}]*)\}")
_GROUPS = {name: re.compile(name + r"=(\d+)") for name in ("feature_group_count", "batch_group_count")}


def _flops(instruction: Instruction, module: Module) -> int:
    """Of a dot or a convolution, a multiply and an add being two; products with padding or holes do not count."""
    is_gemm = _is_gemm(instruction)
    if instruction.opcode not in ("dot", "convolution") and not is_gemm:
        return 0
    left, right = (next(arrays(module.shape(name)))[1] for name in instruction.operands[:2])
    out = next(arrays(instruction.shape))[1]
    if instruction.opcode == "dot" or is_gemm:
        pattern = _CONTRACTED if is_gemm else _DIMS["lhs_contracting_dims"]
        inner = [int(x.strip('"')) for x in group(pattern, instruction.rest).split(",") if x]
        return 2 * math.prod(out) * math.prod(left[i] for i in inner)
    labels = _LABELS.search(instruction.rest)
    window = dict(part.split("=") for part in group(_WINDOW, instruction.rest).split())
    groups, splits = (int(group(p, instruction.rest) or 1) for p in _GROUPS.values())
    products = 1
    for axis in sorted(c for c in labels[1] if c.isdigit()):

        def of(name, default, i=int(axis)):
            return window[name].split("x")[i] if name in window else default

        low = int(of("pad", "0_0").split("_")[0])
        numbers = [int(of(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate")]
        sizes = left[labels[1].index(axis)], right[labels[2].index(axis)], out[labels[3].index(axis)]
        products *= _met(*sizes, low, *numbers)
    batch = left[labels[1].index("b")]
    into = left[labels[1].index("f")]
    features = right[labels[2].index("o")]
    return 2 * products * (batch // splits) * (into // groups) * features


def _is_gemm(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and group(TARGET, instruction.rest) in GEMMS


def _passes(rest: str) -> int:
    """Of bfloat16, that a TPU takes for a matmul of this precision."""
    wanted = group(_PRECISION, rest)
    return 6 if "highest" in wanted else 3 if "high" in wanted else 1


@functools.cache
def _met(left, right, out, low, stride, left_dilate, right_dilate) -> int:
    """Along one axis of a convolution, how many of its products have a real number on the left side."""
    if left_dilate == right_dilate == stride == 1 and low == 0 and out + right - 1 <= left:
        return out * right
    total = 0
    last = (left - 1) * left_dilate
    for o, k in itertools.product(range(out), range(right)):
        at = o * stride + k * right_dilate - low
        total += 0 <= at <= last and at % left_dilate == 0
    return total


# --- collectives -----------------------------------------------------------------------------------------------------

_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=")
_NAMED = re.compile(r"replica_groups=\S*mesh\[([^\]]*)\][^{]*\{([^}]*)\}")


def devices(rest: str) -> int:
    """How many devices a collective's groups have; 1 where it does not say."""
    if found := _LISTED.search(rest):
        return found[1].count(",") + 1
    if found := _IOTA.search(rest):
        return int(found[1].split(",")[-1])
    if found := _NAMED.search(rest):
        sizes = dict(part.split("=") for part in found[1].split(","))
        axes = re.findall(r"('[^']*')(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return 2 if "source_target_pairs={{" in rest else 1


_TO_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}')
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


def _goes_on(instruction: Instruction, computation: str, module: Module) -> bool:
    """Is it the further part of a collective that an earlier fusion began?"""
    begun = module.begun.get(group(CHANNEL, instruction.rest), ())
    return bool(begun) and instruction.opcode in COLLECTIVES and computation not in begun


def _begun(part: Instruction, whole: Instruction, computation: str, module: Module) -> str:
    """The name by which the program later waits for a collective, a part of an operation; "" where it waits at once."""
    if whole.opcode.endswith("-start"):
        return whole.name
    channel = group(CHANNEL, part.rest)
    return channel if computation in module.begun.get(channel, ()) else ""


def _ended(part: Instruction, whole: Instruction, computation: str, module: Module) -> str:
    """The name of a collective that ends with this part of an operation, or ""."""
    if whole.opcode == "async-done" or whole.opcode.removesuffix("-done") in COLLECTIVES:
        return whole.operands[0] if whole.opcode.endswith("-done") else ""
    ends = part.opcode in COLLECTIVES and any(
        group(TARGET, i.rest) == ENDS for i in module.computations.get(computation, ())
    )
    return group(CHANNEL, part.rest) if ends else ""


def _collective(
    instruction: Instruction, at: Callable[[], Address], computation: str, awaited: str, module: Module
) -> Collective | None:
    if instruction.opcode == "send":
        return _between_slices(instruction, at, module)
    kind = instruction.opcode.removesuffix("-start")
    group = devices(instruction.rest)
    if kind not in COLLECTIVES or group == 1 or _goes_on(instruction, computation, module):
        return None
    if kind == "all-reduce" and "reduce-scatter" in computation:
        kind = "reduce-scatter"  # TPU writes one as an all-reduce and a slice of it in a fusion
    given = [module.shape(name) for name in instruction.operands]
    told = bare(f"({', '.join(given)})")
    return Collective(kind, sum(map(size, given)), group, told, False, awaited, at())


def _between_slices(send: Instruction, at: Callable[[], Address], module: Module) -> Collective | None:
    """What a device gives the host, which exchanges it with other slices' hosts over the data centre's network."""
    slices = group(_TO_SLICES, send.rest)
    if not slices:
        return None  # a callback's
    kind = group(_TRANSFER, send.rest).lower().replace("_", "-")
    given = module.shape(send.operands[0])
    return Collective(kind, size(given), slices.count(",") + 1, bare(given), True, "", at())


# --- custom calls, and bytes -----------------------------------------------------------------------------------------

_COUNT = re.compile(r"\.\d+$")
_ESTIMATE = re.compile(r'"cost_estimate":\{[^}]*"flops":"?([\d.e+]+)')


def _kernel(instruction: Instruction, at: Callable[[], Address], module: Module) -> Kernel | None:
    target = group(TARGET, instruction.rest)
    if instruction.opcode != "custom-call" or target in (*PLUMBING, *GEMMS) or "Async" in target:
        return None
    name = _COUNT.sub("", instruction.name) if target == "tpu_custom_call" else target
    flops = float(group(_ESTIMATE, instruction.rest) or 0)
    return Kernel(name, flops, tuple(bare(module.shape(n)) for n in instruction.operands), at())


def _bytes(instruction: Instruction, module: Module) -> int:
    """Read and written in main memory by an instruction that stands in no fusion."""
    opcode = instruction.opcode
    if opcode == "async-start":
        return sum(_bytes(i, module) for i in module.computations.get(group(_CALLED, instruction.rest), ()))
    if opcode in MOVE_NOTHING or group(TARGET, instruction.rest) in PLUMBING:
        return 0

    def main(shape):
        return size(shape, only_main=True)

    of = [main(module.shape(name)) for name in instruction.operands]
    out = main(instruction.shape)
    if _is_gemm(instruction):
        dtype, sizes, layout = next(arrays(instruction.shape))
        return sum(of) + main(f"{dtype}[{','.join(map(str, sizes))}]{{{layout}}}")
    if opcode == "fusion":
        return _fusion_bytes(instruction, of, module)
    if opcode == "copy-start":
        return sum(
            map(main, (f"{d}[{','.join(map(str, s))}]{{{lay}}}" for d, s, lay in list(arrays(instruction.shape))[:2]))
        )
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * out
    if opcode == "dynamic-update-slice":
        return 2 * of[1]
    if opcode.endswith("-start") or opcode == "recv":
        return out  # a tuple of what it takes and what it gives
    return sum(of) + (0 if opcode == "send" else out)


_INDEX = re.compile(r"^(\d+)\)")


def _fusion_bytes(fusion: Instruction, of: Sequence[int], module: Module) -> int:
    """What is only sliced is read as its slices, and what is updated in place is written as its update.

    What a fusion only hands on, or what an earlier fusion began to gather, is neither.
    """
    body = group(_CALLED, fusion.rest)
    reads = sum(_read(body, n, whole, module) for n, whole in enumerate(of))
    out = size(fusion.shape, only_main=True)
    return reads + (min(_written(module.roots[body], module), out) if body in module.roots else out)


def _read(body: str, n: int, whole: int, module: Module) -> int:
    """Bytes that a fused computation reads of its n-th operand, of `whole`."""
    inputs = {group(_INDEX, i.rest): i.name for i in module.computations.get(body, ()) if i.opcode == "parameter"}
    if not whole or str(n) not in inputs:
        return whole
    names = {inputs[str(n)]}
    total = 0
    for user in module.computations[body]:
        for place, name in enumerate(user.operands):
            if name not in names:
                continue
            if user.opcode == "tuple" or _goes_on(user, body, module) or group(TARGET, user.rest) == ENDS:
                continue
            if user.opcode == "bitcast":
                names.add(user.name)
            elif user.opcode == "fusion":
                total += _read(group(_CALLED, user.rest), place, whole, module)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
                total += size(user.shape)
            elif user.opcode != "dynamic-update-slice" or place:
                return whole
    return min(total, whole)


def _written(i: Instruction, module: Module) -> int:
    """Bytes that a fused computation's root writes."""
    while i.opcode == "bitcast" and i.operands[0] in module.by_name:
        i = module.by_name[i.operands[0]]
    if i.opcode == "tuple":
        return sum(_written(module.by_name[name], module) for name in i.operands)
    if i.opcode == "parameter" or _goes_on(i, "", module) or group(TARGET, i.rest) == ENDS:
        return 0
    if group(TARGET, i.rest) == STARTS:
        return sum(size(module.shape(name)) for name in i.operands)
    if i.opcode == "fusion" and (root := module.roots.get(group(_CALLED, i.rest))):
        return _written(root, module)
    return size(module.shape(i.operands[1])) if i.opcode == "dynamic-update-slice" else size(i.shape)


# --- all of it -------------------------------------------------------------------------------------------------------


def read(text: str) -> Program:
    """`text` is `compiled.as_text()`."""
    module = Module(text)
    times, unknown, callers = _times(module)
    fused = {group(_CALLED, i.rest) for i in module.by_name.values() if i.opcode in WHOLE}
    operations, endless, sizes = [], [], {}
    for computation, n in times.items():
        if computation in fused:
            continue
        for i in module.computations.get(computation, ()):

            def at(told, n=n, c=computation):
                return Address(n, c in unknown, group(_OP_NAME, told), module.frames(told))

            caller = callers.get(computation, "")
            operations.append(_operation(i, computation, n, at, caller, module))
            if is_endless(i, module):
                endless.append(at(i.rest))
            listed = i.opcode not in MOVE_NOTHING and group(TARGET, i.rest) not in PLUMBING
            if listed and (held := size(i.shape, only_main=True)) >= LARGE:
                sizes.setdefault(bare(i.shape), (held, at(_told(i, caller))))
    largest = sorted(((held, shape, at) for shape, (held, at) in sizes.items()), key=lambda x: x[:2], reverse=True)
    did = tuple(o for o in operations if o.bytes or o.matmuls or o.collectives or o.kernels or o.waits)
    return Program(did, tuple(endless), tuple(largest))


def _operation(
    i: Instruction, computation: str, n: float, at: Callable[[str], Address], caller: str, module: Module
) -> Operation:
    matmuls, collectives, kernels, waits = [], [], [], []
    for part, where, calling in _parts(i, computation, caller, module):
        place = functools.partial(at, _told(part, calling))
        if flops := _flops(part, module):
            types = [next(arrays(module.shape(name)))[0] for name in part.operands[:2]]
            matmuls.append(Matmul(max(types, key=bits), _passes(part.rest), flops, bare(part.shape), place()))
        if found := _collective(part, place, where, _begun(part, i, where, module), module):
            collectives.append(found)
        if ended := _ended(part, i, where, module):
            waits.append(ended)
        if found := _kernel(part, place, module):
            kernels.append(found)
    moved = n * _bytes(i, module)
    return Operation(tuple(matmuls), tuple(collectives), tuple(kernels), moved, n, tuple(waits), computation)


def _told(i: Instruction, caller: str) -> str:
    """Where an instruction's metadata stands: with it, or with what calls its computation."""
    return i.rest if "op_name" in i.rest else caller


def _parts(i: Instruction, computation: str, caller: str, module: Module) -> Iterator[tuple[Instruction, str, str]]:
    """The instruction and all that is fused into it: each with its computation, and what calls that."""
    yield i, computation, caller
    if i.opcode in WHOLE:
        body = group(_CALLED, i.rest)
        for part in module.computations.get(body, ()):
            yield from _parts(part, body, i.rest, module)
