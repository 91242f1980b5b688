"""mot sweep: what it refuses, what it shows, what it runs together, and what a killed one leaves."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from launch import cores, sweep, sweep_cost, sweep_rows, sweep_shown, sweep_work
from mot.errors import UserError
from mot.runs import rundir, states
from tests.conftest import ROOT
from tests.support import killed as killing
from tests.support import processes, sweeping
from tests.support.commands import run, succeeds
from tests.support.devices import devices
from tests.support.training import ENV

LOO = "configs/sweeps.py:leave_one_out,size=smoke"
OWN = """
from configs.sweeps import archs, chain, over, product

def rates(arg):
    return product(archs(arg), over("optim.lr", 1e-3, 2e-3))

def unknown(arg):
    return product(archs(arg), [{"optim.lrr": 1, "run.name": "a"}, {"model.layers": 0, "run.name": "b"}])

def twice(arg):
    return [{"config": "configs/digits.py", "run.name": "same"}] * 2

def large(arg):
    row = {"config": "configs/digits.py:size=smoke", "run.name": "large", "data.batch": 10_000_000}
    return chain(archs(arg), [row, {"config": "configs/digits.py:size=hug", "run.name": "no size"}])

def none(arg):
    return []

def nameless(arg):
    return [{"config": "configs/digits.py"}]

def rooted(arg):
    return [{"config": "configs/digits.py", "run.name": "a", "run.root": "elsewhere"}]

def broken(arg):
    return [1 / 0]

def configless(arg):
    return [{"run.name": "a"}]

class Odd:
    def __repr__(self):
        raise RuntimeError("odd")

def odd(arg):
    own = {"self": {}, "odd": Odd(), "set": {1}, "long": 10 ** 5000}
    own["self"]["self"] = own["self"]
    return [{"config": "configs/digits.py:size=smoke", "run.name": "a", "optim.lr": own[arg.partition(",")[0]]}]

def arrays(arg):
    import numpy
    return [{"config": "configs/digits.py:size=smoke", "run.name": "a", "optim.lr": numpy.ones(2)}]

def files(arg):
    names = "a", "a.log", "sweep.json", "x" * 201
    return [{"config": "configs/digits.py:size=smoke", "run.name": name} for name in names]

def many(arg):
    return [{"config": "configs/digits.py", "run.name": f"a{i}", "optim.lr": -1.0 - i} for i in range(103)]

def _hidden(arg):
    return []
"""
SMALL = "archs=dense+mot,size=smoke,seeds=1"


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    return f"{tmp_path}/own.py"


def test_a_dry_run_shows_rows_programs_and_costs_and_writes_nothing(own, tmp_path):
    out, _ = succeeds("sweep", f"{own}:rates,archs=dense+mot,size=smoke,seeds=2", "--dry-run", "--out", tmp_path / "x")
    lines = [line.split() for line in out.splitlines()]
    rows = [line for line in lines if line and line[0].isdecimal() and line[2:3] == ["waiting"]]
    assert [row[:5] for row in rows[:3]] == [
        ["0", "dense-seed0-lr0.001", "waiting", "0", "2"],
        ["1", "dense-seed0-lr0.002", "waiting", "0", "2"],
        ["2", "dense-seed1-lr0.001", "waiting", "0", "2"],
    ]
    assert len(rows) == 8
    assert {row[3] for row in rows} == {"0", "1"}
    assert re.search(r"8 rows in 2 programs: .* model FLOPs, at least .* device-hours and .* days on 4 x cpu", out)
    assert not (tmp_path / "x").exists()


def test_a_dry_run_counts_as_plan_does_for_devices_that_are_not_here():
    rows = sweep_rows.read("configs/sweeps.py:ladder,rungs=1m,archs=mot")
    devices = sweep_cost.named("v5p:2x2x2")
    (row,) = sweep_rows.judged("t", rows, "runs", sweep_cost.fits(devices))
    found = sweep_cost.cost(row.config, devices)
    assert found.days == pytest.approx(found.flops / (8 * 459e12) / 86_400)
    assert found.hours == pytest.approx(found.days * 24 * 8)  # of chips, as mot plan's chip-hours
    assert sweep_cost.named("tpu7x:2x2x2").number == 16


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unknown", "4 of 4 rows cannot run; nothing was started\n  of dense-seed0-a, mot-seed0-a: optim.lrr: unknown"),
        ("unknown", "\n  of dense-seed0-b, mot-seed0-b: model.layers: 0"),
        ("twice", "run.name: same (2 rows); each row needs a name of its own"),
        ("large", "\n  of large: 108,"),
        ("large", "\n  of no size: --config=configs/digits.py:size=hug: size=hug: no such size"),
        ("large", "own.py:large,archs=dense+mot,size=smoke,seeds=1: 2 of 4 rows cannot run; nothing was started"),
        ("none", "it gave []; a sweep is a list of rows, one or more"),
        ("nameless", "row 0 has no `run.name`"),
        ("configless", "row 0 has no `config`"),
        ("rooted", "row 0 has run.root='elsewhere'; rows lie in --out"),
        ("broken", "failed: ZeroDivisionError"),
        ("ratse", "has no sweep 'ratse'; allowed: archs, arrays, broken"),
        ("ratse", "did you mean 'rates'?"),
        ("_hidden", "has no sweep '_hidden'; allowed: archs, arrays, broken"),
        ("odd,self", "row 0: optim.lr is of type dict, which sweep.json cannot hold (maximum recursion depth"),
        ("odd,odd", "row 0: optim.lr is of type Odd, which sweep.json cannot hold"),
        ("odd,set", "row 0: optim.lr is of type set, which sweep.json cannot hold"),
        ("odd,long", "row 0: optim.lr is of type int, which sweep.json cannot hold"),
        ("arrays", "of a: optim.lr: [1.0, 1.0] is list; must be of type float"),
        ("files", "of a.log: run.name: 'a.log' ends as the files of a sweep's folder do (.csv,"),
        ("files", "of sweep.json: run.name: 'sweep.json' ends as"),
        ("files", "has 201 characters; must be at most 200"),
        ("many", "103 of 103 rows cannot run"),
        ("many", "and 3 more faults"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_all_faults_of_all_rows_are_told_before_anything_starts(own, tmp_path, name, says, dry):
    code, _, err = run("sweep", f"{own}:{name},{SMALL}", "--out", tmp_path / "out", *dry)
    assert code == 2
    assert says in err
    assert err.count("mot: ") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["status"], "write `mot sweep FILE:NAME,arg`, or `mot sweep status OUT`"),
        ([LOO, "runs/x"], "write `mot sweep FILE:NAME,arg`, or `mot sweep status OUT`"),
        (["status", "nowhere"], "nowhere: there is no such folder of a sweep"),
        (["status", "configs"], "configs: no sweep was begun there: it has no sweep.json"),
        ([LOO, "--topology=v5p:2x2x1"], "is for --dry-run alone"),
        ([LOO, "--dry-run", "--topology=v5q:2x2x1"], "no such chip as 'v5q'"),
        ([LOO, "--dry-run", "--topology="], "no such chip as ''"),
        ([LOO, "--dry-run", "--out=mkdocs.yml"], "--out mkdocs.yml: is a file; name a folder"),
        (["configs/sweeps.py:mixture,config=configs/sizes.py"], "config=configs/sizes.py: defines no get_config(arg)"),
        ([LOO, "--distributed"], "--distributed: is for --row"),
        ([LOO, "--dry-run", "--row=1"], "a dry run is of all rows"),
        ([LOO, "--row=6"], "--row 6: configs/sweeps.py:leave_one_out,size=smoke has rows 0 to 5"),
        ([LOO, "--row=a"], "--row a:"),
        (["configs/sweep.py:archs"], "did you mean 'configs/sweeps.py'?"),
        (["configs/sweeps.py"], "must be FILE:NAME,arg"),
        (["configs/sweeps.py:archs,size=smoke,arch=mot"], "write archs=mot"),
    ],
)
def test_command_lines_that_cannot_be_meant_so(argv, says):
    code, _, err = run("sweep", *argv)
    assert code == 2
    assert says in err


def test_a_folder_of_another_sweep_is_refused_with_the_differences(tmp_path):
    def rows(**more):
        return [{"config": "c", "run.name": "a", "optim.lr": 1e-3}, {"config": "c", "run.name": "b"} | more]

    sweep_rows.claim(tmp_path / "out", "FILE:one", rows())
    before = (tmp_path / "out" / "sweep.json").read_bytes()
    sweep_rows.claim(tmp_path / "out", "FILE:one", rows())
    new = {"config": "c", "run.name": "new"}
    with pytest.raises(UserError) as found:
        sweep_rows.claim(tmp_path / "out", "FILE:two", [rows(seed=1)[1], new])
    said = str(found.value)
    assert f"{tmp_path}/out was made by another sweep, FILE:one; nothing was changed" in said
    assert "\n  b: seed: 'absent' -> 1\n  a: it alone has this row\n  new: yours alone has this row\n" in said
    assert f"mot sweep FILE:one --out {tmp_path}/out" in said
    with pytest.raises(UserError, match="a: it alone has this row"):
        sweep_rows.claim(tmp_path / "out", "FILE:one", rows()[1:])
    assert (tmp_path / "out" / "sweep.json").read_bytes() == before
    # It may grow; and a task of an array that began before does not mind.
    sweep_rows.claim(tmp_path / "out", "FILE:one,more", [new, *rows()])
    grown = (tmp_path / "out" / "sweep.json").read_bytes()
    assert sweep_rows.saved(tmp_path / "out") == {"sweep": "FILE:one,more", "rows": [new, *rows()]}
    sweep_rows.claim(tmp_path / "out", "FILE:one", rows(), is_part=True)
    assert (tmp_path / "out" / "sweep.json").read_bytes() == grown
    with pytest.raises(UserError, match="b: seed: 'absent' -> 1"):
        sweep_rows.claim(tmp_path / "out", "FILE:one", rows(seed=1), is_part=True)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[" * 100_000,
        '{"sweep": "FILE:one", "rows": []}',
        *(f'{{"sweep": "FILE:one", "rows": [{{"run.name": "{name}"}}]}}' for name in ("../../etc", "[/red]", "a\\n")),
    ],
)
def test_a_sweeps_file_that_is_foreign_is_refused(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="is damaged or foreign"):
        sweep.status(tmp_path)
    with pytest.raises(UserError, match="is damaged or foreign"):
        sweep_rows.claim(tmp_path, "FILE:one", [{"config": "c", "run.name": "a"}])


def test_a_folder_that_is_no_sweeps_is_told_once(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    for text in ("--dry-run", "--row=0"):
        code, _, err = run("sweep", LOO, "--out", tmp_path / "run", text)
        assert code == 2
        assert err.count("is a run's folder; name another") == 1
    (tmp_path / "file").touch()
    code, _, err = run("sweep", LOO, "--out", tmp_path / "file" / "out")
    assert code == 2
    assert err.count("is a file, not a folder") == 1
    assert (tmp_path / "file").read_bytes() == b""


def test_a_tracker_that_is_not_installed_is_told_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (row,) = sweeping.rows(tmp_path, ["a"], **{"run.trackers": "wandb"})
    (said,) = sweep.faults(row.config)
    assert "wandb is not installed" in said


def test_a_report_that_cannot_be_written_is_all_that_is_told(tmp_path, monkeypatch):
    rows = sweeping.rows(tmp_path, ["a"])
    monkeypatch.setattr(sweep, "judged", lambda *given: rows)
    monkeypatch.setattr(sweep_work, "work", lambda *given: {})
    monkeypatch.setattr(sweep, "_report", lambda *given: ["no report was written: it is too late"])
    with pytest.raises(UserError) as found:
        sweep.whole("FILE:one", [row.values for row in rows], tmp_path)
    assert str(found.value) == "no report was written: it is too late"


def test_logs_of_a_sweep_in_a_bucket_are_of_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_work, "is_bucket", lambda path: path.name == "bucket")
    assert sweep_work.log_folder(tmp_path) == tmp_path
    found = sweep_work.log_folder(tmp_path / "bucket")
    assert found == sweep_work.log_folder(tmp_path / "bucket")
    assert found != sweep_work.log_folder(tmp_path / "other" / "bucket")
    assert found.stat().st_mode & 0o077 == 0


def test_a_row_whose_folder_holds_another_run_is_refused(tmp_path):
    (row,) = sweeping.rows(tmp_path, ["a"])
    sweeping.command("", tmp_path, [row])
    assert not list(sweep.faults(row.config))
    (other,) = sweeping.rows(tmp_path, ["a"], **{"optim.lr": 0.5})
    (said,) = sweep.faults(other.config)
    assert "a holds a run of another configuration (its -> yours): optim.lr: 0.004 -> 0.5" in said
    (longer,) = sweeping.rows(tmp_path, ["a"], **{"run.eval_every": 3})
    assert not list(sweep.faults(longer.config))


def test_rows_that_can_be_one_program_are(tmp_path, own):
    rows = sweep_rows.judged(
        "t", sweep_rows.read(f"{own}:rates,archs=dense+mot,size=smoke,seeds=2"), tmp_path, no_faults
    )
    tries = dict.fromkeys([row.name for row in rows], 0)
    assert [[row.index for row in group] for group in sweep_work.programs(rows, tries, 1e9)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]
    alone = tries | {rows[1].name: 1}  # it failed once
    assert [[row.index for row in group] for group in sweep_work.programs(rows[:4], alone, 1e9)] == [[0, 2, 3], [1]]
    least = 2 * sweep_work.memory_of(rows[:1])
    assert [len(group) for group in sweep_work.programs(rows[:4], tries, least)] == [2, 2]
    saved = rows[0].path / "checkpoints" / "1"
    saved.mkdir(parents=True)
    (saved / "manifest.json").touch()
    assert [[row.index for row in group] for group in sweep_work.programs(rows[:4], tries, 1e9)] == [[0], [1, 2, 3]]
    with_a_mesh = sweeping.rows(tmp_path, ["a", "b"], **{"mesh.fsdp": 2, "data.seed": 0})
    assert len(sweep_work.programs(with_a_mesh, {"a": 0, "b": 0}, 1e9)) == 2
    assert len(sweep_work.programs(sweeping.rows(tmp_path, ["a", "b"]), {"a": 0, "b": 0}, 1e9)) == 2  # other batches


def no_faults(config):
    return ()


# --- what becomes of rows --------------------------------------------------------------------------------------------


def test_rows_are_retried_once_and_then_named(tmp_path):
    said = []
    failures, started = sweeping.sweep(tmp_path, ["good", "once", "fails", "dies", "diverges"], say=said.append)
    assert sorted(map(tuple, started)) == [
        ("dies",),
        ("dies",),
        ("diverges",),
        ("fails",),
        ("fails",),
        ("good",),
        ("once",),
        ("once",),
    ]
    assert list(failures) == ["fails"]
    assert failures["fails"].why == "mot: there is no room for it (exit code 2)"
    assert "there is no room for it" in failures["fails"].log.read_text(encoding="utf-8")
    assert sum("it is tried once more" in line for line in said) == 3
    found = {name: states.of(tmp_path / name).name for name in ("good", "once", "dies", "fails", "diverges")}
    assert found == dict.fromkeys(("good", "once", "dies"), "done") | {"fails": "failed", "diverges": "diverged"}
    assert states.of(tmp_path / "fails").why == failures["fails"].why
    steps = [row["step"] for row in rundir.read_metrics(tmp_path / "dies") if row["kind"] == "train"]
    assert steps == [1, 2, 3, 4]  # it went on where it was
    # What is done is left, what was given up is tried again.
    (tmp_path / "fails").rename(tmp_path / "moved")
    again = sweeping.sweep(tmp_path, ["good", "once", "dies", "diverges"])
    assert again == ({}, [])


def test_every_row_is_shown_until_it_has_ended(tmp_path):
    seen = []
    held = tmp_path / sweeping.HELD
    held.touch()  # the slow row, until the other was seen to end before it

    def show(known):
        seen.append({name: state.name for name, state in known.items()})
        if seen[-1] == {"a": "done", "slow": "running"}:
            held.unlink(missing_ok=True)

    sweeping.sweep(tmp_path, ["a", "slow"], show=show)
    assert seen[0] == {"a": "waiting", "slow": "waiting"}
    assert {"a": "done", "slow": "running"} in seen
    assert seen[-1] == {"a": "done", "slow": "done"}


@pytest.mark.parametrize(
    ("memory", "accelerators", "at_once"), [(1e12, [], 2), (1e6, [], 1), (1e12, [("a TPU", "tpu")], 1)]
)
def test_processes_share_the_cores_the_memory_or_an_accelerator(tmp_path, monkeypatch, memory, accelerators, at_once):
    taken, seen = [], []
    begin = sweep_work._start

    def start(text, out, rows, own, memory):
        taken.append(own)
        return begin(text, out, rows, own, memory)

    machine = sweeping.MACHINE._replace(memory=memory)
    monkeypatch.setattr(sweep_work, "_start", start)
    monkeypatch.setattr(sweeping, "MACHINE", machine)
    monkeypatch.setattr(cores, "accelerators", lambda: accelerators)
    before = os.sched_getaffinity(0)

    def show(known):
        seen.append(sum(state.name == "running" for state in known.values()))

    sweeping.sweep(tmp_path, ["slow-a", "slow-b", "c"], show=show)
    assert os.sched_getaffinity(0) == before
    assert len(taken) == 3
    assert all(own <= machine.cores for own in taken)
    if len(machine.cores) == 2:
        assert max(seen) == at_once
        assert (taken[0] & taken[1] == set()) == (at_once == 2)
    if accelerators:
        assert taken[0] == machine.cores


def process(tmp_path, *names):
    command = [sys.executable, "-m", "tests.support.sweeping", "sweep", tmp_path, json.dumps(names)]
    return subprocess.Popen(command, cwd=ROOT, env=ENV, stderr=subprocess.PIPE, text=True, start_new_session=True)


def until(tells, seconds=60):
    for _ in range(int(seconds / 0.05)):
        if tells():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


NAMES = ("a", "diverges", "fails", "slow-b", "slow-c", "slow-d")
ENDS = {"a": "done", "diverges": "diverged", "fails": "failed"}


def test_a_killed_sweep_leaves_rows_of_every_state_which_go_on(tmp_path):
    (tmp_path / sweeping.HELD).touch()
    killed = process(tmp_path, *NAMES)
    until(lambda: {name: states.of(tmp_path / name).name for name in ENDS} == ENDS)
    until(lambda: states.of(tmp_path / "slow-b").step)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    # Its processes are not left behind.
    until(lambda: all(states.of(tmp_path / name).name != "running" for name in NAMES))
    left = {name: states.of(tmp_path / name) for name in NAMES}
    assert {name: left[name].name for name in ENDS} == ENDS
    assert left["slow-b"].name == "interrupted"
    assert {left["slow-c"].name, left["slow-d"].name} <= {"interrupted", "waiting"}
    assert "waiting" in {state.name for state in left.values()}
    (tmp_path / sweeping.HELD).unlink()
    done = left["slow-b"].step
    failures, started = sweeping.sweep(tmp_path, NAMES)
    assert ["a"] not in started
    assert ["diverges"] not in started
    assert "fails" not in failures, "it ends after a step, and has had four tries now"
    assert {states.of(tmp_path / name).name for name in NAMES if name != "diverges"} == {"done"}
    rows = [row["step"] for row in rundir.read_metrics(tmp_path / "slow-b") if row["kind"] == "train"]
    assert 1 <= done < 4
    assert rows == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_sweep_and_its_processes(tmp_path, number, code):
    (tmp_path / sweeping.HELD).touch()
    stopped = process(tmp_path, "slow-a", "slow-b")
    until(lambda: states.of(tmp_path / "slow-a").step)
    stopped.send_signal(number)
    stopped.communicate()
    assert stopped.returncode == code
    assert {states.of(tmp_path / name).name for name in ("slow-a", "slow-b")} <= {"interrupted", "waiting"}
    assert "failed" not in (tmp_path / "slow-a" / "metrics.jsonl").read_text(encoding="utf-8")


def test_a_row_that_another_command_trains_is_waited_for(tmp_path):
    other = subprocess.Popen(
        sweeping.command("", tmp_path, sweeping.rows(tmp_path, ["slow-a"])), cwd=ROOT, env=ENV, text=True
    )
    until(lambda: states.of(tmp_path / "slow-a").name == "running")
    failures, started = sweeping.sweep(tmp_path, ["slow-a", "b"])
    assert other.wait() == 0
    assert (failures, started) == ({}, [["b"]])


# --- what is shown ---------------------------------------------------------------------------------------------------

KNOWN = {
    "a": states.State("done", 4, 4, {"text": 7.0, "image": "nan"}),
    "b": states.State("running", 1, 4, {"text": 7.5}, 4000.0),
    "c": states.State("waiting"),
}


def test_without_a_terminal_each_change_is_a_line(capsys):
    with sweep_shown.shown() as (show, say):
        show(KNOWN)
        show(KNOWN)
        show(KNOWN | {"b": states.State("failed", 1, 4, {}, None, "no room")})
        say("a line [of text]")
    assert capsys.readouterr().err.splitlines() == [
        "3 rows: 1 running, 1 done, 1 waiting",
        "3 rows: 1 failed, 1 done, 1 waiting",
        "  b: failed, 1 of 4, no room",
        "a line [of text]",
    ]


def test_without_a_terminal_running_rows_are_told_again_when_nothing_else_is(capsys, monkeypatch):
    monkeypatch.setattr(sweep_shown, "EVERY", 0.0)
    with sweep_shown.shown() as (show, _):
        show(KNOWN)
        show(KNOWN)
    told = capsys.readouterr().err.splitlines()
    assert told[1] == told[0]
    assert [line.partition(",")[0] for line in told[2:]] == ["  b: running"]


def test_a_table_shows_what_is_at_work_first(capsys):
    console = sweep_shown.console(sys.stdout)
    console.print(sweep_shown.table(KNOWN))
    shown = capsys.readouterr().out
    assert re.search(r"a +done +4 of 4 +text 7.0000 image nan", shown)
    assert re.search(r"b +running +1 of 4 +text 7.5000 +1 h 6 min", shown)
    console.print(sweep_shown.table(KNOWN, most=1))
    shown = capsys.readouterr().out
    assert "b  " in shown
    assert "3 rows: 1 running, 1 done, 1 waiting; 2 of them are not shown" in shown


# --- real rows -------------------------------------------------------------------------------------------------------

TWO = "archs=dense+mot,size=smoke,seeds=2"
LONG = """
from configs.sweeps import archs, product

def long(arg):
    return product(archs(arg), [{"run.steps": 24, "run.save_every": 4, "run.eval_every": 8}])
"""


def test_a_row_alone_is_the_run_that_its_configuration_is(tmp_path):
    """As a task of a cluster's array trains it; and the sweep that finds it done leaves it."""
    text = "configs/sweeps.py:archs,archs=mot,size=smoke,seeds=2"
    out = tmp_path / "out"
    row = ["--config.run.name=mot-seed1", "--config.model.seed=1", f"--config.run.root={tmp_path}"]
    with devices(1):
        succeeds("sweep", text, "--out", out, "--row", 1)
        succeeds("train", "--config=configs/digits.py:size=smoke,arch=mot", *row)
    losses = [
        [row["loss"] for row in rundir.read_metrics(path / "mot-seed1") if "loss" in row] for path in (out, tmp_path)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5
    said, _ = succeeds("sweep", "status", out)
    assert re.search(r"mot-seed0 +waiting", said)
    assert re.search(r"mot-seed1 +done +2 of 2 +text \d", said)
    code, _, err = run("sweep", "configs/sweeps.py:archs,archs=dense,size=smoke,seeds=2", "--out", out, "--row", 1)
    assert code == 2
    assert "was made by another sweep" in err


@pytest.mark.slow
def test_a_real_sweep_that_is_killed_goes_on_to_the_bit_and_ends_with_a_report(tmp_path):
    (tmp_path / "own.py").write_text(LONG, encoding="utf-8")
    env = ENV | {"JAX_NUM_CPU_DEVICES": "1"}  # XLA adds up by how many there are

    def start(out):
        command = [sys.executable, "-m", "mot", "sweep", f"{tmp_path}/own.py:long,{TWO}", f"--out={out}"]
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    names = [f"{arch}-seed{seed}" for arch in ("dense", "mot") for seed in (0, 1)]
    killed = start(tmp_path / "killed")
    until(lambda: any(states.of(tmp_path / "killed" / name).step >= 10 for name in names), 400)
    killed.kill()
    killed.communicate()
    until(lambda: all(states.of(tmp_path / "killed" / name).name != "running" for name in names), 100)
    found = {states.of(tmp_path / "killed" / name).name for name in names}
    assert found <= {"waiting", "interrupted"}
    assert "interrupted" in found
    for out in ("killed", "whole"):
        said, err = start(tmp_path / out).communicate(timeout=500)
        assert "4 rows: 4 done" in said, err
        assert (tmp_path / out / "report.html").exists()
    for name in names:
        ends = [killing.results(tmp_path / out / name, 24) for out in ("whole", "killed")]
        assert killing.unlike(*ends) == "", name


@pytest.mark.slow
def test_a_row_may_be_trained_by_several_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mot",
        "sweep",
        f"configs/sweeps.py:archs,{TWO}",
        f"--out={tmp_path}/out",
        "--row=2",
    ]
    env = ENV | {"JAX_NUM_CPU_DEVICES": "1"}
    started = [
        subprocess.Popen([*command, f"--distributed=127.0.0.1:{port},{i},2"], cwd=ROOT, env=env, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    codes, said = processes.ended(started)
    assert codes == [0, 0], said
    assert states.of(tmp_path / "out" / "mot-seed0").name == "done"
    (start,) = [row for row in rundir.read_metrics(tmp_path / "out" / "mot-seed0") if row.get("event") == "start"]
    assert start["processes"] == 2


@pytest.mark.slow
def test_500_rows_are_counted_and_60_that_are_done_are_passed_over_in_seconds(tmp_path):
    """Of this process: other work on the machine takes none of them."""
    began = time.process_time()
    said, _ = succeeds("sweep", "configs/sweeps.py:archs,archs=dense+mot,size=smoke,seeds=250", "--dry-run")
    assert "500 rows in 2 programs" in said
    assert time.process_time() - began < 10
    text = "configs/sweeps.py:archs,archs=dense+mot+mot_ffn,size=smoke,seeds=20"
    out = tmp_path / "out"
    rows = sweep_rows.read(text)
    sweep_rows.claim(out, text, rows)
    for row in sweep_rows.judged(text, rows, out, no_faults):
        sweeping.command(text, out, [row])
        (row.path / "checkpoints" / "2").mkdir(parents=True)
        (row.path / "checkpoints" / "2" / "manifest.json").touch()
    (out / "report.html").touch()
    began = time.process_time()
    _, err = succeeds("sweep", text, "--out", out)
    assert "nothing is left to do: 60 rows: 60 done" in err
    assert time.process_time() - began < 10
