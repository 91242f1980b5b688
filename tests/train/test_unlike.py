"""FAULTS 7: a run that is to go on with other arrays, configuration, tokenizer or data tells how they differ."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot import checkpoint, sharding
from mot.config.options import ACCEPTED
from mot.data import embedded, pipeline
from mot.errors import UserError
from mot.model import params
from mot.runs import rundir, writer
from mot.train import ensemble, loop, restore
from tests.conftest import ROOT
from tests.support.commands import run, succeeds
from tests.support.training import restored, rows, smoke

CONSTANT = dict(optim__schedule="constant", run__save_every=2, run__eval_every=9)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_device):
    """A run at step 2 of 2, whose rate is constant."""
    return loop.run(smoke(tmp_path_factory.mktemp("trained"), **CONSTANT), devices=one_device)


@pytest.fixture
def path(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / trained.name)


def other_captions(patch):
    patch.setattr(embedded, "CAPTIONS", ("the number {}",))


def other_tokenizer(patch):
    patch.setattr(embedded, "all_captions", lambda: ["a text that no caption has"] * 999)


def none(_):
    pass


# By the kind that each shows first: what of the configuration is set, what else is done, and the lines of the list.
CASES = {
    "config": (dict(optim__lr=1e-2), none, ["optim.lr: "]),
    "tree": (
        dict(optim__ema=0.9),
        none,
        ["optim.ema: 0.0 -> 0.9", "ema/blocks/main/attn/image/k_norm: absent -> float32[2, 16]"],
    ),
    "shape": (
        dict(streams__text__ffn=96, streams__image__ffn=96),
        none,
        ["streams.text.ffn: 64 -> 96", "params/blocks/main/ffn/text/w1: float32[2, 32, 64] -> float32[2, 32, 96]"],
    ),
    "dtype": (
        dict(optim__moments="bfloat16"),
        none,
        ["opt/optax/1/mu/blocks/main/attn/image/k_norm: float32[2, 16] -> bfloat16[2, 16]", "  and 32 more"],
    ),
    "data": ({}, other_captions, ["was trained on other data: its digest is "]),
    "tokenizer": ({}, other_tokenizer, ["  text: ", "was trained on other data: its digest is "]),
}
KINDS_OF = {
    "config": ["config"],
    "tree": ["config", "tree"],
    "shape": ["config", "shape"],
    "dtype": ["config", "dtype"],
    "data": ["data"],
    "tokenizer": ["tokenizer", "data"],
}


def configured(root, changes):
    """As `smoke`, with keys of any depth."""
    flat = {key: value for key, value in changes.items() if key.count("__") == 1}
    c = smoke(root, **CONSTANT | flat)
    streams = dict(c.streams)
    for key, value in changes.items():
        if key.count("__") == 2:
            _, name, field = key.split("__")
            streams[name] = streams[name].__class__(**vars(streams[name]) | {field: value})
    return c.__class__(**{**vars(c), "streams": streams})


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and "lock" not in p.name}


def test_each_kind_is_here():
    assert CASES.keys() == ACCEPTED.keys() == KINDS_OF.keys()


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_is_refused_with_its_list_and_accepted_by_its_name(path, kind, monkeypatch, one_device, capfd):
    changes, act, lines = CASES[kind]
    act(monkeypatch)
    c = configured(path.parent, changes)
    there = contents(path)
    kinds = KINDS_OF[kind]
    for too_few in ((), kinds[:-1], {*ACCEPTED} - {kind}):
        with pytest.raises(UserError) as caught:
            loop.run(c, devices=one_device, accept=too_few)
        told = str(caught.value)
        assert [line[:-1] for line in told.splitlines() if re.fullmatch(r"[a-z]+:", line)] == kinds
        assert all(line in told for line in lines)
        assert f"choose another run.name; or have it go on in spite of them with --accept={','.join(kinds)}:" in told
        assert f"{kind}: {ACCEPTED[kind]}" in told
        assert "move" not in told
        assert contents(path) == there
    assert loop.run(c, until=2, devices=one_device, accept=kinds) == path
    told = capfd.readouterr().err
    assert f"{path}: goes on from step 2 in spite of differences:" in told
    assert all(line in told for line in lines)
    (event,) = [row for row in rows(path, "event") if row["event"] == "accepted"]
    assert (event["step"], event["kinds"]) == (2, kinds)
    assert rundir.config_of(path).optim == c.optim
    assert rundir.config_of(path).streams == c.streams
    assert rundir.accepted(path) == {"accepted": [{"step": 2, "kinds": kinds}]}


def test_arrays_that_fit_are_taken_or_cast_and_the_others_begin_new(path, one_device):
    changes = CASES["tree"][0] | CASES["shape"][0] | CASES["dtype"][0]
    c = configured(path.parent, changes)
    mesh = sharding.make_mesh(c, jax.devices()[:2])  # they are read in parts
    with jax.set_mesh(mesh):
        state, position = restore.start(c, path, mesh, accept=("tree", "shape", "dtype"))
    assert position.step == 2
    was = params.paths(restored(path, 2)["params"])
    new = params.paths(jax.jit(lambda: params.init(params.table(c), c.model.seed))())
    for name, x in params.paths(state.params).items():
        np.testing.assert_array_equal(x, new[name] if "/ffn/" in name and "norm" not in name else was[name], name)
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    moments = params.paths(state.opt[1].mu)
    kept = restored(path, 2)["opt"]["optax"][1]["mu"]
    np.testing.assert_array_equal(moments["embed/tokens"], kept["embed"]["tokens"].astype(jnp.bfloat16))
    assert not np.any(moments["blocks/main/ffn/text/w1"])
    with pytest.raises(UserError, match=r"holds other arrays than are needed:\n(.|\n)*give the run the configuration"):
        restore.start(c, path, mesh, accept=("tree", "shape"))


def test_a_damaged_array_is_found_where_others_are_accepted_too(path, one_device, monkeypatch):
    c = configured(path.parent, CASES["tree"][0])
    read = checkpoint.arrays.read

    def flipped(target, name, part=None):
        return read(target, name, part) + (1 if name == "params/head/out" else 0)

    monkeypatch.setattr(checkpoint.arrays, "read", flipped)
    mesh = sharding.one_device(one_device)
    with pytest.raises(UserError, match="params/head/out came back changed"):
        restore.start(c, path, mesh, accept=("tree",))


def test_the_place_in_the_data(path, one_device):
    """Exact where nothing differs; else at the same document, and those that waited for a row are passed over."""
    c = smoke(path.parent, **CONSTANT)
    c, training, _ = restore.open_data(c)

    def position():
        return checkpoint.Position(**checkpoint.position(path / "checkpoints" / "2"))

    plan = position().plan
    assert plan["waiting"]
    same = position()
    restore.take_up(same, c, training, ())
    assert same.plan == plan
    assert (same.data, same.tokenizers.keys()) == (training.digest, {"text"})
    moved = position()
    restore.take_up(moved, c, training._replace(digest="other"), ("data",))
    assert moved.plan == plan | {"waiting": []}
    assert moved.data == "other"
    more_rows = smoke(path.parent, data__batch=c.data.batch * 2, **CONSTANT)
    for packing, accept in (("as it was", ()), ("", ("config",))):  # also where it was accepted, killed, and resumed
        repacked = position()
        repacked.packing = repacked.packing if packing else ""
        restore.take_up(repacked, more_rows, training, accept)
        assert repacked.plan == plan | {"waiting": [], "row": 2 * more_rows.data.batch, "starts": [0]}
        batches = pipeline.Batches(training, more_rows, more_rows.data.seed, 9, repacked.plan)
        first = batches[2].batch["text"]
        assert (np.asarray(first.segment) > 0).any()


def test_what_was_accepted_stays_said_from_an_earlier_step(path):
    event = {"schema": 1, "kind": "event", "step": 2, "time": "", "event": "accepted", "kinds": ["config"]}
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(rundir.line_of(event))
    resumed = writer.Writer(path, 1)
    loop.keep_said(resumed, 1)
    resumed.close()
    assert rundir.accepted(path) == {"accepted": [{"step": 1, "kinds": ["config"]}]}


def test_a_branch_and_runs_in_one_program_too(path, one_device):
    start = dict(init__run=str(path), init__state="all", run__name="branch", optim__lr=1e-2)
    c = smoke(path.parent, **CONSTANT | start)
    with pytest.raises(UserError, match=r"optim.lr(.|\n)*or write init.state=weights(.|\n)*--accept=config:"):
        loop.run(c, devices=one_device)
    assert not (path.parent / "branch").exists()
    branch = loop.run(c, until=2, devices=one_device, accept={"config"})
    assert [row["event"] for row in rows(branch, "event")][-2:] == ["branched", "accepted"]
    shutil.copytree(path, path.parent / "again")
    pair = [smoke(path.parent, run__name=name, optim__lr=1e-2, **CONSTANT) for name in (path.name, "again")]
    own = json.loads((path.parent / "again" / "config.json").read_text(encoding="utf-8"))
    del own["digest"]
    own["run"]["name"] = "again"
    (path.parent / "again" / "config.json").write_text(json.dumps(own), encoding="utf-8")
    with pytest.raises(UserError, match="--accept=config:"):
        ensemble.run(pair, devices=one_device)
    for done in ensemble.run(pair, until=2, devices=one_device, accept={"config"}):
        assert rundir.accepted(done) == {"accepted": [{"step": 2, "kinds": ["config"]}]}


def test_the_command_and_all_that_read_the_run_afterwards(path, monkeypatch, tmp_path, one_device):
    other_captions(monkeypatch)
    monkeypatch.setattr(jax, "devices", lambda *_: one_device)
    config = f"--config={ROOT}/configs/digits.py:arch=mot,size=smoke"
    values = {"run.root": path.parent, "run.steps": 3, "optim.ema": 0.9, "optim.moments": "bfloat16"}
    values |= {"optim.schedule": "constant", "run.save_every": 2, "run.eval_every": 9}
    asked = ["train", config, *(f"--config.{key}={value}" for key, value in values.items())]
    code, _, said = run(*asked)
    assert code == 2
    assert "--accept=config,tree,dtype,data:" in said
    succeeds(*asked, "--accept", "config,tree,dtype,data")
    made_by = checkpoint.made_by(path / "checkpoints" / "3")
    assert made_by["accepted"] == [{"step": 2, "kinds": ["config", "tree", "dtype", "data"]}]
    out, _ = succeeds("evaluate", path)
    assert "at step 2 it went on with other config, tree, dtype, data" in " ".join(out.split())
    succeeds("sample", path, "--prompt", "a handwritten one", "--n", "1", "--read", "1")
    code, _, said = run("sample", path, "--step", "2", "--prompt", "a handwritten one", "--n", "1")
    assert code == 2
    assert "holds other arrays than are needed" in said
    out, _ = succeeds("replay", path, "3")
    assert "the same as in metrics.jsonl, to the bit" in " ".join(out.split())
    code, _, said = run("replay", path, "2")
    assert code == 2
    assert "choose one of these" in said
    succeeds("report", path, "--out", tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "it went on with other config, tree, dtype, data" in page
    assert "already at step 3" in succeeds(*asked)[1]  # nothing differs any more


def test_a_kind_that_is_none_is_told(path):
    code, _, said = run("train", f"--config={ROOT}/configs/digits.py:size=smoke", "--accept", "confg")
    assert code == 2
    assert "--accept=confg: 'confg' is no kind of difference; allowed: config, tree, shape" in said
    assert "did you mean 'config'?" in said
