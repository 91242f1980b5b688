"""TPU VMs: a queued resource of Google Cloud, whose machines run a start-up script; made anew when it is preempted."""

import time
from typing import Any

from launch.targets import job, slices
from launch.targets.job import Job, Target
from launch.targets.render import render
from mot.errors import UserError
from mot.files import as_path, numbered

SCRIPT = "start.sh"
GRACE = 300  # seconds
TRIALS = 1000
OFTEN = 60.0  # seconds between two looks
GONE = ("FAILED", "SUSPENDING", "SUSPENDED")  # states that a queued resource does not leave
QUEUED = ("gcloud", "compute", "tpus", "queued-resources")
MACHINES = ("gcloud", "compute", "tpus", "tpu-vm")


def refuse(j: Job) -> list[str]:
    faults = slices.refuse(j)
    faults += [f"--{name} is missing: where the machines are" for name in ("project", "zone") if not j.options[name]]
    if not faults and not slices.of(j.options["topology"]).kind.accelerator:
        faults.append(f"--topology={j.options['topology']}: is had through GKE alone; take --target=gke")
    return faults


def files(j: Job) -> dict[str, str]:
    several = slices.of(j.options["topology"]).hosts * j.slices > 1
    image = j.options["image"]
    return {
        SCRIPT: render(
            "start.sh",
            name=j.name,
            command=["mot", *j.command, *["--distributed=auto"] * several],
            image=image,
            registry=image.partition("/")[0],
            grace=GRACE,
            trials=TRIALS,
            stopped=job.STOPPED,
            lost=job.LOST,
        )
    }


def where(j: Job) -> list[str]:
    return [f"--project={j.options['project']}", f"--zone={j.options['zone']}"]


def command(j: Job) -> list[str]:
    found = slices.of(j.options["topology"])
    nodes = [f"--node-id={j.name}"]
    if j.slices > 1:
        nodes = [f"--node-count={j.slices}", f"--node-prefix={j.name}"]
    # A count alone leaves the shape to the cloud, where chips can be laid out in several.
    shape = [f"--accelerator-type={found.kind.accelerator}-{found.chips * found.kind.counts}"]
    if len(found.shape.split("x")) == 3:
        shape = [f"--type={found.kind.accelerator}", f"--topology={found.shape}"]
    return [
        *QUEUED,
        "create",
        j.name,
        *where(j),
        *nodes,
        *shape,
        f"--runtime-version={found.kind.runtime}",
        *["--spot"] * j.options["spot"],
        f"--metadata-from-file=startup-script={j.folder / SCRIPT}",
    ]


def submit(j: Job) -> dict[str, Any]:
    job.call(*command(j))
    return {}


def state(j: Job) -> str:
    """`WAITING_FOR_RESOURCES`, `ACTIVE`, ..., as Google Cloud says."""
    return job.call(*QUEUED, "describe", j.name, *where(j), "--format=value(state.state)").strip()


def saved(j: Job) -> int:
    """The newest step of which a training's bucket has a whole checkpoint."""
    return max(numbered(as_path(j.root) / "checkpoints", holding="manifest.json"), default=0)


def status(j: Job) -> str:
    return state(j)


def logs(j: Job, follow: bool) -> list[str]:
    node = j.name if j.slices == 1 else f"{j.name}-0"
    show = f"sudo tail -n +1 {'-F ' * follow}/var/log/mot.log"
    return [*MACHINES, "ssh", node, *where(j), "--worker=0", f"--command={show}"]


def stop(j: Job) -> str:
    job.call(*QUEUED, "delete", j.name, *where(j), "--force", "--quiet", timeout=1800)
    return "deleted, with its machines; a run goes on from its newest checkpoint"


def _has_ended(j: Job) -> bool:
    try:
        return saved(j) >= j.steps
    except OSError as error:  # the bucket does not answer
        print(f"{j.name}: {error}", flush=True)
        return False


def keep(j: Job) -> int:
    """Makes a preempted slice anew until the run has saved its last step, and then deletes it."""
    if not j.steps:
        raise UserError(f"keep: {j.name} is a sweep, of which no step tells that it has ended; leave it out")
    is_there = True
    while not _has_ended(j):
        try:
            if is_there and (found := state(j)) in GONE:
                print(f"{j.name}: {found}; it is made anew", flush=True)
                stop(j)
                is_there = False
            if not is_there:
                submit(j)
                is_there = True
        except UserError as error:  # no network, or no quota: both may come back
            print(f"{j.name}: {error}", flush=True)
        time.sleep(OFTEN)
    print(f"{j.name}: has ended; {stop(j)}")
    return 0


TARGET = Target("gcloud", "the Google Cloud CLI", files, command, submit, status, logs, stop, refuse, keep=keep)
