"""Two programs of the same work beside each other: their figures, by one reader, and the page of them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mot.config import Config
from mot.model import flops
from mot.plan import bound, forecast, hlo
from mot.plan.chips import Topology
from mot.plan.hlo_text import arrays, size

Figure = float | Mapping[str, float]  # a number, or its parts by what they are of


def figures(text: str, memory: Mapping[str, int], cpu_seconds: float, config: Config, topology: Topology) -> dict:
    """What a compiled step needs and does, on one device: bytes, FLOPs, seconds at peak figures, and numbers.

    `config` says what the work is, `text` what a program does for it. Operations are told by what they are, and not by
    whose source they come from: attention by its kernels' name, splash.
    """
    program = hlo.read(text)
    devices = topology.chips * topology.chip.devices
    tokens = {name: config.data.batch * s.budget for name, s in config.streams.items()}
    of_pair = flops.FORWARD_AND_BACKWARD * flops.attention_per_pair(config) / devices
    again = forecast.RECOMPUTED_ATTENTION if config.model.remat in forecast.RECOMPUTING else 0
    attention = of_pair * forecast.attention_work(config) * (forecast.ATTENTION + again)
    whole, spent = bound.seconds(program, topology, _computed, _is_attention, attention)
    step = max(sum(spent.values()), max(whole.values()))
    formula = flops.train_step(config, tokens, 0) / devices
    did = program.flops + sum(map(_grouped, program.operations))
    passes = sum(o.bytes for o in program.operations if not (o.matmuls or o.kernels or o.collectives))
    return {
        "arguments": memory["argument"],
        "temporaries": memory["temp"],
        "peak": sum(memory.values()) - 2 * memory["alias"],
        "matmul_flops": did,
        "over_formula": did / (formula + forecast.recomputed(config, tokens) / devices),
        "float32_flops": sum(m.total for m in program.matmuls if m.dtype == "f32"),
        "bytes": program.bytes,
        "passes": passes / topology.bandwidth,
        "gathered": sent(program, ["all-gather"]),
        "reduced": sent(program, ["reduce-scatter", "all-reduce"]),
        "sent_otherwise": sent(program, ["all-to-all", "ragged-all-to-all", "collective-permute"]),
        "interconnect": whole["interconnect"],
        "instructions": sum(o.times for o in program.operations),
        "attention_calls": _runs(k for k in program.kernels if _is_of_attention(k)),
        "grouped_calls": _runs(k for k in program.kernels if _is_grouped(k)),
        "step": step,
        "overlapped": max(whole.values()),
        "mfu": (formula + of_pair * forecast.pairs(config)) / topology.flops / step,
        "collectives": _collectives(program),
        "endless": len(program.endless),
        "cpu_seconds": cpu_seconds,
        "text": len(text),
    }


def sent(program: hlo.Program, kinds: Iterable[str]) -> dict[str, float]:
    """Bytes that a device sends, by what they are: `bf16 all-gather`."""
    total: dict[str, float] = defaultdict(float)
    for collective in program.collectives:
        if collective.kind in kinds:
            parts = Counter()
            for dtype, sizes, _ in arrays(collective.shape):
                parts[dtype] += size(f"{dtype}[{','.join(map(str, sizes))}]")
            for dtype, part in parts.items():
                total[f"{dtype} {collective.kind}"] += collective.wire * part / max(parts.total(), 1)
    return dict(total)


def _collectives(program: hlo.Program) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for collective in program.collectives:
        counts["beside other work" if collective.awaited else "waited for"] += collective.at.times
    return dict(counts)


def _runs(kernels: Iterable[hlo.Kernel]) -> float:
    return sum(k.at.times for k in kernels)


def _is_of_attention(kernel: hlo.Kernel) -> bool:
    return "splash" in kernel.name


def _is_attention(operation: hlo.Operation) -> bool:
    return any(map(_is_of_attention, operation.kernels))


def _is_grouped(kernel: hlo.Kernel) -> bool:
    return "gmm" in kernel.name


def _computed(operation: hlo.Operation) -> float:
    """FLOPs of an operation's matmuls, in all its runs; attention's are counted for both programs by the formula."""
    return sum(m.total * m.passes for m in operation.matmuls) + _grouped(operation)


def _grouped(operation: hlo.Operation) -> float:
    """Of experts' matmuls, as their authors estimate them: both count each row once."""
    return sum(k.flops * k.at.times for k in operation.kernels if _is_grouped(k))


# --- the page --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    name: str
    key: str  # of `figures`
    unit: float = 1
    digits: int = 0


ROWS = (
    Row("arguments, GB", "arguments", 1e9, 2),
    Row("temporaries, GB", "temporaries", 1e9, 1),
    Row("peak, GB", "peak", 1e9, 1),
    Row("matmul FLOPs, T", "matmul_flops", 1e12, 1),
    Row("over the formula", "over_formula", 1, 3),
    Row("of them in float32, T", "float32_flops", 1e12, 1),
    Row("bytes accessed, GB", "bytes", 1e9),
    Row("passes that multiply nothing, ms", "passes", 1e-3),
    Row("gathered, GB sent", "gathered", 1e9, 1),
    Row("reduced, GB sent", "reduced", 1e9, 1),
    Row("sent otherwise, GB", "sent_otherwise", 1e9, 1),
    Row("interconnect, ms", "interconnect", 1e-3, 1),
    Row("collectives", "collectives"),
    Row("instructions", "instructions"),
    Row("calls of attention", "attention_calls"),
    Row("calls of experts' matmuls", "grouped_calls"),
    Row("loops of unknown length", "endless"),
    Row("sum by operation, ms", "step", 1e-3),
    Row("all overlapped, ms", "overlapped", 1e-3),
    Row("MFU at most, %", "mfu", 1e-2, 1),
    Row("traced and compiled, CPU-seconds", "cpu_seconds"),
    Row("text of the program, MB", "text", 1e6, 2),
)
NEGLIGIBLE = 0.005  # of a figure: smaller parts of it are not named


def total(figure: Figure) -> float:
    return sum(figure.values()) if isinstance(figure, Mapping) else figure


def is_shown(figure: Figure, row: Row) -> bool:
    return round(total(figure) / row.unit, row.digits) > 0


def cell(figure: Figure, row: Row) -> str:
    if not isinstance(figure, Mapping):
        return f"{figure / row.unit:,.{row.digits}f}"
    parts = sorted(figure.items(), key=lambda part: -part[1])
    told = [f"{x / row.unit:,.{row.digits}f} {what}" for what, x in parts if x > NEGLIGIBLE * total(figure)]
    return " + ".join(told) or "0"


def table(ours: Mapping[str, Figure], theirs: Mapping[str, Figure]) -> str:
    """In Markdown; figures that both have as 0 are left out."""
    lines = ["| a device, a step | mot | MaxText | mot / MaxText |", "|---|---|---|---|"]
    for row in ROWS:
        a, b = ours[row.key], theirs[row.key]
        ratio = f"{total(a) / total(b):.2f}" if is_shown(b, row) else ""
        if is_shown(a, row) or is_shown(b, row):
            lines.append(f"| {row.name} | {cell(a, row)} | {cell(b, row)} | {ratio} |")
    return "\n".join(lines)
