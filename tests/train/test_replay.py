"""A step made again has the bits that it had, and its parts are those of the step."""

import json
import math
import re
import shutil

import jax
import numpy as np
import pytest

from mot import checkpoint
from mot.data import pipeline
from mot.errors import UserError
from mot.runs import rundir
from mot.train import loop, replay
from tests.support.commands import run, succeeds
from tests.support.training import rows, smoke

STEPS, BAD = 6, 4
SETTINGS = dict(run__steps=STEPS, run__eval_every=STEPS, run__save_every=STEPS, run__keep=9, optim__accumulate=2)


@pytest.fixture(scope="module", autouse=True)
def a_bad_batch(tmp_path_factory):
    """The first document of step BAD has weights that are not finite, whenever that batch is made."""
    made = pipeline.Batches.__getitem__

    def planted(self, n):
        packed = made(self, n)
        if n == BAD - 1 and self.count == STEPS:
            text = packed.batch["text"]
            text.weight[(text.doc_id == text.doc_id[0, 0]) & (text.weight > 0)] = np.nan
        return packed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.Batches, "__getitem__", planted)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """In three parts, so that it is certain which steps are saved: beside training a save may wait for the last."""
    config = smoke(tmp_path_factory.mktemp("runs"), **SETTINGS)
    for until in (2, 4, STEPS):
        path = loop.run(config, until, devices=jax.devices()[:1])
    assert checkpoint.steps(path / "checkpoints") == [2, 4, STEPS]
    return path


def contents(path):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("step", "begun"), [(2, 0), (3, 2), (6, 4)])
def test_a_step_has_the_bits_that_it_had(trained, step, begun):
    before, said = contents(trained), []
    found = replay.run(trained, step, said.append)
    assert contents(trained) == before
    assert found.begun == begun
    assert found.applied
    assert found.differences == []
    row = rows(trained)[step - 1]
    assert found.figures.items() <= row.items()
    assert {"objective", "grad_norm", "grad_norm/text", "lr", "loss/image", "loss/text/manual"} <= found.figures.keys()
    assert any("from the first state" in line for line in said) == (begun == 0)


def test_the_parts_of_a_step_are_those_of_its_figures(trained):
    """The leaves' norms are one gradient's, the documents' losses are the batch's."""
    found = replay.run(trained, 5)
    np.testing.assert_allclose(math.hypot(*(leaf.norm for leaf in found.leaves)), found.figures["grad_norm"], rtol=1e-5)
    assert [leaf.norm for leaf in found.leaves] == sorted((leaf.norm for leaf in found.leaves), reverse=True)
    assert not any(leaf.not_finite for leaf in found.leaves)
    text = [d for d in found.documents if d.modality == "text"]
    mean = sum(d.loss * d.tokens for d in text) / sum(d.tokens for d in text)  # each token has weight 1
    np.testing.assert_allclose(mean, found.figures["loss/text"], rtol=1e-5)
    assert len({(d.source, d.document, d.modality) for d in found.documents}) == len(found.documents)
    assert [d.loss for d in found.documents] == sorted((d.loss for d in found.documents), reverse=True)


def test_the_bad_document_of_a_skipped_step_is_named(trained):
    """FAULTS 8: the event names it, and the step made again says the same of it, with its own figures to the bit."""
    (event,) = [row for row in rows(trained, "event") if row["event"] == "skipped"]
    assert event["step"] == BAD
    found = replay.run(trained, BAD)
    assert not found.applied
    assert found.differences == []
    assert math.isnan(found.figures["objective"])
    bad = [d for d in found.documents if not math.isfinite(d.loss)]
    assert bad == found.documents[: len(bad)]
    assert {d.source: [d.document] for d in bad} == event["broken_documents"]
    assert replay.run(trained, BAD + 1).differences == []


def test_a_row_with_other_figures_is_told_with_the_step_and_both_values(trained, tmp_path):
    path = tmp_path / trained.name
    shutil.copytree(trained, path)
    written = rundir.read_metrics(path)
    for row in written:
        if (row["kind"], row["step"]) == ("train", 5):
            row["grad_norm"] = float(np.nextafter(row["grad_norm"], 9))
        if row.get("event") == "start":
            row["jax"] = "0.0.1"
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    found = replay.run(path, 6)
    assert len(found.differences) == 1
    assert found.differences[0].startswith("step 5: grad_norm is ")
    assert found.elsewhere == [f"jax 0.0.1 -> {jax.__version__}"]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(trained, tmp_path):
    path, said = tmp_path / trained.name, []
    shutil.copytree(trained, path)
    file = next(p for p in (path / "checkpoints" / "4").rglob("*") if p.is_file() and p.name != "manifest.json")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    found = replay.run(path, 5, said.append)
    assert found.begun == 2
    assert found.differences == []
    assert any(line.startswith("warning: step 4 is passed over: ") for line in said)


def test_the_command_prints_figures_and_tables_and_writes_nothing(trained, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    before = contents(trained)
    out, _ = succeeds("replay", trained, BAD, "--rows", "3")
    assert contents(trained) == before
    assert f"step {BAD}: loss nan, gradient norm " in out
    assert "; skipped" in out
    assert f"steps 3 to {BAD} are the same as in metrics.jsonl, to the bit" in out
    assert "gradients: 3 of " in out
    assert "documents: 3 of " in out
    (event,) = [row for row in rows(trained, "event") if row["event"] == "skipped"]
    ((source, (name,)),) = event["broken_documents"].items()
    assert any({source, name, "nan"} <= set(line.replace("│", " ").split()) for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{run}", "0"), r"step 0: .* has steps 1 to 6; choose one"),
        (("{run}", "7"), r"step 7: .* has steps 1 to 6; choose one"),
        (("{run}", "two"), r"invalid int value: 'two'"),
        (("{run}", "2", "--rows", "-1"), r"--rows=-1; must be 0"),
        (("{run}-gone", "2"), r"no such run directory|does not exist|there is no"),
    ],
)
def test_what_cannot_be_made_again_is_refused(trained, arguments, says):
    code, _, err = run("replay", *(a.format(run=trained) for a in arguments))
    assert code == 2
    assert re.search(says, err), err


def test_a_step_that_was_not_made_yet_is_refused(trained, tmp_path):
    path = tmp_path / trained.name
    shutil.copytree(trained, path)
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(x for x in lines if '"step": 6' not in x), encoding="utf-8")
    with pytest.raises(UserError, match=r"step 6: .*has made steps 1 to 5; choose one of them"):
        replay.run(path, 6)
    (path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"step 6: .*has made no step yet"):
        replay.run(path, 6)
