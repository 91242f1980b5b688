"""Runs a command of mot on this machine or on a cluster: shows what it submits, submits it, follows it."""

import dataclasses
import importlib.util
import os
import sys

from launch import flags, judging
from launch.process import guarded
from launch.targets import job
from launch.targets.job import Job
from mot.console import phase
from mot.errors import UserError
from mot.files import write_atomically
from mot.plan import process


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options, made = judging.judge(argv)
    if (verb := options.words[0]) in judging.FOLLOWING:
        return follow(verb, made, options.follow)
    target = judging.target(made.target)
    files = target.files(made)
    if options.dry_run:
        for name, text in files.items():
            print(f"--- {made.folder / name}", text, sep="\n", end="")
        return 0
    job.refuse_missing(target.program, made.target, target.comes_with)
    refuse_living(made)
    if made.options.get("topology"):
        print(planned(made) if not options.unplanned else "not planned: whether it fits was not asked", file=sys.stderr)
    made.folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomically(made.folder / name, text)
    made = dataclasses.replace(made, facts=target.submit(made))
    job.save(made)
    print(f"{made.name}: launched; its files lie in {made.folder}")
    following = ["keep"] if target.keep else []
    following += ["status", "logs", "stop"]
    print("next:", *(f"  {flags.command('launch', verb, made.name)}" for verb in following), sep="\n", file=sys.stderr)
    return 0


def follow(verb: str, made: Job, endless: bool) -> int:
    target = judging.target(made.target)
    if verb == "status":
        print(f"{made.name} ({made.target}): {target.status(made)}")
    elif verb == "stop":
        print(f"{made.name} ({made.target}): {target.stop(made)}")
    elif verb == "keep":
        return target.keep(made)
    else:
        command = target.logs(made, endless)
        job.refuse_missing(command[0], made.target, "this target's program")
        sys.stdout.flush()
        os.execvp(command[0], command)
    return 0


def refuse_living(made: Job) -> None:
    """One of that name may be there, and have ended: then this one follows it, in the same folder."""
    if not (made.folder / "launch.json").exists():
        return
    there = job.load(made.name)
    is_alive = judging.target(there.target).is_alive
    stop = flags.command("launch", "stop", made.name)
    if is_alive(there):
        raise UserError(f"{made.name}: runs already, by --target={there.target}; `{stop}`, or give another --name")
    if is_alive is job.refused_by_its_service and there.target != made.target:
        raise UserError(
            f"{made.name}: was launched by --target={there.target}, and may still run there, where nobody could follow "
            f"it any more; `{stop}` and remove {made.folder}, or give another --name"
        )


def planned(made: Job) -> str:
    """What the plan for the topology says; `UserError` where the step does not fit, or the compiler is not here."""
    topology = made.options["topology"]
    if made.is_sweep:
        return "not planned: a sweep's rows are; `mot sweep ... --dry-run` counts them"
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology}: whether it fits is told by TPU's compiler, which is not installed; "
            "pip install -e '.[tpu]', or submit without by --unplanned"
        )
    options, overrides = judging.training(made.command)
    with phase(f"compiling for {topology}: a minute, for large models some"):
        plan = process.plan(options.config, topology, overrides, quick=False)
    if "failed" in plan:
        raise UserError(f"--topology={topology}: the plan failed, and nothing was launched: {plan['failed']}")
    if not plan["fits"]:
        remedies = "".join(f"\n  try {remedy}" for remedy in plan["remedies"])
        raise UserError(
            f"--topology={topology}: does not fit, and nothing was launched: {plan['trouble']}; take a larger slice, "
            f"or less at a time{remedies}"
        )
    gigabytes = plan["memory"]["peak"] / 1e9
    return (
        f"fits {topology}: {gigabytes:.1f} of {plan['memory_of_chip'] / 1e9:.1f} GB of a device; at least "
        f"{plan['days']:.2f} days, {plan['chip_hours']:,.0f} chip-hours"
    )


if __name__ == "__main__":
    sys.exit(guarded(main))
