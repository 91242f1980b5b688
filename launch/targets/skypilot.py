"""SkyPilot: a managed job on GPUs of any cloud, of Kubernetes or of Slurm, spot machines too."""

from typing import Any

from launch.targets import job
from launch.targets.job import Job, Target
from launch.targets.render import render

TASK = "task.yaml"
RETRIES = 3


def refuse(j: Job) -> list[str]:
    names = ("accelerators", "image")
    faults = [f"--{name} is missing: {job.OPTIONS[name].about}" for name in names if not j.options[name]]
    if j.is_sweep and j.options["nodes"] > 1:
        faults.append(f"--nodes={j.options['nodes']}: a sweep runs on one machine; leave it out")
    return faults


def files(j: Job) -> dict[str, str]:
    o = j.options
    script = render("task.sh", command=["mot", *j.command], nodes=o["nodes"])
    told = {key: o[key] for key in ("nodes", "infra", "accelerators", "spot", "image")}
    text = render("task.yaml", name=j.name, script=script, retries=RETRIES, stopped=job.STOPPED, lost=job.LOST, **told)
    return {TASK: text}


def command(j: Job) -> list[str]:
    return ["sky", "jobs", "launch", "--yes", "--detach-run", f"--name={j.name}", str(j.folder / TASK)]


def submit(j: Job) -> dict[str, Any]:
    job.call(*command(j), timeout=1800)
    return {}


def status(j: Job) -> str:
    told = job.call("sky", "jobs", "queue", "--all")
    lines = [line.strip() for line in told.splitlines() if j.name in line.split()]
    return "\n".join(lines) or "SkyPilot knows no job of that name"


def logs(j: Job, follow: bool) -> list[str]:
    return ["sky", "jobs", "logs", f"--name={j.name}", "--follow" if follow else "--no-follow"]


def stop(j: Job) -> str:
    job.call("sky", "jobs", "cancel", "--yes", f"--name={j.name}")
    return "cancelled"


TARGET = Target("sky", "SkyPilot (pip install skypilot)", files, command, submit, status, logs, stop, refuse)
