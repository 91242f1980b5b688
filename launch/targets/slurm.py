"""Slurm: one job of several nodes, or an array of jobs for the rows of a sweep; queued again until it has ended."""

import glob
import re
from typing import Any

from launch.targets import job
from launch.targets.job import Job, Target
from launch.targets.render import render
from mot.errors import UserError

SCRIPT = "job.sh"
RETRIES = 3
COLUMNS = "%.20i %.12T %.10M %.20S %R"  # number, state, time so far, when it begins, where or why not


def processes(j: Job) -> int:
    """Of a node."""
    return j.options["gpus"] or j.options["tasks"]


def refuse(j: Job) -> list[str]:
    o = j.options
    faults = []
    if o["gpus"] and o["tasks"] > 1:
        faults.append(f"--gpus={o['gpus']}, --tasks={o['tasks']}: each GPU has a process of its own; leave --tasks out")
    if j.is_sweep and not o["rows"]:
        faults.append("--rows is missing: how many rows the sweep has; `mot sweep ... --dry-run` lists them")
    if not j.is_sweep and o["rows"]:
        faults.append(f"--rows={o['rows']}: is of a sweep; leave it out")
    if o["time"] and 0 < seconds(o["time"]) <= o["grace"]:
        faults.append(
            f"--time={o['time']}, --grace={o['grace']}: a job would be told to end as it begins; give it more time, or "
            "a smaller grace"
        )
    return faults


def seconds(time: str) -> int:
    """Of a limit as sbatch reads it: minutes, minutes:seconds, hours:minutes:seconds, or days-hours:minutes:seconds."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86_400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def files(j: Job) -> dict[str, str]:
    several = j.options["nodes"] * processes(j) > 1
    command = [*job.MOT, *j.command, *["--distributed=auto"] * several]
    told = {key: j.options[key] for key in ("nodes", "gpus", "rows", "time", "partition", "account", "grace")}
    return {
        SCRIPT: render(
            "slurm.sh",
            name=j.name,
            folder=str(j.folder),
            command=command,
            processes=processes(j),
            stopped=job.STOPPED,
            lost=job.LOST,
            retries=RETRIES,
            **told,
        )
    }


def command(j: Job) -> list[str]:
    return ["sbatch", "--parsable", str(j.folder / SCRIPT)]


def submit(j: Job) -> dict[str, Any]:
    said = job.call(*command(j))
    number = said.strip().partition(";")[0]
    if not re.fullmatch(r"\d+", number, re.ASCII):
        raise UserError(
            f"sbatch --parsable: said {said[:60]!r} in place of a job's number; look whether it took the job "
            f"(squeue --name={j.name}), and cancel it before you try again"
        )
    return {"number": number}


def status(j: Job) -> str:
    return _queued(j) or f"job {j.facts['number']} is not in the queue: it has ended, or was stopped"


def _queued(j: Job) -> str:
    told = job.call("squeue", "--me", "--noheader", f"--format={COLUMNS}", f"--name={j.name}")
    mine = [line for line in told.splitlines() if line.strip().partition(" ")[0].partition("_")[0] == j.facts["number"]]
    return "\n".join(line.strip() for line in mine)


def is_alive(j: Job) -> bool:
    return bool(_queued(j))


def logs(j: Job, follow: bool) -> list[str]:
    found = sorted(glob.glob(f"{j.folder}/log-{j.facts['number']}*.txt"))
    return ["tail", "-n", "+1", *["-F"] * follow, *(found or [f"{j.folder}/log-{j.facts['number']}.txt"])]


def stop(j: Job) -> str:
    job.call("scancel", j.facts["number"])
    return "cancelled; a run saves first, if Slurm's KillWait leaves it the time"


TARGET = Target("sbatch", "Slurm", files, command, submit, status, logs, stop, refuse, is_alive)
