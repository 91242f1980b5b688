"""A run may come from anyone: what its config.json asks is bounded, and no address in it is read unasked."""

import dataclasses
import json
import shutil
import time

import fsspec
import jax
import pytest

from mot.data import remote
from mot.errors import UserError
from mot.generate import opened
from mot.train import evaluate, loop, probe, replay, restore
from tests.support.commands import run, succeeds
from tests.support.devices import devices
from tests.support.training import smoke


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return loop.run(smoke(tmp_path_factory.mktemp("trained")), devices=jax.devices()[:1])


@pytest.fixture
def foreign(trained, tmp_path):
    """Gives a copy of a run whose config.json says otherwise."""

    def make(**changes):
        path = shutil.copytree(trained, tmp_path / "run")
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        del config["digest"]
        for key, value in changes.items():
            section, name = key.split("__")
            config[section][name] = value
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return path

    return make


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"run__eval_batches": 10**9}, "run.eval_batches: 1000000000 batches of data.batch = 2 rows of"),
        ({"data__batch": 2**30}, "run.eval_batches: 2 batches of data.batch = 1073741824 rows of"),
        ({"optim__rules": [{"match": "(\\w+/?)+!", "lr": 1.0, "decay": 0.0}]}, "repeats a group, so that matching may"),
        ({"optim__base_rules": [{"match": ".*.*.*.*", "lr": 1.0, "decay": 0.0}]}, "repeats 4 times"),
        ({"optim__base_rules": [{"match": "(a|a)" * 9, "lr": 1.0, "decay": 0.0}]}, "combine in 512 ways"),
        ({"optim__base_rules": [{"match": ".*", "lr": 1.0, "decay": 0.0}] * 101}, "101 rules; must be at most 100"),
        ({"init__run": "x", "init__match": "x" * 201}, "init.match: 201 characters; must be at most 200"),
        ({"run__keep_best": "x" * 2**20}, "and no configuration has more than 1,048,576"),
        (
            {"data__sources": {"manual": "embedded", "drawn": "embedded", "read": "/etc"}},
            "data.sources.read: '/etc'; embedded data mixes with no other; remove it",
        ),
    ],
)
def test_what_has_no_end_is_refused_before_work_starts(foreign, changes, says):
    path = foreign(**changes)
    before = time.monotonic()
    with devices(1):
        code, out, said = run("evaluate", path)
    assert (code, out) == (2, "")
    assert says in said
    assert said.count("mot: ") == 1
    assert "reading the checkpoint" not in said
    assert time.monotonic() - before < 60


@pytest.mark.parametrize(
    "pattern", ["", "norm", r"blocks/.*/(attn|ffn)/.*/w.*", r"^(?!.*norm)", r"\(?[*+?]\)", "a|b|c"]
)
def test_patterns_that_people_write_are_taken(pattern):
    smoke("runs", optim__rules=({"match": f"{pattern}|embed", "lr": 1.0, "decay": 0.0},))


@pytest.mark.parametrize("address", ["memory://foreign", "http://127.0.0.1:9/data", "simplecache::file:///etc"])
def test_an_address_that_only_the_run_names_is_not_fetched(foreign, address, monkeypatch):
    path = foreign(data__sources={"manual": address, "drawn": address, "read": address})
    asked = []
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *args: asked.append(args) or 1 / 0)
    for argv in (["evaluate", path], ["sample", path], ["replay", path, "1"], ["probe", path]):
        code, _, said = run(*argv)
        assert code == 2
        assert f"has its data at {address}, " in said
        assert "nothing was fetched; where you trust it, say so with --fetch" in said
    for read in (lambda: opened.opened(path), lambda: replay.run(path, 1), lambda: probe.run(path, [], [])):
        with pytest.raises(UserError, match="nothing was fetched"):
            read()
    assert not asked
    code, _, said = run("evaluate", path, "--fetch")
    assert code == 2
    assert asked
    assert f"{address} cannot be read" in said


def test_an_address_that_its_user_has_named_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    address = "memory://named"
    with pytest.raises(UserError, match="has its data at memory://named"):
        remote.refuse_unknown(tmp_path, {"a": address}, fetch=False)
    with fsspec.open(f"{address}/dataset.json", "wb") as file:
        file.write(b"{}")
    remote.local(address, whole=False)
    remote.refuse_unknown(tmp_path, {"a": address, "b": "embedded", "c": "/a/folder"}, fetch=False)
    with pytest.raises(UserError, match="has its data at memory://named/other, from"):
        remote.refuse_unknown(tmp_path, {"a": address, "b": f"{address}/other"}, fetch=False)


def test_a_run_as_it_was_written_is_evaluated(trained):
    with devices(1):
        assert "loss/text" in succeeds("evaluate", trained)[0]


def test_an_evaluation_may_read_ten_times_the_held_out_data_or_so_many_tokens():
    c, _, held_out = restore.open_data(smoke("runs"))
    of_batch = c.data.batch * c.length
    allowed = dataclasses.replace(c, run=dataclasses.replace(c.run, eval_batches=evaluate.PLACES // of_batch))
    evaluate.refuse_endless(allowed, held_out)
    more = dataclasses.replace(c, run=dataclasses.replace(c.run, eval_batches=evaluate.PLACES // of_batch + 1))
    with pytest.raises(UserError, match=r"this run's held-out data allow 16,777,216; nothing was evaluated"):
        evaluate.refuse_endless(more, held_out)
