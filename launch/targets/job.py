"""What is launched, what a user may say of it for each target, and how the programs of a cluster are called."""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mot.errors import UserError
from mot.files import write_atomically

ROOT = Path("launched")  # with a folder for each name, of this working directory
NAME = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"  # what Kubernetes, Google Cloud and Slurm all take
MOT = [sys.executable, "-m", "mot"]  # on a machine that sees this file system
STOPPED, LOST = 75, 76  # exit codes of mot: stopped by a signal, its state saved; it hung, or another process is gone
WORD = r"[A-Za-z0-9]([\w./:@+-]{0,253}[A-Za-z0-9])?"
COUNT = r"[1-9]\d{0,5}"


class Option(NamedTuple):
    """What a user may say of a target."""

    targets: tuple[str, ...]
    about: str
    pattern: str = WORD
    default: Any = ""
    example: str = ""


TARGETS = ("local", "slurm", "gke", "tpu-vm", "skypilot")
CLOUD = ("gke", "tpu-vm")
FACTS = {"local": "process", "slurm": "number"}  # by which a job is found again; elsewhere its name does
OPTIONS = {
    "nodes": Option(("slurm", "skypilot"), "machines of a run", COUNT, 1),
    "gpus": Option(("slurm",), "GPUs of a node, each with a process of its own", r"\d{1,3}", 0),
    "tasks": Option(("slurm",), "processes of a node that has no GPUs", COUNT, 1),
    "rows": Option(("slurm",), "rows of a sweep: an array of so many jobs, one a row", COUNT, 0),
    "time": Option(("slurm",), "limit of a job", r"\d+(-\d{1,2})?(:\d{1,2}){0,2}", "", "1-12:00:00"),
    "grace": Option(("slurm",), "seconds before the limit at which a run saves, ends and is queued again", COUNT, 300),
    "partition": Option(("slurm",), "where it is queued"),
    "account": Option(("slurm",), "who pays"),
    "topology": Option(CLOUD, "a slice of TPUs, as `mot plan` names it", r"\w+:\d+(x\d+)*", "", "v5p:4x4x4"),
    "image": Option((*CLOUD, "skypilot"), "the image made of Dockerfile", WORD, "", "REGISTRY/mot:1"),
    "spot": Option((*CLOUD, "skypilot"), "machines that may be taken away at any time, for less", default=False),
    "queue": Option(("gke",), "Kueue's queue of the namespace", WORD, "multislice-queue"),
    "namespace": Option(("gke",), "of Kubernetes", NAME, "default"),
    "restarts": Option(("gke",), "after other faults than a preemption", r"\d{1,4}", 10),
    "project": Option(("tpu-vm",), "of Google Cloud", r"[a-z][-a-z0-9:.]{4,61}[a-z0-9]", "", "my-project"),
    "zone": Option(("tpu-vm",), "of Google Cloud", NAME, "", "us-east5-a"),
    "accelerators": Option(("skypilot",), "of a node, as SkyPilot names them", WORD, "", "H100:8"),
    "infra": Option(("skypilot",), "a cloud, a region, or a cluster of Slurm or Kubernetes", WORD, "", "gcp/us-east5"),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One launched command. `name` is NAME's; `facts` are what a target needs to find it again, as its number."""

    name: str
    target: str
    command: list[str]  # of mot, without mot itself
    options: dict[str, Any]  # of OPTIONS, those that the target takes
    slices: int = 1
    root: str = ""  # the run's directory, of a training
    steps: int = 0  # with which it has ended
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return ROOT / self.name

    @property
    def is_sweep(self) -> bool:
        return self.command[0] == "sweep"


def no_faults(_: Job) -> list[str]:
    return []


def refused_by_its_service(_: Job) -> bool:
    return False


class Target(NamedTuple):
    """What a module of a target gives. All but `files` and `refuse` call the target's program."""

    program: str  # what must be installed here; "" for none
    comes_with: str  # what has it
    files: Callable[[Job], dict[str, str]]  # name, text
    command: Callable[[Job], list[str]]  # the call that submits it, which a dry run shows
    submit: Callable[[Job], dict[str, Any]]  # makes that call; the facts of the job
    status: Callable[[Job], str]
    logs: Callable[[Job, bool], list[str]]  # the command that shows them; True follows
    stop: Callable[[Job], str]  # what was done
    refuse: Callable[[Job], list[str]] = no_faults  # faults of the options
    is_alive: Callable[[Job], bool] = refused_by_its_service  # asked before a second one of that name
    keep: Callable[[Job], int] | None = None  # makes anew what was taken away; None where the service does it itself


def save(job: Job) -> None:
    write_atomically(job.folder / "launch.json", json.dumps(dataclasses.asdict(job), indent=1) + "\n")


def load(name: str) -> Job:
    """The job that was launched from this working directory by that name; `UserError` where there is none."""
    if not re.fullmatch(NAME, name, re.ASCII):
        raise UserError(f"{name!r}: is no name of a launched command; a name matches {NAME}; {_known()}")
    file = ROOT / name / "launch.json"
    try:
        return _job(json.loads(file.read_text(encoding="utf-8")), name)
    except FileNotFoundError:
        raise UserError(f"{name}: nothing of that name was launched from this folder; {_known()}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}); remove {file.parent}, and launch again") from None


def _job(saved: dict[str, Any], name: str) -> Job:
    """Of what `save` wrote, with the defaults of options that it did not know yet; `ValueError` for anything else."""
    if saved.get("target") not in TARGETS or saved.get("name") != name or not saved.get("command"):
        raise ValueError(f"it holds no launch of {name}")
    usual = {key: option.default for key, option in OPTIONS.items() if saved["target"] in option.targets}
    found = Job(**saved | {"options": usual | saved["options"]})
    fact = FACTS.get(found.target)
    if fact and not re.fullmatch(r"\d+", str(found.facts.get(fact)), re.ASCII):
        raise ValueError(f"its {fact} is {found.facts.get(fact)!r}, no number")
    return found


def _known() -> str:
    names = sorted(file.parent.name for file in ROOT.glob("*/launch.json"))
    return f"launched here: {', '.join(names)}" if names else "nothing was launched here yet"


def refuse_missing(program: str, target: str, comes_with: str) -> None:
    if program and shutil.which(program) is None:
        raise UserError(
            f"--target={target}: there is no command {program} on this machine; it comes with {comes_with}; install "
            "it, launch from a machine that has it, or look at the files with --dry-run"
        )


def call(*words: str, timeout: float | None = 300) -> str:
    """What a program prints; `UserError` with what it said where it refuses, or is missing."""
    shown = shlex.join(words[:4]) + (" ..." if words[4:] else "")
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout
        )
    except FileNotFoundError:
        raise UserError(f"{words[0]}: there is no such command on this machine; install it") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{shown}: gave no answer in {timeout:.0f} s; see that its service is in reach") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        told = "; ".join(said[-3:])[:600] or "it does not say why"
        raise UserError(f"{shown}: refused (exit code {done.returncode}): {told}; mend that, and try again")
    return done.stdout
