"""`mot checkpoint` on a run that has two steps."""

import re
import shutil

import numpy as np
import pytest

from mot.train import loop
from tests.support import commands
from tests.support.training import restored, smoke


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
    root = tmp_path_factory.mktemp("runs")
    return loop.run(smoke(root, run__steps=2, run__save_every=1, run__eval_every=2), devices=one_device)


@pytest.fixture
def damaged(run, tmp_path):
    """A copy whose newest step has a file with another bit."""
    there = tmp_path / run.name
    shutil.copytree(run, there)
    file = max((there / "checkpoints" / "2" / "params").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    return there


def test_list_tells_sizes_verdicts_and_what_is_passed_over(damaged):
    (damaged / "checkpoints" / "notes").mkdir()
    out, _ = commands.succeeds("checkpoint", "list", damaged)
    assert re.search(r"1 +│ [\d.]+ MB │ \d+ (s|min) +│ verified", out)
    assert "damaged" in out
    assert "passed over: notes (not the name of a step)" in out


def test_verify_ends_with_2_where_a_step_is_damaged(run, damaged):
    assert commands.run("checkpoint", "verify", run)[0] == 0
    assert commands.run("checkpoint", "verify", damaged, "--step", "1")[0] == 0
    code, out, err = commands.run("checkpoint", "verify", damaged)
    assert code == 2
    assert "is damaged: its digest is not the manifest's" in out + err
    assert "params/" in out + err


def test_show_tells_figures_of_a_parameter(run):
    flat = {}
    for path, x in restored(run, 2)["params"].items():
        flat |= paths(path, x)
    path, x = max(flat.items(), key=lambda item: item[1].size)
    out, _ = commands.succeeds("checkpoint", "show", run, f"params/{path}")
    assert f"params/{path}" in out.replace("\n", "")
    assert f"{np.abs(x).max():.2g}"[:3] in out or f"{x.max():.2g}"[:3] in out
    listed, _ = commands.succeeds("checkpoint", "show", run)
    assert all(name.split("/")[-1] in listed for name in flat)


def paths(path, x):
    if not isinstance(x, dict):
        return {path: x}
    return {key: value for name, below in x.items() for key, value in paths(f"{path}/{name}", below).items()}


def test_diff_compares_path_by_path(run):
    out, _ = commands.succeeds("checkpoint", "diff", f"{run}:1", f"{run}:2")
    assert "params/" in out
    same, _ = commands.succeeds("checkpoint", "diff", f"{run}:2", f"{run}:2")
    assert len(same.splitlines()) < len(out.splitlines())


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["list", "nowhere"], "nowhere: there is no such run directory"),
        (["verify", "RUN", "--step", "9"], "has no checkpoint of step 9; it has 1, 2"),
        (["show", "RUN", "params/nothing"], "params/nothing"),
        (["show", "RUN", "("], "("),
        (["diff", "RUN:1", "RUN:x"], "x"),
        (["lst"], "no command 'lst'; allowed: list, verify, show, diff"),
    ],
)
def test_bad_input_is_one_message(run, argv, says):
    code, out, err = commands.run("checkpoint", *(word.replace("RUN", str(run)) for word in argv))
    assert code == 2
    assert says in out + err
    assert "Traceback" not in err
