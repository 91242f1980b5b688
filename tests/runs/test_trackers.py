"""Trackers beside TensorBoard: each row goes once, in order, whatever the tracker does, and nothing waits for it."""

import json
import math
import time

import pytest

from configs import digits
from mot.config import ConfigError, resolve
from mot.errors import UserError
from mot.runs import rundir, services, trackers
from mot.runs.writer import Writer
from mot.train import ensemble, loop
from tests.support.trackers import Hanging, installed
from tests.support.training import rows, smoke


@pytest.fixture
def fake(monkeypatch):
    return installed(monkeypatch, "wandb")[0]


@pytest.fixture
def path(tmp_path):
    """The folder of a run that has a tracker, and no row yet."""
    return rundir.open_run(smoke(tmp_path / "a-sweep", run__trackers="wandb"))


class Said(list):
    def __call__(self, line):
        self.append(line)


def written(path, steps, resumed_at=0, said=None, **options):
    """A start of the run, which writes rows of these steps, and an evaluation at every second."""
    writer = Writer(path, resumed_at, say=said if said is not None else Said(), **options)
    for step in steps:
        writer.write("train", step, {"loss": float(step), "flops": 1})
        if step % 2 == 0:
            writer.write("eval", step, {"loss": float(step)})
    return writer


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def places(last):
    """What a tracker must have of a run at this step."""
    return [place for n in range(1, last + 1) for place in [f"train {n}", *([f"eval {n}"] if n % 2 == 0 else [])]]


def test_a_tracker_has_the_curves_of_every_row_and_the_configuration(fake, path):
    writer = written(path, [1, 2])
    writer.write("event", 2, {"event": "saved", "seconds": 1.0})
    writer.write("train", 3, {"loss": math.nan, "lr": 0.5})
    writer.close()
    (about,) = fake.abouts
    (given,) = fake.rows.values()
    assert given[:3] == [(1, {"loss": 1.0}), (2, {"loss": 2.0}), (2, {"eval/loss": 2.0})]
    assert given[3][0] == 3
    assert math.isnan(given[3][1]["loss"])
    assert given[3][1]["optim/lr"] == 0.5
    assert len(given) == 4
    assert (about.name, about.group, about.folder) == ("digits-mot-smoke", "a-sweep", path)
    assert about.config["optim"] == rundir.read_config(path)["optim"]
    assert fake.closed == 1


def test_a_restart_goes_on_with_the_same_run_and_each_row_goes_once(fake, path):
    """Rows after the checkpoint are dropped, and written again: the tracker has them."""
    written(path, range(1, 9)).close()
    written(path, range(6, 13), resumed_at=5).close()
    assert len({about.id for about in fake.abouts}) == 1
    assert fake.places() == places(12)


def test_what_a_tracker_lost_is_sent_again(fake, path):
    """trackio writes rows some time after it took them: after a kill its database says what it has."""
    written(path, range(1, 9)).close()
    (given,) = fake.rows.values()
    del given[given.index((7, {"loss": 7.0})) :]
    fake.has = {"train": 6, "eval": 6}
    written(path, range(8, 11), resumed_at=7).close()  # of step 7 the file alone has a row
    assert fake.places() == places(10)


@pytest.mark.parametrize(
    ("starts", "has"),
    [(0, {}), (1, {"train": -1, "eval": -1}), (2, {})],
    ids=["never kept", "killed early", "sent and removed"],
)
def test_where_a_kill_cost_wandb_all_rows_its_files_say_so(tmp_path, starts, has):
    """W&B writes rows some seconds after it took them, and its files hold nothing before."""
    start = tmp_path / "offline-run-20260101_000000-abc"
    start.mkdir()
    (start / "run-abc.wandb").write_bytes(b"")
    about = services.About("abc", "one", "sweep", {}, tmp_path, starts)
    assert services._in_files(tmp_path, about) == has


def test_a_row_that_went_out_as_the_process_was_killed_is_not_sent_again(fake, path):
    """The tracker has it, but that it was sent is not kept."""
    written(path, range(1, 9)).close()
    file = path / "trackers" / "wandb.json"
    file.write_text(json.dumps({"id": fake.abouts[0].id, "sent": {"train": 7, "eval": 6}}), encoding="utf-8")
    fake.has = {"train": 8, "eval": 8}
    written(path, range(7, 11), resumed_at=6).close()
    assert fake.places() == places(10)


def test_a_tracker_that_comes_later_is_given_the_rows_so_far(fake, tmp_path):
    path = rundir.open_run(smoke(tmp_path))
    written(path, range(1, 5)).close()
    assert not fake.abouts
    assert rundir.open_run(smoke(tmp_path, run__trackers="wandb")) == path, "a run that goes on may change them"
    written(path, range(5, 7), resumed_at=4).close()
    assert fake.places() == places(6)


def test_a_tracker_that_raises_and_comes_back_lacks_no_row(fake, path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "planted-0123456789")
    said = Said()
    failed = []

    def fault(step):
        if 3 <= step <= 5 and len(failed) < 4:
            failed.append(step)
            raise ConnectionError("no route, with planted-0123456789")

    fake.fault = fault
    writer = written(path, range(1, 9), said=said)
    until(lambda: fake.rows and len(fake.places()) == len(places(8)))
    writer.close()
    assert fake.places() == places(8)
    assert failed == [3, 3, 3, 3]
    assert [line for line in said if "wandb failed" in line] == [
        "ALARM: wandb failed (ConnectionError: no route, with ***); training goes on, and it is tried again"
    ]
    assert said.count("wandb takes rows again; none was lost") == 1
    assert len(fake.abouts) == 5, "it was opened again after each failure"


def test_a_tracker_that_cannot_be_opened_gets_its_rows_from_a_later_start(fake, path, monkeypatch):
    said = Said()
    works = fake.open
    told = []

    def broken(about):
        told.append(about.id)
        raise SystemExit("no such project")

    monkeypatch.setattr(trackers, "OPENERS", {"wandb": broken})
    writer = written(path, range(1, 5), said=said)
    until(lambda: said)
    writer.close()
    assert said[-1] == "ALARM: wandb did not take the last rows; the command that began the run sends them"
    assert len(said) == 2
    monkeypatch.setattr(trackers, "OPENERS", {"wandb": works})
    written(path, [5], resumed_at=4).close()
    assert fake.places() == places(5)
    assert {about.id for about in fake.abouts} == {*told}, "the id is kept before anything is asked"


@pytest.mark.parametrize("most", [10_000, 3])
def test_nothing_waits_for_a_tracker_that_hangs_and_it_gets_all_rows_when_it_answers(fake, path, monkeypatch, most):
    """Also where more rows come than wait in memory: those are read from metrics.jsonl."""
    monkeypatch.setattr(trackers, "MOST", most)
    monkeypatch.setattr(trackers, "PATIENCE", 0.0)
    said = Said()
    fake.fault = Hanging()
    writer = written(path, [1], said=said)
    assert fake.fault.is_asked.wait(60)
    began = time.monotonic()
    for step in range(2, 40):
        writer.write("train", step, {"loss": float(step)})
    assert time.monotonic() - began < 10
    (tracker,) = writer.trackers
    assert len(tracker.waiting) == min(most, 38)
    fake.fault.let_go.set()
    until(lambda: len(fake.places()) == 39)
    writer.close()
    assert fake.places() == [f"train {n}" for n in range(1, 40)]
    assert [line for line in said if "answer" in line] == [
        "ALARM: wandb has not answered for 0 s; training goes on without it",
        "wandb answers again",
    ]


@pytest.mark.parametrize("where", ["log", "close"])
def test_the_end_of_a_run_does_not_wait_for_trackers_that_hang(tmp_path, monkeypatch, where):
    """Two, of each of two runs of one program, take together no longer than one may."""
    monkeypatch.setattr(trackers, "CLOSING", 2.0)
    fakes = installed(monkeypatch, "wandb", "trackio")
    hanging = Hanging()
    for fake in fakes:
        setattr(fake, "fault" if where == "log" else "closing", hanging)
    paths = [rundir.open_run(smoke(tmp_path, run__name=name, run__trackers="wandb,trackio")) for name in "ab"]
    said = Said()
    writers = [written(path, [1], said=said) for path in paths]
    if where == "log":
        assert hanging.is_asked.wait(60)
    began = time.monotonic()
    for writer in writers:
        writer.end()
    for writer in writers:
        writer.close()
    assert 1.9 < time.monotonic() - began < 7.5, "one after the other they take 8"
    assert len([line for line in said if "did not take the last rows" in line]) == 4
    hanging.let_go.set()
    for fake in fakes:
        fake.fault = fake.closing = None
        until(lambda fake=fake: fake.closed == 2)
    for path in paths:
        written(path, [2], resumed_at=1).close()
    for fake in fakes:
        assert [[step for step, _ in given] for given in fake.rows.values()] == [[1, 2, 2], [1, 2, 2]]


def test_a_row_that_no_file_has_yet_is_waited_for(fake, path, monkeypatch):
    """In a bucket, or on a full disk, metrics.jsonl lacks for a while what does not wait in memory either."""
    monkeypatch.setattr(trackers, "MOST", 2)
    read = rundir.read_metrics
    is_behind = [True]
    monkeypatch.setattr(rundir, "read_metrics", lambda path: [] if is_behind[0] else read(path))
    fake.fault = Hanging()
    writer = written(path, [1])
    assert fake.fault.is_asked.wait(60)
    for step in range(3, 12, 2):
        writer.write("train", step, {"loss": float(step)})
    fake.fault.let_go.set()
    time.sleep(0.2)
    assert fake.places() == ["train 1"]
    is_behind[0] = False
    until(lambda: len(fake.places()) == 6)
    writer.close()
    assert fake.places() == [f"train {n}" for n in range(1, 12, 2)]


def test_another_process_of_the_run_has_no_tracker(fake, path):
    written(path, [1], is_first=False).close()
    assert not fake.abouts


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"id": "a", "sent": {"train": "x"}}', "\x00"])
def test_where_what_was_sent_cannot_be_read_another_run_of_the_tracker_gets_all(fake, path, content):
    written(path, range(1, 5)).close()
    (path / "trackers" / "wandb.json").write_text(content, encoding="utf-8")
    written(path, [5], resumed_at=4).close()
    first, second = fake.rows.values()
    assert len(first) == 6
    assert [step for step, _ in second] == [1, 2, 2, 3, 4, 4, 5]


def test_what_looks_secret_in_a_configuration_stays_here(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "planted-token")
    config = {"data": {"sources": {"web": "https://me:word@host/x", "other": ["s3://planted-token/", 3]}}}
    told = trackers.without_secrets(config)
    assert told == {"data": {"sources": {"web": "https://***@host/x", "other": ["s3://***/", 3]}}}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("wandbb", "run.trackers: 'wandbb': no such tracker; allowed: wandb, trackio, or ''; did you mean 'wandb'?"),
        ("wandb,wandb", "run.trackers: 'wandb,wandb' names one twice; name each once"),
    ],
)
def test_an_unknown_tracker_is_one_fault(given, told):
    tree = digits.get_config("arch=mot,size=smoke").unlock()
    tree.run.trackers = given
    with pytest.raises(ConfigError) as caught:
        resolve(tree)
    assert caught.value.faults == [told]


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for run in (loop.run, lambda c: ensemble.run([c])):
        with pytest.raises(UserError, match=r"wandb and trackio are not installed; .* -e '\.\[wandb,trackio\]'"):
            run(smoke(tmp_path, run__trackers="wandb,trackio"))
    assert not [*tmp_path.iterdir()]


def test_training_is_the_same_beside_trackers_that_fail(tmp_path, monkeypatch, one_device):
    """One raises and one hangs from its first row on. The command again, on and at the end, gives each row once."""
    monkeypatch.setattr(trackers, "CLOSING", 0.5)
    raising, hanging = installed(monkeypatch, "wandb", "trackio")
    hanging.fault = Hanging()

    def fault(step):
        raise RuntimeError(f"step {step}")

    raising.fault = fault
    c = smoke(tmp_path / "tracked", run__steps=4, run__save_every=2, run__eval_every=2, run__trackers="wandb,trackio")
    loop.run(c, until=2, devices=one_device)
    hanging.fault.let_go.set()
    until(lambda: hanging.closed == 1)
    path = loop.run(c, devices=one_device)
    assert raising.places() == []
    raising.fault = None
    for _ in range(2):
        loop.run(c, devices=one_device)
    assert len(hanging.abouts) == 2, "what has all rows is not opened again"
    plain = loop.run(smoke(tmp_path / "plain", run__steps=4, run__save_every=2, run__eval_every=2), devices=one_device)
    for kind in ("train", "eval"):
        assert [row["loss"] for row in rows(path, kind)] == [row["loss"] for row in rows(plain, kind)]
    for fake in (raising, hanging):
        assert fake.places() == ["eval 0", "train 1", "train 2", "eval 2", "train 3", "train 4", "eval 4"]


def test_each_run_of_one_program_has_its_own(tmp_path, fake):
    configs = [smoke(tmp_path, run__name=name, model__seed=i, run__trackers="wandb") for i, name in enumerate("ab")]
    paths = ensemble.run(configs)
    assert [about.name for about in sorted(fake.abouts)] in (["a", "b"], ["b", "a"])
    by_name = {about.name: fake.rows[about.id] for about in fake.abouts}
    for path in paths:
        told = [points["loss"] for _, points in by_name[path.name] if "loss" in points]
        assert told == [row["loss"] for row in rows(path)]
        known = json.loads((path / "trackers" / "wandb.json").read_text(encoding="utf-8"))
        assert known["sent"] == {"train": 2, "eval": 2}
