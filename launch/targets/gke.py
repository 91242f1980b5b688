"""Google Kubernetes Engine: a JobSet on slices of TPUs, in a queue of Kueue."""

from typing import Any

from launch.targets import job, slices
from launch.targets.job import Job, Target
from launch.targets.render import render

MANIFEST = "jobset.yaml"
GRACE = 300  # seconds
LONGEST = 63  # characters of a host's name
OF_JOBSET = "jobset.sigs.k8s.io/jobset-name"  # the label of its pods
STATES = (
    "jsonpath={.status.terminalState} {range .status.conditions[?(@.status=='True')]}{.type}: {.message}; {end}"
    "restarts {.status.restarts}"
)


def refuse(j: Job) -> list[str]:
    faults = slices.refuse(j)
    if not faults:
        pod = f"{j.name}-slice-{j.slices - 1}-{slices.of(j.options['topology']).hosts - 1}-xxxxx"
        if len(pod) > LONGEST:
            faults.append(
                f"--name={j.name}: its machines would be called {pod}, and Kubernetes takes {LONGEST} characters; "
                f"shorten it by {len(pod) - LONGEST}"
            )
    return faults


def files(j: Job) -> dict[str, str]:
    o = j.options
    found = slices.of(o["topology"])
    several = found.hosts * j.slices > 1
    # Kubernetes makes $$ to $, and would replace $(NAME).
    command = [word.replace("$", "$$") for word in ["mot", *j.command, *["--distributed=auto"] * several]]
    return {
        MANIFEST: render(
            "jobset.yaml",
            name=j.name,
            command=command,
            slices=j.slices,
            hosts=found.hosts,
            chips=found.chips_of_host,
            accelerator=found.kind.label,
            topology=found.shape,
            grace=GRACE,
            stopped=job.STOPPED,
            **{key: o[key] for key in ("namespace", "queue", "restarts", "spot", "image")},
        )
    }


def kubectl(j: Job, *words: str) -> list[str]:
    return ["kubectl", f"--namespace={j.options['namespace']}", *words]


def command(j: Job) -> list[str]:
    return kubectl(j, "create", f"--filename={j.folder / MANIFEST}")


def submit(j: Job) -> dict[str, Any]:
    job.call(*command(j))
    return {}


def status(j: Job) -> str:
    return job.call(*kubectl(j, "get", f"jobset/{j.name}", f"--output={STATES}")).strip()


def logs(j: Job, follow: bool) -> list[str]:
    more = ["--follow", "--max-log-requests=1000"] * follow
    return kubectl(j, "logs", f"--selector={OF_JOBSET}={j.name}", "--prefix", "--tail=-1", *more)


def stop(j: Job) -> str:
    job.call(*kubectl(j, "delete", f"jobset/{j.name}", "--wait=false"))
    return f"deleted; a run has {GRACE} s to save"


TARGET = Target("kubectl", "the Google Cloud CLI, or Kubernetes", files, command, submit, status, logs, stop, refuse)
