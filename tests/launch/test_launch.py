"""`mot launch`: what it renders keeps every word that a user typed, and what it calls are lists of arguments.

Programs of clusters are stand-ins on PATH, which write down how they were called. Slurm itself is tested by
`make test-slurm`; nobody has run the others against the services.
"""

import dataclasses
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch import launch as command
from launch import planning
from launch.targets import job, render, slices, slurm, tpu_vm
from launch.targets.job import Job
from mot.errors import UserError
from mot.plan import chips
from mot.runs import rundir
from tests.conftest import ROOT
from tests.support.commands import run, succeeds
from tests.support.training import SMOKE

SCHEMA = ROOT.parent / "shared" / "schemas" / "jobset.x-k8s.io_jobsets.yaml"
BUCKET = "--config.run.root=gs://bucket/runs"
HOSTILE = [
    "a'b",
    'a"b',
    "$(touch broken)",
    "`touch broken`",
    "$HOME ${HOME} $$ $(HOME) $$(HOME)",
    "a\nb",
    "a\n#SBATCH --uid=0\ntouch broken",
    "; touch broken #",
    "{{ 7 * 7 }} {% raw %}",
    "a: b\n- c",
    "ä 漢 😀 \x7f \x85 \u2028 \ufeff",
    "\\ \\n \\u0041",
    "",
    "-",
    "*",
    "~",
    "no",
]
OPTIONS = {
    "local": [],
    "slurm": ["--partition=here", "--time=1-00:00:00"],
    "gke": ["--topology=v5p:4x4x4", "--image=registry/mot:1", "--unplanned"],
    "tpu-vm": [
        "--topology=v5p:4x4x4",
        "--image=registry/mot:1",
        "--project=my-project",
        "--zone=us-east5-a",
        "--unplanned",
    ],
    "skypilot": ["--accelerators=H100:8", "--image=registry/mot:1"],
}
PROGRAMS = {"slurm": "sbatch", "gke": "kubectl", "tpu-vm": "gcloud", "skypilot": "sky"}

RECORDER = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
name = pathlib.Path(sys.argv[0]).name
with open(folder / "calls", "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
answers = folder / (name + ".answers")
if answers.exists():
    first, *rest = answers.read_text().splitlines(keepends=True)
    answers.write_text("".join(rest or [first]))
    code, said = json.loads(first)
    print(said, file=sys.stderr if code else sys.stdout)
    sys.exit(code)
"""


class StandIns:
    """Programs on PATH in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, name: str, *answers: tuple[int, str]) -> None:
        """It answers each call with the next of `answers`, and the last one again."""
        file = self.folder / name
        file.write_text(RECORDER.format(python=sys.executable, folder=str(self.folder)), encoding="utf-8")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        if answers:
            lines = "".join(json.dumps(answer) + "\n" for answer in answers)
            (self.folder / f"{name}.answers").write_text(lines, encoding="utf-8")

    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Of programs; none of a cluster is on PATH beside them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in ("bash", "tail", "seq", "head", "sleep", "wc"):
        found = next(Path(at) / name for at in ("/bin", "/usr/bin") if (Path(at) / name).exists())
        (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    return StandIns(folder)


def made(target, words, slices=1, **options):
    told = {name: option.default for name, option in job.OPTIONS.items() if target in option.targets}
    given = dict(
        topology="v5p:4x4x4", image="registry/mot:1", accelerators="H100:8", zone="us-east5-a", project="my-project"
    )
    told |= {name: value for name, value in given.items() if name in told} | options
    return Job("first", target, ["train", *words], told, slices=slices, root="gs://bucket/runs/first", steps=20)


def written(launched, **other):
    """As if it had been launched, with other values in its file."""
    launched.folder.mkdir(parents=True, exist_ok=True)
    (launched.folder / "launch.json").write_text(json.dumps(dataclasses.asdict(launched) | other), encoding="utf-8")


def files(target, words, **more):
    return command.judging.target(target).files(made(target, words, **more))


# --- words -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_words_of_a_shell_are_those_that_were_typed(words):
    assert shlex.split(render.of_shell(words)) == words


@given(st.recursive(st.text(st.characters(exclude_categories=["Cs"])) | st.integers() | st.booleans(), st.lists))
def test_a_value_of_yaml_is_the_one_that_was_typed(value):
    assert yaml.safe_load(f"a: {render.of_yaml(value)}\nb: 1") == {"a": value, "b": 1}


def test_a_template_cannot_forget_to_quote(tmp_path, monkeypatch):
    (tmp_path / "forgetful.sh.j2").write_text("echo {{ word }}\n", encoding="utf-8")
    (tmp_path / "forgetful.yaml.j2").write_text("a: {{ word }}\n", encoding="utf-8")
    monkeypatch.setattr(render, "HERE", tmp_path)
    for word in HOSTILE:
        assert shlex.split(render.render("forgetful.sh", word=word)) == ["echo", word]
        assert yaml.safe_load(render.render("forgetful.yaml", word=word)) == {"a": word}
    with pytest.raises(UserError, match="not UTF-8"):
        render.render("forgetful.sh", word="\udcff")


def ran(script, stand_ins):
    """How the stand-ins were called by a script."""
    done = subprocess.run(["bash", "-c", script], capture_output=True, encoding="utf-8", timeout=60)
    assert not Path("broken").exists(), done.stderr
    return stand_ins.calls()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("target", OPTIONS)
def test_hostile_words_arrive_as_they_are(target, several, stand_ins, monkeypatch):
    monkeypatch.setattr(job, "MOT", ["mot"])
    for name in ("mot", "srun", "docker", "gcloud", "scontrol"):
        stand_ins.add(name)
    more = {}
    if several:
        more = {"slurm": {"nodes": 2}, "skypilot": {"nodes": 2}}.get(target, {})
    elif target in job.CLOUD:
        more = {"topology": "v5p:2x2x1"}
    texts = files(target, HOSTILE, **more)
    (text,) = texts.values()
    words = ["train", *HOSTILE]
    apart = several and target != "local"
    if target == "gke":
        pod = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        found = [expanded(word) for word in pod["containers"][0]["command"]][1:]
        assert found == [*words, *["--distributed=auto"] * apart]
        return
    Path("launched/first").mkdir(parents=True)
    monkeypatch.setenv("SKYPILOT_NODE_IPS", "10.0.0.1\n10.0.0.2")
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "1")
    monkeypatch.setenv("SKYPILOT_NUM_NODES", "2")
    script = yaml.safe_load(text)["run"] if target == "skypilot" else text
    calls = ran(script.replace("/var/log/mot.log", "log.txt"), stand_ins)
    found = next(call for call in calls if "train" in call)
    last = "--distributed=10.0.0.1:8476,1,2" if target == "skypilot" else "--distributed=auto"
    assert found[found.index("train") :] == [*words, *[last] * apart]


def expanded(word):
    """What Kubernetes makes of a word of a command where HOME is a variable of the container."""
    return re.sub(r"\$\$|\$\(HOME\)", lambda found: "$" if found[0] == "$$" else "/root", word)


@pytest.mark.parametrize(
    "name", ["A", "a_b", "-a", "a-", "a b", "$(touch broken)", "a\n", "a'b", 'a"b', "../a", "a" * 64, ""]
)
def test_a_hostile_name_is_refused(name, stand_ins):
    for argv in (["--target=slurm", f"--name={name}", "--", "train", SMOKE], ["status", name]):
        code, _, said = run("launch", *argv)
        assert code == 2, argv
        assert "[a-z]([-a-z0-9]{0,61}[a-z0-9])?" in said or "unrecognized arguments: -a" in said
    assert not list(Path().iterdir())


@pytest.mark.parametrize("value", ["a b", "a\n#SBATCH --uid=0", "$(touch broken)", "a'b", "a,b", "-x"])
def test_a_hostile_option_is_refused(value, stand_ins):
    code, _, said = run("launch", "--target=slurm", f"--partition={value}", f"--time={value}", "--", "train", SMOKE)
    assert code == 2
    assert f"--partition={value!r}: must match" in said
    assert f"--time={value!r}: must match" in said
    assert "1-12:00:00" in said
    assert not list(Path().iterdir())


# --- what is wrong, in one message -----------------------------------------------------------------------------------

SWEEP = "configs/sweeps.py:leave_one_out"
WRONG = {
    (): "nothing to launch is given; write -- train ...",
    ("fly",): "'fly' is nothing to launch",
    ("--", "train", SMOKE): "--target is missing: where; allowed: local, slurm, gke, tpu-vm, skypilot",
    ("--target=slrm", "--", "train", SMOKE): "did you mean 'slurm'?",
    ("--target=local", "train", SMOKE): "-- is missing before train",
    (
        "--target=local",
        "--nodes=2",
        "--spot",
        "--",
        "train",
        SMOKE,
    ): "--spot: is for gke, tpu-vm, skypilot, not for local",
    ("--target=local", "--", "train", SMOKE, "--config.optim.lrr=1"): "optim.lrr: unknown key",
    ("--target=local", "--", "train", SMOKE, "--distributed"): "--distributed: launch says itself how many processes",
    ("--target=slurm", "--rows=2", "--", "train", SMOKE): "--rows=2: is of a sweep; leave it out",
    ("--target=slurm", "--gpus=2", "--tasks=2", "--", "train", SMOKE): "each GPU has a process of its own",
    (
        "--target=slurm",
        "--time=5",
        "--",
        "train",
        SMOKE,
    ): "--time=5, --grace=300: a job would be told to end as it begins",
    ("--target=slurm", "--rows=7", "--", "sweep", SWEEP): "--rows=7: the sweep has 6; leave it out",
    ("--target=slurm", "--", "sweep", f"{SWEEP},archs=dense+dense"): "leave_one_out has its own",
    ("--target=slurm", "--", "sweep", "configs/sweeps.py:archs,archs=dense+mat,seeds=1"): "1 of 2 rows cannot run",
    ("--target=slurm", "--", "sweep", SWEEP, "--dry-run"): "--dry-run, --topology after --: nothing would be trained",
    ("--target=gke", "--", "train", SMOKE): "runs/digits-mot-smoke lies on no machine that stays",
    ("--target=gke", "--topology=v5p:4x4", "--image=a/b", "--", "train", SMOKE, BUCKET): "a torus of 3 axes",
    (
        "--target=tpu-vm",
        *OPTIONS["tpu-vm"][1:],
        "--topology=tpu7x:4x4x4",
        "--",
        "train",
        SMOKE,
        BUCKET,
    ): "take --target=gke",
    ("--target=skypilot", "--", "train", SMOKE): "--accelerators is missing",
    ("status",): "status: takes one name, and got 0",
    ("logs", "nothing"): "nothing: nothing of that name was launched from this folder; nothing was launched here yet",
    ("stop", "a", "--target=local"): "stop: takes no --target; leave them out",
}


@pytest.mark.parametrize("argv", WRONG, ids=shlex.join)
def test_what_is_wrong_is_one_message(argv, stand_ins):
    code, _, said = run("launch", *argv)
    assert code == 2, said
    assert WRONG[argv] in said
    assert said.count("mot: ") + said.count("mot launch: ") == 1
    assert not list(Path().iterdir())


@pytest.mark.parametrize("target", PROGRAMS)
def test_a_missing_command_is_one_message_and_a_dry_run_needs_none(target, stand_ins):
    argv = ["launch", f"--target={target}", *OPTIONS[target], "--", "train", SMOKE, BUCKET]
    code, _, said = run(*argv)
    assert code == 2
    assert f"there is no command {PROGRAMS[target]} on this machine" in said
    shown, _ = succeeds("launch", "--dry-run", *argv[1:])
    assert "launched/digits-mot-smoke/" in shown
    assert shown.splitlines()[-2] == "--- and then"
    assert shlex.split(shown.splitlines()[-1])[0] == PROGRAMS[target]
    assert not list(Path().iterdir())


@pytest.mark.parametrize("target", PROGRAMS)
def test_a_queue_that_refuses_is_one_message(target, stand_ins):
    stand_ins.add(PROGRAMS[target], (1, "error: the quota of this queue is used up"))
    code, _, said = run("launch", f"--target={target}", *OPTIONS[target], "--", "train", SMOKE, BUCKET)
    assert code == 2
    assert "refused (exit code 1): error: the quota of this queue is used up; mend that, and try again" in said
    assert said.count("mot: ") == 1
    assert not Path("launched/digits-mot-smoke/launch.json").exists()


@pytest.mark.parametrize("answer", ["", "\n \n", "-u root", "Submitted batch job 12", "12\n13", "١٢"])
def test_a_queue_that_gives_no_number_is_told_of(answer, stand_ins):
    stand_ins.add("sbatch", (0, answer))
    code, _, said = run("launch", "--target=slurm", *OPTIONS["slurm"], "--", "train", SMOKE)
    assert code == 2
    assert "in place of a job's number; look whether it took the job (squeue --name=digits-mot-smoke)" in said
    assert not Path("launched/digits-mot-smoke/launch.json").exists()


def test_a_queue_may_print_empty_lines(stand_ins):
    stand_ins.add("squeue", (0, "\n  \n 12_3 RUNNING\n"))
    written(made("slurm", [SMOKE]), facts={"number": "12"})
    assert "12_3 RUNNING" in succeeds("launch", "status", "first")[0]


@pytest.mark.parametrize(
    "other",
    [
        {"target": "job"},
        {"target": ["slurm"]},
        {"name": "../second"},
        {"command": []},
        {"options": None},
        {"facts": None},
        {"facts": {}},
        {"facts": {"number": "-u root"}},
    ],
    ids=str,
)
def test_what_was_launched_is_read_with_suspicion(other, stand_ins):
    stand_ins.add("scancel", (0, ""))
    written(made("slurm", [SMOKE]), facts={"number": "12"}, options={})
    assert job.load("first").options["nodes"] == 1  # as a version wrote it that did not know the option
    written(made("slurm", [SMOKE]), **{"facts": {"number": "12"}} | other)
    for verb in ("status", "stop"):
        code, _, said = run("launch", verb, "first")
        assert code == 2
        assert "launched/first/launch.json is damaged" in said
    assert not stand_ins.calls()


def test_a_name_that_may_live_elsewhere_is_not_taken(stand_ins):
    written(made("gke", [SMOKE]))
    code, _, said = run("launch", "--target=local", "--name=first", "--", "train", SMOKE)
    assert code == 2
    assert "was launched by --target=gke, and may still run there" in said
    assert job.load("first").target == "gke"


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("1:30", 90), ("1:00:30", 3630), ("2-3", 183_600), ("2-3:01", 183_660), ("2-3:01:01", 183_661)],
)
def test_a_limit_is_read_as_sbatch_reads_it(time, seconds):
    assert slurm.seconds(time) == seconds


# --- the plan --------------------------------------------------------------------------------------------------------

FITS = {"fits": True, "memory": {"peak": 12e9}, "memory_of_chip": 95e9, "days": 1.5, "chip_hours": 2304.0}
PLANS = {
    "it fits": (FITS, "fits v5p:4x4x4: 12.0 of 95.0 GB of a device; at least 1.50 days, 2,304 chip-hours"),
    "it does not": (
        {"fits": False, "trouble": "it takes 99 GB of 95 GB", "remedies": ["--config.model.remat=block"]},
        "does not fit, and nothing was launched: it takes 99 GB of 95 GB",
    ),
    "it failed": (
        {"fits": False, "failed": "mesh.fsdp: 3 does not divide"},
        "the plan of the run failed, and nothing was launched",
    ),
}


@pytest.mark.parametrize("how", PLANS)
def test_a_plan_is_made_before_anything_is_submitted(how, stand_ins, monkeypatch):
    answer, says = PLANS[how]
    asked = []

    def plan(*argv, quick):
        asked.append(argv)
        return answer

    stand_ins.add("kubectl")
    monkeypatch.setattr(planning.process, "plan", plan)
    monkeypatch.setattr(planning.importlib.util, "find_spec", str)
    argv = ["launch", "--target=gke", *OPTIONS["gke"][:-1], "--", "train", SMOKE, BUCKET]
    code, _, said = run(*argv)
    assert says in said
    assert asked == [(SMOKE.partition("=")[2], "v5p:4x4x4", {"run.root": "gs://bucket/runs"})]
    assert code == (0 if answer is FITS else 2)
    assert bool(stand_ins.calls()) == (answer is FITS)


SWEEP = """
def mine(arg):
    rows = []
    for arch in ("dense", "mot"):
        for seed in (0, 1):
            config = "configs/digits.py:arch=" + arch + ",size=smoke"
            rows.append({{"config": config, "model.seed": seed, "run.name": arch + str(seed)}})
    return rows{more}
"""
LARGE = ' + [{"config": "configs/digits.py:size=smoke", "run.name": "huge", "data.batch": 2**24}]'
TO_BUCKET = "--out=gs://bucket/runs/mine"


def test_each_program_of_a_sweep_is_planned(stand_ins, monkeypatch):
    asked = []

    def plan(config, topology, overrides, quick):
        asked.append((config, overrides["run.name"]))
        return FITS

    stand_ins.add("kubectl")
    monkeypatch.setattr(planning.process, "plan", plan)
    monkeypatch.setattr(planning.importlib.util, "find_spec", str)
    Path("sweeps.py").write_text(SWEEP.format(more=""), encoding="utf-8")
    argv = ["launch", "--target=gke", "--topology=v5p:2x2x1", "--image=registry/mot:1"]
    _, said = succeeds(*argv, "--", "sweep", "sweeps.py:mine", TO_BUCKET)
    assert asked == [(f"configs/digits.py:arch={arch},size=smoke", f"{arch}1") for arch in ("dense", "mot")]
    assert "each of 4 rows fits v5p:2x2x1 by itself: 12.0 of 95.0 GB" in said
    assert "at least 6.00 days, 9,216 chip-hours" in said


def test_a_sweep_with_a_row_that_cannot_fit_is_refused_without_a_compiler(stand_ins):
    stand_ins.add("kubectl")
    Path("sweeps.py").write_text(SWEEP.format(more=LARGE), encoding="utf-8")
    argv = ["launch", "--target=gke", "--topology=v5e:1x1", "--image=registry/mot:1"]
    code, _, said = run(*argv, "--", "sweep", "sweeps.py:mine", TO_BUCKET)
    assert code == 2
    assert "1 of 5 rows cannot run; nothing was started" in said
    assert "of huge: " in said
    assert not stand_ins.calls()


def test_without_the_compiler_for_tpus_only_unplanned_goes_on(stand_ins, monkeypatch):
    find_spec = planning.importlib.util.find_spec

    def without(name, *more):
        return None if name == "libtpu" else find_spec(name, *more)

    stand_ins.add("kubectl")
    monkeypatch.setattr(planning.importlib.util, "find_spec", without)
    argv = ["launch", "--target=gke", *OPTIONS["gke"][:-1]]
    code, _, said = run(*argv, "--", "train", SMOKE, BUCKET)
    assert code == 2
    assert "pip install -e '.[tpu]', or submit without by --unplanned" in said
    _, said = succeeds(*argv, "--unplanned", "--", "train", SMOKE, BUCKET)
    assert "not planned" in said


# --- what is called --------------------------------------------------------------------------------------------------

WHERE = ["--project=my-project", "--zone=us-east5-a"]
QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
CALLS = {
    "slurm": {
        "launch": ["sbatch", "--parsable", "launched/first/job.sh"],
        "status": ["squeue", "--me", "--noheader", "--format=%.20i %.12T %.10M %.20S %R", "--name=first"],
        "stop": ["scancel", "12"],
    },
    "gke": {
        "launch": ["kubectl", "--namespace=default", "create", "--filename=launched/first/jobset.yaml"],
        "stop": ["kubectl", "--namespace=default", "delete", "jobset/first", "--wait=false"],
    },
    "tpu-vm": {
        "launch": [
            *QUEUED,
            "create",
            "first",
            *WHERE,
            "--node-id=first",
            "--type=v5p",
            "--topology=4x4x4",
            "--runtime-version=v2-alpha-tpuv5",
            "--metadata-from-file=startup-script=launched/first/start.sh",
        ],
        "status": [*QUEUED, "describe", "first", *WHERE, "--format=value(state.state)"],
        "stop": [*QUEUED, "delete", "first", *WHERE, "--force", "--quiet"],
    },
    "skypilot": {
        "launch": ["sky", "jobs", "launch", "--yes", "--detach-run", "--name=first", "launched/first/task.yaml"],
        "status": ["sky", "jobs", "queue", "--all"],
        "stop": ["sky", "jobs", "cancel", "--yes", "--name=first"],
    },
}


@pytest.mark.parametrize("target", CALLS)
def test_programs_are_called_with_lists_of_arguments(target, stand_ins):
    for name in ("kubectl", "gcloud", "sky", "scancel"):
        stand_ins.add(name)
    stand_ins.add("sbatch", (0, "12;cluster"))
    stand_ins.add("squeue", (0, "12 RUNNING 1:00 N/A here\n123 RUNNING 1:00 N/A here"))
    succeeds("launch", f"--target={target}", "--name=first", *OPTIONS[target], "--", "train", SMOKE, BUCKET)
    for verb in ("status", "stop"):
        succeeds("launch", verb, "first")
    calls = stand_ins.calls()
    assert len(calls) == 3
    for verb, call in zip(("launch", "status", "stop"), calls, strict=True):
        assert call == CALLS[target].get(verb, call)


def test_a_preempted_slice_is_made_anew_until_the_run_has_ended(stand_ins, monkeypatch, tmp_path):
    steps = [0, 4, 8, 12, 20]
    monkeypatch.setattr(tpu_vm, "OFTEN", 0)
    monkeypatch.setattr(tpu_vm, "saved", lambda _: steps.pop(0))
    stand_ins.add(
        "gcloud", (0, "ACTIVE"), (0, "SUSPENDED"), (0, ""), (0, ""), (0, "WAITING_FOR_RESOURCES"), (0, "ACTIVE")
    )
    assert tpu_vm.keep(made("tpu-vm", [SMOKE], spot=True)) == 0
    verbs = [call[4] for call in stand_ins.calls()]
    assert verbs == ["describe", "describe", "delete", "create", "describe", "describe", "delete"]
    assert "--spot" in stand_ins.calls()[3]


def test_a_cloud_that_does_not_answer_is_asked_again(stand_ins, monkeypatch, capsys):
    steps = [0, 0, 0, 0, 20]
    monkeypatch.setattr(tpu_vm, "OFTEN", 0)
    monkeypatch.setattr(tpu_vm, "saved", lambda _: steps.pop(0))
    stand_ins.add("gcloud", (1, "no network"), (0, "FAILED"), (0, ""), (1, "no quota"), (1, "no quota"), (0, ""))
    assert tpu_vm.keep(made("tpu-vm", [SMOKE])) == 0
    verbs = [call[4] for call in stand_ins.calls()]
    assert verbs == ["describe", "describe", "delete", "create", "create", "create", "delete"]
    assert "no network" in capsys.readouterr().out


# --- JobSets ---------------------------------------------------------------------------------------------------------

TOPOLOGIES = {  # machines, chips of each
    "v4:4x4x4": (16, 4),
    "v5e:2x4": (1, 8),
    "v5e:16x16": (64, 4),
    "v5p:2x2x1": (1, 4),
    "v5p:4x4x8": (32, 4),
    "v6e:1x1": (1, 1),
    "v6e:4x4": (4, 4),
    "tpu7x:4x4x4": (16, 4),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_jobset_has_a_job_for_each_slice_and_a_pod_for_each_machine(topology, count):
    (text,) = files("gke", [*HOSTILE], slices=count, topology=topology, spot=True, queue="here").values()
    found = yaml.safe_load(text)
    hosts, chips_of_host = TOPOLOGIES[topology]
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "here"
    placed = found["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert placed == "cloud.google.com/gke-nodepool"
    (replicated,) = found["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    assert (replicated["replicas"], spec["parallelism"], spec["completions"]) == (count, hosts, hosts)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": slices.KINDS[topology.partition(":")[0]].label,
        "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["restartPolicy"] == "Never"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips_of_host}
    assert ("--distributed=auto" in pod["containers"][0]["command"]) == (count * hosts > 1)
    if SCHEMA.is_file():
        assert not list(faults(found, schema()))


def test_every_chip_of_a_plan_is_one_of_the_cloud():
    assert slices.KINDS.keys() == chips.CHIPS.keys()


def schema():
    (definition,) = filter(None, yaml.load_all(SCHEMA.read_text(encoding="utf-8"), yaml.CSafeLoader))
    (version,) = definition["spec"]["versions"]
    root = version["schema"]["openAPIV3Schema"]
    return root | {"properties": root["properties"] | {"metadata": {"x-kubernetes-preserve-unknown-fields": True}}}


TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}


def faults(value, s, at=""):
    """What is wrong with a manifest by the schema of a custom resource; a key that it does not name is."""
    if s.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str):
            yield f"{at}: {value!r}"
        return
    kind = s.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, bool))):
        yield f"{at}: {value!r} is no {kind}"
    elif isinstance(value, dict):
        yield from (f"{at}: lacks {name}" for name in s.get("required", ()) if name not in value)
        for name, inner in value.items():
            of = s.get("properties", {}).get(name, s.get("additionalProperties"))
            if of:
                yield from faults(inner, of, f"{at}.{name}")
            elif not s.get("x-kubernetes-preserve-unknown-fields"):
                yield f"{at}: knows no {name}"
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from faults(inner, s["items"], f"{at}[{i}]")
    if "enum" in s and value not in s["enum"]:
        yield f"{at}: {value!r} is none of {s['enum']}"
    if "pattern" in s and not re.search(s["pattern"], value):
        yield f"{at}: {value!r} does not match"


@pytest.mark.skipif(not SCHEMA.is_file(), reason="needs ../shared/schemas")
def test_shared_schema_finds_what_is_wrong_with_a_jobset():
    (text,) = files("gke", []).values()
    found = yaml.safe_load(text)
    assert not list(faults(found, schema()))
    pod = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    pod["restartPolici"] = pod.pop("restartPolicy")
    found["spec"]["failurePolicy"]["maxRestarts"] = "10"
    del found["spec"]["replicatedJobs"][0]["name"]
    said = "\n".join(faults(found, schema()))
    for part in ("knows no restartPolici", "'10' is no integer", "lacks name"):
        assert part in said


# --- this machine ----------------------------------------------------------------------------------------------------


def wait_for(found):
    end = time.monotonic() + 150
    while not found():
        assert time.monotonic() < end, Path("launched/first/log.txt").read_text(encoding="utf-8")
        time.sleep(0.1)


def test_a_run_on_this_machine_is_launched_followed_and_stopped_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    root = tmp_path / "it's $(a) run"
    argv = ["launch", "--target=local", "--name=first", "--", "train", SMOKE, f"--config.run.root={root}"]
    _, said = succeeds(*argv, "--config.run.steps=4000", "--config.run.save_every=1000")
    assert "launch logs first" in said
    path = root / "digits-mot-smoke"
    wait_for(lambda: (path / "metrics.jsonl").exists() and any(r["kind"] == "train" for r in rundir.read_metrics(path)))
    assert "running as process" in succeeds("launch", "status", "first")[0]
    code, _, said = run(*argv)
    assert code == 2
    assert "first: runs already, by --target=local" in said
    succeeds("launch", "stop", "first")
    wait_for(lambda: "stopped, its state saved" in succeeds("launch", "status", "first")[0])
    assert (path / "checkpoints").is_dir()
    shown = subprocess.run(
        [sys.executable, "-m", "mot", "launch", "logs", "first"], capture_output=True, encoding="utf-8", timeout=100
    ).stdout
    assert "the same command resumes" in shown


def test_how_a_run_on_this_machine_ended_is_told(stand_ins, monkeypatch):
    for name, code in (("ended", 0), ("failed with exit code 3", 3), ("stopped, its state saved", 75)):
        stand_ins.add("mot", (code, "said"))
        monkeypatch.setattr(job, "MOT", ["mot"])
        succeeds("launch", "--target=local", "--name=first", "--", "train", SMOKE)
        wait_for(lambda: "running" not in succeeds("launch", "status", "first")[0])
        assert name in succeeds("launch", "status", "first")[0]
    assert os.environ["PATH"] == str(stand_ins.folder)
