"""Notebooks run from top to bottom on small runs, are stored without outputs, and say the same in both forms."""

import json
import re
from pathlib import Path

import jupytext
import nbclient
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.support import laws
from tests.support.reports import planted, probed, rewritten

FOLDER = ROOT / "scaling" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
LOADS = {"ffn/text": {"text": [[0.4, 0.3, 0.2, 0.1]] * 2, "image": [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]]}}


def with_loads(row):
    return row | ({"experts": LOADS} if row["kind"] == "eval" else {})


def with_components(path, steps):
    rng = np.random.default_rng(0)
    (path / "probes").mkdir()
    for step in steps:
        arrays = dict(points_LR2=rng.normal(size=(2, 6, 2)), modality_R=np.array(["text", "image"] * 3))
        np.savez(path / "probes" / f"{step}-representation.npz", **arrays)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs where the notebooks look for them."""
    root = tmp_path_factory.mktemp("notebooks")
    (root / "runs" / "demo").mkdir(parents=True)
    for arch, speed in (("dense", 1.0), ("mot", 2.0), ("moe_ec4", 1.5)):
        for seed in range(2):
            path = planted(root / "runs" / "demo", arch, seed, speed)
            probed(path, shift=0.1 * seed)
            if arch == "moe_ec4":
                rewritten(path, with_loads)
            if seed == 0:
                with_components(path, (20, 60))
    (root / "runs" / "ladder").mkdir()
    for rung in ("0.3m", "1m", "3m"):
        for steps in (500, 1000):
            for seed in range(2):
                laws.run(root / "runs" / "ladder", rung, seed, steps, noise=1e-3)
    return root


def outputs(name, folder, monkeypatch):
    """What each cell shows, as (kind, content)."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = jupytext.read(FOLDER / f"{name}.py")
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [o for o in found if o.output_type == "stream" and o.name == "stderr"]
    return [item for o in found for item in o.get("data", {}).items()]


SHOWS = {
    "competition": (r"gradients/cosine", 10),
    "curves": (r"mot +text +0\.5", 2),
    "fits": (r"dense +text +12 +1\.\d", 4),
    "routing": (r"moe_ec4-seed0 ffn/text +unevenness +text", 6),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_its_pictures(name, runs, monkeypatch):
    shown = outputs(name, runs, monkeypatch)
    says, pictures = SHOWS[name]
    assert re.search(says, "\n".join(content for kind, content in shown if kind == "text/plain"))
    assert sum(kind == "image/png" for kind, _ in shown) >= pictures


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_begins_with_the_lines_that_load_runs_and_is_paired_without_outputs(name):
    plain = jupytext.read(FOLDER / f"{name}.py").cells
    stored = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    loads = [line for line in plain[0].source.splitlines() if line]
    assert len(loads) == 3
    assert loads[0].startswith("from scaling import ")
    assert "# your run directories" in loads[1]
    assert [(cell.cell_type, cell.source) for cell in plain] == [
        (cell["cell_type"], "".join(cell["source"])) for cell in stored
    ], "`make notebooks` pairs them"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in stored)


def test_each_notebook_has_a_test():
    assert set(SHOWS) == set(NAMES) == {path.stem for path in Path(FOLDER).glob("*.ipynb")}
