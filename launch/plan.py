"""Compiles a configuration's step for TPUs that are not there, and says whether it fits and how fast it can be."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch import arguments, flags, refusals
from launch.process import PLANNING, guarded
from mot.config import load
from mot.console import phase
from mot.files import write_atomically
from mot.plan import chips, forecast

MOST = 8  # lines of one kind


def main(argv: list[str] | None = None) -> int:
    p = arguments.plan()
    options, overrides = flags.parse(p, argv)
    refusals.plan(options, overrides, p.get_default("config"))
    if options.quick:
        forecast.hurry()
    if options.ladder:
        from mot.plan import ladder

        return ladder.main(Path("docs/reference"))
    chips.parse(options.topology)
    # Without its data, of which a plan needs nothing.
    config = flags.judged(load.read(options.config, overrides))
    topology = chips.topology(options.topology, config.mesh.slices)
    out = Console(soft_wrap=True, highlight=False)
    if options.search:
        from mot.plan import best, process

        def judge(more):
            return process.plan(options.config, options.topology, overrides | more, options.quick)

        plan = best.main(config, topology, judge, out)
    else:
        with phase(f"compiling for {options.topology}: a minute, for large models some"):
            plan = forecast.plan(config, topology)
    show(plan, out)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, json.dumps(plan.to_json(), indent=1) + "\n")
    return 0 if plan.fits else 1


def show(plan: forecast.Forecast, out: Console) -> None:
    mesh = " x ".join(f"{axis} {n}" for axis, n in plan.mesh.items()) or "one device"
    microbatches = f"{plan.accumulate} microbatch{'es' * (plan.accumulate > 1)}"
    out.print(
        f"[bold]{plan.name} on {plan.topology}[/bold]: {plan.chips} chips, {plan.devices} devices, mesh {mesh}; "
        f"{plan.rows} rows of {plan.length} tokens, {microbatches}, remat {plan.remat}"
    )
    table = Table(box=None, show_header=False, padding=(0, 2))

    def row(name, *told):
        return table.add_row(name, *told)

    active = ", ".join(f"{stream} {_short(n)}" for stream, n in plan.active.items())
    row("parameters", f"{_short(plan.parameters)}; a token meets {active}")
    row("model FLOPs a token", f"{_short(plan.flops_per_token)}: {plan.assumed}")
    if plan.memory:
        parts = ", ".join(f"{name} {n / 1e9:.2f}" for name, n in plan.memory.items() if name not in ("peak", "outputs"))
        row("GB of a device", f"{plan.memory['peak'] / 1e9:.2f} of {plan.memory_of_chip / 1e9:.1f}: {parts}")
        _measured(plan, row)
    out.print(table)
    if not plan.fits:
        out.print(f"[red]does not fit[/red]: {plan.trouble}")
    for buffer in plan.buffers[: MOST if not plan.fits else 3]:
        out.print(f"  {buffer['bytes'] / 1e9:8.2f} GB  {buffer['shape']}  {buffer['source']}", markup=False)
    for remedy in plan.remedies:
        out.print(f"  try {remedy}", markup=False)


def _measured(plan, row) -> None:
    row(
        "matmul FLOPs of a device",
        f"{_short(plan.matmul_flops)}, {plan.ratio:.3f} of the formula's {_short(plan.formula_flops)} and "
        f"{_short(plan.recomputed_flops)} recomputed; without attention",
    )
    for kind, c in plan.collectives.items():
        meanwhile = f", {c['meanwhile'] / 1e9:.3f} of it beside other work" if c["meanwhile"] else ""
        row(kind, f"{c['number']:.0f} a step, {c['wire'] / 1e9:.3f} GB sent{meanwhile}")
    wide = plan.float32_matmuls
    for found in wide[:MOST]:
        row("[yellow]float32 matmul[/yellow]", f"{found['shape']} {found['source']}, {_short(found['flops'])} FLOPs")
    if wide[MOST:]:
        row("", f"and {len(wide) - MOST} more, in --out's file")
    if plan.uncounted_loops:
        row("[yellow]loops of unknown length[/yellow]", f"{', '.join(plan.uncounted_loops)}: counted once")
    if plan.places > 1:
        row(
            "[yellow]experts' buffers[/yellow]",
            f"{plan.places:g} places for each row that balanced experts get: what is in empty ones is not multiplied, "
            "and not counted as FLOPs, but takes memory and its bandwidth",
        )
    parts = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in plan.spent.items() if seconds)
    row("step at peak, ms", f"{plan.roofline['step'] * 1e3:.1f}, by what binds its operations: {parts}")
    row("", f"MFU at most {plan.mfu_bound:.1%}, {_short(plan.tokens_per_day)} tokens a day")
    row("", f"{plan.roofline['overlapped'] * 1e3:.1f} if all of it overlapped")
    row("the run", f"{plan.days:.2f} days, {plan.chip_hours:,.0f} chip-hours at least")
    least = ", with the least effort: then nothing is sent beside other work" if plan.effort < 0 else ""
    row("compiled in", f"{plan.compile_seconds:.0f} s, traced in {plan.tracing_seconds:.0f} s{least}")


def _short(n: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.3g}"


if __name__ == "__main__":
    sys.exit(guarded(main, more=PLANNING))
