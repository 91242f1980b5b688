"""Runs a command of mot on this machine or on a cluster: shows what it submits, submits it, follows it."""

import dataclasses
import os
import shlex
import sys

from launch import flags, judging, planning
from launch.process import guarded
from launch.targets import job
from launch.targets.job import Job
from mot.errors import UserError
from mot.files import write_atomically


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
        print("--- and then", shlex.join(target.command(made)), sep="\n")
        return 0
    job.refuse_missing(target.program, made.target, target.comes_with)
    refuse_living(made)
    if made.options.get("topology"):
        told = "not planned: whether it fits was not asked" if options.unplanned else planning.planned(made)
        print(told, file=sys.stderr)
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


if __name__ == "__main__":
    sys.exit(guarded(main))
