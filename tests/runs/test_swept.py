"""A sweep's folder is read back without what leads out of it, and where it is damaged by what lies in it."""

import json
import subprocess
import sys

import pytest

from mot.errors import UserError
from mot.runs import swept
from tests.support.sources import ROOT


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    for name in ("out/a", "out/b", "out/notes", "beyond"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "out" / "notes" / "config.json").unlink()
    rows = [{"run.name": name} for name in ("b", "waits", "a")]
    (folder / swept.FILE).write_text(json.dumps({"sweep": "f.py:x", "rows": rows}), encoding="utf-8")
    (folder / "report.html").write_text("", encoding="utf-8")
    return folder


def test_runs_that_have_begun_are_named_in_the_order_of_rows(out):
    assert swept.names(out) == ["b", "waits", "a"]
    assert swept.named([out]) == [out / "b", out / "a"]
    assert swept.named([out, out / "a"]) == [out / "b", out / "a"]


def test_a_name_that_leads_elsewhere_makes_a_sweep_foreign(out):
    rows = [{"run.name": name} for name in ("a", "../beyond")]
    (out / swept.FILE).write_text(json.dumps({"sweep": "f.py:x", "rows": rows}), encoding="utf-8")
    with pytest.raises(UserError, match="is damaged or foreign"):
        swept.names(out)
    assert swept.named([out]) == [out / "a", out / "b"]


def test_of_a_damaged_sweep_all_runs_in_the_folder_are_meant(out):
    (out / swept.FILE).write_text("{", encoding="utf-8")
    assert swept.named([out]) == [out / "a", out / "b"]
    with pytest.raises(UserError, match="is damaged or foreign"):
        swept.saved(out)


def test_a_sweep_of_which_nothing_has_begun_is_one_message(tmp_path):
    (tmp_path / swept.FILE).write_text(json.dumps({"sweep": "f.py:x", "rows": []}), encoding="utf-8")
    with pytest.raises(UserError, match="none of this sweep's runs has begun"):
        swept.named([tmp_path])


def test_a_run_of_its_own_is_no_sweep(out):
    assert swept.is_sweep(out)
    (out / "config.json").write_text("{}", encoding="utf-8")
    assert not swept.is_sweep(out)
    assert not swept.is_sweep(out / "nowhere")


def test_it_is_read_without_jax():
    command = "import sys; from mot.runs import swept; print('jax' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    assert printed.stdout == "False\n"
