"""What the plan for a topology says of what is to be launched there: whether it fits, how long, and at what cost."""

import importlib.util
from collections import Counter

from launch import arguments, judging
from launch.targets.job import Job
from mot.console import phase
from mot.errors import UserError
from mot.plan import process


def planned(made: Job) -> str:
    """What is to be told before it is submitted; `UserError` where a step does not fit, or the compiler is not here."""
    if made.is_sweep:
        return _of_sweep(made)
    options, overrides = judging.training(made.command)
    refuse_without_compiler(made)
    plan = _compiled(made, options.config, overrides, "the run")
    gigabytes = plan["memory"]["peak"] / 1e9
    return (
        f"fits {made.options['topology']}: {gigabytes:.1f} of {plan['memory_of_chip'] / 1e9:.1f} GB of a device; at "
        f"least {plan['days']:.2f} days, {plan['chip_hours']:,.0f} chip-hours"
    )


def _of_sweep(made: Job) -> str:
    """Of all rows: by count, which needs no compiler, then a program of each kind by the compiler."""
    from launch import sweep_cost, sweep_rows  # which wait for JAX, and a run's launch does not

    topology = made.options["topology"]
    options = arguments.PARSERS["sweep"]().parse_args(made.command[1:])
    out = options.out or sweep_rows.usual_out(options.sweep)
    devices = sweep_cost.named(topology)
    rows = sweep_rows.judged(options.sweep, sweep_rows.read(options.sweep), out, sweep_cost.fits(devices))
    refuse_without_compiler(made)
    programs = {sweep_rows.program(row.config): row for row in rows}  # the last row of each
    counts = Counter(sweep_rows.program(row.config) for row in rows)
    days = hours = most = 0.0
    for number, (program, row) in enumerate(programs.items(), start=1):
        what = f"{row.name}, program {number} of {len(programs)}"
        plan = _compiled(made, row.values["config"], sweep_rows.overrides(row.values), what)
        days += counts[program] * plan["days"]
        hours += counts[program] * plan["chip_hours"]
        most = max(most, plan["memory"]["peak"])
    return (
        f"each of {len(rows)} rows fits {topology} by itself: {most / 1e9:.1f} of "
        f"{plan['memory_of_chip'] / 1e9:.1f} GB of a device at most; one after another they take at least "
        f"{days:.2f} days, {hours:,.0f} chip-hours"
    )


def refuse_without_compiler(made: Job) -> None:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={made.options['topology']}: whether it fits is told by TPU's compiler, which is not "
            "installed; pip install -e '.[tpu]', or submit without by --unplanned"
        )


def _compiled(made: Job, config: str, overrides: dict[str, str], what: str) -> dict:
    """The plan of one program; `UserError` where it does not fit."""
    topology = made.options["topology"]
    with phase(f"compiling {what} for {topology}: a minute, for large models some"):
        plan = process.plan(config, topology, overrides, quick=False)
    if "failed" in plan:
        raise UserError(f"--topology={topology}: the plan of {what} failed, and nothing was launched: {plan['failed']}")
    if not plan["fits"]:
        remedies = "".join(f"\n  try {remedy}" for remedy in plan["remedies"])
        raise UserError(
            f"--topology={topology}: {what} does not fit, and nothing was launched: {plan['trouble']}; take a larger "
            f"slice, or less at a time{remedies}"
        )
    return plan
